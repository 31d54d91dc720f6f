"""Models in, masked vectors out, waits between attempts."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConnectError, Refusal, StateError
from common.ids import HeaderDigest, Sha256
from common.messages import CHUNK_BYTES, DownloadChunk, UploadAck, UploadChunk, UploadStart
from common.model_file import model_header
from common.quantise import Coding
from common.secagg.header import Rounding
from common.secagg.keys import EdgeSeed, SelfSeed
from common.secagg.masking import MaskPlan
from common.secagg.messages import ResumeState, UploadEnd
from common.secagg.ring import Words
from common.vectors import ParameterSchema, TensorSpec, TensorType, model_digest
from hospital_node.backoff import Backoff, os_jitter
from hospital_node.contribution import digest_of, read_chunks, write_masked
from hospital_node.link import Link
from hospital_node.receive import ModelReceiver, digest_of_file, read_model
from hospital_node.session import LinkSlot
from hospital_node.transfer import Road, download, upload

SCHEMA = ParameterSchema(
    (
        TensorSpec("a", TensorType.FLOAT64, (3,)),
        TensorSpec("none", TensorType.FLOAT32, (0,)),
        TensorSpec("b", TensorType.FLOAT32, (2, 5)),
        TensorSpec("c", TensorType.BFLOAT16, (3,)),
        TensorSpec("d", TensorType.FLOAT16, (1,)),
    )
)
TENSORS = (
    np.arange(3, dtype="<f8").tobytes()
    + np.arange(10, dtype="<f4").tobytes()
    + np.array([0x3F80, 0x4000, 0xC040], "<u2").tobytes()
    + np.array([1.5], "<f2").tobytes()
)
FILE = model_header(SCHEMA) + TENSORS


def _pieces(data: bytes, cuts: list[int], start: int = 0) -> list[DownloadChunk]:
    edges = sorted({start, len(data), *(cut for cut in cuts if start < cut < len(data))})
    return [DownloadChunk(low, len(data), data[low:high]) for low, high in pairwise(edges)]


# --- receiving --------------------------------------------------------------------------


@given(cuts=st.lists(st.integers(1, len(FILE) - 1), max_size=12))
def test_a_model_cut_anywhere_hashes_as_the_protocol_says(
    cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("m") / "model"
    with ModelReceiver(path, SCHEMA) as receiver:
        for piece in _pieces(FILE, cuts):
            receiver.take(piece)
        assert receiver.finish() == model_digest(SCHEMA, TENSORS)
    assert path.read_bytes() == FILE
    assert digest_of_file(path, SCHEMA) == model_digest(SCHEMA, TENSORS)
    assert read_model(path, SCHEMA) == TENSORS


@pytest.mark.parametrize("data", [FILE[:-1], FILE + b"\0", FILE[:10], b"", None])
def test_a_model_file_that_changed_since_it_was_received_is_not_used(
    tmp_path: Path, data: bytes | None
) -> None:
    path = tmp_path / "model"
    with ModelReceiver(path, SCHEMA) as receiver:
        _take(receiver, _pieces(FILE, []))
        receiver.finish()
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    assert digest_of_file(path, SCHEMA) is None
    with pytest.raises(StateError) as caught:
        read_model(path, SCHEMA)
    assert caught.value.name == "MODEL_INVALID"


@pytest.mark.parametrize("place", [0, len(FILE) - len(TENSORS), len(FILE) - 1])
def test_a_stored_model_with_an_altered_byte_has_not_its_digest(tmp_path: Path, place: int) -> None:
    altered = bytearray(FILE)
    altered[place] ^= 1
    path = tmp_path / "model"
    path.write_bytes(altered)
    assert digest_of_file(path, SCHEMA) != model_digest(SCHEMA, TENSORS)


@given(stop=st.integers(0, len(FILE)), cut=st.integers(1, len(FILE) - 1))
def test_what_an_earlier_process_received_is_taken_up_and_hashed_again(
    stop: int, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("m") / "model"
    path.with_name("model.part").write_bytes(FILE[:stop])
    with ModelReceiver(path, SCHEMA) as receiver:
        assert receiver.offset == stop
        for piece in _pieces(FILE, [cut], stop):
            receiver.take(piece)
        assert receiver.finish() == model_digest(SCHEMA, TENSORS)


def test_a_rest_that_cannot_be_of_this_model_is_started_over(tmp_path: Path) -> None:
    (tmp_path / "model.part").write_bytes(b"{" + FILE[1:50])
    with ModelReceiver(tmp_path / "model", SCHEMA) as receiver:
        assert receiver.offset == 0


@pytest.mark.parametrize("place", range(8, len(model_header(SCHEMA)), 7))
def test_any_other_header_is_refused(tmp_path: Path, place: int) -> None:
    altered = bytearray(FILE)
    altered[place] ^= 1
    with ModelReceiver(tmp_path / "model", SCHEMA) as receiver:
        with pytest.raises(Refusal) as caught:
            receiver.take(DownloadChunk(0, len(FILE), bytes(altered)))
        assert caught.value.name == "MODEL_HASH"


def _take(receiver: ModelReceiver, pieces: list[DownloadChunk]) -> None:
    for piece in pieces:
        receiver.take(piece)


BAD = {
    "f8": (0, np.array([np.nan], "<f8").tobytes()),
    "f4": (24 + 9 * 4, np.array([-np.inf], "<f4").tobytes()),
    "bf16": (64 + 2, (0x7F80).to_bytes(2, "little")),
    "f2": (70, np.array([np.nan], "<f2").tobytes()),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_value_that_is_not_finite_is_refused_however_it_is_cut(
    tmp_path: Path, kind: str, step: int
) -> None:
    at, value = BAD[kind]
    at += len(model_header(SCHEMA))
    data = FILE[:at] + value + FILE[at + len(value) :]
    assert len(data) == len(FILE)
    with ModelReceiver(tmp_path / "model", SCHEMA) as receiver, pytest.raises(Refusal) as caught:
        _take(receiver, _pieces(data, list(range(step, len(data), step))))
    assert caught.value.name == "MODEL_RANGE"


@pytest.mark.parametrize(
    "piece",
    [
        DownloadChunk(0, len(FILE) + 1, FILE),
        DownloadChunk(1, len(FILE), FILE[1:]),
        DownloadChunk(0, len(FILE), FILE + b"x"),
    ],
    ids=["size", "gap", "long"],
)
def test_pieces_that_do_not_fit_are_refused(tmp_path: Path, piece: DownloadChunk) -> None:
    with ModelReceiver(tmp_path / "model", SCHEMA) as receiver:
        with pytest.raises(Refusal) as caught:
            receiver.take(piece)
        assert caught.value.name == "MODEL_HASH"


def test_a_model_with_bytes_missing_is_not_given_its_name(tmp_path: Path) -> None:
    with ModelReceiver(tmp_path / "model", SCHEMA) as receiver:
        receiver.take(DownloadChunk(0, len(FILE), FILE[:-1]))
        with pytest.raises(Refusal):
            receiver.finish()
    assert not (tmp_path / "model").exists()


# --- a link that breaks as told ----------------------------------------------------------


class ScriptedLink:
    """Serves one object and takes one upload; breaks off after a number of pieces."""

    def __init__(self, data: bytes = FILE) -> None:
        self.data = data
        self.piece = 16
        self.breaks: list[int] = []
        self.failures: list[Exception] = []
        self.offsets: list[int] = []
        self.stored = bytearray()
        self.starts: list[int] = []
        self.ack: UploadAck | None = None

    async def download(self, sha256: Sha256, offset: int) -> AsyncIterator[DownloadChunk]:
        self.offsets.append(offset)
        left = self.breaks.pop(0) if self.breaks else -1
        while offset < len(self.data):
            if left == 0:
                raise ConnectError("UNREACHABLE", "cut")
            left -= 1
            yield DownloadChunk(offset, len(self.data), self.data[offset : offset + self.piece])
            offset += self.piece

    async def upload(
        self, start: UploadStart, chunks: AsyncIterator[UploadChunk], end: UploadEnd
    ) -> UploadAck:
        self.starts.append(start.first_chunk)
        left = self.breaks.pop(0) if self.breaks else -1
        async for chunk in chunks:
            if left == 0:
                raise ConnectError("UNREACHABLE", "cut")
            left -= 1
            assert chunk.index * CHUNK_BYTES == len(self.stored)
            self.stored += chunk.data
        if self.failures:
            raise self.failures.pop(0)
        if self.ack is not None:  # it found other bytes and starts over
            self.stored.clear()
        return self.ack or UploadAck(end.hd, Sha256(hashlib.sha256(self.stored).digest()))


def _road(link: ScriptedLink, waits: list[float]) -> Road:
    slot = LinkSlot()
    slot.fill(link)  # type: ignore[arg-type]

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    return Road(slot, sleep, lambda: Backoff(lambda: 0.5))


async def test_a_download_goes_on_at_each_byte_where_it_broke_off(tmp_path: Path) -> None:
    link, waits = ScriptedLink(), list[float]()
    link.breaks = [2, 0, 3]
    with ModelReceiver(tmp_path / "m", SCHEMA) as receiver:
        found = await download(_road(link, waits), Sha256(b"\0" * 32), receiver)
    assert found == model_digest(SCHEMA, TENSORS)
    assert link.offsets == [0, 32, 32, 80]
    assert len(waits) == 3


async def test_a_refused_download_is_given_up_and_its_part_discarded(tmp_path: Path) -> None:
    link = ScriptedLink(b"{" + FILE[1:])
    with (
        ModelReceiver(tmp_path / "m", SCHEMA) as receiver,
        pytest.raises(Refusal, match="header"),
    ):
        await download(_road(link, []), Sha256(b"\0" * 32), receiver)
    assert not os.listdir(tmp_path)  # noqa: PTH208 - nothing waits for a disk here


HD = HeaderDigest(b"\7" * 32)


def _end(data: bytes) -> UploadEnd:
    ydig = Sha256(hashlib.sha256(data).digest())
    return UploadEnd(HD, ydig, Sha256(b"\0" * 32), (), (), b"\0" * 64)


def _state(link: ScriptedLink, *, done: bool = False) -> Callable[[Link], object]:
    async def resume(_: Link) -> ResumeState:
        return ResumeState(HD, len(link.stored) // CHUNK_BYTES, done)

    return resume


async def _upload(
    tmp_path: Path, link: ScriptedLink, *, fresh: bool = True, done: bool = False
) -> bytes:
    data = bytes(range(256)) * (CHUNK_BYTES // 256) * 2 + b"tail"
    (tmp_path / "y").write_bytes(data)
    resume = _state(link, done=done)
    start = UploadStart("t", HD, 0)
    await upload(_road(link, []), start, tmp_path / "y", _end(data), resume, fresh=fresh)  # type: ignore[arg-type]
    return data


async def test_an_upload_asks_where_it_broke_off_and_goes_on_there(tmp_path: Path) -> None:
    link = ScriptedLink()
    link.breaks = [1, 0, 1]
    assert await _upload(tmp_path, link) == bytes(link.stored)
    assert link.starts == [0, 1, 1, 2]


async def test_an_upload_that_gets_further_never_waits_long(tmp_path: Path) -> None:
    """Fault F24: a line that breaks at each chunk costs a fifth of a second a time, not minutes."""
    data = bytes(6 * CHUNK_BYTES)
    (tmp_path / "y").write_bytes(data)
    link, waits, moved = ScriptedLink(), list[float](), list[int]()
    link.breaks = [0, 0, 1, 1, 1, 1, 0, 1]
    road = replace(_road(link, waits), moved=lambda: moved.append(len(link.stored)))
    start, resume = UploadStart("t", HD, 0), _state(link)
    await upload(road, start, tmp_path / "y", _end(data), resume, fresh=True)  # type: ignore[arg-type]
    assert bytes(link.stored) == data
    assert waits == [0.1, 0.2, 0.4, 0.1, 0.1, 0.1, 0.1, 0.2]
    assert moved == [n * CHUNK_BYTES for n in (1, 2, 3, 4, 5)]


async def test_an_upload_the_coordinator_already_holds_is_not_sent(tmp_path: Path) -> None:
    link = ScriptedLink()
    await _upload(tmp_path, link, fresh=False, done=True)
    assert link.starts == []


@pytest.mark.parametrize("name", ["UPLOAD_LATE", "UPLOAD_SIG", "CLOSED"])
async def test_a_refused_upload_is_not_tried_again(tmp_path: Path, name: str) -> None:
    link = ScriptedLink()
    link.failures = [Refusal(name, "no")]
    with pytest.raises(Refusal):
        await _upload(tmp_path, link)
    assert link.starts == [0]


async def test_an_upload_goes_on_after_the_coordinators_disk_was_full(tmp_path: Path) -> None:
    """It asks again how far it came, as after a connection that broke."""
    link = ScriptedLink()
    link.failures = [StateError("DISK", "the coordinator's")]
    await _upload(tmp_path, link, done=True)
    assert link.starts == [0]
    assert not link.failures


async def test_an_acknowledgement_of_other_bytes_is_given_up_after_three_tries(
    tmp_path: Path,
) -> None:
    link = ScriptedLink()
    link.ack = UploadAck(HD, Sha256(b"\0" * 32))
    with pytest.raises(Refusal) as caught:
        await _upload(tmp_path, link)
    assert caught.value.name == "UPLOAD_DIGEST"
    assert len(link.starts) == 3


# --- waits --------------------------------------------------------------------------------


@dataclass
class At:
    """Monotonic seconds that a test moves."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_wait_doubles_from_a_fifth_of_a_second_to_five_minutes() -> None:
    at = At()
    top = Backoff(lambda: 1.0, at)
    at.now = 24 * 3600.0
    assert [top.failed() for _ in range(13)] == [*(0.2 * 2**k for k in range(11)), 300.0, 300.0]
    top.failures = 10**6
    assert top.failed() == 300.0
    assert Backoff(lambda: 0.0, at).failed() == 0.0


