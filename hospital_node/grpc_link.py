"""The link over gRPC: one connection for the control stream, another for what is bulky.

Two, because on one a heartbeat waits for every byte of an upload that the system has taken
already: on a slow line that alone made a hospital look dead (fault F22). The second one is
dialled when it is first needed.

Every failure of a call becomes a `FedError` with this side's diagnosis (`from_rpc`): a
clock that is off or a wrong CA is named as such instead of "handshake failed".
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc
import grpc.aio

from common.clock import Clock
from common.errors import ConnectError, FedError
from common.identity import Identity
from common.ids import Sha256
from common.messages import DownloadChunk, UploadAck, UploadChunk, UploadStart
from common.secagg.messages import UploadEnd
from common.transport.status import closed_at_setup, from_rpc
from common.transport.tls import channel
from common.wire import (
    decode_ack,
    decode_coordinator,
    decode_piece,
    encode_download,
    encode_node,
    encode_upload,
)
from common.wire_checks import parsed
from fedcare.v1 import aggregation_pb2 as pb
from fedcare.v1.aggregation_pb2_grpc import AggregationStub
from hospital_node.link import CoordinatorOut, Link, NodeOut

READY_S = 20.0
"""How long a dial may take, handshake included."""

_Stream: TypeAlias = "grpc.aio.StreamStreamCall[pb.NodeMessage, pb.CoordinatorMessage]"


class GrpcDialler:
    """Dials the coordinator; a `Connect`."""

    def __init__(self, address: str, identity: Identity, proxy: str | None, clock: Clock) -> None:
        self._address = address
        self._identity = identity
        self._proxy = proxy
        self._clock = clock
        self._closed = False
        """The last dial was closed at set-up."""

    async def __call__(self) -> Link:
        """Return a link whose TLS handshake is done.

        Raises:
            FedError: UNREACHABLE, TLS_REFUSED, CLOCK_OFF, CERT_INVALID, ...
        """
        self._identity.check_dates(self._clock.unix())
        lane = channel(self._address, self._identity, self._proxy)
        bulk = channel(self._address, self._identity, self._proxy, apart=True)
        link = GrpcLink(lane, bulk, self)
        try:
            await link.open()
        except BaseException:
            await link.close()
            raise
        self._closed = False
        return link

    def explain(self, failure: grpc.aio.AioRpcError) -> FedError:
        """Return what a failed call means here.

        A coordinator that dies during a handshake looks like one that refuses this hospital's
        certificate: that is said when the next dial ends in the same way.
        """
        again, self._closed = self._closed, closed_at_setup(failure)
        return from_rpc(
            failure,
            address=self._address,
            identity=self._identity,
            now_unix=self._clock.unix(),
            doubt=not again,
        )


class GrpcLink:
    """See `hospital_node.link.Link`."""

    def __init__(
        self, lane: grpc.aio.Channel, bulk: grpc.aio.Channel, dialler: GrpcDialler
    ) -> None:
        self._lanes = (lane, bulk)
        self._dialler = dialler
        self._control_stub = AggregationStub(lane)
        self._bulk_stub = AggregationStub(bulk)
        self._stream: _Stream | None = None
        self._writing = asyncio.Lock()

    async def open(self) -> None:
        """Start the control stream and wait until it stands."""
        self._stream = self._control_stub.Session()
        try:
            async with asyncio.timeout(READY_S):
                await self._stream.wait_for_connection()
        except grpc.aio.AioRpcError as failure:
            raise self._dialler.explain(failure) from None
        except TimeoutError:
            raise ConnectError("UNREACHABLE", "no answer in time") from None

    def _control(self) -> _Stream:
        if self._stream is None:
            raise ConnectError("UNREACHABLE", "the link is not open")
        return self._stream

    async def send(self, task: str, message: NodeOut) -> None:
        """See `Link`."""
        encoded = encode_node(task, message)
        stream = self._control()
        async with self._writing:  # one write at a time, says gRPC
            try:
                await stream.write(encoded)
            except grpc.aio.AioRpcError as failure:
                raise self._dialler.explain(failure) from None
            except (asyncio.InvalidStateError, grpc.aio.UsageError):
                raise ConnectError("UNREACHABLE", "the control stream is over") from None

    async def messages(self) -> AsyncIterator[tuple[str, CoordinatorOut]]:
        """See `Link`."""
        stream = self._control()
        try:
            async for message in stream:
                yield decode_coordinator(parsed(message))
        except grpc.aio.AioRpcError as failure:
            raise self._dialler.explain(failure) from None

    async def upload(
        self, start: UploadStart, chunks: AsyncIterator[UploadChunk], end: UploadEnd
    ) -> UploadAck:
        """See `Link`."""

        async def parts() -> AsyncIterator[pb.UploadMessage]:
            yield encode_upload(start)
            async for chunk in chunks:
                yield encode_upload(chunk)
            yield encode_upload(end)

        try:
            return decode_ack(parsed(await self._bulk_stub.Upload(parts())))
        except grpc.aio.AioRpcError as failure:
            raise self._dialler.explain(failure) from None

    async def download(self, sha256: Sha256, offset: int) -> AsyncIterator[DownloadChunk]:
        """See `Link`."""
        call = self._bulk_stub.Download(encode_download(sha256, offset))
        try:
            async for piece in call:
                yield decode_piece(parsed(piece))
        except grpc.aio.AioRpcError as failure:
            raise self._dialler.explain(failure) from None
        finally:
            call.cancel()

    async def close(self) -> None:
        """See `Link`."""
        if self._stream is not None:
            self._stream.cancel()
        for lane in self._lanes:
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                await lane.close()
