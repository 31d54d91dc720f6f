"""A hospital's own mapping of its records, as its data manager would write it.

Each function returns one entry of a manifest's `data`. Together with the records it leads to
the same table whatever the format: the study's columns, units and levels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hospital_node.data.invent.fhir import LOCAL, code_of
from hospital_node.data.invent.omop import OWN, concept_of
from hospital_node.data.invent.recording import OUTCOMES, PATIENT, SPLIT, Ward
from hospital_node.data.invent.study import DATASET
from hospital_node.data.invent.variables import OUTCOME_CONCEPT, Choice, Quantity

Entry = dict[str, Any]


def of_file(ward: Ward, kind: str, path: str) -> Entry:
    """Return the entry of a CSV or Parquet file."""
    entry: Entry = {"name": DATASET, "kind": kind, "path": path, "patient": PATIENT}
    if ward.other_units:
        entry["units"] = ward.other_units
    if ward.words:
        entry["levels"] = {name: dict(words) for name, words in ward.words.items()}
    return entry


def of_fhir(ward: Ward, path: str) -> Entry:
    """Return the entry of a folder of NDJSON files; codes come by variable."""
    columns: dict[str, Entry] = {}
    for variable in ward.measured:
        if variable.name == "sex":
            columns["sex"] = {"resource": "Patient", "field": "gender"}
        else:
            columns[variable.name] = _observation("|".join(code_of(variable, ward)))
            if isinstance(variable, Quantity):
                columns[variable.name]["unit"] = variable.units[0].ucum
    columns["outcome"] = {"resource": "Condition", "codes": [f"{LOCAL}|outcome"]}
    others = [*OUTCOMES[1:], *([SPLIT] if SPLIT in ward.cells else [])]
    columns |= {name: _observation(f"{LOCAL}|{name}") for name in others}
    return {
        "name": DATASET,
        "kind": "fhir",
        "path": path,
        "patient": "patient_id",
        "columns": columns,
        "levels": {"smoking": {level.code: level.text for level in _smoking(ward).levels}},
    }


def _observation(code: str) -> Entry:
    return {"resource": "Observation", "codes": [code]}


def _smoking(ward: Ward) -> Choice:
    return next(one for one in ward.measured if isinstance(one, Choice) and one.name == "smoking")


def of_omop(ward: Ward, database: Path) -> Entry:
    """Return the entry of an OMOP database: one cohort, and concepts by variable."""
    features: dict[str, Entry] = {"sex": {"domain": "person", "field": "gender_concept_id"}}
    for variable in ward.measured:
        if isinstance(variable, Quantity):
            unit = ward.units[variable.name]
            features[variable.name] = {
                "domain": "measurement",
                "concepts": [concept_of(variable, unit)],
                "unit_concepts": {str(unit.concept): unit.ucum},
            }
    others = ["smoking", *OUTCOMES[1:], *([SPLIT] if SPLIT in ward.cells else [])]
    features |= {name: {"domain": "observation", "concepts": [OWN[name]]} for name in others}
    outcome = {"domain": "condition", "concepts": [OUTCOME_CONCEPT], "take": "any"}
    levels = {"sex": {"8532": "female", "8507": "male"}}
    if "smoking" in ward.words:
        levels["smoking"] = dict(ward.words["smoking"])
    return {
        "name": DATASET,
        "kind": "omop",
        "url": f"sqlite:///{database}",
        "cohort": "SELECT person_id, visit_start_date AS index_date FROM visit_occurrence",
        "patient": "person_id",
        "features": {**features, "outcome": outcome},
        "levels": levels,
    }
