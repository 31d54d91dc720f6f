"""Clipping whose bound holds in integers (protocol, sections 7.3 and 9.3).

A contribution x is clipped to norm C, scaled by `Delta_int / C` and rounded to integers at
random without bias. If rounding took the integer norm above `Delta_int`, x is shrunk and
rounded again. So the sensitivity of a sum of contributions is exactly `Delta_int`,
whatever floating point did before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.entropy import Entropy
from common.errors import InternalError, Refusal
from common.secagg.dp import LEVELS_PER_ROOT
from common.secagg.prg import Keystream

MOST_PASSES: Final = 300
"""With `Delta_int >= 4 sqrt(d)` shrinking ends after at most this many passes (7.3)."""

_TILE_VALUES: Final = 1 << 15
"""Values worked on at a time: what is made of them on the way stays in a core's cache."""

_SHRINK: Final = 1 - 2.0**-10
_MOST_DELTA: Final = 2**25
"""Far above `4 sqrt(d)` for every d; below, float64 holds each square of a norm exactly."""

_MOST_SCALE: Final = 1000
"""Of a power of two: with the least number above 0 it still has a square."""

_KEY_BYTES: Final = 32
_ONE: Final = np.float64(1).view(np.uint64)
"""The bits of 1.0; with 52 random bits behind them, a number in [1, 2)."""

Uniforms: TypeAlias = Callable[[int], NDArray[np.uint64]]
"""Returns that many fresh secret 64-bit words, the caller's to change until the next call."""


def secret_uniforms(entropy: Entropy) -> Uniforms:
    """Return a source of secret uniform words: AES-256-CTR under a fresh secret key."""
    stream = Keystream(entropy.take(_KEY_BYTES))
    place = 0
    buffer = np.empty(_TILE_VALUES, np.dtype("<u8"))

    def take(count: int) -> NDArray[np.uint64]:
        nonlocal place, buffer
        even = count + count % 2
        if even > buffer.size:
            buffer = np.empty(even, buffer.dtype)
        stream.words_into(buffer[:even], place)
        place += even
        return buffer[:count]

    return take


def integer_sum(
    x: NDArray[np.float32] | NDArray[np.float64], clip: float, delta_int: int, uniforms: Uniforms
) -> NDArray[np.int64]:
    """Return the sum of the rows of x [m, d], each clipped and rounded, int64 [d].

    A row with a value that is not finite adds nothing. Whoever chose the model could have made
    it overflow for one patient; to refuse would tell, without noise, that the patient is here.

    Raises:
        Refusal: DP_WEAK, `delta_int` below `4 sqrt(d)`.
    """
    rows, width = x.shape
    if rows == 1:  # a hospital's whole update
        only: NDArray[np.int64] = integer_rows(x, clip, delta_int, uniforms)[0].astype(np.int64)
        return only
    total = np.zeros(width, np.int64)
    step = _rows_at_once(width)
    for start in range(0, rows, step):
        block = x[start : start + step]
        total += integer_rows(block, clip, delta_int, uniforms).sum(axis=0, dtype=np.int64)
    return total


def integer_rows(
    x: NDArray[np.float32] | NDArray[np.float64], clip: float, delta_int: int, uniforms: Uniforms
) -> NDArray[np.int32]:
    """Return each row of x [m, d] clipped to C = `clip` and rounded, of norm <= `delta_int`.

    Zeros for a row with a value that is not finite, as in `integer_sum`.

    Raises:
        Refusal, as `integer_sum`.
    """
    rows, width = x.shape
    if delta_int**2 < LEVELS_PER_ROOT**2 * width or delta_int >= _MOST_DELTA:
        raise Refusal("DP_WEAK", f"Delta_int {delta_int} is not from 4 sqrt(d) to 2^25, d={width}")
    if not (clip > 0 and 0 < delta_int / clip < math.inf):
        raise InternalError(f"a clip of {clip} bounds nothing")
    out = np.empty((rows, width), np.int32)
    step = _rows_at_once(width)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        _Rows(x[part], clip, delta_int).round_into(out[part], uniforms)
    return out


def _rows_at_once(width: int) -> int:
    return max(1, _TILE_VALUES // max(width, 1))


class _Rows:
    """Some rows of x; row i times `factor[i]` is rounded.

    The products are made again for every pass, tile by tile: no copy of x is held.
    """

    def __init__(
        self, x: NDArray[np.float32] | NDArray[np.float64], clip: float, delta_int: int
    ) -> None:
        largest = np.maximum(x.max(axis=1, initial=0), -x.min(axis=1, initial=0))
        sound = np.isfinite(largest)  # a NaN is its row's largest value too
        if not sound.all():
            x = np.where(sound[:, np.newaxis], x, np.zeros_like(x))
            largest = np.where(sound, largest, 0)
        self._x = x
        self._delta_int = delta_int
        # By a power of two about 1/largest: no square overflows, and none that counts vanishes.
        exponents = np.frexp(largest.astype(np.float64))[1]
        scale = np.ldexp(1.0, np.minimum(-exponents, _MOST_SCALE))
        with np.errstate(divide="ignore", over="ignore"):
            to_clip = delta_int / np.sqrt(self._squares(scale)) * scale
        self._factor = np.minimum(delta_int / clip, to_clip)

    def round_into(self, out: NDArray[np.int32], uniforms: Uniforms) -> None:
        """Round every row into `out`; shrink and round again those that came out too long."""
        rows = np.arange(len(self._x))
        for _ in range(MOST_PASSES):
            squares = self._round(rows, out, uniforms)
            over = squares > self._delta_int**2
            if not over.any():
                return
            rows = rows[over]
            self._factor[rows] *= (self._delta_int / np.sqrt(squares[over])) * _SHRINK
        raise InternalError("clipping in integers did not end")

    def _round(
        self, rows: NDArray[np.int64], out: NDArray[np.int32], uniforms: Uniforms
    ) -> NDArray[np.float64]:
        """Round `rows` into `out` and return their squared norms, which are exact.

        For they are sums of whole numbers, and below 2^53: a row is at most `Delta_int` long
        before rounding, which adds less than `sqrt(d)`, a quarter of that.
        """
        squares = np.zeros(rows.size, np.float64)
        for columns in self._tiles(rows.size):
            values = self._x[rows, columns] * self._factor[rows, np.newaxis]
            _round_in_place(values, uniforms)
            squares += np.einsum("ij,ij->i", values, values)
            out[rows, columns] = values
        return squares

    def _squares(self, scale: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the squared norm of each row times its `scale`."""
        squares = np.zeros(len(self._x), np.float64)
        for columns in self._tiles(len(self._x)):
            values = self._x[:, columns] * scale[:, np.newaxis]
            squares += np.einsum("ij,ij->i", values, values)
        return squares

    def _tiles(self, rows: int) -> Iterator[slice]:
        width = self._x.shape[1]
        step = max(1, _TILE_VALUES // max(rows, 1))
        return (slice(start, start + step) for start in range(0, width, step))


def _round_in_place(values: NDArray[np.float64], uniforms: Uniforms) -> None:
    """Make whole numbers: down, or up with the probability of the part behind the point.

    That probability is right to 2^-52.
    """
    floor = np.floor(values)
    values -= floor
    values += 1.0
    words = uniforms(values.size).reshape(values.shape)
    words >>= np.uint64(12)
    words |= _ONE
    np.add(floor, words.view(np.float64) < values, out=values)
