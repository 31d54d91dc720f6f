"""Cells of text: which read as a number, are missing, or are one of several words.

Numbers are plain decimals (`-1.5`, `2e3`); `1,5`, `nan` and `inf` are none. A word or
missing code that is a number matches every spelling of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.errors import DataError

_NUMBER = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?$"


class Rows:
    """Where cells come from, for messages: file, column, each cell's row (None: in order)."""

    __slots__ = ("_column", "_file", "_rows")

    def __init__(self, file: str, column: str, rows: NDArray[np.int64] | None = None) -> None:
        self._file, self._column, self._rows = file, column, rows

    def refuse(self, wrong: NDArray[np.bool_], what: str, name: str = "DATA_VALUE") -> None:
        """Raise for the first cell marked in `wrong`, if any."""
        places = np.flatnonzero(wrong)
        if len(places) == 0:
            return
        more = " (and further rows)" if len(places) > 1 else ""  # how many is not told: a count
        row = int(places[0] if self._rows is None else self._rows[places[0]]) + 1
        raise DataError(name, f"{self._file}, column '{self._column}', row {row}: {what}{more}")


def is_missing(cells: pl.Series, codes: Sequence[float | str]) -> NDArray[np.bool_]:
    """Return which cells are empty or one of `codes`: numbers by value, texts by the cell."""
    missing = (cells == "").to_numpy().copy()
    texts = [code for code in codes if isinstance(code, str)]
    numbers = [code for code in codes if not isinstance(code, str)]
    if texts:
        missing |= cells.is_in(texts).to_numpy()
    if numbers:
        missing |= np.isin(parsed(cells), numbers)
    return missing


def parsed(cells: pl.Series) -> NDArray[np.float64]:
    """Return cells as numbers, NaN where a cell is none."""
    plain = pl.select(
        pl.when(cells.str.contains(_NUMBER)).then(cells.str.strip_prefix("+"))
    ).to_series()
    return plain.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy().copy()


def match(cells: pl.Series, levels: Sequence[str]) -> NDArray[np.int64]:
    """Return each cell's place in `levels`, -1 where it is none of them."""
    codes = np.full(len(cells), -1, np.int64)
    numbers = parsed(cells)
    for place, number in enumerate(parsed(pl.Series(list(levels), dtype=pl.String))):
        if np.isfinite(number):
            codes[numbers == number] = place
    for place, level in enumerate(levels):
        codes[(cells == level).to_numpy()] = place
    return codes
