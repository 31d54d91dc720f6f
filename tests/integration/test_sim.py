"""`fedcare sim` over small tables: the whole protocol in one process."""

from __future__ import annotations

import csv
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from common.errors import ConfigError, DataError, FedError
from common.site import Site, load_site
from common.study import Study, parse_study
from researcher.progress import LineDisplay
from researcher.sim import SimResult, simulate

STUDY = """
schema: fedcare.study/v1
id: small-study
purpose: research
dataset: heart
owner: {name: Somebody, organisation: uni-x}
features:
  - {name: age, type: float, impute: mean}
  - {name: sex, type: category, levels: ["0", "1"]}
target: {type: binary, name: sick}
split: {test: 0.3, seed: 1}
model: {kind: logistic}
train: {lr: 0.2, batch: 16, local_steps: 5}
federation: {rounds: 2, min_sites: 3}
seed: 5
"""


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def write_site(folder: Path, name: str, seed: int, rows: int = 60, column: str = "age") -> Site:
    rng = np.random.Generator(np.random.PCG64(seed))
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([column, "sex", "sick"])
        for _ in range(rows):
            age = float(rng.normal(60, 10))
            sick = int(age + rng.normal(0, 5) > 60)
            writer.writerow(["" if rng.random() < 0.05 else round(age, 1), rng.integers(2), sick])
    manifest = folder / f"{name}.yaml"
    manifest.write_text(
        f"schema: fedcare.site/v1\nid: {name}\n"
        f"data: [{{name: heart, kind: csv, path: {name}.csv}}]\n"
    )
    return load_site(manifest)


@pytest.fixture
def sites(tmp_path: Path) -> list[Site]:
    return [write_site(tmp_path, name, seed) for seed, name in enumerate(("north", "east", "west"))]


@pytest.fixture
def study() -> Study:
    return parse_study(STUDY)


def run(study: Study, sites: list[Site]) -> SimResult:
    return simulate(study, sites, LineDisplay(), time.monotonic())


@pytest.mark.slow
def test_two_simulations_give_the_same_model_and_leave_nothing(
    study: Study, sites: list[Site], tmp_path: Path
) -> None:
    first, second = run(study, sites), run(study, list(reversed(sites)))
    assert first.data["model_sha256"] == second.data["model_sha256"]
    assert first.data["dp"] == {"mode": "none", "epsilon": None, "delta": None}
    assert first.comparison.federated.pooled["auroc"] > 0.8  # type: ignore[operator]
    assert list((tmp_path / "temporary").glob("fedcare*")) == []


@pytest.mark.slow
def test_another_seed_trains_another_model(study: Study, sites: list[Site]) -> None:
    other = study.model_copy(update={"seed": 6})
    assert run(study, sites).data["model_sha256"] != run(other, sites).data["model_sha256"]


@pytest.mark.slow
def test_half_the_bytes_give_the_same_figures(study: Study, sites: list[Site]) -> None:
    narrow = parse_study(
        STUDY.replace(
            "rounds: 2,", "rounds: 2, upload_bits: 16, download: float16, max_weight: 64,"
        )
    )
    wide, half = run(study, sites), run(narrow, sites)
    for figure in ("auroc", "brier"):
        first, second = (one.comparison.federated.pooled[figure] for one in (wide, half))
        assert first is not None
        assert second == pytest.approx(first, abs=0.01)
    rounds = [one.data["communication"]["traffic"][1] for one in (wide, half)]  # type: ignore[index]
    assert [part["kind"] for part in rounds] == ["train", "train"]
    header = 8 * 5  # three constants and three tensors' reach words weigh on a model this small
    assert rounds[1]["upload_bytes"] <= rounds[0]["upload_bytes"] / 2 + header


def test_too_few_sites_and_a_site_twice_are_refused(study: Study, sites: list[Site]) -> None:
    with pytest.raises(ConfigError, match="at least 3 sites, 2 given"):
        run(study, sites[:2])
    with pytest.raises(ConfigError, match="'north' is given twice"):
        run(study, [sites[0], *sites])


def test_a_table_that_does_not_fit_is_named_before_anything_runs(
    study: Study, sites: list[Site], tmp_path: Path
) -> None:
    wrong = write_site(tmp_path, "south", 9, column="aage")
    with pytest.raises(DataError, match=r"south\.csv has no column 'age'; did you mean 'aage'"):
        run(study, [*sites, wrong])


def test_a_site_without_the_data_set_is_named(study: Study, sites: list[Site]) -> None:
    other = parse_study(STUDY.replace("dataset: heart", "dataset: hearts"))
    with pytest.raises(FedError, match="did you mean 'heart'"):
        run(other, sites)


def test_leaving_a_hospital_out_needs_one_more_than_min_sites(
    study: Study, sites: list[Site]
) -> None:
    with pytest.raises(ConfigError, match="at least 4 sites, 3 given"):
        simulate(study, sites, LineDisplay(), time.monotonic(), leave_out=True)


@pytest.mark.slow
def test_each_hospital_is_left_out_once_and_subgroups_come_over_the_wire(
    sites: list[Site], tmp_path: Path
) -> None:
    study = parse_study(STUDY + "evaluate: {subgroups: [{feature: sex}]}\n")
    sites = [*sites, write_site(tmp_path, "south", 3)]
    result = simulate(study, sites, LineDisplay(), time.monotonic(), leave_out=True)
    assert [one.site for one in result.left_out] == [site.id for site in sites]
    assert all(one.figures["rows"] == one.federated["rows"] for one in result.left_out)
    assert any(one.figures["auroc"] != one.federated["auroc"] for one in result.left_out) or any(
        one.figures["brier"] != one.federated["brier"] for one in result.left_out
    )
    wire, exact = result.data["over_the_wire"], result.comparison.federated.pooled
    assert isinstance(wire, dict)
    for name, value in wire.items():
        wide = 8.0 if name.startswith("calibration_slope") else 1.0
        assert value == pytest.approx(exact[name], abs=0.002 * wide), name
    assert {group.label for group in result.comparison.subgroups} == {"0", "1"}


@pytest.mark.slow
def test_sites_of_several_kinds_train_together(study: Study, sites: list[Site]) -> None:
    """A simulation carries a table's whole mapping, whatever its kind."""
    path = Path(getattr(sites[0].data[0], "path", ""))
    frame = pl.read_csv(path)
    frame.write_parquet(path.with_suffix(".parquet"))
    base = path.with_suffix(".db")
    with closing(sqlite3.connect(base)) as connection, connection:
        connection.execute("CREATE TABLE visits (years, sex, sick)")
        connection.executemany("INSERT INTO visits VALUES (?, ?, ?)", frame.rows())
    query = "SELECT * FROM visits ORDER BY rowid"
    tables = {
        "north": f"kind: parquet, path: {path.with_suffix('.parquet').name}",
        "east": f"kind: sql, url: 'sqlite:///{base}', columns: {{age: years}}, query: {query}",
    }
    for name, table in tables.items():
        (path.parent / f"{name}.yaml").write_text(
            f"schema: fedcare.site/v1\nid: {name}\ndata: [{{name: heart, {table}}}]\n"
        )
    mixed = [load_site(path.parent / f"{site.id}.yaml") for site in sites]
    assert len(run(study, mixed).data["sites"]) == 3  # type: ignore[arg-type]
