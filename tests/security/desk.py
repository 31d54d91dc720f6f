"""A real driver and service in front of a round that waits for uploads."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from common.clock import ManualClock
from common.identity import Identity
from common.ids import NodeId, Sha256
from common.logs import make_log
from common.messages import CHUNK_BYTES, UploadChunk, UploadStart
from common.secagg.messages import UploadEnd
from common.wire import UploadPart
from coordinator import run_state as rs
from coordinator.driver import RunDriver, Workshop
from coordinator.failures import Failures
from coordinator.history import History
from coordinator.hub import Hub
from coordinator.journal import Journal
from coordinator.objects import ObjectStore
from coordinator.room import Room
from coordinator.run_step import Timing
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

    def say_upload(self, place: int) -> None:
        """Let an upload that was made arrive after all."""
        made = self.made[self.at(place)]
        self.spool[made.end.hd, self.at(place)] = made.body
        ydig = Sha256(hashlib.sha256(made.body).digest())
        self.tell(rs.UploadComplete(self.at(place), made.end, ydig, len(made.body)))


class _Facts:
    """A store that keeps facts only."""

    def append(self, *_: object) -> None:
        return


class Desk:
    """A real driver and service in front of a round that waits for uploads."""

    def __init__(self, folder: Path, study: str = VECTOR) -> None:
        self.world = Held(study)
        self.world.begin()
        log, clock, disk = make_log(io.StringIO()), ManualClock(), ThreadPoolExecutor(1)
        self.shop = Workshop(
            identity=cast("Identity", type("Name", (), {"federation": "sim"})()),
            trust=self.world.trust,  # type: ignore[arg-type]
            store=cast("Store", _Facts()),
            objects=ObjectStore(folder / "objects"),
            spool=Spool(folder / "spool"),
            history=History(),
            hub=Hub(),
            clock=clock,
            log=log,
            timing=Timing(),
            disk=disk,
            crunch=ThreadPoolExecutor(1),
            room=Room(Failures(), clock, log, disk),
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
        await self.service.upload(node, parts_of(body, end))

    async def close(self) -> None:
        self.serving.cancel()
        await asyncio.gather(self.serving, return_exceptions=True)


async def parts_of(body: bytes, end: UploadEnd) -> AsyncIterator[UploadPart]:
    yield UploadStart("pattern", end.hd, 0)
    for index in range(-(-len(body) // CHUNK_BYTES)):
        yield UploadChunk(index, body[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
    yield end
