"""A generated folder: equal bytes for equal arguments, and files that a new user can run."""

from __future__ import annotations

import csv
import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from common.cli import main
from common.errors import ConfigError
from common.features import Table
from common.site import load_sites
from common.study import load_study
from hospital_node.data.invent.fhir import FILES, write_fhir
from hospital_node.data.invent.files import FORMATS, generate
from hospital_node.data.invent.knobs import SCENARIOS, Knobs
from hospital_node.data.invent.omop import write_omop
from hospital_node.data.invent.patients import cohorts
from hospital_node.data.invent.recording import PATIENT, Ward, record
from hospital_node.data.invent.tables import write_parquet
from hospital_node.data.load import load_table

SMALL = Knobs(sites=2, rows=25, missing=0.3, duplicates=0.2, units=0.5, coding=0.5)


def ward(knobs: Knobs = SMALL, place: int = 1) -> Ward:
    return record(knobs, 5, place, cohorts(knobs, 5)[place])


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    here = str(folder).encode()  # an OMOP manifest names its database by where it lies
    return {str(path.relative_to(folder)): path.read_bytes().replace(here, b"") for path in files}


@pytest.mark.parametrize("form", FORMATS)
def test_same_arguments_same_bytes(tmp_path: Path, form: str) -> None:
    generate(tmp_path / "a", SMALL, 5, form)
    generate(tmp_path / "b", SMALL, 5, form)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    generate(tmp_path / "c", SMALL, 6, form)
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_is_a_study_and_sites_that_load(name: str, tmp_path: Path) -> None:
    written = generate(tmp_path / "out", SCENARIOS[name], 1)
    study, sites = load_study(written.study), load_sites(written.manifests)
    assert len(sites) == SCENARIOS[name].sites
    for site in sites:
        data = load_table(study, site.table(study.dataset))
        assert data.train.rows > 0
        assert data.test.rows > 0


def test_the_wide_scenario_is_what_it_says() -> None:
    knobs = SCENARIOS["wide"]
    wide = record(knobs, 1, 0, cohorts(knobs, 1)[0])
    assert len(wide.measured) == 48
    cells = [cell for one in wide.measured for cell in wide.cells[one.name]]
    assert cells.count("") / len(cells) == pytest.approx(0.8 * 46 / 48, abs=0.01)
    people = cohorts(knobs, 1)
    events = sum(int(one.outcome.sum()) for one in people)
    assert events / sum(one.year.size for one in people) == pytest.approx(0.07, abs=0.01)


def test_the_truth_names_units_words_and_duplicates(tmp_path: Path) -> None:
    written = generate(tmp_path / "out", SMALL, 5)
    truth = json.loads(written.truth.read_text())
    second = truth["hospitals"]["hospital-02"]
    assert truth["hospitals"]["hospital-01"]["units"] == {}
    assert second["units"]["glucose"] == "mg/dL"
    assert second["levels"]["sex"] == {"F": "female", "M": "male"}
    ids = {}
    for site in ("hospital-01", "hospital-02"):
        with (tmp_path / "out" / site / "admissions.csv").open() as file:
            ids[site] = [row[PATIENT] for row in csv.DictReader(file)]
    listed = [one for site in truth["hospitals"].values() for one in site[_GUESTS]]
    assert sorted(listed) == sorted(set(ids["hospital-01"]) & set(ids["hospital-02"]))
    assert ids["hospital-02"][-len(second[_GUESTS]) :] == second[_GUESTS]


_GUESTS = "also_of_the_hospital_before"


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="already holds something"):
        generate(tmp_path, SMALL, 5)
    with pytest.raises(ConfigError, match="did you mean 'csv'"):
        generate(tmp_path / "new", SMALL, 5, "cvs")


def test_the_command_says_how_to_run_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    args = ["data", "generate", "--out", str(out), "--sites", "3", "--rows", "20", "--json"]
    assert main(args) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert len(load_sites([Path(path) for path in data["manifests"]])) == 3
    assert main(["study", "lint", data["study"]]) == 0


