"""Opening a sum: exact against plain integers, whatever the ring, the dropouts, the blocks."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import Refusal, RoundError
from common.ids import HeaderDigest, NodeId, hospital_id
from common.secagg.keys import EdgeSeed, SelfSeed
from common.secagg.masking import MaskPlan, OpeningPlan, edge_sign
from common.secagg.ring import SignedWords, word_bytes, word_dtype
from coordinator import opening as module
from coordinator.opening import Collect, Later, Opening, open_sum, open_tail
from coordinator.spool import Spool, SpoolFile

HD = HeaderDigest(b"\x01" * 32)
NODES = tuple(hospital_id("heart", f"h{place}") for place in range(5))
RINGS = pytest.mark.parametrize("w", [16, 32, 64])


def seed(*names: str) -> bytes:
    return hashlib.sha256(" ".join(names).encode()).digest()


def edge(one: NodeId, other: NodeId) -> EdgeSeed:
    return EdgeSeed(seed("edge", *sorted((one, other))))


def inputs(w: int, words: int, bound: int) -> dict[NodeId, list[int]]:
    """Return plain integers within the bound, extremes among them."""
    generator = np.random.default_rng(w * words)
    out = {}
    for place, node in enumerate(NODES):
        values = [int(x) for x in generator.integers(-bound, bound + 1, words)]
        values[0], values[-1] = (bound, -bound) if place % 2 else (-bound, bound)
        out[node] = values
    return out


class Round:
    """Five masked uploads in a spool; some never arrive."""

    def __init__(self, root: Path, w: int, words: int, dropped: int = 0) -> None:
        self.w, self.words = w, words
        self.bound = 2 ** (w - 6)
        self.inputs = inputs(w, words, self.bound)
        self.survivors = NODES[: len(NODES) - dropped]
        self.spool = Spool(root)
        self.files = [self._upload(node) for node in self.survivors]

    def _upload(self, node: NodeId) -> SpoolFile:
        values = np.array([x % 2**self.w for x in self.inputs[node]], word_dtype(self.w))
        others = [other for other in NODES if other != node]
        edges = tuple((edge(node, other), edge_sign(node, other)) for other in others)
        MaskPlan(SelfSeed(seed("self", node)), edges, self.w).stream().apply(values, 0)
        file = self.spool.file(HD, node, values.nbytes)
        file.append(0, values.tobytes())
        return file

    @property
    def opening(self) -> Opening:
        outside = [node for node in NODES if node not in self.survivors]
        plan = OpeningPlan(
            tuple(SelfSeed(seed("self", node)) for node in self.survivors),
            tuple((edge(i, j), edge_sign(i, j)) for i in self.survivors for j in outside),
            self.w,
        )
        return Opening(self.files, plan, self.words, len(self.survivors) * self.bound)

    @property
    def expected(self) -> list[int]:
        rows = [self.inputs[node] for node in self.survivors]
        return [sum(column) for column in zip(*rows, strict=True)]

    def corrupt(self, place: int, value: int) -> None:
        """Make one survivor's word something else after it was masked."""
        width = word_bytes(self.w)
        with self.files[0].path.open("r+b") as file:
            file.seek(place * width)
            old = int.from_bytes(file.read(width), "little")
            file.seek(place * width)
            file.write(((old + value) % 2**self.w).to_bytes(width, "little"))
        former = self.files[0]  # that is what the hospital sent, then
        former.close()
        self.files[0] = SpoolFile(former.path, former.expected_bytes)


@pytest.fixture(params=[64, 1 << 20], ids=["blocks-of-64-bytes", "one-block"])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "BLOCK_BYTES", request.param)
    return int(request.param)


