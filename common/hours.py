"""The hours in which a hospital takes part: outside them its node starts no round.

    hours: {days: [mon-fri], from: "20:00", to: "06:00", zone: Europe/Berlin}

A window that ends at or before its beginning crosses midnight and belongs to the day on
which it begins; equal times mean the whole day, and without any key rounds may begin at
any hour. A round that has begun is never broken.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field

from common.config import Section, no_repeats
from common.text import listed, show

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_LONGEST_WAIT_DAYS: Final = 8


def _days(value: str) -> str:
    first, dash, last = value.partition("-")
    if first not in DAYS or (dash and last not in DAYS):
        raise ValueError(
            f"must be a day ({listed(DAYS)}) or a span such as mon-fri, not {show(value)}"
        )
    return value


def _clock_time(value: str) -> str:
    if not _TIME.fullmatch(value):
        raise ValueError(f'must be a time of day such as "20:00", not {show(value)}')
    return value


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"must be a time zone that this machine knows, such as Europe/Berlin or UTC, not "
            f"{show(value)}"
        ) from None
    return value


ClockTime = Annotated[str, AfterValidator(_clock_time)]


class Hours(Section):
    """When rounds may begin at a hospital, by its own clock's time zone."""

    days: Annotated[
        tuple[Annotated[str, AfterValidator(_days)], ...],
        Field(min_length=1, max_length=7),
        AfterValidator(no_repeats),
    ] = ("mon-sun",)
    from_: Annotated[ClockTime, Field(alias="from")] = "00:00"
    to: ClockTime = "00:00"
    zone: Annotated[str, AfterValidator(_zone)] = "UTC"

    def open_at(self, unix: float) -> bool:
        """Return whether a round may begin at that Unix time."""
        now = datetime.fromtimestamp(unix, ZoneInfo(self.zone))
        today, yesterday = now.weekday(), (now - timedelta(days=1)).weekday()
        clock, begin, end = now.strftime("%H:%M"), self.from_, self.to
        if begin < end:
            return today in self._weekdays() and begin <= clock < end
        late = today in self._weekdays() and clock >= begin
        early = yesterday in self._weekdays() and clock < end
        return late or early

    def next_opening(self, unix: float) -> datetime:
        """Return the next moment, in UTC, at which the window begins."""
        zone = ZoneInfo(self.zone)
        today = datetime.fromtimestamp(unix, zone).date()
        at = time.fromisoformat(self.from_)
        for ahead in range(_LONGEST_WAIT_DAYS + 1):
            day = today + timedelta(days=ahead)
            begins = datetime.combine(day, at, zone)
            if day.weekday() in self._weekdays() and begins.timestamp() > unix:
                return begins.astimezone(UTC)
        raise AssertionError("a week has a day of every name")

    def closed(self, unix: float) -> str | None:
        """Return None while rounds may begin, else what to say about when they may."""
        if self.open_at(unix):
            return None
        opens = self.next_opening(unix).strftime("%Y-%m-%d %H:%M UTC")
        return f"rounds begin here only {self}; the next window opens at {opens}"

    def _weekdays(self) -> frozenset[int]:
        found: set[int] = set()
        for entry in self.days:
            first, _, last = entry.partition("-")
            begin, end = DAYS.index(first), DAYS.index(last or first)
            found.update((begin + step) % 7 for step in range((end - begin) % 7 + 1))
        return frozenset(found)

    @property
    def always(self) -> bool:
        """Whether rounds may begin at any hour."""
        return self.from_ == self.to and len(self._weekdays()) == len(DAYS)

    def __str__(self) -> str:
        if self.always:
            return "any hour"
        return f"{', '.join(self.days)} from {self.from_} to {self.to} {self.zone}"
