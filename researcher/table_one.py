"""A statistics study's result as the first table of a paper: cells, terminal, Markdown.

Columns: everybody, then the groups. A number has its mean (SD), its median [quartiles] if the
study asked for these three, any other quantile in a row of its own; a level or missing values
have n (%), in per cent of the column's patients. A dash stands for what may not be published.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from common.statistics_file import (
    CategoryEntry,
    CrossTable,
    NumberEntry,
    StatisticsFile,
    SurvivalEntry,
    Test,
)
from common.tables import table
from common.text import escape

DASH: Final = "–"  # noqa: RUF001 - an en dash, as papers set it
_QUARTILES: Final = (0.25, 0.5, 0.75)
_TINY_P: Final = 0.001

NOTES: Final = (
    "Per cent are of all patients of the column.",
    "A dash: fewer than {least} patients, or a figure from which so few would follow.",
    "Quantiles are off by at most half the width of a public bin; see statistics.json.",
)


@dataclass(frozen=True, slots=True)
class Line:
    """A row: `head` names a feature (its cells are then empty) or `label` what the cells are."""

    label: str
    cells: tuple[str, ...]
    head: bool = False


Lines: TypeAlias = list[Line]


def heads(found: StatisticsFile) -> list[str]:
    """Return the columns' heads, with their numbers of patients."""
    first, *groups = found.columns
    named = [f"{found.group_by} {column.label}" for column in groups]
    labels = ["all", *named]
    return [f"{label} (n = {column.n})" for label, column in zip(labels, (first, *groups))]  # noqa: B905


def lines(found: StatisticsFile) -> Lines:
    """Return the table's rows, features in the study's order."""
    made: Lines = []
    for entry in found.features:
        rows = _number(found, entry) if isinstance(entry, NumberEntry) else _category(found, entry)
        made += rows
    return made


def notes(found: StatisticsFile) -> list[str]:
    """Return what a reader has to know, for below the table."""
    return [note.format(least=found.min_cell) for note in NOTES]


def _wide(found: StatisticsFile, cells: Sequence[str]) -> tuple[str, ...]:
    """Fill up the row of what is not broken down."""
    return (*cells, *[""] * (len(found.columns) - len(cells)))


def _share(found: StatisticsFile, counts: Sequence[int | None]) -> tuple[str, ...]:
    cells = []
    for column, count in zip(found.columns, counts, strict=False):
        if count is None:
            cells.append(DASH)
        else:
            cells.append(f"{count} ({100 * count / column.n:.1f})" if column.n else f"{count}")
    return _wide(found, cells)


def _category(found: StatisticsFile, entry: CategoryEntry) -> Lines:
    rows = [Line(f"{entry.name}, n (%)", _wide(found, []), head=True)]
    return rows + [Line(level.label, _share(found, level.counts)) for level in entry.levels]


def _number(found: StatisticsFile, entry: NumberEntry) -> Lines:
    unit = f", {entry.unit}" if entry.unit else ""
    rows = [Line(f"{entry.name}{unit}", _wide(found, []), head=True)]
    digits = _decimals(next((sd for sd in entry.sd if sd), None))
    pairs = zip(entry.mean, entry.sd, strict=True)
    cells = [
        DASH if mean is None else f"{mean:.{digits}f} ({_fixed(sd, digits)})" for mean, sd in pairs
    ]
    rows.append(Line("mean (SD)", _wide(found, cells)))
    rows += _quantiles(found, entry, 0 if entry.whole else digits)
    if any(count != 0 for count in entry.missing):
        rows.append(Line("missing, n (%)", _share(found, entry.missing)))
    return rows


def _quantiles(found: StatisticsFile, entry: NumberEntry, digits: int) -> Lines:
    by_q = {one.q: [_fixed(value, digits) for value in one.values] for one in entry.quantiles}
    rows: Lines = []
    if all(q in by_q for q in _QUARTILES):
        low, middle, high = (by_q.pop(q) for q in _QUARTILES)
        cells = [
            DASH if (a, b, c) == (DASH,) * 3 else f"{b} [{a}, {c}]"
            for a, b, c in zip(low, middle, high, strict=True)
        ]
        rows.append(Line("median [quartiles]", _wide(found, cells)))
    rows += [Line(f"quantile {q:g}", _wide(found, cells)) for q, cells in by_q.items()]
    return rows


def _decimals(sd: float | None) -> int:
    """Return the decimals that show a spread with about two digits."""
    if sd is None or sd <= 0:
        return 1
    return min(6, max(0, 2 - math.ceil(math.log10(sd))))