@RINGS
@pytest.mark.parametrize("dropped", [0, 1, 2])
@pytest.mark.parametrize("words", [1, 8, 16, 33, 100])
def test_the_opened_sum_is_the_plain_integer_sum_of_the_survivors(
    tmp_path: Path, block_bytes: int, w: int, words: int, dropped: int
) -> None:
    here = Round(tmp_path, w, words, dropped)
    sink = Collect(words)
    digest = open_sum(here.opening, sink)
    assert sink.words.tolist() == here.expected
    modular = np.array([x % 2**w for x in here.expected], word_dtype(w))
    assert digest == hashlib.sha256(modular.tobytes()).digest()


@RINGS
@pytest.mark.parametrize("first_word", [0, 1, 7, 15, 16, 17, 63, 98, 99])
def test_the_tail_alone_is_the_end_of_the_sum(
    tmp_path: Path, block_bytes: int, w: int, first_word: int
) -> None:
    here = Round(tmp_path, w, 100, 1)
    assert list(open_tail(here.opening, first_word)) == here.expected[first_word:]


def test_blocks_come_in_order_and_their_later_work_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    here = Round(tmp_path, 32, 100)
    taken: list[tuple[int, int]] = []
    written: list[int] = []

    class Sink:
        def take(self, start: int, words: SignedWords) -> Later:
            taken.append((start, words.size))
            return lambda: written.append(start)

    open_sum(here.opening, Sink())
    assert taken == [(start, min(16, 100 - start)) for start in range(0, 100, 16)]
    assert written == [start for start, _ in taken]


def test_a_failure_of_the_later_work_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)

    class Sink:
        def take(self, start: int, words: SignedWords) -> Later:
            return self.fail

        def fail(self) -> None:
            raise OSError(28, "No space left on device")

    for words in (10, 100):  # the last block's failure as well as the first's
        with pytest.raises(OSError, match="No space"):
            open_sum(Round(tmp_path / str(words), 32, words).opening, Sink())


@RINGS
@pytest.mark.parametrize("place", [0, 50, 99])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_word_outside_the_bound_is_refused(
    tmp_path: Path, block_bytes: int, w: int, place: int, sign: int
) -> None:
    here = Round(tmp_path, w, 100, 1)
    sink = Collect(100)
    open_sum(here.opening, sink)
    # As far as the bound, and one step beyond it.
    room = here.opening.bound - sign * here.expected[place]
    here.corrupt(place, sign * room)
    open_sum(here.opening, sink)
    here.corrupt(place, sign)
    with pytest.raises(Refusal) as refused:
        open_sum(here.opening, sink)
    assert refused.value.name == "SUM_RANGE"
    with pytest.raises(Refusal):
        open_tail(here.opening, place)


@RINGS
def test_a_mask_that_does_not_cancel_is_refused(tmp_path: Path, w: int) -> None:
    here = Round(tmp_path, w, 100, 1)
    good = here.opening
    for plan in (
        OpeningPlan(good.plan.self_seeds[1:], good.plan.dropped_edges, w),
        OpeningPlan(good.plan.self_seeds, good.plan.dropped_edges[1:], w),
        OpeningPlan(
            good.plan.self_seeds,
            tuple((s, -sign) for s, sign in good.plan.dropped_edges),
            w,
        ),
    ):
        with pytest.raises(Refusal) as refused:
            open_sum(Opening(good.spools, plan, 100, good.bound), Collect(100))
        assert refused.value.name == "SUM_RANGE"


def test_nothing_to_open_is_refused(tmp_path: Path) -> None:
    empty = Opening([], OpeningPlan((), (), 32), 4, 10)
    with pytest.raises(Refusal) as refused:
        open_sum(empty, Collect(4))
    assert refused.value.name == "NOT_ENOUGH"


@pytest.mark.fault("F16")
def test_a_sum_that_is_being_opened_does_not_keep_a_process_that_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    case, looks = Round(tmp_path, 32, 1000), iter((False, False, True))
    sink = Collect(case.words)
    sink.words[:] = 0
    with pytest.raises(RoundError, match="RUN_CANCELLED"):
        open_sum(replace(case.opening, stopping=lambda: next(looks)), sink)
    assert sink.words[:32].tolist() == case.expected[:32]
    assert not sink.words[32:].any()
