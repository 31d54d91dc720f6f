"""Patients that never lived: two hospitals of a thousand each, for the first example.

Ten measurements decide a yes-or-no outcome through a curved rule that a straight line
cannot follow; the second hospital's patients are older and sicker. Everything follows
from the seed. For demonstrations and tests only.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError

FEATURES: Final = tuple(f"x{number}" for number in range(1, 11))
TARGET: Final = "outcome"
SITES: Final = ("hospital-a", "hospital-b")
_SHIFT: Final = (0.0, 0.4)
_NOISE: Final = 0.5


def two_hospitals(
    rows: int = 1000, seed: int = 0
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Return each hospital's features [rows, 10] (within +-8) and outcomes [rows]."""
    found = {}
    for place, (site, shift) in enumerate(zip(SITES, _SHIFT, strict=True)):
        rng = np.random.Generator(np.random.PCG64([seed, place]))
        x = np.clip(rng.normal(shift, 1.0, (rows, len(FEATURES))), -8.0, 8.0)
        risk = (
            1.2 * x[:, 0] - 0.8 * x[:, 1] + 0.9 * x[:, 2] * x[:, 3]
            + 0.7 * (np.abs(x[:, 4]) - 0.8) + 0.5 * np.sin(2.0 * x[:, 5])
        )  # fmt: skip
        found[site] = x, (risk + rng.normal(0.0, _NOISE, rows) > 0.0).astype(np.int64)
    return found


def write_two_hospitals(folder: Path, rows: int = 1000, seed: int = 0) -> dict[str, Path]:
    """Write `hospital-a.csv` and `hospital-b.csv` into `folder`; return the files by site.

    Raises:
        ConfigError: OUTPUT_EXISTS, one of the files is already there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {site: folder / f"{site}.csv" for site in SITES}
    for path in paths.values():
        if path.exists():
            raise ConfigError("OUTPUT_EXISTS", f"{path.name} already exists in the output folder")
    for site, (x, outcome) in two_hospitals(rows, seed).items():
        with paths[site].open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*FEATURES, TARGET])
            for values, label in zip(x.tolist(), outcome.tolist(), strict=True):
                writer.writerow([*(f"{value:.6f}" for value in values), label])
    return paths
