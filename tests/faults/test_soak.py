"""A soak finds what piles up, and only that."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.faults import soak
from tests.faults.processes import federation_on
from tests.faults.soak import SETTLED, Lives, Look


def lives_of(*looks: Look) -> Lives:
    lives = Lives()
    lives.looks["coordinator", 7] = list(looks)
    return lives


def test_what_grows_with_every_look_is_a_leak() -> None:
    for leaky in (
        [Look(200.0 + at, 40, 9) for at in range(200)],
        [Look(200.0, 40 + at // 4, 9) for at in range(200)],
        [Look(200.0, 40, 9 + at // 4) for at in range(200)],
    ):
        assert len(lives_of(*leaky).leaks()) == 1


def test_what_fills_up_at_first_and_a_short_peak_are_none() -> None:
    steady = [Look(200.0, 40, 9)] * 100
    filling = [Look(20.0 * at, 4 * at, at) for at in range(SETTLED)]
    peak = [Look(900.0, 400, 90)] * (SETTLED // 2 - 1)
    lives = lives_of(*filling, *steady, *peak, *steady[:SETTLED])
    assert lives.leaks() == []
    assert lives.growth() == {"coordinator": Look(0.0, 0, 0)}


def test_a_life_too_short_to_judge_is_not_judged() -> None:
    lives = lives_of(*(Look(100.0 * at, at, at) for at in range(2 * SETTLED - 1)))
    assert lives.leaks() == []
    assert lives.growth() == {}


def test_a_look_sees_an_open_file(tmp_path: Path) -> None:
    before = soak.look_at(os.getpid())
    with (tmp_path / "file").open("w"):
        after = soak.look_at(os.getpid())
    assert after.files == before.files + 1
    assert before.resident_mib > 1
    assert before.threads >= 1


@pytest.mark.slow
def test_runs_go_on_and_are_compared_while_processes_die(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "SAMPLE_S", 0.5)
    with federation_on(tmp_path, "") as federation:
        campaign, lives = asyncio.run(soak.soak(federation, hours=4 / 3600, kill_every_s=1.0))
        assert lives.leaks() == []
    assert campaign.runs.compared
    assert campaign.trials
    assert campaign.left_bytes == 0
    assert {name for name, _ in lives.looks} == set(federation.processes)
