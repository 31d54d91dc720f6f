"""The road between a hospital and the coordinator of a simulation.

Messages take their time, a broken connection ends every pending call, and what passed is
remembered, so that a fault can replay it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from common.errors import ConnectError, FedError
from common.ids import Sha256
from common.messages import DownloadChunk, UploadAck, UploadChunk, UploadStart
from common.secagg.messages import Commit, UploadEnd
from hospital_node.link import CoordinatorOut, NodeOut
from researcher.memory_link import MemoryLink
from tests.federation import Killed

if TYPE_CHECKING:
    from tests.faults.world import Process, World

T = TypeVar("T")

_KEPT: Final = 60
_UPLOADS: Final = 4


@dataclass
class Upload:
    """An upload as it passed."""

    start: UploadStart
    chunks: list[UploadChunk]
    end: UploadEnd


@dataclass
class Tape:
    """What passed between a hospital and the coordinator, over all connections."""

    sent: deque[tuple[str, NodeOut]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    came: deque[tuple[str, CoordinatorOut]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    uploads: deque[Upload] = field(default_factory=lambda: deque(maxlen=_UPLOADS))


class Road:
    """A link whose far end runs as the coordinator; see `hospital_node.link.Link`."""

    def __init__(self, world: World, site: str, inner: MemoryLink, near: Process) -> None:
        self._world = world
        self._site = site
        self._inner = inner
        self._broken = False
        self._pending: set[asyncio.Task[Any]] = set()
        self._near = near
        self._far = world.coordinator
        self._again: deque[tuple[str, CoordinatorOut]] = deque()
        """Messages of earlier connections, to be handed over once more."""

    def cut(self) -> None:
        """The connection breaks: every pending and further call fails."""
        self._broken = True
        for job in self._pending:
            job.cancel()

    def _check(self) -> None:
        if self._broken or self._far.dead:
            raise ConnectError("UNREACHABLE", "the connection broke")

    async def _run(self, work: Coroutine[Any, Any, T], process: Process) -> T:
        """Return what `work` returns where `process` does it; a broken connection ends it."""
        if self._broken:
            work.close()
            self._check()
        loop = asyncio.get_running_loop()
        job = loop.create_task(work, context=process.context())
        self._pending.add(job)
        try:
            result = await job
        except (Killed, asyncio.CancelledError, FedError) as ended:
            current = asyncio.current_task()
            if current is not None and current.cancelling():  # whatever the far side made of it
                raise asyncio.CancelledError from None
            if isinstance(ended, FedError):
                raise
            raise ConnectError("UNREACHABLE", "the connection broke") from None
        finally:
            self._pending.discard(job)
        if self._broken:
            raise ConnectError("UNREACHABLE", "the connection broke")
        return result

    async def send(self, task: str, message: NodeOut) -> None:
        """See `Link`."""
        self._check()
        await self._world.travel(self._site)
        self._check()
        self._world.tapes[self._site].sent.append((task, message))
        if isinstance(message, Commit):
            self._world.signed[message.hd].add(self._near.name)
        for _ in range(self._world.copies):
            await self._run(self._inner.send(task, message), self._far)

    async def messages(self) -> AsyncIterator[tuple[str, CoordinatorOut]]:
        """See `Link`."""
        stream = self._inner.messages()
        while True:
            item = await self._run(_next(stream), self._far)
            if item is None:
                return
            self._world.hears(item[1])
            await self._world.travel(self._site)
            self._check()
            for _ in range(self._world.copies):
                yield item
            while self._again:
                yield self._again.popleft()
            self._world.tapes[self._site].came.append(item)

    async def upload(
        self, start: UploadStart, chunks: AsyncIterator[UploadChunk], end: UploadEnd
    ) -> UploadAck:
        """See `Link`."""
        self._check()
        world, site = self._world, self._site
        world.masked[site, end.hd].add(end.ydig)
        tape = Upload(start, [], end)

        async def arriving() -> AsyncIterator[UploadChunk]:
            while (chunk := await self._run(_next(chunks), self._near)) is not None:
                await world.travel(site)
                self._check()
                tape.chunks.append(chunk)
                yield chunk

        async def acknowledged() -> UploadAck:
            ack = await self._inner.upload(start, arriving(), end)
            world.acknowledged(site, end)
            return ack

        ack = await self._run(acknowledged(), self._far)
        await world.travel(site)
        self._check()
        world.tapes[site].uploads.append(tape)
        world.receipts[site, end.hd] = None
        return ack

    async def download(self, sha256: Sha256, offset: int) -> AsyncGenerator[DownloadChunk, None]:
        """See `Link`."""
        self._check()
        async with aclosing(_pieces(self._inner, sha256, offset)) as stream:
            while (piece := await self._run(_next(stream), self._far)) is not None:
                await self._world.travel(self._site)
                self._check()
                yield piece

    async def close(self) -> None:
        """See `Link`."""
        self.cut()
        if not self._far.dead:
            await self._inner.close()

    async def replay(self) -> None:
        """Have everything that ever passed pass once more, both ways, and the uploads too."""
        tape = self._world.tapes[self._site]
        self._again.extend(tape.came)
        for task, message in list(tape.sent):
            await self._refusable(self._inner.send(task, message))
        for upload in list(tape.uploads):
            chunks = _listed(upload.chunks)
            await self._refusable(self._inner.upload(upload.start, chunks, upload.end))

    async def _refusable(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await self._run(work, self._far)
        except FedError:
            self._world.refused += 1


async def _pieces(
    inner: MemoryLink, sha256: Sha256, offset: int
) -> AsyncGenerator[DownloadChunk, None]:
    async for piece in inner.download(sha256, offset):
        yield piece


async def _listed(chunks: list[UploadChunk]) -> AsyncIterator[UploadChunk]:
    for chunk in chunks:
        yield chunk


async def _next(stream: AsyncIterator[T]) -> T | None:
    return await anext(stream, None)
