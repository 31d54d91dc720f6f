"""Invariant 9: masks made chunk by chunk are the whole vector's, from any chunk on."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.ids import NodeId
from common.quantise import Coding, VectorEncoder
from common.secagg.header import Rounding
from common.secagg.keys import CoefficientSeed, EdgeSeed, SelfSeed
from common.secagg.masking import MaskPlan, OpeningPlan, edge_sign
from common.secagg.ring import Words, word_dtype
from common.vectors import ParameterSchema, TensorSpec, TensorType
from tests.properties.profile import bounded
from tests.reference import plain

NODE = NodeId("m")
OTHERS = tuple(NodeId(name) for name in ("a", "b", "p", "z"))
A_I = CoefficientSeed(bytes(range(32)))


def seed(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def plan(w: int) -> MaskPlan:
    edges = tuple((EdgeSeed(seed(j)), edge_sign(NODE, j)) for j in OTHERS)
    return MaskPlan(SelfSeed(seed("self")), edges, w)


@st.composite
def splits(draw: st.DrawFn) -> tuple[int, int, list[int]]:
    """Return ring, length, and chunk borders at multiples of 16 bytes."""
    w = draw(st.sampled_from([16, 32, 64]))
    d = draw(st.integers(1, 600))
    step = 128 // w
    inner = draw(st.sets(st.integers(0, d // step), max_size=8))
    return w, d, sorted({0, d, *(step * k for k in inner if step * k < d)})


@given(splits(), st.randoms(use_true_random=False))
@bounded(80)
def test_any_split_and_order_of_chunks_gives_the_same_words(
    split: tuple[int, int, list[int]], random: object
) -> None:
    w, d, borders = split
    whole = np.zeros(d, word_dtype(w))
    plan(w).stream().apply(whole, 0)
    edges = {str(j): seed(j) for j in OTHERS}
    assert [int(x) for x in whole] == plain.masked(NODE, [0] * d, seed("self"), edges, w)
    parts = list(pairwise(borders))
    made = np.zeros(d, word_dtype(w))
    stream = plan(w).stream()
    for start, stop in parts:
        stream.apply(made[start:stop], start)
    assert made.tobytes() == whole.tobytes()
    random.shuffle(parts)  # type: ignore[attr-defined]
    alone = np.zeros(d, word_dtype(w))
    for start, stop in parts:
        plan(w).stream().apply(alone[start:stop], start)
    assert alone.tobytes() == whole.tobytes()
    opening = OpeningPlan((plan(w).self_seed,), plan(w).edges, w)
    for start, stop in reversed(parts):
        opening.stream().apply(alone[start:stop], start)
    assert not alone.any()


LAYOUT = ParameterSchema(
    (TensorSpec("a", TensorType.FLOAT32, (37,)), TensorSpec("b", TensorType.FLOAT32, (3, 21))),
    ("loss", "clipped"),
)


def upload_chunk(start: int, stop: int, w: int, rounding: Rounding) -> Words:
    coding = Coding(1000, w, rounding, A_I)
    update = np.sin(np.arange(LAYOUT.parameters, dtype=np.float64))
    encoder = VectorEncoder(
        LAYOUT, update, ranges=(0.7, 1.0, 3.0, 1000.0), coding=coding, u=0.3, metrics=(1.5, 7.0)
    )
    out = np.zeros(stop - start, word_dtype(w))
    encoder.fill(out, start)
    plan(w).stream().apply(out, start)
    return out


@given(
    st.sampled_from([16, 32, 64]), st.sampled_from(Rounding), st.integers(1, 5), st.integers(0, 120)
)
@bounded(80)
def test_an_upload_resumed_at_any_chunk_has_the_same_digest(
    w: int, rounding: Rounding, blocks: int, resumed: int
) -> None:
    d = LAYOUT.words
    size = blocks * 128 // w
    chunks = [(k, min(k + size, d)) for k in range(0, d, size)]
    before = resumed % len(chunks)
    sent = [upload_chunk(*chunk, w, rounding) for chunk in chunks[:before]]
    # The node starts anew here: nothing but seeds and the update survives.
    sent += [upload_chunk(*chunk, w, rounding) for chunk in chunks[before:]]
    whole = upload_chunk(0, d, w, rounding)
    assert b"".join(part.tobytes() for part in sent) == whole.tobytes()
