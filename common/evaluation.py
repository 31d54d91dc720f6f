"""Metrics of a model at one hospital, and of all hospitals from one masked sum.

`site_metrics` is exact and stays at the hospital. For the pooled figures each hospital
sends, masked, what adds up: for a binary target a histogram of scores per class, and
sums of row-wise terms. `pooled` turns the opened sums into the same `Metrics`.

Every test row counts once, so the pooled figures are those over all test rows of all
hospitals. A run has one evaluate round on one set of hospitals; whoever compares two
runs over different sets learns the difference (docs/threat-model.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common import metrics, survival_evaluation
from common.errors import InternalError
from common.study import Study
from common.vectors import ParameterSchema, TensorSpec, TensorType

ROW_LIMIT: Final = 2.0**31
"""Range of every word: more test rows than any hospital has."""

RING_BITS: Final = 64
"""Ring of an evaluate round: counts stay exact beside fractions."""

_SUMS: Final = {
    "binary": ("rows", "correct", "brier", "log_loss"),
    "multiclass": ("rows", "correct", "brier", "log_loss"),
    "continuous": ("rows", "squared", "absolute", "y", "y_squared"),
}


@dataclass(frozen=True, slots=True)
class Metrics:
    """Figures over test rows; `None` where one has no value or does not fit the target.

    `rows` counts test rows; `positives` of them are
    sick. `auroc` needs both classes. `brier` lies in [0, 1] (binary) or [0, 2] (multiclass),
    `log_loss` is in nats. `mse`, `mae` and `r2` belong to a continuous target; `r2` needs a
    target that varies. `noise_sd`: of each count's noise, where there is differential
    privacy (`common.noised_evaluation`); then no figure is exact.
    `detail`: further figures by name; those of a survival target, whose `positives` are events.
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
    noise_sd: float | None = None
    detail: tuple[tuple[str, float | None], ...] = ()

    def as_dict(self, study: Study) -> dict[str, float | None]:
        """Return the figures that fit the study's target, for JSON; whole counts as `int`."""
        noised = () if self.noise_sd is None else ("noise_sd",)
        found = {name: getattr(self, name) for name in (*_FIGURES[study.target.type], *noised)}
        found.update(self.detail)
        return {
            name: int(value) if name in _COUNTS and value == round(value or 0) else value
            for name, value in found.items()
        }


_FIGURES: Final = {
    "binary": ("rows", "positives", "auroc", "accuracy", "brier", "log_loss"),
    "multiclass": ("rows", "accuracy", "brier", "log_loss"),
    "continuous": ("rows", "mse", "mae", "r2"),
    "survival": ("rows", "positives"),
}
_COUNTS: Final = ("rows", "positives")


def site_metrics(
    study: Study, predictions: NDArray[np.float64], target: NDArray[np.float64]
) -> Metrics:
    """Return exact metrics over the given rows; without rows only `rows` = 0.

    A survival target's rows are as `common.survival_evaluation` says.

    `predictions`: P(positive) [rows] for a binary target, P(level) [rows, levels] for a
    multiclass one, the predicted number [rows] for a continuous one.
    """
    if len(target) == 0:
        return Metrics()
    if study.target.type == "survival":
        return survival_evaluation.of_hospitals(study, [(predictions, target)])
    sums = _row_sums(study, predictions, target).sum(axis=0)
    found = _from_sums(study, sums)
    if study.target.type != "binary":
        return found
    positives = float((target > 0).sum())
    return replace(found, positives=positives, auroc=metrics.auroc(predictions, target))


def layout(study: Study) -> ParameterSchema:
    """Return the layout of an evaluate round: `sums` and, for a binary target, `histogram`."""
    if study.target.type == "survival":
        return survival_evaluation.layout(study)
    sums = TensorSpec("sums", TensorType.FLOAT64, (len(_names(study)),))
    if study.target.type != "binary":
        return ParameterSchema((sums,))
    return ParameterSchema((sums, TensorSpec("histogram", TensorType.FLOAT64, (2, metrics.BINS))))


def ranges(study: Study) -> tuple[float, ...]:
    """Return R of each tensor of `layout`."""
    if study.target.type == "survival":
        return survival_evaluation.ranges(study)
    return (ROW_LIMIT,) * len(layout(study).tensors)


def contribution(
    study: Study,
    predictions: NDArray[np.float64],
    target: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return a hospital's vector, float64 [layout.parameters]; zeros without test rows.

    Nothing is weighted when it is quantised.
    """
    if len(target) == 0:
        return np.zeros(layout(study).parameters)
    if study.target.type == "survival":
        return survival_evaluation.contribution(study, predictions, target)
    sums = _row_sums(study, predictions, target).sum(axis=0)
    if study.target.type == "binary":
        histogram = metrics.score_histogram(predictions, target)
        sums = np.concatenate([sums, histogram.ravel()])
    contributed: NDArray[np.float64] = sums
    return contributed


def pooled(study: Study, opened: NDArray[np.int64], levels: int) -> Metrics:
    """Return pooled metrics from the opened tensor words, int64 [layout.parameters].

    `levels` is the quantiser's B. The AUROC is that of the summed histograms: pairs of
    rows in one of the 1024 bins count one half.

    Raises:
        InternalError: `opened` has not the layout's length.
    """
    if study.target.type == "survival":
        return survival_evaluation.pooled(study, opened, levels)
    if opened.shape != (layout(study).parameters,):
        raise InternalError("an evaluation's sum is not of the layout")
    values = opened.astype(np.float64) * ROW_LIMIT / levels
    count = len(_names(study))
    found = _from_sums(study, values[:count])
    if study.target.type != "binary" or found.rows <= 0:
        return found
    healthy, sick = values[count:].reshape(2, metrics.BINS)
    return replace(
        found,
        positives=_whole(float(sick.sum())),
        auroc=metrics.auroc_from_histogram(healthy, sick),
    )


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
            correct = (predictions > metrics.THRESHOLD) == (target > 0)
            right = np.where(target > 0, predictions, 1.0 - predictions)
            terms = [ones, correct, (1.0 - right) ** 2, -np.log(np.clip(right, floor, 1 - floor))]
        case "multiclass":
            levels = np.arange(predictions.shape[1])
            truth = (target[:, None] == levels).astype(np.float64)
            right = (predictions * truth).sum(axis=1)
            terms = [
                ones,
                predictions.argmax(axis=1) == target,
                ((predictions - truth) ** 2).sum(axis=1),
                -np.log(np.clip(right, floor, 1 - floor)),
            ]
        case _:
            error = predictions - target
            terms = [ones, error**2, np.abs(error), target, target**2]
    return np.stack([np.asarray(term, np.float64) for term in terms], axis=1)


def _from_sums(study: Study, sums: NDArray[np.float64]) -> Metrics:
    rows, *rest = (float(value) for value in sums)
    if rows <= 0.0:
        return Metrics()
    mean = [value / rows for value in rest]
    if study.target.type == "continuous":
        squared, absolute, y, y_squared = mean
        variance = y_squared - y * y
        r2 = 1.0 - squared / variance if variance > 1e-12 * y_squared else None
        return Metrics(rows=_whole(rows), mse=squared, mae=absolute, r2=r2)
    return Metrics(rows=_whole(rows), accuracy=mean[0], brier=mean[1], log_loss=mean[2])


def _whole(count: float) -> float:
    """Return a count that is whole but for rounding as a whole number."""
    nearest = round(count)
    return float(nearest) if abs(count - nearest) < 1e-3 else count  # noqa: PLR2004
