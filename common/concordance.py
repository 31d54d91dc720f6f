"""How well a survival model ranks patients: Harrell's C, at one hospital and over all.

    C = (concordant + tied / 2) / comparable

A pair of patients is comparable if it is known who had the event first: the earlier of the
two times is an event, or both times are equal and exactly one is an event (then that one
came first). It is concordant if the one with the event had the higher log hazard (Harrell
et al. 1996). Pairs lie within hospitals, since no hospital compares its patients with
another's; their counts add up, so the pooled figure over the wire is exactly that of all
these pairs (a C stratified by hospital).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_BLOCK: Final = 512
"""Rows compared with all others at a time: 512 x 20,000 comparisons are 10 MB."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Counts of pairs; a tie of two log hazards is one half in `concordant`."""

    concordant: float
    comparable: float

    @property
    def c_index(self) -> float | None:
        """C in [0, 1]; None without a comparable pair."""
        return self.concordant / self.comparable if self.comparable > 0 else None


def pairs(scores: NDArray[np.float64], target: NDArray[np.float64]) -> Pairs:
    """Return the pairs of rows; `scores` [rows] rise with the hazard, `target` [rows, 2]."""
    time, event = target[:, 0], target[:, 1] > 0
    concordant = comparable = 0.0
    for start in range(0, len(time), _BLOCK):
        part = slice(start, start + _BLOCK)
        first = event[part, None] & (
            (time[part, None] < time[None, :])
            | ((time[part, None] == time[None, :]) & ~event[None, :])
        )
        higher = scores[part, None] > scores[None, :]
        equal = scores[part, None] == scores[None, :]
        comparable += float(first.sum())
        concordant += float((first & higher).sum()) + 0.5 * float((first & equal).sum())
    return Pairs(concordant, comparable)
