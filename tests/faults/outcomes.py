"""A pytest plugin: how each test of a fault ended, one line each, beside the figures.

python -m pytest -p tests.faults.outcomes -m fault tests
"""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Final

import pytest

from tests.faults.record import RESULTS

OUTCOMES: Final = RESULTS.with_name("outcomes.jsonl")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write down what became of a test that is about a fault."""
    report = yield
    marks = [mark.args[0] for mark in item.iter_markers("fault")]
    over = report.when == "call" or not report.passed
    if marks and over:
        line = {
            "faults": marks,
            "test": item.nodeid,
            "outcome": report.outcome,
            "why": _why(report) if report.skipped else "",
            "seconds": round(report.duration, 3),
        }
        OUTCOMES.parent.mkdir(parents=True, exist_ok=True)
        with OUTCOMES.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return report


def _why(report: pytest.TestReport) -> str:
    """Return the reason of a skip."""
    found = report.longrepr
    return found[2].removeprefix("Skipped: ") if isinstance(found, tuple) else ""
