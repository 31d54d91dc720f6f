"""`reports/faults.json`: what the parts recorded, and of each fault all of it together."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.faults.catalogue import FAULTS, POSTGRESQL, TESTS
from tests.faults.parts import PAGE, PICTURE, REPORT, Part
from tests.faults.picture import picture, rows_of
from tests.faults.table import with_table

SCHEMA: Final = "fedcare.faults/2"
RUNS: Final = "runs"

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
            # What is killed, and at which of its steps, a campaign draws.
            drawn = part["part"] != TESTS or result.get("drawn", False)
            figures[own].append({**result, "drawn": drawn})
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
    drawn = sum(result["trials"] for result in results if result["drawn"])
    return {
        "fault": fault,
        "what": FAULTS.get(fault, ""),
        "trials": trials,
        "failures": failures,
        "drawn": drawn,
        "bound_95": round(3 / drawn, 6) if drawn and not failures else None,
        "figures": _together(results),
        "seconds": round(
            sum(result["seconds"] for result in results) + sum(one["seconds"] for one in plain), 1
        ),
        "tests": len(ran),
        "skipped": {one["test"]: one["why"] for one in tests if one["outcome"] == "skipped"},
    }


def _test_of(name: str) -> str:
    return name.partition(" ")[0].partition("[")[0]


def _together(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the counts added up, the percentiles of most trials, else the largest value.

    Every result of a campaign says how many runs all of the campaign compared.
    """
    found: dict[str, float] = {name: 0 for result in results for name in result["figures"]}
    new, runs = set(found), dict[str, int]()
    for result in sorted(results, key=lambda one: one["trials"]):
        for name, value in result["figures"].items():
            if name == RUNS:
                runs[result["test"]] = value
                found[name] = sum(runs.values())
            elif isinstance(value, int):
                found[name] += value
            elif name in new or "_p50_" in name or "_p99_" in name:
                found[name] = round(value, 4)
            else:
                found[name] = max(found[name], round(value, 4))
            new.discard(name)
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
