"""How long to wait before dialling again: full jitter (P4, fault F30).

Attempt k waits a uniformly random time between 0 and min(60 s, 0.2 s x 2^k). The
whole range is random, not only its end, so that a hundred hospitals that lost the
coordinator in the same second do not come back in the same second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from common.entropy import OsEntropy

FIRST_S: Final = 0.2
LONGEST_S: Final = 60.0
_UNIT: Final = 1 << 64


def os_jitter() -> float:
    """Return a uniform number in [0, 1) from the operating system's generator."""
    return int.from_bytes(OsEntropy().take(8), "big") / _UNIT


@dataclass(slots=True)
class Backoff:
    """Counts failed attempts; `jitter` returns uniform numbers in [0, 1)."""

    jitter: Callable[[], float] = field(default=os_jitter)
    first_s: float = FIRST_S
    longest_s: float = LONGEST_S
    failures: int = 0

    def failed(self) -> float:
        """Note a failed attempt; return the seconds to wait before the next one."""
        ceiling = min(self.longest_s, self.first_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return self.jitter() * ceiling

    def succeeded(self) -> None:
        """Forget the failures: the next wait is a short one again."""
        self.failures = 0
