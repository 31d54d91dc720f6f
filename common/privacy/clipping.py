"""Clipping whose bound holds in integers (protocol, sections 7.3 and 9.3).

A contribution x is clipped to norm C, scaled by `Delta_int / C` and rounded to integers at
random without bias. If rounding took the integer norm above `Delta_int`, x is shrunk and
rounded again. So the sensitivity of a sum of contributions is exactly `Delta_int`,
whatever floating point did before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.entropy import Entropy
from common.errors import InternalError, Refusal
from common.secagg.dp import LEVELS_PER_ROOT
from common.secagg.prg import Keystream

MOST_PASSES: Final = 300
"""With `Delta_int >= 4 sqrt(d)` shrinking ends after at most this many passes (7.3)."""

_BLOCK_VALUES: Final = 1 << 20
_SHRINK: Final = 1 - 2.0**-10
_MOST_DELTA: Final = 2**31
_KEY_BYTES: Final = 32
_UNIT: Final = 2.0**-53

Uniforms: TypeAlias = Callable[[int], NDArray[np.uint64]]
"""Returns that many fresh secret 64-bit words."""


def secret_uniforms(entropy: Entropy) -> Uniforms:
    """Return a source of secret uniform words: AES-256-CTR under a fresh secret key."""
    stream = Keystream(entropy.take(_KEY_BYTES))
    place = 0

    def take(count: int) -> NDArray[np.uint64]:
        nonlocal place
        words = np.empty(count + count % 2, np.dtype("<u8"))
        stream.words_into(words, place)
        place += words.size
        return words[:count]

    return take


def integer_sum(
    x: NDArray[np.float32] | NDArray[np.float64], clip: float, delta_int: int, uniforms: Uniforms
) -> NDArray[np.int64]:
    """Return the sum of the rows of x [m, d], each clipped and rounded, int64 [d].

    Raises:
        Refusal: INPUT_NAN, a value is not finite; DP_WEAK, `delta_int` below `4 sqrt(d)`.
    """
    rows, width = x.shape
    total = np.zeros(width, np.int64)
    step = max(1, _BLOCK_VALUES // max(width, 1))
    for start in range(0, rows, step):
        block = x[start : start + step]
        total += integer_rows(block, clip, delta_int, uniforms).sum(axis=0)
    return total


def integer_rows(
    x: NDArray[np.float32] | NDArray[np.float64], clip: float, delta_int: int, uniforms: Uniforms
) -> NDArray[np.int64]:
    """Return each row of x [m, d] clipped to C = `clip` and rounded, of norm <= `delta_int`.

    Raises:
        Refusal, as `integer_sum`.
    """
    width = x.shape[1]
    if delta_int**2 < LEVELS_PER_ROOT**2 * width or delta_int >= _MOST_DELTA:
        raise Refusal("DP_WEAK", f"Delta_int {delta_int} is not from 4 sqrt(d) to 2^31, d={width}")
    if not np.isfinite(x).all():
        raise Refusal("INPUT_NAN", "a patient's contribution has a value that is not finite")
    scaled = _scaled(x.astype(np.float64), clip, delta_int)
    out = _rounded(scaled, uniforms)
    for _ in range(MOST_PASSES):
        squares = np.einsum("ij,ij->i", out, out)
        over = np.flatnonzero(squares > delta_int**2)
        if not over.size:
            return out
        factor = (delta_int / np.sqrt(squares[over].astype(np.float64))) * _SHRINK
        scaled[over] *= factor[:, np.newaxis]
        out[over] = _rounded(scaled[over], uniforms)
    raise InternalError("clipping in integers did not end")


def _scaled(x: NDArray[np.float64], clip: float, delta_int: int) -> NDArray[np.float64]:
    """Return the rows clipped to `clip` and scaled to integers' size.

    Divided by the largest value first, so that no square overflows or vanishes.
    """
    if not (math.isfinite(clip) and clip > 0):
        raise InternalError(f"a clip of {clip} bounds nothing")
    largest = np.abs(x).max(axis=1, initial=0.0)
    safe = np.where(largest > 0, largest, 1.0)
    direction = x / safe[:, np.newaxis]
    norms = np.sqrt(np.einsum("ij,ij->i", direction, direction))
    with np.errstate(over="ignore", under="ignore"):
        share = np.minimum(1.0, norms * (largest / clip))  # of C, at most all of it
    length = np.where(norms > 0, share * delta_int / np.where(norms > 0, norms, 1.0), 0.0)
    out: NDArray[np.float64] = direction * length[:, np.newaxis]
    return out


def _rounded(values: NDArray[np.float64], uniforms: Uniforms) -> NDArray[np.int64]:
    """Return integers: down, or up with the probability of the part behind the point."""
    floor = np.floor(values)
    words = uniforms(values.size).reshape(values.shape) >> np.uint64(11)
    up = words * _UNIT < values - floor
    return floor.astype(np.int64) + up
