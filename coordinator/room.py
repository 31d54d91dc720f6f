"""What waits until the disk has room again.

A full disk is no reason to end: what could not be written left nothing behind, so it is held
and tried again, and whatever only reads goes on. A write that failed in any other way is
not tried again: nobody knows what is on the disk then (fault F38).

    await room.patiently("facts", write)       # returns when it is written
    room.why_not                               # "the disk is full: ..." while anything waits
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Final, TypeAlias, TypeVar

from common.clock import Clock
from common.errors import NoRoom, StateError
from common.events import Event
from common.logs import EventLog
from coordinator.failures import Failures, What

RETRY_FIRST_S: Final = 0.5
RETRY_LONGEST_S: Final = 10.0
"""Waits before a write that found no room is tried again: the first one, and the longest."""

T = TypeVar("T")

Purpose: TypeAlias = tuple[str | bytes, str]
"""What is written: of which run or round, and what or whose."""


class Room:
    """Who waits for room; used inside the event loop only."""

    def __init__(self, failures: Failures, clock: Clock, log: EventLog, disk: Executor) -> None:
        self._failures = failures
        self._clock = clock
        self._log = log
        self.disk = disk
        self._waiting: dict[Purpose, NoRoom] = {}
        self._since = 0.0

    @property
    def why_not(self) -> str:
        """Why nothing is written, in one line; empty while the disk takes what comes."""
        return next((f"the disk is full: {one.detail}" for one in self._waiting.values()), "")

    async def patiently(self, what: Purpose, write: Callable[[], Awaitable[T]]) -> T:
        """Do a write; while it finds no room, wait and do it again."""
        pause = RETRY_FIRST_S
        try:
            while True:
                try:
                    done = await write()
                except NoRoom as failure:
                    self._lacks(what, failure)
                else:
                    self._has(what)
                    return done
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_LONGEST_S)
        finally:
            self._waiting.pop(what, None)

    @contextmanager
    def attempt(self, what: Purpose, wanted: Callable[[], bool]) -> Iterator[None]:
        """One attempt to write something; who sent it makes the next one.

        `wanted`: whether it still is, once it failed. A round may have ended meanwhile, and then
        nobody comes again.

        Raises:
            NoRoom: the block did.
        """
        try:
            yield
        except NoRoom as failure:
            if wanted():
                self._lacks(what, failure)
            raise
        self._has(what)

    def drop(self, of: str | bytes) -> None:
        """Nothing of a run or round is written any more."""
        for what in [what for what in self._waiting if what[0] == of]:
            self._has(what)

    def _lacks(self, what: Purpose, failure: NoRoom) -> None:
        if not self._waiting:
            self._since = self._clock.monotonic()
            self._log.failure(Event.STATE_FAILED, failure)
            self._note("full", failure.detail)
        self._waiting[what] = failure

    def _has(self, what: Purpose) -> None:
        if self._waiting.pop(what, None) is not None and not self._waiting:
            waited_s = self._clock.monotonic() - self._since
            self._log.info(Event.STATE_ROOM, seconds=waited_s)
            self._note("room", f"after {waited_s:.1f} s")

    def _note(self, what: What, detail: str) -> None:
        now = self._clock.unix()
        loop = asyncio.get_running_loop()
        loop.run_in_executor(self.disk, lambda: self._failures.note(what, detail, now))

    def stopped(self, failure: StateError) -> None:
        """The process ends, because a write failed and cannot be tried again. Blocking."""
        self._failures.note("stopped", failure.detail, self._clock.unix())
