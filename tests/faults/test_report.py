"""The report says what was recorded, and the page says what the report says."""

from __future__ import annotations

import json
from typing import Any

from tests.faults.catalogue import FAULTS
from tests.faults.report import PAGE, REPORT, report_of, table_of, with_table

SEEDS = {"first": 0, "count": 200, "failed": []}


def result(fault: str, trials: int, failures: int = 0, **figures: float) -> dict[str, Any]:
    return {
        "fault": fault, "trials": trials, "failures": failures, "figures": figures,
        "seconds": 1.0, "test": "tests/faults/test_a.py::test_a[1]",
    }  # fmt: skip


def outcome(fault: str, test: str, said: str) -> dict[str, Any]:
    return {"faults": [fault], "test": test, "outcome": said, "seconds": 2.0}


def entries(*results: dict[str, Any], outcomes: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    found = report_of(results, outcomes, budget="change", seeds=SEEDS)
    return {entry["fault"]: entry for entry in found["faults"]}


def test_none_of_n_is_told_with_its_bound_and_never_as_never() -> None:
    (entry,) = entries(result("F03", 600)).values()
    assert (entry["trials"], entry["failures"], entry["bound_95"]) == (600, 0, 0.005)


def test_a_fault_that_failed_has_no_such_bound() -> None:
    (entry,) = entries(result("F03", 600), result("F03", 10, 1)).values()
    assert (entry["trials"], entry["failures"], entry["bound_95"]) == (610, 1, None)


def test_counts_add_up_and_of_times_the_longest_is_told() -> None:
    one = result("F01", 5, lost=0, killed=2, recovery_s=1.5)
    two = result("F01", 5, lost=0, killed=3, recovery_s=0.5)
    figures = entries(one, two)["F01"]["figures"]
    assert figures == {"lost": 0, "killed": 5, "recovery_s": 1.5}


def test_a_test_that_recorded_nothing_is_one_trial_and_one_that_was_skipped_none() -> None:
    found = entries(
        result("F64", 10),
        outcomes=(
            outcome("F64", "tests/faults/test_a.py::test_a[1]", "passed"),
            outcome("F64", "tests/unit/test_b.py::test_b", "passed"),
            outcome("F66", "tests/unit/test_b.py::test_c", "failed"),
            outcome("F67", "tests/unit/test_b.py::test_d", "skipped"),
        ),
    )
    assert found["F64"]["trials"] == 11
    assert (found["F66"]["trials"], found["F66"]["failures"]) == (1, 1)
    assert (found["F67"]["trials"], found["F67"]["bound_95"]) == (0, None)


def test_a_test_that_failed_behind_its_figure_counts_once() -> None:
    failed = outcome("F64", "tests/faults/test_a.py::test_a[1]", "failed")
    assert entries(result("F64", 10), outcomes=(failed,))["F64"]["failures"] == 1
    assert entries(result("F64", 10, 2), outcomes=(failed,))["F64"]["failures"] == 2


def test_the_page_tells_the_report_that_is_there() -> None:
    report, page = json.loads(REPORT.read_text()), PAGE.read_text()
    assert with_table(page, report) == page
    assert table_of(report) in page
    assert {entry["fault"] for entry in report["faults"]} <= FAULTS.keys()
    assert all(entry["failures"] == 0 for entry in report["faults"])
