"""After a run: what a hospital's commands say of its own model, and score with it."""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.cli import main
from common.features import Table
from common.ids import RunId
from common.layouts import model_schema, split_model
from common.manifest import MODEL_FILE
from common.models import with_own
from common.site import Site
from common.study import Study, parse_study
from hospital_node.evaluate import predict
from hospital_node.personal import artefact
from hospital_node.personal_state import FEDBN, OwnTensors
from hospital_node.receive import read_model
from researcher import sim
from researcher.engines import local_engine
from researcher.local import FederationPlan
from researcher.personal import made
from researcher.progress import LineDisplay
from tests.integration import test_sim, test_sim_survival

NAMES = ("north", "east", "west")


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


async def run_and_make(plan: FederationPlan) -> RunId:
    async with sim._federation(plan, io.StringIO(), local_engine) as (service, _):
        run = await service.submit(sim._submission(plan), "test")
        view = await sim._follow(service, run.run_id, LineDisplay())
        assert view.state.value == "finished"
        await made(plan, run.run_id)
    return RunId(run.run_id)


class Hospital:
    """One hospital's folder, and its commands."""

    def __init__(self, folder: Path, run: RunId, capsys: pytest.CaptureFixture[str]) -> None:
        self.state, self.run = folder / "state", run
        self._folder, self._capsys = folder, capsys

    def command(self, *words: str) -> tuple[int, dict[str, Any], str]:
        self._capsys.readouterr()
        code = main(["node", *words, "--config", str(self._folder / "node.yaml"), "--json"])
        out, err = self._capsys.readouterr()
        return code, json.loads(out)["data"] if code == 0 else {}, out + err

    def risks(self, which: str, csv: str) -> list[float]:
        path = self._folder / "patients.csv"
        path.write_text(csv)
        told = self.command("predict", "--model", self.run, "--which", which, "--input", str(path))
        assert told[0] == 0, told[2]
        return [one["risk"] for one in told[1]["patients"]]


def test_the_released_model_of_a_fedbn_study_scores_with_the_hospitals_own_normalisation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = test_sim.STUDY.replace("{rounds: 2,", "{strategy: {name: fedbn}, rounds: 2,")
    study = parse_study(text.replace("logistic", "mlp, hidden: [4], norm: batch"))
    sites = [test_sim.write_site(tmp_path, name, seed) for seed, name in enumerate(NAMES)]
    with sim._planned(study, sites) as plan:
        run = asyncio.run(run_and_make(plan))
        place = Hospital(plan.site_folder("north"), run, capsys)
        schema = model_schema(study)
        flat = schema.flat(read_model(place.state / "releases" / run / MODEL_FILE, schema))
        constants, shared = split_model(study, flat)
        own = OwnTensors(place.state / "own", run).get(FEDBN)
        assert own is not None
        values = np.array([[55, 1], [72.5, 0]], np.float64)
        rows = constants.encode(study, Table(values, np.zeros(2), np.arange(2))).features
        found = place.risks("federated", "age,sex\n55,1\n72.5,0\n")
        assert found == pytest.approx(predict(study, with_own(study, shared, own), rows))
        bare = predict(study, with_own(study, shared), rows)
        assert np.abs(np.array(found) - bare).max() > 1e-3
        (place.state / "own" / f"{run}.{FEDBN}.f32").unlink()
        path = str(tmp_path / "p.csv")
        Path(path).write_text("age,sex\n55,1\n")
        told = place.command("predict", "--model", run, "--which", "federated", "--input", path)
        assert told[0] != 0
        assert "normalisation" in told[2]


def test_a_survival_study_ends_with_a_model_that_scores_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study: Study = parse_study(test_sim_survival.STUDY)
    sites: list[Site] = [
        test_sim_survival.write_site(tmp_path, name, seed) for seed, name in enumerate(NAMES)
    ]
    with sim._planned(study, sites) as plan:
        run = asyncio.run(run_and_make(plan))
        place = Hospital(plan.site_folder("east"), run, capsys)
        young, old = place.risks("personal", "age,sex\n45,1\n75,1\n")
        assert old > young
        code, told, out = place.command("report", run)
        assert code == 0, out
        assert told == artefact.read_record(place.state / "personal" / run)
        losses = {name: one["loss"] for name, one in told["candidates"].items()}
        assert set(losses) == {"federated", "fine-tuned", "ditto", "averaged", "own"}
        assert losses[told["chosen"]] <= losses["own"]
        assert told["chosen"] == "averaged" or losses[told["chosen"]] == min(losses.values())
        assert "negative log partial likelihood" in told["why"]
        assert set(told["test"]["personal"]) == set(told["test"]["federated"])
        assert told["test"]["personal"]["c_index"] > 0.6
