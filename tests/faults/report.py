"""`reports/faults.json`: what the parts recorded, and of each fault all of it together."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from tests.faults.catalogue import FAULTS, POSTGRESQL
from tests.faults.parts import PAGE, PICTURE, REPORT, Part
from tests.faults.picture import picture, rows_of
from tests.faults.table import with_table

SCHEMA: Final = "fedcare.faults/2"

Report = dict[str, Any]


def merged(report: Report, parts: Sequence[Part]) -> Report:
    """Return a report in which `parts` have taken the place of those of their name."""
    names = {part["part"] for part in parts}
    return report_of([*(part for part in report["parts"] if part["part"] not in names), *parts])


def report_of(parts: Sequence[Part]) -> Report:
    """Return the report of parts: an entry for each fault that was tried."""
    figures, tests = defaultdict(list), defaultdict(list)
    for part in parts:
        for result in part["results"]:
            own = POSTGRESQL if part["part"] == POSTGRESQL else result["fault"]
            figures[own].append(result)
        for outcome in part["outcomes"]:
            for fault in outcome["faults"]:
                tests[fault].append(outcome)
    unknown = sorted((figures.keys() | tests.keys()) - FAULTS.keys())
    found = [_entry(fault, figures[fault], tests[fault]) for fault in (*FAULTS, *unknown)]
    return {
        "schema": SCHEMA,
        "faults": [entry for entry in found if entry["trials"] or entry["skipped"]],
        "parts": list(parts),
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
        "tests": len(ran),
        "skipped": sorted(one["test"] for one in tests if one["outcome"] == "skipped"),
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


def read() -> Report:
    """Return the report that is there; an empty one if there is none."""
    if not REPORT.exists():
        return report_of([])
    report: Report = json.loads(REPORT.read_text())
    return report if report["schema"] == SCHEMA else report_of([])


def write(report: Report) -> None:
    """Write the report, its table into the page, and its picture."""
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(), report))
    if rows := rows_of(report):
        PICTURE.write_text(picture(rows))