# --- other formats hold the same cells -----------------------------------------------------------


def test_parquet_holds_the_same_cells_as_numbers(tmp_path: Path) -> None:
    one = ward()
    write_parquet(tmp_path / "t.parquet", one)
    frame = pl.read_parquet(tmp_path / "t.parquet")
    assert frame.columns == list(one.cells)
    assert frame["crp"].to_list() == [float(cell) if cell else None for cell in one.cells["crp"]]
    assert frame["sex"].to_list() == one.cells["sex"]


def test_fhir_holds_every_measured_cell_with_its_unit(tmp_path: Path) -> None:
    one = ward()
    write_fhir(tmp_path / "fhir", one)
    found = {
        name: [
            json.loads(line)
            for line in (tmp_path / "fhir" / f"{name}.ndjson").read_text().splitlines()
        ]
        for name in FILES
    }
    assert [patient["id"] for patient in found["Patient"]] == one.cells[PATIENT]
    assert all(patient["gender"] in ("female", "male") for patient in found["Patient"])
    sick = {condition["subject"]["reference"] for condition in found["Condition"]}
    outcomes = zip(one.cells[PATIENT], one.cells["outcome"], strict=True)
    assert sick == {f"Patient/{patient}" for patient, outcome in outcomes if outcome == "1"}
    glucose = {
        entry["subject"]["reference"]: entry["valueQuantity"]
        for entry in found["Observation"]
        if entry["code"]["coding"][0]["code"] == "2345-7"  # by mass: the hospital reports mg/dL
    }
    cells = zip(one.cells[PATIENT], one.cells["glucose"], strict=True)
    measured = {f"Patient/{patient}": float(cell) for patient, cell in cells if cell}
    assert {patient: quantity["value"] for patient, quantity in glucose.items()} == measured
    assert {quantity["code"] for quantity in glucose.values()} == {"mg/dL"}


def test_omop_holds_every_measured_cell_with_its_unit(tmp_path: Path) -> None:
    one = ward()
    write_omop(tmp_path / "omop.sqlite", one)
    with closing(sqlite3.connect(tmp_path / "omop.sqlite")) as database:
        people = database.execute(
            "SELECT person_source_value FROM person ORDER BY person_id"
        ).fetchall()
        glucose = database.execute(
            "SELECT person_id, value_as_number, unit_concept_id FROM measurement "
            "WHERE measurement_concept_id = 3004501 ORDER BY person_id"
        ).fetchall()
        sick = database.execute("SELECT COUNT(*) FROM condition_occurrence").fetchone()[0]
    assert [row[0] for row in people] == one.cells[PATIENT]
    cells = enumerate(one.cells["glucose"], start=1)
    assert glucose == [(person, float(cell), 8840) for person, cell in cells if cell]
    assert sick == one.cells["outcome"].count("1")


@pytest.mark.parametrize("form", ["parquet", "fhir", "omop"])
@pytest.mark.parametrize("place", [0, 1])
def test_every_format_leads_to_the_table_of_the_csv(form: str, place: int, tmp_path: Path) -> None:
    knobs = replace(SMALL, extra=2, split_year=2020)  # with a column of the split, no draw
    found = {}
    for one in ("csv", form):
        written = generate(tmp_path / one, knobs, 5, one)
        study, site = load_study(written.study), load_sites(written.manifests)[place]
        data = load_table(study, site.table(study.dataset))
        found[one] = [as_rows(part) for part in (data.train, data.test)]
    for expected, got in zip(found["csv"], found[form], strict=True):
        assert got.shape == expected.shape
        assert np.allclose(got, expected, equal_nan=True, rtol=1e-9)


def as_rows(table: Table) -> NDArray[np.float64]:
    """Values and target, in an order that does not depend on the file's."""
    rows = np.column_stack([table.target, table.values])
    return np.asarray(rows[np.lexsort(np.nan_to_num(rows, nan=-1.0).T)])
