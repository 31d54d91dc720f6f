"""A coordinator that answers with bytes of no message: the node hangs up and stays up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from common.clock import SystemClock
from common.errors import FedError
from common.identity import Identity, load_identity
from common.ids import HeaderDigest, Sha256
from common.messages import UploadChunk, UploadStart
from common.secagg.messages import UploadEnd
from common.transport.tls import bind, server, server_credentials
from hospital_node.grpc_link import GrpcDialler
from hospital_node.link import Link
from tests.certificate_factory import (
    CLIENT,
    FEDERATION,
    SERVER,
    Authority,
    Spec,
    make,
    new_ca,
    write_identity,
)

NOW = SystemClock().unix()
CA = new_ca(now=NOW)
GARBAGE = b"\x0a\xff\xff\xff\xff\xff\xff"
END = UploadEnd(HeaderDigest(bytes(32)), Sha256(bytes(32)), Sha256(bytes(32)), (), (), bytes(64))


def _identity(folder: Path, spec: Spec, signer: Authority = CA) -> Identity:
    return load_identity(
        write_identity(folder, make(spec, signer, NOW), spec.key, signer), now_unix=NOW
    )


async def _stream(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
    yield GARBAGE
    async for _ in requests:
        pass


async def _down(_request: bytes, _context: object) -> AsyncIterator[bytes]:
    yield GARBAGE


async def _up(requests: AsyncIterator[bytes], _context: object) -> bytes:
    async for _ in requests:
        pass
    return GARBAGE


@contextlib.asynccontextmanager
async def _hostile(tmp_path: Path) -> AsyncIterator[Link]:
    """A link to a coordinator with a good certificate and bad manners."""
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Session": grpc.stream_stream_rpc_method_handler(_stream),
        "Download": grpc.unary_stream_rpc_method_handler(_down),
        "Upload": grpc.stream_unary_rpc_method_handler(_up),
    }
    uri = f"spiffe://{FEDERATION}/coordinator/main"
    coordinator = _identity(
        tmp_path / "c", Spec(uris=(uri,), dns=("localhost",), purposes=(SERVER, CLIENT))
    )
    listener = server([])
    listener.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("fedcare.v1.Aggregation", methods),)
    )
    port = bind(listener, "127.0.0.1:0", server_credentials(coordinator))
    await listener.start()
    hospital = _identity(tmp_path / "h", Spec())
    link = await GrpcDialler(f"localhost:{port}", hospital, None, SystemClock())()
    try:
        yield link
    finally:
        await link.close()
        await listener.stop(0)


async def _listen(link: Link) -> None:
    async for _ in link.messages():
        pass


async def _download(link: Link) -> None:
    async for _ in link.download(Sha256(bytes(32)), 0):
        pass


async def _upload(link: Link) -> None:
    async def chunks() -> AsyncIterator[UploadChunk]:
        yield UploadChunk(0, b"x")

    await link.upload(UploadStart("t", HeaderDigest(bytes(32)), 0), chunks(), END)


@pytest.mark.parametrize("use", [_listen, _download, _upload])
async def test_bytes_that_are_no_message_are_an_error_of_the_catalogue(
    tmp_path: Path, use: object
) -> None:
    async with _hostile(tmp_path) as link:
        with pytest.raises(FedError) as found:
            await asyncio.wait_for(use(link), 20)  # type: ignore[operator]
    assert found.value.name in {"BAD_MESSAGE", "UNREACHABLE"}
