"""The evaluation of a multiclass target beyond row-wise sums: each level against the rest.

A level's figures are those of a yes-or-no question, "is it this level?", with the level's
probability as the score. What adds up under the masks, beside the sums of `common.evaluation`:

    histogram   [levels, 2, BINS]: scores of the rows of other levels, and of its own
    confusion   [levels, levels]: rows by their true level and the likeliest predicted one

The macro AUROC is the plain mean over the levels, and has a value only if each level has. Its
interval needs the covariance of the levels' AUROCs, which no histogram holds; the standard
error of a mean is at most the mean of the standard errors (Minkowski), and that is taken: the
interval is never too narrow, and as wide as it can be only if all levels err together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common import medical, score_counts
from common.medical import Estimate
from common.score_counts import ScoreCounts
from common.study import Study

BINS: Final = 4096
"""Bins of one level's score histogram."""

MOST_LEVELS: Final = 32
"""With more levels there are no figures by level: each costs 64 KiB of a masked sum."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LevelFigures:
    """One level against the rest; `rows` are truly of it, `predicted` (None: withheld) said to be.

    `sensitivity`: of its rows, the share that is said to be of it; `ppv`: of those said to be,
    the share that is.
    """

    level: str
    rows: float
    predicted: float | None
    auroc: Estimate
    sensitivity: Estimate
    ppv: Estimate


@dataclass(frozen=True, slots=True)
class ByLevel:
    """Figures of each level, in the study's order; `confusion` [true][predicted] counts rows."""

    levels: tuple[LevelFigures, ...]
    confusion: tuple[tuple[float, ...], ...]
    auroc: Estimate


def names(study: Study) -> tuple[str, ...]:
    """Return the levels that have figures of their own: all of a multiclass target, or none."""
    if study.target.type != "multiclass":
        return ()
    levels = study.target.levels
    return levels if len(levels) <= MOST_LEVELS else ()


def shapes(study: Study) -> dict[str, tuple[int, ...]]:
    """Return the tensors that a multiclass study adds to an evaluate round's layout."""
    count = len(names(study))
    return {"histogram": (count, 2, BINS), "confusion": (count, count)} if count else {}


def contribution(study: Study, predictions: Floats, target: Floats) -> list[Floats]:
    """Return the tensors of `shapes` over P(level) [rows, levels] and level indices [rows]."""
    count = len(names(study))
    if not count:
        return []
    bins = _bins(study)
    histogram = [
        score_counts.histogram_of(predictions[:, k], target == k, bins) for k in range(count)
    ]
    return [np.stack(histogram), confusion(predictions, target, count)]


def confusion(predictions: Floats, target: Floats, count: int) -> Floats:
    """Return rows by true and by likeliest level, float64 [levels, levels]; ties: the first."""
    place = target.astype(np.int64) * count + predictions.argmax(axis=1)
    return np.bincount(place, minlength=count * count).reshape(count, count).astype(np.float64)


def exact(study: Study, predictions: Floats, target: Floats) -> ByLevel | None:
    """Return a hospital's exact figures; None where the study has none by level."""
    count = len(names(study))
    if not count:
        return None
    counts = [score_counts.counted(predictions[:, k], target == k) for k in range(count)]
    return _figures(study, counts, confusion(predictions, target, count))


def pooled(study: Study, tensors: Mapping[str, Floats]) -> ByLevel | None:
    """Return the figures of opened tensors; None where the study has none by level."""
    if "confusion" not in tensors:
        return None
    bins = _bins(study)
    counts = [score_counts.from_histogram(np.round(one, 3), bins) for one in tensors["histogram"]]
    return _figures(study, counts, np.round(tensors["confusion"], 3))


def _bins(study: Study) -> score_counts.Bins:
    return score_counts.score_bins(BINS, float(study.evaluate.threshold))


def _figures(study: Study, counts: Sequence[ScoreCounts], table: Floats) -> ByLevel:
    confidence = float(study.evaluate.confidence)
    true, said = table.sum(axis=1), table.sum(axis=0)
    levels = tuple(
        LevelFigures(
            level=name,
            rows=float(true[k]),
            predicted=float(said[k]),
            auroc=medical.auroc(counts[k], confidence),
            sensitivity=medical.share(table[k, k], float(true[k]), confidence),
            ppv=medical.share(table[k, k], float(said[k]), confidence),
        )
        for k, name in enumerate(names(study))
    )
    cells = tuple(tuple(float(cell) for cell in row) for row in table)
    return ByLevel(levels, cells, medical.mean_auroc(counts, confidence))
