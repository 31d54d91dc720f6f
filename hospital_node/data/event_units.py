"""Events that each state their own unit are brought to one, before one of them is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from common.errors import DataError
from common.study import ContinuousTarget, Study, SurvivalTarget
from common.text import show
from common.units import analyte_of, conversion


@dataclass(frozen=True, slots=True)
class Wanted:
    """A column of the source's: its name, and the unit that the study asks for, if any."""

    source: str
    column: str
    unit: str | None
    analyte: str | None

    @property
    def where(self) -> str:
        """How messages call it."""
        return f"{self.source}, column {show(self.column)}"


def study_units(study: Study) -> Mapping[str, str]:
    """Return the unit of each column of numbers that states one."""
    units = {feature.name: feature.unit for feature in study.features}
    match study.target:
        case ContinuousTarget(name=name, unit=unit):
            units[name] = unit
        case SurvivalTarget(time=name, unit=unit):
            units[name] = unit
        case _:
            pass
    return {name: unit for name, unit in units.items() if unit is not None}


def to_one_unit(events: pl.DataFrame, wanted: Wanted) -> pl.DataFrame:
    """Return events whose `number` and `cell` are in the wanted unit.

    `unit` is each event's own, empty where it states none. An event without a number keeps
    its text. Without a wanted unit all events have to agree on one.

    Raises:
        DataError: DATA_UNIT, naming units and column, never a value.
    """
    counted = events.filter(pl.col("number").is_not_null())
    units = sorted(counted["unit"].unique().to_list())
    if wanted.unit is None:
        if len(units) > 1:
            raise DataError(
                "DATA_UNIT",
                f"{wanted.where}: events in several units ({', '.join(map(show, units))}), and "
                "the study states none",
                fix="Ask the researcher to state the feature's unit.",
            )
        return events
    if "" in units:
        raise DataError(
            "DATA_UNIT",
            f"{wanted.where}: an event states no unit; {show(wanted.unit)} is expected",
            fix="State the unit of such events in the site manifest (docs/data.md).",
        )
    analyte = wanted.analyte or analyte_of(wanted.column)
    number = pl.col("number")
    for unit in units:
        try:
            step = conversion(unit, wanted.unit, analyte)
        except DataError as failure:
            raise DataError(
                failure.name, f"{wanted.where}: {failure.detail}", fix=failure.fix
            ) from None
        if (step.factor, step.offset) != (1.0, 0.0):
            changed = pl.col("number") * step.factor + step.offset
            number = pl.when(pl.col("unit") == unit).then(changed).otherwise(number)
    brought = events.with_columns(number.alias("number"))
    cell = pl.coalesce(pl.col("number").cast(pl.String), pl.col("cell"))
    return brought.with_columns(cell.alias("cell"))
