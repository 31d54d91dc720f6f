"""The one road out of the hospital, as a protocol class.

The driver talks to a `Link` and does not know whether gRPC (`grpc_link`) or memory
(`sim`, tests) carries it. A link is good for one connection: when it breaks, every
pending call raises `ConnectError` and the driver dials a new one with `Connect`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeAlias, TypeVar

from common.ids import Sha256
from common.messages import DownloadChunk, UploadAck, UploadChunk, UploadStart
from common.secagg.messages import UploadEnd
from common.wire import CoordinatorStep, NodeStep

NodeOut: TypeAlias = NodeStep
"""What a node sends on its control stream."""

CoordinatorOut: TypeAlias = CoordinatorStep
"""What the coordinator sends on a node's control stream."""


class Link(Protocol):
    """One live connection to the coordinator.

    Every method raises `ConnectError` when the connection is gone, and `Refusal` when
    the coordinator says no to this very call.
    """

    async def send(self, task: str, message: NodeOut) -> None:
        """Send one control message; `task` is empty for hello and heartbeat."""
        ...

    def messages(self) -> AsyncIterator[tuple[str, CoordinatorOut]]:
        """Yield (task, message) as they come, until the stream ends."""
        ...

    async def upload(
        self, start: UploadStart, chunks: AsyncIterator[UploadChunk], end: UploadEnd
    ) -> UploadAck:
        """Stream a masked vector from chunk `start.first_chunk` on, then its end record."""
        ...

    def download(self, sha256: Sha256, offset: int) -> AsyncIterator[DownloadChunk]:
        """Yield the stored object from byte `offset` on, in order, without gaps."""
        ...

    async def close(self) -> None:
        """Close the connection; never raises, may be called twice."""
        ...


T = TypeVar("T")


@asynccontextmanager
async def closing(stream: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Close a stream at the end of the block, however it is left, if it can be closed."""
    try:
        yield stream
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


Connect: TypeAlias = Callable[[], Awaitable[Link]]
"""Dials the coordinator once. Raises `ConnectError` (or `IdentityError`, see its text)."""
