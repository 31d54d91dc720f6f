"""Real processes are killed at every phase; nothing is lost, nothing counts twice.

One federation of real processes on real mTLS goes from run to run of the indicator task while
its processes are killed, each fault of the table at its own points; every run that went on
meanwhile is compared by `tests.faults.checker`. Each test then holds one fault's part of it.
More trials, at random points and times: `python -m tests.faults.processes`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.faults.budget import trials
from tests.faults.checker import COORDINATOR
from tests.faults.kills import FAULT_IN, Strike, Trial
from tests.faults.postgres import Postgres, why_not
from tests.faults.processes import MOST_RECOVERY_S, Campaign, figures_of
from tests.faults.record import record
from tests.faults.running import federation_at

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(trials(change=600, nightly=1_200, release=1_200)),
]

_PATIENCE_S = 90.0
_VICTIM = "va"
_HUB = (
    ("coordinator.run.before_commit", 1),
    ("coordinator.run.after_commit", 1),
    ("coordinator.epoch.before_commit", 1),
    ("coordinator.epoch.after_commit", 1),
    ("coordinator.facts.before_commit", 7),
    ("coordinator.facts.after_commit", 7),
    ("coordinator.spool.after_write", 2),
    ("coordinator.spool.before_fsync", 1),
    ("coordinator.receipt", 2),
    ("coordinator.sum.before", 1),
    ("coordinator.object.before_fsync", 1),
    ("coordinator.object.after", 1),
    ("coordinator.release.before_commit", 1),
    ("coordinator.end.after_commit", 1),
)
_NODE = (
    ("node.vector.before_fsync", 1),
    ("node.vector.after", 1),
    ("node.upload", 1),
    ("node.receipt", 1),
    ("node.ledger.after", 1),
    ("node.ledger.after", 1),
    ("node.model.before_rename", 1),
)


MOST_GROWN_MB = 64
"""Of the coordinator's memory while a hospital's uploads break off again and again."""


@dataclass
class Story:
    """What came of a campaign: its kills, and what was compared."""

    problem: str = ""
    trials: list[Trial] = field(default_factory=list)
    runs: int = 0
    acknowledged: int = 0
    missed: list[str] = field(default_factory=list)
    told: int = 0
    closed_after_s: float = 0.0
    state_bytes: int = 0
    before_bytes: int = 0
    """The coordinator's state before and after the crash loop and the runs in it."""
    left_bytes: int = -1
    grown_mb: float = 0.0

    def holds(self, fault: str, **figures: float) -> None:
        """Demand that the fault happened, and that all witnesses agreed afterwards."""
        assert not self.problem, self.problem
        of = [one for one in self.trials if one.fault == fault]
        found = figures_of(of)
        record(fault, trials=len(of), failures=0, lost=0, double_counted=0,
               runs=self.runs, **found, **figures)  # fmt: skip
        assert of, f"no kill was {fault}"
        assert found.get("recovery_p99_s", 0.0) <= MOST_RECOVERY_S


Plot = Callable[[Campaign, Story], Coroutine[Any, Any, None]]


async def _all_faults(campaign: Campaign, story: Story) -> None:
    await campaign.undisturbed()
    hub = [Strike(COORDINATOR, point, at) for point, at in _HUB]
    missed = await campaign.chain(COORDINATOR, hub, _PATIENCE_S)
    await campaign.after_a_receipt()
    await campaign.at_connecting(_VICTIM)
    site = [Strike(_VICTIM, point, at) for point, at in _NODE]
    missed += await campaign.chain(_VICTIM, site, _PATIENCE_S)
    story.missed = [str(one) for one in missed]
    await campaign.every_phase(_VICTIM)
    story.told = await campaign.half_told()
    await campaign.power_cut()
    story.grown_mb = await campaign.broken_uploads(
        _VICTIM, trials(change=2, nightly=20, release=20)
    )
    story.before_bytes = campaign.federation.checker.state_bytes()
    loop_s = trials(change=6, nightly=120, release=120)
    story.closed_after_s = await campaign.crash_loop(loop_s)


async def _on_postgresql(campaign: Campaign, story: Story) -> None:
    points = ("coordinator.run.after_commit", "coordinator.facts.before_commit",
              "coordinator.facts.after_commit", "coordinator.end.before_commit")  # fmt: skip
    strikes = [Strike(COORDINATOR, point, 1) for point in points]
    story.missed = [str(one) for one in await campaign.chain(COORDINATOR, strikes, _PATIENCE_S)]


