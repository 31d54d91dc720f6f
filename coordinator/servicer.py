"""gRPC methods of the coordinator: decode, hand over, encode. No decisions.

Who the caller is comes from the guard (`common.transport.interceptors.caller`), that
is from the certificate alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from common.certificates import Role
from common.ids import NodeId, RunId, site_name
from common.transport.health import HEALTH_METHODS
from common.transport.interceptors import MethodTable, caller
from common.wire import (
    UploadPart,
    decode_download,
    decode_node,
    decode_upload,
    encode_ack,
    encode_coordinator,
    encode_piece,
)
from common.wire_checks import checked_name
from common.wire_operations import (
    Submitted,
    decode_cancel,
    decode_submission,
    encode_content,
    encode_release,
    encode_run,
    encode_status,
    encode_study,
    encode_submitted,
)
from coordinator.admission import Arrivals
from coordinator.hub import Outbox
from coordinator.service import CoordinatorService
from fedcare.v1 import aggregation_pb2 as pb
from fedcare.v1 import aggregation_pb2_grpc, operations_pb2_grpc
from fedcare.v1 import operations_pb2 as ops

_HOSPITALS: Final = frozenset({Role.HOSPITAL})
_PEOPLE: Final = frozenset({Role.OPERATOR, Role.RESEARCHER})
_READERS: Final = _HOSPITALS | _PEOPLE

METHODS: Final[MethodTable] = {
    "/fedcare.v1.Aggregation/Session": _HOSPITALS,
    "/fedcare.v1.Aggregation/Upload": _HOSPITALS,
    "/fedcare.v1.Aggregation/Download": _READERS,
    "/fedcare.v1.Operations/SubmitStudy": frozenset({Role.RESEARCHER}),
    "/fedcare.v1.Operations/ListStudies": _PEOPLE,
    "/fedcare.v1.Operations/GetStudy": _PEOPLE,
    "/fedcare.v1.Operations/ListRuns": _PEOPLE,
    "/fedcare.v1.Operations/GetRun": _PEOPLE,
    "/fedcare.v1.Operations/WatchRun": _PEOPLE,
    "/fedcare.v1.Operations/CancelRun": _PEOPLE,
    "/fedcare.v1.Operations/GetRelease": _READERS,
    "/fedcare.v1.Operations/GetStatus": _PEOPLE | {Role.COORDINATOR},
    **HEALTH_METHODS,
}
"""Which role may call what; a method that is not here is refused."""

Context = grpc.aio.ServicerContext[Any, Any]


class AggregationServicer(aggregation_pb2_grpc.AggregationServicer):
    """What hospital nodes call."""

    def __init__(self, service: CoordinatorService, arrivals: Arrivals) -> None:
        self._service = service
        self._arrivals = arrivals

    async def Session(  # noqa: N802 - the method's name on the wire
        self, requests: AsyncIterator[pb.NodeMessage], context: Context
    ) -> AsyncIterator[pb.CoordinatorMessage]:
        """Carry one hospital's control stream, both ways, until either side ends it."""
        node = NodeId(caller().node_id)
        self._service.check_member(node)  # who is none takes no turn
        self._arrivals.admit(site_name(node))
        outbox = self._service.connect(node, _host(context.peer()))
        reader = asyncio.create_task(self._read(node, outbox, requests))
        try:
            async for task, step in outbox.messages():
                yield encode_coordinator(task, step)
        finally:
            reader.cancel()
            self._service.disconnect(outbox)
        await _outcome(reader)

    async def _read(
        self, node: NodeId, outbox: Outbox, requests: AsyncIterator[pb.NodeMessage]
    ) -> None:
        try:
            async for message in requests:
                task, step = decode_node(message)
                await self._service.receive(node, task, step)
        finally:
            outbox.close()

    async def Upload(  # noqa: N802
        self, requests: AsyncIterator[pb.UploadMessage], _context: Context
    ) -> pb.UploadAck:
        """Receive one masked vector, or the rest of one."""
        ack = await self._service.upload(NodeId(caller().node_id), _parts(requests))
        return encode_ack(ack)

    async def Download(  # noqa: N802
        self, request: pb.DownloadRequest, _context: Context
    ) -> AsyncIterator[pb.DownloadChunk]:
        """Send one stored object from an offset on."""
        sha256, offset = decode_download(request)
        async for piece in self._service.download(sha256, offset, caller().node_id):
            yield encode_piece(piece)


