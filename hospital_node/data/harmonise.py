"""A hospital's own columns in the study's words: the manifest's mapping, column by column.

Order: the heading, or a time between two dates (`derive`); decimal commas; the codes for
"not measured", the hospital's and the study's; levels; units. The result is still text, and
the study's data contract judges it. Several rows of one patient become one last
(`hospital_node.data.rows`), after the contract has seen every row of the source.

Messages name source, column and row, never a cell.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, assert_never

import numpy as np
import polars as pl

from common.errors import DataError
from common.site_tables import (
    CsvTable,
    Derive,
    DicomTable,
    FhirTable,
    OmopTable,
    OwnUnit,
    ParquetTable,
    Renamed,
    SqlTable,
    Table,
)
from common.study import ContinuousTarget, Feature, Study, SurvivalTarget
from common.text import show
from common.units import analyte_of, conversion, same_unit
from hospital_node.data.cells import Rows, is_missing, match, parsed
from hospital_node.data.csv import Raw, TextTable, read_raw
from hospital_node.data.event_units import study_units
from hospital_node.data.headings import dialect_of

FILE: Final = "file"
"""Column of a folder of DICOM files that names each of them."""

_YEAR_DAYS: Final = 365.25
_ISO: Final = "%Y-%m-%d"


def read_source(study: Study, table: Table) -> Raw:
    """Return a source's own columns as text.

    Raises:
        ConfigError, DataError: the source cannot be read.
    """
    match table:
        case CsvTable():
            return read_raw(Path(table.path), dialect_of(table))
        case ParquetTable():
            from hospital_node.data.parquet import read_parquet

            return read_parquet(Path(table.path))
        case SqlTable():
            from hospital_node.data.database import read_sql

            return read_sql(table)
        case OmopTable():
            from hospital_node.data.omop import read_omop

            return read_omop(table, study_units(study))
        case FhirTable():
            from hospital_node.data.fhir import read_fhir

            return read_fhir(table, study_units(study))
        case DicomTable():
            from hospital_node.data.dicom import read_dicom

            return read_dicom(table)
        case _:
            assert_never(table)


def harmonise(study: Study, table: Table, raw: Raw) -> TextTable:
    """Return the study's columns by its own names, in its units and levels.

    Raises:
        DataError: DATA_COLUMN; DATA_VALUE, a cell that the mapping cannot read; DATA_UNIT.
    """
    features = {feature.name: feature for feature in study.features}
    numbers = {feature.name for feature in study.features if feature.numeric}
    numbers |= _numeric_targets(study)
    columns = {}
    for name in study.columns():
        feature = features.get(name)
        image = feature is not None and feature.type == "image"
        if image and isinstance(table, DicomTable):
            columns[name] = raw.column(name, FILE)
            continue
        cells = _cells(table, raw, name)
        comma = isinstance(table, CsvTable) and table.decimal == ","
        if comma and name in numbers and name not in table.derive:
            cells = _decimal_point(cells, Rows(raw.name, name))
        own = table.missing.get(name, ())
        theirs = feature.missing if feature is not None else ()
        if name in table.levels:
            cells = _blank(cells, own)
            cells = _levels(cells, table.levels[name], Rows(raw.name, name))
            cells = _blank(cells, theirs)
        else:
            cells = _blank(cells, (*own, *theirs))
        if name in table.units:
            cells = _unit(cells, table.units[name], name, feature, study)
        columns[name] = cells
    key = table.patient_column
    by_itself = not isinstance(table, CsvTable | ParquetTable) and key is not None
    patients = raw.column("patient", key) if by_itself and key is not None else None
    return TextTable(raw.name, columns, raw.frame.height, patients=patients, folder=_folder(table))


def _folder(table: Table) -> Path | None:
    """Return where the files lie that a column of images names."""
    match table:
        case DicomTable():
            return Path(table.path)
        case Renamed(images=images) if images is not None:
            return Path(images)
        case _:
            return None


def _numeric_targets(study: Study) -> set[str]:
    match study.target:
        case ContinuousTarget(name=name):
            return {name}
        case SurvivalTarget(time=name):
            return {name}
        case _:
            return set()


def _cells(table: Table, raw: Raw, name: str) -> pl.Series:
    rule = table.derive.get(name)
    if rule is None:
        return raw.column(name, table.column(name)).alias(name)
    start, end = rule.between
    begin = dates(raw, start, rule.format)
    fixed = _fixed(end)
    if fixed is not None and end not in raw.header:
        finish = pl.Series([fixed], dtype=pl.Date).new_from_index(0, raw.frame.height)
    else:
        finish = dates(raw, end, rule.format)
    return _elapsed(begin, finish, rule).alias(name)


def _elapsed(begin: pl.Series, finish: pl.Series, rule: Derive) -> pl.Series:
    days = (finish - begin).dt.total_days()
    found = days if rule.years_between is None else days / _YEAR_DAYS
    return found.cast(pl.String).fill_null("")


def _fixed(word: str) -> dt.date | None:
    try:
        return dt.date.fromisoformat(word)
    except ValueError:
        return None


def dates(raw: Raw, heading: str, form: str) -> pl.Series:
    """Return a column of the source as dates, null where it is empty.

    Raises:
        DataError: DATA_COLUMN; DATA_VALUE, a cell is no date of the form.
    """
    cells = raw.column(heading, heading)
    # A time of day after an ISO date is no part of the day.
    words = cells.str.slice(0, 10) if form == _ISO else cells
    try:
        found = words.str.to_date(form, strict=False)
    except pl.exceptions.PolarsError:
        raise DataError(
            "DATA_VALUE",
            f"{raw.name}, column {show(heading)}: {show(form)} is not a date format",
            fix="Use strftime's letters in the site manifest, such as %d.%m.%Y.",
        ) from None
    wrong = (found.is_null() & (cells != "")).to_numpy()
    Rows(raw.name, heading).refuse(wrong, f"is not a date of the form {form}")
    return found


def _decimal_point(cells: pl.Series, rows: Rows) -> pl.Series:
    """Return numbers with a point; one that has a point already may be a thousand times another."""
    rows.refuse(
        cells.str.contains(".", literal=True).to_numpy(),
        "holds a point, and the manifest says that decimals take a comma",
    )
    return cells.str.replace(",", ".", literal=True)


def _blank(cells: pl.Series, codes: Sequence[float | str]) -> pl.Series:
    if not codes:
        return cells
    return pl.select(
        pl.when(pl.Series(is_missing(cells, codes))).then(pl.lit("")).otherwise(cells)
    ).to_series()


def _levels(cells: pl.Series, words: Mapping[str, str], rows: Rows) -> pl.Series:
    """Return the study's levels for the hospital's; a cell that is none of them is refused."""
    places = match(cells, tuple(words))
    rows.refuse(
        (places < 0) & (cells != "").to_numpy(), "is not one of the manifest's levels of it"
    )
    theirs = pl.Series([*words.values(), ""], dtype=pl.String)
    return theirs.gather(np.where(places < 0, len(words), places))


def _unit(
    cells: pl.Series, own: str | OwnUnit, name: str, feature: Feature | None, study: Study
) -> pl.Series:
    """Return numbers in the study's unit; what is no number stays, for the contract to refuse."""
    wanted = feature.unit if feature is not None else study_units(study).get(name)
    unit = own if isinstance(own, str) else own.unit
    if wanted is None:
        raise DataError(
            "DATA_UNIT",
            f"column {show(name)}: the manifest says {show(unit)}, and study {study.id} states "
            "no unit of it",
            fix="Ask the researcher to state the feature's unit, or leave the unit out.",
        )
    if same_unit(unit, wanted):
        return cells
    analyte = (None if isinstance(own, str) else own.analyte) or analyte_of(name)
    try:
        step = conversion(unit, wanted, analyte)
    except DataError as failure:
        raise DataError(
            failure.name, f"column {show(name)}: {failure.detail}", fix=failure.fix
        ) from None
    numbers = parsed(cells)
    changed = pl.Series(numbers * step.factor + step.offset).fill_nan(None).cast(pl.String)
    return pl.select(pl.coalesce(changed, cells)).to_series()
