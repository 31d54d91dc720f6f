"""The evaluation of a survival target: exact at a hospital, and from one masked sum.

A hospital's predictions are float64 [rows, 1 + horizons]: the log hazard, then S(t | x) at
each of `evaluate.horizons`, from the hospital's own baseline. What adds up:

    counts      rows, events
    pairs       concordant and comparable pairs *within* the hospital
    influence   squares for the variance of C (`common.survival_metrics.Pairs.sums`)
    brier       per horizon, the weighted sum of squared errors
    histogram   per horizon, case and control weights in bins of the log hazard
    behind      per horizon, how many cases and controls that is

So the pooled C-index is stratified by hospital: no two hospitals' times are compared. The
pooled AUROC at a horizon ranks all hospitals' patients by log hazard, each hospital's
weights from its own censoring. `of_hospitals` is the same without masks and bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common import medical, metrics, survival_metrics
from common.errors import Refusal
from common.study import Study
from common.vectors import ParameterSchema, TensorSpec, TensorType

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
    "behind": 2.0**31,
}
"""Range of each tensor's words: pairs of some six million patients, and the
squares of 165,000 test rows at a hospital, of which each had the event."""

Rows = tuple[NDArray[np.float64], NDArray[np.float64]]
"""One hospital's predictions [rows, 1 + horizons] and target [rows, 2]."""


@dataclass(frozen=True, slots=True)
class AtHorizon:
    """The names of a horizon's figures, and the cases and controls that they come from."""

    names: tuple[str, ...]
    cases: int
    controls: int


@dataclass(frozen=True, slots=True)
class Found:
    """Figures over test rows; `detail` by name, with the interval of C as `c_index_low/high`."""

    rows: float = 0.0
    events: float = 0.0
    c_index: float | None = None
    detail: tuple[tuple[str, float | None], ...] = ()
    at_horizons: tuple[AtHorizon, ...] = ()


def layout(study: Study) -> ParameterSchema:
    """Return the layout of an evaluate round."""
    sizes: list[tuple[str, tuple[int, ...]]] = [("counts", (2,)), ("pairs", (2,))]
    sizes.append(("influence", (3,)))
    if horizons := len(study.evaluate.horizons):
        sizes += [("brier", (horizons,)), ("histogram", (horizons, 2, BINS))]
        sizes.append(("behind", (horizons, 2)))
    return ParameterSchema(
        tuple(TensorSpec(name, TensorType.FLOAT64, shape) for name, shape in sizes)
    )


def ranges(study: Study) -> tuple[float, ...]:
    """Return R of each tensor of `layout`."""
    return tuple(_RANGES[tensor.name] for tensor in layout(study).tensors)


def contribution(
    study: Study, predictions: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a hospital's vector, float64 [layout.parameters]; zeros without test rows.

    Raises:
        Refusal: INPUT_NAN, a sum is beyond its word.
    """
    if len(target) == 0:
        return np.zeros(layout(study).parameters)
    head = _head(predictions, target)
    if head[2:4].max() > _RANGES["pairs"] or head[4:].max() > _RANGES["influence"]:
        raise Refusal("INPUT_NAN", "more pairs of test rows than an evaluate round can count")
    brier, histograms, behind = [], [], []
    places = _bins(predictions[:, 0])
    for number, t in enumerate(study.evaluate.horizons, start=1):
        both = survival_metrics.horizon_weights(target[:, 0], target[:, 1], t)
        brier.append(survival_metrics.brier_sum(*both, predictions[:, number]))
        histograms += [np.bincount(places, weights, BINS) for weights in both]
        behind += _behind(*both)
    return np.concatenate([head, brier, *histograms, behind])


def figures(study: Study, sums: Mapping[str, NDArray[np.float64]]) -> Found:
    """Return pooled figures from the hospitals' sum, by the names and shapes of `layout`."""
    head = np.concatenate([sums["counts"], sums["pairs"], sums["influence"]])
    if not study.evaluate.horizons:
        return _found(study, head, [], [], [])
    areas = [metrics.auroc_from_histogram(low, high) for high, low in sums["histogram"]]
    return _found(study, head, areas, sums["brier"].tolist(), sums["behind"].tolist())


def of_hospitals(study: Study, hospitals: Sequence[Rows]) -> Found:
    """Return exact figures over the rows of hospitals; of one of them: its site metrics."""
    filled = [rows for rows in hospitals if len(rows[1])]
    head = np.sum([np.zeros(7), *(_head(*rows) for rows in filled)], axis=0)
    risk = np.concatenate([np.zeros(0), *(predictions[:, 0] for predictions, _ in filled)])
    areas: list[float | None] = []
    briers: list[float] = []
    behind: list[list[float]] = []
    for number, t in enumerate(study.evaluate.horizons, start=1):
        both = [survival_metrics.horizon_weights(y[:, 0], y[:, 1], t) for _, y in filled]
        cases = np.concatenate([np.zeros(0), *(case for case, _ in both)])
        controls = np.concatenate([np.zeros(0), *(control for _, control in both)])
        survival = [predictions[:, number] for predictions, _ in filled]
        areas.append(survival_metrics.auroc_at(cases, controls, risk))
        behind.append(_behind(cases, controls))
        survived = np.concatenate([np.zeros(0), *survival])
        briers.append(survival_metrics.brier_sum(cases, controls, survived))
    return _found(study, head, areas, briers, behind)


def _head(predictions: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    time, event = target[:, 0], target[:, 1]
    compared = survival_metrics.pairs(time, event, predictions[:, 0])
    return np.concatenate([[len(target), event.sum()], compared.sums()])


def _behind(cases: NDArray[np.float64], controls: NDArray[np.float64]) -> list[float]:
    return [float(np.count_nonzero(part)) for part in (cases, controls)]


def _found(
    study: Study,
    head: NDArray[np.float64],
    areas: Sequence[float | None],
    briers: Sequence[float],
    behind: Sequence[Sequence[float]],
) -> Found:
    rows, events = (round(float(value), 3) for value in head[:2])
    if rows <= 0.5:  # noqa: PLR2004 - none, but for rounding
        return Found()
    c, error = survival_metrics.c_index(head[2:])
    detail = [*_interval(study, c, error)]
    at = []
    horizons = study.evaluate.horizons
    for t, area, brier, counts in zip(horizons, areas, briers, behind, strict=True):
        names = (f"auroc_at_{t:g}", f"brier_at_{t:g}")
        detail += [(names[0], area), (names[1], brier / rows)]
        at.append(AtHorizon(names, *(round(count) for count in counts)))
    return Found(rows, events, c, tuple(detail), tuple(at))


def _interval(study: Study, c: float | None, error: float | None) -> list[tuple[str, float | None]]:
    if c is None or error is None:
        return [("c_index_low", None), ("c_index_high", None)]
    half = medical.quantile(float(study.evaluate.confidence)) * error
    return [("c_index_low", max(0.0, c - half)), ("c_index_high", min(1.0, c + half))]


def _bins(risk: NDArray[np.float64]) -> NDArray[np.int64]:
    inside = np.clip(risk, -_LIMIT, _LIMIT)
    stretched = np.sign(inside) * np.log1p(np.abs(inside) / _SCALE)
    share = stretched / np.log1p(_LIMIT / _SCALE)
    places: NDArray[np.int64] = np.clip(np.floor((share + 1.0) * (BINS / 2)), 0, BINS - 1).astype(
        np.int64
    )
    return places
