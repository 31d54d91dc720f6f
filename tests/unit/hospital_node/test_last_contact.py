"""What a node says of its clock, by the coordinator's time and its own uptime (fault F25)."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.clock import ManualClock
from common.errors import ConnectError, FedError
from common.identity import OutOfDates
from hospital_node import last_contact
from hospital_node.last_contact import doubt, explained, keep, known_off, off_by

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


@pytest.mark.parametrize(
    ("off_s", "words"),
    [
        (2 * HOUR_S, "about 2 h ahead"),
        (-2 * HOUR_S, "about 2 h behind"),
        (3 * DAY_S, "about 3 days ahead"),
        (-3 * DAY_S, "about 3 days behind"),
    ],
)
def test_in_one_start_of_the_machine_it_is_known_both_ways(
    tmp_path: Path, off_s: float, words: str
) -> None:
    clock = ManualClock(now=1000.0)
    keep(tmp_path, int(clock.unix()), clock)
    clock.advance(40_000.0)
    assert known_off(tmp_path, clock) is None
    clock.epoch += off_s
    found = known_off(tmp_path, clock)
    assert found is not None
    assert found.ahead_s == pytest.approx(off_s, abs=1.0)
    assert words in str(found)
    assert ("unless this machine was suspended since" in str(found)) == (off_s > 0)


def test_a_machine_that_was_suspended_is_not_told_that_its_clock_is_ahead(tmp_path: Path) -> None:
    """What counts how long it was up stood still, and then the clock of the day was set right."""
    clock = ManualClock(now=1000.0)
    keep(tmp_path, int(clock.unix()), clock)
    clock.epoch += 2 * HOUR_S
    doubt(tmp_path)
    assert known_off(tmp_path, clock) is None
    ended = OutOfDates("CERT_INVALID", "it ended", by_s=HOUR_S)
    assert explained(ended, tmp_path, clock) is ended
    clock.epoch -= 5 * HOUR_S
    assert "at least 3 h behind" in str(known_off(tmp_path, clock)), "that cannot be before"
    keep(tmp_path, int(clock.unix()), clock)
    clock.epoch += 2 * HOUR_S
    assert "about 2 h ahead" in str(known_off(tmp_path, clock)), "measured anew"


def test_doubt_without_a_contact_is_none(tmp_path: Path) -> None:
    doubt(tmp_path)
    assert known_off(tmp_path, ManualClock()) is None


def test_after_a_new_start_only_what_cannot_be_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock(now=1000.0)
    keep(tmp_path, int(clock.unix()), clock)
    monkeypatch.setattr(last_contact, "_boot", lambda: "another")
    clock.epoch += 3 * DAY_S
    assert known_off(tmp_path, clock) is None, "it may have been off for three days"
    clock.epoch -= 3 * DAY_S + 2 * HOUR_S
    assert "at least 2 h behind" in str(known_off(tmp_path, clock))


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"unix": "x", "up_s": 1, "boot": ""}', '{"unix": [1]}', "\xff"],
)
def test_what_is_damaged_tells_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / last_contact.NAME).write_text(text, "latin-1")
    assert known_off(tmp_path, ManualClock()) is None


def test_a_certificate_that_ended_by_more_than_the_clock_is_off_has_ended(tmp_path: Path) -> None:
    clock = ManualClock(now=1000.0)
    keep(tmp_path, int(clock.unix()), clock)
    clock.epoch += 2 * HOUR_S

    def named(by_s: float) -> FedError:
        return explained(OutOfDates("CERT_INVALID", "it ended", by_s=by_s), tmp_path, clock)

    assert named(HOUR_S).name == "CLOCK_OFF"
    assert "2 h ahead" in named(HOUR_S).detail
    assert "if it is right, renew" in named(HOUR_S).fix
    assert "it ended" in named(HOUR_S).detail
    assert named(3 * HOUR_S).name == "CERT_INVALID"


def test_other_failures_and_small_errors_are_left_alone(tmp_path: Path) -> None:
    clock = ManualClock(now=1000.0)
    keep(tmp_path, int(clock.unix()), clock)
    clock.epoch += DAY_S
    failure = ConnectError("UNREACHABLE", "gone")
    assert explained(failure, tmp_path, clock) is failure
    assert off_by(299.0, clock) is None
    assert off_by(-299.0, clock) is None
