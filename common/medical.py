"""The figures of a medical paper about a yes-or-no model, each with its interval.

Everything here is over counts of scores (`common.score_counts`), so that one function gives
a hospital's exact figure and, from summed histograms, that of all hospitals. Intervals have
level `confidence`; a figure without a value, or whose interval has none, says `None`.

* AUROC: Mann-Whitney, its variance by DeLong et al. 1988 (ranks as in Sun & Xu 2014), the
  interval on the logit scale, where it cannot leave (0, 1) (Pepe 2003, section 5.2).
* AUPRC: average precision (ties: McSherry & Najork 2008), its interval on the logit scale
  (Boyd, Eng & Page 2013).
* Sensitivity, specificity, predictive values, accuracy: Wilson 1927.
* Decision curve: net benefit, Vickers & Elkin 2006.
* Calibration: `common.recalibration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.score_counts import ScoreCounts

CALIBRATION_GROUPS: Final = 10
"""A calibration curve has at most as many groups, about equally full."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its interval's ends; both ends are None where there is no interval."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Confusion:
    """Rows by what the model says (a score above the threshold says yes) and by what is true."""

    true_positive: float
    false_positive: float
    false_negative: float
    true_negative: float


@dataclass(frozen=True, slots=True)
class CalibrationGroup:
    """Rows of neighbouring scores: the mean score, the share that was sick, its interval."""

    predicted: float
    observed: Estimate
    rows: float


NONE: Final = Estimate(None)


def quantile(confidence: float) -> float:
    """Return z with P(|N(0, 1)| < z) = confidence, in (0, 1)."""
    return NormalDist().inv_cdf((1.0 + confidence) / 2.0)


