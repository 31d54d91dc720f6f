"""A federation of which one hospital trains in two processes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.errors import FedError, RoundError
from common.site import Site
from common.study import Study, parse_study
from hospital_node.exchange import TrainingTask
from hospital_node.launcher import Launcher
from hospital_node.personal import make
from hospital_node.personal.choose import Choice, Rows, choose
from hospital_node.personal.fits import Weights
from hospital_node.personal_state import Own
from hospital_node.strategies import LocalRound
from researcher import local
from researcher.progress import LineDisplay
from researcher.sim import simulate
from tests.integration.test_sim import STUDY, write_site

Seen = dict[str, tuple[Weights, Choice]]


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def sites(tmp_path: Path) -> list[Site]:
    names = ("north", "east", "west", "south")
    return [write_site(tmp_path, name, seed) for seed, name in enumerate(names)]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Study, list[Site]], Seen]:
    """Simulate; return what each hospital was released, and its personal model."""

    def simulated(study: Study, sites: list[Site]) -> Seen:
        found: Seen = {}

        def spy(of: Study, site: str, rows: Rows, federated: Weights, own: Own | None) -> Choice:
            found[site] = (federated, choose(of, site, rows, federated, own))
            return found[site][1]

        with monkeypatch.context() as patched:
            patched.setattr(make, "choose", spy)
            simulate(study, sites, LineDisplay(), time.monotonic())
        return found

    return simulated


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first hospital's file asks for two processes."""
    real, asked = local.node_file, []

    def node_file(*, has_table: bool) -> dict[str, object]:
        asked.append(has_table)
        more = {"training": {"processes": 2}} if len(asked) == 1 else {}
        return {**real(has_table=has_table), **more}

    monkeypatch.setattr(local, "node_file", node_file)


@pytest.mark.slow
def test_the_model_and_every_personal_model_are_those_of_one_process(
    sites: list[Site], run: Callable[[Study, list[Site]], Seen], request: pytest.FixtureRequest
) -> None:
    study = parse_study(STUDY.replace("rounds: 2", "rounds: 1"))
    alone = run(study, sites)
    request.getfixturevalue("split")
    found = run(study, sites)
    assert set(found) == set(alone) == {site.id for site in sites}
    for site, (released, personal) in found.items():
        np.testing.assert_allclose(released, alone[site][0], atol=1e-5)
        assert personal.family == alone[site][1].family
        np.testing.assert_allclose(personal.weights, alone[site][1].weights, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("split")
def test_lost_processes_cost_one_hospital_one_round(
    sites: list[Site],
    run: Callable[[Study, list[Site]], Seen],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained: list[TrainingTask] = []

    def once_lost(_: Launcher, task: TrainingTask, abandoned: Callable[[], bool]) -> LocalRound:
        trained.append(task)
        if len(trained) == 1:
            raise RoundError("TRAINING_LOST", "a training process ended early (-9)")
        assert not abandoned()
        return task.train()

    monkeypatch.setattr(Launcher, "train", once_lost)
    released = run(parse_study(STUDY), sites)
    said = "".join(capsys.readouterr())
    assert "north refused: TRAINING_LOST: a training process ended early (-9)" in said
    assert "round 2 of 4 (train) CLOSED with 3 hospitals" in said
    assert "round 3 of 4 (train) CLOSED with 4 hospitals" in said
    assert len(trained) == 2
    assert len(released) == 4


@pytest.mark.usefixtures("split")
def test_a_study_that_does_not_split_is_refused_by_that_hospital_before_it_runs(
    sites: list[Site], run: Callable[[Study, list[Site]], Seen]
) -> None:
    model = "{kind: mlp, hidden: [4], norm: batch}"
    study = parse_study(STUDY.replace("{kind: logistic}", model))
    why = r"over processes \(2 on cpu\): batch normalisation takes its mean over the whole batch"
    with pytest.raises(FedError, match=f"north refused: POLICY_PROCESSES: .* {why}"):
        run(study, sites)
