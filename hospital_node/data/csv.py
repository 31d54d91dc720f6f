"""A hospital's table as columns of text, and its CSV files, row for row as they stand.

Nothing is guessed: every cell stays text until the data contract reads it by the
study's type. Messages name the file, the column and the row, never a cell: polars' own
messages quote what they could not read, so they are not passed on.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.errors import ConfigError, DataError
from hospital_node.data.headings import COMMAS, Dialect, find, read_header


@dataclass(frozen=True, slots=True)
class TextTable:
    """Columns of stripped text by the study's names; `name` is the file's, for messages.

    Row numbers in messages count from 1, the header not included. `origin` int64 [rows] is
    each row's place (from 0) in the source where rows were put together; `patients` are the
    source's own keys of patients where it has them by itself; `folder` holds the files that a
    column of images names.
    """

    name: str
    columns: Mapping[str, pl.Series]
    rows: int
    origin: NDArray[np.int64] | None = None
    patients: pl.Series | None = None
    folder: Path | None = None

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where `rows` stand in the source, from 0."""
        return rows if self.origin is None else self.origin[rows]


@dataclass(frozen=True, slots=True)
class Raw:
    """A source's own columns before any mapping: stripped text, called c0, c1, ... in order.

    A missing value is an empty cell, whatever the source has for it.
    """

    name: str
    header: list[str]
    frame: pl.DataFrame

    def column(self, study_name: str, heading: str) -> pl.Series:
        """Return the column called `heading`.

        Raises:
            DataError: DATA_COLUMN, it is absent or stands twice.
        """
        return self.frame[f"c{find(self.name, self.header, study_name, heading)}"]


def read_csv(
    path: Path, wanted: Iterable[str], renamed: Mapping[str, str] | None = None
) -> TextTable:
    """Return the `wanted` columns of a comma-separated UTF-8 file with a header.

    `renamed` maps a study's column to the file's, as the site manifest says.

    Raises:
        ConfigError: FILE_MISSING; FILE_SYNTAX, not such a file.
        DataError: DATA_COLUMN, a column is absent or stands twice; DATA_EMPTY, no rows.
    """
    header = read_header(path)
    places = {
        name: find(path.name, header, name, (renamed or {}).get(name, name)) for name in wanted
    }
    frame = _frame(path, len(header), sorted(set(places.values())))
    columns = {name: frame[f"c{place}"].alias(name) for name, place in places.items()}
    return TextTable(path.name, columns, frame.height)


def read_raw(path: Path, dialect: Dialect = COMMAS) -> Raw:
    """Return the headings and every cell of a file.

    Raises:
        ConfigError, DataError: as `read_csv`.
    """
    header = read_header(path, dialect)
    return Raw(path.name, header, _frame(path, len(header), list(range(len(header))), dialect))


def _frame(path: Path, width: int, places: list[int], dialect: Dialect = COMMAS) -> pl.DataFrame:
    """Return stripped text cells of the columns at `places`, empty where there is none."""
    _check_widths(path, width, dialect)
    source: Path | bytes = path
    try:
        if dialect.encoding != "utf-8":
            source = path.read_text(dialect.encoding).encode()
        frame = pl.read_csv(
            source,
            has_header=False,
            skip_rows=1,
            infer_schema=False,
            separator=dialect.delimiter,
            new_columns=[f"c{place}" for place in range(width)],
            columns=places,
        )
    except pl.exceptions.NoDataError:
        raise DataError("DATA_EMPTY", f"{path.name} has a header but no rows") from None
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError):
        # The cause may quote cells: it is dropped on purpose.
        raise _not_a_table(path, dialect) from None
    filled = frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series()
    # Blank lines at the end are no rows; one between rows is, so that row numbers hold.
    used = np.flatnonzero(filled.to_numpy())
    if len(used) == 0:
        raise DataError("DATA_EMPTY", f"{path.name} has a header but no rows")
    frame = frame.head(int(used[-1]) + 1)
    return frame.select(pl.all().fill_null("").str.strip_chars())


def _check_widths(path: Path, width: int, dialect: Dialect) -> None:
    """Refuse a row that is longer or shorter than the header; blank lines are no rows.

    A decimal comma or an unquoted one moves every later cell of its row into another
    column, where it may well look right. polars fills up and cuts off without a word.
    """
    try:
        with path.open(encoding=dialect.reads, newline="") as file:
            rows = csv.reader(file, delimiter=dialect.delimiter)
            next(rows, None)
            for number, cells in enumerate(rows, start=1):
                if cells and len(cells) != width:
                    fix = "Put cells that hold a comma in quotes; decimals take a point."
                    if dialect.delimiter != ",":
                        fix = f"Put cells that hold {dialect.named} in quotes."
                    raise ConfigError(
                        "FILE_SYNTAX",
                        f"{path.name}, row {number}: {len(cells)} cells, the header has {width}",
                        fix=fix,
                    )
    except (UnicodeDecodeError, csv.Error):
        raise _not_a_table(path, dialect) from None


def _not_a_table(path: Path, dialect: Dialect) -> ConfigError:
    return ConfigError("FILE_SYNTAX", f"{path.name} is not a {dialect} table of one width")
