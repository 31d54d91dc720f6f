"""How many lines a peer may provoke, so that a storm of them does not fill the disk.

A token bucket for each pair of (event, who): a burst, then a few a minute. All pairs of an
event have one more bucket, so that many peers at once are bounded as well, and a storm of
refused calls never hides that a hospital's link was lost. What is left
out is counted and reported a little later, the largest counts by name and the others in one
line. Only the events of `common.events.LIMITED` pass through here.

The bound, whatever peers do: for each event `BURST_OF_ALL` lines, then `PER_MINUTE_OF_ALL`
a minute; and `MOST_REPORTED` + 1 reports in each `REPORT_EVERY_S`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from common.clock import Clock
from common.events import Event

BURST: Final = 20
PER_MINUTE: Final = 6.0
"""Lines of one event about one peer: at once, and then in a minute."""

BURST_OF_ALL: Final = 1000
PER_MINUTE_OF_ALL: Final = 60.0
"""The same about all peers together; a large federation may well connect at once."""

MOST_BUCKETS: Final = 4096
"""Pairs that are told apart; beyond that pairs share one bucket for each event."""

REPORT_EVERY_S: Final = 60.0
MOST_REPORTED: Final = 10
OTHERS: Final = "others"
"""Who a report is about when it sums up many."""


@dataclass(slots=True)
class _Bucket:
    """`tokens` lines may be written as of `at`; `left_out` were not since `since_unix`."""

    tokens: float
    at: float
    left_out: int = 0
    since_unix: float = 0.0

    def take(self, now: float, burst: float, per_minute: float) -> bool:
        self.tokens = min(burst, self.tokens + (now - self.at) * per_minute / 60)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass(frozen=True, slots=True)
class LeftOut:
    """`lines` of `event` about `who` were not written since `since_unix`."""

    event: str
    who: str
    lines: int
    since_unix: float


class LineLimit:
    """Decides line by line; safe to use from several threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        now = clock.monotonic()
        self._all: dict[Event, _Bucket] = {}
        self._buckets: dict[tuple[Event, str], _Bucket] = {}
        self._report_at = now + REPORT_EVERY_S
        self._forget_at = now
        self._quiet = True
        """Whether nothing was left out since the last report."""

    def admit(self, event: Event, who: str) -> bool:
        """Return whether a line may be written; count it if not."""
        with self._lock:
            now = self._clock.monotonic()
            bucket = self._bucket(event, who, now)
            every = self._all.setdefault(event, _Bucket(BURST_OF_ALL, now))
            if bucket.take(now, BURST, PER_MINUTE) and every.take(
                now, BURST_OF_ALL, PER_MINUTE_OF_ALL
            ):
                return True
            if self._quiet:
                self._quiet = False
                self._report_at = max(self._report_at, now + REPORT_EVERY_S / 6)
            if bucket.left_out == 0:
                bucket.since_unix = self._clock.unix()
            bucket.left_out += 1
            return False

    def _bucket(self, event: Event, who: str, now: float) -> _Bucket:
        key = (event, who)
        if key not in self._buckets:
            if len(self._buckets) >= MOST_BUCKETS and now >= self._forget_at:
                self._forget_idle(now)
            if len(self._buckets) >= MOST_BUCKETS:
                key = (event, OTHERS)
            if key not in self._buckets:
                self._buckets[key] = _Bucket(BURST, now)
        return self._buckets[key]

    def _forget_idle(self, now: float) -> None:
        """Forget the pairs that a new bucket would serve as well."""
        full_s = BURST / PER_MINUTE * 60
        self._forget_at = now + REPORT_EVERY_S
        self._buckets = {
            key: bucket
            for key, bucket in self._buckets.items()
            if bucket.left_out or now - bucket.at < full_s
        }

    def due(self, *, at_once: bool = False) -> list[LeftOut]:
        """Return what has to be reported now, the largest counts first; `at_once`: everything."""
        if self._quiet:
            return []
        with self._lock:
            now = self._clock.monotonic()
            if now < self._report_at and not at_once:
                return []
            self._report_at = now + REPORT_EVERY_S
            self._quiet = True
            found = []
            for (event, who), bucket in self._buckets.items():
                if bucket.left_out:
                    found.append(LeftOut(event.value, who, bucket.left_out, bucket.since_unix))
                    bucket.left_out = 0
        found.sort(key=lambda one: (-one.lines, one.event, one.who))
        named, rest = found[:MOST_REPORTED], found[MOST_REPORTED:]
        if rest:
            lines, since = sum(one.lines for one in rest), min(one.since_unix for one in rest)
            named.append(LeftOut("several", OTHERS, lines, since))
        return named
