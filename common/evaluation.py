"""Metrics of a model at one hospital, and of all hospitals from one masked sum.

`site_metrics` is exact and stays at the hospital. For the pooled figures each hospital
sends, masked, what adds up: sums of row-wise terms and, for a target of classes, a histogram
of scores per class (of several levels: `common.multiclass`); of a binary or continuous target
the same for each cell of the study's subgroups, of the others the sums. `pooled` and
`pooled_cells` turn the opened sums into the same `Metrics`.

Every test row counts once, so the pooled figures are those over all test rows of all
hospitals. A run has one evaluate round on one set of hospitals; whoever compares two
runs over different sets learns the difference (docs/threat-model.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common import (
    continuous,
    medical,
    metrics,
    multiclass,
    recalibration,
    score_counts,
    survival_evaluation,
)
from common.errors import InternalError
from common.medical import Estimate
from common.multiclass import ByLevel
from common.score_counts import Bins, ScoreCounts
from common.secagg.node_state import RangeRule
from common.study import Study
from common.subgroups import cells
from common.survival_evaluation import AtHorizon, Rows
from common.vectors import ParameterSchema, TensorSpec, TensorType

ROW_LIMIT: Final = 2.0**31
"""Range of every word: more test rows than any hospital has."""

RING_BITS: Final = 64
"""Ring of an evaluate round: counts stay exact beside fractions."""

BINS: Final = 16384
"""Bins of a score histogram over everybody."""

CELL_BINS: Final = 4096
"""Bins of a subgroup's score histogram: fewer, because there may be many subgroups."""

_SUMS: Final = {
    "binary": ("rows", "correct", "brier", "log_loss", "brier_squared", *recalibration.SUMS),
    "multiclass": ("rows", "correct", "brier", "log_loss", "brier_squared"),
    "continuous": continuous.SUMS,
}


@dataclass(frozen=True, slots=True)
class Metrics:
    """Figures over test rows; `None` where one has no value or does not fit the target.

    `rows` counts test rows; `positives` of them are sick. `auroc` needs both classes; of several
    levels it is their mean. `brier` lies in [0, 1] (binary) or [0, 2] (multiclass), `log_loss`
    is in nats. `mse`, `mae` and `r2` belong to a continuous target; `r2` needs a
    target that varies. `events` and `c_index` belong to a survival target. `noise_sd`: of each
    count's noise, where there is differential privacy (`common.noised_evaluation`); then no
    figure is exact.

    `detail`: the further figures by name (docs/evaluation.md), intervals as `name_low` and
    `name_high`. `counts`: rows by score, of a binary target. `at_horizons`: of a survival
    target, the names at each horizon with the rows behind them (`common.survival_evaluation`).
    `by_level`: of a multiclass target, each level against the rest (`common.multiclass`).
    """

    rows: float = 0.0
    positives: float | None = None
    auroc: float | None = None
    accuracy: float | None = None
    brier: float | None = None
    log_loss: float | None = None
    mse: float | None = None
    mae: float | None = None
    r2: float | None = None
    events: float | None = None
    c_index: float | None = None
    noise_sd: float | None = None
    detail: tuple[tuple[str, float | None], ...] = ()
    counts: ScoreCounts | None = field(default=None, compare=False, repr=False)
    at_horizons: tuple[AtHorizon, ...] = field(default=(), compare=False, repr=False)
    by_level: ByLevel | None = field(default=None, compare=False, repr=False)

    @property
    def rmse(self) -> float | None:
        """The root of `mse`, in the target's unit."""
        return None if self.mse is None else self.mse**0.5

    def as_dict(self, study: Study) -> dict[str, float | None]:
        """Return the figures that fit the study's target, for JSON; whole counts as `int`."""
        noised = () if self.noise_sd is None else ("noise_sd",)
        found = {name: getattr(self, name) for name in (*_FIGURES[study.target.type], *noised)}
        return {
            name: int(value) if name in _COUNTS and value == round(value or 0) else value
            for name, value in {**found, **dict(self.detail)}.items()
        }


_FIGURES: Final = {
    "binary": ("rows", "positives", "auroc", "accuracy", "brier", "log_loss"),
    "multiclass": ("rows", "auroc", "accuracy", "brier", "log_loss"),
    "continuous": ("rows", "rmse", "mae", "r2", "mse"),
    "survival": ("rows", "events", "c_index"),
}
CELLS: Final = ("true_positive", "false_positive", "false_negative", "true_negative")
"""Counts of the confusion table among a binary target's `detail`."""

TABLE_RATES: Final = ("sensitivity", "specificity", "ppv", "npv")
"""How names begin that follow from the table."""

