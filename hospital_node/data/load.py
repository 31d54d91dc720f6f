"""From a file to the train and test rows of one study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.features import Table
from common.site_tables import Table as SiteTable
from common.study import RandomSplit, Study
from common.study_privacy import PATIENT_MODES
from hospital_node.data.contract import apply, check_cells
from hospital_node.data.csv import Raw, TextTable, read_csv
from hospital_node.data.harmonise import harmonise, read_source
from hospital_node.data.patients import check_patients
from hospital_node.data.rows import one_row_each
from hospital_node.data.split import drawn_alone, train_test

_TRAIN, _TEST, _VALIDATION = range(3)


@dataclass(frozen=True, slots=True)
class SiteData:
    """One hospital's rows of a study; `test` and `validation` may have no rows."""

    train: Table
    test: Table
    validation: Table


def load(study: Study, path: Path, renamed: Mapping[str, str] | None = None) -> SiteData:
    """Read a CSV file, check it against the study and split it.

    `renamed` maps the study's column names to the file's (site manifest, `columns`).

    Raises:
        ConfigError: FILE_MISSING, FILE_SYNTAX.
        DataError: DATA_COLUMN, DATA_VALUE, DATA_LABEL; DATA_EMPTY, no row to train on.
    """
    return prepare(study, read_csv(path, study.columns(), renamed))


def load_table(study: Study, table: SiteTable) -> SiteData:
    """Read the table of a manifest, and check that the study tells its patients apart.

    Raises:
        ConfigError, DataError: as `load`; DATA_SOURCE, DATA_UNIT; PATIENT_KEY
            (`hospital_node.data.patients`).
    """
    raw = read_source(study, table)
    data = prepare(study, map_table(study, table, raw))
    check_patients(study, table, raw)
    return data


def map_table(study: Study, table: SiteTable, raw: Raw) -> TextTable:
    """Return a source's rows in the study's words, several of one patient put together.

    Where rows are put together, the contract sees each of them first: an impossible value
    must not vanish in a mean.

    Raises:
        ConfigError, DataError: as `harmonise`, `check_cells` and `one_row_each`.
    """
    text = harmonise(study, table, raw)
    if table.rows is not None:
        check_cells(study, text)
    return one_row_each(study, table, raw, text)


def prepare(study: Study, text: TextTable) -> SiteData:
    """Check and split a table of text; see `load`."""
    table, groups = apply(study, text)
    if study.kind == "training" and isinstance(study.split, RandomSplit):
        draw = _draw_each if study.privacy.dp.mode in PATIENT_MODES else _draw
        groups = draw(study.split, table)
    parts = [table.take(np.flatnonzero(groups == group)) for group in range(_VALIDATION + 1)]
    if parts[_TRAIN].rows == 0:
        raise DataError("DATA_EMPTY", f"{text.name} has no training row for study {study.id}")
    return SiteData(parts[_TRAIN], parts[_TEST], parts[_VALIDATION])


def _draw(split: RandomSplit, table: Table) -> NDArray[np.int64]:
    """Return each row's group. Patients are drawn, so that one's rows stay together.

    A patient's label, for stratification, is the largest of the patient's rows; of a survival
    target, whether the event came.
    """
    patients, places = np.unique(table.patient, return_inverse=True)
    labels = np.full(patients.size, -np.inf)
    np.maximum.at(labels, places, table.target if table.target.ndim == 1 else table.target[:, 1])
    _, test = train_test(labels, split.test, split.seed, stratify=split.stratify)
    in_test = np.zeros(patients.size, np.bool_)
    in_test[test] = True
    return np.where(in_test[places], _TEST, _TRAIN).astype(np.int64)


def _draw_each(split: RandomSplit, table: Table) -> NDArray[np.int64]:
    """Return each row's group where patients are protected: each patient drawn alone.

    By the study's seed and the patient's number only. A shuffle of all patients would let one
    more or one less of them, or a label, move many others from one part to the other.
    """
    patients, places = np.unique(table.patient, return_inverse=True)
    in_test = drawn_alone(patients, split.test, split.seed)
    return np.where(in_test[places], _TEST, _TRAIN).astype(np.int64)
