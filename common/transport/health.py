"""The standard `grpc.health.v1.Health` of both services; `common.transport.ask` asks it.

A service is a name and a question: `serving()` says whether it serves now. Check answers
at once. Watch looks every second and sends what changed; it ends when the process stops.
Where the port faces the network the `Guard` stands in front, as in front of every method,
so a watch is one of the calls that a peer may have open, and no more.

A node has no port. It answers on a Unix socket in its state directory, which no other user
may enter. The event loop that does the node's work also answers here: an answer is itself
the proof that the loop turns.

The packaged servicer is not used: it keeps a lock and an entry for every name that a peer
makes up, and one watcher that does not read keeps the status from being changed.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from common.certificates import Role
from common.errors import StateError
from common.transport.ask import SOCKET, entered
from common.transport.interceptors import MethodTable
from common.transport.options import server_options

WATCH_EVERY_S: Final = 1.0
_CALLS_ON_SOCKET: Final = 8

_EVERYBODY: Final = frozenset(Role)
HEALTH_METHODS: Final[MethodTable] = {
    "/grpc.health.v1.Health/Check": _EVERYBODY,
    "/grpc.health.v1.Health/Watch": _EVERYBODY,
}
"""Rows for a guard's table."""

Context = grpc.aio.ServicerContext[Any, Any]
_Status = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # has no types
    """Answers for a closed set of services."""

    def __init__(
        self, services: Mapping[str, Callable[[], bool]], *, every_s: float = WATCH_EVERY_S
    ) -> None:
        self._services = dict(services)
        self._every_s = every_s
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Serve no more, tell every watcher so and let it go."""
        self._stopping.set()

    async def Check(  # noqa: N802 - the method's name on the wire
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Say how a service is."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, _context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Say how a service is, now and after each change."""
        told = None
        while True:
            over = self._stopping.is_set()
            status = self._status(request.service)
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            if over:
                return
            try:
                await asyncio.wait_for(self._stopping.wait(), self._every_s)
            except TimeoutError:
                continue

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        serving = self._services.get(service)
        if serving is None:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if not self._stopping.is_set() and serving() else _Status.NOT_SERVING


def add_health(servicer: HealthServicer, listener: grpc.aio.Server) -> None:
    """Put the health service on a server."""
    health_pb2_grpc.add_HealthServicer_to_server(servicer, listener)


# --- a Unix socket -----------------------------------------------------------------------


@contextmanager
def local_server(directory: Path, servicer: HealthServicer) -> Iterator[grpc.aio.Server]:
    """Yield a server, not started yet, on the socket in a directory; stop it inside the block.

    The caller holds the directory's lock: a socket that lies there is a dead process's.

    Raises:
        StateError: DISK, no socket can be made there.
    """
    with entered(directory) as (handle, address):
        _check_free(directory, handle)
        listener = grpc.aio.server(
            options=server_options(), maximum_concurrent_rpcs=_CALLS_ON_SOCKET
        )
        add_health(servicer, listener)
        try:
            listener.add_insecure_port(address)
            (directory / SOCKET).chmod(0o600)
        except (RuntimeError, OSError):
            raise StateError(
                "DISK",
                f"{directory / SOCKET}: no socket can be made there",
                fix="Keep state_dir on a local file system of Linux, with /proc mounted.",
            ) from None
        yield listener


def _check_free(directory: Path, handle: int) -> None:
    """Refuse a place where something other than a dead process' socket lies.

    gRPC itself removes such a socket when it begins to listen, and its own when it stops.
    """
    try:
        found = os.stat(SOCKET, dir_fd=handle, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise StateError(
            "DISK",
            f"{directory / SOCKET} is in the way: it is no socket",
            fix="Move it away; the node makes its socket there.",
        )
