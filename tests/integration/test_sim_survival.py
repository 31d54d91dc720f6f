"""A survival study through the whole federation: figures at fixed times add up under the masks."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from common.site import Site, load_site
from common.study import parse_study
from researcher.progress import LineDisplay
from researcher.sim import simulate

STUDY = """
schema: fedcare.study/v1
id: survival-sim
purpose: research
dataset: cohort
owner: {name: Somebody, organisation: uni-x}
features:
  - {name: age, type: float}
  - {name: sex, type: category, levels: ["0", "1"]}
target: {type: survival, time: days, event: dead, unit: d}
split: {test: 0.4, seed: 1}
model: {kind: cox}
train: {lr: 0.3, batch: 512, local_steps: 10}
evaluate: {metrics: [c_index, auroc, brier], horizons: [0.1, 200, 600]}
federation: {rounds: 3, min_sites: 3}
seed: 5
"""


def write_site(folder: Path, name: str, seed: int, rows: int = 150) -> Site:
    rng = np.random.default_rng(seed)
    age = rng.normal(60, 10, rows)
    days = rng.exponential(500 * np.exp(-(age - 60) / 10))
    seen = rng.exponential(900, rows)
    lines = [
        f"{a:.2f},{int(rng.integers(2))},{min(d, c):.2f},{int(d <= c)}"
        for a, d, c in zip(age, days, seen, strict=True)
    ]
    (folder / f"{name}.csv").write_text("\n".join(["age,sex,days,dead", *lines]) + "\n")
    manifest = folder / f"{name}.yaml"
    manifest.write_text(
        f"schema: fedcare.site/v1\nid: {name}\n"
        f"data: [{{name: cohort, kind: csv, path: {name}.csv}}]\n"
    )
    return load_site(manifest)


@pytest.mark.slow
def test_pooled_figures_over_masks_are_those_of_the_rows_and_few_cases_are_withheld(
    tmp_path: Path,
) -> None:
    sites = [write_site(tmp_path, name, seed) for seed, name in enumerate(("a", "b", "c"))]
    found = simulate(parse_study(STUDY), sites, LineDisplay(), time.monotonic())
    exact, over_masks = found.comparison.federated.pooled, found.data["over_the_wire"]
    assert isinstance(over_masks, dict)
    assert over_masks["c_index"] > 0.65
    names = {"rows", "events", "c_index", "c_index_low", "c_index_high"}
    names |= {f"{name}_at_{t}" for name in ("auroc", "brier") for t in (200, 600)}
    assert set(over_masks) == names  # nobody had the event within 0.1 days
    for name in names:
        assert over_masks[name] == pytest.approx(exact[name], abs=1e-3)