def _host(peer: str) -> str:
    """Return the address of gRPC's `ipv4:10.0.0.5:40312` or `ipv6:%5B::1%5D:40312`."""
    return peer.partition(":")[2].rpartition(":")[0].replace("%5B", "").replace("%5D", "")


async def _parts(requests: AsyncIterator[pb.UploadMessage]) -> AsyncIterator[UploadPart]:
    async for message in requests:
        yield decode_upload(message)


async def _outcome(reader: asyncio.Task[None]) -> None:
    """Raise what ended the reading side, if it was an error of the peer's."""
    try:
        await reader
    except asyncio.CancelledError:
        return


class OperationsServicer(operations_pb2_grpc.OperationsServicer):
    """What people and scripts call."""

    def __init__(self, service: CoordinatorService) -> None:
        self._service = service

    async def SubmitStudy(  # noqa: N802
        self, request: ops.SubmitStudyRequest, _context: Context
    ) -> ops.SubmitStudyResponse:
        """Accept a study and begin a run of it."""
        submission = decode_submission(request)
        run = await self._service.submit(submission, caller().node_id)
        return encode_submitted(Submitted(run.study_id, run.run_id, run.config_hash))

    async def ListStudies(  # noqa: N802
        self, _request: ops.ListStudiesRequest, _context: Context
    ) -> ops.ListStudiesResponse:
        """List what was submitted."""
        views = [encode_study(view) for view in self._service.studies()]
        return ops.ListStudiesResponse(studies=views)

    async def GetStudy(  # noqa: N802
        self, request: ops.GetStudyRequest, _context: Context
    ) -> ops.GetStudyResponse:
        """Return a study with its content; the latest one of that id."""
        view, content = self._service.study(checked_name(request.study_id, "study_id"))
        return encode_content(view, content)

    async def ListRuns(  # noqa: N802
        self, _request: ops.ListRunsRequest, _context: Context
    ) -> ops.ListRunsResponse:
        """List all runs, oldest first."""
        return ops.ListRunsResponse(runs=[encode_run(view) for view in await self._service.runs()])

    async def GetRun(  # noqa: N802
        self, request: ops.GetRunRequest, _context: Context
    ) -> ops.GetRunResponse:
        """Return one run."""
        run_id = RunId(checked_name(request.run_id, "run_id"))
        return ops.GetRunResponse(run=encode_run(self._service.run(run_id)))

    async def WatchRun(  # noqa: N802
        self, request: ops.WatchRunRequest, _context: Context
    ) -> AsyncIterator[ops.WatchRunResponse]:
        """Send a run's view at once and after each change, until it is final."""
        run_id = RunId(checked_name(request.run_id, "run_id"))
        async for view in self._service.watch(run_id):
            yield ops.WatchRunResponse(run=encode_run(view))

    async def CancelRun(  # noqa: N802
        self, request: ops.CancelRunRequest, _context: Context
    ) -> ops.CancelRunResponse:
        """End a run; operators may, and the researcher whose study it is."""
        run_id, reason = decode_cancel(request)
        who = caller()
        if who.role is Role.RESEARCHER:
            self._service.check_owner(run_id, who.id)
        view = await self._service.cancel(run_id, f"{who.role} {who.id}: {reason}")
        return ops.CancelRunResponse(run=encode_run(view))

    async def GetRelease(  # noqa: N802
        self, request: ops.GetReleaseRequest, _context: Context
    ) -> ops.GetReleaseResponse:
        """Return the signed manifest of a run's model."""
        notice = self._service.release(RunId(checked_name(request.run_id, "run_id")))
        return encode_release(notice)

    async def GetStatus(  # noqa: N802
        self, _request: ops.GetStatusRequest, _context: Context
    ) -> ops.GetStatusResponse:
        """Return the coordinator's status."""
        return encode_status(self._service.status())
