"""A cohort of an OMOP CDM database (5.3, 5.4) as one row for each of its rows.

The cohort's SELECT says who and when (`person_id`, `index_date`). Each feature then takes
the events of its concepts whose day lies in its window, counted from the index date; without
a window, all events until the index date, so that nothing that came later can be learnt
from. SQL only fetches (SQLAlchemy Core, the same for PostgreSQL and SQLite); windows, units
and takes are done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from common.errors import DataError
from common.site_tables import OmopFeature, OmopTable
from common.text import show
from hospital_node.data.csv import Raw
from hospital_node.data.database import session, text
from hospital_node.data.event_units import Wanted, to_one_unit
from hospital_node.data.headings import table_name
from hospital_node.data.take import is_count, take_one

if TYPE_CHECKING:
    from sqlalchemy import Connection, Select, Subquery

_DOMAINS: Final[Mapping[str, tuple[str, str, str, tuple[str, ...]]]] = {
    "measurement": (
        "measurement",
        "measurement_concept_id",
        "measurement_date",
        ("value_as_number", "value_as_concept_id"),
    ),
    "observation": (
        "observation",
        "observation_concept_id",
        "observation_date",
        ("value_as_number", "value_as_string", "value_as_concept_id"),
    ),
    "condition": ("condition_occurrence", "condition_concept_id", "condition_start_date", ()),
}
"""Of each domain: its table, and the columns of the concept, of the day and of the value."""

_PERSON: Final = (
    "year_of_birth",
    "month_of_birth",
    "day_of_birth",
    "gender_concept_id",
    "race_concept_id",
    "ethnicity_concept_id",
)
_YEAR_DAYS: Final = 365.25


def read_omop(table: OmopTable, units: Mapping[str, str]) -> Raw:
    """Return `person_id` and the manifest's features as text, a row for each of the cohort.

    `units` are the study's: events with a unit concept are brought to them.

    Raises:
        ConfigError, DataError: as `hospital_node.data.database.read_sql`; DATA_UNIT;
            DATA_COLUMN, the cohort's SELECT has not the two columns.
    """
    name = table_name(table)
    with session(table, name) as connection:
        cohort = _cohort(connection, table, name)
        columns = {"person_id": cohort["person_id"]}
        for column, feature in table.features.items():
            wanted = Wanted(name, column, units.get(column), feature.analyte)
            if feature.domain == "person":
                found = _of_person(connection, table, feature, wanted.where)
            else:
                found = _of_events(connection, table, feature, wanted, cohort)
            cells = cohort.join(found, on=found.columns[0], how="left", maintain_order="left")
            empty = "0" if feature.domain != "person" and is_count(feature.take) else ""
            columns[column] = _cells(cells, feature).fill_null(empty)
    frame = pl.DataFrame({f"c{place}": cells for place, cells in enumerate(columns.values())})
    return Raw(name, list(columns), frame)


def _cells(joined: pl.DataFrame, feature: OmopFeature) -> pl.Series:
    if feature.field != "age":
        return joined["cell"]
    born = pl.col("cell").str.to_date("%Y-%m-%d", strict=False)
    years = (pl.col("index") - born).dt.total_days() / _YEAR_DAYS
    return joined.select(years.cast(pl.String)).to_series()


def _cohort(connection: Connection, table: OmopTable, name: str) -> pl.DataFrame:
    """Return the cohort in a lasting order: `person_id` text, `index` date, `row`."""
    from sqlalchemy.exc import NoSuchColumnError

    result = connection.execute(_cohort_query(table).select())
    try:
        rows = [(_word(row.person_id, name), _word(row.index_date, name)[:10]) for row in result]
    except (AttributeError, NoSuchColumnError):
        raise DataError(
            "DATA_COLUMN", f"{name}: the cohort's SELECT needs person_id and index_date"
        ) from None
    if not rows:
        raise DataError("DATA_EMPTY", f"{name}: the cohort has nobody")
    frame = pl.DataFrame(rows, schema={"person_id": pl.String, "day": pl.String}, orient="row")
    frame = frame.with_columns(pl.col("day").str.to_date("%Y-%m-%d", strict=False).alias("index"))
    if frame["index"].null_count() or (frame["person_id"] == "").any():
        raise DataError("DATA_VALUE", f"{name}: a row of the cohort has no person or no date")
    order = pl.col("person_id").cast(pl.Int64, strict=False)
    return frame.sort(order, "person_id", "day").with_row_index("row")


def _cohort_query(table: OmopTable) -> Subquery:
    import re

    import sqlalchemy

    # In the hospital's own SQL a colon is a colon, and not the name of a bound value.
    plain = re.sub(r"(?<!:):(?!:)", r"\:", table.cohort)
    columns: Any = [sqlalchemy.column(name) for name in ("person_id", "index_date")]
    return sqlalchemy.text(plain).columns(*columns).subquery("cohort")


def _table(table: OmopTable, name: str, *columns: str) -> Any:  # noqa: ANN401 - a Core table
    import sqlalchemy

    return sqlalchemy.table(
        name, *(sqlalchemy.column(one) for one in columns), schema=table.cdm_schema
    )


def _in_cohort(table: OmopTable, person: Any) -> Any:  # noqa: ANN401 - Core's own types
    import sqlalchemy

    return person.in_(sqlalchemy.select(_cohort_query(table).c.person_id))


def _word(value: object, where: str) -> str:
    try:
        return text(value)
    except TypeError:
        raise DataError("DATA_VALUE", f"{where}: holds no plain values") from None


def _of_person(
    connection: Connection, table: OmopTable, feature: OmopFeature, where: str
) -> pl.DataFrame:
    """Return each person's field: a concept id, or the day of birth for the age.

    A month or day that is not known is the middle of the year or month.
    """
    import sqlalchemy

    person = _table(table, "person", "person_id", *_PERSON)
    query = sqlalchemy.select(person).where(_in_cohort(table, person.c.person_id))
    rows = []
    for row in connection.execute(query):
        if feature.field == "age":
            cell = _born(row.year_of_birth, row.month_of_birth, row.day_of_birth, where)
        else:
            cell = _word(getattr(row, str(feature.field)), where)
        rows.append((_word(row.person_id, where), cell))
    return pl.DataFrame(rows, schema={"person_id": pl.String, "cell": pl.String}, orient="row")


def _born(year: Any, month: Any, day: Any, where: str) -> str:  # noqa: ANN401 - a database's values
    """Return the day of birth, empty where the year is not known."""
    if year is None:
        return ""
    try:
        return f"{int(year):04d}-{int(month or 7):02d}-{int(day or (15 if month else 1)):02d}"
    except (ValueError, TypeError):  # its message quotes the value
        raise DataError("DATA_VALUE", f"{where}: a day of birth is no number") from None


def _of_events(
    connection: Connection,
    table: OmopTable,
    feature: OmopFeature,
    wanted: Wanted,
    cohort: pl.DataFrame,
) -> pl.DataFrame:
    """Return the cohort's rows that have an event in the window, with the one taken."""
    events = pl.DataFrame(
        [_event(row, wanted, feature) for row in connection.execute(_query(table, feature))],
        schema={
            "person_id": pl.String,
            "day": pl.String,
            "order": pl.String,
            "number": pl.Float64,
            "cell": pl.String,
            "unit": pl.String,
        },
        orient="row",
    )
    joined = cohort.select("row", "person_id", "index").join(events, on="person_id")
    first, last = feature.window or (None, 0)
    offset = (pl.col("day").str.to_date("%Y-%m-%d", strict=False) - pl.col("index")).dt.total_days()
    within = offset <= last if first is None else offset.is_between(first, last)
    inside = joined.filter(within)
    if not is_count(feature.take):
        inside = to_one_unit(inside, wanted)
    return take_one(inside, ["row"], feature.take)


