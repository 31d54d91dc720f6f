"""Time as an argument: code below the composition roots never asks the system."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


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
