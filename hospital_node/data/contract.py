"""The data contract: a hospital's text cells become a study's numbers, or a clear refusal.

Order, per column: cells are stripped; an empty cell or a declared missing code is
missing; the rest must read as the column's type, lie in its range or be one of its
levels. The first cell that does not is refused with file, column and row. The cell
itself is a patient's value and stands in no message.

Numbers are plain decimals (`-1.5`, `2e3`); `1,5`, `nan` and `inf` are none. A level or
missing code that is a number matches every spelling of it: level "1" matches `1.0`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.errors import DataError
from common.features import Table
from common.positive import PositiveRule
from common.statistics import UNRANGED
from common.study import (
    BinaryTarget,
    ColumnSplit,
    ContinuousTarget,
    Feature,
    MulticlassTarget,
    NoTarget,
    Study,
    SurvivalCurve,
    SurvivalTarget,
)
from common.study_images import image_of
from hospital_node.data.cells import Rows, is_missing, match, parsed
from hospital_node.data.csv import TextTable

_SPLIT_WORDS = ("train", "test", "validation", "")


def apply(study: Study, text: TextTable) -> tuple[Table, NDArray[np.int64]]:
    """Return the study's usable rows and which group each belongs to.

    Groups follow `split: {column: ...}`: 0 train, 1 test, 2 validation; all 0 where the
    study splits by itself. Rows with an empty split are not read at all; rows where a
    feature with `impute: drop-row` is missing are left out.

    Raises:
        DataError: DATA_VALUE, DATA_LABEL (file, column, row); DATA_EMPTY, no usable row.
    """
    used, groups = _groups(study, text)
    values = np.empty((len(used), len(study.features)), np.float64)
    for place, feature in enumerate(study.features):
        cells = text.columns[feature.name].gather(used)
        values[:, place] = _feature(
            feature, cells, Rows(text.name, feature.name, text.places(used))
        )
    keep = np.ones(len(used), np.bool_)
    for place, feature in enumerate(study.features):
        missing = np.isnan(values[:, place])
        if feature.impute == "drop-row":
            keep &= ~missing
    used, groups, values = used[keep], groups[keep], values[keep]
    _check_nothing_missing(study, text.name, values, text.places(used))
    target = _target(study, text, used)
    if len(used) == 0:
        raise DataError("DATA_EMPTY", f"{text.name} has no usable row for study {study.id}")
    patients = _patients(study, text, used)
    return Table(values, target, patients, _pixels(study, text, used)), groups


def _pixels(study: Study, text: TextTable, used: NDArray[np.int64]) -> NDArray[np.float32] | None:
    image = image_of(study)
    if image is None:
        return None
    from hospital_node.data.images import read_images

    return read_images(image, text, used)


def check_cells(study: Study, text: TextTable) -> None:
    """Judge every cell of the features, whatever becomes of its row.

    Raises:
        DataError: DATA_VALUE (file, column, row).
    """
    everywhere = text.places(np.arange(text.rows, dtype=np.int64))
    for feature in study.features:
        _feature(feature, text.columns[feature.name], Rows(text.name, feature.name, everywhere))


class _Notes(Rows):
    """Notes what is wrong with each row instead of refusing the file."""

    __slots__ = ("_notes",)

    def __init__(self, file: str, column: str, notes: list[str]) -> None:
        super().__init__(file, column, np.arange(len(notes), dtype=np.int64))
        self._notes = notes

    def refuse(self, wrong: NDArray[np.bool_], what: str, name: str = "DATA_VALUE") -> None:
        """Note the first thing that is wrong with each row marked in `wrong`."""
        del name
        for row in np.flatnonzero(wrong).tolist():
            self._notes[row] = self._notes[row] or f"column '{self._column}' {what}"


def read_patients(study: Study, text: TextTable) -> tuple[NDArray[np.float64], list[str]]:
    """Return the features of patients to score, and what the contract has against each row.

    float64 [rows, features], NaN where a value is missing; no target and no split is read.
    A note is empty for a row that can be scored, and never holds the patient's value.
    """
    notes = [""] * text.rows
    values = np.empty((text.rows, len(study.features)), np.float64)
    for place, feature in enumerate(study.features):
        rows = _Notes(text.name, feature.name, notes)
        values[:, place] = _feature(feature, text.columns[feature.name], rows)
        if feature.impute in ("none", "drop-row"):
            rows.refuse(np.isnan(values[:, place]), "is missing and the study states no imputation")
    return values, notes


def _groups(study: Study, text: TextTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the file's rows that are used (0-based) and the group of each."""
    rows = np.arange(text.rows, dtype=np.int64)
    if study.kind == "statistics" or not isinstance(study.split, ColumnSplit):
        return rows, np.zeros_like(rows)
    cells = text.columns[study.split.column]
    codes = match(cells, _SPLIT_WORDS)
    Rows(text.name, study.split.column, text.places(rows)).refuse(
        codes < 0, "is not train, test, validation or empty"
    )
    used = np.flatnonzero(codes < len(_SPLIT_WORDS) - 1).astype(np.int64)
    return used, codes[used]


