"""Accuracy under differential privacy on four real hospitals, by the code that `sim` runs.

    python -m benchmarks.accuracy.private --data DIR [--seeds 10] [STUDY.yaml ...]

DIR holds the four original files `processed.<hospital>.data` of the UCI Heart Disease data
set; rows and split are FLamby's (see `hospital_node.data.heart`). Each run is a whole
federation in one process: nodes, keys, masks, ledgers, the coordinator, and noise from the
operating system. A seed changes what a study draws from it (the order of rows); the noise is
fresh every time whatever the seed, so two runs of this table differ.

Per study: pooled AUROC and the mean of the hospitals' accuracies on the test rows (mean,
least, most), the epsilon that the study states, and the epsilon of the steps truly taken as
the hospitals' ledgers charged it (the largest hospital's; the most of all runs).
"""

# ruff: noqa: T201 - a script, and its table is its output

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from benchmarks.accuracy.frame import Silent
from benchmarks.accuracy.heart import hospitals
from common.site import Site
from common.study import Study, load_study
from researcher.sim import simulate
from researcher.studies import with_seed

STUDIES: Final = Path(__file__).resolve().parents[2] / "studies"
SHIPPED: Final = (STUDIES / "heart-disease-private.yaml",)


@dataclass(frozen=True, slots=True)
class Run:
    """What one simulation gave."""

    auroc: float
    accuracy: float
    charged: float | None


def run(study: Study, sites: list[Site]) -> Run:
    """Simulate the study once."""
    data = cast("Mapping[str, Any]", simulate(study, sites, Silent(), time.monotonic()).data)
    metrics = data["metrics"]
    return Run(
        metrics["pooled"]["auroc"], metrics["mean_of_sites"]["accuracy"], data["dp"]["epsilon"]
    )


def report(study: Study, sites: list[Site], seeds: int) -> None:
    """Print what a study reaches over that many runs."""
    runs = []
    for seed in range(seeds):
        runs.append(run(with_seed(study, seed), sites))
        print(f"{study.id} seed {seed}: {runs[-1]}", file=sys.stderr)
    terms = study.privacy.dp
    charged = [each.charged for each in runs if each.charged is not None]
    print(f"{study.id}: {terms.mode}, {study.federation.rounds} rounds, {seeds} runs")
    print(f"  pooled AUROC            {spread([each.auroc for each in runs])}")
    print(f"  mean-of-sites accuracy  {spread([each.accuracy for each in runs])}")
    if charged:
        print(f"  epsilon at delta {terms.delta:g}: stated {terms.epsilon:g}, of the steps taken "
              f"{max(charged):.4f}")  # fmt: skip


def spread(values: list[float]) -> str:
    """Return mean, deviation and range for people."""
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    return f"{mean:.4f} (deviation {deviation:.4f}, {min(values):.4f} to {max(values):.4f})"


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the UCI files")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each study, at least 2")
    parser.add_argument("studies", type=Path, nargs="*", default=SHIPPED)
    given = parser.parse_args()
    for path in given.studies:
        study = load_study(path)
        with tempfile.TemporaryDirectory() as folder:
            report(study, hospitals(given.data, Path(folder), study.dataset), given.seeds)
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
