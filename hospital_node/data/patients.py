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
from typing import Final

import polars as pl

from common.errors import DataError
from common.site_tables import Table
from common.study import Study
from hospital_node.data.csv import Raw

IDENTIFIERS: Final = frozenset(
    {"pid", "patient", "patient_id", "patientid", "mrn", "subject_id", "person_id"}
)
"""Headings, in small letters, that name a column of patients."""

MOST_COPIES: Final = 0.05
"""Share of rows that may be copies of others in any table."""

MOST_ALIKE: Final = 10
"""Pairs of equal rows may be this many times those that independent columns would have."""

_PROTECTING: Final = ("patient-distributed", "patient-local")


def check_patients(study: Study, table: Table, raw: Raw) -> None:
    """Refuse a study that protects patients if its groups split one of this table's.

    Where the manifest puts a patient's rows together (`rows`), each row left is a patient.

    Raises:
        DataError: PATIENT_KEY; DATA_COLUMN, the manifest's column is not there; DATA_VALUE,
            it is empty in a row.
    """
    key = table.patient_column
    if study.privacy.dp.mode not in _PROTECTING or table.rows is not None:
        return
    if key is None and table.patient_stated:
        return
    groups = _groups(study, table, raw)
    if key is not None:
        column = raw.column("patient", key)
        if (column == "").any():
            raise DataError("DATA_VALUE", f"{raw.name}, column '{key}': a row names no patient")
        _refuse_split(raw.name, key, column, groups)
        return
    for place, heading in enumerate(raw.header):
        if heading.lower() in IDENTIFIERS:
            _refuse_split(raw.name, heading, raw.frame[f"c{place}"], groups)
    if study.patient_key is None and holds_copies(raw.frame):
        raise DataError(
            "PATIENT_KEY",
            f"{raw.name}: many rows are copies of others, and the study groups none",
        )


def _groups(study: Study, table: Table, raw: Raw) -> pl.Series:
    """Return what the study tells patients apart by: a column's cells, or the row itself."""
    if study.patient_key is None:
        return pl.Series("group", range(raw.frame.height))
    return raw.column(study.patient_key, table.column(study.patient_key))


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


def holds_copies(frame: pl.DataFrame) -> bool:
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
