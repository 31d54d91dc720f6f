"""A federation of which one hospital trains in two processes, and loses them once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from common.errors import RoundError
from common.study import parse_study
from hospital_node.launcher import Launcher
from researcher import local
from researcher.progress import LineDisplay
from researcher.sim import simulate
from tests.integration.test_sim import STUDY, write_site


@pytest.mark.slow
def test_a_hospital_that_trains_in_two_processes_takes_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("north", "east", "west", "south", "centre")
    sites = [write_site(tmp_path, name, seed) for seed, name in enumerate(names)]
    study = parse_study(STUDY)
    alone = simulate(study, sites, LineDisplay(), time.monotonic()).data
    real, asked = local.node_file, []

    def node_file(*, has_table: bool) -> dict[str, object]:
        asked.append(has_table)
        more = {"training": {"processes": 2}} if len(asked) == 1 else {}
        return {**real(has_table=has_table), **more}

    trained = []
    run = Launcher._run

    def seen(self: Launcher, *rest: object) -> int:
        trained.append(self)
        if len(trained) == 1:
            raise RoundError("TRAINING_LOST", "a training process ended early (-9)")
        return run(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(local, "node_file", node_file)
    monkeypatch.setattr(Launcher, "_run", seen)
    split = simulate(study, sites, LineDisplay(), time.monotonic()).data
    said = capsys.readouterr()
    assert (
        "north refused: TRAINING_LOST: a training process ended early (-9)" in said.out + said.err
    )
    assert "round 2 of 4 (train) CLOSED with 4 hospitals" in said.out + said.err
    assert "round 3 of 4 (train) CLOSED with 5 hospitals" in said.out + said.err
    assert len(trained) == 2
    assert split["model_sha256"] != alone["model_sha256"]