def test_no_wait_makes_an_outage_longer_by_more_than_a_tenth() -> None:
    """However often it was tried: a round whose deadline is a minute is not missed by a wait."""
    at = At()
    top = Backoff(lambda: 1.0, at)
    top.failures = 30
    waits = []
    for at.now in (0.0, 5.0, 20.0, 50.0, 600.0):
        waits.append(top.failed())
    assert waits == [1.0, 1.0, 2.0, 5.0, 60.0]
    top.succeeded()
    assert (top.failed(), top.failed()) == (0.2, 0.4)


@given(asked=st.floats(0.1, 290.0), jitter=st.floats(0.0, 0.999))
def test_a_delay_that_was_asked_for_is_kept_and_spread(asked: float, jitter: float) -> None:
    wait = Backoff(lambda: jitter).failed(asked)
    assert asked <= wait <= max(1.5 * min(asked, 300.0), 0.2)


def test_nobody_is_made_to_wait_for_ever() -> None:
    assert Backoff(lambda: 1.0).failed(1e9) == 450.0


def test_the_operating_systems_jitter_covers_the_range() -> None:
    waits = [os_jitter() for _ in range(300)]
    assert all(0.0 <= wait < 1.0 for wait in waits)
    assert min(waits) < 0.1
    assert max(waits) > 0.9


