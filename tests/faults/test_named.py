"""Faults of docs/reliability.md that the simulation shows one by one, each with its figure."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from common.errors import StateError
from common.ids import Sha256
from common.messages import CHUNK_BYTES
from coordinator.spool import SpoolFile
from tests.faults.budget import trials
from tests.faults.campaign import run_plan, scratch
from tests.faults.plan import COORDINATOR, NOISES, SITES, Act, Fault, Plan
from tests.faults.record import record
from tests.faults.simulation import Outcome

HOURS = trials(change=3, nightly=24, release=24)
WHEN = (0.0, 0.4, 0.9, 1.4, 2.1, 3.0, 4.2)
"""Seconds after the submission, from the enrolment to the release of a run that takes 4 s."""
EACH = trials(change=3, nightly=len(WHEN), release=len(WHEN))


def run_all(fault: str, plans: Iterable[Plan]) -> list[Outcome]:
    """Run the plans, record how many failed, and demand that none did."""
    with scratch() as root:
        found = [run_plan(root, plan) for plan in plans]
    wrong = [one.problem for one in found if one.problem is not None]
    record(fault, trials=len(found), failures=len(wrong))
    assert wrong == []
    return found


def spread(act: Act, seconds: float, *, who: tuple[str, ...] = ("va",)) -> list[Plan]:
    """Return plans with that fault at several times, with and without noise."""
    times = WHEN[:: max(1, len(WHEN) // EACH)]
    return [
        Plan(number, tuple(Fault(act, one, at, seconds) for one in who), 0.3, dp=dp)
        for number, at in enumerate(times)
        for dp in (NOISES if len(WHEN) == EACH else (NOISES[number % len(NOISES)],))
    ]


@pytest.mark.fault("F27")
@pytest.mark.parametrize("who", [COORDINATOR, "va"])
def test_a_clock_beyond_every_certificate_stops_that_process_and_no_other(who: str) -> None:
    run_all("F27", spread(Act.LEAP, 30.0, who=(who,)))


@pytest.mark.fault("F08")
def test_a_hospital_that_lost_its_keys_takes_part_under_new_ones() -> None:
    run_all("F08", spread(Act.FORGET, 1.0))


@pytest.mark.fault("F36")
@pytest.mark.parametrize("what", ["run", "facts", "epoch", "release", "end"])
def test_a_database_without_room_holds_the_run_up_and_changes_nothing(what: str) -> None:
    """Five times in a row: the run waits, no round is voided and no process starts again."""
    point = f"coordinator.{what}.before_commit"
    reaches = range(1, 1 + (trials(change=20, nightly=60, release=60) if what == "facts" else 1))
    times = 1 if what == "run" else 5  # who submits a study is told, and does it again
    plans = [Plan(n, (Fault(Act.ERROR, COORDINATOR, n, 0.0, point, times),)) for n in reaches[::5]]
    found = run_all("F36", plans)
    assert [(one.voided, one.deaths) for one in found] == [(0, 0)] * len(found)


@pytest.mark.fault("F33")
@pytest.mark.fault("F32")
def test_all_that_ever_passed_passes_again_and_changes_nothing() -> None:
    plans = spread(Act.REPLAY, 0.0, who=SITES)
    run_all("F33", plans)


@pytest.mark.fault("F34")
@pytest.mark.fault("F31")
def test_messages_that_come_twice_and_out_of_turn_change_nothing() -> None:
    run_all("F34", [Plan(seed, (), slowest_s=1.0, copies=2) for seed in range(2 * EACH)])


@pytest.mark.fault("F35")
def test_a_second_process_with_the_certificate_adds_nothing_and_loses_nothing() -> None:
    run_all("F35", spread(Act.TWIN, 3.0))


@pytest.mark.fault("F30")
def test_all_hospitals_are_cut_off_at_once_and_come_back() -> None:
    run_all("F30", spread(Act.CUT, 0.0, who=SITES))


@pytest.mark.fault("F29")
def test_a_day_without_a_coordinator_costs_few_calls_and_no_disk() -> None:
    usual = Plan(1, (), jitter=0.5)
    gone = Fault(Act.CRASH, COORDINATOR, 1, HOURS * 3600.0, "coordinator.sum.before")
    with scratch() as root:
        before, found = run_plan(root, usual), run_plan(root, Plan(1, (gone,), jitter=0.5))
    assert (before.problem, found.problem) == (None, None)
    calls = (found.dials - before.dials) / HOURS / len(SITES)
    more = max(0, found.disk_bytes - before.disk_bytes)
    record(
        "F29", trials=1, failures=0, calls_per_hour=calls, disk_grown_bytes=float(more),
        vectors_kept=found.most_kept,
    )  # fmt: skip
    assert found.most_kept == 1
    assert calls < trials(change=90, nightly=45, release=45), "every few minutes at most"
    assert more < 1 << 20


@pytest.mark.fault("F38")
def test_an_upload_whose_flush_failed_once_has_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(CHUNK_BYTES)
    digest = Sha256(hashlib.sha256(data).digest())
    file = SpoolFile(tmp_path / "upload", CHUNK_BYTES)
    file.append(0, data)

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails)
        with pytest.raises(StateError, match="DISK"):
            file.finish(digest)
    assert file.next_chunk == 0  # the next flush works, and says nothing of the lost pages
    file.append(0, data)
    assert file.finish(digest) == digest
    record("F38", trials=1, failures=0)
