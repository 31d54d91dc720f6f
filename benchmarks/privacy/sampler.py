"""Is the noise the noise that the accountant charges for?

    python -m benchmarks.privacy.sampler [--quick] [--json]

For several sigmas: chi-square of the draws against the exact discrete Gaussian, the
variance against sigma squared, and the speed. tests/privacy/test_sampler.py compares every
entry of the table with an independent computation, on every change; this draws more.

Then the noise of real rounds, as a coordinator sees it (`curious`): in mode
patient-distributed the words of the constants carry noise alone, and their standard
deviation has to be that of `n` hospitals, of which `s_min - c` were counted on.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.privacy import hearts
from benchmarks.privacy.bounds import Floats
from benchmarks.privacy.curious import Federation
from benchmarks.privacy.hearts import complete_rows
from benchmarks.privacy.report import Cell, Table, main
from common.layouts import constant_count
from common.privacy.noise import NoiseStream, NoiseTable
from common.secagg.keys import CoefficientSeed

SIGMAS: Final = (4.0, 5.5, 64.0, 2887.0)
_BLOCK: Final = 1 << 22
_RARE: Final = 20.0
_COLUMNS: Final = (
    "sigma",
    "draws",
    "chi-square / df",
    "p-value",
    "variance / sigma^2",
    "M draws/s",
)

_RUN_COLUMNS: Final = (
    "s_min", "colluders", "noise words", "found / (z Delta_int)", "expected", "standard error",
)  # fmt: skip


def counts(sigma: float, draws: int) -> tuple[NDArray[np.int64], float]:
    """Return how often each of -T..T was drawn, and the seconds that drawing took."""
    table = NoiseTable.of(sigma)
    stream = NoiseStream(table, CoefficientSeed(hashlib.sha256(repr(sigma).encode()).digest()))
    found = np.zeros(2 * table.cap + 1, np.int64)
    seconds = 0.0
    for start in range(0, draws, _BLOCK):
        block = np.zeros(min(_BLOCK, draws - start), np.int64)
        began = time.perf_counter()
        stream.add_to(block, start)
        seconds += time.perf_counter() - began
        found += np.bincount(block + table.cap, minlength=found.size)
    return found, seconds


def expected(sigma: float, draws: int) -> Floats:
    """Return the expected counts of -T..T, from the definition."""
    cap = math.ceil(13 * sigma)
    weights = np.exp(-(np.arange(-cap, cap + 1) ** 2) / (2 * sigma**2))
    found: Floats = weights / weights.sum() * draws
    return found


def chi_square(observed: NDArray[np.int64], wanted: Floats) -> tuple[float, int, float]:
    """Return chi-square, its degrees of freedom and the p-value; rare values count together."""
    rare = wanted < _RARE
    got = np.append(observed[~rare], observed[rare].sum())
    exact = np.append(wanted[~rare], wanted[rare].sum())
    value = float(((got - exact) ** 2 / exact).sum())
    return value, exact.size - 1, float(stats.chi2.sf(value, exact.size - 1))


def row(sigma: float, draws: int) -> tuple[Cell, ...]:
    """Return one sigma's row."""
    observed, seconds = counts(sigma, draws)
    value, freedom, p_value = chi_square(observed, expected(sigma, draws))
    k = np.arange(observed.size) - observed.size // 2
    variance = float((k.astype(np.float64) ** 2 * observed).sum() / draws) / sigma**2
    return sigma, draws, value / freedom, p_value, f"{variance:.5f}", draws / seconds / 1e6


def run_row(min_sites: int, colluders: int, rounds: int) -> tuple[Cell, ...]:
    """Return the row of one real federation of four hospitals."""
    study = hearts.study(
        federation={"rounds": rounds, "min_sites": min_sites, "weights": "equal"},
        privacy={
            "secure_aggregation": {"colluders": colluders, "suite": "classical"},
            "dp": {
                "mode": "patient-distributed", "epsilon": 1.0, "delta": 1e-5, "clip": 1.0,
                "batch": 486, "max_patients": 400,
            },
        },
    )  # fmt: skip
    tables = {s: [{**r, "split": "train"} for r in rows] for s, rows in complete_rows().items()}
    with tempfile.TemporaryDirectory(prefix="fedcare-attack-") as folder:
        kept = Federation(Path(folder), study, tables).run(tuple(tables))
    noise = np.concatenate([each.opened[: constant_count(study)] for each in kept])
    terms = kept[0].header.dp
    claimed = terms.z * terms.delta_int
    expected = math.sqrt(len(tables) / kept[0].header.honest)
    found = float(np.sqrt(np.mean(noise.astype(np.float64) ** 2))) / claimed
    return min_sites, colluders, noise.size, found, expected, 1 / math.sqrt(2 * noise.size)


def measure(quick: bool) -> list[Table]:  # noqa: FBT001 - the one switch of every script here
    """Return the table over all sigmas."""
    draws = 10_000_000 if quick else 200_000_000
    rounds = 5 if quick else 40
    runs = tuple(run_row(s_min, c, rounds) for s_min, c in ((4, 0), (4, 1), (3, 1)))
    return [
        Table("sampler", _COLUMNS, tuple(row(sigma, draws) for sigma in SIGMAS)),
        Table("sampler-run", _RUN_COLUMNS, runs),
    ]


if __name__ == "__main__":
    main("sampler", measure)
