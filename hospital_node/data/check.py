"""Whether a hospital's table can take part in a study, and what looks wrong in it.

The whole contract runs first: what it refuses stops the site (`stop`). Then every column is
looked at, all rows at once, for what a contract cannot know: another unit, two columns
exchanged, codes for "not measured", a feature that tells the label (`look`).

A finding says how many rows it is about, suppressed below the policy's smallest cell, and
never a value, a quantile or a row of a patient. Everything stays in the hospital.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.errors import DataError, FedError
from common.site_tables import Table
from common.study import BinaryTarget, Feature, MulticlassTarget, Study, SurvivalTarget
from common.text import show
from common.units import ANALYTES, analyte_of, conversion
from hospital_node.data.cells import is_missing, match, parsed
from hospital_node.data.csv import Raw, TextTable
from hospital_node.data.harmonise import harmonise, read_source
from hospital_node.data.load import SiteData, map_table, prepare
from hospital_node.data.patients import IDENTIFIERS, check_patients, holds_copies

T = TypeVar("T")
Severity = Literal["stop", "look"]
Floats = NDArray[np.float64]

LEAK: Final = 0.99
"""AUROC above which one column alone tells the label."""

_FITS: Final = 0.9
_MISFITS: Final = 0.5
_FEW: Final = 10
_EACH_CLASS: Final = 5
_NAMED: Final = 20
_MARKS: Final = (-1.0, -9.0, -99.0, -999.0, -9999.0, 99.0, 999.0, 9999.0, 99999.0)
_OTHER_UNITS: Final = (
    "mg/dL", "g/dL", "g/L", "mg/L", "ug/dL", "ug/L", "ng/mL", "ng/dL", "mmol/L", "umol/L",
    "nmol/L", "pmol/L", "mm[Hg]", "kPa", "Cel", "[degF]", "K", "kg", "g", "[lb_av]", "m", "cm",
    "mm", "[in_i]", "a", "mo", "wk", "d", "h", "min", "s", "%", "mmol/mol", "10*9/L", "10*3/L",
    "/uL", "U/L", "ukat/L",
)  # fmt: skip
_SCALES: Final = (10.0, 100.0, 1000.0)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found; `rows` is how many it is about, `None` where it is not about rows."""

    name: str
    column: str | None
    severity: Severity
    means: str
    fix: str
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, and the rows of the study if the contract passed."""

    findings: tuple[Finding, ...]
    data: SiteData | None

    @property
    def takes_part(self) -> bool:
        """Whether nothing stops the site."""
        return self.data is not None and all(one.severity != "stop" for one in self.findings)


@dataclass(frozen=True, slots=True)
class _Column:
    """A feature's cells: as text, as numbers (NaN where missing), and where one is present."""

    feature: Feature
    cells: pl.Series
    numbers: Floats
    present: NDArray[np.bool_]

    @property
    def values(self) -> Floats:
        return self.numbers[self.present & np.isfinite(self.numbers)]


def examine(study: Study, table: Table) -> Report:
    """Run the contract, then look at every column; nothing here raises but our own bugs."""
    findings: list[Finding] = []
    raw = _try(lambda: read_source(study, table), findings)
    if raw is None:
        return Report(tuple(findings), None)
    text = _try(lambda: harmonise(study, table, raw), findings)
    data = None
    if text is not None:
        data = _try(lambda: prepare(study, map_table(study, table, raw)), findings)
        findings.extend(_columns(study, text))
    _try(lambda: check_patients(study, table, raw), findings)
    findings.extend(_patients(study, table, raw, text))
    return Report(tuple(findings), data)


def _try(step: Callable[[], T], findings: list[Finding]) -> T | None:
    """Return the step's result, or None with its refusal among the findings."""
    try:
        return step()
    except FedError as failure:
        refused = Finding(
            failure.name.lower().replace("_", "-"), None, "stop", failure.detail, failure.fix
        )
        if refused not in findings:
            findings.append(refused)
        return None


def _columns(study: Study, text: TextTable) -> Iterator[Finding]:
    columns = [
        _column(feature, text.columns[feature.name])
        for feature in study.features
        if feature.type != "image"
    ]
    label = _label(study, text)
    for column in columns:
        yield from _one(column)
        if label is not None:
            yield from _leak(column, label)
    yield from _swapped(columns)
    yield from _classes(study, text, label)


