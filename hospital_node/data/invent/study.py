"""A study that runs on generated hospitals, and what is true of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from hospital_node.data.invent.knobs import Knobs
from hospital_node.data.invent.patients import Cohort, event_rates, loadings, rule
from hospital_node.data.invent.recording import PATIENT, SENTINEL, SPLIT, Ward
from hospital_node.data.invent.variables import Choice, Quantity, Variable, variables

DATASET: Final = "admissions"
_MOST_NEEDED: Final = 3


def study_file(knobs: Knobs, seed: int) -> dict[str, Any]:
    """Return the study file: the outcome from every variable, by logistic regression."""
    return {
        "schema": "fedcare.study/v1",
        "id": "invented-admissions",
        "kind": "training",
        "title": "Outcome of an admission, invented patients",
        "purpose": "research",
        "dataset": DATASET,
        "owner": {"name": "FedCare demonstration", "organisation": "fedcare-demo"},
        "features": [_feature(variable) for variable in variables(knobs.extra)],
        "target": {"type": "binary", "name": "outcome"},
        "split": {"column": SPLIT} if knobs.split_year else {"test": 0.3, "seed": seed % 2**32},
        "patient_key": PATIENT,
        "normalise": "federated",
        "model": {"kind": "logistic"},
        "train": {"lr": 0.05, "batch": 32, "local_steps": 20, "weight_decay": 0.001},
        "federation": {"rounds": 15, "min_sites": min(_MOST_NEEDED, knobs.sites)},
        "evaluate": {"metrics": ["auroc", "accuracy", "brier", "log_loss"]},
        "seed": seed,
    }


def _feature(variable: Variable) -> dict[str, Any]:
    match variable:
        case Quantity():
            return {
                "name": variable.name,
                "type": "float",
                "unit": variable.units[0].ucum,
                "range": list(variable.limits),
                "missing": [float(SENTINEL)],
                "impute": "mean",
            }
        case Choice():
            levels = [level.text for level in variable.levels]
            return {
                "name": variable.name,
                "type": "category",
                "levels": levels,
                "impute": "most-frequent",
            }


def truth_file(
    knobs: Knobs, seed: int, cohorts: Sequence[Cohort], wards: Sequence[Ward]
) -> dict[str, Any]:
    """Return what made the data: for tests, never for a study.

    Coefficients belong to z, the standard normal numbers behind the variables
    (`hospital_node.data.invent.patients`). Duplicates are by opaque id.
    """
    measured = variables(knobs.extra)
    names = [variable.name for variable in measured]
    true = rule(loadings(measured), knobs.event_rate)
    rates = event_rates(knobs, seed)
    return {
        "schema": "fedcare.truth/v1",
        "seed": seed,
        "knobs": asdict(knobs),
        "intercept": true.intercept,
        "coefficients": dict(zip(names, true.coefficients.tolist(), strict=True)),
        "hospitals": {
            cohort.site: {
                "rows": ward.rows,
                "event_rate": rates[place],
                "one_class": place >= knobs.sites - knobs.one_class,
                "intercept": cohort.rule.intercept,
                "coefficients": dict(zip(names, cohort.rule.coefficients.tolist(), strict=True)),
                "shift": dict(zip(names, cohort.shift.tolist(), strict=True)),
                "units": ward.other_units,
                "levels": {name: dict(words) for name, words in ward.words.items()},
                "also_of_the_hospital_before": _guests(cohort),
            }
            for place, (cohort, ward) in enumerate(zip(cohorts, wards, strict=True))
        },
    }


def _guests(cohort: Cohort) -> list[str]:
    return [str(person) for person in cohort.person[cohort.year.size - cohort.guests :]]
