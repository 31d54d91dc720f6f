"""One peer cannot take all of a coordinator's calls (faults F52 and F55)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from common.certificates import Role
from common.clock import SystemClock
from common.identity import Identity, load_identity
from common.transport.interceptors import CALLS_OF_ONE_PEER, Guard
from common.transport.status import from_rpc
from common.transport.tls import bind, channel, server, server_credentials
from tests.certificate_factory import (
    CLIENT,
    FEDERATION,
    SERVER,
    Spec,
    make,
    new_ca,
    write_identity,
)

NOW = SystemClock().unix()
CA = new_ca(now=NOW)


PEOPLE = CALLS_OF_ONE_PEER + 4


def _identity(folder: Path, spec: Spec) -> Identity:
    return load_identity(write_identity(folder, make(spec, CA, NOW), spec.key, CA), now_unix=NOW)


async def _forever(_request: bytes, _context: object) -> AsyncIterator[bytes]:
    yield b"open"
    await asyncio.Event().wait()


async def _short(_request: bytes, _context: object) -> bytes:
    return b"done"


@contextlib.asynccontextmanager
async def _serving(folder: Path) -> AsyncIterator[str]:
    uri = f"spiffe://{FEDERATION}/coordinator/main"
    spec = Spec(uris=(uri,), dns=("localhost",), purposes=(SERVER, CLIENT))
    methods: dict[str, Any] = {
        "Forever": grpc.unary_stream_rpc_method_handler(_forever),
        "Short": grpc.unary_unary_rpc_method_handler(_short),
    }
    table = {f"/test.Test/{name}": frozenset(Role) for name in methods}
    guard = Guard(federation=FEDERATION, methods=table, clock=SystemClock(), calls_of_people=PEOPLE)
    listener = server([guard], concurrent_calls=2 * CALLS_OF_ONE_PEER)
    listener.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", methods),))
    port = bind(listener, "127.0.0.1:0", server_credentials(_identity(folder / "c", spec)))
    await listener.start()
    try:
        yield f"localhost:{port}"
    finally:
        await listener.stop(0)


async def test_a_hospital_with_too_many_calls_is_told_so_and_others_get_through(
    tmp_path: Path,
) -> None:
    greedy = _identity(tmp_path / "h", Spec())
    other = _identity(tmp_path / "o", Spec(uris=(f"spiffe://{FEDERATION}/hospital/va",)))
    async with _serving(tmp_path) as address, contextlib.AsyncExitStack() as stack:
        lanes: list[Any] = [
            await stack.enter_async_context(channel(address, greedy)) for _ in range(3)
        ]
        streams = []
        for number in range(CALLS_OF_ONE_PEER):
            stream = lanes[number % 3].unary_stream("/test.Test/Forever")(b"")
            assert await stream.read() == b"open"
            streams.append(stream)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await lanes[0].unary_unary("/test.Test/Short")(b"")
        assert from_rpc(refused.value, address=address).name == "BUSY"
        lane: Any = await stack.enter_async_context(channel(address, other))
        assert await lane.unary_unary("/test.Test/Short")(b"") == b"done"
        streams.pop().cancel()
        async with asyncio.timeout(10):
            while True:  # the far side notices the end in its own time
                with contextlib.suppress(grpc.aio.AioRpcError):
                    assert await lanes[0].unary_unary("/test.Test/Short")(b"") == b"done"
                    break


async def test_people_together_leave_room_for_hospitals_and_health_checks(tmp_path: Path) -> None:
    """However many researchers there are: each has a share, and all of them have one."""

    def person(role: Role, name: str) -> Identity:
        uri = f"spiffe://{FEDERATION}/{role.value}/{name}"
        dns = ("localhost",) if role is Role.COORDINATOR else ()
        return _identity(tmp_path / name, Spec(uris=(uri,), dns=dns, purposes=(CLIENT,)))

    async with contextlib.AsyncExitStack() as stack:
        address = await stack.enter_async_context(_serving(tmp_path))

        async def dial(role: Role, name: str) -> Any:  # noqa: ANN401 - any method
            return await stack.enter_async_context(channel(address, person(role, name)))

        first = await dial(Role.RESEARCHER, "one")
        second = await dial(Role.OPERATOR, "two")
        held = [first.unary_stream("/test.Test/Forever")(b"") for _ in range(CALLS_OF_ONE_PEER)]
        held += [second.unary_stream("/test.Test/Forever")(b"") for _ in range(4)]
        for call in held:
            assert await call.read() == b"open"
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await second.unary_unary("/test.Test/Short")(b"")
        assert from_rpc(failed.value, address="x").name == "BUSY"
        for role in (Role.HOSPITAL, Role.COORDINATOR):
            lane = await dial(role, role.value)
            assert await lane.unary_unary("/test.Test/Short")(b"") == b"done"
        held[0].cancel()
        async with asyncio.timeout(10):
            while True:  # the far side notices the end in its own time
                with contextlib.suppress(grpc.aio.AioRpcError):
                    assert await second.unary_unary("/test.Test/Short")(b"") == b"done"
                    break