def _column(feature: Feature, cells: pl.Series) -> _Column:
    present = ~is_missing(cells, feature.missing)
    if feature.levels is None:
        return _Column(feature, cells, parsed(cells), present)
    codes = match(cells, feature.levels).astype(np.float64)
    return _Column(feature, cells, np.where(codes < 0, np.nan, codes), present)


def _one(column: _Column) -> Iterator[Finding]:
    feature, values = column.feature, column.values
    name, rows = feature.name, int(column.present.sum())
    if rows == 0:
        yield Finding(
            "all-missing", name, "look", "no row has a value",
            "Map the column in the site manifest, or ask that the study leave it out.",
        )  # fmt: skip
        return
    unread = int((column.present & ~np.isfinite(column.numbers)).sum())
    if unread:
        what = "numbers" if feature.levels is None else "levels of the study"
        yield Finding(
            "unreadable", name, "stop", f"cells that are no {what}",
            "Map them by `levels`, or name them in `missing` of the site manifest.", unread,
        )  # fmt: skip
    if values.size and np.unique(values).size == 1 and rows > 1:
        yield Finding(
            "constant", name, "look", "every row has the same value: nothing can be learnt here",
            "See whether the export lost the column; other hospitals may still differ.", rows,
        )  # fmt: skip
    if feature.levels is None and values.size:
        yield from _numbers(feature, values)


def _numbers(feature: Feature, values: Floats) -> Iterator[Finding]:
    """Look at one column of numbers: codes first, so that they do not pass for a unit."""
    name, (low, high) = feature.name, feature.range or (-np.inf, np.inf)
    codes = _codes(feature, values)
    marked = np.isin(values, codes)
    if marked.any():
        yield Finding(
            "sentinel-code", name, "look",
            "one number stands apart from all others, as a code for 'not measured' does "
            "(such as -9, 0 or 999)",
            f"If it is a code: `missing: {{{name}: [...]}}` in the site manifest.",
            int(marked.sum()),
        )  # fmt: skip
    measured = values[~marked]
    outside = (values < low) | (values > high)
    if outside.any():
        yield Finding(
            "out-of-range", name, "stop", "values outside the study's range",
            "Correct them at the source, or name codes in `missing` of the site manifest.",
            int(outside.sum()),
        )  # fmt: skip
    if feature.range is not None and measured.size:
        yield from _unit(feature, measured, low, high)


def _codes(feature: Feature, values: Floats) -> list[float]:
    """Return the numbers that look like codes: far from every other value of the column."""
    low, high = feature.range or (-np.inf, np.inf)
    found = []
    for code in _MARKS:
        others = values[~np.isin(values, _MARKS)]
        if others.size == 0 or not (values == code).any():
            continue
        apart = code < others.min() - np.ptp(others) / 4 or code > others.max() + np.ptp(others) / 4
        impossible = not low <= code <= high
        if (impossible and not low <= -abs(code) <= high) or apart:
            found.append(code)
    return [*found, *_zeros(feature, values)]


def _zeros(feature: Feature, values: Floats) -> list[float]:
    """Return zero if it cannot be a measurement: outside the range, or alone far below all."""
    positive = values[values > 0]
    if not (values == 0).any() or positive.size == 0 or (values < 0).any():
        return []
    if feature.range is not None and feature.range[0] > 0:
        return [0.0]
    alone = positive.min() > 0.2 * np.median(positive)
    return [0.0] if alone and feature.unit is not None and np.unique(positive).size > _FEW else []


def _unit(feature: Feature, values: Floats, low: float, high: float) -> Iterator[Finding]:
    """Find the conversion that brings what does not fit into the range.

    All values count where half of them do not fit; else those outside do, if they are several.
    Where all fit but lie far from the range's middle, only a conversion of the substance's
    own brings them there.
    """
    inside = (values >= low) & (values <= high)
    whole = float(inside.mean()) < _MISFITS
    odd = values if whole else values[~inside]
    if odd.size >= _EACH_CLASS:
        fitting = [
            what
            for what, changed in _conversions(feature, odd, scales=whole)
            if float(((changed >= low) & (changed <= high)).mean()) >= _FITS
        ]
        if fitting:
            part = "the values" if whole else "the values outside the range"
            units = ", ".join(fitting[:_NAMED])
            yield _unit_finding(feature, f"{part} would fit if they were in {units}", odd.size)
    elif low >= 0 and high > 0 and values.size >= _EACH_CLASS and inside.all():
        yield from _far_from_middle(feature, values, low, high)


