"""Every command on the reliability page runs at least one test."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest

from tests.faults.parts import PAGE, ROOT

_TEST: Final = re.compile(r"`pytest ([^`]+)`")
COMMANDS: Final = sorted(set(_TEST.findall(PAGE.read_text())))
KEPT: Final = sorted(path.stem for path in (ROOT / "tests" / "faults" / "kept").glob("*.json"))


def names_of(file: Path) -> list[str]:
    """Return the tests of a file, and what its functions, which may be parameters, are called."""
    tree = ast.parse(file.read_text())
    return [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs_a_test(command: str) -> None:
    where, _, word = command.partition(" -k ")
    path, _, name = where.partition("::")
    names = names_of(ROOT / path)
    tests = [one for one in names if one.startswith("test_")]
    assert name in tests if name else tests
    if word:
        assert any(word in one for one in (*names, *KEPT))


def test_every_plan_that_was_kept_is_told_of() -> None:
    words = [command.partition(" -k ")[2] for command in COMMANDS]
    told = [word for word in words if word]
    assert [plan for plan in KEPT if not any(word in plan for word in told)] == []
