"""A hospital's records as FHIR R4 bulk export: one NDJSON file for each kind of resource.

`Patient.ndjson` holds sex and the opaque id; `Observation.ndjson` every measurement of the
visit, numbers with their UCUM unit and levels as codes; `Condition.ndjson` the outcome, for
those who had it. Nothing stands where nothing was measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from hospital_node.data.invent.recording import OUTCOMES, PATIENT, SPLIT, YEAR, Ward
from hospital_node.data.invent.variables import Choice, Quantity, Variable

LOINC: Final = "http://loinc.org"
SNOMED: Final = "http://snomed.info/sct"
UCUM: Final = "http://unitsofmeasure.org"
LOCAL: Final = "urn:fedcare:invented"
FILES: Final = ("Patient", "Observation", "Condition")

Resource = dict[str, Any]


def write_fhir(folder: Path, ward: Ward) -> None:
    """Write the three files into `folder`."""
    folder.mkdir()
    _write(folder / "Patient.ndjson", (_patient(ward, row) for row in range(ward.rows)))
    _write(
        folder / "Observation.ndjson",
        (one for row in range(ward.rows) for one in _observations(ward, row)),
    )
    _write(
        folder / "Condition.ndjson",
        (_condition(ward, row) for row in range(ward.rows) if ward.cells["outcome"][row] == "1"),
    )


def _write(path: Path, resources: Iterable[Resource]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        for resource in resources:
            file.write(json.dumps(resource, separators=(",", ":")) + "\n")


def _patient(ward: Ward, row: int) -> Resource:
    age, year = int(ward.cells["age"][row]), int(ward.cells[YEAR][row])
    sex = next(one for one in ward.measured if isinstance(one, Choice) and one.name == "sex")
    text = ward.cells["sex"][row]
    return {
        "resourceType": "Patient",
        "id": ward.cells[PATIENT][row],
        "gender": next(level.code for level in sex.levels if text in (level.text, level.other)),
        "birthDate": str(year - age),
    }


def code_of(variable: Variable, ward: Ward) -> tuple[str, str]:
    """Return the coding system and code of a variable, as this hospital records it."""
    loinc = variable.loinc
    if isinstance(variable, Quantity):
        loinc = ward.units[variable.name].loinc or loinc
    return (LOINC, loinc) if loinc else (LOCAL, variable.name)


def _observations(ward: Ward, row: int) -> Iterator[Resource]:
    for variable in ward.measured:
        cell = ward.cells[variable.name][row]
        if cell == "" or variable.name == "sex":
            continue
        value: Resource
        if isinstance(variable, Quantity):
            unit = ward.units[variable.name].ucum
            quantity = {"value": float(cell), "unit": unit, "system": UCUM, "code": unit}
            value = {"valueQuantity": quantity}
        else:
            level = next(one for one in variable.levels if cell in (one.text, one.other))
            coding = [{"system": SNOMED, "code": level.code, "display": cell}]
            value = {"valueCodeableConcept": {"coding": coding, "text": cell}}
        yield _observation(ward, row, code_of(variable, ward), value)
    for name in (YEAR, *OUTCOMES[1:]):
        number = {"valueQuantity": {"value": float(ward.cells[name][row])}}
        yield _observation(ward, row, (LOCAL, name), number)
    if SPLIT in ward.cells:
        yield _observation(ward, row, (LOCAL, SPLIT), {"valueString": ward.cells[SPLIT][row]})


def _observation(ward: Ward, row: int, code: tuple[str, str], value: Resource) -> Resource:
    return {
        "resourceType": "Observation",
        "id": f"{ward.cells[PATIENT][row]}-{code[1]}".replace("_", "-"),
        "status": "final",
        "code": {"coding": [{"system": code[0], "code": code[1]}]},
        "subject": {"reference": f"Patient/{ward.cells[PATIENT][row]}"},
        "effectiveDateTime": f"{ward.cells[YEAR][row]}-07-01",
        **value,
    }


def _condition(ward: Ward, row: int) -> Resource:
    return {
        "resourceType": "Condition",
        "id": f"{ward.cells[PATIENT][row]}-outcome",
        "code": {"coding": [{"system": LOCAL, "code": "outcome"}]},
        "subject": {"reference": f"Patient/{ward.cells[PATIENT][row]}"},
        "recordedDate": f"{ward.cells[YEAR][row]}-07-01",
    }
