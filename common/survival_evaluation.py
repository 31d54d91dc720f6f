"""The evaluation of a survival target: exact at a hospital, and from one masked sum.

A hospital's predictions are float64 [rows, 1 + horizons]: the log hazard, then S(t | x) at
each of `evaluate.horizons`, from the hospital's own baseline. What adds up:

    counts      rows, events
    pairs       concordant and comparable pairs *within* the hospital
    influence   squares for the variance of C (`common.survival_metrics.Pairs.sums`)
    brier       per horizon, the weighted sum of squared errors
    histogram   per horizon, case and control weights in bins of the log hazard

So the pooled C-index is stratified by hospital: no two hospitals' times are compared. The
pooled AUROC at a horizon ranks all hospitals' patients by log hazard, each hospital's
weights from its own censoring. `of_hospitals` is the same without masks and bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from common import metrics, survival_metrics
from common.errors import InternalError
from common.study import Study
from common.vectors import ParameterSchema, TensorSpec, TensorType

if TYPE_CHECKING:
    from common.evaluation import Metrics

BINS: Final = 4096
"""Of a histogram of log hazards."""

_LIMIT: Final = 50.0
_SCALE: Final = 0.05
"""A log hazard z is binned by sign(z) log(1 + |z| / scale), within +-50: bins are below
0.0002 wide around 0, where a young model's lie, and 0.3 % of z for large ones."""

_RANGES: Final = {
    "counts": 2.0**31,
    "pairs": 2.0**45,
    "influence": 2.0**52,
    "brier": 2.0**31,
    "histogram": 2.0**31,
}
"""Range of each tensor's words: pairs of some six million patients, and the
squares of 165,000 test rows at a hospital, of which each had the event."""

Rows = tuple[NDArray[np.float64], NDArray[np.float64]]
"""One hospital's predictions [rows, 1 + horizons] and target [rows, 2]."""


def layout(study: Study) -> ParameterSchema:
    """Return the layout of an evaluate round."""
    sizes: list[tuple[str, tuple[int, ...]]] = [("counts", (2,)), ("pairs", (2,))]
    sizes.append(("influence", (3,)))
    if horizons := len(study.evaluate.horizons):
        sizes += [("brier", (horizons,)), ("histogram", (horizons, 2, BINS))]
    return ParameterSchema(
        tuple(TensorSpec(name, TensorType.FLOAT64, shape) for name, shape in sizes)
    )


def ranges(study: Study) -> tuple[float, ...]:
    """Return R of each tensor of `layout`."""
    return tuple(_RANGES[tensor.name] for tensor in layout(study).tensors)


def contribution(
    study: Study, predictions: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a hospital's vector, float64 [layout.parameters]; zeros without test rows."""
    if len(target) == 0:
        return np.zeros(layout(study).parameters)
    parts = [_head(predictions, target)]
    brier, histograms = [], []
    places = _bins(predictions[:, 0])
    for number, t in enumerate(study.evaluate.horizons, start=1):
        both = survival_metrics.horizon_weights(target[:, 0], target[:, 1], t)
        brier.append(survival_metrics.brier_sum(*both, predictions[:, number]))
        histograms += [np.bincount(places, weights, BINS) for weights in both]
    return np.concatenate([*parts, brier, *histograms])


def pooled(study: Study, opened: NDArray[np.int64], levels: int) -> Metrics:
    """Return pooled figures from the opened tensor words; `levels` is the quantiser's B.

    Raises:
        InternalError: `opened` has not the layout's length.
    """
    schema = layout(study)
    if opened.shape != (schema.parameters,):
        raise InternalError("an evaluation's sum is not of the layout")
    found, start = {}, 0
    for tensor in schema.tensors:
        words = opened[start : start + tensor.size].astype(np.float64)
        found[tensor.name] = words * _RANGES[tensor.name] / levels
        start += tensor.size
    head = np.concatenate([found["counts"], found["pairs"], found["influence"]])
    counts = len(study.evaluate.horizons)
    if counts == 0:
        return _metrics(study, head, [], [])
    tables = found["histogram"].reshape(counts, 2, BINS)
    areas = [metrics.auroc_from_histogram(low, high) for high, low in tables]
    return _metrics(study, head, areas, found["brier"].tolist())


def of_hospitals(study: Study, hospitals: Sequence[Rows]) -> Metrics:
    """Return exact figures over the rows of hospitals; of one of them: its site metrics."""
    filled = [rows for rows in hospitals if len(rows[1])]
    head = np.sum([np.zeros(7), *(_head(*rows) for rows in filled)], axis=0)
    areas: list[float | None] = []
    briers: list[float] = []
    for number, t in enumerate(study.evaluate.horizons, start=1):
        weights = [survival_metrics.horizon_weights(y[:, 0], y[:, 1], t) for _, y in filled]
        risks = [predictions[:, 0] for predictions, _ in filled]
        cases, controls = ([both[k] for both in weights] for k in (0, 1))
        none = np.zeros(0)
        joined = (np.concatenate([none, *part]) for part in (cases, controls, risks))
        areas.append(survival_metrics.auroc_at(*joined))
        sums = (
            survival_metrics.brier_sum(*both, predictions[:, number])
            for both, (predictions, _) in zip(weights, filled, strict=True)
        )
        briers.append(float(sum(sums)))
    return _metrics(study, head, areas, briers)


def _head(predictions: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    time, event = target[:, 0], target[:, 1]
    compared = survival_metrics.pairs(time, event, predictions[:, 0])
    return np.concatenate([[len(target), event.sum()], compared.sums()])


def _metrics(
    study: Study,
    head: NDArray[np.float64],
    areas: Sequence[float | None],
    briers: Sequence[float],
) -> Metrics:
    from common.evaluation import Metrics

    rows, events = (round(float(value), 3) for value in head[:2])
    if rows <= 0.5:  # noqa: PLR2004 - none, but for rounding
        return Metrics()
    c, error = survival_metrics.c_index(head[2:])
    detail: list[tuple[str, float | None]] = [("c_index", c), *_interval(study, c, error)]
    for t, area, brier in zip(study.evaluate.horizons, areas, briers, strict=True):
        detail += [(f"auroc_at_{t:g}", area), (f"brier_at_{t:g}", brier / rows)]
    return Metrics(rows=rows, positives=events, detail=tuple(detail))


def _interval(study: Study, c: float | None, error: float | None) -> list[tuple[str, float | None]]:
    if c is None or error is None:
        return [("c_index_low", None), ("c_index_high", None)]
    half = NormalDist().inv_cdf(0.5 + float(study.evaluate.confidence) / 2.0) * error
    return [("c_index_low", max(0.0, c - half)), ("c_index_high", min(1.0, c + half))]


def _bins(risk: NDArray[np.float64]) -> NDArray[np.int64]:
    inside = np.clip(risk, -_LIMIT, _LIMIT)
    stretched = np.sign(inside) * np.log1p(np.abs(inside) / _SCALE)
    share = stretched / np.log1p(_LIMIT / _SCALE)
    places: NDArray[np.int64] = np.clip(np.floor((share + 1.0) * (BINS / 2)), 0, BINS - 1).astype(
        np.int64
    )
    return places
