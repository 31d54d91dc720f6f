"""A federation of real processes that a test stops, kills and starts again, by what they say."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from common.clock import SystemClock
from common.identity import load_identity
from common.study import Study, canonical_json
from researcher.client import Client
from researcher.local import FederationPlan, LocalFederation, SitePlan, build, free_address
from tests.small_study import TIMING, write_table

PATIENCE_S: Final = 150.0
"""For what takes seconds: the machine may be busy with much else."""


class Federation:
    """A running federation of real processes, and what one of them says from now on."""

    def __init__(self, inner: LocalFederation) -> None:
        self._inner = inner
        self._passed: dict[str, int] = {}

    def lines(self, who: str) -> list[dict[str, Any]]:
        """Return what a process has logged so far, over all its starts."""
        text = self._inner.children[who].words.read_text("utf-8")
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def said(self, who: str, since: str) -> list[str]:
        """Return the events of a process from the last one of that name on."""
        events = [line["event"] for line in self.lines(who)]
        return events[len(events) - 1 - events[::-1].index(since) :]

    async def until(self, who: str, event: str, *, after: int | None = None) -> dict[str, Any]:
        passed = self._passed.get(who, 0) if after is None else after
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for place, line in enumerate(self.lines(who)):
                    if place >= passed and line["event"] == event:
                        self._passed[who] = place + 1
                        return line
                await asyncio.sleep(0.005)

    async def stop(self, who: str, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Send one signal; return the exit code and how long it took."""
        process, began = self._inner.children[who].process, time.monotonic()
        process.send_signal(number)
        async with asyncio.timeout(PATIENCE_S):
            code = await process.wait()
        took = time.monotonic() - began
        own = self.lines(who)
        assert [line["event"] for line in own[-2:]][-1] == "service.stopped"
        assert not [line for line in own if line["event"] == "internal.error"]
        self._passed[who] = len(own)
        return code, took

    async def dies(self, who: str) -> None:
        """Wait for the end of a process that was started to kill itself somewhere."""
        async with asyncio.timeout(PATIENCE_S):
            assert await self._inner.children[who].process.wait() == -signal.SIGKILL
        self._passed[who] = len(self.lines(who))

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


def _nothing(_: FederationPlan) -> None:
    pass


@asynccontextmanager
async def running(
    folder: Path,
    study: Study,
    sites: Sequence[str],
    change: Callable[[FederationPlan], None] = _nothing,
) -> AsyncIterator[Federation]:
    """Run a study over small tables; `change` may alter the files before anything starts."""
    await asyncio.to_thread(folder.mkdir)
    tables = [SitePlan(site, write_table(folder / f"{site}.csv", 1)) for site in sites]
    plan = FederationPlan(folder / "fed", "heart", study, tables, {**TIMING, "heartbeat": "1s"})
    address = free_address()
    build(plan, address)
    change(plan)
    async with LocalFederation(plan, address) as inner:
        await inner.start()
        me = load_identity(plan.researcher_folder, now_unix=SystemClock().unix())
        async with Client(address, me) as client:
            await client.submit(canonical_json(study))
            yield Federation(inner)
