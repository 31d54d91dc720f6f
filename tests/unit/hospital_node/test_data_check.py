"""`fedcare node data check`: planted errors are found by name, and no value is ever printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from common.cli import main
from common.errors import FedError
from common.site import load_site
from common.study import Study, load_study
from hospital_node.data.check import Report, examine
from tests.policy_texts import POLICY

STUDY = """
schema: fedcare.study/v1
id: checked
purpose: research
dataset: heart
owner: {name: "A. Researcher", organisation: "uni-x"}
features:
  - {name: age, type: float, unit: a, range: [18, 110], impute: mean}
  - {name: sex, type: category, levels: ["0", "1"], impute: most-frequent}
  - {name: sbp, type: float, unit: "mm[Hg]", range: [60, 260], impute: mean}
  - {name: dbp, type: float, unit: "mm[Hg]", range: [30, 160], impute: mean}
  - {name: chol, type: float, unit: mg/dL, range: [50, 700], impute: mean}
  - {name: creatinine, type: float, unit: mg/dL, range: [0.1, 30], impute: mean}
  - {name: glucose, type: float, unit: mg/dL, range: [1, 2000], impute: mean}
  - {name: temp, type: float, unit: Cel, range: [30, 45], impute: mean}
target: {type: binary, name: num, positive: "> 0"}
split: {test: 0.3, seed: 1}
model: {kind: logistic}
"""
ROWS = 400


def clean(seed: int = 3) -> pl.DataFrame:
    """Patients as they come: nothing about them is to be found."""
    rng = np.random.Generator(np.random.PCG64(seed))
    age = rng.normal(60, 12, ROWS).clip(19, 100)
    return pl.DataFrame(
        {
            "age": age.round(1),
            "sex": rng.integers(0, 2, ROWS),
            "sbp": rng.normal(135, 18, ROWS).clip(80, 240).round(1),
            "dbp": rng.normal(80, 10, ROWS).clip(45, 140).round(1),
            "chol": rng.normal(215, 45, ROWS).clip(90, 500).round(1),
            "creatinine": rng.lognormal(0, 0.3, ROWS).clip(0.3, 12).round(3),
            "glucose": rng.normal(110, 25, ROWS).clip(50, 400).round(1),
            "temp": rng.normal(36.8, 0.5, ROWS).clip(35, 41).round(2),
            "num": (age + rng.normal(0, 15, ROWS) > 65).astype(int),
        }
    )


def look(folder: Path, table: pl.DataFrame, more: str = "") -> Report:
    study, manifest = write(folder, table, more)
    return examine(study, load_site(manifest).table("heart"))


def write(folder: Path, table: pl.DataFrame, more: str = "") -> tuple[Study, Path]:
    table.write_csv(folder / "cleveland.csv")
    (folder / "study.yaml").write_text(STUDY)
    (folder / "site.yaml").write_text(
        "schema: fedcare.site/v1\nid: cleveland\n"
        f"data: [{{name: heart, kind: csv, path: cleveland.csv{more}}}]\n"
    )
    return load_study(folder / "study.yaml"), folder / "site.yaml"


def changed(name: str, factor: float, offset: float = 0.0, rows: int = ROWS) -> pl.DataFrame:
    table = clean()
    values = table[name].to_numpy().copy()
    values[:rows] = values[:rows] * factor + offset
    return table.with_columns(pl.Series(name, values.round(4)))


def coded(name: str, code: float, rows: int) -> pl.DataFrame:
    table = clean()
    values = table[name].to_numpy().copy()
    values[:rows] = code
    return table.with_columns(pl.Series(name, values))


@pytest.mark.parametrize("seed", range(8))
def test_a_clean_table_has_no_finding(tmp_path: Path, seed: int) -> None:
    report = look(tmp_path, clean(seed))
    assert report.findings == ()
    assert report.takes_part


PLANTED = [
    ("likely-unit-error", "chol", changed("chol", 1 / 38.67), "mmol/L"),
    ("likely-unit-error", "creatinine", changed("creatinine", 88.4), "umol/L"),
    ("likely-unit-error", "glucose", changed("glucose", 1 / 18.016), "mmol/L"),
    ("likely-unit-error", "temp", changed("temp", 1.8, 32), "[degF]"),
    ("likely-unit-error", "sbp", changed("sbp", 0.1333), "kPa"),
    ("likely-unit-error", "chol", changed("chol", 1 / 38.67, rows=60), "mmol/L"),
    ("likely-unit-error", "age", changed("age", 12), "mo"),
    ("out-of-range", "chol", coded("chol", 5000, 30), ""),
    ("sentinel-code", "chol", coded("chol", 0, 30), ""),
    ("sentinel-code", "age", coded("age", -9, 12), ""),
    ("sentinel-code", "sbp", coded("sbp", 999, 12), ""),
    ("sentinel-code", "glucose", coded("glucose", 999, 12), ""),
    ("constant", "age", coded("age", 50, ROWS), ""),
    ("all-missing", "age", clean().with_columns(age=pl.lit(None, pl.Float64)), ""),
    ("one-class", "num", coded("num", 1, ROWS), ""),
    ("few-events", "num", clean().with_columns(num=pl.Series([1] * 4 + [0] * (ROWS - 4))), ""),
    ("swapped-columns", "sbp", clean().rename({"sbp": "dbp", "dbp": "sbp"}), "dbp"),
    ("swapped-columns", "age", clean().rename({"age": "temp", "temp": "age"}), "temp"),
    ("swapped-columns", "age", clean().rename({"age": "sex", "sex": "age"}), "sex"),
    ("label-leakage", "sex", clean().with_columns(sex=pl.col("num")), ""),
    ("label-leakage", "glucose", clean().with_columns(glucose=100.5 - pl.col("num") * 30), ""),
    (
        "label-leakage",
        "glucose",
        clean().with_columns(glucose=pl.when(pl.col("num") > 0).then(pl.col("glucose"))),
        "missing",
    ),
    ("duplicate-rows", None, pl.concat([clean(), clean().head(60)]), ""),
]


@pytest.mark.parametrize(
    ("name", "column", "table", "says"), PLANTED, ids=[f"{a}-{b}-{d}" for a, b, _, d in PLANTED]
)
def test_a_planted_error_is_found(
    tmp_path: Path, name: str, column: str | None, table: pl.DataFrame, says: str
) -> None:
    found = [one for one in look(tmp_path, table).findings if one.name == name]
    assert column in [one.column for one in found], look(tmp_path, table).findings
    assert any(says in one.means for one in found)
    assert all(one.fix for one in found)


def test_rows_of_one_patient_taken_for_several_are_found(tmp_path: Path) -> None:
    table = clean().with_columns(pid=pl.Series([place // 2 for place in range(ROWS)]))
    found = look(tmp_path, table, ", patient: pid").findings
    assert [(one.name, one.column, one.rows) for one in found] == [
        ("repeated-patients", "pid", ROWS // 2)
    ]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "node.yaml").write_text("schema: fedcare.node/v1\n")
    return tmp_path


def test_the_command_says_whether_the_site_can_take_part(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(node, clean())
    assert main(["node", "data", "check", "study.yaml"]) == 0
    assert capsys.readouterr().out == "cleveland can take part in study checked\n"
    write(node, coded("chol", 5000, 3))
    assert main(["node", "data", "check", "study.yaml"]) == 1
    out = capsys.readouterr().out
    assert "out-of-range chol (fewer than 10 rows)" in out
    assert out.endswith("cleveland cannot take part in study checked: mend what says stop\n")


def test_the_envelope_suppresses_counts_too(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(node, coded("chol", 5000, 3))
    assert main(["node", "data", "check", "study.yaml", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["takes_part"] is False
    assert {"out-of-range", "data-value"} == {one["name"] for one in data["findings"]}
    assert {one["rows"] for one in data["findings"]} == {None, "fewer than 10"}
    write(node, coded("chol", 5000, 12))
    main(["node", "data", "check", "study.yaml", "--json"])
    data = json.loads(capsys.readouterr().out)["data"]
    assert {one["rows"] for one in data["findings"]} == {None, "12"}


def test_fewer_patients_than_the_policy_lets_be_counted_stop_the_site(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(node, clean().head(20))  # 6 of them to test on
    assert main(["node", "data", "check", "study.yaml"]) == 1
    out = capsys.readouterr().out
    assert "stop  policy-min-cell: policy: release.min_cell is 10: does not allow" in out
    assert not re.findall(r"\b(6|14|20)\b", out)
    assert main(["node", "data", "check", "study.yaml", "--site", "site.yaml"]) == 1
    assert "policy-min-cell" in capsys.readouterr().out


@pytest.mark.parametrize("place", range(len(PLANTED)))
def test_no_cell_is_ever_printed(
    node: Path, place: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cells are made unmistakable: each number gets a tail that nothing else prints."""
    table = PLANTED[place][2]
    numbers = [name for name in ("age", "sbp", "dbp", "chol", "creatinine") if name in table]
    table = table.with_columns(pl.col(name).cast(pl.Float64) + 0.0001357 for name in numbers)
    write(node, table)
    main(["node", "data", "check", "study.yaml"])
    printed = capsys.readouterr().out
    cells = {f"{one:.6g}" for name in numbers for one in table[name].drop_nulls()}
    assert "1357" not in printed
    assert not cells & set(re.findall(r"[\d.]+", printed)) - {"0", "1"}


def test_a_table_that_cannot_be_read_is_a_finding_and_no_crash(tmp_path: Path) -> None:
    report = look(tmp_path, clean().drop("chol"))
    assert [(one.name, one.severity) for one in report.findings] == [("data-column", "stop")]
    assert not report.takes_part
    study, manifest = write(tmp_path, clean())
    (tmp_path / "cleveland.csv").write_text("")
    with pytest.raises(FedError):
        load_site(manifest).table("hart")
    assert not examine(study, load_site(manifest).table("heart")).takes_part