def _feature(feature: Feature, cells: pl.Series, rows: Rows) -> NDArray[np.float64]:
    """Return numbers or level indices, NaN where missing."""
    missing = is_missing(cells, feature.missing)
    if feature.type == "image":
        return np.where(missing, np.nan, 0.0)
    if feature.levels is not None:
        codes = match(cells, feature.levels)
        rows.refuse((codes < 0) & ~missing, "is not one of the levels of the study")
        return np.where(missing, np.nan, codes.astype(np.float64))
    low, high = feature.range or (-UNRANGED, UNRANGED)
    values = _numbers(cells, missing, rows)
    if feature.type == "int":
        whole = values == np.rint(values)
        rows.refuse(~(whole | missing), "is not a whole number")
    with np.errstate(invalid="ignore"):
        inside = (values >= low) & (values <= high)
    rows.refuse(
        ~(inside | missing),
        f"lies outside the range [{low:g}, {high:g}] of the study"
        + ("" if feature.range else " (features without a range)"),
    )
    return values


def _numbers(cells: pl.Series, missing: NDArray[np.bool_], rows: Rows) -> NDArray[np.float64]:
    values = parsed(cells)
    rows.refuse(~(np.isfinite(values) | missing), "is not a number")
    values[missing] = np.nan
    return values


def _check_nothing_missing(
    study: Study, file: str, values: NDArray[np.float64], used: NDArray[np.int64]
) -> None:
    if study.kind == "statistics":
        return  # what is missing is counted
    for place, feature in enumerate(study.features):
        if feature.impute == "none":
            Rows(file, feature.name, used).refuse(
                np.isnan(values[:, place]), "is missing and the study states no imputation"
            )


def _target(study: Study, text: TextTable, used: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return labels as numbers; every used row must have one."""
    target = study.target
    if isinstance(target, NoTarget):
        return np.zeros(len(used)) if study.curve is None else _survival(study.curve, text, used)
    if isinstance(target, SurvivalTarget):
        return _survival(target, text, used)
    cells = text.columns[target.name].gather(used)
    rows = Rows(text.name, target.name, text.places(used))
    rows.refuse((cells == "").to_numpy(), "has no label", "DATA_LABEL")
    match target:
        case BinaryTarget():
            return _matching(target.rule, cells, rows)
        case MulticlassTarget(levels=levels):
            codes = match(cells, levels)
            rows.refuse(codes < 0, "is not one of the target's levels", "DATA_LABEL")
            return codes.astype(np.float64)
        case ContinuousTarget(range=limits):
            values = parsed(cells)
            rows.refuse(~np.isfinite(values), "is not a number", "DATA_LABEL")
            low, high = limits or (-UNRANGED, UNRANGED)
            rows.refuse((values < low) | (values > high), "lies outside its range", "DATA_LABEL")
            return values


def _survival(
    target: SurvivalTarget | SurvivalCurve, text: TextTable, used: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return each row's time and whether the event came then (1) or not (0), [rows, 2]."""
    rows = Rows(text.name, target.time, text.places(used))
    cells = text.columns[target.time].gather(used)
    rows.refuse((cells == "").to_numpy(), "has no time", "DATA_LABEL")
    times = parsed(cells)
    rows.refuse(~np.isfinite(times), "is not a number", "DATA_LABEL")
    rows.refuse(times < 0, "is a time below 0", "DATA_LABEL")
    rows.refuse(times > UNRANGED, f"is a time above {UNRANGED:g}", "DATA_LABEL")
    rows = Rows(text.name, target.event, text.places(used))
    cells = text.columns[target.event].gather(used)
    rows.refuse((cells == "").to_numpy(), "does not say whether the event came", "DATA_LABEL")
    return np.stack([times, _matching(target.rule, cells, rows)], axis=1)


def _matching(rule: PositiveRule, cells: pl.Series, rows: Rows) -> NDArray[np.float64]:
    """Return 1 where a cell fits the rule, else 0."""
    if not rule.numeric:
        return _map_labels(cells, rule.matches)
    values = parsed(cells)
    rows.refuse(~np.isfinite(values), "is not a number, as the rule for labels needs", "DATA_LABEL")
    return np.array([rule.matches(value) for value in values.tolist()], np.float64)


def _map_labels(cells: pl.Series, matches: Callable[[str], bool]) -> NDArray[np.float64]:
    answers = {text: float(matches(text)) for text in cells.unique().to_list()}
    return np.array([answers[text] for text in cells.to_list()], np.float64)


def _patients(study: Study, text: TextTable, used: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a number per row, equal for the rows of one patient.

    It is the patient's own: the row's place in the file, or 63 bits of the hash of the key
    (the study's, or the one that the source has by itself). So no
    other patient's coming, going, missing or changed value gives this one another number, and
    with it another side of the split or another place on the hospital's list (protocol, 9.3).
    """
    if study.patient_key is None:
        return used if text.patients is None else _numbered(text.patients.gather(used))
    keys = text.columns[study.patient_key].gather(used)
    Rows(text.name, study.patient_key, text.places(used)).refuse(
        (keys == "").to_numpy(), "names no patient"
    )
    return _numbered(keys)


def _numbered(keys: pl.Series) -> NDArray[np.int64]:
    numbers = {key: _number_of(key) for key in keys.unique().to_list()}
    return np.array([numbers[key] for key in keys.to_list()], np.int64)


def _number_of(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
