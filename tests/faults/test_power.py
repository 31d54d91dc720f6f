"""Power cuts: whatever was acknowledged is there afterwards, and the run ends as without them.

The machine on which a process dies loses all that was never flushed (`tests.faults.power`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from common.failpoints import POINTS
from tests.faults import lostwrites
from tests.faults.budget import trials
from tests.faults.lostwrites import Cut
from tests.faults.plan import COORDINATOR, SITES, Act, Fault, Plan, draw
from tests.faults.power import Run, Trial, started
from tests.faults.record import record, record_drawn

pytestmark = pytest.mark.skipif(
    not lostwrites.can_build(), reason="needs gcc: apt-get install gcc libc6-dev"
)

HERE: Final = sorted(
    point
    for point in POINTS
    if point.startswith(("coordinator.", "node.file", "node.vector", "node.re"))
)
"""Where the run must end as if nothing had been."""
NO_HEADER_YET: Final = (
    "node.file.before_write",
    "node.file.before_fsync",
    "node.file.before_rename",
)
"""Where it may be a round's header that a node lost: then its nonce is gone with it, the round
begins anew under the next number, and the pattern that hospitals add there is another one."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with started(lostwrites.build(tmp_path_factory.mktemp("lostwrites"))) as run:
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


@pytest.mark.fault("F06")
@pytest.mark.parametrize("point", HERE)
def test_a_power_cut_at_any_step_changes_nothing_in_the_result(
    run: Run, undisturbed: str, point: str
) -> None:
    """Coordinator (F02 to F07) or node (F09 to F13): no receipt without an update, one model."""
    reaches = range(1, 1 + trials(change=1, nightly=5, release=10))
    found = [run(Trial(at(point, reach), cut)) for reach in reaches for cut in _cuts()]
    anew = [one for one in found if one.voided == 1 and point in NO_HEADER_YET]
    rest = [one for one in found if one not in anew]
    wrong = [one for one in found if one.problem]
    wrong += [one for one in rest if one.voided or one.model != undisturbed]
    record("F06" if point.startswith("coordinator.") else "F13", trials=len(found),
           failures=len(wrong), power_cuts=sum(one.cuts for one in found),
           rounds_begun_anew=len(anew))  # fmt: skip
    assert wrong == []
    assert len(anew) <= len(found) // 5, "that a header is lost is the exception"


def _cuts() -> tuple[Cut, ...]:
    return tuple(Cut)[: trials(change=1, nightly=2, release=2)]


@pytest.mark.fault("F14")
def test_a_power_cut_of_everything_loses_nothing(run: Run, undisturbed: str) -> None:
    """At random times; the round that is open is not even voided."""
    count = trials(change=6, nightly=200, release=400)
    found = []
    for seed in range(count):
        when = Fault(Act.POWER, COORDINATOR, 0.35 + 1.9 * seed / count, 0.5)
        found.append(run(Trial(Plan(seed, (when,), 0.1), tuple(Cut)[seed % 2])))
    wrong = [one for one in found if one.problem]
    same = sum(one.model == undisturbed for one in found)
    record("F14", trials=count, failures=len(wrong), models_as_without=same,
           power_cuts=sum(one.cuts for one in found))  # fmt: skip
    assert wrong == []
    assert all(one.cuts == 5 for one in found)


@pytest.mark.fault("F14")
def test_random_faults_with_power_cuts_lose_nothing(run: Run) -> None:
    """Whatever kills a process takes, by chance, its machine's power too."""
    count = trials(change=4, nightly=400, release=800)
    found = [run(Trial(draw(seed), None)) for seed in range(count)]
    wrong = [(seed, one.problem) for seed, one in enumerate(found) if one.problem]
    record_drawn("F14", trials=count, failures=len(wrong),
           power_cuts=sum(one.cuts for one in found))  # fmt: skip
    assert wrong == []


# --- the instrument finds what it is meant to find ------------------------------------------------

_NO_FLUSH = """
import os, types
import {module} as module
without = {{name: lambda handle: None for name in ("fsync", "fdatasync")}}
module.os = types.SimpleNamespace(**{{**vars(os), **without}})
"""
_IMPATIENT = "\nimport tests.faults.simulation as simulation\nsimulation.MOST_S = 60.0"
_SETTINGS = """
import coordinator.store as store
def settings(connection, record):
    cursor = connection.cursor()
    for setting in ("journal_mode=WAL", "synchronous={level}", "secure_delete=ON"):
        cursor.execute("PRAGMA " + setting)
store._sqlite_settings = settings
"""

PLANTED: Final[dict[str, tuple[str, str, int]]] = {
    "a receipt before the spool's flush": (
        _NO_FLUSH.format(module="coordinator.spool"),
        "coordinator.receipt",
        2,
    ),
    "a receipt before its name's": (
        "import coordinator.spool as spool\nspool.Spool.sync_round = lambda self, hd: None",
        "coordinator.receipt",
        2,
    ),
    "a model without its folder's": (
        "import coordinator.objects as objects\nobjects.fsync_folder = lambda path: None",
        "coordinator.facts.after_commit",
        16,
    ),
    "a state folder without its parent's": (
        "import common.state_folder as folder\nfolder.fsync_folder = lambda path: None",
        "node.receipt",
        2,
    ),
    "a node's file without its own": (
        _NO_FLUSH.format(module="hospital_node.files"),
        "node.receipt",
        2,
    ),
    "a vector without its own": (
        _NO_FLUSH.format(module="hospital_node.contribution"),
        "node.upload",
        2,
    ),
    "facts flushed sometimes": (_SETTINGS.format(level="NORMAL"), "coordinator.send", 2),
    "facts flushed never": (_SETTINGS.format(level="OFF"), "coordinator.send", 2),
}
"""A defect, planted by lines of Python, a step at which a power cut shows it, and at which time
that step is reached (where that changed, others are tried)."""


@pytest.mark.parametrize("defect", PLANTED)
def test_a_planted_defect_is_found(run: Run, undisturbed: str, defect: str) -> None:
    spoil, point, first = PLANTED[defect]
    for reach in (first, 2, 4, 6, 8, 12, 16, 20):
        one = run(Trial(at(point, reach)), spoil + _IMPATIENT)
        if one.problem or one.voided or one.model != undisturbed:
            return
    pytest.fail("nothing was found")
