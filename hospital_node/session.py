"""One connection to the coordinator: hello, heartbeats both ways, messages in.

The control stream is the only sign of life: a coordinator that says nothing for three
heartbeats is treated as gone, whatever its kernel acknowledges (fault F21). `LinkSlot`
is where the rest of the node finds the connection of the moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from common.clock import Clock
from common.errors import ConnectError, IdentityError
from common.failpoints import passes
from common.messages import Heartbeat, Hello, Welcome
from hospital_node.link import CoordinatorOut, Link, NodeOut, closing

WELCOME_S: Final = 10.0
"""Heartbeat interval until the coordinator names its own."""

SILENT_BEATS: Final = 3
"""Heartbeats without a word after which the other side counts as gone."""

_SHORTEST_BEAT_S: Final = 0.05
_LONGEST_BEAT_S: Final = 300.0

Sleep: TypeAlias = Callable[[float], Awaitable[object]]


class LinkSlot:
    """Holds the live link, if there is one."""

    def __init__(self) -> None:
        self._link: Link | None = None
        self._up = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether a link is there."""
        return self._link is not None

    def fill(self, link: Link) -> None:
        """Put in a link that has been welcomed."""
        self._link = link
        self._up.set()

    def empty(self) -> None:
        """Take the link out: the connection is over."""
        self._link = None
        self._up.clear()

    async def get(self) -> Link:
        """Return the link, waiting for one as long as it takes."""
        while True:
            if self._link is not None:
                return self._link
            await self._up.wait()

    async def send(self, task: str, message: NodeOut) -> bool:
        """Send if connected; say whether it was handed to the stream.

        A message that is lost is not sent again from here: after a reconnect the
        machine repeats what the coordinator may have missed.
        """
        link = self._link
        if link is None:
            return False
        if not passes("node.send"):
            return True
        try:
            await link.send(task, message)
        except ConnectError:
            return False  # the reader of this link notices by itself
        return True


@dataclass(frozen=True, slots=True)
class Ears:
    """Whom a connection tells what."""

    welcomed: Callable[[Welcome], None]
    message: Callable[[str, CoordinatorOut], Awaitable[None]]
    tick: Callable[[], None]
    """Called with each heartbeat."""


class Connection:
    """The life of one link, from hello to its end."""

    def __init__(self, link: Link, federation: str, clock: Clock, sleep: Sleep) -> None:
        self._link = link
        self._federation = federation
        self._clock = clock
        self._sleep = sleep
        self._beat_s = WELCOME_S
        self._welcomed = asyncio.Event()
        self._heard = clock.monotonic()

    @property
    def beat_s(self) -> float:
        """Seconds between two heartbeats."""
        return self._beat_s

    async def serve(self, hello: Hello, ears: Ears) -> None:
        """Run until the connection ends; never returns normally.

        Raises:
            ConnectError: the stream ended, broke, or went silent.
            FedError: what the coordinator refused us for, or a handler's failure.
        """
        await self._link.send("", hello)
        jobs = {
            asyncio.create_task(self._listen(ears)),
            asyncio.create_task(self._beat(ears)),
        }
        try:
            done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            for job in done:
                job.result()
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    async def _listen(self, ears: Ears) -> None:
        async with closing(self._link.messages()) as stream:
            async for task, message in stream:
                self._heard = self._clock.monotonic()
                match message:
                    case Welcome() if not self._welcomed.is_set():
                        self._welcome(message)
                        ears.welcomed(message)
                    case Heartbeat() | Welcome():
                        pass
                    case _ if self._welcomed.is_set():
                        await ears.message(task, message)
                    case _:
                        raise ConnectError(
                            "UNREACHABLE", "the coordinator spoke before its welcome"
                        )
        raise ConnectError("UNREACHABLE", "the coordinator ended the stream")

    def _welcome(self, welcome: Welcome) -> None:
        if welcome.federation != self._federation:
            raise IdentityError(
                "IDENTITY",
                f"the coordinator serves federation {welcome.federation}, not {self._federation}",
            )
        seconds = welcome.heartbeat_ms / 1000
        self._beat_s = min(max(seconds, _SHORTEST_BEAT_S), _LONGEST_BEAT_S)
        self._welcomed.set()

    async def _beat(self, ears: Ears) -> None:
        counter = 0
        while True:
            await self._pause()
            silent_s = self._clock.monotonic() - self._heard
            if silent_s > SILENT_BEATS * self._beat_s:
                raise ConnectError(
                    "UNREACHABLE", f"the coordinator has been silent for {silent_s:.1f} s"
                )
            counter += 1
            ears.tick()
            await self._link.send("", Heartbeat(counter))

    async def _pause(self) -> None:
        """Wait for one heartbeat; the coordinator's own interval begins with its welcome."""
        if not self._welcomed.is_set():
            unheard = asyncio.ensure_future(self._sleep(self._beat_s))
            welcome = asyncio.ensure_future(self._welcomed.wait())
            try:
                await asyncio.wait((unheard, welcome), return_when=asyncio.FIRST_COMPLETED)
            finally:
                unheard.cancel()
                welcome.cancel()
                await asyncio.gather(unheard, welcome, return_exceptions=True)
            if not self._welcomed.is_set():
                return
        await self._sleep(self._beat_s)
