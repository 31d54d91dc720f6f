"""What a statistics study adds up: counts in whole numbers, and sums in two limbs.

One masked sum over the hospitals gives everything that `fedcare.statistics/v1` publishes.
Three tensors, derived by both sides from the study alone:

    counts   exact whole numbers (scale 1), per *column* (a group of `group_by`, or all rows;
             the last column of groups holds rows whose group is not known): rows; of a number
             a fine histogram over its public range and its missing values; of a category its
             levels and missing; cross tables; events, losses and survivors on the time grid
    whole    sums of z and z^2 (z = (x - middle) / half of the range) and each hospital's own
             log-rank terms, rounded to whole numbers
    part     what that rounding left over, range 1: together exact as float64

A hospital adds the log-rank's O - E and its variance over *its own* risk sets, so the sum is
the test stratified by hospital (Mantel 1966), although no hospital's figures are seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import InternalError, Refusal
from common.features import Table
from common.secagg.node_state import RangeRule
from common.study import Feature, Statistics, Study, SurvivalCurve
from common.study_evaluation import Subgroup
from common.study_statistics import levels_of
from common.vectors import ParameterSchema, TensorSpec, TensorType

FINE_BINS: Final = 1024
"""Bins of a number's histogram; whole numbers over a narrower range get a bin each."""

RING_BITS: Final = 64
RANGES: Final[tuple[RangeRule, ...]] = ("count", "count", 1.0)
"""Of `counts`, `whole` and `part`: a hospital takes no others, so counts stay whole."""

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Grid:
    """A number's fine histogram: `first` edge, `width` and number of `bins`."""

    first: float
    width: float
    bins: int
    whole: bool

    def middle(self, place: int) -> float:
        """Return the value that stands for a bin: of a whole number that number itself."""
        return self.first + self.width * (place + 0.5)

    def edge(self, place: int) -> float:
        """Return a bin's lower edge."""
        return self.first + self.width * place


def grid_of(feature: Feature) -> Grid:
    """Return a number's grid; it follows from the study's public range."""
    if feature.range is None:
        raise InternalError(f"feature '{feature.name}' has no range")
    low, high = feature.range
    if feature.type == "int" and high - low < FINE_BINS:
        first = math.ceil(low)
        return Grid(first - 0.5, 1.0, int(math.floor(high) - first) + 1, whole=True)
    return Grid(low, (high - low) / FINE_BINS, FINE_BINS, whole=False)


def section(study: Study) -> Statistics:
    """Return the study's section `statistics`."""
    if study.statistics is None:
        raise InternalError("a training study has no statistics section")
    return study.statistics


@dataclass(frozen=True, slots=True)
class Sums:
    """Named arrays of one hospital, or of all: `counts` int-valued, `moments` real."""

    counts: dict[str, Floats]
    moments: dict[str, Floats]


def _feature(study: Study, cut: Subgroup) -> tuple[int, Feature]:
    for place, feature in enumerate(study.features):
        if feature.name == cut.feature:
            return place, feature
    raise InternalError(f"no feature '{cut.feature}'")


def cut_labels(study: Study, cut: Subgroup) -> tuple[str, ...]:
    """Return the labels of a cut's levels or bands, without the one for missing values."""
    return levels_of(_feature(study, cut)[1], cut)


def columns(study: Study) -> int:
    """Return how many columns the counts have: groups and one for those in none, or 1."""
    by = section(study).group_by
    return 1 if by is None else len(cut_labels(study, by)) + 1


def count_shapes(study: Study) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array in `counts`, in order."""
    asked, wide = section(study), columns(study)
    shapes: dict[str, tuple[int, ...]] = {"rows": (wide,)}
    for feature in study.features:
        size = grid_of(feature).bins if feature.levels is None else len(feature.levels)
        shapes[f"feature.{feature.name}"] = (wide, size + 1)  # the last: missing
    for place, (one, other) in enumerate(asked.cross):
        sides = (len(cut_labels(study, one)) + 1, len(cut_labels(study, other)) + 1)
        shapes[f"cross.{place}"] = sides
    if asked.survival is not None:
        steps = asked.survival.bins + 1
        shapes["events"] = (wide, steps)
        shapes["lost"] = (wide, steps + 1)  # the last: watched beyond the horizon
    return shapes


def moment_shapes(study: Study) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array in `whole` and `part`, in order."""
    wide = columns(study)
    shapes: dict[str, tuple[int, ...]] = {
        feature.name: (wide, 2) for feature in study.features if feature.levels is None
    }
    found = {f"feature.{name}": shape for name, shape in shapes.items()}
    if section(study).survival is not None and wide > 1:
        found |= {"logrank.excess": (wide - 1,), "logrank.variance": (wide - 1, wide - 1)}
    return found