_COUNTS: Final = ("rows", "positives", "events", *CELLS)


def headline(study: Study) -> tuple[str, ...]:
    """Return the names of the figures without intervals and counts, for short tables."""
    return tuple(name for name in _FIGURES[study.target.type] if name not in _COUNTS)


def site_metrics(
    study: Study, predictions: NDArray[np.float64], target: NDArray[np.float64]
) -> Metrics:
    """Return exact metrics over the given rows; without rows only `rows` = 0.

    `predictions`: P(positive) [rows] for a binary target, P(level) [rows, levels] for a
    multiclass one, the predicted number [rows] for a continuous one; for a survival one as
    `common.survival_evaluation` says.
    """
    if len(target) == 0:
        return Metrics()
    if study.target.type == "survival":
        return of_hospitals(study, [(predictions, target)])
    sums = _row_sums(study, predictions, target).sum(axis=0)
    match study.target.type:
        case "binary":
            return _binary(study, sums, score_counts.counted(predictions, target))
        case "multiclass":
            return _multiclass(study, sums, multiclass.exact(study, predictions, target))
        case _:
            return _from_sums(study, sums)


def of_hospitals(study: Study, hospitals: Sequence[Rows]) -> Metrics:
    """Return exact survival metrics; patients are compared within their hospitals only."""
    return _survival(survival_evaluation.of_hospitals(study, hospitals))


def layout(study: Study) -> ParameterSchema:
    """Return the layout of an evaluate round.

    `sums` [names] and, for a binary target, `histogram` [2, BINS], for a multiclass one the
    tensors of `common.multiclass.shapes`; with subgroups `cell_sums` [cells, names] and, for a
    binary target, `cell_histograms` [cells, 2, CELL_BINS] as well.
    """
    if study.target.type == "survival":
        return survival_evaluation.layout(study)
    names, parts = len(_names(study)), len(cells(study))
    if study.target.type == "continuous":
        return continuous.layout(parts)
    binary = study.target.type == "binary"
    shapes: dict[str, tuple[int, ...]] = {"sums": (names,)}
    if binary:
        shapes["histogram"] = (2, BINS)
    shapes |= multiclass.shapes(study)
    if parts:
        shapes["cell_sums"] = (parts, names)
        if binary:
            shapes["cell_histograms"] = (parts, 2, CELL_BINS)
    return ParameterSchema(
        tuple(TensorSpec(name, TensorType.FLOAT64, shape) for name, shape in shapes.items())
    )


def ranges(study: Study) -> tuple[RangeRule, ...]:
    """Return R of each tensor of `layout`."""
    return continuous.RANGES if study.target.type == "continuous" else _limits(study)


def _limits(study: Study) -> tuple[float, ...]:
    if study.target.type == "survival":
        return survival_evaluation.ranges(study)
    return (ROW_LIMIT,) * len(layout(study).tensors)


def contribution(
    study: Study,
    predictions: NDArray[np.float64],
    target: NDArray[np.float64],
    members: NDArray[np.bool_] | None = None,
    *,
    levels: int,
) -> NDArray[np.float64]:
    """Return a hospital's vector, float64 [layout.parameters]; zeros without test rows.

    Nothing is weighted when it is quantised; `levels` is the quantiser's B. `members` bool
    [cells, rows] says who is in which subgroup (`common.subgroups.members`); only a study
    without any may leave it out.

    Raises:
        InternalError: `members` has not the study's cells.
        Refusal: INPUT_NAN, sums of a continuous target are too large.
    """
    schema, parts = layout(study), len(cells(study))
    if parts and (members is None or members.shape != (parts, len(target))):
        raise InternalError("an evaluation was not told who is in its subgroups")
    if len(target) == 0:
        return np.zeros(schema.parameters)
    if study.target.type == "survival":
        return survival_evaluation.contribution(study, predictions, target)
    terms = _row_sums(study, predictions, target)
    if study.target.type == "continuous":
        everybody = np.ones(len(target), np.bool_)
        parted = [everybody, *(() if members is None else members)]
        return continuous.contribution(np.stack([terms[one].sum(0) for one in parted]), levels)
    binary = study.target.type == "binary"
    found = [terms.sum(axis=0)]
    if binary:
        found.append(score_counts.histogram_of(predictions, target, _bins(study, BINS)))
    found += multiclass.contribution(study, predictions, target)
    if members is not None:
        found += [terms[inside].sum(axis=0) for inside in members]
        if binary:
            few = _bins(study, CELL_BINS)
            found += [
                score_counts.histogram_of(predictions[inside], target[inside], few)
                for inside in members
            ]
    return np.concatenate([part.ravel() for part in found])


