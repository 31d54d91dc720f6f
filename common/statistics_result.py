"""From all hospitals' sums to what a statistics study publishes.

Everything goes through `common.suppression` first; the sums themselves are kept nowhere.
In this order, so that every margin is known and none is decided twice:

1. groups with too few patients are put together, rows of an unknown group among them;
2. so are a category's levels, missing values being one more;
3. of tables by group and cross tables, the inside is hidden as far as it has to be;
4. means and spreads are given per group only where every group has enough values: of all
   and all groups but one, the last one's would follow;
5. quantiles, then histogram edges, are given where enough patients lie between them;
6. curves step only where enough events and losses came since the step before.

Where a count is hidden, the mean beside it is rounded to four digits: the mean of whole
numbers is a fraction whose denominator is the count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common import counting
from common.counting import Grid, Sums, middle_and_half
from common.statistics_file import (
    Bar,
    CategoryEntry,
    Column,
    CrossTable,
    CurveEntry,
    LevelEntry,
    NumberEntry,
    Quantile,
    StatisticsFile,
    Step,
    SurvivalEntry,
    Test,
)
from common.study import Feature, Statistics, Study, config_hash
from common.study_evaluation import Subgroup
from common.suppression import Cut, hidden, is_small, merged, safe_cuts, sums_of
from common.survival_curves import Curve, kaplan_meier, logrank, safe_steps

Floats = NDArray[np.float64]
Parts = list[list[int]]

NOT_KNOWN: Final = "not known"
MISSING: Final = "missing"
_DIGITS: Final = 4
_TEST_DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class _Frame:
    """What all tables share: the study, the rule, and the groups that may be told apart.

    `parts` is empty where no groups are published; the columns are then everybody.
    """

    study: Study
    asked: Statistics
    sums: Sums
    parts: Parts
    labels: tuple[str, ...]

    @property
    def least(self) -> int:
        return self.asked.min_cell

    def grouped(self, name: str) -> bool:
        """Whether a feature is broken down: there are groups, and it is not what makes them."""
        by = self.asked.group_by
        return bool(self.parts) and by is not None and by.feature != name


def published(study: Study, sums: Sums) -> StatisticsFile:
    """Return what may be published of all hospitals' sums."""
    asked = counting.section(study)
    rows = sums.counts["rows"]
    enough = float(rows.sum()) >= asked.min_cell
    frame = _frame(study, asked, sums)
    curve = asked.survival
    return StatisticsFile(
        study=study.id,
        config_hash=config_hash(study).hex(),
        min_cell=asked.min_cell,
        group_by=None if asked.group_by is None else asked.group_by.feature,
        columns=_columns(frame) if enough else (),
        features=tuple(_entry(frame, f) for f in study.features) if enough else (),
        cross=tuple(_cross(frame, at) for at in range(len(asked.cross))) if enough else (),
        survival=_survival(frame) if enough and curve is not None else None,
    )


def _frame(study: Study, asked: Statistics, sums: Sums) -> _Frame:
    by, rows = asked.group_by, sums.counts["rows"]
    if by is None:
        return _Frame(study, asked, sums, [], ())
    names = (*counting.cut_labels(study, by), NOT_KNOWN)
    parts = [part for part in merged(rows.tolist(), asked.min_cell) if rows[part].sum() > 0]
    if len(parts) <= 1:
        return _Frame(study, asked, sums, [], ())
    return _Frame(study, asked, sums, parts, _labels(names, parts))


def _labels(names: Sequence[str], parts: Parts) -> tuple[str, ...]:
    return tuple(" or ".join(names[place] for place in part) for part in parts)


def _columns(frame: _Frame) -> tuple[Column, ...]:
    rows = frame.sums.counts["rows"]
    found = [Column(label="all", n=int(rows.sum()))]
    for label, part in zip(frame.labels, frame.parts, strict=True):
        found.append(Column(label=label, n=int(rows[part].sum())))
    return tuple(found)


# --- tables ---------------------------------------------------------------------------------


def _by_column(frame: _Frame, name: str, table: Floats) -> list[list[int | None]]:
    """Return [rows][columns] of a table of [rows, raw columns] whose row sums are safe."""
    totals: list[list[int | None]] = [[int(total)] for total in table.sum(axis=1)]
    if not frame.grouped(name):
        return totals
    inside = sums_of(table, frame.parts, axis=1)
    mask = hidden(inside, frame.least)
    for total, cells, hide in zip(totals, inside, mask, strict=True):
        total += [None if gone else int(n) for n, gone in zip(cells, hide, strict=True)]
    return totals


def _entry(frame: _Frame, feature: Feature) -> NumberEntry | CategoryEntry:
    return _category(frame, feature) if feature.levels is not None else _number(frame, feature)


