"""Every kind of source gives the same study rows, or is refused by place and without a value."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from common.errors import ConfigError, DataError, FedError
from common.site import load_site, load_sites
from common.site_tables import SqlTable
from common.study import Study, parse_study
from hospital_node.data import database as sessions
from hospital_node.data.load import SiteData, load_table
from hospital_node.disclosure import public_detail

STUDY = """
schema: fedcare.study/v1
id: sources
purpose: research
dataset: heart
owner: {name: n, organisation: o}
features:
  - {name: age, type: float, unit: a, range: [18, 110], impute: mean}
  - {name: sex, type: category, levels: ["0", "1"]}
  - {name: chol, type: float, unit: mg/dL, range: [50, 700], missing: [0], impute: mean}
target: {type: binary, name: num, positive: "> 0"}
split: {test: 0}
model: {kind: logistic}
"""
NAN = float("nan")
WANTED = [[60.0, 1.0, 193.332], [50.0, 0.0, NAN], [70.0, 1.0, 154.6656]]
UNLIKELY = "77.77777"


@pytest.fixture
def study() -> Study:
    return parse_study(STUDY)


def read(folder: Path, study: Study, **table: object) -> SiteData:
    manifest = folder / "site.yaml"
    entry = {"name": "heart", **table}
    manifest.write_text(yaml.safe_dump({"schema": "fedcare.site/v1", "id": "a", "data": [entry]}))
    return load_table(study, load_site(manifest).table("heart"))


def same(found: SiteData) -> None:
    np.testing.assert_allclose(found.train.values, WANTED, rtol=1e-6)
    assert found.train.target.tolist() == [0, 1, 0]


MAPPING = {
    "columns": {"chol": "cholesterol", "num": "diagnosis"},
    "units": {"chol": "mmol/L"},
    "levels": {"sex": {"M": "1", "F": "0"}},
    "missing": {"chol": [-9]},
    "derive": {"age": {"years_between": ["birth", "visit"], "format": "%d.%m.%Y"}},
}
CSV = """birth;visit;sex;cholesterol;diagnosis
01.01.1960;01.01.2020;M;5,0;0
01.01.1970;01.01.2020;F;-9;2
01.01.1950;01.01.2020;M;4,0;0
"""


def test_a_csv_of_a_german_hospital_without_code(tmp_path: Path, study: Study) -> None:
    text = CSV.replace("visit", "Besuchsdatum ü").encode("latin-1")
    (tmp_path / "a.csv").write_bytes(text)
    mapping = json.loads(json.dumps(MAPPING).replace('"visit"', '"Besuchsdatum ü"'))
    found = read(
        tmp_path, study, kind="csv", path="a.csv", delimiter=";", decimal=",",
        encoding="latin-1", **mapping,
    )  # fmt: skip
    np.testing.assert_allclose(found.train.values[:, 0], [60, 50, 70], atol=0.01)
    np.testing.assert_allclose(found.train.values[:, 1:], np.array(WANTED)[:, 1:])


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("5,0", "5.0", "column 'chol', row 1: holds a point"),
        ("F", "X", "column 'sex', row 2: is not one of the manifest's levels"),
        ("01.01.1950", "1950-01-01", "column 'birth', row 3: is not a date of the form"),
        ("4,0", f"{UNLIKELY.replace('.', ',')}", "column 'chol', row 3: lies outside"),
    ],
)
def test_a_cell_that_the_mapping_cannot_read_is_named_by_place(
    tmp_path: Path, study: Study, old: str, new: str, says: str
) -> None:
    (tmp_path / "a.csv").write_text(CSV.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(tmp_path, study, kind="csv", path="a.csv", delimiter=";", decimal=",", **MAPPING)
    assert says in caught.value.detail
    assert new not in caught.value.detail
    assert caught.value.fix


def frame() -> pl.DataFrame:
    return pl.DataFrame(
        {"age": [60.0, 50.0, 70.0], "sex": [True, False, True], "chol": [193.332, NAN, 154.6656],
         "num": [0, 1, 0]}
    )  # fmt: skip


def test_parquet(tmp_path: Path, study: Study) -> None:
    frame().write_parquet(tmp_path / "a.parquet")
    same(read(tmp_path, study, kind="parquet", path="a.parquet"))
    (tmp_path / "b.parquet").write_text("no")
    with pytest.raises(ConfigError, match=r"b\.parquet is not a Parquet file"):
        read(tmp_path, study, kind="parquet", path="b.parquet")


def database(path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE visits (pid, age REAL, sex TEXT, chol REAL, num INTEGER)")
        rows = [(1, 60, "1", 193.332, 0), (2, 50, "0", None, 1), (3, 70, "1", 154.6656, 0)]
        base.executemany("INSERT INTO visits VALUES (?,?,?,?,?)", rows)
    base.close()


def test_one_select_over_a_database(
    tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    database(tmp_path / "db.sqlite")
    query = "SELECT *, ':x' AS colon, 7 % 3 AS rest FROM visits ORDER BY pid;"
    monkeypatch.setenv("HEART_DB", f"sqlite:///{tmp_path}/db.sqlite")
    same(read(tmp_path, study, kind="sql", url_env="HEART_DB", query=query, patient="pid"))


@pytest.mark.parametrize(
    "query",
    ["DELETE FROM visits", "SELECT 1; DROP TABLE visits", "/* SELECT */ UPDATE visits SET num=1"],
)
def test_what_is_not_one_select_is_refused(tmp_path: Path, study: Study, query: str) -> None:
    with pytest.raises(ConfigError, match="must be one SELECT"):
        read(tmp_path, study, kind="sql", url="sqlite:///x", query=query)


def test_a_query_that_writes_all_the_same_meets_a_read_only_session(
    tmp_path: Path, study: Study
) -> None:
    database(tmp_path / "db.sqlite")
    url = f"sqlite:///{tmp_path}/db.sqlite"
    query = "WITH x AS (SELECT 1) DELETE FROM visits RETURNING pid"
    with pytest.raises(DataError, match="refused the query"):
        read(tmp_path, study, kind="sql", url=url, query=query)
    with sqlite3.connect(tmp_path / "db.sqlite") as base:
        assert base.execute("SELECT count(*) FROM visits").fetchone() == (3,)
    base.close()


def test_each_of_the_two_locks_alone_keeps_a_session_from_writing(tmp_path: Path) -> None:
    database(tmp_path / "db.sqlite")
    url = f"sqlite:///{tmp_path}/db.sqlite"
    table = SqlTable.model_validate(
        {"kind": "sql", "name": "heart", "url": url, "query": "SELECT 1"}
    )
    with sessions.session(table, "t") as connection:
        assert connection.exec_driver_sql("PRAGMA query_only").scalar() == 1

    def write_all_the_same() -> None:
        with sessions.session(table, "t") as connection:
            connection.exec_driver_sql("PRAGMA query_only = OFF")
            connection.exec_driver_sql("DELETE FROM visits")

    with pytest.raises(DataError, match="refused"):
        write_all_the_same()


def test_a_database_that_is_down_is_a_reason_without_secrets(
    tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(
        "psycopg", reason="psycopg (the extra sql) is not installed: make install has it"
    )
    monkeypatch.setenv("DB", "postgresql://doctor:hunter2@127.0.0.1:1/secretbase")
    with pytest.raises(DataError) as caught:
        read(tmp_path, study, kind="sql", url_env="DB", query="SELECT 1")
    for text in (caught.value.detail, public_detail(caught.value), repr(caught.value.__cause__)):
        assert not any(word in text for word in ("hunter2", "doctor", "127.0.0.1", "secretbase"))
    assert caught.value.name == "DATA_SOURCE"
    assert caught.value.__suppress_context__


def test_a_password_does_not_stand_in_a_manifest(tmp_path: Path, study: Study) -> None:
    with pytest.raises(ConfigError, match="holds a password") as caught:
        read(tmp_path, study, kind="sql", url="postgresql://a:b7c@h/d", query="SELECT 1")
    assert "b7c" not in caught.value.detail


def test_another_database_is_refused_because_it_is_not_opened_read_only(
    tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB", "mysql://a:b@h/d")
    with pytest.raises(ConfigError, match="cannot be opened read-only"):
        read(tmp_path, study, kind="sql", url_env="DB", query="SELECT 1")


def ndjson(path: Path, *resources: Mapping[str, object]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in resources), encoding="utf-8")


def observation(
    patient: str, value: float, unit: str, day: str, **more: object
) -> dict[str, object]:
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "2093-3"}]},
        "subject": {"reference": f"Patient/{patient}"},
        "effectiveDateTime": day,
        "valueQuantity": {"value": value, "unit": unit, "code": unit},
        **more,
    }


FHIR = {
    "birth": {"resource": "Patient", "field": "birthDate"},
    "sex": {"resource": "Patient", "field": "gender"},
    "chol": {"resource": "Observation", "codes": ["http://loinc.org|2093-3"], "take": "last"},
    "num": {"resource": "Condition", "codes": ["http://snomed.info/sct|53741008"]},
}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    people = [
        ("a", "1960-01-01", "male"),
        ("b", "1970-01-01", "female"),
        ("c", "1950-01-01", "male"),
    ]
    ndjson(
        folder / "Patient.ndjson",
        *({"resourceType": "Patient", "id": i, "birthDate": b, "gender": g} for i, b, g in people),
    )
    wrong = observation("a", 9.0, "mmol/L", "2020-01-01", status="entered-in-error")
    ndjson(
        folder / "Observation.ndjson",
        observation("a", 5.0, "mmol/L", "2019-05-01"),
        observation("a", 300, "mg/dL", "2018-05-01"),
        observation("c", 154.6656, "mg/dL", "2019-05-01"),
        wrong,
    )
    sick: dict[str, object] = {
        "resourceType": "Condition",
        "code": {"coding": [{"system": "http://snomed.info/sct", "code": "53741008"}]},
        "subject": {"reference": "Patient/b"},
    }
    refuted: dict[str, object] = {
        **sick,
        "subject": {"reference": "Patient/a"},
        "verificationStatus": {"coding": [{"system": "s", "code": "refuted"}]},
    }
    ndjson(folder / "Condition.ndjson", sick, refuted)
    return folder


FHIR_TABLE = {
    "kind": "fhir",
    "path": "export",
    "columns": FHIR,
    "levels": {"sex": {"male": "1", "female": "0"}},
    "derive": {"age": {"years_between": ["birth", "2020-01-01"]}},
}


def test_fhir_bulk_export_with_units_of_each_observation(
    tmp_path: Path, export: Path, study: Study
) -> None:
    found = read(tmp_path, study, **FHIR_TABLE)
    np.testing.assert_allclose(found.train.values, WANTED, rtol=1e-3)
    assert found.train.target.tolist() == [0, 1, 0]


def test_a_unit_that_does_not_fit_and_a_broken_line_are_named(
    tmp_path: Path, export: Path, study: Study
) -> None:
    ndjson(export / "Observation.ndjson", observation("a", 77.77777, "kg", "2019-05-01"))
    with pytest.raises(DataError, match="'chol': no conversion from 'kg' to 'mg/dL'") as caught:
        read(tmp_path, study, **FHIR_TABLE)
    assert UNLIKELY not in caught.value.detail
    (export / "Observation.ndjson").write_text('{"resourceType": "Observation", 77.77777\n')
    with pytest.raises(ConfigError, match=r"Observation\.ndjson, line 1: is not one JSON"):
        read(tmp_path, study, **FHIR_TABLE)


ROWS = """pid,day,age,sex,chol,num
1,2020-01-02,60,1,200,0
2,2020-01-01,50,0,,1
1,2020-03-01,62,1,100,0
1,,20,1,300,0
"""


@pytest.mark.parametrize(
    ("take", "chol", "age"),
    [
        ("last", 100, 62),
        ("first", 300, 20),
        ("mean", 200, 142 / 3),
        ("max", 300, 62),
        ("min", 100, 20),
    ],
)
def test_several_rows_of_a_patient_become_one(
    tmp_path: Path, study: Study, take: str, chol: float, age: float
) -> None:
    (tmp_path / "a.csv").write_text(ROWS)
    by = {"by": "day"} if take in ("last", "first") else {}
    found = read(
        tmp_path, study, kind="csv", path="a.csv", patient="pid", rows={"take": take, **by}
    )
    np.testing.assert_allclose(found.train.values, [[age, 1, chol], [50, 0, NAN]])


def test_refusals_name_the_sources_own_rows_also_where_rows_are_put_together(
    tmp_path: Path, study: Study
) -> None:
    (tmp_path / "a.csv").write_text(ROWS.replace("1,,20", "1,,200"))
    table = {"kind": "csv", "path": "a.csv", "patient": "pid"}
    with pytest.raises(DataError, match="column 'age', row 4: lies outside"):
        read(tmp_path, study, **table, rows={"take": "mean"})  # the mean itself would fit
    (tmp_path / "a.csv").write_text(ROWS + "3,2020-01-01,40,1,100,\n")
    with pytest.raises(DataError, match="column 'num', row 5: has no label"):
        read(tmp_path, study, **table, rows={"take": "last", "by": "day"})


def test_a_mapping_between_units_that_needs_the_substance_says_so(
    tmp_path: Path, study: Study
) -> None:
    (tmp_path / "a.csv").write_text("age,sex,chol,num\n60,1,200,0\n")
    table = {"kind": "csv", "path": "a.csv"}
    with pytest.raises(DataError, match="column 'age': no conversion from 'kg' to 'a'"):
        read(tmp_path, study, **table, units={"age": "kg"})
    other = parse_study(STUDY.replace("name: chol", "name: lipid"))
    renamed = {"columns": {"lipid": "chol"}}
    with pytest.raises(DataError, match="needs the substance"):
        read(tmp_path, other, **table, **renamed, units={"lipid": "mmol/L"})
    known = {"lipid": {"unit": "mmol/L", "analyte": "cholesterol"}}
    (tmp_path / "a.csv").write_text("age,sex,chol,num\n60,1,5,0\n")
    found = read(tmp_path, other, **table, **renamed, units=known)
    assert found.train.values[0, 2] == pytest.approx(193.332)


def test_the_same_query_or_folder_twice_would_have_two_budgets(tmp_path: Path) -> None:
    table = {"kind": "sql", "url": "sqlite:///x", "query": "SELECT  1"}
    entries = [{"name": "a", **table}, {"name": "b", **table, "query": "SELECT 1"}]
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump({"schema": "fedcare.site/v1", "id": "a", "data": entries}))
    with pytest.raises(ConfigError, match="two privacy budgets"):
        load_sites([path])


def test_twenty_wide_and_sparse_sites_load_in_seconds(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.PCG64(7))
    names = [f"lab{place}" for place in range(48)]
    features = "".join(
        f"\n  - {{name: {name}, type: float, range: [-9, 9], impute: mean}}" for name in names
    )
    start = STUDY.index("features:")
    end = STUDY.index("target:")
    study = parse_study(STUDY[:start] + f"features:{features}\n" + STUDY[end:])
    values = rng.normal(size=(5000, 48)).clip(-9, 9)
    values[rng.random(values.shape) < 0.8] = NAN
    table = pl.DataFrame(values, schema=names).fill_nan(None)
    table = table.with_columns(pl.Series("num", (rng.random(5000) < 0.07).astype(int)))
    table.write_csv(tmp_path / "a.csv")
    began = time.process_time()
    found = read(tmp_path, study, kind="csv", path="a.csv")
    for _ in range(2):
        found = read(tmp_path, study, kind="csv", path="a.csv")
    assert time.process_time() - began < 3 * 1.0
    assert np.isnan(found.train.values).mean() == pytest.approx(0.8, abs=0.01)


def test_every_new_refusal_leaves_the_hospital_by_its_kind_only(
    tmp_path: Path, study: Study
) -> None:
    with pytest.raises(FedError) as caught:
        read(tmp_path, study, kind="sql", url_env="NOT_SET_HERE", query="SELECT 1")
    assert "NOT_SET_HERE" not in public_detail(caught.value)
