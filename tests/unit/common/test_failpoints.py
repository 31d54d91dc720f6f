"""Failpoints: each place is known, does nothing unless armed, and is not to be armed at a site."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import failpoints
from common.errors import ConfigError
from common.failpoints import POINTS, VARIABLE, arm, failpoint, install, parse, passes

ROOT = Path(__file__).parents[3]
SHIPPED = ("common", "coordinator", "hospital_node", "researcher")
STORE = ("run", "facts", "epoch", "release", "end")


@pytest.fixture(autouse=True)
def _unarmed() -> Iterator[None]:
    yield
    install(None)


def places() -> Counter[str]:
    """Every literal name that the code says, `coordinator.{what}...` spelled out."""
    found: Counter[str] = Counter()
    for file in (path for part in SHIPPED for path in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id not in ("failpoint", "passes") or file.name == "failpoints.py":
                continue
            match node.args[0]:
                case ast.Constant(value=str(name)):
                    found[name] += 1
                case ast.JoinedStr(values=[_, _, ast.Constant(value=str(end))]):
                    found.update(f"coordinator.{what}{end}" for what in STORE)
                case other:
                    pytest.fail(f"{file.name}: {ast.dump(other)}")
    return found


def test_the_code_has_each_place_of_the_catalogue_once_and_no_other() -> None:
    assert places() == dict.fromkeys(POINTS, 1)


def test_a_place_that_is_not_armed_does_nothing() -> None:
    failpoint("node.file.after")
    assert passes("node.send")


def test_an_order_counts_how_often_its_place_is_reached() -> None:
    install(failpoints._Armed(parse("node.send=drop@2, node.file.after=error:ENOSPC@2+")))
    assert [passes("node.send") for _ in range(3)] == [True, False, True]
    failpoint("node.file.after")
    for _ in range(2):
        with pytest.raises(OSError, match=r"ordered at node\.file\.after"):
            failpoint("node.file.after")
    failpoint("node.file.before_fsync")


@pytest.mark.parametrize(
    "text",
    [
        "nowhere=kill",
        "node.send=die",
        "node.send",
        "node.send=error:EWHAT",
        "node.send=kill@x",
        ",",
    ],
)
def test_an_order_for_no_place_or_action_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=VARIABLE):
        parse(text)


def test_an_installed_distribution_cannot_be_armed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_is_checkout", lambda: False)
    arm({})
    with pytest.raises(ConfigError, match="no source checkout"):
        arm({VARIABLE: "node.send=kill"})
    assert failpoints._hook is None


@pytest.mark.parametrize(("act", "code"), [("kill", -9), ("exit", 1)])
def test_a_process_dies_where_it_was_told_to(act: str, code: int) -> None:
    script = (
        "from common.failpoints import *\n"
        "import os; arm(os.environ)\n"
        "failpoint('node.send'); print('once', flush=True)\n"
        "failpoint('node.send'); print('twice', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False,
        env={VARIABLE: f"node.send={act}@2"}, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("once\n", code)