# --- the masked vector ----------------------------------------------------------------------


class Counting:
    """A source whose word o is o."""

    def __init__(self, words: int) -> None:
        self.words = words
        self.blocks: list[tuple[int, int]] = []

    def fill(self, out: Words, word_offset: int) -> None:
        self.blocks.append((word_offset, out.size))
        out[:] = np.arange(word_offset, word_offset + out.size)


PLAN = MaskPlan(SelfSeed(b"b" * 32), ((EdgeSeed(b"e" * 32), 1), (EdgeSeed(b"f" * 32), -1)), 32)


@pytest.mark.parametrize("words", [1, 5, CHUNK_BYTES // 4, 2 * CHUNK_BYTES // 4 + 3])
async def test_the_file_is_the_whole_vector_masked_and_its_digest(
    tmp_path: Path, words: int
) -> None:
    source = Counting(words)
    ydig = write_masked(tmp_path / "y", source, PLAN)
    expected = np.arange(words, dtype="<u4")
    PLAN.stream().apply(expected, 0)
    content = (tmp_path / "y").read_bytes()
    assert content == expected.tobytes()
    assert ydig == hashlib.sha256(content).digest() == digest_of(tmp_path / "y")
    assert max(size for _, size in source.blocks) <= CHUNK_BYTES // 4
    chunks = [chunk async for chunk in read_chunks(tmp_path / "y", 0)]
    assert b"".join(chunk.data for chunk in chunks) == content
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))


