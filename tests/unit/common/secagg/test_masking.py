"""Masks cancel over the survivors, chunk by chunk, and hide what they cover."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.entropy import CountingEntropy
from common.errors import InternalError
from common.ids import NodeId
from common.secagg.keys import EdgeSeed, SelfSeed
from common.secagg.masking import (
    PIECE_BYTES,
    MaskPlan,
    OpeningPlan,
    SignedEdge,
    edge_sign,
)
from common.secagg.prg import Keystream
from common.secagg.ring import Words, word_dtype


class Cohort:
    """n nodes with seeds from one entropy; what they upload and what opens it."""

    def __init__(self, n: int, w: int, d: int, seed: bytes = b"cohort") -> None:
        entropy = CountingEntropy(seed)
        self.ids = [NodeId(f"h{k:02}") for k in range(n)]
        self.w = w
        self.self_seeds = {node: SelfSeed.fresh(entropy) for node in self.ids}
        self.edges = {
            frozenset(pair): EdgeSeed.fresh(entropy) for pair in combinations(self.ids, 2)
        }
        self.values = {
            node: np.frombuffer(entropy.take(d * w // 8), word_dtype(w)) for node in self.ids
        }

    def signed(self, own: NodeId, others: list[NodeId]) -> tuple[SignedEdge, ...]:
        return tuple(
            (self.edges[frozenset((own, other))], edge_sign(own, other))
            for other in others
            if other != own
        )

    def plan(self, node: NodeId) -> MaskPlan:
        return MaskPlan(self.self_seeds[node], self.signed(node, self.ids), self.w)

    def upload(self, node: NodeId) -> Words:
        words = self.values[node].copy()
        self.plan(node).stream().apply(words, 0)
        return words

    def opening(self, survivors: list[NodeId]) -> OpeningPlan:
        gone = [node for node in self.ids if node not in survivors]
        edges = [edge for node in survivors for edge in self.signed(node, gone)]
        return OpeningPlan(tuple(self.self_seeds[node] for node in survivors), tuple(edges), self.w)


def total(arrays: list[Words], w: int) -> Words:
    out = np.zeros_like(arrays[0])
    for array in arrays:
        np.add(out, array, out=out)
    assert out.dtype == word_dtype(w)
    return out


@pytest.mark.parametrize("w", [16, 32, 64])
@given(st.data())
@settings(max_examples=25)
def test_the_opened_sum_is_the_survivors_sum_exactly(w: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 6))
    cohort = Cohort(n, w, d=data.draw(st.integers(1, 40)))
    survivors = sorted(data.draw(st.sets(st.sampled_from(cohort.ids), min_size=1)))
    opened = total([cohort.upload(node) for node in survivors], w)
    cohort.opening(survivors).stream().apply(opened, 0)
    np.testing.assert_array_equal(opened, total([cohort.values[n] for n in survivors], w))


@pytest.mark.parametrize("missing", ["self seed", "dropped edge", "wrong sign"])
def test_one_seed_short_leaves_a_mask_in_every_word(missing: str) -> None:
    cohort = Cohort(4, 32, d=64)
    survivors = cohort.ids[:3]
    plan = cohort.opening(survivors)
    match missing:
        case "self seed":
            plan = OpeningPlan(plan.self_seeds[1:], plan.dropped_edges, 32)
        case "dropped edge":
            plan = OpeningPlan(plan.self_seeds, plan.dropped_edges[1:], 32)
        case _:
            (seed, _), *rest = plan.dropped_edges
            plan = OpeningPlan(plan.self_seeds, ((seed, -1), *rest), 32)
    opened = total([cohort.upload(node) for node in survivors], 32)
    plan.stream().apply(opened, 0)
    assert not np.any(opened == total([cohort.values[n] for n in survivors], 32))


@pytest.mark.parametrize("w", [16, 32, 64])
def test_a_mask_is_the_formula_of_section_4_3(w: int) -> None:
    cohort = Cohort(3, w, d=32)
    node = cohort.ids[1]
    expected = [int(x) for x in cohort.values[node]]
    for seed, sign in ((cohort.self_seeds[node], 1), *cohort.signed(node, cohort.ids)):
        mask = np.empty(32, word_dtype(w))
        Keystream.of_mask(seed, w).words_into(mask, 0)
        expected = [(x + sign * int(m)) % 2**w for x, m in zip(expected, mask, strict=True)]
    assert [int(x) for x in cohort.upload(node)] == expected
    assert [sign for _, sign in cohort.signed(node, cohort.ids)] == [-1, 1]


@pytest.mark.parametrize("w", [16, 32, 64])
@given(st.lists(st.integers(0, 64), max_size=6))
def test_chunks_at_multiples_of_16_bytes_equal_the_whole(w: int, cuts: list[int]) -> None:
    step = 128 // w
    cohort = Cohort(3, w, d=64 * step + 3)
    plan = cohort.plan(cohort.ids[0])
    whole = cohort.upload(cohort.ids[0])
    edges = sorted({0, *(cut * step for cut in cuts), whole.size})
    for order in (1, -1):
        stream = plan.stream()
        words = cohort.values[cohort.ids[0]].copy()
        for start, stop in list(pairwise(edges))[::order]:
            stream.apply(words[start:stop], start)
        np.testing.assert_array_equal(words, whole)


@pytest.mark.parametrize("w", [16, 32, 64])
def test_chunks_longer_than_the_inner_buffer_equal_their_pieces(w: int) -> None:
    step = PIECE_BYTES * 8 // w
    cohort = Cohort(2, w, d=1)
    plan = cohort.plan(cohort.ids[0])
    whole = np.zeros(2 * step + 9, word_dtype(w))
    plan.stream().apply(whole, 0)
    for start in (0, step - 8, step, 2 * step):
        part = np.zeros(9, word_dtype(w))
        plan.stream().apply(part, start)
        np.testing.assert_array_equal(part, whole[start : start + 9])


def test_masks_go_on_past_four_billion_blocks() -> None:
    cohort = Cohort(2, 64, d=1)
    plan = cohort.plan(cohort.ids[0])
    start = 2**33 - 4  # words of 8 bytes: block 2^32 - 2
    whole = np.zeros(8, np.uint64)
    plan.stream().apply(whole, start)
    late = np.zeros(4, np.uint64)
    plan.stream().apply(late, 2**33)
    np.testing.assert_array_equal(whole[4:], late)
    early = np.zeros(4, np.uint64)
    plan.stream().apply(early, 0)
    assert not np.any(early == late), "the counter did not wrap at 32 bits"


def test_words_of_another_ring_or_scattered_in_memory_are_a_bug() -> None:
    stream = Cohort(2, 32, d=1).plan(NodeId("h00")).stream()
    bad = (np.zeros(4, np.uint64), np.zeros(4, np.int32), np.zeros(8, np.uint32)[::2])
    for words in bad:
        with pytest.raises(InternalError):
            stream.apply(words, 0)  # type: ignore[arg-type]
    with pytest.raises(InternalError):
        stream.apply(np.zeros(4, np.uint32), 2)


def test_signs_are_opposite_at_the_two_ends_and_by_bytes() -> None:
    low, high = NodeId("Z"), NodeId("a")
    assert edge_sign(low, high) == 1
    assert edge_sign(high, low) == -1
    with pytest.raises(InternalError):
        edge_sign(low, low)


def test_a_masked_upload_looks_uniform_whatever_the_input() -> None:
    cohort = Cohort(3, 32, d=1)
    for fill in (0, 2**32 - 1):
        words = np.full(250_000, fill, np.uint32)
        cohort.plan(cohort.ids[0]).stream().apply(words, 0)
        counts = np.bincount(words.view(np.uint8), minlength=256)
        expected = 1_000_000 / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert 160 < chi_square < 370  # 255 degrees of freedom, about 5 sigma


def test_a_plan_shows_no_seed() -> None:
    plan = Cohort(2, 32, d=1).plan(NodeId("h00"))
    text = repr(plan)
    assert plan.self_seed.reveal().hex() not in text
    assert repr(plan.self_seed.reveal()) not in text