def _far_from_middle(
    feature: Feature, values: Floats, low: float, high: float
) -> Iterator[Finding]:
    middle = feature.centre or np.sqrt(max(low, high / 1000) * high)
    typical = float(np.median(values))
    if typical <= 0 or middle <= 0:
        return
    off = abs(np.log(typical / middle))
    if off < np.log(5):
        return
    for what, changed in _conversions(feature, values, scales=False):
        fits = float(((changed >= low) & (changed <= high)).mean()) >= _FITS
        median = float(np.median(changed))
        if fits and median > 0 and abs(np.log(median / middle)) < min(off / 3, np.log(3)):
            yield _unit_finding(
                feature,
                f"the values lie far from the middle of the range, and near it if in {what}",
                values.size,
            )
            return


def _unit_finding(feature: Feature, means: str, rows: int) -> Finding:
    return Finding(
        "likely-unit-error", feature.name, "look", means,
        f"If so: `units: {{{feature.name}: ...}}` in the site manifest; else correct the source.",
        rows,
    )  # fmt: skip


def _conversions(feature: Feature, values: Floats, *, scales: bool) -> Iterator[tuple[str, Floats]]:
    """Yield how the values would read if they were in another unit of the same thing."""
    if feature.unit is not None:
        for other in _OTHER_UNITS:
            try:
                step = conversion(other, feature.unit, _substance(feature))
            except DataError:
                continue
            if (step.factor, step.offset) != (1.0, 0.0):
                yield other, values * step.factor + step.offset
    if scales:
        for scale in _SCALES:
            yield f"a unit {scale:g} times smaller", values / scale
            yield f"a unit {scale:g} times larger", values * scale


def _substance(feature: Feature) -> str | None:
    found = analyte_of(feature.name)
    if found is not None:
        return found
    words = feature.name.lower().replace("-", "_").split("_")
    return next((name for word in words if (name := analyte_of(word)) in ANALYTES), None)


def _accepts(feature: Feature, column: _Column) -> float:
    """Return the share of a column's present cells that another feature's contract takes."""
    cells = column.cells.filter(pl.Series(column.present))
    if len(cells) == 0:
        return 0.0
    if feature.levels is not None:
        return float((match(cells, feature.levels) >= 0).mean())
    numbers = parsed(cells)
    low, high = feature.range or (-np.inf, np.inf)
    fits = (numbers >= low) & (numbers <= high)
    if feature.type == "int":
        fits &= numbers == np.rint(numbers)
    return float(fits.mean())


def _swapped(columns: list[_Column]) -> Iterator[Finding]:
    """Find pairs that fit each other's terms and not their own, or lie much nearer to them."""
    bounded = [one for one in columns if one.feature.range or one.feature.levels]
    own = {one.feature.name: _accepts(one.feature, one) for one in bounded}
    for one, two in combinations(bounded, 2):
        a, b = one.feature, two.feature
        misfit = min(own[a.name], own[b.name]) < _MISFITS
        if not (misfit or _nearer(one, two)):
            continue
        crossed = min(_accepts(b, one), _accepts(a, two))
        if crossed < _FITS or crossed <= min(own[a.name], own[b.name]) - 0.05:
            continue
        yield Finding(
            "swapped-columns", a.name, "look",
            f"its values fit the terms of {show(b.name)}, and those of {show(b.name)} fit its own",
            f"Exchange {a.name} and {b.name} in `columns` of the site manifest, or at the source.",
            int(one.present.sum()),
        )  # fmt: skip


def _nearer(one: _Column, two: _Column) -> bool:
    """Whether two columns of one unit each lie far nearer to the other's middle."""
    a, b = one.feature, two.feature
    if a.unit is None or a.unit != b.unit or a.range is None or b.range is None:
        return False
    if one.values.size < _FEW or two.values.size < _FEW:
        return False

    def off(values: Floats, feature: Feature) -> float:
        low, high = feature.range or (0.0, 1.0)
        return abs(float(np.median(values)) - (low + high) / 2) / (high - low)

    as_is = (off(one.values, a), off(two.values, b))
    crossed = (off(one.values, b), off(two.values, a))
    return sum(crossed) < sum(as_is) / 2 and all(
        new < old for new, old in zip(crossed, reversed(as_is), strict=True)
    )


