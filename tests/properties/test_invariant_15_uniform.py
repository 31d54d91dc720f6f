"""Invariant 15: a single y_i looks like noise, whatever v_i is (d = 1e6).

Fixed seeds, so the figures are the same every time; the limits are those that a
uniform vector passes with probability above 1 - 1e-6.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from common.secagg.keys import EdgeSeed, SelfSeed
from common.secagg.masking import MaskPlan, SignedEdge
from common.secagg.ring import Words, word_dtype

D = 1_000_000
SIGMAS = 5.0


def seed(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def vectors(w: int) -> dict[str, Words]:
    dtype = word_dtype(w)
    place = np.arange(D, dtype=np.int64)
    return {
        "zero": np.zeros(D, dtype),
        "largest": np.full(D, 1000, dtype),
        "smallest": np.full(D, -1000).astype(dtype),
        "ramp": place.astype(dtype),
        "wave": (1000 * np.sin(place / 50)).astype(np.int64).astype(dtype),
        "sparse": np.where(place % 1000 == 0, 999, 0).astype(dtype),
    }


def check_uniform(y: Words, v: Words) -> None:
    data = np.frombuffer(y.tobytes(), np.uint8)
    counts = np.bincount(data, minlength=256)
    expected = data.size / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 255) < SIGMAS * np.sqrt(2 * 255)
    x = data.astype(np.float64) - 127.5
    for lag in (1, 2, 4, 8, y.dtype.itemsize * 50, 4096):
        r = float((x[lag:] * x[:-lag]).mean() / x.var())
        assert abs(r) < SIGMAS / np.sqrt(x.size), lag
    top = (y >> (8 * y.dtype.itemsize - 8)).astype(np.float64)
    low = (v & 0xFF).astype(np.float64)
    if low.std():
        assert abs(float(np.corrcoef(top, low)[0, 1])) < SIGMAS / np.sqrt(D)


@pytest.mark.parametrize("w", [16, 32, 64])
@pytest.mark.parametrize("name", ["zero", "largest", "smallest", "ramp", "wave", "sparse"])
def test_one_masked_vector_is_uniform_whatever_is_in_it(w: int, name: str) -> None:
    v = vectors(w)[name]
    edge: SignedEdge = (EdgeSeed(seed("edge")), 1)
    edges = (edge,) if name in {"zero", "ramp"} else ()
    y = v.copy()
    MaskPlan(SelfSeed(seed(f"{name} {w}")), edges, w).stream().apply(y, 0)
    check_uniform(y, v)


def test_an_unmasked_vector_fails_the_same_test() -> None:
    with pytest.raises(AssertionError):
        check_uniform(vectors(32)["ramp"], vectors(32)["ramp"])


def test_a_repeated_keystream_fails_the_same_test() -> None:
    mask = np.random.default_rng(1).integers(0, 2**32, D // 2, dtype=np.uint32)
    y = np.repeat(mask, 2)
    with pytest.raises(AssertionError):
        check_uniform(y, np.zeros(D, np.uint32))
