"""Invariant 8: |v| <= M for all inputs, and no sum over any S can wrap (7.2, 7.3)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Refusal
from common.privacy.clipping import integer_sum
from common.quantise import Coding, Quantiser, VectorEncoder, quantise_value
from common.secagg.dp import DpMode, DpTerms, word_bound
from common.secagg.header import Rounding, default_rounding, quant_bound, sum_bound
from common.secagg.keys import CoefficientSeed
from common.secagg.ring import check_sum_range, signed_view, word_dtype
from common.vectors import ParameterSchema, TensorSpec, TensorType
from hospital_node.private.source import NoisedSource
from tests.properties.profile import bounded
from tests.reference import quantiser as reference

SEED = CoefficientSeed(bytes(range(32)))
RINGS = st.sampled_from([(2, 16), (64, 16), (3, 32), (10, 32), (1000, 32), (3, 64), (2000, 64)])
RANGES = st.one_of(
    st.floats(min_value=5e-324, max_value=1.7e308),
    st.sampled_from([5e-324, 1e-310, 0.3, 1.0, 1e300, 1.7e308]),
)
ANY = st.floats(allow_nan=True, allow_infinity=True)
AWKWARD = st.sampled_from([math.nan, math.inf, -math.inf, 5e-324, -5e-324, -0.0, 1.7e308])


@given(RINGS, RANGES, st.lists(st.one_of(ANY, AWKWARD), max_size=12), st.sampled_from(Rounding))
@bounded(300)
def test_every_value_is_refused_or_within_the_bound(
    ring: tuple[int, int], scale: float, values: list[float], rounding: Rounding
) -> None:
    n, w = ring
    bound = quant_bound(n, w)
    out = np.zeros(len(values), word_dtype(w))
    quantiser = Quantiser(Coding(bound, w, rounding, SEED))
    if not all(map(math.isfinite, values)):
        with pytest.raises(Refusal) as refused:
            quantiser.quantise(np.array(values), scale, out)
        assert refused.value.name == "INPUT_NAN"
        return
    quantiser.quantise(np.array(values, np.float64), scale, out)
    words = [int(x) for x in signed_view(out)]
    assert all(abs(word) <= bound for word in words)
    if rounding is Rounding.EVEN:
        assert words == [reference.even(x, scale, bound) for x in values]
        assert words == [quantise_value(x, scale, bound) for x in values]
    else:
        draws = reference.draws(SEED.reveal())
        expected = [reference.stochastic(x, scale, bound, next(draws)) for x in values]
        assert words == expected


@given(RINGS, st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=12))
@bounded(100)
def test_float32_updates_are_quantised_as_binary64(
    ring: tuple[int, int], values: list[float]
) -> None:
    n, w = ring
    bound = quant_bound(n, w)
    wide, narrow = np.zeros((2, len(values)), word_dtype(w))
    coding = Coding(bound, w, default_rounding(n, w), SEED)
    Quantiser(coding).quantise(np.array(values, np.float64), 0.3, wide)
    Quantiser(coding).quantise(np.array(values, np.float32), 0.3, narrow)
    assert wide.tolist() == narrow.tolist()


@given(st.integers(2, 10**6), st.sampled_from([16, 32, 64]))
@bounded(300)
def test_no_sum_over_any_set_can_wrap_and_two_bits_stay_spare(n: int, w: int) -> None:
    if (2 ** (w - 1) - 1) // (4 * n) == 0:
        with pytest.raises(Refusal) as refused:
            quant_bound(n, w)
        assert refused.value.name == "OVERFLOW_BOUND"
        return
    bound = quant_bound(n, w)
    assert bound == reference.levels(n, w)
    assert n * bound < 2 ** (w - 3)
    assert bound <= 2**52


@given(RINGS, st.data())
@bounded(60)
def test_extreme_inputs_sum_exactly_and_pass_the_range_check(
    ring: tuple[int, int], data: st.DataObject
) -> None:
    n, w = ring
    bound = quant_bound(n, w)
    survivors = data.draw(st.integers(1, n))
    sign = data.draw(st.sampled_from([1.0, -1.0]))
    out = np.zeros(1, word_dtype(w))
    Quantiser(Coding(bound, w, Rounding.EVEN)).quantise(np.array([sign * 1e30]), 1.0, out)
    total = np.zeros(1, word_dtype(w))
    for _ in range(survivors):
        total += out
    assert int(signed_view(total)[0]) == int(sign) * survivors * bound
    check_sum_range(total, sum_bound(survivors, bound))
    above = total + np.array([1 if sign > 0 else -1]).astype(word_dtype(w))
    with pytest.raises(Refusal) as refused:
        check_sum_range(above, sum_bound(survivors, bound))
    assert refused.value.name == "SUM_RANGE"


def test_empty_tensors_make_empty_vectors() -> None:
    empty = TensorSpec("none", TensorType.FLOAT32, (0, 3))
    layout = ParameterSchema((empty, TensorSpec("w", TensorType.FLOAT32, (2,))), ())
    encoder = VectorEncoder(
        layout, np.array([1.0, -1.0]), ranges=(1.0, 1.0), coding=Coding(100, 32, Rounding.EVEN)
    )
    out = np.zeros(3, word_dtype(32))
    encoder.fill(out, 0)
    assert signed_view(out).tolist() == [100, -100, 100]
    Quantiser(Coding(100, 32, Rounding.EVEN)).quantise(np.zeros(0), 1.0, out[:0])


@given(
    mode=st.sampled_from([DpMode.HOSPITAL, DpMode.PATIENT_DISTRIBUTED]),
    patients=st.integers(1, 9),
    scale=st.sampled_from([5e-324, 1e-30, 1.0, 1e30, 1.7e308]),
    sigma=st.sampled_from([4.0, 9.5, 700.0]),
    w=st.sampled_from([32, 64]),
    seed=st.binary(min_size=32, max_size=32),
)
@bounded(80)
def test_every_noised_word_is_within_the_bound_of_its_mode(
    mode: DpMode, patients: int, scale: float, sigma: float, w: int, seed: bytes
) -> None:
    """M = Delta_int + T, or m_max Delta_int + T, with every patient's whole clip in one word."""
    local = mode is DpMode.PATIENT_DISTRIBUTED
    terms = DpTerms(
        mode, 1.0, 1.0, 4096, sigma, math.ceil(13 * sigma), float(local), patients * local
    )
    rows = np.zeros((patients if local else 1, 40))
    rows[:, 7] = scale
    up = integer_sum(rows, 1.0, 4096, lambda count: np.zeros(count, np.uint64))
    source = NoisedSource(up, terms, CoefficientSeed(seed))
    out = np.zeros(source.words, word_dtype(w))
    source.fill(out, 0)
    assert max(abs(int(word)) for word in signed_view(out)) <= word_bound(terms)
