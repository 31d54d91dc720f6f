"""Clipping in integers: the bound holds whatever comes in and however rounding falls."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.entropy import CountingEntropy
from common.errors import InternalError, Refusal
from common.privacy.clipping import Uniforms, integer_rows, integer_sum, secret_uniforms
from common.secagg.dp import delta_int_of
from tests.properties.profile import bounded

LARGEST = 1.7976931348623157e308
LEAST = 5e-324


def fresh(seed: bytes = b"u") -> Uniforms:
    return secret_uniforms(CountingEntropy(seed))


def always(word: int) -> Uniforms:
    """Uniform words that are all the same: 0 rounds up whatever it can, the largest down."""
    return lambda count: np.full(count, word, np.uint64)


UP, DOWN = always(0), always(2**64 - 1)


def squared_norms(rows: NDArray[np.int32]) -> list[int]:
    """In Python's integers, without a machine word that could overflow."""
    return [sum(value * value for value in row) for row in rows.tolist()]


@pytest.mark.parametrize("uniforms", [fresh(), UP, DOWN], ids=["random", "up", "down"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@given(
    rows=st.lists(
        st.lists(
            st.one_of(
                st.floats(-10, 10),
                st.floats(allow_nan=False, allow_infinity=False),
                st.sampled_from([0.0, -0.0, LEAST, -LEAST, 1e-310, LARGEST, -LARGEST, 1e-45]),
            ),
            min_size=5,
            max_size=5,
        ),
        min_size=1,
        max_size=4,
    ),
    clip=st.sampled_from([1e-300, 1e-3, 1.0, 3.7, 1e9]),
    delta_int=st.sampled_from([9, 10, 4096, 20_000, 2**25 - 1]),
)
@bounded(120)
def test_no_row_is_longer_than_delta_int(
    uniforms: Uniforms, kind: type[np.float32], rows: list[list[float]], clip: float, delta_int: int
) -> None:
    with np.errstate(over="ignore"):
        x = np.array(rows).astype(kind)
    x[~np.isfinite(x)] = np.finfo(kind).max  # what float32 cannot hold
    found = integer_rows(x, clip, delta_int, uniforms)
    assert all(norm <= delta_int**2 for norm in squared_norms(found))


@pytest.mark.parametrize("uniforms", [fresh(), UP, DOWN], ids=["random", "up", "down"])
@pytest.mark.parametrize("width", [1, 2, 17, 70_000, 300_001])
@pytest.mark.parametrize(
    "shape",
    [
        np.ones,
        lambda d: np.eye(1, d, d - 1)[0],
        lambda d: -np.full(d, 1e-320),
        lambda d: np.full(d, LARGEST),
        lambda d: np.where(np.arange(d) % 2, LARGEST, LEAST),
        lambda d: np.linspace(-1, 1, d),
        np.zeros,
    ],
    ids=["equal", "one-hot", "denormal", "huge", "huge-and-denormal", "slope", "zero"],
)
def test_the_worst_shapes_of_any_width_stay_within_the_least_delta_int(
    uniforms: Uniforms, width: int, shape: Callable[[int], NDArray[np.float64]]
) -> None:
    delta_int = math.isqrt(16 * width - 1) + 1  # 4 sqrt(d), rounded up: the least allowed
    found = integer_rows(shape(width)[np.newaxis, :], 1.0, delta_int, uniforms)
    assert squared_norms(found)[0] <= delta_int**2


@pytest.mark.parametrize("uniforms", [fresh(), UP, DOWN], ids=["random", "up", "down"])
def test_a_long_row_keeps_its_direction_and_nearly_all_of_the_clip(uniforms: Uniforms) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 2000)) * np.array([[1.0], [1e200], [1e-200]])
    found = integer_rows(x, 1e-250, 4096, uniforms).astype(np.float64)
    lengths = np.linalg.norm(found, axis=1)
    directions = x / np.abs(x).max(axis=1, keepdims=True)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    assert (lengths > 0.985 * 4096).all()
    assert ((found / lengths[:, None] * directions).sum(axis=1) > 0.999).all()


def test_a_short_row_is_scaled_by_delta_int_over_clip_and_not_clipped() -> None:
    x = np.array([[0.25, -0.5, 0.0], [0.125, 0.0, -0.0625]])
    found = integer_rows(x, 2.0, 4096, fresh())
    assert found.tolist() == [[512, -1024, 0], [256, 0, -128]]
    assert integer_sum(x, 2.0, 4096, fresh()).tolist() == [768, -1024, -128]


