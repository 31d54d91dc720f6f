"""A TCP proxy that does to a connection what networks do, on order (instrument I3).

    async with Proxy(coordinator, seed=1) as proxy:      # nodes dial proxy.address
        proxy.up.bytes_per_s = 32_000                    # a slow line
        proxy.down.latency_s, proxy.down.jitter_s = 0.3, 0.1
        proxy.up.hold()                                  # a one-way blackhole ...
        proxy.up.go_on()                                 # ... ends
        proxy.cut_after = lambda: 2_000_000              # each new connection: a reset there
        proxy.flip(proxy.up, at=4_000)                   # one bit of the next connection
        print(proxy.up.bytes, proxy.down.bytes)          # what passed, all connections

"Up" is from the one who dials. It sees ciphertext only. One thing it cannot do: bytes that it
does not pass on its own kernel has acknowledged, which a network that drops them would not;
tests/faults/namespaces.py has the real thing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from typing import Any, Final, Self

from common.address import split_address

_BLOCK: Final = 1 << 16
_SLOW_BLOCK: Final = 1 << 12
_NOW: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset."""


@dataclass(slots=True)
class Way:
    """One direction, of all the connections of a proxy. Its figures may change at any time."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None
    bytes: int = 0
    """Passed on since the start."""
    flip_at: int | None = None
    flipped: int = 0
    line: asyncio.Lock = field(default_factory=asyncio.Lock)
    """A slow line's connections share it."""
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._open.set()

    def hold(self) -> None:
        """Pass nothing on; what comes stays where it is."""
        self._open.clear()

    def go_on(self) -> None:
        """Pass on again, first what was held."""
        self._open.set()

    def flip_next(self) -> None:
        """Turn one bit of what comes next, on whichever connection."""
        self.flip_at = -1

    async def passing(self) -> None:
        """Return once nothing holds this direction."""
        await self._open.wait()


class End(Enum):
    """How a connection ends at the proxy's hand."""

    RESET = auto()
    CLOSE = auto()
    """In order, at both ends."""
    HALF = auto()
    """The far end is reset, the near end is told nothing."""


@dataclass(slots=True)
class Connection:
    """One connection: from the one who dials to the target."""

    near: socket.socket
    far: socket.socket
    cut_after: int | None
    passed: int = 0
    """Bytes of both directions."""
    recording: bytearray = field(default_factory=bytearray)
    """Every byte that went up, if the proxy records."""
    how: End = End.CLOSE
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, how: End) -> None:
        """Have it end."""
        if not self.over.is_set():
            self.how = how
            self.over.set()


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOW)
    end.close()


