"""SIGTERM in every phase, to real processes: they end in order, and the run goes on as if nothing.

A coordinator or node that is told to stop takes no new round and parks the open one: every step
is on disk before it is acted on, so there is nothing to finish first. Started again it goes on
with the same round, the same survivor set, the same sealed vector.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from common.clock import SystemClock
from common.identity import load_identity
from common.study import canonical_json
from researcher.client import Client
from researcher.local import FederationPlan, LocalFederation, SitePlan, build, free_address
from tests import forked
from tests.faults.budget import Budget, budget, trials
from tests.faults.record import record
from tests.small_study import TIMING, small_study, write_table
from tests.zygote import Zygote

pytestmark = pytest.mark.slow

SITES = ("east", "north", "south")
ROUNDS = trials(change=3, nightly=8, release=8)
STUDY = small_study(ROUNDS, 3, deadline="30s", local_steps=300)

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


@pytest.fixture(scope="module", autouse=True)
def _zygote() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOG_FORMAT", "json")
        forked.services_of(ZYGOTE, patch)
        yield
    ZYGOTE.close()


class Federation:
    """A running federation of real processes, and what one of them says from now on."""

    def __init__(self, inner: LocalFederation) -> None:
        self._inner = inner
        self._passed: dict[str, int] = {}

    def _lines(self, who: str) -> list[dict[str, Any]]:
        text = self._inner.children[who].words.read_text("utf-8")
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    async def until(self, who: str, event: str, *, after: int | None = None) -> dict[str, Any]:
        passed = self._passed.get(who, 0) if after is None else after
        async with asyncio.timeout(60):
            while True:
                for place, line in enumerate(self._lines(who)):
                    if place >= passed and line["event"] == event:
                        self._passed[who] = place + 1
                        return line
                await asyncio.sleep(0.005)

    async def stop(self, who: str) -> tuple[int, float]:
        """Send one SIGTERM; return the exit code and how long it took."""
        process, began = self._inner.children[who].process, time.monotonic()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            code = await process.wait()
        took = time.monotonic() - began
        own = self._lines(who)
        assert [line["event"] for line in own[-2:]][-1] == "service.stopped"
        assert not [line for line in own if line["event"] == "internal.error"]
        self._passed[who] = len(own)
        return code, took

    async def start(self, who: str) -> None:
        plan = self._inner.plan
        if who == "coordinator":
            arguments, folder = ["coordinator", "serve"], plan.coordinator_folder
        else:
            arguments, folder = ["node", "serve"], plan.site_folder(who)
        config = "coordinator.yaml" if who == "coordinator" else "node.yaml"
        await self._inner.children.start(who, [*arguments, "--config", config], folder)

    async def model(self) -> str:
        """Wait for the end of the run; return the released model's digest."""
        await self.until("coordinator", "run.finished", after=0)
        state = self._inner.plan.site_folder("east") / "state"
        [found] = state.glob("releases/*/model.safetensors")
        return hashlib.sha256(found.read_bytes()).hexdigest()


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Federation]:
    await asyncio.to_thread(folder.mkdir)
    tables = [SitePlan(site, write_table(folder / f"{site}.csv", 1)) for site in SITES]
    plan = FederationPlan(folder / "fed", "heart", STUDY, tables, {**TIMING, "heartbeat": "1s"})
    address = free_address()
    build(plan, address)
    async with LocalFederation(plan, address) as inner:
        await inner.start()
        me = load_identity(plan.researcher_folder, now_unix=SystemClock().unix())
        async with Client(address, me) as client:
            await client.submit(canonical_json(STUDY))
            yield Federation(inner)


@pytest.mark.fault("F16")
@pytest.mark.timeout(240)
async def test_one_signal_in_any_phase_parks_the_round_and_the_model_is_the_same(
    tmp_path: Path,
) -> None:
    async with running(tmp_path / "alone") as federation:
        alone = await federation.model()
    took: dict[str, list[float]] = {"coordinator": [], "node": []}
    async with running(tmp_path / "stopped") as federation:
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
