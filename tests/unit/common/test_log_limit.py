"""A storm of refusals fills no disk, and what was left out is counted and said (F86)."""

from __future__ import annotations

import io
import json
from collections import Counter

import pytest

from common.clock import ManualClock
from common.errors import Refusal
from common.events import LIMITED, Event
from common.log_limit import (
    BURST,
    BURST_OF_ALL,
    MOST_BUCKETS,
    MOST_REPORTED,
    PER_MINUTE,
    PER_MINUTE_OF_ALL,
    REPORT_EVERY_S,
    LineLimit,
)
from common.logs import EventLog, make_log

NO = Refusal("BAD_MESSAGE", "x" * 400)


class Storm:
    """A log on a clock that the test moves, with everything that was observed."""

    def __init__(self, level: str = "info") -> None:
        self.clock = ManualClock()
        self.stream = io.StringIO()
        self.seen: Counter[str] = Counter()
        self.left_out = 0
        self.log: EventLog = make_log(
            self.stream,
            form="json",
            level=level,  # type: ignore[arg-type]
            clock=self.clock,
            observe=self._observe,
        )

    def _observe(self, event: Event, _level: str, fields: object) -> None:
        self.seen[event.value] += 1
        if event is Event.LOG_SUPPRESSED:
            assert isinstance(fields, dict)
            self.left_out += fields["lines"]

    def lines(self, event: Event) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event.value]

    def blow(self, calls: int, a_second: float, peers: int = 1) -> None:
        for number in range(calls):
            self.log.failure(Event.CALL_REFUSED, NO, peer=f"p{number % peers}", method="Upload")
            self.clock.advance(1 / a_second)


def test_a_storm_of_100_000_refused_calls_is_a_few_lines_and_a_count() -> None:
    storm = Storm()
    storm.blow(100_000, a_second=1000)  # 100 s
    storm.log.info(Event.SERVICE_STOPPED)
    written = len(storm.lines(Event.CALL_REFUSED))
    assert written <= BURST + PER_MINUTE * 100 / 60 + 1
    assert len(storm.stream.getvalue()) < 30_000
    assert storm.seen["call.refused"] == 100_000  # the metrics miss nothing
    assert storm.left_out == 100_000 - written  # and the log says how many it left out
    first = storm.lines(Event.LOG_SUPPRESSED)[0]
    assert (first["of"], first["peer"], first["level"]) == ("call.refused", "p0", "warning")
    assert str(first["since"]).endswith("Z")


@pytest.mark.parametrize("peers", [1, 20_000], ids=["one peer", "more peers than buckets"])
def test_an_hour_of_storm_takes_a_few_megabytes_at_the_most(peers: int) -> None:
    storm = Storm()
    storm.blow(90_000, a_second=25, peers=peers)  # one hour
    size = len(storm.stream.getvalue())
    assert size < (0.5e6 if peers == 1 else 5e6)  # measured 0.23 and 2.75 MB
    assert len(storm.lines(Event.CALL_REFUSED)) <= BURST_OF_ALL + 60 * PER_MINUTE_OF_ALL
    reports = len(storm.lines(Event.LOG_SUPPRESSED))
    assert reports <= (3600 / REPORT_EVERY_S + 2) * (MOST_REPORTED + 1)


def test_one_peers_storm_hides_nobody_elses_lines() -> None:
    storm = Storm()
    storm.blow(5000, a_second=1000)
    storm.log.failure(Event.CALL_REFUSED, NO, peer="another", method="Upload")
    storm.log.failure(Event.PROTOCOL_REFUSED, NO, site="p0")
    assert storm.lines(Event.CALL_REFUSED)[-1]["peer"] == "another"
    assert len(storm.lines(Event.PROTOCOL_REFUSED)) == 1


def test_many_peers_storm_of_refused_calls_hides_no_lost_link() -> None:
    storm = Storm()
    storm.blow(3 * BURST_OF_ALL, a_second=1000, peers=3 * BURST_OF_ALL // BURST)
    assert len(storm.lines(Event.CALL_REFUSED)) <= BURST_OF_ALL + PER_MINUTE_OF_ALL
    storm.log.warning(Event.LINK_LOST, site="va")
    assert [line["site"] for line in storm.lines(Event.LINK_LOST)] == ["va"]


def test_lines_of_rounds_and_runs_are_never_left_out() -> None:
    storm = Storm()
    for event in Event:
        if event not in LIMITED and event is not Event.LOG_SUPPRESSED:
            for _ in range(3 * BURST):
                storm.log.info(event, site="va")
            assert len(storm.lines(event)) == 3 * BURST, event
    assert not any(event.value.startswith(("round.", "run.")) for event in LIMITED)


def test_after_a_storm_the_count_is_said_though_nothing_else_is_logged() -> None:
    storm = Storm()
    storm.blow(100, a_second=1000)
    storm.clock.advance(2 * REPORT_EVERY_S)
    assert storm.lines(Event.LOG_SUPPRESSED) == []
    storm.log.report_left_out()
    (line,) = storm.lines(Event.LOG_SUPPRESSED)
    assert line["lines"] == 100 - BURST
    storm.log.report_left_out()
    assert len(storm.lines(Event.LOG_SUPPRESSED)) == 1
    storm.log.failure(Event.CALL_REFUSED, NO, peer="p0", method="Upload")
    assert len(storm.lines(Event.CALL_REFUSED)) == BURST + 1  # it may speak again


def test_lines_below_the_shown_level_use_nothing_up() -> None:
    storm = Storm(level="warning")
    for _ in range(10 * BURST):
        storm.log.info(Event.LINK_CONNECTED, site="va")
    storm.log.warning(Event.LINK_CONNECTED, site="va")
    assert len(storm.lines(Event.LINK_CONNECTED)) == 1
    assert storm.seen["link.connected"] == 10 * BURST + 1


def test_a_bound_site_counts_as_the_one_the_line_is_about() -> None:
    storm = Storm()
    for _ in range(2 * BURST):
        storm.log.bind(site="va").info(Event.LINK_LOST)
    storm.log.bind(site="north").info(Event.LINK_LOST)
    assert len(storm.lines(Event.LINK_LOST)) == BURST + 1


def test_the_number_of_buckets_is_bounded_whatever_peers_there_are() -> None:
    limit = LineLimit(ManualClock())
    for number in range(3 * MOST_BUCKETS):
        limit.admit(Event.CALL_REFUSED, f"peer {number}")
    assert len(limit._buckets) <= MOST_BUCKETS + len(Event)
