"""The event loop's sign of life, and what it last saw, for readers in another thread.

The loop beats once a second and leaves a fresh frozen picture behind. A reader takes the
latest one in a single read, without a lock, and sees from its age whether the loop still
turns. What a picture holds is a copy: nobody outside the loop touches the loop's objects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from common.clock import Clock

P = TypeVar("P")

BEAT_S: Final = 1.0
STUCK_S: Final = 10.0
"""A loop that has not moved for so long is stuck; no step of ours takes a tenth of it."""


class Pulse(Generic[P]):
    """See the module. `look` is called in the loop and must be quick."""

    def __init__(
        self,
        look: Callable[[], P],
        clock: Clock,
        *,
        every_s: float = BEAT_S,
        stuck_s: float = STUCK_S,
    ) -> None:
        self._look = look
        self._clock = clock
        self._every_s = every_s
        self._stuck_s = stuck_s
        self._last = (clock.monotonic(), look())

    @property
    def last(self) -> P:
        """What the loop saw at its last beat."""
        return self._last[1]

    @property
    def stuck_for_s(self) -> float:
        """Seconds since the last beat if they are too many, else 0."""
        age = self._clock.monotonic() - self._last[0]
        return age if age > self._stuck_s else 0.0

    def beat(self) -> None:
        """Take a fresh picture; inside the loop only."""
        self._last = (self._clock.monotonic(), self._look())

    async def keep(self) -> None:
        """Beat until cancelled."""
        while True:
            self.beat()
            await asyncio.sleep(self._every_s)
