"""What is measured: fourteen variables of a hospital admission, and any number of more.

A patient is a vector z of standard normal numbers (`hospital_node.data.invent.patients`);
a variable says what a number in public units its z is, or which level. Codes: LOINC for
measurements, UCUM for units, and the concepts of the OMOP vocabulary. A variable without a
public code has a local one: system `urn:fedcare:invented`, OMOP ids from 2,000,000,000 on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

LOCAL_CONCEPTS: Final = 2_000_000_000
"""OMOP keeps concept ids from here on for a site's own."""

OUTCOME_CONCEPT: Final = LOCAL_CONCEPTS + 1
_EXTRA_CONCEPTS: Final = LOCAL_CONCEPTS + 1000


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit: its UCUM code and OMOP concept, and `number = factor * number in the first unit`.

    `loinc` and `measured` replace the quantity's codes where a measurement in this unit has its
    own, as amounts by mass and by moles do.
    """

    ucum: str
    concept: int
    factor: float = 1.0
    loinc: str | None = None
    measured: int | None = None


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number: `mean + spread * z`, or e to that power if `log`, cut to `limits`, rounded.

    `limits` and `decimals` are in the first of `units`, which the study reads; the second, if
    any, is what the knob `units` makes a hospital record in. `loading` is the correlation with
    severity.
    """

    name: str
    loading: float
    mean: float
    spread: float
    limits: tuple[float, float]
    decimals: int
    units: tuple[Unit, ...]
    loinc: str | None
    concept: int
    log: bool = False

    def values(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return numbers [rows] in the first unit, rounded as an instrument shows them."""
        raw = self.mean + self.spread * z
        return np.round(np.clip(np.exp(raw) if self.log else raw, *self.limits), self.decimals)


@dataclass(frozen=True, slots=True)
class Level:
    """One answer: as the study writes it, as another hospital does, and its codes."""

    text: str
    other: str
    code: str
    concept: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A level: the k-th where z lies above the first k - 1 of `cuts`."""

    name: str
    loading: float
    cuts: tuple[float, ...]
    levels: tuple[Level, ...]
    loinc: str | None

    def places(self, z: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the place [rows] of each patient's level."""
        return np.searchsorted(np.array(self.cuts), z).astype(np.int64)


Variable = Quantity | Choice

_PER_MINUTE: Final = Unit("/min", 8541)
_MMOL: Final = Unit("mmol/L", 8753)

BASE: Final[tuple[Variable, ...]] = (
    Quantity("age", 0.40, 64, 14, (18, 105), 0, (Unit("a", 9448),), "30525-0", 0),
    Choice(
        "sex", 0.15, (0.0,),
        (Level("female", "F", "female", 8532), Level("male", "M", "male", 8507)), None,
    ),
    Quantity("bmi", 0.15, 27, 4.5, (12, 70), 1, (Unit("kg/m2", 9531),), "39156-5", 3038553),
    Quantity("systolic", -0.30, 132, 20, (50, 260), 0, (Unit("mm[Hg]", 8876),), "8480-6", 3004249),
    Quantity("heart_rate", 0.40, 82, 16, (25, 220), 0, (_PER_MINUTE,), "8867-4", 3027018),
    Quantity("resp_rate", 0.45, 18, 4, (5, 60), 0, (_PER_MINUTE,), "9279-1", 3024171),
    Quantity("temperature", 0.20, 37.0, 0.6, (32, 42.5), 1, (Unit("Cel", 586323),),
             "8310-5", 3020891),
    Quantity("creatinine", 0.45, 4.5, 0.35, (20, 1500), 0,
             (Unit("umol/L", 8749), Unit("mg/dL", 8840, 113.12e-4, "2160-0", 3016723)),
             "14682-9", 3020564, log=True),
    Quantity("glucose", 0.30, 1.85, 0.28, (1.5, 50), 1,
             (_MMOL, Unit("mg/dL", 8840, 18.0156, "2345-7", 3004501)),
             "14749-6", 3020491, log=True),
    Quantity("sodium", -0.25, 138.5, 3.6, (105, 175), 0, (_MMOL,), "2951-2", 3019550),
    Quantity("potassium", 0.20, 4.1, 0.45, (1.8, 8.5), 1, (_MMOL,), "2823-3", 3023103),
    Quantity("haemoglobin", -0.40, 13.2, 1.8, (4, 21), 1,
             (Unit("g/dL", 8713), Unit("g/L", 8636, 10.0)), "718-7", 3000963),
    Quantity("crp", 0.50, 2.5, 1.0, (0.3, 500), 1,
             (Unit("mg/L", 8751), Unit("mg/dL", 8840, 0.1)), "1988-5", 3020460, log=True),
    Choice(
        "smoking", 0.20, (0.1, 0.9),
        (
            Level("never", "N", "266919005", 0),
            Level("former", "E", "8517006", 0),
            Level("current", "C", "77176002", 0),
        ),
        "72166-2",
    ),
)  # fmt: skip
"""The fourteen. Ranges are plausible ones for adults in hospital."""

ALWAYS: Final = ("age", "sex")
"""Known of every patient, whatever the knob `missing`."""


def extra(count: int) -> tuple[Quantity, ...]:
    """Return `count` further laboratory values, in units of their own reference spread.

    Their loadings run through one fixed pattern, most of them weak.
    """
    found = []
    for place in range(count):
        loading = (0.45, -0.3, 0.2, -0.15, 0.1, 0.05, -0.05, 0.0)[place % 8]
        name, concept = f"lab_{place + 1:02}", _EXTRA_CONCEPTS + place
        unit = (Unit("U/L", 8645),)
        found.append(
            Quantity(name, loading, 40 + place, 8, (0, 200 + place), 1, unit, None, concept)
        )
    return tuple(found)


def variables(count: int) -> tuple[Variable, ...]:
    """Return the fourteen and `count` more."""
    return (*BASE, *extra(count))
