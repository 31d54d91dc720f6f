"""Who is connected, and what waits to be sent to whom.

One outbox per hospital. A message to a hospital that is away is dropped on purpose:
the run's machine repeats whatever a hospital still needs when it comes back, so an
outbox never has to survive anything. A second stream of the same hospital replaces
the first: after a broken connection the new stream comes before the old one is missed.
Until a stream's hospital has said Hello it is told nothing: its welcome comes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from common.failpoints import passes
from common.ids import NodeId
from common.wire import CoordinatorStep

MAX_WAITING: Final = 1024
"""Messages one outbox holds; a hospital that takes none of them is cut off."""


class Outbox:
    """The messages for one stream of one hospital."""

    def __init__(self, node: NodeId) -> None:
        self.node = node
        self._queue: asyncio.Queue[tuple[str, CoordinatorStep] | None] = asyncio.Queue()
        self.closed = False
        self.welcomed = False
        """Whether the hospital said Hello on this very stream."""

    def put(self, task: str, step: CoordinatorStep) -> None:
        """Queue a message; an outbox that overflows is closed."""
        if self._queue.qsize() >= MAX_WAITING:
            self.close()
        if not self.closed:
            self._queue.put_nowait((task, step))

    def close(self) -> None:
        """End the stream once what is queued was sent."""
        if not self.closed:
            self.closed = True
            self._queue.put_nowait(None)

    async def messages(self) -> AsyncIterator[tuple[str, CoordinatorStep]]:
        """Yield (task, step) until the outbox is closed."""
        while (item := await self._queue.get()) is not None:
            if passes("coordinator.send"):
                yield item


class Hub:
    """All outboxes."""

    def __init__(self) -> None:
        self._outboxes: dict[NodeId, Outbox] = {}

    @property
    def connected(self) -> frozenset[NodeId]:
        """The hospitals with a live stream."""
        return frozenset(self._outboxes)

    def connect(self, node: NodeId) -> Outbox:
        """Open an outbox for a new stream, closing the hospital's previous one."""
        previous = self._outboxes.pop(node, None)
        if previous is not None:
            previous.close()
        self._outboxes[node] = Outbox(node)
        return self._outboxes[node]

    def disconnect(self, outbox: Outbox) -> bool:
        """Forget an ended stream; True if the hospital has no other one."""
        outbox.close()
        if self._outboxes.get(outbox.node) is not outbox:
            return False
        del self._outboxes[outbox.node]
        return True

    def stream(self, node: NodeId) -> Outbox | None:
        """Return the outbox of a hospital's present stream, None while it has none."""
        outbox = self._outboxes.get(node)
        return None if outbox is None or outbox.closed else outbox

    def welcome(self, node: NodeId, step: CoordinatorStep) -> None:
        """Queue the first message of a stream; from now on others may follow."""
        outbox = self._outboxes.get(node)
        if outbox is not None:
            outbox.welcomed = True
            outbox.put("", step)

    def is_welcome(self, node: NodeId) -> bool:
        """Whether the hospital's present stream began with its Hello."""
        outbox = self._outboxes.get(node)
        return outbox is not None and outbox.welcomed

    def send(self, node: NodeId, task: str, step: CoordinatorStep) -> None:
        """Queue a message for a hospital, if it is connected and has said Hello."""
        outbox = self._outboxes.get(node)
        if outbox is not None and outbox.welcomed:
            outbox.put(task, step)

    def drop(self, node: NodeId) -> None:
        """End a hospital's stream: it has been silent for too long."""
        if node in self._outboxes:
            self._outboxes[node].close()

    def close(self) -> None:
        """End all streams."""
        for outbox in self._outboxes.values():
            outbox.close()
