"""Several rows of one patient become one, where the manifest says so (`rows`).

The row that stays keeps the number of the source's row that it came from; a number over
several rows stands under the patient's first.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from common.errors import ConfigError
from common.site_tables import Rows as Rule
from common.site_tables import Table
from common.study import BinaryTarget, Study
from hospital_node.data.cells import Rows, parsed
from hospital_node.data.csv import Raw, TextTable
from hospital_node.data.event_units import study_units
from hospital_node.data.harmonise import dates


def one_row_each(study: Study, table: Table, raw: Raw, text: TextTable) -> TextTable:
    """Return one row a patient, in the order of the patients' first rows.

    Raises:
        ConfigError: BAD_VALUE, nothing says which column tells patients apart.
        DataError: DATA_COLUMN; DATA_VALUE, a row names no patient, or a column that is no
            number differs between a patient's rows.
    """
    rule = table.rows
    if rule is None:
        return text
    heading = table.patient_column
    if heading is None and study.patient_key is None:
        raise ConfigError(
            "BAD_VALUE",
            f"data set {table.name}: `rows` needs `patient`, the column that tells patients apart",
        )
    if heading is not None:
        keys = raw.column("patient", heading)
    else:
        keys = text.columns[str(study.patient_key)]
    Rows(text.name, heading or str(study.patient_key)).refuse(
        (keys == "").to_numpy(), "names no patient"
    )
    frame = pl.DataFrame({"key": keys}).with_row_index("row")
    if rule.by is not None:
        return _chosen(rule, raw, text, frame)
    return _over_all(study, rule, text, frame)


def _chosen(rule: Rule, raw: Raw, text: TextTable, frame: pl.DataFrame) -> TextTable:
    """Take each patient's first or last row by the date; of one day, the source's order."""
    day = dates(raw, str(rule.by), rule.format)
    ordered = frame.with_columns(day.alias("day")).sort("day", "row", nulls_last=False)
    row = pl.col("row")
    taken = ordered.group_by("key").agg(
        row.min().alias("start"), row.first() if rule.take == "first" else row.last()
    )
    return _rows_of(text, taken.sort("start")["row"].to_numpy().astype(np.int64))


def _rows_of(text: TextTable, rows: np.ndarray) -> TextTable:
    return TextTable(
        text.name,
        {name: cells.gather(rows) for name, cells in text.columns.items()},
        len(rows),
        origin=rows,
        patients=None if text.patients is None else text.patients.gather(rows),
        folder=text.folder,
    )


def _over_all(study: Study, rule: Rule, text: TextTable, frame: pl.DataFrame) -> TextTable:
    """Take the mean, largest or smallest of each column of numbers."""
    numbers = {feature.name for feature in study.features if feature.numeric}
    numbers |= set(study_units(study)) & set(text.columns)
    if isinstance(study.target, BinaryTarget) and study.target.rule.numeric and rule.take != "mean":
        numbers.add(study.target.name)
    groups = frame.group_by("key").agg(pl.col("row").min()).sort("row")
    firsts = groups["row"].to_numpy().astype(np.int64)
    kept = _rows_of(text, firsts)
    columns = {}
    for name, cells in text.columns.items():
        if name not in numbers:
            same = pl.DataFrame({"key": frame["key"], "cell": cells})
            first = same.select((pl.col("cell") != pl.col("cell").first().over("key")).alias("no"))
            Rows(text.name, name).refuse(
                first["no"].to_numpy(),
                f"differs between rows of one patient, so that {rule.take} has no meaning",
            )
            columns[name] = kept.columns[name]
            continue
        values = parsed(cells)
        Rows(text.name, name).refuse(
            ~np.isfinite(values) & (cells != "").to_numpy(), "is not a number"
        )
        each = pl.DataFrame({"key": frame["key"], "number": pl.Series(values).fill_nan(None)})
        number = getattr(pl.col("number"), rule.take)().cast(pl.String).fill_null("")
        found = each.group_by("key").agg(number.alias("cell"))
        columns[name] = groups.join(found, on="key", maintain_order="left", how="left")["cell"]
    return TextTable(text.name, columns, len(firsts), firsts, kept.patients, text.folder)
