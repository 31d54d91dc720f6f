"""A hospital's own model on the disk, and patients scored with it."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.cli import main
from common.clock import SystemClock
from common.errors import DataError, StateError
from common.ids import RunId
from common.layouts import model_schema, split_model
from common.logs import make_log
from common.models import initial, layout
from common.study import Study
from hospital_node import files
from hospital_node.data.csv import read_csv
from hospital_node.data.load import SiteData, load
from hospital_node.evaluate import predict
from hospital_node.personal import artefact, cli
from hospital_node.personal.explain import drivers
from hospital_node.personal.fits import logit
from hospital_node.personal.keeper import PersonalKeeper
from hospital_node.personal.make import make
from hospital_node.personal.score import Patient, Scorer
from hospital_node.personal_state import OwnTensors
from hospital_node.worker import Worker
from tests.learning import study

FEATURES = """
  - {name: age, type: float, range: [18, 110], impute: mean}
  - {name: dose, type: float, range: [0, 8]}
  - {name: stage, type: category, levels: [a, b, c], impute: most-frequent}
"""
MLP = "{kind: mlp, hidden: [6, 5]}"


def small(model: str = "{kind: logistic}") -> Study:
    return study(FEATURES, model=model, more="split: {test: 0.25, seed: 1}")


def written(folder: Path, rows: int = 120) -> Path:
    rng = np.random.default_rng(1)
    with (folder / "train.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["years", "dose", "stage", "sick"])
        for _ in range(rows):
            age, dose = rng.uniform(40, 80), rng.uniform(2, 6)
            sick = int((age - 60) / 8 + dose - 4 + rng.logistic() > 0)
            out.writerow([f"{age:.1f}", f"{dose:.2f}", "abc"[rng.integers(3)], sick])
    return folder / "train.csv"


def released(asked: Study) -> np.ndarray:
    constants = np.array([60, 4, 0.3, 0.3, 12, 1.2, 0.5, 0.5, 61, 0, 1], np.float32)
    return np.concatenate([constants, initial(asked) + np.float32(0.1)])


@pytest.fixture
def data(tmp_path: Path) -> SiteData:
    return load(small(), written(tmp_path), {"age": "years"})


@pytest.fixture
def own(tmp_path: Path, data: SiteData) -> Path:
    """The state directory of a node with one personal model, and the files around it."""
    folder = tmp_path / "state" / "personal" / "run-1"
    folder.parent.mkdir(parents=True)
    assert make(small(), "north", data, released(small()), folder) != ""
    (tmp_path / "node.yaml").write_text("schema: fedcare.node/v1\n")
    (tmp_path / "site.yaml").write_text(
        "schema: fedcare.site/v1\nid: north\n"
        "data: [{name: t, kind: csv, path: train.csv, columns: {age: years}}]\n"
    )
    return folder


# --- the artefact -----------------------------------------------------------------------------


def test_a_personal_model_reads_back_to_the_bit_with_the_released_constants(own: Path) -> None:
    found = artefact.load(own)
    assert found.study == small()
    assert found.flat[:11].tobytes() == released(small())[:11].tobytes()
    assert found.record["chosen"] in found.record["candidates"]
    assert set(found.ranges) == {"age", "dose"}


def test_the_ranges_are_the_percentiles_of_the_training_rows(own: Path, data: SiteData) -> None:
    low, high = artefact.load(own).ranges["age"]
    ages = data.train.values[:, 0]
    assert (low, high) == pytest.approx((np.percentile(ages, 1), np.percentile(ages, 99)))


@pytest.mark.parametrize("name", ["study.json", "model.safetensors", "personal.json"])
def test_one_altered_byte_in_any_file_is_refused(own: Path, name: str) -> None:
    content = bytearray((own / name).read_bytes())
    place = content.index(b"0.", 5) + 2 if name == "personal.json" else len(content) - 3
    content[place] = content[place] ^ 1
    (own / name).write_bytes(content)
    with pytest.raises(StateError, match="run-1"):
        artefact.load(own)


def test_a_write_that_fails_leaves_nothing_under_the_name(
    tmp_path: Path, data: SiteData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == artefact.CHOICE_FILE:
            raise StateError("DISK", "no space")
        path.write_bytes(content)

    monkeypatch.setattr(files, "replace", full)
    with pytest.raises(StateError):
        make(small(), "north", data, released(small()), tmp_path / "personal" / "run-9")
    assert list((tmp_path / "personal").iterdir()) == []


# --- explanations ------------------------------------------------------------------------------


def test_contributions_of_one_layer_are_coefficient_times_standardised_value() -> None:
    asked = small()
    weights = np.array([0.5, -1, 2, 0.25, 0.7], np.float32)
    rows = np.random.default_rng(0).normal(0, 1, (50, 4)).astype(np.float32)
    found = drivers(asked, weights, rows)
    products = rows * weights[:4]
    stage = products[:, 2] + products[:, 3]
    slow = np.stack([products[:, 0], products[:, 1], stage], axis=1)
    assert found.contributions == pytest.approx(slow, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_integrated_gradients_add_up_to_the_difference_from_the_average_patient(seed: int) -> None:
    asked, rng = small(MLP), np.random.default_rng(seed)
    weights = rng.normal(0, 0.7, layout(asked).parameters).astype(np.float32)
    rows = rng.normal(0, 2, (40, 4)).astype(np.float32)
    found = drivers(asked, weights, rows)
    average = predict(asked, weights, np.zeros((1, 4), np.float32))
    rise = logit(predict(asked, weights, rows)) - logit(average)
    inside = np.abs(rise) < 20
    total = found.contributions.sum(axis=1)
    assert total[inside] == pytest.approx(rise[inside], abs=0.02)
    assert total + found.residual == pytest.approx(rise, abs=1e-3) or not inside.all()


# --- patients ------------------------------------------------------------------------------------


def score(own: Path, text: str, explain: int = 3) -> list[dict[str, object]]:
    path = own.parent / "patients.csv"
    path.write_text(text)
    scorer = Scorer.personal(artefact.load(own))
    table = read_csv(path, scorer.columns(), {"age": "years"})
    return [one.data() for one in scorer.score(table, explain)]


def test_risks_are_the_models_and_calibrated_ones_follow_the_map(own: Path) -> None:
    found = score(own, "stage,years,dose\na,50,3\nb,70,5\n")
    model = artefact.load(own)
    preprocessing, weights = model.model()
    x = [
        [(50 - 60) / 12, (3 - 4) / 1.2, -0.6, -0.6],
        [(70 - 60) / 12, (5 - 4) / 1.2, 1.4, -0.6],
    ]
    slow = predict(model.study, weights, np.array(x, np.float32))
    assert [one["risk"] for one in found] == pytest.approx(slow.tolist(), abs=1e-6)
    a, b = model.calibration
    moved = 1 / (1 + np.exp(-(a + b * logit(slow))))
    assert [one["calibrated"] for one in found] == pytest.approx(moved.tolist(), abs=1e-6)
    assert preprocessing.scale[0] == 12


def test_a_row_the_contract_refuses_is_named_without_its_value_and_the_others_are_scored(
    own: Path,
) -> None:
    rows = "years,dose,stage\n50,3,a\n733,3,a\n50,,a\n50,3,z9\nfifty,3,a\n,3,\n"
    found = score(own, rows)
    refused = [one["refused"] for one in found]
    assert refused[0] is None
    assert refused[1] == "column 'age' lies outside the range [18, 110] of the study"
    assert refused[2] == "column 'dose' is missing and the study states no imputation"
    assert refused[3] == "column 'stage' is not one of the levels of the study"
    assert refused[4] == "column 'age' is not a number"
    assert refused[5] is None
    assert not any(secret in str(found[1:5]) for secret in ("733", "z9", "fifty"))
    assert [one["risk"] is None for one in found] == [False, True, True, True, True, False]
    alone = score(own, "years,dose,stage\n50,3,a\n")
    assert alone[0]["risk"] == found[0]["risk"]


def test_unusual_and_stand_in_values_are_warned_of(own: Path) -> None:
    usual, odd = score(own, "years,dose,stage\n60,4,a\n,7.9,\n")
    assert usual["warnings"] == []
    assert odd["warnings"] == [
        "age: not measured, a stand-in was used",
        "dose: outside what 98 of 100 of this hospital's patients have",
        "stage: not measured, a stand-in was used",
    ]


def test_the_drivers_are_the_largest_contributions_largest_first(own: Path) -> None:
    (one,) = score(own, "years,dose,stage\n79,4,a\n", explain=2)
    named = one["drivers"]
    assert isinstance(named, list)
    sizes = [abs(driver["contribution"]) for driver in named]
    assert len(named) == 2
    assert sizes == sorted(sizes, reverse=True)
    assert named[0]["feature"] == "age"


def test_a_table_without_a_feature_is_refused_by_its_heading(own: Path) -> None:
    with pytest.raises(DataError, match="has no column 'years' \\(for 'age'\\)"):
        score(own, "age,dose,stage\n50,3,a\n")


def test_many_thousand_patients_take_seconds(own: Path) -> None:
    rows = "".join(f"{40 + k % 40},{2 + k % 4},b\n" for k in range(20_000))
    began = time.monotonic()
    assert len(score(own, "years,dose,stage\n" + rows)) == 20_000
    assert time.monotonic() - began < 10


# --- commands ----------------------------------------------------------------------------


def test_predict_writes_a_row_for_every_patient(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.csv").write_text("years,dose,stage\n50,3,a\n500,3,a\n")
    args = ["--config", str(tmp_path / "node.yaml"), "--input", str(tmp_path / "p.csv")]
    out = tmp_path / "risks.csv"
    assert main(["node", "predict", "--model", "run-1", *args, "--output", str(out)]) == 0
    first, second = csv.DictReader(io.StringIO(out.read_text()))
    assert 0 < float(first["risk"]) < 1
    assert (second["risk"], second["refused"][:12]) == ("", "column 'age'")
    assert "500" not in out.read_text()
    assert out.stat().st_mode & 0o077 == 0
    assert main(["node", "predict", "--model", str(own), *args, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert told["data"]["patients"][0]["risk"] == pytest.approx(float(first["risk"]), rel=1e-5)
    assert main(["node", "predict", "--model", "run-2", *args]) != 0


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1+1", "-cmd", "@SUM(1)"])
def test_names_of_a_study_are_no_formulas_in_the_written_table(tmp_path: Path, name: str) -> None:
    one = Patient(1, 0.5, 0.5, level=name, drivers=((name, -0.25),), warnings=(f"{name}: odd",))
    cli._write(tmp_path / "risks.csv", [one, Patient(2, 0.5, level="-1", refused=name)], 1)
    first, second = csv.DictReader(io.StringIO((tmp_path / "risks.csv").read_text()))
    assert first["level"] == first["driver_1"] == second["refused"] == f"'{name}"
    assert first["warnings"] == f"'{name}: odd"
    assert (first["contribution_1"], second["level"]) == ("-0.25", "-1")


def test_report_says_what_was_chosen_and_why(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["node", "report", own.name, "--config", str(tmp_path / "node.yaml")]) == 0
    out = capsys.readouterr().out
    record = artefact.read_record(own)
    assert f"this hospital's own model: {record['chosen']}" in out
    assert record["why"] in out


# --- the keeper --------------------------------------------------------------------------


class Store:
    """As much of a node's store as the keeper uses."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "releases" / "r").mkdir(parents=True)
        (root / "personal").mkdir()

    def release_directory(self, run: RunId) -> Path:
        return self.root / "releases" / run

    def personal_directory(self, run: RunId) -> Path:
        return self.root / "personal" / run

    def own(self, run: RunId) -> OwnTensors:
        return OwnTensors(self.root / "own", run)