def test_an_abandoned_or_failed_input_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="ended"):
        write_masked(tmp_path / "y", Counting(10), PLAN, lambda: True)

    class Failing(Counting):
        def fill(self, out: Words, word_offset: int) -> None:
            raise Refusal("INPUT_NAN", "nan")

    with pytest.raises(Refusal):
        write_masked(tmp_path / "y", Failing(10), PLAN)
    assert not list(tmp_path.iterdir())


async def test_a_spool_that_is_gone_is_named_damaged(tmp_path: Path) -> None:
    with pytest.raises(StateError) as caught:
        _ = [chunk async for chunk in read_chunks(tmp_path / "none", 0)]
    assert caught.value.name == "STATE_DAMAGED"
    assert digest_of(tmp_path / "none") is None


def test_coding_of_a_round_needs_no_seed_for_even_rounding() -> None:
    assert Coding(7, 32, Rounding.EVEN).round_seed is None


async def test_waiting_for_a_link_ends_when_one_is_there() -> None:
    slot = LinkSlot()
    waiting = asyncio.create_task(slot.get())
    await asyncio.sleep(0)
    assert not waiting.done()
    link = ScriptedLink()
    slot.fill(link)  # type: ignore[arg-type]
    assert id(await waiting) == id(link)
    slot.empty()
    assert not slot.connected
    assert not await slot.send("t", ResumeState)  # type: ignore[arg-type]
