"""How many bulk streams move at a time, and how many hospitals arrive at a time.

Each stream that is read or written costs memory in gRPC's buffers, so only a few have
a turn at once. A stream that makes no progress for `patience_s` lends its turn to
another and takes the next free one when its peer has caught up: a hospital behind a
slow line, or one that stalls on purpose, delays nobody else's traffic.

Hospitals that all come back in the same moment are let in so many a second; the others are
told when to try again, each a later time (fault F30).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, NoReturn, TypeVar

from common.clock import Clock
from common.errors import Refusal, RoundError

T = TypeVar("T")

PATIENCE_S: Final = 0.5
"""Longer than a chunk takes on a fast line, much shorter than a round."""


class Turn:
    """One stream's turn; made by `Turnstile.turn`."""

    def __init__(self, slots: tuple[asyncio.Semaphore, ...], patience_s: float) -> None:
        self._slots = slots
        self._patience_s = patience_s
        self._timer: asyncio.TimerHandle | None = None
        self._held = False

    async def take(self) -> None:
        """Wait for a turn."""
        async with AsyncExitStack() as taken:
            for slot in self._slots:
                await slot.acquire()
                taken.callback(slot.release)
            taken.pop_all()
        self._held = True

    def waiting(self) -> None:
        """The stream now waits for its peer; the turn is lent if that takes long."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._patience_s, self.give)

    async def going_on(self) -> None:
        """The peer has caught up: keep the turn, or take one again if it was lent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._held:
            await self.take()

    def give(self) -> None:
        """Let another stream have the turn."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._held:
            self._held = False
            for slot in self._slots:
                slot.release()


class Turnstile:
    """Admits `limit` streams at a time, and of each owner one."""

    def __init__(self, limit: int, patience_s: float = PATIENCE_S) -> None:
        self._slots = asyncio.Semaphore(limit)
        self._own: dict[str, asyncio.Semaphore] = {}
        self._patience_s = patience_s

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[Turn]:
        """Hold a turn for the length of the block, but for the times it is lent.

        An owner's second stream waits for its first: it gains nothing by having many.
        """
        own = self._own.setdefault(owner, asyncio.Semaphore(1))
        turn = Turn((own, self._slots), self._patience_s)
        await turn.take()
        try:
            yield turn
        finally:
            turn.give()


async def patiently(parts: AsyncIterator[T], turn: Turn) -> AsyncIterator[T]:
    """Yield what a peer sends, lending the turn while nothing comes."""
    while True:
        turn.waiting()
        try:
            part = await anext(parts)
        except StopAsyncIteration:
            return
        await turn.going_on()
        yield part


async def at_most(parts: AsyncIterator[T], count: int) -> AsyncIterator[T]:
    """Yield what a peer sends, as long as it is not more than `count` parts.

    Raises:
        Refusal: UPLOAD_SIZE.
    """
    async for part in parts:
        count -= 1
        if count < 0:
            raise Refusal("UPLOAD_SIZE", "the stream holds more parts than a whole upload")
        yield part


MOST_ASKED_S: Final = 30.0
"""The longest that a hospital is asked to stay away."""

OWN_BURST: Final = 4
"""One hospital may come once a second, and so often at once: its line broke again and again."""

_ROUNDING_S: Final = 1e-6


class Arrivals:
    """Lets in `per_s` a second, as many at once; the rest are given turns to come back at.

    A hospital that comes too often itself is told so before it could take others' turns.
    """

    def __init__(self, per_s: int, clock: Clock) -> None:
        self._per_s = per_s
        self._clock = clock
        self._own: dict[str, float] = {}
        """When each hospital's own arrivals are paid for, at one a second. Members only."""
        self._all = clock.monotonic()
        """When everybody who was let in is paid for; a second ahead of now is the most."""
        self._given = self._all
        """The latest turn that was given to somebody who was refused."""
        self._turns: dict[str, float] = {}
        """Whose turn is when; who comes before it is told the same one, and takes no other."""

    def admit(self, who: str) -> None:
        """Let a hospital in.

        Raises:
            RoundError: BUSY, with the seconds after which to come back.
        """
        now, each_s = self._clock.monotonic(), 1.0 / self._per_s
        own, everybody = max(self._own.get(who, now), now) + 1.0, max(self._all, now) + each_s
        if own > now + OWN_BURST + _ROUNDING_S:
            _come_back(own - now - OWN_BURST, f"{who} has come too often")
        if everybody > now + 1.0 + _ROUNDING_S:
            if self._turns.get(who, now) <= now:
                self._turns[who] = self._given = max(self._given, now) + each_s
            asked_s = min(self._turns[who] - now, MOST_ASKED_S)
            _come_back(asked_s, f"{self._per_s} hospitals a second are let in, not yet {who}")
        self._own[who], self._all = own, everybody


def _come_back(asked_s: float, why: str) -> NoReturn:
    raise RoundError("BUSY", f"{why}; come back in {asked_s:.1f} s", retry_s=asked_s)
