"""What a hospital writes down of its patients: cells of text, in its units and codes.

A cell is empty where nothing was measured and -999 where a program filled the gap. Text and
not numbers, so that every format carries the same digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hospital_node.data.invent.knobs import Knobs
from hospital_node.data.invent.patients import Cohort, stream
from hospital_node.data.invent.variables import (
    ALWAYS,
    Choice,
    Quantity,
    Unit,
    Variable,
    variables,
)

SENTINEL: Final = "-999"
PATIENT: Final = "patient_id"
YEAR: Final = "visit_year"
SPLIT: Final = "split"
OUTCOMES: Final = ("outcome", "days", "died", "stay", "visits")


@dataclass(frozen=True, slots=True)
class Ward:
    """One hospital's records.

    `cells` by column, in the table's order, each a list of one text a patient. `units` names
    the unit each quantity is recorded in; `words` maps a hospital's own levels to the
    study's, by column, and is empty where they are the study's.
    """

    site: str
    measured: tuple[Variable, ...]
    cells: Mapping[str, list[str]]
    units: Mapping[str, Unit]
    words: Mapping[str, Mapping[str, str]]

    @property
    def rows(self) -> int:
        """Number of patients."""
        return len(self.cells[PATIENT])

    @property
    def other_units(self) -> dict[str, str]:
        """The quantities not recorded in the study's unit, and in which."""
        return {
            quantity.name: self.units[quantity.name].ucum
            for quantity in self.measured
            if isinstance(quantity, Quantity) and self.units[quantity.name] != quantity.units[0]
        }


def record(knobs: Knobs, seed: int, place: int, cohort: Cohort) -> Ward:
    """Return what the hospital at `place` writes down of its cohort."""
    measured = variables(knobs.extra)
    other_units = place in knobs.chosen(knobs.units)
    other_words = place in knobs.chosen(knobs.coding)
    units, words = {}, {}
    cells: dict[str, list[str]] = {PATIENT: [str(person) for person in cohort.person]}
    cells[YEAR] = [str(year) for year in cohort.year]
    for column, variable in enumerate(measured):
        z = cohort.z[:, column]
        if isinstance(variable, Quantity):
            units[variable.name] = variable.units[-1 if other_units else 0]
            texts = _numbers(variable, units[variable.name], z)
        else:
            if other_words:
                words[variable.name] = {one.other: one.text for one in variable.levels}
            texts = _words(variable, z, other=other_words)
        cells[variable.name] = _with_gaps(knobs, seed, place, variable, texts)
    cells |= _outcomes(cohort)
    if knobs.split_year:
        cells[SPLIT] = ["train" if year < knobs.split_year else "test" for year in cohort.year]
    return Ward(cohort.site, measured, cells, units, words)


def _numbers(quantity: Quantity, unit: Unit, z: NDArray[np.float64]) -> list[str]:
    """Return numbers as text: an instrument's digits, and six more where it was converted."""
    values = quantity.values(z) * unit.factor
    digits = quantity.decimals if unit == quantity.units[0] else quantity.decimals + 6
    return [f"{value:.{digits}f}" for value in values]


def _words(choice: Choice, z: NDArray[np.float64], *, other: bool) -> list[str]:
    levels = [choice.levels[place] for place in choice.places(z)]
    return [level.other if other else level.text for level in levels]


def _with_gaps(
    knobs: Knobs, seed: int, place: int, variable: Variable, texts: list[str]
) -> list[str]:
    """Return the cells with what the knobs `missing` and `sentinel` leave of them."""

    def drawn(purpose: str, share: float) -> NDArray[np.bool_]:
        found = stream(seed, f"{purpose} {variable.name}", place).random(len(texts)) < share
        return np.asarray(found)

    never = variable.name in ALWAYS
    absent = drawn("missing", 0.0 if never else knobs.missing)
    filled = drawn("sentinel", 0.0 if never or isinstance(variable, Choice) else knobs.sentinel)
    return [
        "" if gone else SENTINEL if filler else text
        for text, gone, filler in zip(texts, absent, filled, strict=True)
    ]


def _outcomes(cohort: Cohort) -> dict[str, list[str]]:
    return {
        "outcome": [str(value) for value in cohort.outcome],
        "days": [f"{value:.0f}" for value in cohort.days],
        "died": [str(value) for value in cohort.died],
        "stay": [f"{value:.1f}" for value in cohort.stay],
        "visits": [str(value) for value in cohort.visits],
    }
