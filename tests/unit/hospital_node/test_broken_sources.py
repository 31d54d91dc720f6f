"""Whatever a hospital's export holds, it is read or refused by place; no value is told."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import NoReturn

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, DataError, FedError
from common.site_tables import FhirTable, OmopTable
from hospital_node.data import parquet
from hospital_node.data.fhir import read_fhir
from hospital_node.data.omop import read_omop

ROE = "Jane Roe"
COLUMNS = {
    "chol": {"resource": "Observation", "codes": ("http://loinc.org|2093-3",), "unit": "mg/dL"},
    "birth": {"resource": "Patient", "field": "birthDate"},
    "sick": {"resource": "Condition", "codes": ("s|1",)},
}
PATIENT: dict[str, object] = {"resourceType": "Patient", "id": "p1"}
CODE = {"coding": [{"system": "http://loinc.org", "code": "2093-3"}]}
OBSERVATION: dict[str, object] = {
    "resourceType": "Observation",
    "status": "final",
    "subject": {"reference": "Patient/p1"},
    "code": CODE,
    "effectiveDateTime": "2020-01-01",
    "valueQuantity": {"value": 200, "unit": "mg/dL"},
}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.sampled_from([10**400, "", ROE, "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["value", "unit", "code", "coding", "start"]), inner)
    ),
    max_leaves=4,
)


def table(folder: Path, *resources: object) -> FhirTable:
    text = "\n".join(json.dumps(one) for one in resources)
    (folder / "export.ndjson").write_text(text, encoding="utf-8")
    stated = {"kind": "fhir", "name": "heart", "path": str(folder), "columns": COLUMNS}
    return FhirTable.model_validate(stated)


def refusal(asked: FhirTable) -> str:
    """Return why a table is refused, or nothing; any other exception is a bug."""
    try:
        read_fhir(asked, {"chol": "mg/dL"})
    except FedError as refused:
        return refused.detail
    return ""


@settings(max_examples=150)
@given(st.sampled_from([PATIENT, OBSERVATION]), st.data())
def test_any_json_in_a_resource_is_read_or_refused_by_its_line(
    tmp_path_factory: pytest.TempPathFactory, resource: dict[str, object], data: st.DataObject
) -> None:
    keys = [*resource, "component", "valueInteger", "valueString", "verificationStatus"]
    key = data.draw(st.sampled_from(keys))
    changed = {**resource, key: data.draw(ANYTHING)}
    folder = tmp_path_factory.mktemp("export")
    said = refusal(table(folder, PATIENT | {"id": "p0"}, changed))
    assert key == "valueQuantity" or ROE not in said  # the unit of a quantity is named


@pytest.mark.parametrize(
    "line", ['{"resourceType": ["Patient"]}', '{"resourceType": "Patient", "id": "\\ud800"}']
)
def test_a_line_that_is_no_resource_does_not_stop_a_node_with_a_bug(
    tmp_path: Path, line: str
) -> None:
    asked = table(tmp_path, PATIENT)
    with (tmp_path / "export.ndjson").open("a", encoding="utf-8") as file:
        file.write("\n" + line)
    said = refusal(asked)
    assert said == "" or "export.ndjson, line 2" in said


def cdm(folder: Path, **cells: object) -> OmopTable:
    """Return a table of one person and one measurement, with the given cells."""
    row = {"person": 1, "index": "2020-01-01", "year": 1950, "number": 5.0, "day": "2019-12-01"}
    row |= {"place": 1} | cells
    with sqlite3.connect(folder / "cdm.db") as base:
        base.executescript(
            "CREATE TABLE person (person_id, year_of_birth, month_of_birth, day_of_birth,"
            " gender_concept_id, race_concept_id, ethnicity_concept_id);"
            "CREATE TABLE measurement (measurement_id, person_id, measurement_concept_id,"
            " measurement_date, value_as_number, value_as_concept_id);"
            "CREATE TABLE cohort (person_id, index_date);"
        )
        base.execute("INSERT INTO cohort VALUES (:person, :index)", row)
        base.execute("INSERT INTO person VALUES (1, :year, NULL, NULL, 8507, 0, 0)", row)
        base.execute("INSERT INTO measurement VALUES (:place, 1, 7, :day, :number, NULL)", row)
    base.close()
    return OmopTable.model_validate(
        {
            "kind": "omop", "name": "heart", "url": f"sqlite:///{folder / 'cdm.db'}",
            "cohort": "SELECT person_id, index_date FROM cohort",
            "features": {
                "age": {"domain": "person", "field": "age"},
                "chol": {"domain": "measurement", "concepts": (7,)},
            },
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ({"number": ROE}, "column 'chol': value_as_number is no number"),
        ({"number": b"x"}, "column 'chol': value_as_number is no number"),
        ({"day": b"x"}, "column 'chol': holds no plain values"),
        ({"place": b"x"}, "column 'chol': holds no plain values"),
        ({"person": b"x"}, "omop table heart: holds no plain values"),
        ({"year": ROE}, "column 'age': a day of birth is no number"),
    ],
)
def test_a_database_with_other_types_is_refused_by_column(
    tmp_path: Path, cells: dict[str, object], says: str
) -> None:
    with pytest.raises(DataError) as refused:
        read_omop(cdm(tmp_path, **cells), {"chol": "mg/dL"})
    assert refused.value.name == "DATA_VALUE"
    assert refused.value.detail.endswith(says)


def test_a_person_without_a_year_of_birth_has_no_age(tmp_path: Path) -> None:
    assert read_omop(cdm(tmp_path, year=None), {"chol": "mg/dL"}).frame["c1"].to_list() == [""]


@pytest.mark.parametrize("reader", ["read_parquet", "read_parquet_schema"])
def test_a_file_over_which_the_reader_panics_is_refused_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    path = tmp_path / "heart.parquet"
    pl.DataFrame({"age": [1]}).write_parquet(path)

    def panics(_: Path) -> NoReturn:
        raise pl.exceptions.PanicException(ROE)  # a BaseException, as the reader's own

    monkeypatch.setattr(pl, reader, panics)
    with pytest.raises(ConfigError, match="is not a Parquet file") as refused:
        parquet.read_parquet(path)
    assert ROE not in refused.value.detail
