"""A hospital that says too much: others' messages do not queue behind it, facts stay few."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from common.messages import Hello, Objection, StudyDecision, StudyOffer, Verdict
from common.secagg.messages import Ready, Refused
from common.study import config_hash
from coordinator import driver as module
from coordinator import run, run_members
from coordinator.driver import MOST_UNHANDLED
from coordinator.run_state import FromNode
from tests.run_world import RUN, RunWorld
from tests.security.desk import Desk


async def test_a_flood_waits_outside_the_coordinators_memory(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.serving.cancel()  # nothing is handled for now
    await asyncio.gather(desk.serving, return_exceptions=True)
    liar, honest = desk.world.at(0), desk.world.at(1)
    for node in (liar, honest):
        desk.service.connect(node)
        await desk.service.receive(node, "", Hello("x", 1, ()))
    waiting = desk.driver._events.qsize()

    async def flood() -> None:
        while True:
            await desk.service.receive(liar, "pattern", Refused(b"", "CLOSED", "no"))

    flooding = asyncio.create_task(flood())
    for _ in range(10 * MOST_UNHANDLED):
        await asyncio.sleep(0)
    assert desk.driver._events.qsize() == waiting + MOST_UNHANDLED
    await asyncio.wait_for(desk.service.receive(honest, "pattern", Refused(b"", "CLOSED", "")), 5)
    desk.serving = asyncio.create_task(desk.driver.run())
    await asyncio.wait_for(desk.service.receive(liar, "pattern", Refused(b"", "CLOSED", "")), 5)
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    await desk.close()


async def test_hello_said_again_tells_nothing_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    node = desk.world.at(0)
    outbox = desk.service.connect(node)
    for _ in range(100):
        await desk.service.receive(node, "", Hello("x", 1, ()))
    await asyncio.sleep(0.01)
    outbox.close()
    told = [step async for _, step in outbox.messages()]
    assert len([step for step in told if isinstance(step, StudyOffer)]) == 1
    await desk.close()


def test_a_hospital_that_keeps_changing_its_mind_fills_no_disk() -> None:
    world = RunWorld()
    world.says[world.at(3)] = None
    world.begin()
    before = len(world.facts)
    for number in range(100):
        objections = (Objection("BUSY", str(number)),)
        decision = StudyDecision(RUN, config_hash(world.study), Verdict.REFUSED, objections)
        world.hear(world.at(0), decision)
    assert len(world.facts) <= before + run_members.MOST_DECISIONS
    assert world.refused[-1].name == "OUT_OF_TURN"


async def test_a_message_that_fails_in_an_unknown_way_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path)
    handle = run.handle
    seen = itertools.count()

    def fails_once(state: Any, event: Any, ctx: Any) -> Any:  # noqa: ANN401 - passes on
        if isinstance(event, FromNode) and not next(seen):
            raise KeyError("x")
        return handle(state, event, ctx)

    monkeypatch.setattr(module, "handle", fails_once)
    node = desk.world.at(0)
    outbox = desk.service.connect(node)
    await desk.service.receive(node, "", Hello("x", 1, ()))
    for _ in range(2):
        await desk.service.receive(node, "pattern", Ready(b"", 0, b""))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    assert not desk.serving.done()
    outbox.close()
    told = [step async for _, step in outbox.messages() if isinstance(step, Refused)]
    assert [step.code for step in told] == ["BAD_MESSAGE", "OUT_OF_TURN"]
    await desk.close()


async def test_a_bug_of_our_own_still_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path)

    def fails(*_: Any) -> Any:  # noqa: ANN401
        raise KeyError("x")

    monkeypatch.setattr(module, "handle", fails)
    desk.service.connect(desk.world.at(0))
    await desk.service.receive(desk.world.at(0), "", Hello("x", 1, ()))
    with pytest.raises(KeyError):
        await asyncio.wait_for(desk.serving, 5)
