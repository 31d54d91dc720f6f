"""What a fault test measured, one line of JSON each in `build/faults/results.jsonl`.

    record("F03", trials=50, failures=0, recovery_p99_s=1.2)

`python -m tests.faults` has each of its parts write elsewhere (`WHERE`), and makes
`reports/faults.json` of the lines.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

SCHEMA: Final = "fedcare.fault/1"
WHERE: Final = "FEDCARE_FAULT_RESULTS"
"""The variable that names another file."""
RESULTS: Final = Path(
    os.environ.get(WHERE) or Path(__file__).parents[2] / "build" / "faults" / "results.jsonl"
)

_began = time.monotonic()


def begin() -> None:
    """A test begins: `seconds` of what it records counts from here."""
    global _began  # noqa: PLW0603 - one process runs one test at a time
    _began = time.monotonic()


def record(fault: str, *, trials: int, failures: int, **figures: float) -> None:
    """Append what trials of a fault gave that went through its cases one by one.

    `figures` are named with their units. Of several records' figures those that are `int` are
    counts and add up; of the others the largest is told.
    """
    _append(fault, trials, failures, figures, drawn=False)


def record_drawn(fault: str, *, trials: int, failures: int, **figures: float) -> None:
    """Append what trials gave that were drawn at random: 3/n bounds what they did not meet."""
    _append(fault, trials, failures, figures, drawn=True)


def _append(
    fault: str, trials: int, failures: int, figures: Mapping[str, float], *, drawn: bool
) -> None:
    line = {
        "schema": SCHEMA,
        "fault": fault,
        "trials": trials,
        "failures": failures,
        "drawn": drawn,
        "figures": figures,
        "seconds": round(time.monotonic() - _began, 3),
        "test": os.environ.get("PYTEST_CURRENT_TEST", "").removesuffix(" (call)"),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:  # one write below a page: lines of two workers never mix
        file.write(json.dumps(line) + "\n")
