"""The walk of a round in docs/architecture.md leads to functions that exist and are used."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WALK = re.findall(r"^\| (\d+) \| ([^|]+) \| `([^`]+\.py)` \| `([\w.]+)` \|$", PAGE, re.MULTILINE)


@cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def found(path: str, name: str) -> bool:
    """Return whether a file defines a function, class or method of that dotted name."""
    body: list[ast.stmt] = tree(path).body
    for part in name.split("."):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        inner = [node for node in body if isinstance(node, kinds) and node.name == part]
        if not inner:
            return False
        body = inner[0].body
    return True


def test_the_walk_is_numbered_from_1() -> None:
    assert [int(row[0]) for row in WALK] == list(range(1, len(WALK) + 1))
    assert len(WALK) > 30


@pytest.mark.parametrize(("path", "name"), [(row[2], row[3]) for row in WALK])
def test_every_function_of_the_walk_is_where_the_page_says(path: str, name: str) -> None:
    assert found(path, name), f"{path} has no {name}"


def test_a_function_that_is_not_there_is_noticed() -> None:
    assert not found("coordinator/run.py", "_gathers")


@pytest.mark.parametrize("name", sorted({row[3].split(".")[-1] for row in WALK}))
def test_every_function_of_the_walk_is_used(name: str) -> None:
    """A reader gets there by "go to definition" from some other line of the code."""
    uses = 0
    for folder in ("common", "coordinator", "hospital_node", "researcher"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            uses += len(re.findall(rf"\b{name}\b", text))
            uses -= len(re.findall(rf"\b(?:def|class) {name}\b", text))
    assert uses, name


def test_files_that_the_page_names_exist() -> None:
    for name in re.findall(r"`((?:\w+/)+[\w.]*)`", PAGE):
        assert (ROOT / name).exists(), name