def pooled(study: Study, opened: NDArray[np.int64], levels: int) -> Metrics:
    """Return pooled metrics from the opened tensor words, int64 [layout.parameters].

    `levels` is the quantiser's B. The AUROC is that of the summed histograms: pairs of
    rows in one of the 16,384 bins count one half.

    Raises:
        InternalError: `opened` has not the layout's length.
    """
    tensors = _tensors(study, opened, levels)
    if study.target.type == "survival":
        return _survival(survival_evaluation.figures(study, tensors))
    by_level = multiclass.pooled(study, tensors)
    return _pooled(study, tensors["sums"], tensors.get("histogram"), by_level)


def pooled_cells(study: Study, opened: NDArray[np.int64], levels: int) -> tuple[Metrics, ...]:
    """Return the metrics of each cell of the subgroups, in the order of `common.subgroups.cells`.

    Raises:
        InternalError: `opened` has not the layout's length.
    """
    tensors = _tensors(study, opened, levels)
    histograms = tensors.get("cell_histograms")
    return tuple(
        _pooled(
            study, tensors["cell_sums"][place], None if histograms is None else histograms[place]
        )
        for place in range(len(cells(study)))
    )


def _tensors(
    study: Study, opened: NDArray[np.int64], levels: int
) -> dict[str, NDArray[np.float64]]:
    schema = layout(study)
    if opened.shape != (schema.parameters,):
        raise InternalError("an evaluation's sum is not of the layout")
    if study.target.type == "continuous":
        sums = continuous.opened(opened, levels)
        return {"sums": sums[0], "cell_sums": sums[1:]}
    found, start = {}, 0
    for tensor, limit in zip(schema.tensors, _limits(study), strict=True):
        words = opened[start : start + tensor.size].astype(np.float64)
        found[tensor.name] = words.reshape(tensor.shape) * limit / levels
        start += tensor.size
    return found


def _pooled(
    study: Study,
    sums: NDArray[np.float64],
    histogram: NDArray[np.float64] | None,
    by_level: ByLevel | None = None,
) -> Metrics:
    if sums[0] <= 0.5:  # noqa: PLR2004 - no row, but for rounding
        return _from_sums(study, sums)
    if study.target.type == "multiclass":
        return _multiclass(study, sums, by_level)
    if histogram is None:
        return _from_sums(study, sums)
    bins = _bins(study, histogram.shape[1])
    return _binary(study, sums, score_counts.from_histogram(np.round(histogram, 3), bins))


def _survival(found: survival_evaluation.Found) -> Metrics:
    return Metrics(
        rows=found.rows,
        events=found.events if found.rows else None,
        c_index=found.c_index,
        detail=found.detail,
        at_horizons=found.at_horizons,
    )


def _bins(study: Study, count: int) -> Bins:
    return score_counts.score_bins(count, float(study.evaluate.threshold))


def _names(study: Study) -> tuple[str, ...]:
    try:
        return _SUMS[study.target.type]
    except KeyError:
        raise InternalError(f"no metrics for a {study.target.type} target") from None


