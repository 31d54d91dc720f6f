"""Invariant 16, second half: the weighted mean is the float64 one within its bound.

`|mean - reference| <= n R / (2 B sum(u))` for the values' rounding, plus what the
rounding of the weight words adds: each is off by at most 1/2, so the divisor is off by
at most `|S| / 2` of `B sum(u)`. With a server step size of 1 the coordinator's step is the mean.
"""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.quantise import Coding, VectorEncoder, size_class, weight
from common.secagg.header import Rounding, quant_bound
from common.secagg.ring import signed_view, word_dtype
from common.vectors import ParameterSchema, TensorSpec, TensorType
from coordinator.aggregate import mean_step
from tests.properties.profile import bounded

LAYOUT = ParameterSchema((TensorSpec("w", TensorType.FLOAT32, (4,)),))
W_MAX = 4096
SLACK = 1 + 1e-9


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[int, float, list[tuple[list[float], int]]]:
    """Return the ring, the range, and each survivor's update and sample count."""
    w = draw(st.sampled_from([32, 64]))
    scale = draw(st.floats(1e-3, 1e3))
    value = st.floats(-1.0, 1.0).map(lambda x: x * scale)
    site = st.tuples(st.lists(value, min_size=4, max_size=4), st.integers(1, 10_000))
    return w, scale, draw(st.lists(site, min_size=2, max_size=8))


@given(cohorts(), st.integers(0, 3), st.booleans())
@bounded(150)
def test_the_weighted_mean_is_the_float64_mean_within_its_bound(
    cohort: tuple[int, float, list[tuple[list[float], int]]], dropped: int, exact: bool
) -> None:
    w, scale, sites = cohort
    n = len(sites) + dropped
    bound = quant_bound(n, w)
    total = np.zeros(LAYOUT.words, word_dtype(w))
    weights = []
    for update, count in sites:
        u = weight(count if exact else size_class(count), W_MAX)
        weights.append(u)
        encoder = VectorEncoder(
            LAYOUT,
            np.array(update),
            ranges=(scale,),
            coding=Coding(bound, w, Rounding.EVEN),
            u=u,
        )
        out = np.zeros(LAYOUT.words, word_dtype(w))
        encoder.fill(out, 0)
        total += out
    opened = signed_view(total)
    made = mean_step(opened[:4], scale, int(opened[4]))
    mass = math.fsum(weights)
    for k in range(4):
        pairs = zip(weights, sites, strict=True)
        reference = math.fsum(u * update[k] for u, (update, _) in pairs) / mass
        rounding = n * scale / (2 * bound * mass)
        weight_word = abs(reference) * len(sites) / (2 * bound * mass - len(sites))
        assert abs(made[k] - reference) <= (rounding + weight_word) * SLACK + 1e-14 * scale
