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
    table = {f"/test.Test/{name}": frozenset({Role.HOSPITAL}) for name in methods}
    guard = Guard(federation=FEDERATION, methods=table, clock=SystemClock())
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
