"""The client against a real gRPC server with mutual TLS, in this process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from common.clock import SystemClock
from common.errors import ConnectError, FedError, IdentityError, Refusal, RoundError
from common.identity import load_identity
from common.ids import RunId, Sha256, SiteName, StudyId
from common.messages import DownloadChunk
from common.pki import Role
from common.transport.interceptors import Guard
from common.transport.tls import bind, server, server_credentials
from common.views import RoundView, RunPhase, RunView, SiteView
from common.wire import decode_download, encode_piece
from common.wire_operations import encode_run
from coordinator.servicer import METHODS
from fedcare.v1 import aggregation_pb2_grpc, operations_pb2_grpc
from fedcare.v1 import operations_pb2 as ops
from researcher.client import Client, require_person
from researcher.connection import Connection
from tests.release_factory import Authority

STUDY = b"{}"


def view(state: RunPhase = RunPhase.RUNNING, round_no: int = 0) -> RunView:
    return RunView(
        run_id=RunId("run-1"),
        study_id=StudyId("study-1"),
        state=state,
        round=round_no,
        rounds=3,
        sites=(SiteView(SiteName("va"), True, "ready", "", ""),),  # noqa: FBT003
        history=(
            RoundView(1, "train", "CLOSED", (SiteName("va"),), (), 0.5, "", bytes(32), bytes(32)),
        ),
        pooled=(("auroc", 0.9),),
        model_sha256="",
        reason="",
        seconds=1.0,
        seconds_to_first_round=0.5,
    )  # fmt: skip


class Operations(operations_pb2_grpc.OperationsServicer):
    """Answers as told, and fails as often as told before."""

    def __init__(self) -> None:
        self.failures: list[FedError] = []
        self.client_ids: list[str] = []
        self.watches: list[list[RunView]] = []

    def _maybe_fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    async def SubmitStudy(self, request: Any, _context: Any) -> Any:  # noqa: ANN401, N802
        self.client_ids.append(request.client_id)
        self._maybe_fail()
        return ops.SubmitStudyResponse(
            study_id="study-1", run_id="run-1", config_hash=hashlib.sha256(request.study).digest()
        )

    async def GetRun(self, _request: Any, _context: Any) -> Any:  # noqa: ANN401, N802
        self._maybe_fail()
        return ops.GetRunResponse(run=encode_run(view()))

    async def WatchRun(self, _request: Any, _context: Any) -> AsyncIterator[Any]:  # noqa: ANN401, N802
        for found in self.watches.pop(0):
            yield ops.WatchRunResponse(run=encode_run(found))
        self._maybe_fail()

    async def GetRelease(self, _request: Any, _context: Any) -> Any:  # noqa: ANN401, N802
        return ops.GetReleaseResponse(manifest=b"{}", signature=bytes(80))


class Bulk(aggregation_pb2_grpc.AggregationServicer):
    """Serves one object; each stream breaks off after `cuts[n]` pieces."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.cuts: list[int] = []
        self.offsets: list[int] = []
        self.shift = 0

    async def Download(self, request: Any, _context: Any) -> AsyncIterator[Any]:  # noqa: ANN401, N802
        _sha, offset = decode_download(request)
        self.offsets.append(offset)
        left = self.cuts.pop(0) if self.cuts else -1
        while offset < len(self.data):
            if left == 0:
                raise ConnectError("UNREACHABLE", "cut")
            left -= 1
            part = self.data[offset : offset + 1000]
            yield encode_piece(DownloadChunk(offset + self.shift, len(self.data), part))
            offset += len(part)


class World:
    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.operations = Operations()
        self.bulk = Bulk(bytes(range(256)) * 20)
        self.pauses: list[float] = []
        self.address = ""

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def client(self, role: Role = Role.RESEARCHER, attempts: int = 5) -> Client:
        identity = load_identity(self.authority.issue(role, "uni-x"), now_unix=time.time())
        return Client(self.address, identity, pause=self.pause, attempts=attempts)


@asynccontextmanager
async def serving(authority: Authority) -> AsyncIterator[World]:
    world = World(authority)
    coordinator = authority.issue(Role.COORDINATOR, "main")
    identity = load_identity(coordinator, now_unix=time.time())
    guard = Guard(federation="heart", methods=METHODS, clock=SystemClock())
    listener = server([guard])
    operations_pb2_grpc.add_OperationsServicer_to_server(world.operations, listener)
    aggregation_pb2_grpc.add_AggregationServicer_to_server(world.bulk, listener)
    port = bind(listener, "127.0.0.1:0", server_credentials(identity))
    world.address = f"127.0.0.1:{port}"
    await listener.start()
    try:
        yield world
    finally:
        await listener.stop(None)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_a_submission_keeps_its_id_through_every_retry(authority: Authority) -> None:
    async with serving(authority) as world, world.client() as client:
        world.operations.failures = [ConnectError("UNREACHABLE", "x"), RoundError("BUSY", "x")]
        submitted = await client.submit(STUDY)
    assert submitted.run_id == "run-1"
    assert submitted.config_hash == hashlib.sha256(STUDY).digest()
    assert len(world.operations.client_ids) == 3
    assert len(set(world.operations.client_ids)) == 1
    assert world.pauses == [0.2, 0.4]