class Proxy:
    """See the module. `target` may be changed: it is where new connections lead."""

    def __init__(self, target: str, *, seed: int = 0) -> None:
        self.target = target
        self.up = Way()
        self.down = Way()
        self.cut_after: Callable[[], int | None] = lambda: None
        """Asked for each new connection: the bytes, both ways, after which it is cut."""
        self.truncate = False
        """Cut by an orderly end instead of a reset."""
        self.refusing = False
        """New connections are reset at once."""
        self.records = False
        self.connections: list[Connection] = []
        """Those that are open."""
        self.recordings: list[bytes] = []
        """What went up on each connection that ended while the proxy recorded."""
        self.accepted = 0
        self.cuts = 0
        self._chance = random.Random(seed)  # noqa: S311 - when a network fails is no secret
        self._jobs: set[asyncio.Task[None]] = set()
        self._kept: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)  # noqa: FBT003 - the socket's own signature
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._run(self._accept())
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        for end in (self._listener, *self._kept):
            end.close()

    # --- orders -----------------------------------------------------------------------------

    def hold(self) -> None:
        """Pass nothing on, either way: a partition."""
        self.up.hold()
        self.down.hold()

    def go_on(self) -> None:
        """Pass on again, both ways."""
        self.up.go_on()
        self.down.go_on()

    def reset(self) -> None:
        """Reset every connection that is open."""
        for connection in self.connections:
            connection.end(End.RESET)

    def reset_after(self, count: int) -> None:
        """Reset every connection that is open after so many more bytes."""
        for connection in self.connections:
            connection.cut_after = connection.passed + count

    def half_open(self) -> None:
        """The far end of each open connection is gone; the near end is told nothing."""
        for connection in self.connections:
            connection.end(End.HALF)

    def flip(self, way: Way, at: int) -> None:
        """Turn one bit of the byte number `at` of a connection, the first to get there."""
        way.flip_at = at

    async def replay(self, recorded: bytes, patience_s: float = 5.0) -> bytes:
        """Send recorded bytes to the target on a connection of their own; return its answer.

        Returns when the target ends the connection.

        Raises:
            TimeoutError: it did not.
        """
        reader, writer = await asyncio.open_connection(*split_address(self.target))
        try:
            async with asyncio.timeout(patience_s):
                with contextlib.suppress(OSError):
                    writer.write(recorded)
                    await writer.drain()
                answer = bytearray()
                with contextlib.suppress(OSError):
                    while piece := await reader.read(_BLOCK):
                        answer += piece
                return bytes(answer)
        finally:
            writer.close()

    # --- connections --------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        job = asyncio.create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            near, _ = await loop.sock_accept(self._listener)
            self.accepted += 1
            if self.refusing:
                _reset(near)
            else:
                self._run(self._serve(near))

    async def _serve(self, near: socket.socket) -> None:
        far = socket.socket()
        for end in (near, far):
            end.setblocking(False)  # noqa: FBT003
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(near, far, self.cut_after())
        self.connections.append(connection)
        try:
            await asyncio.get_running_loop().sock_connect(far, split_address(self.target))
            await self._carry(connection)
        except OSError:
            connection.end(End.RESET)
        finally:
            if self.records:
                self.recordings.append(bytes(connection.recording))
            self.connections.remove(connection)
            self._finish(connection)
        if connection.how is End.HALF:
            self._kept.append(near)

    def _finish(self, connection: Connection) -> None:
        match connection.how:
            case End.CLOSE:
                connection.near.close()
                connection.far.close()
            case End.RESET:
                _reset(connection.near)
                _reset(connection.far)
            case End.HALF:
                _reset(connection.far)

    async def _carry(self, connection: Connection) -> None:
        """Carry both directions to their ends, or until the connection is ended."""
        near, far = connection.near, connection.far
        work = asyncio.gather(
            self._pump(connection, near, far, self.up), self._pump(connection, far, near, self.down)
        )
        order = asyncio.create_task(connection.over.wait())
        try:
            await asyncio.wait((work, order), return_when=asyncio.FIRST_COMPLETED)
            if not connection.over.is_set():
                work.result()
        finally:
            work.cancel()
            order.cancel()
            await asyncio.gather(work, order, return_exceptions=True)

    async def _pump(
        self, connection: Connection, source: socket.socket, sink: socket.socket, way: Way
    ) -> None:
        """Carry one direction of one connection to its end."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        await asyncio.gather(
            self._take(connection, source, line, way), self._deliver(connection, line, sink, way)
        )

    async def _take(
        self,
        connection: Connection,
        source: socket.socket,
        line: asyncio.Queue[tuple[float, bytes]],
        way: Way,
    ) -> None:
        loop = asyncio.get_running_loop()
        due, taken = 0.0, 0
        while True:
            data = await loop.sock_recv(source, _BLOCK if way.bytes_per_s is None else _SLOW_BLOCK)
            await way.passing()
            delay = way.latency_s + way.jitter_s * self._chance.uniform(-1.0, 1.0)
            due = max(due, loop.time() + max(0.0, delay))  # TCP keeps the order
            if way is self.up and self.records:
                connection.recording += data
            await line.put((due, _flipped(data, taken, way)))
            if not data:
                return
            taken += len(data)

    async def _deliver(
        self,
        connection: Connection,
        line: asyncio.Queue[tuple[float, bytes]],
        sink: socket.socket,
        way: Way,
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await line.get()
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            await way.passing()
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            room = len(data)
            if connection.cut_after is not None:
                room = min(room, connection.cut_after - connection.passed)
            connection.passed += room
            way.bytes += room
            async with way.line:
                await loop.sock_sendall(sink, data[:room])
                if way.bytes_per_s is not None:
                    await asyncio.sleep(room / way.bytes_per_s)
            if connection.passed == connection.cut_after and not connection.over.is_set():
                self.cuts += 1
                connection.end(End.CLOSE if self.truncate else End.RESET)


def _flipped(data: bytes, taken: int, way: Way) -> bytes:
    """Return `data`, which begins at byte `taken` of its connection, with the bit turned."""
    if way.flip_at is None or not data:
        return data
    place = len(data) // 2 if way.flip_at < 0 else way.flip_at - taken
    if not 0 <= place < len(data):
        return data
    changed = bytearray(data)
    changed[place] ^= 0x01
    way.flip_at = None
    way.flipped += 1
    return bytes(changed)