def test_a_row_is_the_same_whatever_rows_stand_beside_it() -> None:
    """Where nothing is left to chance: neither blocks nor other patients enter into it."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2000, 40)).astype(np.float32)
    together = integer_rows(x, 1.0, 4096, DOWN)
    apart = np.concatenate([integer_rows(row[np.newaxis], 1.0, 4096, DOWN) for row in x])
    assert (together == apart).all()
    assert (integer_sum(x, 1.0, 4096, DOWN) == together.sum(axis=0)).all()


def test_rounding_is_unbiased() -> None:
    """Each of 100 fractions, 40,000 times: the mean is the fraction, within 5 deviations."""
    fractions = np.linspace(-3.0, 3.0, 100)
    x = np.tile(fractions / 4096, (40_000, 1))
    found = integer_rows(x, 1.0, 4096, fresh(b"unbiased"))
    part = fractions - np.floor(fractions)
    assert set(np.unique(found - np.floor(fractions))) <= {0, 1}
    spread = np.sqrt(part * (1 - part) / len(x)) + 1e-12
    assert (np.abs(found.mean(axis=0) - fractions) <= 5 * spread).all()


def test_rounding_never_uses_a_random_word_twice() -> None:
    """Neighbouring values, passes and calls: no two draws move together."""
    uniforms = fresh(b"apart")
    x = np.full((200, 999), 0.5 / 4096)
    first = integer_rows(x, 1.0, 4096, uniforms)
    second = integer_rows(x, 1.0, 4096, uniforms)
    draws = np.concatenate([first, second]).astype(np.float64) - 0.5
    again = np.corrcoef(draws)
    assert np.abs(again - np.eye(len(draws))).max() < 6 / math.sqrt(999)


def test_uniform_words_are_the_keystream_of_a_fresh_key_without_gaps() -> None:
    """An odd count costs one word; what is given out is never given out again."""
    uniforms, one = fresh(), fresh()
    parts = [uniforms(count).copy() for count in (4, 3, 2, 100_000)]
    whole = one(100_010)
    assert np.concatenate([parts[0], parts[1]]).tolist() == whole[:7].tolist()
    assert parts[2].tolist() == whole[8:10].tolist()
    assert (parts[3] == whole[10:]).all()
    assert fresh(b"other")(4).tolist() != parts[0].tolist()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (2, 6), (1, 3)])
def test_a_row_that_is_not_finite_adds_nothing_and_changes_no_other(
    wrong: float, place: tuple[int, int]
) -> None:
    for kind in (np.float32, np.float64):
        x = np.ones((3, 7), kind)
        x[place] = 0
        x[place[0]] = 0
        expected = integer_rows(x, 1.0, 4096, fresh())
        x[place] = wrong
        found = integer_rows(x, 1.0, 4096, fresh())
        assert not found[place[0]].any()
        assert (found == expected).all()
        assert (integer_sum(x, 1.0, 4096, fresh()) == expected.sum(axis=0)).all()


@pytest.mark.parametrize(("width", "delta_int"), [(5, 8), (100, 39), (1, 3), (4, 2**25)])
def test_a_delta_int_that_rounding_could_not_keep_is_refused(width: int, delta_int: int) -> None:
    with pytest.raises(Refusal) as caught:
        integer_rows(np.zeros((1, width)), 1.0, delta_int, fresh())
    assert caught.value.name == "DP_WEAK"


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf, LEAST])
def test_a_clip_that_is_none_is_our_bug(clip: float) -> None:
    with pytest.raises(InternalError, match="bounds nothing"):
        integer_rows(np.ones((1, 3)), clip, 4096, fresh())


def test_no_rows_sum_to_nothing() -> None:
    assert integer_sum(np.zeros((0, 3)), 1.0, 4096, fresh()).tolist() == [0, 0, 0]
    assert integer_rows(np.zeros((2, 0)), 1.0, 4096, fresh()).shape == (2, 0)


@pytest.mark.parametrize("rows", [1, 5, 3000])
def test_a_sum_is_wide_enough_for_every_patient(rows: int) -> None:
    """All in one place: the sum is the rows' number times nearly Delta_int, beyond 32 bits."""
    delta_int = 2**25 - 1
    x = np.zeros((rows, 3))
    x[:, 1] = 1.0
    total = integer_sum(x, 1.0, delta_int, UP)
    assert total.dtype == np.int64
    assert 0.99 * rows * delta_int <= total[1] <= rows * delta_int


def test_delta_int_of_a_width_is_never_refused_by_it() -> None:
    for width in (1, 2, 1_048_576, 1_048_577, 25_000_000, 2**32):
        delta_int = delta_int_of(width)
        assert delta_int**2 >= 16 * width
        assert delta_int < 2**25
