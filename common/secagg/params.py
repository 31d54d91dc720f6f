"""The numbers of a round that its safety rests on (section 1), checked in one place.

    c      colluding hospitals tolerated, counted over the whole roster
    q      commit quorum, floor((n + c)/2) + 1: two quorums share an honest signer
    s_min  fewest survivors, at least max(q, c + 2): two honest inputs stay in any sum
    t_h    shares that restore a secret, more than colluding helpers hold

The coordinator proposes them in the header; every node computes them again and refuses
what is weaker than the rule, or its own policy (`common.secagg.rules`). With n = 2 the rule
gives c = 0, q = 2, s_min = 2, and with n = 3, c = 0 it allows two survivors; both hide
inputs from the coordinator only, since a hospital may subtract its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from common.errors import Refusal
from common.secagg.helpers import helper_count, helper_threshold
from common.secagg.ring import RING_BITS

DEFAULT_MIN_COHORT: Final = 3
MIN_HONEST_INPUTS: Final = 2
"""Honest inputs that every opened sum holds at the least."""

EPOCH_ROUNDS: Final = 256
EPOCH_SECONDS: Final = 7 * 24 * 3600
"""An epoch ends after this many rounds or seconds, whichever comes first."""

_TWO_PARTY: Final = 2
_SMALL_ROSTER: Final = 5
_NARROW_RING: Final = 16
_NARROW_RING_MEMBERS: Final = 64


def default_colluders(roster_size: int) -> int:
    """Return `c` for a roster: 0 for two, 1 for three to five, else a quarter."""
    if roster_size <= _TWO_PARTY:
        return 0
    return 1 if roster_size <= _SMALL_ROSTER else roster_size // 4


def quorum(n: int, c: int) -> int:
    """Return `q = floor((n + c)/2) + 1`, so that `2q - n >= c + 1`."""
    return (n + c) // 2 + 1


def smallest_set(n: int, c: int) -> int:
    """Return the least allowed `s_min`, `max(q, c + 2)`."""
    return max(quorum(n, c), c + MIN_HONEST_INPUTS)


@dataclass(frozen=True, slots=True)
class SecAggParams:
    """The numbers of one round; `derive` makes them, `check_rules` judges a peer's."""

    n: int
    c: int
    q: int
    s_min: int
    t_h: int
    kappa: int
    ring_bits: int

    @classmethod
    def derive(
        cls, n: int, c: int, *, s_min: int | None = None, ring_bits: int = 32
    ) -> SecAggParams:
        """Return the numbers for `n` members, `c` colluders and at least `s_min` survivors.

        Raises:
            Refusal: COHORT_SMALL, SMIN_RULE, HELPER_RULE, ...: no round of that shape is safe.
        """
        least = smallest_set(n, c)
        if least > n:
            raise Refusal("COHORT_SMALL", f"{n} members cannot hide inputs from {c} colluders")
        params = cls(
            n=n,
            c=c,
            q=quorum(n, c),
            s_min=least if s_min is None else max(least, s_min),
            t_h=helper_threshold(n, c),
            kappa=helper_count(n),
            ring_bits=ring_bits,
        )
        params.check_rules()
        return params

    def check_rules(self) -> None:
        """Refuse numbers that section 1 forbids, whatever the policy.

        Raises:
            Refusal: COHORT_SMALL, QUORUM_RULE, SMIN_RULE, HELPER_RULE or HEADER_FORM.
        """
        n, c = self.n, self.c
        if n < _TWO_PARTY:
            raise Refusal("COHORT_SMALL", f"a round of {n} members hides nothing")
        if c < 0 or self.q != quorum(n, c) or self.q > n:
            raise Refusal("QUORUM_RULE", f"q={self.q} is not floor((n + c)/2) + 1 for n={n}, c={c}")
        if not smallest_set(n, c) <= self.s_min <= n:
            raise Refusal(
                "SMIN_RULE", f"s_min={self.s_min} is not from {smallest_set(n, c)} to n={n}"
            )
        if self.kappa != helper_count(n) or self.t_h != helper_threshold(n, c):
            raise Refusal(
                "HELPER_RULE",
                f"kappa={self.kappa}, t_h={self.t_h} are not the rule's for n={n}, c={c}",
            )
        if self.ring_bits not in RING_BITS:
            raise Refusal("HEADER_FORM", f"w={self.ring_bits} is not one of 16, 32, 64")
        if self.ring_bits == _NARROW_RING and n > _NARROW_RING_MEMBERS:
            raise Refusal("OVERFLOW_BOUND", f"w=16 is for at most 64 members, not {n}")
