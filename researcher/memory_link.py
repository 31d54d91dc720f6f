"""A transport without a network: real nodes talk to a real coordinator in one process.

`MemoryLink` stands where gRPC stands on either side, and nowhere else: the coordinator's
service, its runs, the nodes and every cryptographic step are those of production.
Messages still pass through their wire form, so that what could not travel cannot pass.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from common.errors import ConnectError
from common.ids import NodeId, Sha256
from common.messages import DownloadChunk, UploadAck, UploadChunk, UploadStart
from common.secagg.messages import UploadEnd
from common.wire import (
    UploadPart,
    decode_coordinator,
    decode_node,
    encode_coordinator,
    encode_node,
)
from coordinator.hub import Outbox
from coordinator.service import CoordinatorService
from hospital_node.link import CoordinatorOut, Link, NodeOut


class MemoryDialler:
    """Dials a coordinator of this process as one hospital; a `hospital_node.link.Connect`."""

    def __init__(self, service: CoordinatorService, node: NodeId) -> None:
        self._service = service
        self._node = node

    async def __call__(self) -> Link:
        """Return a link.

        Raises:
            Refusal: NOT_MEMBER.
        """
        return MemoryLink(self._service, self._node)


class MemoryLink:
    """See `hospital_node.link.Link`."""

    def __init__(self, service: CoordinatorService, node: NodeId) -> None:
        self._service = service
        self._node = node
        self._outbox: Outbox | None = service.connect(node)

    def _open(self) -> Outbox:
        if self._outbox is None or self._outbox.closed:
            raise ConnectError("UNREACHABLE", "the link is closed")
        return self._outbox

    async def send(self, task: str, message: NodeOut) -> None:
        """See `Link`."""
        self._open()
        await self._service.receive(self._node, *decode_node(encode_node(task, message)))

    async def messages(self) -> AsyncIterator[tuple[str, CoordinatorOut]]:
        """See `Link`."""
        async for task, step in self._open().messages():
            yield decode_coordinator(encode_coordinator(task, step))

    async def upload(
        self, start: UploadStart, chunks: AsyncIterator[UploadChunk], end: UploadEnd
    ) -> UploadAck:
        """See `Link`."""
        self._open()

        async def parts() -> AsyncIterator[UploadPart]:
            yield start
            async for chunk in chunks:
                yield chunk
            yield end

        return await self._service.upload(self._node, parts())

    async def download(self, sha256: Sha256, offset: int) -> AsyncIterator[DownloadChunk]:
        """See `Link`."""
        self._open()
        async for piece in self._service.download(sha256, offset, self._node):
            yield piece

    async def close(self) -> None:
        """See `Link`."""
        outbox, self._outbox = self._outbox, None
        if outbox is not None:
            self._service.disconnect(outbox)
