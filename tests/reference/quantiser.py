"""Sections 7.2 and 8 over single Python floats (binary64) and exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from tests.reference.plain import X, keystream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def levels(n: int, w: int) -> int:
    """Return B."""
    bound = ((1 << (w - 1)) - 1) // (4 * n)
    return min(bound, 2**52) if w == 64 else bound


def scaled(x: float, range_: float, b: int) -> float:
    """Return the value that is rounded: clip, times B, by R, each in binary64."""
    if not math.isfinite(x):
        raise ValueError("not finite")
    clipped = min(max(x, -range_), range_)
    return (clipped * float(b)) / range_


def even(x: float, range_: float, b: int) -> int:
    """Return one word, rounded half to even."""
    z = scaled(x, range_, b)
    if math.isinf(z):  # R * B beyond binary64: the clamp decides
        return b if z > 0 else -b
    return min(max(round(z), -b), b)


def draws(seed: bytes) -> Iterator[int]:
    """Yield the 64-bit words that decide stochastic rounding."""
    key = X(seed, "round")
    place = 0
    while True:
        yield int.from_bytes(keystream(key, 8 * place, 8), "little")
        place += 1


def stochastic(x: float, range_: float, b: int, u: int) -> int:
    """Return one word: the floor, plus 1 if u < frac * 2^64."""
    wide = scaled(x, range_, b)
    if math.isinf(wide):
        return b if wide > 0 else -b
    z = Fraction(wide)
    low = math.floor(z)
    return min(max(low + (u < (z - low) * 2**64), -b), b)


def size_class(count: int) -> int:
    """Return a count rounded down to a power of two."""
    return 1 << (count.bit_length() - 1)


def weight_word(count: int, w_max: int, b: int) -> int:
    """Return rint(u * B) with u = min(count, W_max) / W_max."""
    return round((min(count, w_max) / w_max) * b)


def weighted(update: Sequence[float], count: int, w_max: int) -> list[float]:
    """Return u * delta."""
    u = min(count, w_max) / w_max
    return [u * x for x in update]


def next_value(model: float, lr: float, total: int, range_: float, weight_sum: int) -> float:
    """Return model + lr * ((sum * R) / weight_sum) in binary64, before the last cast."""
    return model + lr * ((float(total) * range_) / float(weight_sum))
