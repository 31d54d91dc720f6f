"""Whether a table's rows are patients: what a guarantee for every patient stands on.

Differential privacy protects what it groups. If a patient has several rows and the study
groups none, each row alone is protected and the patient by far less. So a study with a
mode that protects patients is held against the hospital's own word first, the manifest's
`patient`: the column that tells patients apart, or null where each row is one patient.
Where the manifest is silent, a column that is named like an identifier and repeats counts
as that column, and so do rows that are copies of others, if they are far more than
patients who look alike by chance.

Messages name file and column, never a cell and never how many.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import polars as pl

from common.errors import DataError
from common.site import Table
from common.study import Study
from hospital_node.data.csv import read_all
from hospital_node.data.headings import find

IDENTIFIERS: Final = frozenset(
    {"pid", "patient", "patient_id", "patientid", "mrn", "subject_id", "person_id"}
)
"""Headings, in small letters, that name a column of patients."""

MOST_COPIES: Final = 0.05
"""Share of rows that may be copies of others in any table."""

MOST_ALIKE: Final = 10
"""Pairs of equal rows may be this many times those that independent columns would have."""

_PROTECTING: Final = ("patient-distributed", "patient-local")


def check_patients(study: Study, table: Table) -> None:
    """Refuse a study that protects patients if its groups split one of this table's.

    Raises:
        DataError: PATIENT_KEY; DATA_COLUMN, the manifest's column is not there; DATA_VALUE,
            it is empty in a row. ConfigError: as `read_all`.
    """
    stated = table.patient_stated
    if study.privacy.dp.mode not in _PROTECTING or (stated and table.patient is None):
        return
    path = Path(table.path)
    header, frame = read_all(path)
    groups = _groups(study, table, header, frame)
    if table.patient is not None:
        column = frame[f"c{find(path.name, header, 'patient', table.patient)}"]
        if (column == "").any():
            raise DataError(
                "DATA_VALUE", f"{path.name}, column '{table.patient}': a row names no patient"
            )
        _refuse_split(path.name, table.patient, column, groups)
        return
    for place, heading in enumerate(header):
        if heading.lower() in IDENTIFIERS:
            _refuse_split(path.name, heading, frame[f"c{place}"], groups)
    if study.patient_key is None and _holds_copies(frame):
        raise DataError(
            "PATIENT_KEY",
            f"{path.name}: many rows are copies of others, and the study groups none",
        )


def _groups(study: Study, table: Table, header: list[str], frame: pl.DataFrame) -> pl.Series:
    """Return what the study tells patients apart by: a column's cells, or the row itself."""
    if study.patient_key is None:
        return pl.Series("group", range(frame.height))
    heading = table.column(study.patient_key)
    return frame[f"c{find(Path(table.path).name, header, study.patient_key, heading)}"]


def _refuse_split(file: str, heading: str, patients: pl.Series, groups: pl.Series) -> None:
    """Refuse if one value of `patients` stands in two groups; empty cells are nobody."""
    pairs = pl.DataFrame({"patient": patients, "group": groups})
    pairs = pairs.filter(pl.col("patient") != "").unique()
    if pairs["patient"].n_unique() < pairs.height:
        raise DataError(
            "PATIENT_KEY",
            f"{file}, column '{heading}': names one patient in several rows that the study takes "
            "for different patients",
        )


def _holds_copies(frame: pl.DataFrame) -> bool:
    """Whether more rows repeat than patients who look alike would make.

    By chance a pair of rows is equal in all columns with the product of the shares of pairs
    that are equal in each. Few columns, or coarse ones, make equal rows of different
    patients; many columns hardly ever do.
    """
    rows = frame.height
    if rows - frame.unique().height <= MOST_COPIES * rows:
        return False
    pairs = rows * (rows - 1)
    chance = math.prod(_equal_pairs(frame.select(name)) / pairs for name in frame.columns)
    return _equal_pairs(frame) > MOST_ALIKE * pairs * chance


def _equal_pairs(frame: pl.DataFrame) -> int:
    """Return how many ordered pairs of different rows are equal."""
    counts = frame.group_by(frame.columns).len()["len"].to_list()
    return sum(count * (count - 1) for count in counts)
