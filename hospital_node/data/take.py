"""One value out of a patient's several, for sources that hold events: OMOP and FHIR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import polars as pl

from common.site_tables import Take


def take_one(events: pl.DataFrame, keys: Sequence[str], take: Take) -> pl.DataFrame:
    """Return `keys` and one `cell` of text for each of their values that has an event.

    `events` has the keys, `day` (text that sorts by time, may be empty), `order` (the
    source's own, which decides between events of one day), `number` (float, null where the
    event has no number) and `cell` (its text).
    """
    match take:
        case "first" | "last":
            ordered = events.filter(pl.col("cell") != "").sort("day", "order")
            chosen = pl.col("cell").first() if take == "first" else pl.col("cell").last()
        case "mean" | "max" | "min":
            ordered = events.filter(pl.col("number").is_not_null())
            number = getattr(pl.col("number"), take)()
            chosen = number.cast(pl.String).alias("cell")
        case "any":
            ordered, chosen = events, pl.lit("1").alias("cell")
        case "count":
            ordered, chosen = events, pl.len().cast(pl.String).alias("cell")
        case _:
            assert_never(take)
    return ordered.group_by(*keys, maintain_order=True).agg(chosen)


def is_count(take: Take) -> bool:
    """Whether a patient without any event has 0, not a missing value."""
    return take in ("any", "count")
