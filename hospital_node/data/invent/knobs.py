"""What can be turned on a generated set of hospitals, one knob for each way they differ.

Every knob at its default gives the plain data. Each draws from a stream of its own
(`patients.stream`), so turning one leaves every draw behind the others as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Final

from common.errors import ConfigError
from common.site import MAX_SITES
from common.text import listed, nearest, show

FIRST_YEAR: Final = 2015
LAST_YEAR: Final = 2024
"""Years of the patients' visits, evenly spread."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """How many hospitals, and how they differ. 0 is off unless a line says otherwise.

    The set: `sites` hospitals of `rows` patients; `event_rate` of them have the outcome;
    `extra` laboratory values besides the fourteen variables of `variables.BASE`.

    * `size`, natural-log units, 0 to 3: sizes run evenly in the logarithm from
      `rows * e^-size` to `rows * e^size`, at least 20.
    * `label_shift`, logits, 0 to 4: event rates run evenly from `event_rate` less to
      `event_rate` plus so many logits; P(values | outcome) stays.
    * `covariate_shift`, standard deviations, 0 to 5: how far a hospital's mean patient is moved,
      in a direction that leaves the risk as it was; P(outcome | values) stays.
    * `concept_shift`, 0 to 2: length of a random change of a hospital's coefficients, in
      lengths of the coefficients; P(values) stays.
    * `units`, share of hospitals, 0 to 1: they record in other units (mg/dL for mmol/L and so
      on).
    * `coding`, share of hospitals, 0 to 1: they write levels in words of their own.
    * `missing`, share of cells, 0 to 0.95: not measured, by chance; age and sex always are.
    * `sentinel`, share of numbers, 0 to 0.95: -999 stands in their place; age never.
    * `one_class`, hospitals, 0 to `sites`: every patient of theirs has the outcome.
    * `duplicates`, share of a hospital's patients, 0 to 0.5: they are patients of the next
      hospital as well, with the same values and the same opaque id, at its table's end.
    * `drift`, standard deviations, 0 to 5: how far the mean patient moves from the first year
      to the last, in one direction for all hospitals; P(outcome | values) stays.
    * `split_year`, a year, 0 = none: a column `split` says train before it and test from it on.
    """

    sites: int = 4
    rows: int = 500
    event_rate: float = 0.25
    extra: int = 0
    size: float = 0.0
    label_shift: float = 0.0
    covariate_shift: float = 0.0
    concept_shift: float = 0.0
    units: float = 0.0
    coding: float = 0.0
    missing: float = 0.0
    sentinel: float = 0.0
    one_class: int = 0
    duplicates: float = 0.0
    drift: float = 0.0
    split_year: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            low, high = limits(field.name, self.sites)
            value = getattr(self, field.name)
            off = field.name == "split_year" and value == 0
            if not off and not (math.isfinite(value) and low <= value <= high):
                raise ConfigError(
                    "BAD_ARGUMENT",
                    f"{field.name.replace('_', '-')} must be {low:g} to {high:g}, not {value:g}",
                )

    def chosen(self, share: float) -> range:
        """Return the places of the hospitals that a share stands for: the last ones."""
        return range(self.sites - round(share * self.sites), self.sites)


_LIMITS: Final[Mapping[str, tuple[float, float]]] = {
    "sites": (2, MAX_SITES),
    "rows": (20, 1_000_000),
    "event_rate": (0.01, 0.99),
    "extra": (0, 1000),
    "size": (0, 3),
    "label_shift": (0, 4),
    "covariate_shift": (0, 5),
    "concept_shift": (0, 2),
    "units": (0, 1),
    "coding": (0, 1),
    "missing": (0, 0.95),
    "sentinel": (0, 0.95),
    "duplicates": (0, 0.5),
    "drift": (0, 5),
    "split_year": (FIRST_YEAR + 1, LAST_YEAR),
}


def limits(name: str, sites: int) -> tuple[float, float]:
    """Return the least and the most a knob may be."""
    return (0, sites) if name == "one_class" else _LIMITS[name]


SCENARIOS: Final[Mapping[str, Knobs]] = MappingProxyType(
    {
        "plain": Knobs(),
        "sizes": Knobs(sites=6, size=1.2),
        "label-shift": Knobs(label_shift=1.5),
        "feature-shift": Knobs(sites=5, rows=300, covariate_shift=2.5, concept_shift=0.5),
        "concept-shift": Knobs(concept_shift=1.0),
        "mixed-units": Knobs(units=0.5),
        "mixed-coding": Knobs(coding=0.5),
        "missing": Knobs(missing=0.4),
        "sentinel": Knobs(sentinel=0.1),
        "one-class": Knobs(one_class=1),
        "duplicates": Knobs(duplicates=0.1),
        "drift": Knobs(drift=1.5, split_year=2022),
        "wide": Knobs(sites=12, rows=600, event_rate=0.07, extra=34, missing=0.8, size=0.7),
    }
)
"""Named settings. `wide` has 48 variables, four of five cells empty and 7 % events."""


def scenario(name: str, **changes: float | None) -> Knobs:
    """Return a scenario's knobs with those of `changes` that are not None.

    Raises:
        ConfigError: BAD_ARGUMENT, no such scenario, or a value out of a knob's limits.
    """
    if name not in SCENARIOS:
        guess = nearest(name, SCENARIOS)
        hint = f"; did you mean '{guess}'?" if guess else f"; there are {listed(SCENARIOS)}"
        raise ConfigError("BAD_ARGUMENT", f"no scenario is called {show(name)}{hint}")
    turned = {knob: value for knob, value in changes.items() if value is not None}
    return replace(SCENARIOS[name], **turned)  # type: ignore[arg-type]
