"""Uploads on disk: only the next chunk is taken, and only the signed bytes count."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import Refusal
from common.ids import HeaderDigest, Sha256, hospital_id
from coordinator import spool as module
from coordinator.spool import Spool, SpoolFile

CHUNK = 64
HD = HeaderDigest(b"\x07" * 32)
OTHER = HeaderDigest(b"\x08" * 32)
NODE = hospital_id("heart", "a")
DATA = bytes(range(200))
DIGEST = Sha256(hashlib.sha256(DATA).digest())


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", CHUNK)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SpoolFile]:
    opened = SpoolFile(tmp_path / "a", len(DATA))
    yield opened
    opened.close()


def chunk(index: int) -> bytes:
    return DATA[index * CHUNK : (index + 1) * CHUNK]


def fill(file: SpoolFile, *indices: int) -> None:
    for index in indices:
        file.append(index, chunk(index))


def refusal(file: SpoolFile, index: int, data: bytes) -> str:
    before = file.next_chunk
    with pytest.raises(Refusal) as refused:
        file.append(index, data)
    assert file.next_chunk == before
    return refused.value.name


def test_chunks_in_order_make_a_complete_upload(file: SpoolFile) -> None:
    assert (file.next_chunk, file.complete) == (0, False)
    fill(file, 0, 1, 2, 3)
    assert (file.next_chunk, file.complete) == (4, True)
    assert file.finish(DIGEST) == DIGEST
    assert file.path.read_bytes() == DATA


def test_a_chunk_out_of_order_is_refused_and_one_that_is_here_is_passed_over(
    file: SpoolFile,
) -> None:
    fill(file, 0)
    assert refusal(file, 2, chunk(2)) == "UPLOAD_SIZE"
    file.append(0, b"\xff" * CHUNK)  # a repetition, whatever it holds
    fill(file, 1, 2, 3)
    assert file.finish(DIGEST) == DIGEST


@pytest.mark.parametrize(
    ("have", "index", "size"), [(0, 0, 63), (0, 0, 65), (3, 3, 7), (3, 3, 9), (4, 4, 1), (4, 4, 64)]
)
def test_a_chunk_of_another_size_or_beyond_the_end_is_refused(
    file: SpoolFile, have: int, index: int, size: int
) -> None:
    fill(file, *range(have))
    assert refusal(file, index, b"x" * size) == "UPLOAD_SIZE"


def test_an_upload_with_bytes_missing_is_not_finished(file: SpoolFile) -> None:
    fill(file, 0, 1, 2)
    with pytest.raises(Refusal) as refused:
        file.finish(DIGEST)
    assert refused.value.name == "UPLOAD_SIZE"
    fill(file, 3)
    assert file.finish(DIGEST) == DIGEST


def test_altered_bytes_are_refused_and_the_upload_starts_over(file: SpoolFile) -> None:
    file.append(0, b"\x00" * CHUNK)
    fill(file, 1, 2, 3)
    with pytest.raises(Refusal) as refused:
        file.finish(DIGEST)
    assert refused.value.name == "UPLOAD_DIGEST"
    assert file.next_chunk == 0
    assert file.path.stat().st_size == 0
    fill(file, 0, 1, 2, 3)
    assert file.finish(DIGEST) == DIGEST


@pytest.mark.parametrize(
    ("on_disk", "next_chunk"), [(0, 0), (63, 0), (64, 1), (191, 2), (199, 3), (200, 4)]
)
def test_after_a_crash_it_goes_on_behind_the_last_whole_chunk(
    tmp_path: Path, on_disk: int, next_chunk: int
) -> None:
    (tmp_path / "a").write_bytes(DATA[:on_disk])
    file = SpoolFile(tmp_path / "a", len(DATA))
    assert file.next_chunk == next_chunk
    fill(file, *range(next_chunk, 4))
    assert file.finish(DIGEST) == DIGEST
    file.close()


def test_after_a_crash_the_digest_is_of_what_the_disk_holds(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff" * 128)
    file = SpoolFile(tmp_path / "a", len(DATA))
    fill(file, 2, 3)
    with pytest.raises(Refusal) as refused:
        file.finish(DIGEST)
    assert refused.value.name == "UPLOAD_DIGEST"
    file.close()


def test_a_file_that_is_too_long_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA + b"more")
    file = SpoolFile(tmp_path / "a", len(DATA))
    assert file.finish(DIGEST) == DIGEST
    assert (tmp_path / "a").read_bytes() == DATA
    file.close()


def test_reading_by_offset_sees_a_file_that_shrank(file: SpoolFile) -> None:
    fill(file, 0, 1, 2, 3)
    buffer = bytearray(10)
    file.read_into(memoryview(buffer), 100)
    assert buffer == DATA[100:110]
    file.path.write_bytes(DATA[:105])
    with pytest.raises(Refusal) as refused:
        file.read_into(memoryview(buffer), 100)
    assert refused.value.name == "UPLOAD_SIZE"


# --- the folder -------------------------------------------------------------------------------


def test_a_closed_upload_is_not_read_under_a_number_that_may_be_another_files(
    file: SpoolFile,
) -> None:
    file.close()
    with pytest.raises(Refusal) as refused:
        file.read_into(memoryview(bytearray(1)), 0)
    assert refused.value.name == "UPLOAD_LATE"


def test_a_round_has_a_folder_and_a_node_one_file_in_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    file = spool.file(HD, NODE, len(DATA))
    assert spool.file(HD, NODE, len(DATA)) is file
    assert file.path == tmp_path / "spool" / HD.hex() / "a"
    spool.sync_round(HD)
    spool.drop(HD)
    assert list((tmp_path / "spool").iterdir()) == []


def test_dropping_a_round_leaves_the_others(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for hd in (HD, OTHER):
        fill(spool.file(hd, NODE, len(DATA)), 0)
    spool.drop(HD)
    spool.drop(HD)
    assert [path.name for path in tmp_path.iterdir()] == [OTHER.hex()]
    assert spool.file(HD, NODE, len(DATA)).next_chunk == 0
    assert spool.file(OTHER, NODE, len(DATA)).next_chunk == 1
    spool.drop(HD)
    spool.drop(OTHER)


def test_after_a_restart_only_the_rounds_still_open_are_kept(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    for hd in (HD, OTHER):
        fill(first.file(hd, NODE, len(DATA)), 0, 1)
    again = Spool(tmp_path)
    again.drop_all_but(frozenset({HD}))
    assert [path.name for path in tmp_path.iterdir()] == [HD.hex()]
    assert again.file(HD, NODE, len(DATA)).next_chunk == 2
    for spool in (first, again):
        spool.drop(HD)
        spool.drop(OTHER)


def test_what_is_not_of_the_spool_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".note").write_text("do not delete")
    (tmp_path / ("ab" * 31)).mkdir()
    Spool(tmp_path).drop_all_but(frozenset())
    assert len(list(tmp_path.iterdir())) == 3


def test_a_settled_upload_cannot_be_emptied_by_a_later_claim(tmp_path: Path) -> None:
    data = b"\x07" * 64
    file = SpoolFile(tmp_path / "one", len(data))
    file.append(0, data)
    digest = Sha256(hashlib.sha256(data).digest())
    assert file.finish(digest) == digest
    with pytest.raises(Refusal) as refused:
        file.finish(Sha256(b"\x00" * 32))
    assert refused.value.name == "UPLOAD_DIGEST"
    assert file.complete
    assert file.finish(digest) == digest
    file.close()
    with pytest.raises(Refusal) as late:
        file.append(1, data)
    assert late.value.name == "UPLOAD_LATE"
