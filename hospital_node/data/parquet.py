"""A hospital's Parquet file as text, so that the one data contract judges it too.

Numbers are written in the shortest form that reads back, true and false as 1 and 0, dates
as `YYYY-MM-DD`; null and NaN (what pandas writes for null) are missing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import polars as pl

from common.errors import ConfigError, DataError
from common.text import show
from hospital_node.data.csv import Raw

_BROKEN: Final = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
"""A damaged file makes the reader panic at times, which is no `Exception`."""


def read_names(path: Path) -> list[str]:
    """Return the columns' names, stripped.

    Raises:
        ConfigError: FILE_MISSING; FILE_SYNTAX, not a Parquet file.
    """
    try:
        return [name.strip() for name in pl.read_parquet_schema(path)]
    except OSError as failure:
        raise _unreadable(path, failure) from None
    except _BROKEN:
        raise ConfigError("FILE_SYNTAX", f"{path.name} is not a Parquet file") from None


def read_parquet(path: Path) -> Raw:
    """Return every column as text.

    Raises:
        ConfigError: as `read_names`. DataError: DATA_EMPTY, no rows; DATA_VALUE, a column
            of lists, structures or bytes.
    """
    header = read_names(path)
    try:
        frame = pl.read_parquet(path)
    except OSError as failure:
        raise _unreadable(path, failure) from None
    except _BROKEN:  # it may quote what it could not read
        raise ConfigError("FILE_SYNTAX", f"{path.name} is not a Parquet file") from None
    if frame.height == 0:
        raise DataError("DATA_EMPTY", f"{path.name} has columns but no rows")
    columns = [_text(path.name, series).alias(f"c{place}") for place, series in enumerate(frame)]
    return Raw(path.name, header, pl.DataFrame(columns))


def _unreadable(path: Path, failure: OSError) -> ConfigError:
    why = failure.strerror or "it cannot be opened"
    return ConfigError("FILE_MISSING", f"{path.name} cannot be read by uid {os.geteuid()}: {why}")


def _text(file: str, series: pl.Series) -> pl.Series:
    kind = series.dtype
    if kind.is_nested() or kind in (pl.Binary, pl.Object):
        raise DataError("DATA_VALUE", f"{file}, column {show(series.name)}: holds no plain values")
    if kind.is_float():
        series = series.fill_nan(None)
    elif kind == pl.Boolean:
        series = series.cast(pl.Int8)
    elif isinstance(kind, pl.Datetime):
        series = series.dt.strftime("%Y-%m-%dT%H:%M:%S")
    return series.cast(pl.String).fill_null("").str.strip_chars()