def _fixed(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


# --- the other tables -----------------------------------------------------------------------


def cross_grid(cross: CrossTable) -> tuple[list[str], list[list[str]]]:
    """Return a cross table's head and rows, with totals."""
    head = [f"{cross.rows} \\ {cross.columns}", *cross.column_labels, "total"]
    body = [
        [label, *(_count(cell) for cell in row), _count(total)]
        for label, row, total in zip(cross.row_labels, cross.counts, cross.row_totals, strict=True)
    ]
    whole = sum(total or 0 for total in cross.row_totals)
    body.append(["total", *(_count(total) for total in cross.column_totals), str(whole)])
    return head, body


def _count(value: int | None) -> str:
    return DASH if value is None else str(value)


def curve_grid(found: StatisticsFile, entry: SurvivalEntry) -> tuple[list[str], list[list[str]]]:
    """Return the curves' published times: survival with its interval, who is left."""
    unit = f" ({entry.unit})" if entry.unit else ""
    head = ["group", f"time{unit}", "events", "censored", "at risk after", "survival (95 % CI)"]
    body = [
        [
            curve_label(found, curve.label),
            f"{step.time:g}",
            str(step.events),
            str(step.lost),
            str(step.at_risk),
            f"{step.survival:.3f} ({_fixed(step.low, 3)} to {_fixed(step.high, 3)})",
        ]
        for curve in entry.curves
        for step in curve.steps
    ]
    return head, body


def curve_label(found: StatisticsFile, label: str) -> str:
    """Return a curve's name: the group's, with the feature that makes the groups."""
    return label if len(found.columns) <= 1 else f"{found.group_by} {label}"


def test_words(entry: SurvivalEntry) -> list[str]:
    """Return the log-rank tests in words."""
    named = (("log-rank", entry.pooled), ("log-rank, stratified by hospital", entry.stratified))
    return [f"{name}: {_test(test)}" for name, test in named if test is not None]


def _test(test: Test) -> str:
    p = f"p < {_TINY_P}" if test.p < _TINY_P else f"p = {test.p:.3f}"
    return f"chi-square {test.chi_square:.2f}, df {test.df}, {p}"


# --- terminal and Markdown ------------------------------------------------------------------


def text(found: StatisticsFile) -> str:
    """Return everything for a terminal; histograms are in the page only."""
    if not found.columns:
        return _nobody(found)
    rows = [(("" if line.head else "  ") + line.label, *line.cells) for line in lines(found)]
    wide = frozenset(range(1, len(found.columns) + 1))
    parts = [table(("", *heads(found)), rows, right=wide), "", *notes(found)]
    for cross in found.cross:
        head, body = cross_grid(cross)
        parts += ["", table(head, body, right=frozenset(range(1, len(head))))]
    if found.survival is not None:
        head, body = curve_grid(found, found.survival)
        parts += ["", f"survival, {escape(found.survival.time)}"]
        parts += [table(head, body, right=frozenset(range(1, len(head))))]
        parts += test_words(found.survival)
    return "\n".join(parts)


def _nobody(found: StatisticsFile) -> str:
    return f"fewer than {found.min_cell} patients in all: nothing may be published"


def markdown(found: StatisticsFile) -> str:
    """Return everything as Markdown tables, for a paper's draft."""
    if not found.columns:
        return _nobody(found) + "\n"
    rows = [
        [f"**{_cell(line.label)}**" if line.head else f"&nbsp;&nbsp;{_cell(line.label)}"]
        + [_cell(cell) for cell in line.cells]
        for line in lines(found)
    ]
    parts = ["**Table 1.** Patients", "", *_pipes(["", *heads(found)], rows), ""]
    parts += notes(found)
    for cross in found.cross:
        head, body = cross_grid(cross)
        parts += ["", f"**{_cell(cross.rows)} by {_cell(cross.columns)}**", ""]
        parts += _pipes([head[0].replace("\\", "/"), *head[1:]], _cells(body))
    if found.survival is not None:
        head, body = curve_grid(found, found.survival)
        parts += [
            "",
            f"**Survival, {_cell(found.survival.time)}**",
            "",
            *_pipes(head, _cells(body)),
            "",
        ]
        parts += test_words(found.survival)
    return "\n".join(parts) + "\n"


def _pipes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table; `rows` are Markdown already (`_cell`), `head` is text."""
    rule = [":---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (list(map(_cell, head)), rule, *rows)]


def _cells(body: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[_cell(cell) for cell in row] for row in body]


def _cell(value: str) -> str:
    """Return text that neither ends a cell nor hides in it."""
    return escape(value).replace("|", "\\|").replace("<", "&lt;")
