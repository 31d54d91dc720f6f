"""A hospital's records as one table: CSV, or Parquet with numbers as numbers."""

from __future__ import annotations

import csv
from pathlib import Path

from hospital_node.data.invent.recording import OUTCOMES, YEAR, Ward
from hospital_node.data.invent.variables import Quantity


def write_csv(path: Path, ward: Ward) -> None:
    """Write a comma-separated table with a heading line."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(ward.cells)
        writer.writerows(zip(*ward.cells.values(), strict=True))


def write_parquet(path: Path, ward: Ward) -> None:
    """Write the same table with typed columns; an empty cell is null."""
    import polars as pl

    numbers = {one.name for one in ward.measured if isinstance(one, Quantity)}
    numbers |= {YEAR, *OUTCOMES}
    columns = {
        name: pl.Series(
            [None if cell == "" else float(cell) if name in numbers else cell for cell in cells],
            dtype=pl.Float64 if name in numbers else pl.String,
        )
        for name, cells in ward.cells.items()
    }
    pl.DataFrame(columns).write_parquet(path, compression="zstd", statistics=False)
