"""A hospital's CSV file as columns of text, row for row as it stands in the file.

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

from common.errors import ConfigError, DataError
from hospital_node.data.headings import find, read_header


@dataclass(frozen=True, slots=True)
class TextTable:
    """Columns of stripped text by the study's names; `name` is the file's, for messages.

    Row numbers in messages count from 1, the header not included.
    """

    name: str
    columns: Mapping[str, pl.Series]
    rows: int


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


def read_all(path: Path) -> tuple[list[str], pl.DataFrame]:
    """Return the headings and every cell of a file, its columns called c0, c1, ...

    Raises:
        ConfigError, DataError: as `read_csv`.
    """
    header = read_header(path)
    return header, _frame(path, len(header), list(range(len(header))))


def _frame(path: Path, width: int, places: list[int]) -> pl.DataFrame:
    """Return stripped text cells of the columns at `places`, empty where there is none."""
    _check_widths(path, width)
    try:
        frame = pl.read_csv(
            path,
            has_header=False,
            skip_rows=1,
            infer_schema=False,
            new_columns=[f"c{place}" for place in range(width)],
            columns=places,
        )
    except pl.exceptions.NoDataError:
        raise DataError("DATA_EMPTY", f"{path.name} has a header but no rows") from None
    except (pl.exceptions.PolarsError, OSError):
        # The cause may quote cells: it is dropped on purpose.
        raise ConfigError(
            "FILE_SYNTAX", f"{path.name} is not a comma-separated UTF-8 table of one width"
        ) from None
    filled = frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series()
    # Blank lines at the end are no rows; one between rows is, so that row numbers hold.
    used = np.flatnonzero(filled.to_numpy())
    if len(used) == 0:
        raise DataError("DATA_EMPTY", f"{path.name} has a header but no rows")
    frame = frame.head(int(used[-1]) + 1)
    return frame.select(pl.all().fill_null("").str.strip_chars())


def _check_widths(path: Path, width: int) -> None:
    """Refuse a row that is longer or shorter than the header; blank lines are no rows.

    A decimal comma or an unquoted one moves every later cell of its row into another
    column, where it may well look right. polars fills up and cuts off without a word.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            next(rows, None)
            for number, cells in enumerate(rows, start=1):
                if cells and len(cells) != width:
                    raise ConfigError(
                        "FILE_SYNTAX",
                        f"{path.name}, row {number}: {len(cells)} cells, the header has {width}",
                        fix="Put cells that hold a comma in quotes; decimals take a point.",
                    )
    except (UnicodeDecodeError, csv.Error):
        raise ConfigError(
            "FILE_SYNTAX", f"{path.name} is not a comma-separated UTF-8 table of one width"
        ) from None
