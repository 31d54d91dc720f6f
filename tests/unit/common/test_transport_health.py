"""The health service: a closed set of names, watches that end, and a socket anywhere."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from common.errors import ConnectError, StateError
from common.transport import ask
from common.transport.ask import LINK, SOCKET, WHOLE, Health, ask_in, entered
from common.transport.health import HealthServicer, local_server
from hospital_node.store import is_locked

STATUS = health_pb2.HealthCheckResponse


class Node:
    """A process whose health a test decides."""

    def __init__(self) -> None:
        self.works = self.linked = True
        self.servicer = HealthServicer(
            {WHOLE: lambda: self.works, LINK: lambda: self.linked}, every_s=0.02
        )


@asynccontextmanager
async def served(directory: Path) -> AsyncIterator[Node]:
    node = Node()
    with local_server(directory, node.servicer) as listener:
        await listener.start()
        yield node
        node.servicer.stop()
        await listener.stop(1)


@asynccontextmanager
async def stub_in(directory: Path) -> AsyncIterator[Any]:
    with entered(directory) as (_, address):
        async with grpc.aio.insecure_channel(address) as lane:
            yield health_pb2_grpc.HealthStub(lane)


async def test_each_service_answers_for_itself(tmp_path: Path) -> None:
    async with served(tmp_path) as node:
        assert await ask_in(tmp_path, WHOLE) is Health.SERVING
        node.linked = False
        assert await ask_in(tmp_path, WHOLE) is Health.SERVING
        assert await ask_in(tmp_path, LINK) is Health.NOT_SERVING
        node.works = False
        assert await ask_in(tmp_path, WHOLE) is Health.NOT_SERVING


async def test_a_name_that_nobody_serves_is_not_found_and_not_remembered(tmp_path: Path) -> None:
    async with served(tmp_path) as node, stub_in(tmp_path) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.Check(health_pb2.HealthCheckRequest(service="x" * 1000))
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"))
        assert (await watch.read()).status == STATUS.SERVICE_UNKNOWN
        assert set(node.servicer._services) == {WHOLE, LINK}


async def test_a_watch_tells_changes_and_ends_with_the_service(tmp_path: Path) -> None:
    async with served(tmp_path) as node, stub_in(tmp_path) as stub:
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=LINK))
        assert (await watch.read()).status == STATUS.SERVING
        node.linked = False
        assert (await watch.read()).status == STATUS.NOT_SERVING
        node.linked = True
        assert (await watch.read()).status == STATUS.SERVING
        node.servicer.stop()
        async with asyncio.timeout(2):
            assert (await watch.read()).status == STATUS.NOT_SERVING
            assert await watch.read() is grpc.aio.EOF


async def test_a_socket_holds_no_more_than_a_few_calls(tmp_path: Path) -> None:
    async with served(tmp_path), stub_in(tmp_path) as stub:
        request = health_pb2.HealthCheckRequest(service=WHOLE)
        watches = [stub.Watch(request) for _ in range(8)]
        for watch in watches:
            await watch.read()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.Check(request)
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for watch in watches:
            watch.cancel()


# --- the socket --------------------------------------------------------------------------


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """A state directory whose socket no socket address can name, with signs of a URL."""
    deep = tmp_path / ("long" * 30) / "100% of it? #1 and more" / ("longer" * 20)
    deep.mkdir(parents=True)
    return deep


async def test_a_directory_of_any_name_and_length_will_do(far: Path) -> None:
    assert len(os.fsencode(far / SOCKET)) > 108
    async with served(far):
        mode = (far / SOCKET).stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert await ask_in(far, WHOLE) is Health.SERVING
    assert not (far / SOCKET).exists()


async def test_a_socket_that_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / SOCKET))
    with pytest.raises(ConnectError) as failed:
        await ask_in(tmp_path, WHOLE)
    assert failed.value.name == "UNREACHABLE"
    async with served(tmp_path):
        assert await ask_in(tmp_path, WHOLE) is Health.SERVING


async def test_what_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / SOCKET).write_text("mine")
    with (
        pytest.raises(StateError, match="is in the way"),
        local_server(tmp_path, Node().servicer),
    ):
        pass
    assert (tmp_path / SOCKET).read_text() == "mine"


async def test_a_directory_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="No such file"):
        await ask_in(tmp_path / "none", WHOLE)
    assert not is_locked(tmp_path / "none")


# --- a loop that stands still ------------------------------------------------------------


def test_a_blocked_event_loop_gives_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC goes on accepting connections in its own threads; only the loop answers."""
    monkeypatch.setattr(ask, "ANSWER_S", 0.5)
    begun, block, over = threading.Event(), threading.Event(), threading.Event()

    async def node() -> None:
        async with served(tmp_path):
            begun.set()
            await asyncio.to_thread(block.wait)
            time.sleep(1.2)  # noqa: ASYNC251 - the fault itself
            await asyncio.to_thread(over.wait)

    async def other() -> None:
        await asyncio.to_thread(begun.wait)
        assert await ask_in(tmp_path, WHOLE) is Health.SERVING
        block.set()
        await asyncio.sleep(0.1)
        assert await ask_in(tmp_path, WHOLE) is Health.NO_ANSWER
        await asyncio.sleep(0.9)
        assert await ask_in(tmp_path, WHOLE) is Health.SERVING

    thread = threading.Thread(target=lambda: asyncio.run(node()))
    thread.start()
    try:
        asyncio.run(other())
    finally:
        block.set()
        over.set()
        thread.join()
