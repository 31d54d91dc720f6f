"""What every script here does the same: read its two switches, print tables, keep the figures."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

BUILD: Final = Path(__file__).resolve().parents[2] / "build" / "privacy"

Cell: TypeAlias = str | int | float | None
"""None: the figure does not exist there."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table of results; `name` is its place on the page of results."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def texts(self) -> list[list[str]]:
        """Return heading and rows as text."""
        return [list(self.columns), *([shown(cell) for cell in row] for row in self.rows)]

    def plain(self) -> str:
        """Return the table for a terminal."""
        texts = self.texts()
        widths = [max(len(row[k]) for row in texts) for k in range(len(self.columns))]
        lines = ("  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) for row in texts)
        return "\n".join(line.rstrip() for line in lines)

    def markdown(self) -> str:
        """Return the table for a page."""
        first, *rest = ("| " + " | ".join(row) + " |" for row in self.texts())
        numbers = [
            all(not isinstance(row[k], str) for row in self.rows) for k in range(len(self.columns))
        ]
        rule = "|" + "|".join("---:" if number else "---" for number in numbers) + "|"
        return "\n".join([first, rule, *rest])


@dataclass(frozen=True, slots=True)
class Report:
    """What one script measured."""

    name: str
    tables: tuple[Table, ...]
    quick: bool = False
    seconds: float = 0.0

    def table(self, name: str) -> Table:
        """Return a table by its name."""
        return next(table for table in self.tables if table.name == name)


def shown(cell: Cell) -> str:
    """Return a figure with as many digits as one reads."""
    match cell:
        case None:
            return "-"
        case float():
            size = abs(cell)
            if size and not 1e-3 <= size < 1e6:  # noqa: PLR2004 - where digits behind the point end
                return f"{cell:.1e}"
            return f"{cell:.3f}" if size < 100 else f"{cell:,.0f}"  # noqa: PLR2004
        case int():
            return f"{cell:,}"
        case str():
            return cell


def measured(name: str, measure: Callable[[bool], Sequence[Table]], *, quick: bool) -> Report:
    """Run a measurement and keep its figures under build/."""
    began = time.perf_counter()
    report = Report(name, tuple(measure(quick)), quick)
    report = replace(report, seconds=time.perf_counter() - began)
    BUILD.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_data(report), indent=1) + "\n"
    (BUILD / f"{name}.json").write_text(text, encoding="utf-8")
    return report


def as_data(report: Report) -> dict[str, object]:
    """Return what is written under build/."""
    return {
        "name": report.name,
        "quick": report.quick,
        "seconds": round(report.seconds, 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tables": {
            table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
            for table in report.tables
        },
    }


def main(name: str, measure: Callable[[bool], Sequence[Table]]) -> None:
    """Run one script from the command line."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.privacy.{name}")
    parser.add_argument("--quick", action="store_true", help="fewer trials, the same code")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    given = parser.parse_args()
    report = measured(name, measure, quick=given.quick)
    if given.json:
        sys.stdout.write(json.dumps(as_data(report), indent=1) + "\n")
        return
    for table in report.tables:
        sys.stdout.write(f"{table.name}\n{table.plain()}\n\n")
    sys.stdout.write(f"{report.seconds:.0f} s; figures in {BUILD / name}.json\n")
