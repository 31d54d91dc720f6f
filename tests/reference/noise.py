"""Sections 9.2 and 9.6: the table of the discrete Gaussian, its draws, and local steps."""

from __future__ import annotations

from decimal import Decimal, localcontext
from math import ceil
from typing import TYPE_CHECKING

from tests.reference.plain import X, keystream

if TYPE_CHECKING:
    from collections.abc import Sequence

_DIGITS = 120


def table(sigma: int) -> list[int]:
    """Return floor(2^127 P(|K| <= t)) for t = 0..T, the last one 2^127."""
    last = ceil(13 * sigma)
    with localcontext() as context:
        context.prec = _DIGITS
        mass = [(-(Decimal(k) ** 2) / (2 * Decimal(sigma) ** 2)).exp() for k in range(6 * last)]
        total = mass[0] + 2 * sum(mass[1:])
        out = []
        running = mass[0]
        for t in range(last + 1):
            if t:
                running += 2 * mass[t]
            out.append(int(running / total * 2**127))
    out[-1] = 2**127
    return out


def draw(seed: bytes, entries: list[int], place: int) -> int:
    """Return sample number `place` of a seed."""
    word = int.from_bytes(keystream(X(seed, "noise"), 8 * place, 8), "little")
    tie = int.from_bytes(keystream(X(seed, "noise-tie"), 8 * place, 8), "little")
    u = (word >> 1) << 64 | tie
    t = next(t for t, entry in enumerate(entries) if u < entry)
    return -t if word & 1 else t


def of_step(seed: bytes, entries: list[int], step: int, d: int, first: int) -> list[int]:
    """Return the noise of a local step, 1 .. K, for the words first .. d-1 (9.6)."""
    return [draw(seed, entries, (step - 1) * d + word) for word in range(first, d)]


def local_steps(
    start: Sequence[float],
    sums: Sequence[Sequence[int]],
    eta: Sequence[Sequence[int]],
    *,
    s: float,
    batch: float,
    lr: float,
    decay: float,
) -> list[list[float]]:
    """Return x_0 .. x_K of 9.6 from each step's integer sum and noise, in binary64."""
    path = [list(start)]
    for g, noise in zip(sums, eta, strict=True):
        x = path[-1]
        path.append(
            [
                w + lr * (float(a + b) / s / batch - decay * w)
                for w, a, b in zip(x, g, noise, strict=True)
            ]
        )
    return path
