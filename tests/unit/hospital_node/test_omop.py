"""An OMOP cohort gives the same rows from SQLite and from PostgreSQL, by the same SQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy
import yaml

from common.errors import ConfigError, DataError
from common.site import load_site
from common.study import parse_study
from hospital_node.data.load import SiteData, load_table

STUDY = parse_study(
    """
schema: fedcare.study/v1
id: omop-study
purpose: research
dataset: heart
owner: {name: n, organisation: o}
features:
  - {name: age, type: float, unit: a, range: [18, 110]}
  - {name: sex, type: category, levels: [f, m]}
  - {name: chol, type: float, unit: mg/dL, range: [50, 700], impute: mean}
  - {name: diabetes, type: int, range: [0, 1]}
target: {type: binary, name: died}
split: {test: 0}
model: {kind: logistic}
"""
)
TABLES = """
CREATE TABLE person (person_id BIGINT, year_of_birth INT, month_of_birth INT, day_of_birth INT,
  gender_concept_id INT, race_concept_id INT, ethnicity_concept_id INT);
CREATE TABLE measurement (measurement_id BIGINT, person_id BIGINT, measurement_concept_id INT,
  measurement_date DATE, value_as_number NUMERIC, value_as_concept_id INT, unit_concept_id INT);
CREATE TABLE condition_occurrence (condition_occurrence_id BIGINT, person_id BIGINT,
  condition_concept_id INT, condition_start_date DATE);
CREATE TABLE concept_ancestor (ancestor_concept_id INT, descendant_concept_id INT);
CREATE TABLE visits (person_id BIGINT, day DATE, note VARCHAR(20));
INSERT INTO person VALUES (10, 1960, 1, 1, 8507, 0, 0), (2, 1970, NULL, NULL, 8532, 0, 0),
  (3, 1950, 1, 1, 8507, 0, 0);
INSERT INTO visits VALUES (10, '2020-01-01', 'at 12:30'), (2, '2020-01-01', 'at 12:30');
INSERT INTO measurement VALUES (1, 10, 3027114, '2019-06-01', 5.0, NULL, 8753),
  (2, 10, 3027114, '2019-05-01', 300, NULL, 8840), (3, 10, 3027114, '2020-06-01', 400, NULL, 8840),
  (4, 3, 3027114, '2019-06-01', 99, NULL, 8840), (5, 2, 3027114, '2010-06-01', 99, NULL, 8840);
INSERT INTO condition_occurrence VALUES (1, 2, 443238, '2015-01-01'),
  (2, 10, 4306655, '2020-03-01');
