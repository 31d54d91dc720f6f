"""Content-addressed objects: whole under their digest, or not there at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from common.errors import RoundError
from common.ids import Sha256
from coordinator.objects import ObjectStore

DATA = bytes(range(256)) * 10
DIGEST = Sha256(hashlib.sha256(DATA).digest())


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "objects")


def test_an_object_lies_under_the_sha256_of_its_bytes(store: ObjectStore) -> None:
    assert store.put(DATA) == DIGEST
    assert store.path(DIGEST).name == DIGEST.hex()
    assert store.path(DIGEST).read_bytes() == DATA


def test_pieces_of_any_kind_make_the_same_object(store: ObjectStore) -> None:
    with store.writer() as writer:
        writer.write(DATA[:100])
        writer.write(bytearray(DATA[100:101]))
        writer.write(memoryview(DATA)[101:])
        assert writer.commit() == DIGEST
    assert store.path(DIGEST).read_bytes() == DATA


def test_the_same_object_twice_is_one_file(store: ObjectStore, tmp_path: Path) -> None:
    store.put(DATA)
    store.put(DATA)
    assert len(list((tmp_path / "objects").iterdir())) == 1


def test_nothing_is_visible_before_commit_or_after_a_failure(
    store: ObjectStore, tmp_path: Path
) -> None:
    def fail() -> None:
        with store.writer() as writer:
            writer.write(DATA)
            assert not store.path(DIGEST).exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list((tmp_path / "objects").iterdir()) == []


def test_what_a_crash_left_half_written_is_swept_at_the_next_start(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    store.put(DATA)
    writer = store.writer()
    writer.write(DATA[:10])  # and the process is gone: no commit, no discard
    again = ObjectStore(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [DIGEST.hex()]
    with again.open(DIGEST) as reader:
        assert reader.read(0, 10_000) == DATA
    writer.discard()


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 3, DATA[:3]), (2557, 10, DATA[-3:]), (2560, 4, b""), (100, 0, b"")],
)
def test_a_reader_reads_by_offset_and_short_only_at_the_end(
    store: ObjectStore, offset: int, length: int, expected: bytes
) -> None:
    store.put(DATA)
    with store.open(DIGEST) as reader:
        assert reader.size == len(DATA)
        assert reader.read(offset, length) == expected


def test_an_object_that_is_not_there_is_named(store: ObjectStore) -> None:
    with pytest.raises(RoundError, match=DIGEST.hex()[:16]) as refused:
        store.open(DIGEST)
    assert refused.value.name == "NOT_FOUND"


def test_removing_is_final_and_removing_nothing_is_no_error(store: ObjectStore) -> None:
    store.put(DATA)
    store.remove(DIGEST)
    store.remove(DIGEST)
    assert not store.path(DIGEST).exists()


def test_an_object_that_two_hold_stays_until_both_let_go(store: ObjectStore) -> None:
    store.put(DATA)
    store.hold(DIGEST)
    store.hold(DIGEST)
    store.remove(DIGEST)
    store.let_go(DIGEST)
    assert store.path(DIGEST).exists()
    store.let_go(DIGEST)
    assert not store.path(DIGEST).exists()
