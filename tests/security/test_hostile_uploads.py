"""A hospital that misuses the upload: its own bytes after they were counted, and others' turns."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from common.clock import ManualClock
from common.errors import Refusal
from common.identity import Identity
from common.ids import NodeId, Sha256
from common.logs import make_log
from common.messages import CHUNK_BYTES, UploadAck, UploadChunk, UploadStart
from common.secagg.messages import UploadEnd
from common.wire import UploadPart
from coordinator.driver import RunDriver, Workshop
from coordinator.hub import Hub
from coordinator.journal import Journal
from coordinator.objects import ObjectStore
from coordinator.run import Timing
from coordinator.service import CoordinatorService
from coordinator.spool import Spool
from coordinator.store import Store
from tests.run_world import RUN, VECTOR, RunWorld
from tests.simulation.secagg_harness import Uploaded

BIG = VECTOR.replace("size: 5", f"size: {2 * CHUNK_BYTES // 4 + 4}")


class Held(RunWorld):
    """A run whose uploads are made but not sent."""

    def __init__(self, study: str = VECTOR) -> None:
        self.made: dict[NodeId, Uploaded] = {}
        super().__init__(study)

    def _say(self, node: NodeId, said: Iterable[Any]) -> None:
        said = list(said)
        for one in said:
            if isinstance(one, Uploaded):
                self.made[node] = one
        super()._say(node, [one for one in said if not isinstance(one, Uploaded)])


class _Facts:
    """A store that keeps facts only."""

    def append(self, *_: object) -> None:
        return


class Desk:
    """A real driver and service in front of a round that waits for uploads."""

    def __init__(self, folder: Path, study: str = VECTOR) -> None:
        self.world = Held(study)
        self.world.begin()
        log = io.StringIO()
        self.shop = Workshop(
            identity=cast("Identity", type("Name", (), {"federation": "sim"})()),
            trust=self.world.trust,  # type: ignore[arg-type]
            store=cast("Store", _Facts()),
            objects=ObjectStore(folder / "objects"),
            spool=Spool(folder / "spool"),
            hub=Hub(),
            clock=ManualClock(),
            log=make_log(log),
            timing=Timing(),
            disk=ThreadPoolExecutor(1),
            crunch=ThreadPoolExecutor(1),
        )
        members = tuple(node.rsplit("/", 1)[-1] for node in self.world.ids)
        self.service = CoordinatorService(self.shop, members=members)
        self.driver = RunDriver(self.world.state, Journal(), 0.0, self.shop)
        self.service._drivers[RUN] = self.driver
        self.serving = asyncio.create_task(self.driver.run())

    def upload_of(self, place: int) -> tuple[NodeId, bytes, UploadEnd]:
        node = self.world.at(place)
        made = self.world.made[node]
        return node, made.body, made.end

    async def send(self, node: NodeId, body: bytes, end: UploadEnd) -> None:
        await self.service.upload(node, _parts(body, end))

    async def close(self) -> None:
        self.serving.cancel()
        await asyncio.gather(self.serving, return_exceptions=True)


async def _parts(body: bytes, end: UploadEnd) -> AsyncIterator[UploadPart]:
    yield UploadStart("pattern", end.hd, 0)
    for index in range(-(-len(body) // CHUNK_BYTES)):
        yield UploadChunk(index, body[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
    yield end


def _stored(desk: Desk, node: NodeId, end: UploadEnd) -> bytes:
    header = desk.driver.state.round
    assert header is not None
    file = desk.driver.spool_file(node, end.hd)
    return file.path.read_bytes()


async def test_bytes_that_were_counted_cannot_be_replaced(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    node, body, end = desk.upload_of(0)
    await desk.send(node, body, end)
    other = bytes(len(body))
    for _ in range(2):  # the first attempt must not empty the file for the second
        with pytest.raises(Refusal) as found:
            await desk.send(node, other, replace(end, ydig=Sha256(hashlib.sha256(other).digest())))
        assert found.value.name == "UPLOAD_DIGEST"
    assert _stored(desk, node, end) == body
    await desk.send(node, body, end)  # the same one again is acknowledged again
    await desk.close()


async def test_bytes_that_were_counted_survive_a_restart_and_another_end(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    node, body, end = desk.upload_of(0)
    await desk.send(node, body, end)
    desk.shop.spool._open.clear()  # a new process knows what the file holds, not what it was
    with pytest.raises(Refusal):
        await desk.send(node, body, replace(end, ydig=Sha256(bytes(32))))
    assert _stored(desk, node, end) == body
    await desk.close()


async def test_two_ends_at_once_leave_the_bytes_of_the_first(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    node, body, end = desk.upload_of(0)
    desk.driver.spool_file(node, end.hd).append(0, body)
    wrong = replace(end, ydig=Sha256(bytes(32)))
    first, second = await asyncio.gather(
        desk.driver.finish_upload(node, end),
        desk.driver.finish_upload(node, wrong),
        return_exceptions=True,
    )
    assert first == UploadAck(end.hd, end.ydig)
    assert isinstance(second, Refusal)
    assert _stored(desk, node, end) == body
    await desk.close()


async def test_a_newer_upload_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    node, body, end = desk.upload_of(0)
    older = asyncio.create_task(desk.send(node, body, end))
    await asyncio.sleep(0)
    await desk.send(node, body, end)
    with pytest.raises(Refusal) as found:
        await older
    assert found.value.name == "BUSY"
    assert desk.service._uploads == {}
    await desk.close()


async def test_a_stream_of_chunks_that_are_already_here_ends(tmp_path: Path) -> None:
    desk = Desk(tmp_path, BIG)
    node, body, end = desk.upload_of(0)

    async def endless() -> AsyncIterator[UploadPart]:
        yield UploadStart("pattern", end.hd, 0)
        while True:
            yield UploadChunk(0, body[:CHUNK_BYTES])

    with pytest.raises(Refusal) as found:
        await asyncio.wait_for(desk.service.upload(node, endless()), 20)
    assert found.value.name == "UPLOAD_SIZE"
    await desk.close()


async def test_one_hospital_cannot_take_every_turn(tmp_path: Path) -> None:
    desk = Desk(tmp_path, BIG)
    node, body, end = desk.upload_of(0)
    quiet = asyncio.Event()

    async def busy() -> AsyncIterator[UploadPart]:
        yield UploadStart("pattern", end.hd, 0)
        yield UploadChunk(0, body[:CHUNK_BYTES])
        await quiet.wait()

    streams = [asyncio.create_task(desk.service.upload(node, busy())) for _ in range(4)]
    await asyncio.sleep(0)
    other = desk.upload_of(1)
    # Far below the patience after which a stalled stream lends its turn.
    await asyncio.wait_for(desk.send(*other), 0.4)
    for stream in streams:
        stream.cancel()
    ended = await asyncio.gather(*streams, return_exceptions=True)
    names = {one.name for one in ended if isinstance(one, Refusal)}
    assert names <= {"BUSY"}
    await desk.close()