class FakeWork:
    """Work that fails as often as it is told to, then writes the folder."""

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, 0

    def personalise(self, model: Path, own: object, folder: Path) -> str:
        assert model.name == "model.safetensors"
        self.calls += 1
        if self.calls <= self.failures:
            raise StateError("DISK", "no space")
        folder.mkdir()
        return "own"


async def test_a_release_gets_its_model_once_and_a_failure_is_made_good_later(
    tmp_path: Path,
) -> None:
    store, work, words = Store(tmp_path), FakeWork(failures=1), io.StringIO()
    keeper = PersonalKeeper(store, Worker(), make_log(words, clock=SystemClock()))  # type: ignore[arg-type]
    run = RunId("r")

    async def open_work() -> FakeWork:
        return work

    await keeper.make(run, open_work)  # type: ignore[arg-type]
    assert work.calls == 0  # no verified release yet
    (store.release_directory(run) / "manifest.json").write_text("{}")
    await keeper.make(run, open_work)  # type: ignore[arg-type]
    assert (work.calls, keeper.wanting(run)) == (1, True)
    assert (tmp_path / "personal" / "r.failed").exists()
    for _ in range(2):
        await keeper.make(run, open_work)  # type: ignore[arg-type]
    assert (work.calls, keeper.wanting(run)) == (2, False)
    assert not (tmp_path / "personal" / "r.failed").exists()
    assert "model.personal run=r kind=own" in words.getvalue().splitlines()[-1]


