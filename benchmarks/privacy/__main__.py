"""All attacks, one after another, and the tables and pictures of README.md.

python -m benchmarks.privacy             measure, then write the page
python -m benchmarks.privacy --quick     fewer trials; the page stays as it is
python -m benchmarks.privacy --page      the page again from the figures under build/
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.privacy import differencing, epsilon, inversion, membership, sampler
from benchmarks.privacy.plots import epsilon_picture, inversion_picture
from benchmarks.privacy.report import BUILD, Report, Table, measured

PAGE: Final = Path(__file__).resolve().parent / "README.md"
SCRIPTS: Final[Mapping[str, Callable[[bool], Sequence[Table]]]] = {
    "sampler": sampler.measure,
    "epsilon": epsilon.measure,
    "inversion": inversion.measure,
    "membership": membership.measure,
    "differencing": differencing.measure,
}
_PLACE: Final = re.compile(r"(<!-- table ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def stored(name: str) -> Report:
    """Return what a script measured last, from build/.

    Raises:
        OSError: it has not been run.
    """
    data = json.loads((BUILD / f"{name}.json").read_text(encoding="utf-8"))
    tables = tuple(
        Table(table, tuple(rows[0]), tuple(tuple(row.values()) for row in rows))
        for table, rows in data["tables"].items()
    )
    return Report(name, tables, data["quick"], data["seconds"])


def runs_table(reports: Sequence[Report]) -> Table:
    """Return how long each script took."""
    rows = [(f"`python -m benchmarks.privacy.{r.name}`", round(r.seconds)) for r in reports]
    return Table("runs", ("command", "seconds"), (*rows, ("all", sum(row[1] for row in rows))))


def filled(page: str, tables: Mapping[str, Table]) -> str:
    """Return the page with every table in its place.

    Raises:
        KeyError: the page asks for a table that nothing measures.
    """

    def fill(place: re.Match[str]) -> str:
        return f"{place[1]}\n{tables[place[2]].markdown()}\n\n{place[3]}"

    return _PLACE.sub(fill, page)


def write_page(reports: Sequence[Report]) -> None:
    """Write tables and pictures of the page."""
    tables = {table.name: table for report in reports for table in report.tables}
    tables["runs"] = runs_table(reports)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")
    epsilon_picture(tables["epsilon"], PAGE.parent / "epsilon.svg")
    inversion_picture(tables["inversion-error"], "mlp 64-64", PAGE.parent / "inversion.svg")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.privacy")
    parser.add_argument("--quick", action="store_true", help="fewer trials; no page")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    given = parser.parse_args()
    if given.page:
        write_page([stored(name) for name in SCRIPTS])
        return
    reports = []
    for name, measure in SCRIPTS.items():
        reports.append(measured(name, measure, quick=given.quick))
        for table in reports[-1].tables:
            sys.stdout.write(f"{table.name}\n{table.plain()}\n\n")
        sys.stdout.flush()
    sys.stdout.write(runs_table(reports).plain() + "\n")
    if not given.quick:
        write_page(reports)


if __name__ == "__main__":
    main()
