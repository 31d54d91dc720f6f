"""A hospital's records in the OMOP common data model 5.4, as one SQLite file.

Five tables with the model's own required columns: `person`, `visit_occurrence` (one inpatient
visit each), `measurement` (numbers with their unit's concept), `observation` (levels and what
is no measurement) and `condition_occurrence` (the outcome, for those who had it). The opaque id
is `person_source_value`. Concepts without a public id are the site's own, from two billion on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hospital_node.data.invent.recording import OUTCOMES, PATIENT, SPLIT, YEAR, Ward
from hospital_node.data.invent.variables import (
    LOCAL_CONCEPTS,
    OUTCOME_CONCEPT,
    Choice,
    Quantity,
    Unit,
)

INPATIENT: Final = 9201
EHR: Final = 32817
"""Type concept: it comes from an electronic health record."""

OWN: Final[Mapping[str, int]] = MappingProxyType(
    {
        name: LOCAL_CONCEPTS + 2 + place
        for place, name in enumerate(("age", "smoking", YEAR, SPLIT, *OUTCOMES[1:]))
    }
)
"""Concepts of what has no public one here."""

_SCHEMA: Final = """
CREATE TABLE person (person_id INTEGER PRIMARY KEY, gender_concept_id INTEGER NOT NULL,
  year_of_birth INTEGER NOT NULL, month_of_birth INTEGER, day_of_birth INTEGER,
  race_concept_id INTEGER NOT NULL, ethnicity_concept_id INTEGER NOT NULL,
  person_source_value TEXT, gender_source_value TEXT);
CREATE TABLE visit_occurrence (visit_occurrence_id INTEGER PRIMARY KEY,
  person_id INTEGER NOT NULL, visit_concept_id INTEGER NOT NULL, visit_start_date TEXT NOT NULL,
  visit_end_date TEXT NOT NULL, visit_type_concept_id INTEGER NOT NULL);
CREATE TABLE measurement (measurement_id INTEGER PRIMARY KEY, person_id INTEGER NOT NULL,
  measurement_concept_id INTEGER NOT NULL, measurement_date TEXT NOT NULL,
  measurement_type_concept_id INTEGER NOT NULL, value_as_number REAL,
  value_as_concept_id INTEGER, unit_concept_id INTEGER,
  visit_occurrence_id INTEGER, measurement_source_value TEXT, unit_source_value TEXT);
CREATE TABLE observation (observation_id INTEGER PRIMARY KEY, person_id INTEGER NOT NULL,
  observation_concept_id INTEGER NOT NULL, observation_date TEXT NOT NULL,
  observation_type_concept_id INTEGER NOT NULL, value_as_number REAL, value_as_string TEXT,
  value_as_concept_id INTEGER,
  visit_occurrence_id INTEGER, observation_source_value TEXT);
CREATE TABLE condition_occurrence (condition_occurrence_id INTEGER PRIMARY KEY,
  person_id INTEGER NOT NULL, condition_concept_id INTEGER NOT NULL,
  condition_start_date TEXT NOT NULL, condition_type_concept_id INTEGER NOT NULL,
  visit_occurrence_id INTEGER, condition_source_value TEXT);
"""

Value = int | float | str | None


def write_omop(path: Path, ward: Ward) -> None:
    """Write the database, which is not there yet; equal records give equal bytes."""
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(_SCHEMA)
        for table, rows in (
            ("person", _people(ward)),
            ("visit_occurrence", _visits(ward)),
            ("measurement", _measurements(ward)),
            ("observation", _observations(ward)),
            ("condition_occurrence", _conditions(ward)),
        ):
            for row in rows:
                marks = ", ".join("?" * len(row))
                database.execute(f"INSERT INTO {table} VALUES ({marks})", row)  # noqa: S608


def concept_of(quantity: Quantity, unit: Unit) -> int:
    """Return the concept of a number measured in a unit."""
    return unit.measured or quantity.concept or OWN[quantity.name]


def _date(ward: Ward, row: int) -> str:
    return f"{ward.cells[YEAR][row]}-07-01"


def _people(ward: Ward) -> Iterator[tuple[Value, ...]]:
    sex = next(one for one in ward.measured if isinstance(one, Choice) and one.name == "sex")
    for row in range(ward.rows):
        text = ward.cells["sex"][row]
        gender = next(level.concept for level in sex.levels if text in (level.text, level.other))
        born = int(ward.cells[YEAR][row]) - int(ward.cells["age"][row])
        yield row + 1, gender, born, None, None, 0, 0, ward.cells[PATIENT][row], text


def _visits(ward: Ward) -> Iterator[tuple[Value, ...]]:
    for row in range(ward.rows):
        date = _date(ward, row)
        yield row + 1, row + 1, INPATIENT, date, date, EHR


def _measurements(ward: Ward) -> Iterator[tuple[Value, ...]]:
    number = 0
    for variable in ward.measured:
        if not isinstance(variable, Quantity):
            continue
        unit = ward.units[variable.name]
        concept = concept_of(variable, unit)
        for row, cell in enumerate(ward.cells[variable.name]):
            if cell != "":
                number += 1
                yield (
                    number, row + 1, concept, _date(ward, row), EHR, float(cell), None,
                    unit.concept, row + 1, variable.name, unit.ucum,
                )  # fmt: skip


def _observations(ward: Ward) -> Iterator[tuple[Value, ...]]:
    number = 0
    texts = [name for name in ("smoking", SPLIT) if name in ward.cells]
    for name in (*texts, YEAR, *OUTCOMES[1:]):
        for row, cell in enumerate(ward.cells[name]):
            if cell != "":
                number += 1
                value = (None, cell) if name in texts else (float(cell), None)
                yield (
                    number, row + 1, OWN[name], _date(ward, row), EHR, *value, None,
                    row + 1, name,
                )  # fmt: skip


def _conditions(ward: Ward) -> Iterator[tuple[Value, ...]]:
    sick = [row for row, cell in enumerate(ward.cells["outcome"]) if cell == "1"]
    for number, row in enumerate(sick, start=1):
        yield number, row + 1, OUTCOME_CONCEPT, _date(ward, row), EHR, row + 1, "outcome"
