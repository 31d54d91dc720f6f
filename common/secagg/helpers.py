"""Who helps whom to recover, and how many helpers it takes (sections 1 and 6.3).

Up to 64 members everybody helps everybody and `t_h = c + 1`: colluders alone always
hold one share too few. Above that each node draws 64 helpers from its own randomness
(a coordinator that could steer the draw would grind it until colluders prevail), and
`t_h` is the smallest threshold that colluders reach at some node of the round with
probability at most 2^-40, in exact integer arithmetic on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import comb
from typing import Final

from common.entropy import Entropy
from common.errors import Refusal
from common.ids import NodeId

ALL_HELP_LIMIT: Final = 64
"""Up to this many members, all others are helpers."""

HELPERS_DRAWN: Final = 64
"""`kappa` above the limit."""

FAILURE_BITS: Final = 40
"""Colluders reach `t_h` somewhere in a round with probability at most 2^-40."""


def helper_count(n: int) -> int:
    """Return `kappa` for `n` members."""
    return n - 1 if n <= ALL_HELP_LIMIT else HELPERS_DRAWN


@cache
def helper_threshold(n: int, c: int) -> int:
    """Return `t_h` for `n` members of which `c` may collude.

    Raises:
        Refusal: HELPER_RULE, no threshold up to `kappa` is safe.
    """
    threshold = c + 1 if n <= ALL_HELP_LIMIT else _smallest_safe(n, c)
    if not 1 <= threshold <= helper_count(n):
        raise Refusal("HELPER_RULE", f"no safe helper threshold for n={n}, c={c}")
    return threshold


def _smallest_safe(n: int, c: int) -> int:
    """Return the smallest t with `n P[Hypergeometric(n-1, c, 64) >= t] <= 2^-40`."""
    draws = comb(n - 1, HELPERS_DRAWN)
    tail = 0  # number of draws with at least t colluders
    for t in range(HELPERS_DRAWN, 0, -1):
        tail += comb(c, t) * comb(n - 1 - c, HELPERS_DRAWN - t)
        if n * tail << FAILURE_BITS > draws:
            return t + 1
    return 1


def draw_helpers(own: NodeId, members: Sequence[NodeId], entropy: Entropy) -> tuple[NodeId, ...]:
    """Return this node's helpers, sorted: all others, or 64 drawn without replacement.

    Only local randomness may be passed: never the coordinator's, never shared.
    """
    others = sorted((node for node in members if node != own), key=str.encode)
    if len(members) <= ALL_HELP_LIMIT:
        return tuple(others)
    for slot in range(HELPERS_DRAWN):  # the first steps of a Fisher-Yates shuffle
        pick = slot + _below(len(others) - slot, entropy)
        others[slot], others[pick] = others[pick], others[slot]
    return tuple(sorted(others[:HELPERS_DRAWN], key=str.encode))


def _below(bound: int, entropy: Entropy) -> int:
    """Return a uniform integer in [0, bound); the biased top of the range is redrawn."""
    limit = (1 << 64) // bound * bound
    while True:
        draw = int.from_bytes(entropy.take(8), "big")
        if draw < limit:
            return draw % bound
