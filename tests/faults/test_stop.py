"""SIGTERM in every phase, to real processes: they end in order, and the run goes on as if nothing.

A coordinator or node that is told to stop takes no new round and parks the open one: every step
is on disk before it is acted on, so there is nothing to finish first. Started again it goes on
with the same round, the same survivor set, the same sealed vector.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from common.failpoints import VARIABLE
from tests import forked
from tests.faults.budget import Budget, budget, trials
from tests.faults.record import record
from tests.faults.stopped import running
from tests.small_study import small_study
from tests.zygote import Zygote

pytestmark = pytest.mark.slow

SITES = ("east", "north", "south")
ROUNDS = trials(change=3, nightly=8, release=8)
STUDY = small_study(ROUNDS, 3, deadline="120s", local_steps=300)

COORDINATOR_PHASES = {
    "idle": "service.started",
    "a round was opened": "round.opened",
    "collecting": "upload.finished",
    "the set is proposed": "round.proposed",
    "the set is certified": "round.certified",
    "the sum is open": "round.summed",
    "the round is closed": "round.closed",
}
NODE_PHASES = {
    "connected": "link.connected",
    "training": "round.training",
    "sending": "upload.started",
    "sent": "upload.finished",
    "round over": "round.closed",
}

if budget() is Budget.CHANGE:
    COORDINATOR_PHASES = {key: COORDINATOR_PHASES[key] for key in ("collecting", "the sum is open")}
    NODE_PHASES = {key: NODE_PHASES[key] for key in ("training", "sent")}

GRACE_S = 10.0
"""What container engines give before they kill."""

ZYGOTE = Zygote(*forked.WORKING)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model of a run that nobody disturbs."""

    async def undisturbed() -> str:
        async with running(tmp_path_factory.mktemp("model") / "alone", STUDY, SITES) as federation:
            return await federation.model()

    return asyncio.run(undisturbed())


@pytest.mark.fault("F16")
@pytest.mark.timeout(500)
async def test_one_signal_in_any_phase_parks_the_round_and_the_model_is_the_same(
    tmp_path: Path, alone: str
) -> None:
    took: dict[str, list[float]] = {"coordinator": [], "node": []}
    async with running(tmp_path / "stopped", STUDY, SITES) as federation:
        for name, who, phases in (
            ("coordinator", "coordinator", COORDINATOR_PHASES),
            ("node", "north", NODE_PHASES),
        ):
            for phase, event in phases.items():
                await federation.until(who, event)
                code, seconds = await federation.stop(who)
                assert code == 0, (who, phase)
                assert seconds < GRACE_S, (who, phase)
                took[name].append(seconds)
                await federation.start(who)
        assert await federation.model() == alone
    figures = {f"shutdown_{who}_max_s": round(max(one), 3) for who, one in took.items()}
    record("F16", trials=sum(map(len, took.values())), failures=0, **figures)


@pytest.mark.fault("F16")
@pytest.mark.timeout(500)
async def test_one_signal_as_the_model_is_published_keeps_nobody_from_it(
    tmp_path: Path, alone: str
) -> None:
    """To the coordinator once it has signed (C6), to a hospital once it has it (N6)."""
    async with running(tmp_path / "published", STUDY, SITES) as federation:
        await federation.until("coordinator", "model.published")
        for who in ("coordinator", "north"):
            if who == "north":
                await federation.until(who, "model.accepted", after=0)
            code, seconds = await federation.stop(who)
            assert code == 0, who
            assert seconds < GRACE_S, who
            await federation.start(who)
        for site in SITES:
            await federation.until(site, "model.accepted", after=0)
        assert await federation.model() == alone
    record("F16", trials=2, failures=0)


@pytest.mark.fault("F16")
@pytest.mark.timeout(500)
async def test_who_is_told_to_drain_finishes_the_open_round_and_begins_no_other(
    tmp_path: Path, alone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "node.upload=delay:1000@1+")  # no round is over in a moment
    took, passed = {}, 0
    async with running(tmp_path / "drained", STUDY, SITES) as federation:
        for name, who, phase, due in (
            ("coordinator", "coordinator", "round.opened", "round.closed"),
            ("node", "north", "round.training", "round.closed"),
        ):
            await federation.until(who, phase, after=passed)
            code, took[name] = await federation.stop(who, signal.SIGUSR1)
            said = federation.said(who, "service.draining")
            assert code == 0, (who, said)
            assert said.count(due) == 1, (who, said)
            assert phase not in said, (who, said)
            passed = len(federation.lines("north"))
            await federation.start(who)
        assert await federation.model() == alone
        rounds = [one for one in federation.lines("coordinator") if one["event"] == "round.closed"]
        assert not any(one.get("dropped") for one in rounds), "all were in every sum"
    figures = {f"drain_{who}_s": round(seconds, 3) for who, seconds in took.items()}
    record("F16", trials=len(took), failures=0, **figures)
