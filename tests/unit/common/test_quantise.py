"""The quantiser equals its definition, value by value, whatever the chunks."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import quantise as qz
from common.errors import InternalError, Refusal
from common.quantise import Coding, Quantiser, VectorEncoder, quantise_value
from common.secagg.header import Rounding, quant_bound, sum_bound
from common.secagg.keys import CoefficientSeed
from common.secagg.prg import Keystream
from common.secagg.ring import signed_view, word_dtype
from common.vectors import ParameterSchema, TensorSpec, TensorType

SEED = CoefficientSeed(b"\x06" * 32)
F32 = TensorType.FLOAT32
AWKWARD = [0.0, -0.0, 5e-324, -5e-324, 1e-30, -1e-30, 0.5, -0.5, 1.0, -1.0, 3.0, -1e300, 1e300]


def even(w: int, n: int = 4) -> Coding:
    return Coding(quant_bound(n, w), w, Rounding.EVEN)


def stochastic(w: int, n: int = 4) -> Coding:
    return Coding(quant_bound(n, w), w, Rounding.STOCHASTIC, SEED)


def run(coding: Coding, x: object, scale: float = 1.0, u: float = 1.0, place: int = 0) -> list[int]:
    values = np.asarray(x, np.float64)
    out = np.zeros(values.shape, word_dtype(coding.ring_bits))
    Quantiser(coding).quantise(values, scale, out, u=u, word_offset=place)
    return [int(word) for word in signed_view(out)]


def exact_stochastic(x: float, scale: float, coding: Coding, place: int) -> int:
    """Definition of 7.2 in exact fractions, one keystream read a word."""
    wide = (min(max(x, -scale), scale) * float(coding.bound)) / scale
    if math.isinf(wide):
        return int(math.copysign(coding.bound, wide))
    z = Fraction(wide)
    raw = bytearray(16)
    Keystream.of_rounding(SEED).into(raw, place // 2 * 16)
    word = int.from_bytes(raw[place % 2 * 8 :][:8], "little")
    level = math.floor(z) + (word < (z - math.floor(z)) * 2**64)
    return min(max(level, -coding.bound), coding.bound)


def test_the_values_of_section_15() -> None:
    coding = even(32, n=10)
    assert coding.bound == 53687091
    assert run(coding, [0.1, -1, 2, 1e-9]) == [5368709, -53687091, 53687091, 0]


@pytest.mark.parametrize(
    ("n", "w", "bound"),
    [(10, 32, 53687091), (1000, 32, 536870), (4, 16, 2047), (64, 16, 127), (4, 64, 2**52)],
)
def test_bounds_are_those_of_section_7(n: int, w: int, bound: int) -> None:
    assert quant_bound(n, w) == bound
    assert sum_bound(n, bound) < 1 << (w - 3)


def test_a_ring_too_small_for_the_members_is_refused() -> None:
    assert quant_bound(8191, 16) == 1
    with pytest.raises(Refusal, match="OVERFLOW_BOUND"):
        quant_bound(8192, 16)


@pytest.mark.parametrize("w", [16, 32, 64])
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=9), st.floats(1e-9, 1e9))
@settings(max_examples=60)
def test_rounding_to_even_is_the_definition(w: int, x: list[float], scale: float) -> None:
    coding = even(w)
    assert run(coding, [*x, *AWKWARD], scale) == [
        quantise_value(value, scale, coding.bound) for value in [*x, *AWKWARD]
    ]


@pytest.mark.parametrize("w", [16, 32, 64])
@given(st.lists(st.floats(-2, 2), max_size=9), st.floats(1e-9, 1e9), st.integers(0, 2**32 - 100))
@settings(max_examples=40)
def test_stochastic_rounding_is_the_definition(
    w: int, x: list[float], scale: float, place: int
) -> None:
    coding = stochastic(w)
    values = [*x, *AWKWARD]
    expected = [exact_stochastic(v, scale, coding, place + k) for k, v in enumerate(values)]
    assert run(coding, values, scale, place=place) == expected


@pytest.mark.parametrize("coding", [even(64), stochastic(32), even(16)])
def test_a_range_beyond_float64_clamps_instead_of_overflowing(coding: Coding) -> None:
    top = run(coding, [1.7e308, -1.7e308, 0.0], 1.7e308)
    assert top == [coding.bound, -coding.bound, 0]


def test_stochastic_rounding_compares_exactly_below_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """frac(-2^-60) is 1 - 2^-60, which float64 rounds to 1: only the top 16 words stay down."""
    words = [2**64 - 17, 2**64 - 16, 2**64 - 1, 0]

    def fixed(_: Keystream, out: np.ndarray, word_offset: int) -> None:
        del word_offset
        out[:] = np.array(words, np.uint64)

    monkeypatch.setattr(Keystream, "words_into", fixed)
    coding = Coding(1, 32, Rounding.STOCHASTIC, SEED)
    assert run(coding, [-(2.0**-60)] * 4) == [0, -1, -1, 0]
    words[:] = [0, 1, 2**63, 2**64 - 1]
    assert run(coding, [2.0**-64] * 4) == [1, 0, 0, 0]
    assert run(coding, [2.0**-70] * 4) == [1, 0, 0, 0]
    assert run(coding, [0.5] * 4) == [1, 1, 0, 0]
    assert run(coding, [-0.5] * 4) == [0, 0, -1, -1]


def test_stochastic_rounding_is_unbiased() -> None:
    out = np.array(run(Coding(2047, 16, Rounding.STOCHASTIC, SEED), np.full(100_000, 0.3 / 2047)))
    assert set(out) == {0, 1}
    assert abs(out.mean() - 0.3) < 0.01


@pytest.mark.parametrize("w", [16, 32, 64])
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_no_input_passes_the_bound_so_no_honest_sum_wraps(w: int, x: list[float]) -> None:
    for coding in (even(w), stochastic(w)):
        assert all(abs(word) <= coding.bound for word in run(coding, x, 1e-3))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 70_000])
def test_a_value_that_is_not_finite_is_refused(bad: float, at: int) -> None:
    x = np.zeros(80_000, np.float32)
    x[at] = bad
    with pytest.raises(Refusal, match="INPUT_NAN"):
        Quantiser(even(32)).quantise(x, 1.0, np.zeros(80_000, np.uint32))
    with pytest.raises(Refusal, match="INPUT_NAN"):
        quantise_value(bad, 1.0, 5)


def test_clipped_values_are_counted_after_the_weight() -> None:
    x = np.array([0.5, 1.0, 1.5, -3.0], np.float32)
    out = np.zeros(4, np.uint32)
    quantiser = Quantiser(even(32))
    assert quantiser.quantise(x, 1.0, out) == 2
    assert quantiser.quantise(x, 1.0, out, u=0.5) == 1
    assert quantiser.quantise(x, 3.0, out) == 0


def test_the_weight_multiplies_in_float64() -> None:
    coding = even(64)
    x = np.float32(0.1)
    expected = quantise_value(float(x) * 0.7, 1.0, coding.bound)
    assert run(coding, [x], u=0.7) == [expected]
    assert expected != quantise_value(float(np.float32(x * np.float32(0.7))), 1.0, coding.bound)


def test_a_quantiser_without_its_seed_or_with_a_wrong_range_is_a_bug() -> None:
    with pytest.raises(InternalError):
        Quantiser(Coding(5, 32, Rounding.STOCHASTIC))
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InternalError):
            run(even(32), [1.0], scale)


# --- the whole vector ------------------------------------------------------------------

SCHEMA = ParameterSchema(
    (TensorSpec("w", F32, (7, 3)), TensorSpec("e", F32, (0,)), TensorSpec("b", F32, (2,))),
    ("loss", "count"),
)
UPDATE = np.linspace(-1, 1, 23, dtype=np.float32)


def encoder(coding: Coding) -> VectorEncoder:
    ranges = (0.5, 1.0, 2.0, 10.0, float(coding.bound))
    return VectorEncoder(SCHEMA, UPDATE, ranges=ranges, coding=coding, u=0.75, metrics=(2.5, 12.0))


@pytest.mark.parametrize("coding", [even(32), stochastic(16), even(64)])
def test_the_vector_is_tensors_weight_word_and_metric_words(coding: Coding) -> None:
    out = np.zeros(SCHEMA.words, word_dtype(coding.ring_bits))
    encoder(coding).fill(out, 0)
    words = [int(word) for word in signed_view(out)]
    assert words[:21] == run(coding, UPDATE[:21].astype(np.float64), 0.5, u=0.75)
    assert words[21:23] == run(coding, UPDATE[21:].astype(np.float64), 2.0, u=0.75, place=21)
    assert words[23] == round(0.75 * coding.bound)
    assert words[24:25] == run(coding, [2.5], 10.0, place=24)
    assert words[25] == 12, "a count keeps its value: R = B is scale 1"


@pytest.mark.parametrize("coding", [even(32), stochastic(32)])
@given(st.lists(st.integers(0, 26), max_size=5))
def test_any_chunk_can_be_made_alone(coding: Coding, cuts: list[int]) -> None:
    whole = np.zeros(26, np.uint32)
    encoder(coding).fill(whole, 0)
    parts = encoder(coding)
    edges = [0, *sorted(cuts), 26]
    for start, stop in reversed(list(pairwise(edges))):
        chunk = np.zeros(stop - start, np.uint32)
        parts.fill(chunk, start)
        np.testing.assert_array_equal(chunk, whole[start:stop])


def test_long_vectors_equal_their_blocks() -> None:
    size = 3 * qz.BLOCK_WORDS + 5
    x = np.sin(np.arange(size)).astype(np.float32)
    for coding in (even(32), stochastic(32)):
        whole = np.array(run(coding, x, 0.9, place=1))
        for start in (0, qz.BLOCK_WORDS - 1, qz.BLOCK_WORDS, size - 3):
            part = run(coding, x[start : start + 9], 0.9, place=1 + start)
            assert part == list(whole[start : start + 9])


def test_a_chunk_beyond_the_vector_is_a_bug() -> None:
    with pytest.raises(InternalError):
        encoder(even(32)).fill(np.zeros(2, np.uint32), 25)


def test_count_clipped_is_what_quantising_clips() -> None:
    made = encoder(even(32))
    x = UPDATE.astype(np.float64) * 0.75
    assert made.count_clipped() == int((abs(x[:21]) > 0.5).sum() + (abs(x[21:]) > 2.0).sum()) > 0
    bad = UPDATE.copy()
    bad[3] = np.nan
    with pytest.raises(Refusal, match="INPUT_NAN"):
        VectorEncoder(
            SCHEMA, bad, ranges=(1.0,) * 5, coding=even(32), metrics=(0.0, 0.0)
        ).count_clipped()


def test_inputs_that_are_not_of_the_layout_are_a_bug() -> None:
    good = {"ranges": (1.0,) * 5, "metrics": (0.0, 0.0), "u": 1.0}
    wrongs: list[dict[str, object]] = [
        {"ranges": (1.0,) * 4},
        {"metrics": (0.0,)},
        {"u": 0.0},
        {"u": 1.5},
        {"u": math.nan},
    ]
    for wrong in wrongs:
        with pytest.raises(InternalError):
            VectorEncoder(SCHEMA, UPDATE, coding=even(32), **(good | wrong))  # type: ignore[arg-type]
    with pytest.raises(InternalError):
        VectorEncoder(SCHEMA, UPDATE[1:], coding=even(32), ranges=(1.0,) * 5, metrics=(0.0, 0.0))


def test_without_a_weight_word_the_vector_is_the_tensors() -> None:
    bare = ParameterSchema(SCHEMA.tensors, (), weighted=False)
    out = np.zeros(23, np.uint32)
    VectorEncoder(bare, UPDATE, ranges=(1.0, 1.0, 1.0), coding=even(32)).fill(out, 0)
    assert signed_view(out)[22] == quant_bound(4, 32)


# --- weights ----------------------------------------------------------------------------


def test_size_classes_are_powers_of_two_below() -> None:
    assert [qz.size_class(n) for n in (0, 1, 2, 3, 4, 303, 512)] == [0, 1, 2, 2, 4, 256, 512]


def test_weights_lie_in_zero_to_one_and_are_capped() -> None:
    assert qz.weight(50, 100) == 0.5
    assert qz.weight(500, 100) == 1.0
    for count, w_max in ((0, 100), (5, 0), (-1, 5)):
        with pytest.raises(InternalError):
            qz.weight(count, w_max)


def test_weight_words_round_half_to_even() -> None:
    assert [qz.weight_word(0.5, bound) for bound in (1, 3, 5, 8)] == [0, 2, 2, 4]