def _category(frame: _Frame, feature: Feature) -> CategoryEntry:
    table = frame.sums.counts[f"feature.{feature.name}"].T
    names = (*(feature.levels or ()), MISSING)
    parts = merged(table.sum(axis=1).tolist(), frame.least)
    rows = _by_column(frame, feature.name, sums_of(table, parts))
    labels = _labels(names, parts)
    last = len(names) - 1
    return CategoryEntry(
        name=feature.name,
        levels=tuple(
            LevelEntry(label=label, missing=last in part, counts=tuple(row))
            for label, part, row in zip(labels, parts, rows, strict=True)
            if part != [last] or row[0] != 0
        ),
    )


def _cross(frame: _Frame, place: int) -> CrossTable:
    one, other = frame.asked.cross[place]
    table = frame.sums.counts[f"cross.{place}"]
    row_parts = _kept_parts(table.sum(axis=1), frame.least)
    column_parts = _kept_parts(table.sum(axis=0), frame.least)
    cells = sums_of(sums_of(table, row_parts), column_parts, axis=1)
    mask = hidden(cells, frame.least)
    row_names = (*counting.cut_labels(frame.study, one), MISSING)
    column_names = (*counting.cut_labels(frame.study, other), MISSING)
    return CrossTable(
        rows=one.feature,
        columns=other.feature,
        row_labels=_labels(row_names, row_parts),
        column_labels=_labels(column_names, column_parts),
        counts=tuple(
            tuple(None if gone else int(n) for n, gone in zip(row, hide, strict=True))
            for row, hide in zip(cells, mask, strict=True)
        ),
        row_totals=tuple(int(n) for n in cells.sum(axis=1)),
        column_totals=tuple(int(n) for n in cells.sum(axis=0)),
    )


def _kept_parts(counts: Floats, least: int) -> Parts:
    """Return the parts of levels and missing; missing is left out where nothing is."""
    last = len(counts) - 1
    return [part for part in merged(counts.tolist(), least) if part != [last] or counts[last]]


# --- numbers --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Values:
    """One number's sums: `bins` [columns, bins], `missing` and `moments` per column."""

    feature: Feature
    grid: Grid
    bins: Floats
    missing: Floats
    moments: Floats

    @property
    def present(self) -> Floats:
        total: Floats = self.bins.sum(axis=1)
        return total


def _values(frame: _Frame, feature: Feature) -> _Values:
    """Return a number's sums, everybody in the first column, then the published groups."""
    name = f"feature.{feature.name}"
    table, moments = frame.sums.counts[name], frame.sums.moments[name]
    parts: Parts = [list(range(len(table)))]
    if frame.grouped(feature.name):
        parts += frame.parts
    whole = sums_of(table, parts)
    return _Values(
        feature,
        counting.grid_of(feature),
        whole[:, :-1],
        whole[:, -1],
        sums_of(moments, parts),
    )


def _number(frame: _Frame, feature: Feature) -> NumberEntry:
    values = _values(frame, feature)
    known = _present(frame, values)
    # Of all and of every group but one, the last one's mean would follow.
    told = [not is_small(n, frame.least) and n > 0 for n in values.present]
    if any(is_small(n, frame.least) for n in values.present[1:]):
        told = [told[0]] + [False] * (len(told) - 1)
    means = [_mean_sd(values, at) if ok else (None, None) for at, ok in enumerate(told)]
    rounded = [
        pair if n is not None else tuple(map(_short, pair))
        for pair, n in zip(means, known[0], strict=True)
    ]
    quantiles, bars = _line(frame, values, told, few_missing=known[0][0] is None)
    return NumberEntry(
        name=feature.name,
        unit=feature.unit,
        whole=values.grid.whole,
        resolution=values.grid.width,
        present=tuple(known[0]),
        missing=tuple(known[1]),
        mean=tuple(pair[0] for pair in rounded),
        sd=tuple(pair[1] for pair in rounded),
        quantiles=quantiles,
        histogram=bars,
    )


def _present(frame: _Frame, values: _Values) -> list[list[int | None]]:
    """Return present and missing per column; nothing at all where either is few."""
    table = np.stack([values.present, values.missing])
    wide = table.shape[1]
    if len(merged(table[:, 0].tolist(), frame.least)) == 1:
        return [[None] * wide, [None] * wide]
    whole: list[list[int | None]] = [[int(row[0])] for row in table]
    if wide > 1:
        mask = hidden(table[:, 1:], frame.least)
        for row, cells, hide in zip(whole, table[:, 1:], mask, strict=True):
            row += [None if gone else int(n) for n, gone in zip(cells, hide, strict=True)]
    return whole


