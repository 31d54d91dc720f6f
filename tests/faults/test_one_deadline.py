"""Late and slow hospitals: one number decides, in one place (docs/protocol.md, 5.2 and 13)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]

DECIDES: Final = {("common/secagg/coordinator_step.py", "wait_s")}
"""Turns the round's deadline into how long the coordinator waits, for whatever it waits."""

SHOWS: Final = {
    ("coordinator/metrics.py", "take_picture"): "the time left, for monitoring",
    ("coordinator/doctor.py", "_until"): "until when the open round waits, for operators",
    ("coordinator/run_words.py", "_tell_opened"): "the log line of a round's beginning",
}
BEGINS_ANEW: Final = {("coordinator/run_rounds.py", "worth_another_header")}
"""Until when a round may begin anew for a hospital that lost its nonce (13): earlier, not later."""
CHECKS: Final = {
    ("common/secagg/node_header.py", "_check_numbers"): "no longer than the study's",
    ("common/secagg/rules.py", "check_floors"): "no longer than the hospital's",
}
OWN: Final = {
    ("hospital_node/jobs.py", "_make"): "a padded input waits for half of it (10.7)",
    ("hospital_node/task.py", "tick"): "keys go after an hour and three deadlines (18)",
}
"""What a hospital does by itself; none of it says that somebody is late."""


def readers() -> Iterator[tuple[str, str]]:
    """Each function of the services that reads a header's `deadline_ms`."""
    for package in ("common", "coordinator", "hospital_node"):
        for path in (ROOT / package).rglob("*.py"):
            for function in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and any(
                    isinstance(part, ast.Attribute)
                    and part.attr == "deadline_ms"
                    and "header" in ast.unparse(part.value)
                    for part in ast.walk(function)
                ):
                    yield str(path.relative_to(ROOT)), function.name


@pytest.mark.fault("F18")
def test_one_function_decides_how_long_a_round_waits() -> None:
    assert set(readers()) == (DECIDES | BEGINS_ANEW | SHOWS.keys() | CHECKS.keys() | OWN.keys())
