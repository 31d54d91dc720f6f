"""The small HTTP port for probes and scrapers: three pages, GET and HEAD, nothing else.

    /healthz   200 `ok` while the event loop beats
    /readyz    200 `ready` when the service does its work, else 503 with one line why
    /metrics   Prometheus text

It runs an event loop of its own in a thread, so that it can say that the service's loop is
stuck. What comes in is bounded: bytes of a request, seconds of a connection, connections.
When there are too many the oldest goes, so that slow ones do not keep a probe out. No byte
of a request comes back in an answer or a log. It speaks plain text and knows no passwords:
by default it listens on loopback only.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final, TypeVar

from common.address import split_address
from common.errors import ConfigError, ConnectError, FedError, InternalError
from common.events import Event
from common.pulse import Pulse

P = TypeVar("P")

TEXT: Final = "text/plain; charset=utf-8"
PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may use up."""

    request_bytes: int = 8 << 10
    """Request line and headers together."""
    seconds: float = 5.0
    """Of one connection, from the first byte to the last."""
    connections: int = 32
    linger_s: float = 0.5
    """How long the rest of a refused request is read, so that the answer arrives."""


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    status: int
    body: str
    kind: str = TEXT


Pages = Mapping[str, Callable[[], Page]]
"""Path -> what makes the page; called in the port's thread."""

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_REQUEST: Final = re.compile(rb"([A-Z]{1,20}) (/[!-~]{0,1023}) HTTP/1\.[01]\r\n")
_METHODS: Final = frozenset({b"GET", b"HEAD"})


def pages_of(
    pulse: Pulse[P], not_ready: Callable[[P], str], metrics: Callable[[], str]
) -> dict[str, Callable[[], Page]]:
    """Return the three pages of a service.

    `not_ready` says from a picture of the loop in one line why it is not ready, or nothing.
    """

    def healthz() -> Page:
        stuck_s = pulse.stuck_for_s
        if stuck_s:
            return Page(503, f"the event loop has not moved for {stuck_s:.0f} s\n")
        return Page(200, "ok\n")

    def readyz() -> Page:
        alive = healthz()
        why = not_ready(pulse.last)
        if alive.status != 200 or not why:  # noqa: PLR2004 - HTTP's own number
            return alive if alive.status != 200 else Page(200, "ready\n")  # noqa: PLR2004
        return Page(503, f"{why}\n")

    return {
        "/healthz": healthz,
        "/readyz": readyz,
        "/metrics": lambda: Page(200, metrics(), PROMETHEUS),
    }


def in_loop(failure: Callable[[Event, FedError], None]) -> Callable[[Exception], None]:
    """Return what logs a bug of a page from the port's thread, in the loop that calls this."""
    loop = asyncio.get_running_loop()

    def on_bug(bug: Exception) -> None:
        found = bug if isinstance(bug, FedError) else InternalError(type(bug).__name__)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(failure, Event.INTERNAL_ERROR, found)

    return on_bug


@dataclass(slots=True)
class HttpPort:
    """Listens from `open` to `close`; both are called from the service's own thread."""

    address: str
    """As the configuration says it; port 0 takes one that is free."""
    pages: Pages
    on_bug: Callable[[Exception], None]
    """Told, in the port's thread, when a page cannot be made."""
    limits: Limits = Limits()
    _thread: threading.Thread | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _open: dict[asyncio.Task[None], None] = field(default_factory=dict)
    """Connections, oldest first."""

    def open(self) -> str:
        """Begin to listen and return the address with its port.

        Raises:
            ConnectError: PORT_IN_USE, taken, or not allowed for this user.
            ConfigError: BAD_VALUE, the address is not this machine's.
            OSError: no more files may be opened.
        """
        listener = _listen(self.address)
        port = listener.getsockname()[1]
        begun: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(listener, begun), name="http", daemon=True
        )
        self._thread.start()
        begun.result()
        return f"{self.address.rsplit(':', 1)[0]}:{port}"

    def close(self) -> None:
        """Stop listening and end what is open; may be called twice."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._loop = self._thread = None
        with contextlib.suppress(RuntimeError):  # it ended by itself
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join(self.limits.seconds)

    # --- in the port's own thread -----------------------------------------------------

    def _run(self, listener: socket.socket, begun: Future[None]) -> None:
        try:
            asyncio.run(self._serve(listener, begun))
        except Exception as failure:
            if begun.done():
                raise
            listener.close()
            begun.set_exception(failure)

    async def _serve(self, listener: socket.socket, begun: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(
            self._connected, sock=listener, limit=self.limits.request_bytes, backlog=32
        )
        begun.set_result(None)
        with contextlib.suppress(asyncio.CancelledError):
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        while len(self._open) >= self.limits.connections:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        self._open[task] = None
        try:
            async with asyncio.timeout(self.limits.seconds):
                await self._answer(reader, writer)
        except (TimeoutError, OSError, asyncio.CancelledError):
            pass  # too slow, gone, or shown out: nothing more is owed
        except Exception as bug:  # noqa: BLE001 - the outermost place of a connection
            self.on_bug(bug)
        finally:
            self._open.pop(task, None)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            page, wants_body = Page(431, "the request is too large\n"), True
        except asyncio.IncompleteReadError:
            return
        else:
            page, wants_body = self._page(head)
        writer.write(_encode(page, with_body=wants_body))
        await writer.drain()
        writer.write_eof()
        # Closed with unread bytes, a connection is reset and the answer lost.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.linger_s):
                while await reader.read(self.limits.request_bytes):
                    pass

    def _page(self, head: bytes) -> tuple[Page, bool]:
        """Return the answer, and whether it is sent with its body."""
        found = _REQUEST.match(head)
        if found is None:
            return Page(400, "not a request of HTTP/1.1\n"), True
        method, target = found[1], found[2].decode("ascii")
        make = self.pages.get(target.partition("?")[0])
        if make is None:
            return Page(404, f"here are {', '.join(self.pages)}\n"), method != b"HEAD"
        if method not in _METHODS:
            return Page(405, "GET and HEAD only\n"), True
        try:
            return make(), method == b"GET"
        except Exception as bug:  # noqa: BLE001 - a page that cannot be made is an answer too
            self.on_bug(bug)
            return Page(500, "this page cannot be made; the log says why\n"), method == b"GET"


def _encode(page: Page, *, with_body: bool) -> bytes:
    body = page.body.encode()
    head = [
        f"HTTP/1.1 {page.status} {_REASONS[page.status]}",
        f"Content-Type: {page.kind}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if page.status == 405:  # noqa: PLR2004 - HTTP's own number
        head.append("Allow: GET, HEAD")
    return "\r\n".join([*head, "", ""]).encode("ascii") + (body if with_body else b"")


def _listen(address: str) -> socket.socket:
    """Return a bound socket; messages name the key `http`, which is where the address stands."""
    host, port = split_address(address)
    try:
        family, kind, proto, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(32)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConnectError(
                "PORT_IN_USE",
                f"http: {address} is taken",
                fix="Stop the other program, or set `http` to another port, or to null for none.",
            ) from None
        if error.errno == errno.EACCES:
            raise ConnectError(
                "PORT_IN_USE",
                f"http: this user may not listen on {address}",
                fix="Set `http` to a port above 1023.",
            ) from None
        raise ConfigError(
            "BAD_VALUE", f"http: {address} is not an address of this machine"
        ) from None
    return listener