def _mean_sd(values: _Values, at: int) -> tuple[float | None, float | None]:
    """Return a column's mean and sample standard deviation."""
    middle, half = middle_and_half(values.feature)
    n = float(values.present[at])
    first, second = (float(moment) for moment in values.moments[at])
    square = max(second - first * first / n, 0.0) / (n - 1) if n > 1 else None
    return middle + first / n * half, None if square is None else math.sqrt(square) * half


def _short(value: float | None, digits: int = _DIGITS) -> float | None:
    return None if value is None else float(f"{value:.{digits}g}")


def _line(
    frame: _Frame, values: _Values, told: list[bool], *, few_missing: bool
) -> tuple[tuple[Quantile, ...], tuple[Bar, ...]]:
    """Return the quantiles per column and the histogram of everybody."""
    bands = _band_cuts(frame, values.feature)
    places = [
        _quantile_bins(frame, values, at, bands if at == 0 else ()) if ok else {}
        for at, ok in enumerate(told)
    ]
    kept = [*bands]
    for place in places[0].values():
        kept += _bin_cuts(values, 0, place)
    bars = _bars(frame, values, kept) if told[0] else ()
    ends = {bar.low for bar in bars} | {cut.at for cut in kept}
    _drop_shared(frame, values, places, ends)
    if few_missing:
        # The bars would add up to what is present: one stays open, or all where bands tell.
        bars = () if bands else _with_one_open(bars)
    quantiles = tuple(
        Quantile(
            q=q,
            values=tuple(values.grid.middle(mine[q]) if q in mine else None for mine in places),
        )
        for q in frame.asked.quantiles
    )
    return quantiles, bars


def _quantile_bins(
    frame: _Frame, values: _Values, at: int, kept: Sequence[Cut]
) -> dict[float, int]:
    """Return the bins of a column's quantiles that enough patients lie around."""
    below = values.bins[at].cumsum()
    n = float(below[-1])
    found = {q: int(np.searchsorted(below, q * n * (1 - 1e-12))) for q in frame.asked.quantiles}
    # The middle one matters most, then those next to it.
    order = sorted(found, key=lambda q: abs(q - 0.5))
    wishes = [_bin_cuts(values, at, found[q]) for q in order]
    granted = safe_cuts(n, wishes, frame.least, kept)
    return {q: found[q] for q, ok in zip(order, granted, strict=True) if ok}


def _bin_cuts(values: _Values, at: int, place: int) -> tuple[Cut, Cut]:
    row, grid = values.bins[at], values.grid
    return (
        Cut(grid.edge(place), float(row[:place].sum())),
        Cut(grid.edge(place + 1), float(row[: place + 1].sum())),
    )


def _band_cuts(frame: _Frame, feature: Feature) -> tuple[Cut, ...]:
    """Return the cut points of a feature's bands, which other tables tell of."""
    counts, bands = _band_counts(frame, feature.name)
    if bands is None:
        return ()
    below = counts.cumsum()
    return tuple(Cut(at, float(n)) for at, n in zip(bands, below, strict=False))


def _band_counts(frame: _Frame, name: str) -> tuple[Floats, tuple[float, ...] | None]:
    def has(cut: Subgroup | None) -> bool:
        return cut is not None and cut.feature == name and cut.bands is not None

    by, counts = frame.asked.group_by, frame.sums.counts
    if by is not None and has(by):
        return counts["rows"], by.bands
    for place, pair in enumerate(frame.asked.cross):
        for side, cut in enumerate(pair):
            if has(cut):
                return counts[f"cross.{place}"].sum(axis=1 - side), cut.bands
    return np.zeros(0), None


def _bars(frame: _Frame, values: _Values, kept: Sequence[Cut]) -> tuple[Bar, ...]:
    row, grid = values.bins[0], values.grid
    size = min(frame.asked.histogram_bins, grid.bins)
    places = [round(at * grid.bins / size) for at in range(1, size)]
    wishes = [(Cut(grid.edge(place), float(row[:place].sum())),) for place in places]
    granted = safe_cuts(float(row.sum()), wishes, frame.least, kept)
    chosen = [place for place, ok in zip(places, granted, strict=True) if ok]
    return tuple(
        Bar(low=grid.edge(low), high=grid.edge(high), count=int(row[low:high].sum()))
        for low, high in pairwise([0, *chosen, grid.bins])
    )


def _with_one_open(bars: tuple[Bar, ...]) -> tuple[Bar, ...]:
    filled = [bar for bar in bars if bar.count]
    if not filled:
        return bars
    least = min(filled, key=lambda bar: bar.count or 0)
    return tuple(bar.model_copy(update={"count": None}) if bar is least else bar for bar in bars)