INSERT INTO concept_ancestor VALUES (201820, 443238);
"""
FEATURES: dict[str, dict[str, object]] = {
    "age": {"domain": "person", "field": "age"},
    "sex": {"domain": "person", "field": "gender_concept_id"},
    "chol": {
        "domain": "measurement",
        "concepts": [3027114],
        "take": "last",
        "window": [-365, 0],
        "unit_concepts": {"8840": "mg/dL", "8753": "mmol/L"},
    },
    "diabetes": {
        "domain": "condition", "concepts": [201820], "descendants": True, "take": "any",
    },
    "died": {"domain": "condition", "concepts": [4306655], "take": "any", "window": [1, 365]},
}  # fmt: skip
COHORT = "SELECT person_id, day AS index_date FROM visits WHERE note LIKE 'at 12:30%'"
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
NOBODY = 65534


def fill(url: str) -> None:
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        for statement in TABLES.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    engine.dispose()


def read(folder: Path, url: str, features: dict[str, dict[str, object]] = FEATURES) -> SiteData:
    (folder / "db.url").write_text(url)
    entry = {
        "name": "heart", "kind": "omop", "url_file": "db.url", "cohort": COHORT,
        "features": features, "levels": {"sex": {"8507": "m", "8532": "f"}},
    }  # fmt: skip
    text = yaml.safe_dump({"schema": "fedcare.site/v1", "id": "a", "data": [entry]})
    (folder / "site.yaml").write_text(text)
    return load_table(STUDY, load_site(folder / "site.yaml").table("heart"))


@pytest.fixture
def lite(tmp_path: Path) -> str:
    fill(f"sqlite:///{tmp_path}/omop.db")
    return f"sqlite:///{tmp_path}/omop.db"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    if not BINARIES:
        pytest.skip("PostgreSQL's server is not installed: apt-get install postgresql")
    pytest.importorskip(
        "psycopg", reason="psycopg (the extra sql) is not installed: make install has it"
    )
    folder = Path(tempfile.mkdtemp(prefix="fedcare-pg-"))
    as_user = {"user": NOBODY, "group": NOBODY} if os.geteuid() == 0 else {}
    if as_user:
        os.chown(folder, NOBODY, NOBODY)
    control = BINARIES[-1].with_name("pg_ctl")

    def do(*command: str) -> None:
        subprocess.run(  # no shell; a server that cannot start fails the test with its own words
            command, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=60,
            **as_user,  # type: ignore[call-overload]
        )  # fmt: skip

    do(str(BINARIES[-1]), "-D", str(folder / "db"), "-U", "doctor", "-A", "trust", "--no-sync")
    options = f"-k {folder} -c listen_addresses= -c fsync=off"
    do(str(control), "-D", str(folder / "db"), "-o", options, "-w", "-l", "log", "start")
    url = f"postgresql+psycopg://doctor@/postgres?host={folder}"
    try:
        fill(url)
        yield url
    finally:
        do(str(control), "-D", str(folder / "db"), "-m", "immediate", "stop")
        shutil.rmtree(folder)


def check(found: SiteData) -> None:
    # Persons 2 and 10 in this order; person 2 has no cholesterol within the year.
    nan = float("nan")
    wanted = [[49.5, 0, nan, 1], [60.0, 1, 193.332, 0]]
    np.testing.assert_allclose(found.train.values, wanted, atol=0.01)
    assert found.train.target.tolist() == [0, 1]


def test_a_cohort_by_sqlite(tmp_path: Path, lite: str) -> None:
    check(read(tmp_path, lite))


def test_the_same_cohort_by_postgresql(tmp_path: Path, postgres: str) -> None:
    check(read(tmp_path, postgres))


def test_both_give_a_patient_the_same_number(tmp_path: Path, lite: str, postgres: str) -> None:
    one, two = read(tmp_path, lite), read(tmp_path, postgres)
    assert one.train.patient.tolist() == two.train.patient.tolist()


def test_postgresql_does_not_let_a_query_write(tmp_path: Path, postgres: str) -> None:
    (tmp_path / "db.url").write_text(postgres)
    query = "WITH x AS (DELETE FROM visits RETURNING person_id) SELECT * FROM x"
    entry = {"name": "heart", "kind": "sql", "url_file": "db.url", "query": query}
    text = yaml.safe_dump({"schema": "fedcare.site/v1", "id": "a", "data": [entry]})
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(DataError, match=r"refused the query \(ReadOnlySqlTransaction\)"):
        load_table(STUDY, load_site(tmp_path / "site.yaml").table("heart"))
    check(read(tmp_path, postgres))


def test_what_came_after_the_index_date_is_not_learnt_from(tmp_path: Path, lite: str) -> None:
    chol = {key: value for key, value in FEATURES["chol"].items() if key != "window"}
    found = read(tmp_path, lite, {**FEATURES, "chol": chol})
    np.testing.assert_allclose(found.train.values[:, 2], [99, 193.332], rtol=1e-3)


def test_a_unit_concept_that_nobody_named_is_refused(tmp_path: Path, lite: str) -> None:
    chol = {**FEATURES["chol"], "unit_concepts": {"8840": "mg/dL"}}
    with pytest.raises(DataError, match="'chol': an event has unit concept '8753'"):
        read(tmp_path, lite, {**FEATURES, "chol": chol})


def test_a_condition_has_no_value_to_take(tmp_path: Path, lite: str) -> None:
    died = {**FEATURES["died"], "take": "mean"}
    with pytest.raises(ConfigError, match="must be any or count"):
        read(tmp_path, lite, {**FEATURES, "died": died})