def _row_sums(
    study: Study, predictions: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return each row's terms, float64 [rows, names]; of a class target all are bounded."""
    ones = np.ones(len(target))
    floor = metrics.PROBABILITY_FLOOR
    match study.target.type:
        case "binary":
            correct = (predictions > study.evaluate.threshold) == (target > 0)
            right = np.where(target > 0, predictions, 1.0 - predictions)
            brier = (1.0 - right) ** 2
            loss = -np.log(np.clip(right, floor, 1 - floor))
            line = recalibration.row_terms(predictions, (target > 0).astype(np.float64))
            terms = [ones, correct, brier, loss, brier**2, *line]
        case "multiclass":
            levels = np.arange(predictions.shape[1])
            truth = (target[:, None] == levels).astype(np.float64)
            right = (predictions * truth).sum(axis=1)
            brier = ((predictions - truth) ** 2).sum(axis=1)
            loss = -np.log(np.clip(right, floor, 1 - floor))
            terms = [ones, predictions.argmax(axis=1) == target, brier, loss, brier**2]
        case _:
            return continuous.row_terms(predictions, target)
    return np.stack([np.asarray(term, np.float64) for term in terms], axis=1)


def _from_sums(study: Study, sums: NDArray[np.float64]) -> Metrics:
    rows, *rest = (float(value) for value in sums)
    if rows <= 0.0:
        return Metrics()
    if study.target.type == "continuous":
        return _continuous(continuous.figures(sums, float(study.evaluate.confidence)))
    mean = [value / rows for value in rest]
    return Metrics(rows=_whole(rows), accuracy=mean[0], brier=mean[1], log_loss=mean[2])


def _continuous(found: continuous.Found) -> Metrics:
    estimates = {
        "mae": found.mae,
        "calibration_slope": found.slope,
        "calibration_intercept": found.intercept,
    }
    pairs = tuple(pair for pair in _pairs(estimates) if pair[0] not in _FIGURES["continuous"])
    rows, mae = _whole(found.rows), found.mae.value
    return Metrics(rows=rows, mse=found.mse, mae=mae, r2=found.r2, detail=pairs)


def _binary(study: Study, sums: NDArray[np.float64], counts: ScoreCounts) -> Metrics:
    """Return everything about a yes-or-no model; `sums` is exact, `counts` exact or binned."""
    found = _from_sums(study, sums)
    named = dict(zip(_names(study), (float(value) for value in sums), strict=True))
    confidence = float(study.evaluate.confidence)
    auroc = medical.auroc(counts, confidence)
    cells_ = medical.confusion(counts, float(study.evaluate.threshold))
    correct = medical.share(named["correct"], named["rows"], confidence)
    estimates = {
        "auroc": auroc,
        "auprc": medical.auprc(counts, confidence),
        "accuracy": Estimate(found.accuracy, correct.low, correct.high),
        "brier": _mean(named["brier"], named["brier_squared"], named["rows"], confidence),
        **_calibration(counts, named, confidence),
        **medical.rates(cells_, confidence),
    }
    pairs = tuple(pair for pair in _pairs(estimates) if pair[0] not in _FIGURES["binary"])
    table = tuple((name, _whole(getattr(cells_, name))) for name in CELLS)
    positives = _whole(float(counts.sick.sum()))
    return replace(
        found, positives=positives, auroc=auroc.value, detail=(*pairs, *table), counts=counts
    )


def _multiclass(study: Study, sums: NDArray[np.float64], by_level: ByLevel | None) -> Metrics:
    """Return everything about a model of several levels; `sums` holds rows."""
    found = _from_sums(study, sums)
    rows, correct, brier, _, squares = (float(value) for value in sums)
    confidence = float(study.evaluate.confidence)
    accuracy = medical.share(correct, rows, confidence)
    auroc = medical.NONE if by_level is None else by_level.auroc
    estimates = {
        "auroc": auroc,
        "accuracy": Estimate(found.accuracy, accuracy.low, accuracy.high),
        "brier": _mean(brier, squares, rows, confidence, most=2.0),
    }
    pairs = tuple(pair for pair in _pairs(estimates) if pair[0] not in _FIGURES["multiclass"])
    return replace(found, auroc=auroc.value, detail=pairs, by_level=by_level)


def _calibration(
    counts: ScoreCounts, named: dict[str, float], confidence: float
) -> dict[str, Estimate]:
    exact = np.array([named[name] for name in recalibration.SUMS])
    z = medical.quantile(confidence)
    sloped, level = recalibration.slope(counts, exact), recalibration.intercept(counts, exact)
    ratio = float(counts.sick.sum()) / named["p"] if named["p"] > 0 else None
    return {
        "calibration_slope": medical.NONE
        if sloped is None
        else _around(sloped.b, z * sloped.b_error),
        "calibration_intercept": medical.NONE
        if level is None
        else _around(level.a, z * level.a_error),
        "observed_expected": Estimate(ratio),
    }


def _mean(
    total: float, squares: float, rows: float, confidence: float, most: float = 1.0
) -> Estimate:
    """Return the mean of rows' terms in [0, most] with a normal interval."""
    mean = total / rows
    if rows < 2:  # noqa: PLR2004 - no spread
        return Estimate(mean)
    spread = max(0.0, squares / rows - mean * mean) * rows / (rows - 1.0)
    half = medical.quantile(confidence) * (spread / rows) ** 0.5
    return Estimate(mean, max(0.0, mean - half), min(most, mean + half))


def _around(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)


def _pairs(estimates: dict[str, Estimate]) -> tuple[tuple[str, float | None], ...]:
    """Return each figure and its interval by name; the ratio without an interval has none."""
    found: list[tuple[str, float | None]] = []
    for name, one in estimates.items():
        found.append((name, one.value))
        if name != "observed_expected":
            found += [(f"{name}_low", one.low), (f"{name}_high", one.high)]
    return tuple(found)


def _whole(count: float) -> float:
    """Return a count that is whole but for rounding as a whole number."""
    nearest = round(count)
    return float(nearest) if abs(count - nearest) < 1e-3 else count  # noqa: PLR2004