def _drop_shared(
    frame: _Frame, values: _Values, places: list[dict[float, int]], overall: set[float]
) -> None:
    """Drop groups' quantiles from which, with everybody's at that value, the others' follow.

    Where a cut of everybody and the same cut of some groups are known, so is the number below
    it in the other groups together: it, and the number above, must not be small.
    """
    groups = range(1, len(places))
    for place in {place for at in groups for place in places[at].values()}:
        for edge in (place, place + 1):
            if values.grid.edge(edge) not in overall:
                continue
            others = [at for at in groups if place not in places[at].values()]
            below = sum(float(values.bins[at][:edge].sum()) for at in others)
            above = sum(float(values.bins[at][edge:].sum()) for at in others)
            if is_small(below, frame.least) or is_small(above, frame.least):
                for at in groups:
                    places[at] = {q: bin_ for q, bin_ in places[at].items() if bin_ != place}
                break


# --- survival -------------------------------------------------------------------------------


def _survival(frame: _Frame) -> SurvivalEntry | None:
    asked = frame.asked.survival
    if asked is None:
        return None
    events, lost = frame.sums.counts["events"], frame.sums.counts["lost"]
    # Groups' curves, or everybody's: with both, a group's would follow from the others'.
    parts = frame.parts or [list(range(len(events)))]
    labels = frame.labels or ("all",)
    step = asked.horizon / asked.bins
    made = [
        kaplan_meier(*pair)
        for pair in zip(sums_of(events, parts), sums_of(lost, parts), strict=True)
    ]
    curves = tuple(
        CurveEntry(label=label, n=round(float(curve.at_risk[0])), steps=_steps(curve, frame, step))
        for label, curve in zip(labels, made, strict=True)
    )
    compare = len(curves) > 1 and all(curve.steps for curve in curves)
    return SurvivalEntry(
        time=asked.time,
        unit=asked.unit,
        horizon=asked.horizon,
        step=step,
        curves=curves,
        pooled=_pooled_test(frame) if compare else None,
        stratified=_stratified_test(frame) if compare else None,
    )


def _steps(curve: Curve, frame: _Frame, width: float) -> tuple[Step, ...]:
    found: list[Step] = []
    before = -1
    for at in safe_steps(curve, frame.least):
        span = slice(before + 1, at + 1)
        found.append(
            Step(
                time=at * width,
                at_risk=int(curve.at_risk[at] - curve.events[at] - curve.lost[at]),
                events=int(curve.events[span].sum()),
                lost=int(curve.lost[span].sum()),
                survival=round(float(curve.survival[at]), _DIGITS),
                low=_bound(float(curve.low[at])),
                high=_bound(float(curve.high[at])),
            )
        )
        before = at
    return tuple(found)


def _bound(value: float) -> float | None:
    return None if math.isnan(value) else round(value, _DIGITS)


def _known_parts(frame: _Frame) -> Parts:
    """Return the groups that a test compares: rows of an unknown group are in none."""
    last = counting.columns(frame.study) - 1
    parts = ([place for place in part if place != last] for part in frame.parts)
    return [part for part in parts if part]


def pooled_terms(sums: Sums, parts: Parts) -> tuple[Floats, Floats]:
    """Return the log-rank's O - E and covariance of groups on the grid, all hospitals as one."""
    events, lost = sums_of(sums.counts["events"], parts), sums_of(sums.counts["lost"], parts)
    leaving = events + lost[:, :-1]
    total = events.sum(axis=1) + lost.sum(axis=1)
    before = np.concatenate([np.zeros((len(parts), 1)), leaving.cumsum(axis=1)[:, :-1]], axis=1)
    return counting.logrank_sums(events.T, (total[:, None] - before).T)


def stratified_terms(sums: Sums, parts: Parts) -> tuple[Floats, Floats]:
    """Return the hospitals' summed O - E and covariance, for groups that were put together."""
    excess, variance = sums.moments["logrank.excess"], sums.moments["logrank.variance"]
    return sums_of(excess, parts), sums_of(sums_of(variance, parts), parts, axis=1)


def _pooled_test(frame: _Frame) -> Test | None:
    return _test(pooled_terms(frame.sums, _known_parts(frame)))


def _stratified_test(frame: _Frame) -> Test | None:
    return _test(stratified_terms(frame.sums, _known_parts(frame)))


def _test(terms: tuple[Floats, Floats]) -> Test | None:
    found = logrank(*terms)
    if found is None:
        return None
    statistic, freedom, p = found
    return Test(
        chi_square=float(f"{statistic:.{_TEST_DIGITS}g}"),
        df=freedom,
        p=float(f"{p:.{_TEST_DIGITS}g}"),
    )
