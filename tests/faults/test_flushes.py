"""Each flush of each durable write fails once, or is the last thing that a process comes to.

See `tests.faults.flushes`. Nothing is ever acknowledged that a power cut then takes, and
nothing that a process found and could tell of.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.faults import lostwrites
from tests.faults.campaign import scratch
from tests.faults.flushes import CASES
from tests.faults.record import record

pytestmark = pytest.mark.skipif(
    not lostwrites.can_build(), reason="needs gcc: apt-get install gcc libc6-dev"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lostwrites.build(tmp_path_factory.mktemp("lostwrites"))


def every_flush(library: Path, case: str, rule: str, spoil: str = "") -> list[dict[str, Any]]:
    with scratch() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.flushes", str(folder), case, rule],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "LD_PRELOAD": str(library), "LOSTWRITES_SPOIL": spoil},
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def wrong(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert found
    return [one for one in found if one["wrong"]]


@pytest.mark.fault("F38")
@pytest.mark.parametrize("case", CASES)
def test_after_a_flush_that_failed_nothing_is_acknowledged_that_is_not_durable(
    library: Path, case: str
) -> None:
    """It is written anew, or the process stops; the flush is not just tried again."""
    found = every_flush(library, case, "fail")
    record("F38", trials=len(found), failures=len(wrong(found)))
    assert wrong(found) == []


@pytest.mark.fault("F14")
@pytest.mark.parametrize("case", CASES)
def test_what_a_killed_process_left_is_durable_before_the_next_one_relies_on_it(
    library: Path, case: str
) -> None:
    found = every_flush(library, case, "kill")
    record("F14", trials=len(found), failures=len(wrong(found)), power_cuts=len(found))
    assert wrong(found) == []


PLANTED: Final = {
    "a spool that only flushes again": (
        "spool", "fail",
        "import coordinator.spool as spool\nspool.SpoolFile._reset = lambda self: None",
    ),
    "folders that are not taken over": (
        "session", "kill",
        "import common.state_folder as folder\nfolder.take_over = lambda *a: None",
    ),
    "a log that is not taken over": (
        "facts", "kill",
        "import coordinator.store as store\nstore._take_over = lambda engine: None",
    ),
    "a database without its log": (
        "facts", "fail",
        """
import coordinator.store as store
def settings(connection, record):
    for setting in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute("PRAGMA " + setting)
store._sqlite_settings = settings""",
    ),
}  # fmt: skip
"""A case, a rule, and lines of Python that plant a defect which they find."""


@pytest.mark.parametrize("defect", PLANTED)
def test_a_planted_defect_is_found(library: Path, defect: str) -> None:
    case, rule, spoil = PLANTED[defect]
    assert wrong(every_flush(library, case, rule, spoil))
