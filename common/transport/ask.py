"""Asking a service of this machine how it is: what the two health commands do.

A container's engine runs them every few seconds, so they load as little as they can: no
certificate is parsed unless the connection fails and somebody has to be told why.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from common.errors import ConnectError, RoundError
from common.transport.options import channel_options
from common.transport.status import from_rpc

WHOLE: Final = ""
"""The name under which the process as a whole is asked."""

LINK: Final = "fedcare.link"
"""Of a node: its session with the coordinator."""

SOCKET: Final = "health.sock"
"""A node's socket, in its state directory."""

ANSWER_S: Final = 5.0
"""How long an answer is waited for."""

_DIRECT: Final = ("grpc.enable_http_proxy", 0)


class Health(StrEnum):
    """What was found."""

    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    NO_ANSWER = "NO_ANSWER"
    """Somebody listens, but nobody answers: the event loop is stuck."""


@dataclass(frozen=True, slots=True)
class PemFiles:
    """What a caller shows and trusts, as files."""

    certificate: Path
    key: Path
    ca: Path


def expecting(name: str | None) -> list[tuple[str, str]]:
    """Return the setting with which a certificate has to carry `name`; None: the host dialled."""
    return [] if name is None else [("grpc.ssl_target_name_override", name)]


@contextmanager
def entered(directory: Path) -> Iterator[tuple[int, str]]:
    """Open a directory and yield its handle and the socket's gRPC address in it.

    A socket's path has at most 107 bytes, a state directory's often more; and gRPC reads
    `%` and `?` in a path as parts of a URL. A path through the open handle has neither.
    """
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield handle, f"unix:/proc/self/fd/{handle}/{SOCKET}"
    finally:
        os.close(handle)


async def ask_at(address: str, files: PemFiles, name: str | None = None) -> Health:
    """Return how the coordinator at `host:port` is; `name` is its certificate's, if not the host.

    Raises:
        ConnectError, IdentityError: no connection.
        OSError: a file cannot be read.
    """
    credentials = grpc.ssl_channel_credentials(
        root_certificates=files.ca.read_bytes(),
        private_key=files.key.read_bytes(),
        certificate_chain=files.certificate.read_bytes(),
    )
    # This machine is not behind its proxy.
    options = [*channel_options(), _DIRECT, *expecting(name)]
    async with grpc.aio.secure_channel(address, credentials, options=options) as lane:
        return await _ask(lane, WHOLE, address)


async def ask_in(directory: Path, service: str) -> Health:
    """Return how a service of the node of that state directory is.

    Raises:
        ConnectError: UNREACHABLE, no node answers there.
    """
    try:
        with entered(directory) as (_, address):
            async with grpc.aio.insecure_channel(address, options=channel_options()) as lane:
                return await _ask(lane, service, str(directory / SOCKET))
    except OSError as error:
        raise ConnectError("UNREACHABLE", f"{directory}: {error.strerror}") from None


async def _ask(lane: grpc.aio.Channel, service: str, shown: str) -> Health:
    stub = health_pb2_grpc.HealthStub(lane)
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        answer = await stub.Check(request, timeout=ANSWER_S)
    except grpc.aio.AioRpcError as failure:
        error = from_rpc(failure, address=shown)
        if isinstance(error, RoundError) and error.name == "DEADLINE":
            return Health.NO_ANSWER
        raise error from None
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return Health.SERVING if serving else Health.NOT_SERVING
