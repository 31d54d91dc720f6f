"""Section 9.2: the table of the discrete Gaussian and its draws (data for later)."""

from __future__ import annotations

from decimal import Decimal, localcontext
from math import ceil

from tests.reference.plain import X, keystream

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
