"""`reports/faults.json` of what the fault tests recorded, and its table for people."""

from __future__ import annotations

import json
import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tests.faults.catalogue import FAULTS, SIMULATION

SCHEMA: Final = "fedcare.faults/1"
ROOT: Final = Path(__file__).parents[2]
REPORT: Final = ROOT / "reports" / "faults.json"
PAGE: Final = ROOT / "docs" / "reliability.md"
BEGIN: Final = "<!-- begin faults: written by `python -m tests.faults` from reports/faults.json -->"
END: Final = "<!-- end faults -->"
_MOST_FIGURES: Final = 4


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of JSON lines; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report_of(
    results: Iterable[Mapping[str, Any]],
    outcomes: Iterable[Mapping[str, Any]],
    *,
    budget: str,
    seeds: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the report of recorded figures and of tests' outcomes.

    `seeds`: the first seed of the simulation, how many, and those that failed.
    """
    figures, tests = defaultdict(list), defaultdict(list)
    for result in results:
        figures[result["fault"]].append(result)
    for outcome in outcomes:
        for fault in outcome["faults"]:
            tests[fault].append(outcome)
    unknown = sorted((figures.keys() | tests.keys()) - FAULTS.keys())
    found = [_entry(fault, figures[fault], tests[fault]) for fault in (*FAULTS, *unknown)]
    return {
        "schema": SCHEMA,
        "version": version("fedcare"),
        "date": datetime.now(UTC).date().isoformat(),
        "budget": budget,
        "machine": {
            "processors": os.cpu_count(),
            "machine": platform.machine(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "seeds": dict(seeds),
        "faults": [entry for entry in found if entry["trials"] or entry["tests"]],
    }


def _entry(
    fault: str, results: Sequence[Mapping[str, Any]], tests: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return one fault's entry; a test that recorded no figure is one trial."""
    ran = [one for one in tests if one["outcome"] != "skipped"]
    recorded = {_test_of(result["test"]) for result in results}
    plain = [one for one in ran if _test_of(one["test"]) not in recorded]
    trials = sum(result["trials"] for result in results) + len(plain)
    told = {_test_of(result["test"]) for result in results if result["failures"]}
    failures = sum(result["failures"] for result in results)
    failures += sum(one["outcome"] == "failed" and _test_of(one["test"]) not in told for one in ran)
    return {
        "fault": fault,
        "what": FAULTS.get(fault, ""),
        "trials": trials,
        "failures": failures,
        "bound_95": round(3 / trials, 6) if trials and not failures else None,
        "figures": _worst(result["figures"] for result in results),
        "seconds": round(
            sum(result["seconds"] for result in results) + sum(one["seconds"] for one in plain), 1
        ),
        "tests": [
            {key: one[key] for key in ("test", "outcome", "seconds")}
            for one in sorted(tests, key=lambda one: str(one["test"]))
        ],
    }


def _test_of(name: str) -> str:
    return name.partition(" ")[0].partition("[")[0]


def _worst(figures: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the counts added up, and of everything else the largest value."""
    found: dict[str, float] = {}
    for one in figures:
        for name, value in one.items():
            if isinstance(value, int):
                found[name] = found.get(name, 0) + value
            else:
                found[name] = max(found.get(name, value), round(value, 4))
    return found


# --- for people ---------------------------------------------------------------------------------


def table_of(report: Mapping[str, Any]) -> str:
    """Return the page's table of a report."""
    machine = report["machine"]
    seeds = report["seeds"]
    first, last = seeds["first"], seeds["first"] + seeds["count"] - 1
    processors = f"{machine['processors']} processors ({machine['machine']})"
    where = f"Version {report['version']}, {report['date']}, budget `{report['budget']}`"
    how = f"Python {machine['python']}; simulation seeds {first} to {last}"
    lines = [
        f"{where}, {processors}, {how}.",
        "",
        "| Fault | What happens | Trials | Failed | At most (95 %) | Figures |",
        "|---|---|--:|--:|--:|---|",
    ]
    lines += [_row(entry) for entry in report["faults"]]
    return "\n".join(lines) + "\n"


def _row(entry: Mapping[str, Any]) -> str:
    bound = entry["bound_95"]
    most = "" if bound is None or bound >= 1 else f"{100 * bound:.2g} %"
    shown = list(entry["figures"].items())[:_MOST_FIGURES]
    figures = ", ".join(f"{name} {value:g}" for name, value in shown)
    name = "" if entry["fault"] == SIMULATION else entry["fault"]
    cells = (name, entry["what"], f"{entry['trials']:,}", entry["failures"], most, figures)
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def with_table(page: str, report: Mapping[str, Any]) -> str:
    """Return the page with the report's table between its marks."""
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{PAGE.name} has no place for the table")
    return f"{before}{BEGIN}\n\n{table_of(report)}\n{END}{after}"


def write(report: Mapping[str, Any]) -> None:
    """Write the report, and its table into the page."""
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(), report))