def _told(folder: Path, plot: Plot, store: str | None = None) -> Story:
    """Go through a campaign; a problem is kept, with the folder."""
    story = Story()

    async def go(campaign: Campaign) -> None:
        async with campaign.running():
            await plot(campaign, story)

    with federation_at(folder, store) as federation:
        campaign = Campaign(federation, seed=6)
        try:
            asyncio.run(go(campaign))
        except Exception as problem:  # noqa: BLE001 - each fault's test says so
            story.problem = f"{type(problem).__name__}: {problem}; kept in {folder}"
        story.trials, story.runs = campaign.trials, len(campaign.runs.compared)
        story.acknowledged = len(campaign.runs.acknowledged)
        story.left_bytes = campaign.left_bytes
        story.state_bytes = federation.checker.state_bytes()
    return story


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Story]) -> Story:
    """Return what `make` gives, made by one of the workers for all of them."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, found = shared / name, shared / f"{name}.json"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.exists():
            folder.mkdir()
            found.write_text(json.dumps(asdict(make(folder / "federation"))))
    tree = json.loads(found.read_text())
    return Story(**{**tree, "trials": [Trial(**one) for one in tree["trials"]]})


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return _once(tmp_path_factory, "kills", lambda folder: _told(folder, _all_faults))


@pytest.fixture(scope="module")
def on_postgresql(tmp_path_factory: pytest.TempPathFactory) -> Story:
    if why := why_not():
        pytest.skip(why)

    def make(folder: Path) -> Story:
        with Postgres() as server:
            return _told(folder, _on_postgresql, server.url)

    return _once(tmp_path_factory, "kills-postgresql", make)


@pytest.mark.fault("F01")
def test_what_was_submitted_outlives_the_coordinator(story: Story) -> None:
    story.holds("F01")


@pytest.mark.fault("F02")
def test_no_hospital_sees_a_round_that_the_store_does_not_know(story: Story) -> None:
    story.holds("F02", rounds_unknown=0)


@pytest.mark.fault("F03")
def test_an_upload_without_its_receipt_is_sent_again_and_counts_once(story: Story) -> None:
    story.holds("F03")


@pytest.mark.fault("F04")
def test_who_holds_a_receipt_is_in_the_sum(story: Story) -> None:
    story.holds("F04", receipts_without_an_update=0)


@pytest.mark.fault("F05")
def test_a_sum_that_is_opened_again_gives_the_same_model(story: Story) -> None:
    story.holds("F05", other_models=0)


@pytest.mark.fault("F06")
def test_a_round_and_its_model_are_both_there_or_neither(story: Story) -> None:
    story.holds("F06", half_rounds=0)


@pytest.mark.fault("F07")
def test_hospitals_told_before_and_after_a_kill_hold_one_model(story: Story) -> None:
    story.holds("F07", hospitals_told_before=story.told, version_splits=0)


@pytest.mark.fault("F08")
def test_a_killed_node_comes_back_by_itself(story: Story) -> None:
    story.holds("F08")


@pytest.mark.fault("F09")
def test_a_node_killed_while_it_trains_trains_again(story: Story) -> None:
    story.holds("F09")


@pytest.mark.fault("F10")
def test_a_sealed_vector_is_never_drawn_again(story: Story) -> None:
    story.holds("F10", second_drawings=0)


@pytest.mark.fault("F11")
def test_an_upload_that_broke_off_leaves_no_bytes_behind(story: Story) -> None:
    story.holds("F11", bytes_leaked=story.left_bytes, coordinator_grown_mb=story.grown_mb)
    assert story.left_bytes == 0
    assert story.grown_mb < MOST_GROWN_MB


@pytest.mark.fault("F12")
def test_an_upload_that_was_counted_is_not_counted_again(story: Story) -> None:
    story.holds("F12")


@pytest.mark.fault("F13")
def test_a_model_is_there_whole_or_not_at_all(story: Story) -> None:
    story.holds("F13", unverifiable_models=0)


@pytest.mark.fault("F14")
def test_nothing_acknowledged_is_lost_when_all_die_at_once(story: Story) -> None:
    story.holds("F14", submissions_acknowledged=story.acknowledged)


@pytest.mark.fault("F15")
def test_the_round_closes_when_a_crash_loop_ends(story: Story) -> None:
    story.holds(
        "F15",
        closed_after_s=story.closed_after_s,
        state_mb=story.state_bytes / 1e6,
        state_before_mb=story.before_bytes / 1e6,
    )
    assert story.closed_after_s < 60
    assert story.left_bytes == 0, "what no record names"


@pytest.mark.parametrize(
    "phase", [pytest.param(phase, marks=pytest.mark.fault(FAULT_IN[phase])) for phase in FAULT_IN]
)
def test_a_kill_in_any_phase_leaves_the_model_as_it_is_without(story: Story, phase: str) -> None:
    """Each model's digest is held against that of every other run over the same hospitals.

    Who was not back as a round opened is not in it: `tests/simulation/test_crashes.py` has all of
    them wait, and there each model is the undisturbed run's.
    """
    assert not story.problem, story.problem
    assert [one for one in story.trials if one.phase == phase], f"no kill was in {phase}"


def test_every_point_was_reached(story: Story) -> None:
    assert not story.problem, story.problem
    assert story.missed == []


@pytest.mark.fault("F01")
@pytest.mark.fault("F02")
@pytest.mark.fault("F07")
def test_the_same_holds_on_postgresql(on_postgresql: Story) -> None:
    assert not on_postgresql.problem, on_postgresql.problem
    assert on_postgresql.missed == []
    for fault, count in sorted(Counter(one.fault for one in on_postgresql.trials).items()):
        found = figures_of(on_postgresql.trials, fault)
        record(fault, trials=count, failures=0, lost=0, double_counted=0,
               runs_on_postgresql=on_postgresql.runs, **found)  # fmt: skip
        assert found.get("recovery_p99_s", 0.0) <= MOST_RECOVERY_S
