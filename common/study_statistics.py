"""What a study of kind `statistics` counts: groups, quantiles, cross tables, survival.

    statistics:
      group_by: sex                          # or {feature: age, bands: [50, 65]}
      quantiles: [0.25, 0.5, 0.75]
      histogram_bins: 20
      cross: [[cp, {feature: age, bands: [50, 65]}]]
      survival: {time: days, event: dead, positive: "== 1", unit: d, horizon: 1825}
      min_cell: 10

There is no breakdown by hospital: it would need each hospital's own sums, which nobody sees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from common.config import Name, Number, Section, no_repeats, problem
from common.positive import PositiveRule, parse_positive
from common.study_evaluation import Subgroup
from common.study_features import Feature, Positive
from common.text import nearest, show

MOST_GROUPS: Final = 8
MOST_LEVELS: Final = 100
"""Levels of a category that is counted; more would make tables of almost empty cells."""

MOST_TABLE: Final = 1000
"""Cells of a cross table: what to hide in it takes time that grows with their square."""


def _cut(value: object) -> object:
    return {"feature": value} if isinstance(value, str) else value


Cut = Annotated[Subgroup, BeforeValidator(_cut)]
"""A category by its levels or a number by bands; a plain name stands for `{feature: name}`."""


class SurvivalCurve(Section):
    """Time to an event, on a public grid: `bins` steps of equal width from 0 to `horizon`.

    A time counts at the end of its step. Whoever was watched beyond the horizon is at risk
    throughout. Rows whose cell of `event` fits `positive` had the event at `time`.
    """

    time: Name
    event: Name
    positive: Positive = "== 1"
    unit: Name | None = None
    horizon: Annotated[Number, Field(gt=0)]
    bins: Annotated[int, Field(ge=8, le=4096)] = 512

    @property
    def rule(self) -> PositiveRule:
        """The rule, ready to apply to the cells of `event`."""
        return parse_positive(self.positive)


def _quantiles(value: tuple[float, ...]) -> tuple[float, ...]:
    if any(low >= high for low, high in pairwise(value)):
        raise ValueError("must rise from each to the next")
    return value


class Statistics(Section):
    """See the module. `min_cell`: no count of 1 to `min_cell` - 1 patients is published."""

    group_by: Cut | None = None
    quantiles: Annotated[
        tuple[Annotated[Number, Field(gt=0, lt=1)], ...],
        Field(max_length=16),
        AfterValidator(no_repeats),
        AfterValidator(_quantiles),
    ] = (0.25, 0.5, 0.75)
    histogram_bins: Annotated[int, Field(ge=2, le=200)] = 20
    cross: Annotated[
        tuple[Annotated[tuple[Cut, ...], Field(min_length=2, max_length=2)], ...],
        Field(max_length=16),
    ] = ()
    survival: SurvivalCurve | None = None
    min_cell: Annotated[int, Field(ge=10, le=10_000)] = 10

    def cuts(self) -> tuple[tuple[tuple[str | int, ...], Subgroup], ...]:
        """Return every category or banded number that is asked for, with its path."""
        found: list[tuple[tuple[str | int, ...], Subgroup]] = []
        if self.group_by is not None:
            found.append((("statistics", "group_by"), self.group_by))
        for row, pair in enumerate(self.cross):
            found += [(("statistics", "cross", row, side), cut) for side, cut in enumerate(pair)]
        return tuple(found)

    @model_validator(mode="after")
    def check(self) -> Statistics:
        """Refuse a pair of one feature, the same pair twice, and a pair with the groups."""
        seen: set[frozenset[str]] = set()
        for place, pair in enumerate(self.cross):
            names = frozenset(cut.feature for cut in pair)
            if len(names) == 1:
                raise problem("crosses a feature with itself", "cross", place)
            if names in seen:
                raise problem("is a pair that stands here already", "cross", place)
            if self.group_by is not None and self.group_by.feature in names:
                raise problem(
                    "holds the feature of group_by; the table by group says it already",
                    "cross",
                    place,
                )
            seen.add(names)
        return self


def check_statistics(features: tuple[Feature, ...], section: Statistics) -> None:
    """Hold the section against the study's features.

    Raises:
        ValueError: the first problem, with its place.
    """
    known = {feature.name: feature for feature in features}
    for index, feature in enumerate(features):
        if feature.numeric and feature.range is None:
            raise problem(
                "needs 'range': its quantiles are read off a histogram over it", "features", index
            )
        if feature.impute not in ("none", "drop-row"):
            raise problem(
                f"is {feature.impute}, but a study of kind statistics counts what is missing; "
                "only drop-row and none belong to it",
                "features",
                index,
                "impute",
            )
        if feature.levels is not None and len(feature.levels) > MOST_LEVELS:
            raise problem(f"has more than {MOST_LEVELS} levels", "features", index, "levels")
    _check_cuts(known, section)


def _check_cuts(known: Mapping[str, Feature], section: Statistics) -> None:
    bands: dict[str, tuple[float, ...] | None] = {}
    for path, cut in section.cuts():
        feature = known.get(cut.feature)
        if feature is None:
            guess = nearest(cut.feature, known)
            hint = f"; did you mean '{guess}'?" if guess else ""
            raise problem(f"is {show(cut.feature)}, which is not a feature{hint}", *path)
        if feature.numeric and cut.bands is None:
            raise problem("needs 'bands', because its feature is a number", *path)
        if not feature.numeric and cut.bands is not None:
            raise problem("belongs to numbers, and this is a category", *path, "bands")
        if bands.setdefault(cut.feature, cut.bands) != cut.bands:
            # Two sets of cut points would tell of the few patients between them.
            raise problem("has other bands elsewhere in this section", *path, "bands")
    for place, pair in enumerate(section.cross):
        sides = [len(levels_of(known[cut.feature], cut)) + 1 for cut in pair]  # one: missing
        if math.prod(sides) > MOST_TABLE:
            raise problem(
                f"makes a table of more than {MOST_TABLE} cells", "statistics", "cross", place
            )
    group = section.group_by
    if group is not None and len(levels_of(known[group.feature], group)) > MOST_GROUPS:
        raise problem(f"makes more than {MOST_GROUPS} groups", "statistics", "group_by")


def levels_of(feature: Feature, cut: Subgroup) -> tuple[str, ...]:
    """Return the labels of a category's levels or of a number's bands, in order."""
    if cut.bands is None:
        return feature.levels or ()
    labels = [f"< {cut.bands[0]:g}"]
    labels += [f"{low:g} to < {high:g}" for low, high in pairwise(cut.bands)]
    return (*labels, f">= {cut.bands[-1]:g}")
