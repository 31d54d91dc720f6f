"""Power cuts: whatever was acknowledged is there afterwards, and the run ends as without them.

The machine on which a process dies loses all that was never flushed (`tests.faults.power`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from common.failpoints import POINTS
from tests.faults import lostwrites
from tests.faults.budget import trials
from tests.faults.lostwrites import Cut
from tests.faults.plan import COORDINATOR, SITES, Act, Fault, Plan, draw
from tests.faults.power import Found, Trial, started
from tests.faults.record import record

pytestmark = pytest.mark.skipif(bool(lostwrites.why_not()), reason=lostwrites.why_not() or "-")

Run = Callable[[Trial], Found]

HERE: Final = sorted(
    point for point in POINTS if not point.startswith(("node.ledger", "node.anchor", "node.rest"))
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lostwrites.build(tmp_path_factory.mktemp("lostwrites"))


@pytest.fixture(scope="module")
def run(library: Path) -> Iterator[Run]:
    with started(library) as run:
        yield run


@pytest.fixture(scope="module")
def undisturbed(run: Run) -> str:
    model = run(Trial(Plan(0, ()))).model
    assert model
    return model


def at(point: str, reach: int = 1, who: str = "") -> Plan:
    """Return a plan in which a machine loses its power at a place; it is back a second later."""
    who = who or (COORDINATOR if point.startswith("coordinator.") else SITES[1])
    return Plan(reach, (Fault(Act.CRASH, who, reach, 1.0, point),))
