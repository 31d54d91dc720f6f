"""Discrete Gaussian noise by exact table inversion (protocol, section 9.2).

Entry t of the table is `floor(2^127 P(|K| <= t))`, t = 0..T, K a discrete Gaussian of
parameter sigma and `T = ceil(13 sigma)`; the last entry is `2^127`. Draw o takes 64-bit
word o of the keystream under `X(a_i, "noise")`: its lowest bit is the sign, the other 63
are the top of a 127-bit u, and the draw is the least t with `u < entry t`. Only where
those 63 bits equal an entry's are 64 more drawn, word o under `X(a_i, "noise-tie")`.

Integers all the way: no floating-point Gaussian, whose low bits give secrets away
(Mironov 2012). Canonne, Kamath and Steinke (2020) define the distribution.
"""

from __future__ import annotations

import math
from array import array
from decimal import Context, Decimal, localcontext
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import InternalError
from common.secagg.dp import LEAST_SIGMA, MOST_SIGMA, TRUNCATION
from common.secagg.keys import CoefficientSeed
from common.secagg.prg import Keystream

BLOCK_DRAWS: Final = 1 << 15
"""Draws worked on at a time: their buffers stay in a core's cache."""

_TOP_BITS: Final = 63
_TIE_BITS: Final = 64
_FINE: Final = 320
"""Bits behind the point of the table's arithmetic: after 2^23 steps about 250 are right."""

_DIGITS: Final = 110
_GUIDE_BITS_MORE: Final = 4
"""About sixteen buckets for each entry of the table's middle: one draw in ten meets an edge."""
_LOW_WORD: Final = (1 << _TIE_BITS) - 1
_ALIGN: Final = 2