def _query(table: OmopTable, feature: OmopFeature) -> Select[Any]:
    import sqlalchemy

    name, concept, day, values = _DOMAINS[feature.domain]
    key = f"{name}_id"
    unit = ("unit_concept_id",) if feature.unit_concepts else ()
    source = _table(table, name, key, "person_id", concept, day, *values, *unit)
    wanted: Any = list(feature.concepts)
    if feature.descendants:
        below = _table(table, "concept_ancestor", "ancestor_concept_id", "descendant_concept_id")
        wanted = sqlalchemy.select(below.c.descendant_concept_id).where(
            below.c.ancestor_concept_id.in_(wanted)
        )
    return sqlalchemy.select(
        source.c.person_id,
        source.c[day].label("day"),
        source.c[key].label("place"),
        *(source.c[one] for one in (*values, *unit)),
    ).where(source.c[concept].in_(wanted), _in_cohort(table, source.c.person_id))


def _event(row: Any, wanted: Wanted, feature: OmopFeature) -> tuple[object, ...]:  # noqa: ANN401
    number = getattr(row, "value_as_number", None)
    words = (getattr(row, key, None) for key in ("value_as_string", "value_as_concept_id"))
    cell = number if number is not None else next((word for word in words if word), None)
    unit = _unit(row, wanted, feature) if number is not None else ""
    try:
        exact = None if number is None else float(number)
    except (ValueError, TypeError):  # its message quotes the value
        raise DataError("DATA_VALUE", f"{wanted.where}: value_as_number is no number") from None
    place, cell = _word(row.place, wanted.where).rjust(20, "0"), _word(cell, wanted.where)
    person, day = _word(row.person_id, wanted.where), _word(row.day, wanted.where)[:10]
    return (person, day, place, exact, cell, unit)


def _unit(row: Any, wanted: Wanted, feature: OmopFeature) -> str:  # noqa: ANN401
    """Return an event's unit; where the manifest names no concepts, the study's own."""
    if not feature.unit_concepts:
        return wanted.unit or ""
    concept = str(row.unit_concept_id or 0)
    if concept not in feature.unit_concepts:
        raise DataError(
            "DATA_UNIT",
            f"{wanted.where}: an event has unit concept {show(concept)}, which the manifest's "
            "unit_concepts does not name",
            fix="Add the unit concept with its UCUM unit to the feature's unit_concepts.",
        )
    return feature.unit_concepts[concept]
