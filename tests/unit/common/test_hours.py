"""The hours of a policy: windows over midnight, days, zones and the change of clocks."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from common.documents import parse_yaml
from common.errors import ConfigError
from common.hours import Hours
from common.policy import parse_policy
from tests.policy_texts import POLICY


def hours(text: str) -> Hours:
    return parse_policy(f"{POLICY}hours: {text}\n").value.hours


def unix(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


NIGHTS = '{days: [mon-fri], from: "20:00", to: "06:00", zone: Europe/Berlin}'


@pytest.mark.parametrize(
    ("when", "is_open"),
    [
        ("2026-03-02T18:59", False),  # Monday, 19:59 in Berlin
        ("2026-03-02T19:00", True),
        ("2026-03-03T04:59", True),
        ("2026-03-03T05:00", False),
        ("2026-03-07T04:59", True),  # Saturday morning: Friday's window
        ("2026-03-07T19:30", False),  # Saturday evening
        ("2026-03-02T04:00", False),  # Monday morning: Sunday has no window
        ("2026-06-01T18:00", True),  # 20:00 in Berlin's summer
        ("2026-06-01T17:59", False),
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins(
    when: str, is_open: bool
) -> None:
    assert hours(NIGHTS).open_at(unix(when)) is is_open


def test_equal_times_are_the_whole_day() -> None:
    weekend = hours('{days: [sat, sun], from: "00:00", to: "00:00"}')
    assert weekend.open_at(unix("2026-03-07T00:00"))
    assert weekend.open_at(unix("2026-03-08T23:59"))
    assert not weekend.open_at(unix("2026-03-09T00:00"))
    assert not weekend.open_at(unix("2026-03-06T23:59"))


def test_rounds_may_begin_at_any_hour_unless_the_policy_says_otherwise() -> None:
    assert str(parse_policy(POLICY).value.hours) == str(hours("{}")) == "any hour"
    assert hours("{}").closed(unix("2026-03-02T00:00")) is None
    assert str(hours("{days: [mon-sat]}")) == "mon-sat from 00:00 to 00:00 UTC"


def test_a_span_of_days_may_go_over_the_weeks_end() -> None:
    late = hours('{days: [fri-mon], from: "08:00", to: "09:00"}')
    found = [late.open_at(unix(f"2026-03-0{day}T08:30")) for day in range(2, 9)]
    assert found == [True, False, False, False, True, True, True]


@pytest.mark.fault("F27")
@pytest.mark.parametrize(
    ("when", "opens"),
    [
        ("2026-03-02T12:00", "2026-03-02 19:00 UTC"),
        ("2026-03-07T12:00", "2026-03-09 19:00 UTC"),
        ("2026-03-27T12:00", "2026-03-27 19:00 UTC"),
        ("2026-03-28T12:00", "2026-03-30 18:00 UTC"),  # the clocks went forward on the 29th
    ],
)
def test_a_closed_window_says_when_the_next_one_opens(when: str, opens: str) -> None:
    closed = hours(NIGHTS).closed(unix(when))
    assert closed is not None
    assert closed.endswith(f"the next window opens at {opens}")
    assert hours(NIGHTS).closed(unix("2026-03-02T20:00")) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{days: [monday], from: "20:00", to: "06:00"}', "must be a day"),
        ("{days: [], from: '20:00', to: '06:00'}", "at least 1"),
        ('{from: "24:00", to: "06:00"}', "must be a time of day"),
        ('{from: "8:00", to: "06:00"}', "must be a time of day"),
        ("null", "must be keys and values"),
        ('{from: "20:00", to: "06:00", zone: Berlin}', "must be a time zone"),
        ('{from: "20:00", to: "06:00", zone: ../../etc/passwd}', "must be a time zone"),
        ('{from: "20:00", till: "06:00"}', "unknown key 'hours.till'"),
    ],
)
def test_wrong_hours_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hours(text)
    assert words in caught.value.detail


def test_hours_are_written_as_they_are_read() -> None:
    found = hours(NIGHTS)
    data = parse_yaml(f"schema: x\nhours: {found.model_dump(by_alias=True, mode='json')}", "x").data
    assert Hours.model_validate(data["hours"]) == found
    assert str(found) == "mon-fri from 20:00 to 06:00 Europe/Berlin"