def words(study: Study) -> int:
    """Return how many numbers a hospital sends."""
    return _size(count_shapes(study)) + 2 * _size(moment_shapes(study))


def _size(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def layout(study: Study) -> ParameterSchema:
    """Return the layout of the one round of a statistics study; moments may be absent."""
    size = max(1, _size(moment_shapes(study)))
    return ParameterSchema(
        (
            TensorSpec("counts", TensorType.FLOAT64, (_size(count_shapes(study)),)),
            TensorSpec("whole", TensorType.FLOAT64, (size,)),
            TensorSpec("part", TensorType.FLOAT64, (size,)),
        )
    )


# --- at the hospital ------------------------------------------------------------------------


def contribution(study: Study, table: Table) -> Floats:
    """Return a hospital's vector, float64 [layout.parameters]; every row counts once."""
    sums = count(study, table)
    counts = np.concatenate([sums.counts[name].ravel() for name in count_shapes(study)])
    moments = [sums.moments[name].ravel() for name in moment_shapes(study)]
    real = np.concatenate(moments) if moments else np.zeros(1)
    whole = np.rint(real)
    return np.concatenate([counts, whole, real - whole])


def count(study: Study, table: Table) -> Sums:
    """Return one hospital's sums over all rows of its table."""
    asked, wide = section(study), columns(study)
    group = _codes(study, asked.group_by, table) if asked.group_by else np.zeros(table.rows, int)
    counts = {"rows": np.bincount(group, minlength=wide).astype(np.float64)}
    moments: dict[str, Floats] = {}
    for place, feature in enumerate(study.features):
        column, name = table.values[:, place], f"feature.{feature.name}"
        counts[name] = _table(group, _bins(feature, column), count_shapes(study)[name])
        if feature.levels is None:
            moments[name] = _moments(feature, column, group, wide)
    for place, (one, other) in enumerate(asked.cross):
        name = f"cross.{place}"
        sides = _codes(study, one, table), _codes(study, other, table)
        counts[name] = _table(*sides, count_shapes(study)[name])
    if asked.survival is not None:
        counts |= _times(asked.survival, table.target, group, wide)
        if wide > 1:
            excess, variance = logrank_terms(table.target, group, wide - 1)
            moments |= {"logrank.excess": excess, "logrank.variance": variance}
    return Sums(counts, moments)


def _table(one: Codes, other: Codes, shape: tuple[int, ...]) -> Floats:
    cells = np.bincount(one * shape[1] + other, minlength=shape[0] * shape[1])
    return cells.reshape(shape).astype(np.float64)


def _codes(study: Study, cut: Subgroup, table: Table) -> Codes:
    """Return each row's level or band; the number after the last stands for missing."""
    place, feature = _feature(study, cut)
    column = table.values[:, place]
    known = ~np.isnan(column)
    codes = np.full(len(column), len(levels_of(feature, cut)), np.int64)
    if cut.bands is None:
        codes[known] = column[known].astype(np.int64)
    else:
        codes[known] = np.searchsorted(np.asarray(cut.bands), column[known], side="right")
    return codes


def _bins(feature: Feature, column: Floats) -> Codes:
    """Return each row's level or bin of the fine histogram; the last number: missing."""
    known = ~np.isnan(column)
    if feature.levels is not None:
        return np.where(known, np.nan_to_num(column), len(feature.levels)).astype(np.int64)
    grid = grid_of(feature)
    codes = np.full(len(column), grid.bins, np.int64)
    raw = np.floor((column[known] - grid.first) / grid.width)
    codes[known] = np.clip(raw, 0, grid.bins - 1).astype(np.int64)
    return codes


def middle_and_half(feature: Feature) -> tuple[float, float]:
    """Return the middle of a number's range and half its width."""
    low, high = feature.range or (-1.0, 1.0)
    return low / 2.0 + high / 2.0, high / 2.0 - low / 2.0


def _moments(feature: Feature, column: Floats, group: Codes, wide: int) -> Floats:
    middle, half = middle_and_half(feature)
    found = np.zeros((wide, 2))
    for place in range(wide):
        mine = column[(group == place) & ~np.isnan(column)]
        z = (mine - middle) / half
        found[place] = math.fsum(z), math.fsum(z * z)  # the order of rows has no part in it
    return found


def _times(curve: SurvivalCurve, target: Floats, group: Codes, wide: int) -> dict[str, Floats]:
    """Return events and losses per step of the grid; see `SurvivalCurve`."""
    step = curve.horizon / curve.bins
    # A hair below, so that a time on the grid does not move up a step by rounding.
    steps = np.ceil(target[:, 0] / step * (1.0 - 1e-12))
    place = np.minimum(steps, curve.bins + 1).astype(np.int64)  # a time may be any float64
    had = (target[:, 1] > 0) & (place <= curve.bins)
    shape = (wide, curve.bins + 1)
    return {
        "events": _table(group[had], place[had], shape),
        "lost": _table(group[~had], place[~had], (wide, curve.bins + 2)),
    }


def logrank_terms(target: Floats, group: Codes, groups: int) -> tuple[Floats, Floats]:
    """Return O - E, [groups], and its covariance, [groups, groups], on exact times.

    Rows in no group (`group` = `groups`) have no part. At each time with events, given the
    numbers at risk, the events of the groups are hypergeometric (Mantel 1966; Peto 1972).
    """
    inside = group < groups
    times, had, group = target[inside, 0], target[inside, 1] > 0, group[inside]
    events = np.unique(times[had])
    place = np.searchsorted(events, times, side="right")  # at risk at the first `place` times
    at_risk = np.zeros((len(events), groups))
    deaths = np.zeros((len(events), groups))
    for each in range(groups):
        stays = np.bincount(place[group == each], minlength=len(events) + 1)
        at_risk[:, each] = stays[::-1].cumsum()[::-1][1:]
        mine = np.searchsorted(events, times[had & (group == each)])
        deaths[:, each] = np.bincount(mine, minlength=len(events))
    return logrank_sums(deaths, at_risk)


def logrank_sums(deaths: Floats, at_risk: Floats) -> tuple[Floats, Floats]:
    """Return O - E and its covariance from [times, groups] counts."""
    groups = deaths.shape[1]
    excess, variance = np.zeros(groups), np.zeros((groups, groups))
    for dead, risk in zip(deaths, at_risk, strict=True):
        d, n = dead.sum(), risk.sum()
        if d == 0 or n == 0:
            continue
        share = risk / n
        excess += dead - d * share
        if n > 1:
            spread = np.diag(share) - np.outer(share, share)
            variance += d * (n - d) / (n - 1) * spread
    return excess, variance


# --- from the opened sum --------------------------------------------------------------------


def opened(study: Study, words: NDArray[np.int64], bound: int) -> Sums:
    """Return all hospitals' sums from the opened tensor words; `bound` is the quantiser's B.

    Raises:
        InternalError: `words` has not the layout's length.
        Refusal: SUM_RANGE, the counts are none of any patients: a hospital's input was corrupt.
    """
    shape = layout(study)
    if words.shape != (shape.parameters,):
        raise InternalError("a statistics sum is not of the layout")
    first, size = shape.tensors[0].size, shape.tensors[1].size
    moments = words[first : first + size] + words[first + size :] / float(bound)
    counts = _named(words[:first].astype(np.float64), count_shapes(study))
    _check_counts(counts)
    return Sums(counts, _named(moments, moment_shapes(study)))


def _check_counts(counts: Mapping[str, Floats]) -> None:
    """Refuse tables that no patients make: a count below 0, or other totals than the rows'.

    What hides small cells relies on it: each table counts every patient of its column once.
    """
    by_column = counts["rows"]
    agree = all(bool((table >= 0).all()) for table in counts.values())
    for name, table in counts.items():
        if name.startswith("feature."):
            agree = agree and bool((table.sum(axis=1) == by_column).all())
        elif name.startswith("cross."):
            agree = agree and float(table.sum()) == float(by_column.sum())
    if "events" in counts:
        ended = counts["events"].sum(axis=1) + counts["lost"].sum(axis=1)
        agree = agree and bool((ended == by_column).all())
    if not agree:
        raise Refusal("SUM_RANGE", "the opened counts do not fit together")


def _named(flat: Floats, shapes: dict[str, tuple[int, ...]]) -> dict[str, Floats]:
    found: dict[str, Floats] = {}
    start = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        found[name] = flat[start : start + size].reshape(shape)
        start += size
    return found
