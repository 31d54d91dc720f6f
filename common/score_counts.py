"""Scores as counts: how many healthy and sick rows have each score, lowest first.

Every figure that needs no more than ranks, counts and scores is written once, over counts
(`common.medical`). A hospital counts its distinct scores, which loses nothing. For all
hospitals together the scores are bins of a histogram, whose counts add up under the masks:
a row then stands at its bin's middle.

The bins are equally wide in a stretched logit, so that neither a hesitant nor a very sure
model's scores all fall into a few of them, and one edge more lies at the study's threshold:
counts above and below it are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

LOGIT_LIMIT: Final = 700.0
"""Logits beyond +-700, about where a float64 probability is 0, share the outer bins."""

LOGIT_SCALE: Final = 0.02
"""Logits t are binned by sign(t) log(1 + |t| / scale): with 16,384 bins 0.00003 wide at p = 1/2,
where an untrained model's scores crowd, and 0.0013 of t for the scores of a very sure one."""


@dataclass(frozen=True, slots=True)
class ScoreCounts:
    """Groups of equal (or one bin's) scores: all arrays float64 [groups].

    `scores` rise and are probabilities; `healthy` and `sick` count rows, none below 0.
    """

    scores: NDArray[np.float64]
    healthy: NDArray[np.float64]
    sick: NDArray[np.float64]

    @property
    def rows(self) -> NDArray[np.float64]:
        """Rows of each group, float64 [groups]."""
        return self.healthy + self.sick


@dataclass(frozen=True, slots=True)
class Bins:
    """`edges` float64 [bins - 1] between bins; `middles` float64 [bins], both probabilities.

    A score on an edge belongs below it: a probability of exactly the threshold says no.
    """

    edges: NDArray[np.float64]
    middles: NDArray[np.float64]


def counted(probabilities: NDArray[np.float64], labels: NDArray[np.float64]) -> ScoreCounts:
    """Return the counts of each distinct score; `labels` [rows] are 0 or 1."""
    scores, place = np.unique(probabilities, return_inverse=True)
    healthy, sick = _per_class(place, labels, len(scores))
    return ScoreCounts(scores, healthy, sick)


def from_histogram(histogram: NDArray[np.float64], bins: Bins) -> ScoreCounts:
    """Return the counts [2, bins] as groups; what rounding left below zero counts as zero."""
    healthy, sick = np.maximum(histogram, 0.0)
    full = healthy + sick > 0
    return ScoreCounts(bins.middles[full], healthy[full], sick[full])


def histogram_of(
    probabilities: NDArray[np.float64], labels: NDArray[np.float64], bins: Bins
) -> NDArray[np.float64]:
    """Return counts float64 [2, bins]: row 0 the healthy, row 1 the sick, lowest score first."""
    place = np.searchsorted(bins.edges, probabilities, side="left")
    return np.stack(_per_class(place, labels, len(bins.middles)))


def _per_class(
    place: NDArray[np.int64], labels: NDArray[np.float64], groups: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    sick = labels > 0
    healthy, ill = (np.bincount(place[of], minlength=groups) for of in (~sick, sick))
    return healthy.astype(np.float64), ill.astype(np.float64)


@lru_cache(maxsize=16)
def score_bins(count: int, threshold: float) -> Bins:
    """Return `count` bins, one of whose edges is `threshold`, in (0, 1)."""
    limit = np.log1p(LOGIT_LIMIT / LOGIT_SCALE)
    grid = np.linspace(-limit, limit, count)  # count - 1 bins, then the threshold cuts one
    cut = _stretched(np.log(threshold) - np.log1p(-threshold))
    place = int(np.searchsorted(grid, cut))
    ends = np.insert(grid, place, cut)
    edges = _probability(ends[1:-1])
    edges[place - 1] = threshold  # to the bit: counts at the threshold are exact
    return Bins(edges, _probability((ends[:-1] + ends[1:]) / 2.0))


def _stretched(logit: float) -> float:
    return float(np.sign(logit) * np.log1p(np.abs(logit) / LOGIT_SCALE))


def _probability(stretched: NDArray[np.float64]) -> NDArray[np.float64]:
    logit = np.sign(stretched) * LOGIT_SCALE * np.expm1(np.abs(stretched))
    small = np.exp(-np.abs(logit))
    return np.asarray(np.where(logit >= 0, 1.0, small) / (1.0 + small), np.float64)
