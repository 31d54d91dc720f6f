"""Time as an argument: code below the composition roots never asks the system."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Protocol


class Clock(Protocol):
    """Two clocks: one for durations, one for certificates and records."""

    def monotonic(self) -> float:
        """Seconds that only grow; every timeout uses these."""
        ...

    def unix(self) -> float:
        """Seconds since 1970-01-01 UTC; for validity and records, never for timeouts."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    def unix(self) -> float:
        """See `Clock`."""
        return time.time()


JUMP_S: Final = 2.0
"""Clocks that a daemon corrects drift by less between two looks."""

CLOCK_THEN: Final = "durations, deadlines and the order of lines are as before; set it right"


class ClockWatch:
    """Notices that the clock of the day was set: it moved by more or less than durations did."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead = clock.unix() - clock.monotonic()

    def jumped(self) -> float:
        """Return by how many seconds it was set since the last look, back below 0; 0 if not."""
        ahead = self._clock.unix() - self._clock.monotonic()
        by, self._ahead = ahead - self._ahead, ahead
        return by if abs(by) > JUMP_S else 0.0


@dataclass(slots=True)
class ManualClock:
    """A clock that a test moves."""

    now: float = 0.0
    epoch: float = 1_800_000_000.0

    def monotonic(self) -> float:
        """See `Clock`."""
        return self.now

    def unix(self) -> float:
        """See `Clock`."""
        return self.epoch + self.now

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self.now += seconds
