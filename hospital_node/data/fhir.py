"""A folder of FHIR R4 bulk NDJSON as one row a patient, by the manifest's table of columns.

A line is a resource. Patients make the rows, in the order of their ids; Observations and
Conditions are found by `system|code`, joined by `subject`, and one value is taken. What was
entered in error or never happened is left out. Messages name file and line, never a value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, assert_never

import polars as pl

from common.errors import ConfigError, DataError
from common.site_tables import (
    FhirCondition,
    FhirObservation,
    FhirPatient,
    FhirTable,
)
from hospital_node.data.csv import Raw
from hospital_node.data.event_units import Wanted, to_one_unit
from hospital_node.data.take import is_count, take_one

_NOT_SO: Final = frozenset({"entered-in-error", "cancelled", "refuted"})
_EVENT: Final = {
    "patient": pl.String,
    "day": pl.String,
    "order": pl.Int64,
    "number": pl.Float64,
    "cell": pl.String,
    "unit": pl.String,
}
_Resource = Mapping[str, Any]


def export_files(table: FhirTable) -> list[Path]:
    """Return the export's files in the order of their names.

    Raises:
        ConfigError: FILE_MISSING, the folder has none.
    """
    folder = Path(table.path)
    found = sorted(folder.glob("*.ndjson"))
    if not found:
        raise ConfigError("FILE_MISSING", f"{folder.name} holds no *.ndjson file")
    return found


def read_fhir(table: FhirTable, units: Mapping[str, str]) -> Raw:
    """Return `patient_id` and the manifest's columns as text, a row for each Patient.

    `units` are the study's: every observation is brought to them from its own unit.

    Raises:
        ConfigError: FILE_MISSING; FILE_SYNTAX, a line is no resource.
        DataError: DATA_EMPTY, nobody; DATA_UNIT; DATA_VALUE, a patient twice.
    """
    name = Path(table.path).name
    patients: dict[str, _Resource] = {}
    events: dict[str, list[tuple[object, ...]]] = {column: [] for column in table.columns}
    by_code = _codes(table)
    wanted_types: set[str] = {"Patient", *(spec.resource for spec in table.columns.values())}
    for order, (where, resource) in enumerate(_resources(table, wanted_types)):
        if resource["resourceType"] == "Patient":
            key = resource.get("id")
            if not isinstance(key, str) or key in patients:
                raise DataError("DATA_VALUE", f"{where}: a Patient without an id, or a second one")
            patients[key] = resource
        elif not _wrong(resource):
            _collect(resource, by_code, events, order)
    if not patients:
        raise DataError("DATA_EMPTY", f"{name} holds no Patient")
    rows = pl.DataFrame({"patient": sorted(patients)})
    columns = {"patient_id": rows["patient"]}
    for column, spec in table.columns.items():
        match spec:
            case FhirPatient():
                cells = [_of_patient(patients[key], spec) for key in rows["patient"]]
                columns[column] = pl.Series(cells, dtype=pl.String)
            case FhirObservation() | FhirCondition():
                frame = pl.DataFrame(events[column], schema=_EVENT, orient="row")
                columns[column] = _taken(frame, rows, spec, name, column, units.get(column))
            case _:
                assert_never(spec)
    frame = pl.DataFrame({f"c{place}": cells for place, cells in enumerate(columns.values())})
    return Raw(name, list(columns), frame)


def _taken(
    events: pl.DataFrame,
    rows: pl.DataFrame,
    spec: FhirObservation | FhirCondition,
    source: str,
    column: str,
    unit: str | None,
) -> pl.Series:
    if isinstance(spec, FhirObservation) and not is_count(spec.take):
        stated = pl.when(pl.col("unit") == "").then(pl.lit(spec.unit or "")).otherwise("unit")
        wanted = Wanted(source, column, unit or spec.unit, spec.analyte)
        events = to_one_unit(events.with_columns(stated.alias("unit")), wanted)
    found = take_one(events, ["patient"], spec.take)
    cells = rows.join(found, on="patient", how="left", maintain_order="left")["cell"]
    return cells.fill_null("0" if is_count(spec.take) else "")


def _resources(table: FhirTable, wanted: set[str]) -> Iterator[tuple[str, _Resource]]:
    """Yield every resource of the wanted types, with its file and line."""
    marks = [f'"{kind}"' for kind in wanted]
    for path in export_files(table):
        try:
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    if not any(mark in line for mark in marks):
                        continue  # another type; reading it would take most of the time
                    where = f"{path.name}, line {number}"
                    resource = _parsed(line, where)
                    kind = resource.get("resourceType")
                    if isinstance(kind, str) and kind in wanted:
                        yield where, resource
        except (OSError, UnicodeDecodeError):
            raise ConfigError("FILE_SYNTAX", f"{path.name} is not readable UTF-8 text") from None


def _parsed(line: str, where: str) -> _Resource:
    try:
        found = json.loads(line)
        if "\\ud" in line.lower():  # half a character, which no column of text can hold
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # its message quotes the line
        found = None
    if not isinstance(found, dict):
        raise ConfigError("FILE_SYNTAX", f"{where}: is not one JSON resource")
    return found


def _codes(table: FhirTable) -> Mapping[tuple[str, str], list[str]]:
    """Return which columns a resource type and `system|code` belong to."""
    found: dict[tuple[str, str], list[str]] = {}
    for column, spec in table.columns.items():
        if not isinstance(spec, FhirPatient):
            for code in spec.codes:
                found.setdefault((spec.resource, code), []).append(column)
    return found


def _collect(
    resource: _Resource,
    by_code: Mapping[tuple[str, str], list[str]],
    events: Mapping[str, list[tuple[object, ...]]],
    order: int,
) -> None:
    patient = _reference(resource.get("subject"))
    if patient is None:
        return
    day = _day(resource)
    kind = str(resource["resourceType"])
    components = resource.get("component")
    parts = components if isinstance(components, list) else []
    for part in (resource, *(one for one in parts if isinstance(one, dict))):
        columns = {
            column for code in _coded(part.get("code")) for column in by_code.get((kind, code), ())
        }
        for column in columns:
            events[column].append((patient, day, order, *_value(part)))


def _reference(subject: object) -> str | None:
    """Return the id at the end of `Patient/id`."""
    reference = subject.get("reference") if isinstance(subject, dict) else None
    if not isinstance(reference, str):
        return None
    return reference.rsplit("/", maxsplit=1)[-1].removeprefix("urn:uuid:")


def _day(resource: _Resource) -> str:
    for key in ("effectiveDateTime", "effectiveInstant", "onsetDateTime", "recordedDate", "issued"):
        if isinstance(resource.get(key), str):
            return str(resource[key])
    period = resource.get("effectivePeriod")
    return str(period.get("start", "")) if isinstance(period, dict) else ""


def _coded(concept: object) -> Iterator[str]:
    codings = concept.get("coding") if isinstance(concept, dict) else None
    for coding in codings if isinstance(codings, list) else ():
        if isinstance(coding, dict) and "code" in coding:
            yield f"{coding.get('system', '')}|{coding['code']}"


def _wrong(resource: _Resource) -> bool:
    """Whether the resource says itself that it does not hold."""
    status = resource.get("verificationStatus")
    codes = {code.rsplit("|", maxsplit=1)[-1] for code in _coded(status)}
    return str(resource.get("status")) in _NOT_SO or bool(codes & _NOT_SO)


def _value(part: _Resource) -> tuple[float | None, str, str]:
    """Return the value's number, cell and unit; an absent value is an empty cell."""
    quantity = part.get("valueQuantity")
    if isinstance(quantity, dict):
        number = quantity.get("value")
        if isinstance(number, bool) or not isinstance(number, int | float):
            return None, "", ""
        unit = quantity.get("code") or quantity.get("unit") or ""
        return _float(number), str(number), str(unit)
    if isinstance(part.get("valueBoolean"), bool):
        return None, str(int(part["valueBoolean"])), ""
    if isinstance(part.get("valueInteger"), int):
        return _float(part["valueInteger"]), str(part["valueInteger"]), ""
    codes = list(_coded(part.get("valueCodeableConcept")))
    if codes:
        return None, codes[0].rsplit("|", maxsplit=1)[-1], ""
    words = part.get("valueString")
    return None, words.strip() if isinstance(words, str) else "", ""


def _float(number: float) -> float:
    """Return a JSON number; one beyond float64 is infinite, which the data contract refuses."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _of_patient(patient: _Resource, spec: FhirPatient) -> str:
    if spec.field == "deceased":
        dead = patient.get("deceasedBoolean") is True or "deceasedDateTime" in patient
        return str(int(dead))
    found = patient.get(spec.field, "")
    return found.strip() if isinstance(found, str) else ""