class NoiseTable:
    """The cumulative table of one sigma; made once and shared. `sigma` is from 4 to 2^19.

    `_guide[b]` speaks of the values of u whose top bits are b. Most such buckets hold no
    entry, so that every u of the bucket has the same draw: `2 |K|`. The others hold
    `2 t + 1`, t being the least |K| that the bucket's first u can have.
    """

    __slots__ = ("_guide", "_low", "_shift", "_top", "cap", "sigma")

    def __init__(self, sigma: float) -> None:
        if not (math.isfinite(sigma) and LEAST_SIGMA <= sigma <= MOST_SIGMA):
            raise InternalError(f"a noise table needs sigma of 4 to {MOST_SIGMA:g}, not {sigma}")
        self.sigma = sigma
        self.cap = math.ceil(TRUNCATION * sigma)
        self._top, self._low = _entries(sigma, self.cap)
        bits = math.ceil(math.log2(sigma)) + _GUIDE_BITS_MORE
        self._shift = _TOP_BITS - bits
        edges = np.arange((1 << bits) + 1, dtype=np.uint64) << np.uint64(self._shift)
        first = np.searchsorted(self._top, edges[:-1], side="right")
        below = np.searchsorted(self._top, edges, side="left")
        holds = below[1:] > below[:-1]
        self._guide = ((first << 1) + holds).astype(np.int32)

    @staticmethod
    @lru_cache(maxsize=4)
    def of(sigma: float) -> NoiseTable:
        """Return the table of `sigma`; a run uses one all along."""
        return NoiseTable(sigma)

    def magnitudes(self, tops: NDArray[np.uint64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return |K| by the top 63 bits alone, and the places that need their tie word."""
        # Signed views: a top has 63 bits, and numpy looks nothing up by unsigned numbers.
        found = self._guide.take(tops.view(np.int64) >> self._shift)
        open_ = np.flatnonzero(found & 1)
        found >>= 1
        wanted = tops[open_]
        near = found[open_]
        near += wanted >= self._top[near]
        far = np.flatnonzero(wanted >= self._top[near])
        near[far] = np.searchsorted(self._top, wanted[far], side="right")
        found[open_] = near
        # A tie is an entry equal to u, and a bucket that holds one is open.
        return found, open_[(near > 0) & (self._top[near - 1] == wanted)]

    def resolve(self, top: int, tie: int) -> int:
        """Return |K| of the whole 127-bit u: the readable form of the definition."""
        place = int(np.searchsorted(self._top, np.uint64(top), side="left"))
        while int(self._top[place]) == top and tie >= int(self._low[place]):
            place += 1
        return place


def _entries(sigma: float, cap: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the top 63 (the last entry: 64) and the low 64 bits of each entry.

    `P(K = t) = exp(-t^2 / (2 sigma^2)) / S`, from t to t+1 times `r_t = exp(-(2t+1)/(2
    sigma^2))`, and `r_(t+1) = r_t exp(-1/sigma^2)`. S is `sigma sqrt(2 pi)` by Poisson
    summation, but for a part of `2 exp(-2 pi^2 sigma^2) < 2^-454` at sigma >= 4.
    """
    with localcontext(Context(prec=_DIGITS)):
        square = Decimal(sigma) ** 2
        ratio = _fixed((-1 / (2 * square)).exp())
        shrink = _fixed((-1 / square).exp())
        scale = _fixed(2**127 / (Decimal(sigma) * (2 * _pi()).sqrt()))
    top, low = array("Q"), array("Q")
    weight = mass = 1 << _FINE
    for _ in range(cap):
        entry = (mass * scale) >> (2 * _FINE)
        top.append(entry >> _TIE_BITS)
        low.append(entry & _LOW_WORD)
        weight = (weight * ratio) >> _FINE
        ratio = (ratio * shrink) >> _FINE
        mass += weight << 1
    top.append(1 << _TOP_BITS)
    low.append(0)
    return np.frombuffer(top, np.uint64), np.frombuffer(low, np.uint64)


def _fixed(value: Decimal) -> int:
    return int((value * (1 << _FINE)).to_integral_value())


def _pi() -> Decimal:
    """Return pi to the context's precision, by Machin's formula."""
    unit: int = 10 ** (_DIGITS + 10)

    def arctan_inverse(n: int) -> int:
        term: int = unit // n
        total = term
        k = 1
        while term:
            term //= -(n * n)
            k += 2
            total += term // k
        return total

    digits = 4 * (4 * arctan_inverse(5) - arctan_inverse(239))
    return Decimal(digits) / Decimal(unit)


class NoiseStream:
    """One hospital's noise of one round, by word. Not thread-safe: it owns its buffers."""

    __slots__ = ("_table", "_ties", "_tops", "_words")

    def __init__(self, table: NoiseTable, seed: CoefficientSeed) -> None:
        self._table = table
        self._tops = Keystream.of_noise(seed)
        self._ties = Keystream.of_noise_tie(seed)
        self._words = np.empty(BLOCK_DRAWS + 1, np.dtype("<u8"))

    def add_to(self, out: NDArray[np.int64], word_offset: int) -> None:
        """Add the noise of the words from `word_offset` on to `out`, in place."""
        for start in range(0, out.size, BLOCK_DRAWS):
            block = out[start : start + BLOCK_DRAWS]
            block += self._draw(word_offset + start, block.size)

    def _draw(self, place: int, count: int) -> NDArray[np.int32]:
        skip = place % _ALIGN
        words = self._words[: skip + count]
        self._tops.words_into(words, place - skip)
        words = words[skip:]
        tops = words >> np.uint64(1)
        found, tied = self._table.magnitudes(tops)
        for at in tied.tolist():
            found[at] = self._table.resolve(int(tops[at]), self._tie_word(place + at))
        minus = -(words & np.uint64(1)).astype(np.int32)
        found ^= minus
        found -= minus
        return found

    def _tie_word(self, place: int) -> int:
        pair = np.empty(_ALIGN, np.dtype("<u8"))
        self._ties.words_into(pair, place - place % _ALIGN)
        return int(pair[place % _ALIGN])