def wilson(share: float, rows: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval for a share among `rows` > 0 rows (Wilson 1927)."""
    z = quantile(confidence)
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z * ((share * (1 - share) + z * z / (4 * rows)) / rows) ** 0.5 / (1 + z * z / rows)
    low = 0.0 if share <= 0 else max(0.0, middle - half)  # to the bit, not but for rounding
    return low, 1.0 if share >= 1 else min(1.0, middle + half)


def share(part: float, rows: float, confidence: float) -> Estimate:
    """Return `part` of `rows` with Wilson's interval; no value without rows."""
    if rows <= 0:
        return NONE
    value = min(1.0, max(0.0, part / rows))
    return Estimate(value, *wilson(value, rows, confidence))


def auroc(counts: ScoreCounts, confidence: float) -> Estimate:
    """Return P(score of a sick > score of a healthy row), ties one half; DeLong's interval.

    No interval with fewer than two rows of a class, or where its variance is 0 (as at 1).
    """
    value, error = _delong(counts)
    if value is None or error is None:
        return Estimate(value)
    return _on_logit(value, error, confidence)


def mean_auroc(several: Sequence[ScoreCounts], confidence: float) -> Estimate:
    """Return the plain mean of AUROCs over the same rows; no value unless all have one.

    Its standard error is taken as the mean of theirs, which it cannot exceed.
    """
    found = [_delong(counts) for counts in several]
    values = [value for value, _ in found if value is not None]
    errors = [error for _, error in found if error is not None]
    if not found or len(values) < len(found):
        return NONE
    value = sum(values) / len(values)
    if len(errors) < len(found):
        return Estimate(value)
    return _on_logit(value, sum(errors) / len(errors), confidence)


def _delong(counts: ScoreCounts) -> tuple[float | None, float | None]:
    """Return the AUROC and its standard error, each None where it has no value."""
    healthy, sick = float(counts.healthy.sum()), float(counts.sick.sum())
    if healthy == 0 or sick == 0:
        return None, None
    under = (np.cumsum(counts.healthy) - counts.healthy / 2.0) / healthy
    over = 1.0 - (np.cumsum(counts.sick) - counts.sick / 2.0) / sick
    value = float(counts.sick @ under) / sick
    if min(healthy, sick) < 2:  # noqa: PLR2004
        return value, None
    spread_sick = float(counts.sick @ (under - value) ** 2) / (sick - 1.0)
    spread_healthy = float(counts.healthy @ (over - value) ** 2) / (healthy - 1.0)
    return value, (spread_sick / sick + spread_healthy / healthy) ** 0.5


def _on_logit(value: float, error: float, confidence: float) -> Estimate:
    """Return the interval of a value in (0, 1) whose logit is about normal (delta method)."""
    if not 0.0 < value < 1.0 or error < 1e-12:  # noqa: PLR2004
        return Estimate(value)
    middle = np.log(value / (1.0 - value))
    half = quantile(confidence) * error / (value * (1.0 - value))
    low, high = (1.0 / (1.0 + np.exp(-(middle + side * half))) for side in (-1.0, 1.0))
    return Estimate(value, float(low), float(high))


def auprc(counts: ScoreCounts, confidence: float) -> Estimate:
    """Return the average precision: the mean, over sick rows, of the precision down to each.

    Of equal scores it is the mean over their orders (McSherry & Najork 2008), as the AUROC's
    one half is; without ties it is scikit-learn's. No value without sick rows.
    """
    sick = float(counts.sick.sum())
    if sick == 0:
        return NONE
    gained, rows = counts.sick[::-1], counts.rows[::-1]
    total = sum(
        _tied(*group)
        for group in zip(
            gained, rows, np.cumsum(gained) - gained, np.cumsum(rows) - rows, strict=True
        )
        if group[0] > 0
    )
    value = float(total) / sick
    return _on_logit(value, (value * (1.0 - value) / sick) ** 0.5, confidence)


_LISTED: Final = 4096
"""Rows of one score up to which their places are listed one by one."""


def _tied(sick: float, rows: float, sick_above: float, rows_above: float) -> float:
    """Return the expected sum of precisions at the sick rows of one group of equal scores."""
    if rows <= 1:
        return sick * (sick_above + sick) / (rows_above + rows)
    slope = (sick - 1.0) / (rows - 1.0)
    whole = float(np.round(rows))
    if whole > _LISTED:
        # With a + b (j - 1) = b (r + j) + (a - b - b r) the sum over j is one of 1 / (r + j).
        rest = sick_above + 1.0 - slope - slope * rows_above
        return (slope + rest * _harmonic(rows_above, whole) / whole) * sick
    place = np.arange(1.0, whole + 1.0)
    precision = (sick_above + 1.0 + (place - 1.0) * slope) / (rows_above + place)
    return float(precision.mean()) * sick


def _harmonic(start: float, count: float) -> float:
    """Return the sum of 1 / (start + j) for j = 1 to `count` > 1000, to about 1e-12.

    Euler-Maclaurin (DLMF 2.10.1) from the middle of the first step on; no list of `count`
    terms, for a corrupt sum may claim any number of rows.
    """
    few = np.arange(1.0, 17.0)
    low, high = start + 17.0, start + count
    tail = np.log(high / low) + 0.5 * (1.0 / low + 1.0 / high)
    tail += (1.0 / low**2 - 1.0 / high**2) / 12.0 - (1.0 / low**4 - 1.0 / high**4) / 120.0
    return float((1.0 / (start + few)).sum() + tail)


def confusion(counts: ScoreCounts, threshold: float) -> Confusion:
    """Return the four cells at a threshold; of bins, exact at an edge of theirs only."""
    yes = counts.scores > threshold
    return Confusion(
        true_positive=float(counts.sick[yes].sum()),
        false_positive=float(counts.healthy[yes].sum()),
        false_negative=float(counts.sick[~yes].sum()),
        true_negative=float(counts.healthy[~yes].sum()),
    )


def rates(cells: Confusion, confidence: float) -> dict[str, Estimate]:
    """Return sensitivity, specificity and both predictive values."""
    tp, fp, fn, tn = (
        cells.true_positive, cells.false_positive, cells.false_negative, cells.true_negative
    )  # fmt: skip
    return {
        "sensitivity": share(tp, tp + fn, confidence),
        "specificity": share(tn, tn + fp, confidence),
        "ppv": share(tp, tp + fp, confidence),
        "npv": share(tn, tn + fn, confidence),
    }


def net_benefit(counts: ScoreCounts, threshold: float) -> tuple[float, float]:
    """Return the net benefit at a threshold in (0, 1): of the model, and of treating all.

    TP / n - FP / n * t / (1 - t): sick rows found, less the healthy ones treated, each at the
    odds at which one is willing to treat. Treating nobody has 0. `counts` has rows.
    """
    cells, odds = confusion(counts, threshold), threshold / (1.0 - threshold)
    rows = float(counts.rows.sum())
    model = (cells.true_positive - odds * cells.false_positive) / rows
    everybody = float(counts.sick.sum() - odds * counts.healthy.sum()) / rows
    return model, everybody


def roc(counts: ScoreCounts) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return false and true positive rates [groups + 1] from (0, 0) to (1, 1), or None."""
    healthy, sick = counts.healthy.sum(), counts.sick.sum()
    if healthy == 0 or sick == 0:
        return None
    false, true = (
        np.concatenate([[0.0], np.cumsum(of[::-1]) / total])
        for of, total in ((counts.healthy, healthy), (counts.sick, sick))
    )
    return false, true


def precision_recall(
    counts: ScoreCounts,
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return recall and precision [groups], highest score first; None without sick rows."""
    sick = counts.sick.sum()
    if sick == 0:
        return None
    found = np.cumsum(counts.sick[::-1])
    return found / sick, found / np.cumsum(counts.rows[::-1])


def calibration_curve(
    counts: ScoreCounts, confidence: float, groups: int = CALIBRATION_GROUPS, least: int = 10
) -> list[CalibrationGroup]:
    """Return groups of neighbouring scores with at least `least` rows each, about equally full.

    Fewer rows than that have no curve. Rows of equal scores stay together.
    """
    total = float(counts.rows.sum())
    size = max(float(least), total / groups)
    found = []
    for first, last in bands(counts, size):
        rows = counts.rows[first:last]
        many = float(rows.sum())
        sick = float(counts.sick[first:last].sum())
        predicted = float(rows @ counts.scores[first:last]) / many
        found.append(CalibrationGroup(predicted, share(sick, many, confidence), many))
    return found


def bands(counts: ScoreCounts, size: float, cut: float | None = None) -> list[tuple[int, int]]:
    """Return ranges [first, last) of groups, in order, that hold at least `size` rows each.

    Together they are all groups, or none if all rows are fewer. `cut`: a score at which a
    band must end, if both sides have `size` rows.
    """
    rows = counts.rows
    middle = len(rows) if cut is None else int(np.searchsorted(counts.scores, cut, side="right"))
    parts = [(0, middle), (middle, len(rows))]
    if any(rows[first:last].sum() < size for first, last in parts):
        parts = [(0, len(rows))]
    return [band for part in parts for band in _bands(rows, size, *part)]


def _bands(rows: NDArray[np.float64], size: float, first: int, end: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    start, held = first, 0.0
    for place in range(first, end):
        held += float(rows[place])
        if held >= size - 1e-6:
            found.append((start, place + 1))
            start, held = place + 1, 0.0
    if start < end and found:  # too few are left for a band: they join the last one
        found[-1] = (found[-1][0], end)
    return found
