"""The evaluate round of a survival study: counts of rows, events and pairs that add up.

The words are whole numbers (and halves, for ties), each within `PAIR_LIMIT`; the C of the
opened sums is exact (`common.concordance`). See `common.evaluation` for the other targets.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.concordance import Pairs, pairs
from common.errors import Refusal

NAMES: Final = ("rows", "events", "concordant", "comparable")

PAIR_LIMIT: Final = 2.0**40
"""Range of every word: the pairs of a million test rows."""


def sums(scores: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a hospital's words in the order of `NAMES`; zeros without test rows.

    Raises:
        Refusal: INPUT_NAN, more pairs than a word holds.
    """
    if len(target) == 0:
        return np.zeros(len(NAMES))
    found = pairs(scores, target)
    if found.comparable > PAIR_LIMIT:
        raise Refusal("INPUT_NAN", "more pairs of test rows than an evaluate round can count")
    events = float((target[:, 1] > 0).sum())
    return np.array([len(target), events, found.concordant, found.comparable])


def figures(words: NDArray[np.float64]) -> dict[str, float | None]:
    """Return the figures of (summed) words: `rows`, `events` and `c_index`."""
    rows, events, concordant, comparable = (round(2.0 * float(word)) / 2.0 for word in words)
    c_index = Pairs(concordant, comparable).c_index
    return {"rows": rows, "events": events, "c_index": c_index}
