"""The pattern that stands in for training where only the federation is measured.

A study of model kind `vector` moves as many numbers through keys, masks, streams and
sums as a real one and costs next to nothing to "train": every hospital adds a fixed
pattern that depends on its name, the round and the position. Whoever knows the members
can compute the exact integer sum again, which is how `fedcare bench` knows that what
was opened is right. Nothing of it is secret, and no hospital's data is read.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

PERIOD: Final = 1 << 16
"""The pattern repeats after this many values: one block is computed, then copied."""

CELLS: Final = 1 << 10
"""Cells of a period among which a hospital's name chooses its own."""

_SCALE: Final = 2.0**-20


def perturbation(site: str, r: int, start: int, stop: int) -> NDArray[np.float32]:
    """Return the values `start` to `stop` of what `site` adds in round `r`, within +-1/8.

    Each value is a multiple of 2^-20, exact in float32; sites and rounds differ.
    """
    seed = hashlib.sha256(f"{site} {r}".encode()).digest()
    step = int.from_bytes(seed[:2], "big") | 1
    first = int.from_bytes(seed[2:6], "big")
    places = np.arange(start, stop, dtype=np.int64) % PERIOD
    raw = (first + places * step) % (1 << 18) - (1 << 17)
    return (raw * _SCALE).astype(np.float32)


def cell(site: str) -> int:
    """Return the site's own cell of each period, 0 to `CELLS` - 1; two names may share one."""
    return int.from_bytes(hashlib.sha256(f"cell {site}".encode()).digest()[:2], "big") % CELLS


def indicator(site: str, size: int) -> NDArray[np.float32]:
    """Return 1 in the site's own cell of each period, 0 elsewhere; none if `size` is too small."""
    out = np.zeros(size, np.float32)
    out[cell(site) :: PERIOD] = 1.0
    return out


def whole(
    site: str, r: int, size: int, pattern: Literal["random", "indicator"] = "random"
) -> NDArray[np.float32]:
    """Return all `size` values of a study's pattern, built from one period."""
    if pattern == "indicator":
        return indicator(site, size)
    period = perturbation(site, r, 0, min(size, PERIOD))
    out = np.empty(size, np.float32)
    for start in range(0, size, PERIOD):
        out[start : start + PERIOD] = period[: size - start]
    return out