async def test_of_several_runs_one_table_is_loaded_at_a_time(tmp_path: Path) -> None:
    store, words = Store(tmp_path), io.StringIO()
    keeper = PersonalKeeper(store, Worker(), make_log(words, clock=SystemClock()))  # type: ignore[arg-type]
    loaded: list[str] = []

    class Slow(FakeWork):
        def personalise(self, model: Path, own: object, folder: Path) -> str:
            time.sleep(0.05)
            assert len(loaded) == 1 + sum(path.is_dir() for path in folder.parent.iterdir())
            return super().personalise(model, own, folder)

    async def make(name: str) -> None:
        async def open_work() -> FakeWork:
            loaded.append(name)
            return Slow(0)

        (store.release_directory(RunId(name))).mkdir(exist_ok=True)
        (store.release_directory(RunId(name)) / "manifest.json").write_text("{}")
        await keeper.make(RunId(name), open_work)  # type: ignore[arg-type]

    await asyncio.gather(*map(make, ("r", "s", "t")))
    assert loaded == ["r", "s", "t"]
    assert words.getvalue().count("kind=own") == 3


def test_the_layout_of_the_released_model_is_kept(own: Path) -> None:
    asked = small()
    assert artefact.load(own).flat.size == model_schema(asked).parameters
    assert split_model(asked, artefact.load(own).flat)[1].size == layout(asked).parameters
