"""Who takes part: a list drawn once, and a secret draw for each round (protocol, 9.3).

Both draws come from the operating system, never from a study's seed: a coordinator that
knew who was drawn would take the amplification away.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.entropy import Entropy

_WORD: int = 8


def draw_list(count: int, most: int, entropy: Entropy) -> NDArray[np.int64]:
    """Return `most` of the numbers 0 .. count-1, each subset as likely, sorted; all if fewer.

    The numbers with the smallest random 128-bit keys: the data have no say.
    """
    if count <= most:
        return np.arange(count, dtype=np.int64)
    high, low = _words(count, entropy), _words(count, entropy)
    chosen: NDArray[np.int64] = np.sort(np.lexsort((low, high))[:most]).astype(np.int64)
    return chosen


def poisson(count: int, p: float, entropy: Entropy) -> NDArray[np.int64]:
    """Return the places 0 .. count-1 that are drawn, each alone with probability p in (0, 1].

    The probability is p to 64 bits, rounded down.
    """
    if p >= 1:
        return np.arange(count, dtype=np.int64)
    drawn = _words(count, entropy) < np.uint64(int(p * 2.0**64))
    return np.flatnonzero(drawn).astype(np.int64)


def _words(count: int, entropy: Entropy) -> NDArray[np.uint64]:
    return np.frombuffer(entropy.take(_WORD * count), np.dtype("<u8")).astype(np.uint64)
