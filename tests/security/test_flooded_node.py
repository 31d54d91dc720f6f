"""A coordinator that says too much: the node's memory and disk stay bounded."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from common.ids import ConfigHash, HeaderDigest, NodeId, RunId, Sha256
from common.messages import CHUNK_BYTES, DownloadChunk, Objection, StudyOffer, Welcome
from common.secagg.messages import Propose, RoundStart
from hospital_node import driver, offers, task
from tests.node_world import TASK, MemoryLink, World, node_id
from tests.wire_samples import HEADER


class _SlowDesk:
    """Counts how many offers it judges at once."""

    def __init__(self) -> None:
        self.now = self.most = self.judged = 0
        self.go = threading.Event()

    def judge(self, _study: bytes, _hash: ConfigHash) -> tuple[Objection, ...]:
        self.now += 1
        self.judged += 1
        self.most = max(self.most, self.now)
        self.go.wait(5)
        self.now -= 1
        return (Objection("POLICY_PURPOSE", "no"),)


def _start(world: World, desk: object | None = None) -> None:
    """Start h1 alone, before a coordinator that offers nothing by itself."""
    world.coordinator._hello = _silent(world)  # type: ignore[method-assign, assignment]
    if desk is None:
        world.start("h1")
    else:
        world.start("h1", lambda parts: dataclasses.replace(parts, desk=desk))  # type: ignore[arg-type]


def _silent(world: World) -> Callable[[NodeId], None]:
    def hello(node: NodeId) -> None:
        world.coordinator.links[node] = world.links[node]
        world.coordinator.send(node, "", Welcome("sim", 10_000))

    return hello


async def test_offers_are_judged_one_at_a_time(tmp_path: Path) -> None:
    world = World(tmp_path)
    desk = _SlowDesk()
    _start(world, desk)
    await world.until(lambda: node_id("h1") in world.coordinator.links)
    for number in range(200):
        offer = dataclasses.replace(world.offer, run_id=RunId(f"run-{number}"))
        world.coordinator.send(node_id("h1"), TASK, offer)
    await world.until(lambda: desk.judged)
    await world.settle()
    node = world.nodes["h1"]
    assert len(node._errands) <= driver.MOST_ERRANDS
    assert world.links[node_id("h1")].inbox.qsize() >= 200 - driver.MOST_ERRANDS - 2
    desk.go.set()
    await world.until(lambda: len(world.coordinator.decisions) == 200)
    assert desk.most == 1
    await world.stop()


async def test_an_offer_its_owner_has_not_signed_leaves_nothing_on_disk(tmp_path: Path) -> None:
    world = World(tmp_path)
    desk = _SlowDesk()
    _start(world, desk)
    await world.until(lambda: node_id("h1") in world.coordinator.links)
    deep = b"[" * 200_000
    world.coordinator.send(
        node_id("h1"), TASK, dataclasses.replace(world.offer, signature=b"forged")
    )
    odd = StudyOffer(
        RunId("run-2"), deep, ConfigHash(hashlib.sha256(deep).digest()), b"signed", (b"chain",)
    )
    world.coordinator.send(node_id("h1"), TASK, odd)
    desk.go.set()
    await world.until(lambda: len(world.coordinator.decisions) == 2)
    assert not any(decision.accepted for decision in world.coordinator.decisions)
    kept = [path.name for path in (tmp_path / "h1" / "decisions").iterdir()]
    assert "run-1.json" not in kept
    await world.stop()


async def test_decisions_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "MOST_DECISIONS", 3)
    world = World(tmp_path)
    desk = _SlowDesk()
    desk.go.set()
    _start(world, desk)
    await world.until(lambda: node_id("h1") in world.coordinator.links)
    for number in range(5):
        offer = dataclasses.replace(world.offer, run_id=RunId(f"run-{number}"))
        world.coordinator.send(node_id("h1"), TASK, offer)
    await world.until(lambda: len(world.coordinator.decisions) == 5)
    codes = [decision.objections[0].code for decision in world.coordinator.decisions]
    assert codes == ["POLICY_PURPOSE"] * 3 + ["BUSY"] * 2
    assert len(list((tmp_path / "h1" / "decisions").iterdir())) == 3
    await world.stop()


async def test_messages_to_a_busy_task_wait_outside_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "MOST_UNREAD", 5)
    world = World(tmp_path)
    stuck = asyncio.Event()
    take = task.Task._take

    async def slow(self: task.Task, item: task.Item) -> None:
        await stuck.wait()
        await take(self, item)

    monkeypatch.setattr(task.Task, "_take", slow)
    world.start_all()
    await world.until(lambda: "h1" in world.nodes and TASK in world.nodes["h1"]._tasks)
    for _ in range(50):
        world.coordinator.send(node_id("h1"), TASK, Propose(HeaderDigest(bytes(32)), ()))
    await world.settle()
    assert world.nodes["h1"]._tasks[TASK]._inbox.qsize() <= 8
    stuck.set()
    await world.finish()
    world.check()


def _reached(asked: list[int], count: int) -> bool:
    return len(asked) == count


async def test_models_that_are_never_sent_whole_do_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    async def a_piece(
        self: MemoryLink, sha256: Sha256, offset: int
    ) -> AsyncIterator[DownloadChunk]:
        data = self.world.coordinator.objects[sha256]
        asked.append(offset)
        yield DownloadChunk(offset, len(data), data[offset : offset + CHUNK_BYTES])
        await asyncio.Event().wait()

    monkeypatch.setattr(MemoryLink, "download", a_piece)
    world = World(tmp_path, size=3 * CHUNK_BYTES // 4)
    world.start_all()
    await world.until(lambda: len(asked) == 4)  # the first round's model
    for number in range(5):
        header = dataclasses.replace(HEADER, model_sha256=Sha256(bytes([number]) * 32))
        start = RoundStart(header, world.coordinator.stream)
        world.coordinator.send(node_id("h1"), TASK, start)
        await world.until(partial(_reached, asked, 5 + number))
    await world.settle()
    assert len(list((tmp_path / "h1" / "models").glob("*.part"))) == 1
    await world.stop()
