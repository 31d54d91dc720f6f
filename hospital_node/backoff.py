"""How long to wait before dialling again: full jitter (P4, faults F17, F29, F30).

Attempt k waits a uniformly random time between 0 and the least of 0.2 s x 2^k, five minutes,
and a tenth of the time for which nothing worked (but at least a second). The whole range is
random, not only its end, so that a hundred hospitals that lost the coordinator in the same
second do not come back in the same second.

The tenth is what lets a hospital still count in the round that is open: an outage grows by a
tenth at most, however many attempts, or starts of the coordinator, there were in it. Without
it five starts in a minute were followed by a wait of up to a minute. The five minutes are for
the coordinator that is gone for a day: it costs a node some 24 attempts an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from common.entropy import OsEntropy

FIRST_S: Final = 0.2
SHORT_S: Final = 1.0
SHARE: Final = 0.1
"""The longest wait, in parts of the time since something last worked."""
LONGEST_S: Final = 300.0
_UNIT: Final = 1 << 64


def os_jitter() -> float:
    """Return a uniform number in [0, 1) from the operating system's generator."""
    return int.from_bytes(OsEntropy().take(8), "big") / _UNIT


@dataclass(slots=True)
class Backoff:
    """Counts failed attempts; `jitter` returns uniform numbers in [0, 1).

    `now`: monotonic seconds.
    """

    jitter: Callable[[], float] = field(default=os_jitter)
    now: Callable[[], float] = field(default=time.monotonic)
    failures: int = 0
    _since: float = field(init=False)
    """When something last worked."""

    def __post_init__(self) -> None:
        self._since = self.now()

    def failed(self, asked_s: float = 0.0) -> float:
        """Note a failed attempt; return the seconds to wait before the next one.

        `asked_s`: what the other side asked for. It is waited for, and up to half as long again.
        """
        gone_s = self.now() - self._since
        ceiling = min(FIRST_S * 2.0 ** min(self.failures, 32), max(SHORT_S, SHARE * gone_s))
        self.failures += 1
        wait = self.jitter() * min(ceiling, LONGEST_S)
        if asked_s > 0:
            asked_s = min(asked_s, LONGEST_S)
            wait = max(wait, asked_s * (1.0 + self.jitter() / 2))
        return wait

    def succeeded(self) -> None:
        """Forget the failures: the next wait is a short one again."""
        self.failures = 0
        self._since = self.now()