async def test_two_submissions_have_two_ids(authority: Authority) -> None:
    async with serving(authority) as world, world.client() as client:
        await client.submit(STUDY)
        await client.submit(STUDY)
    assert len(set(world.operations.client_ids)) == 2


async def test_a_refusal_is_final_and_comes_in_the_coordinators_words(
    authority: Authority,
) -> None:
    async with serving(authority) as world, world.client() as client:
        world.operations.failures = [RoundError("NOT_FOUND", "no run of that name")]
        with pytest.raises(RoundError, match="no run of that name"):
            await client.run("run-1")
    assert world.pauses == []


async def test_it_gives_up_after_its_attempts(authority: Authority) -> None:
    async with serving(authority) as world, world.client(attempts=3) as client:
        world.operations.failures = [ConnectError("UNREACHABLE", "x") for _ in range(3)]
        with pytest.raises(ConnectError):
            await client.run("run-1")
    assert len(world.pauses) == 2


async def test_nobody_there_is_said_with_the_address(authority: Authority) -> None:
    async with serving(authority) as world:
        pass
    async with world.client(attempts=1) as client:
        with pytest.raises(ConnectError, match=world.address) as caught:
            await client.run("run-1")
    assert caught.value.kind.exit_code == 2


async def test_watching_goes_on_after_a_break_until_the_run_is_final(
    authority: Authority,
) -> None:
    async with serving(authority) as world, world.client() as client:
        world.operations.watches = [
            [view(), view(round_no=1)],
            [],
            [view(round_no=2), view(RunPhase.FINISHED, 3)],
        ]
        world.operations.failures = [ConnectError("UNREACHABLE", "x")]
        seen = [found async for found in client.watch("run-1")]
    assert [found.round for found in seen] == [0, 1, 2, 3]
    assert seen[-1].state is RunPhase.FINISHED


async def test_a_view_arrives_as_it_was(authority: Authority) -> None:
    async with serving(authority) as world, world.client() as client:
        assert await client.run("run-1") == view()


async def test_a_download_goes_on_at_the_byte_where_it_broke_off(authority: Authority) -> None:
    async with serving(authority) as world, world.client() as client:
        world.bulk.cuts = [2, 1]
        pieces = [piece async for piece in client.download(Sha256(bytes(32)))]
    assert b"".join(piece.data for piece in pieces) == world.bulk.data
    assert world.bulk.offsets == [0, 2000, 3000]


async def test_a_download_may_begin_anywhere(authority: Authority) -> None:
    async with serving(authority) as world, world.client() as client:
        pieces = [piece async for piece in client.download(Sha256(bytes(32)), 4321)]
    assert b"".join(piece.data for piece in pieces) == world.bulk.data[4321:]


async def test_a_gap_in_a_download_is_refused(authority: Authority) -> None:
    async with serving(authority) as world, world.client() as client:
        world.bulk.shift = 1
        with pytest.raises(Refusal, match="expected 0"):
            [piece async for piece in client.download(Sha256(bytes(32)))]


async def test_a_signature_of_an_impossible_length_is_refused(authority: Authority) -> None:
    async with serving(authority) as world, world.client() as client:
        with pytest.raises(Refusal):
            await client.release("run-1")


@pytest.mark.parametrize("role", [Role.HOSPITAL, Role.COORDINATOR])
def test_a_machines_certificate_is_not_a_persons(authority: Authority, role: Role) -> None:
    folder = authority.issue(role, "va")
    with pytest.raises(IdentityError) as caught:
        require_person(load_identity(folder, now_unix=time.time()))
    assert caught.value.name == "ROLE_DENIED"


def test_a_study_of_another_owner_is_refused_before_dialling(authority: Authority) -> None:
    connection = Connection("127.0.0.1:1", authority.issue(Role.RESEARCHER, "uni-x"))
    connection.require_owner("uni-x")
    with pytest.raises(FedError, match=r"owner\.organisation is 'uni-y'"):
        connection.require_owner("uni-y")
    operator = Connection("127.0.0.1:1", authority.issue(Role.OPERATOR, "uni-x"))
    with pytest.raises(IdentityError, match="may not submit"):
        operator.require_owner("uni-x")