def _label(study: Study, text: TextTable) -> Floats | None:
    """Return 1 and 0 of a target with two outcomes, NaN where there is none."""
    target = study.target
    match target:
        case BinaryTarget(name=name):
            cells = text.columns[name]
        case SurvivalTarget(event=name):
            cells = text.columns[name]
        case _:
            return None
    if target.rule.numeric:
        numbers = parsed(cells)
        found = [target.rule.matches(one) if np.isfinite(one) else np.nan for one in numbers]
        return np.array(found, np.float64)
    return np.array(
        [target.rule.matches(cell) if cell else np.nan for cell in cells.to_list()], np.float64
    )


def _leak(column: _Column, label: Floats) -> Iterator[Finding]:
    known = np.isfinite(label)
    gone = np.where(column.present, 0.0, 1.0)
    use = known & column.present & np.isfinite(column.numbers)
    numbers = column.numbers[use]
    if column.feature.levels is not None and numbers.size:
        # A level is worth its share of positives, so that any order of levels is one.
        level = numbers.astype(np.int64)
        share = np.bincount(level, label[use]) / np.maximum(np.bincount(level), 1)
        numbers = share[level]
    tells = [("it alone", numbers, label[use]), ("its being missing", gone[known], label[known])]
    for what, score, truth in tells:
        if _auroc(score, truth) > LEAK:
            yield Finding(
                "label-leakage", column.feature.name, "look",
                f"{what} tells the label almost without error: it may come from after the outcome",
                "Ask where the column comes from; leave it out if it is known only afterwards.",
                int(truth.size),
            )  # fmt: skip
            return


def _auroc(score: Floats, truth: Floats) -> float:
    """Return the larger AUROC of both directions; 0.5 over too few of a class."""
    positives = int(truth.sum())
    negatives = truth.size - positives
    if min(positives, negatives) < _EACH_CLASS:
        return 0.5
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    ranks = np.cumsum(count) - (count - 1) / 2
    above = float(ranks[place][truth == 1].sum()) - positives * (positives + 1) / 2
    area = above / (positives * negatives)
    return max(area, 1 - area)


def _classes(study: Study, text: TextTable, label: Floats | None) -> Iterator[Finding]:
    name, present = _target_counts(study, text, label)
    if name is None or not present:
        return
    if len(present) == 1:
        yield Finding(
            "one-class", name, "look",
            "every row has the same outcome: this site alone cannot train or be scored",
            "It may take part all the same; ask whether the export left out the others.",
            present[0],
        )  # fmt: skip
    elif min(present) < _FEW:
        yield Finding(
            "few-events", name, "look", f"an outcome has fewer than {_FEW} rows",
            "Metrics of this site will be suppressed or unsure; a longer period may help.",
            min(present),
        )  # fmt: skip


def _target_counts(
    study: Study, text: TextTable, label: Floats | None
) -> tuple[str | None, list[int]]:
    if isinstance(study.target, MulticlassTarget):
        codes = match(text.columns[study.target.name], study.target.levels)
        return study.target.name, np.unique(codes[codes >= 0], return_counts=True)[1].tolist()
    if label is None:
        return None, []
    target = study.target
    name = target.event if isinstance(target, SurvivalTarget) else getattr(target, "name", None)
    return name, np.unique(label[np.isfinite(label)], return_counts=True)[1].tolist()


def _patients(study: Study, table: Table, raw: Raw, text: TextTable | None) -> Iterator[Finding]:
    """Look for one patient in several rows, and for rows that are copies."""
    known = table.patient_column
    if study.patient_key is None and table.rows is None:
        named = [known] if known else [one for one in raw.header if one.lower() in IDENTIFIERS]
        for heading in named:
            if raw.header.count(heading) != 1:
                continue
            keys = raw.column("patient", heading)
            more = len(keys) - keys.n_unique()
            if more:
                yield Finding(
                    "repeated-patients", heading, "look",
                    "a patient has several rows, and the study takes each for another patient",
                    "Put them together by `rows` in the site manifest, or ask for a patient_key.",
                    more,
                )  # fmt: skip
    if text is None or text.rows < _FEW:
        return
    names = [one for one in text.columns if one != study.patient_key]
    frame = pl.DataFrame({f"c{place}": text.columns[one] for place, one in enumerate(names)})
    if holds_copies(frame):
        yield Finding(
            "duplicate-rows", None, "look", "rows are copies of others, more than chance makes",
            "Remove rows that the export wrote twice.", frame.height - frame.unique().height,
        )  # fmt: skip
