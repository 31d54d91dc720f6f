"""A value's absence tells the label, through a whole federation: one sum, one more column."""

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
id: absent
purpose: research
dataset: t
owner: {name: A, organisation: b}
features: [{name: x, type: float, range: [0, 9], impute: mean, indicator: true}]
target: {type: binary, name: y}
split: {test: 0.4, seed: 1}
model: {kind: logistic}
train: {lr: 0.3, batch: 16, local_steps: 20}
federation: {rounds: 2, min_sites: 3}
personal: {enabled: false}
seed: 1
"""


def write_site(folder: Path, name: str, seed: int, *, measures: bool) -> Site:
    """Write a hospital where x says nothing, and the sick are measured four times out of five."""
    rng = np.random.default_rng(seed)
    sick = rng.random(120) < 0.5
    known = (rng.random(120) < np.where(sick, 0.8, 0.2)) & measures
    rows = [
        f"{rng.uniform(0, 9):.2f},{s:d}" if k else f",{s:d}"
        for s, k in zip(sick, known, strict=True)
    ]
    (folder / f"{name}.csv").write_text("\n".join(["x,y", *rows]) + "\n")
    manifest = folder / f"{name}.yaml"
    manifest.write_text(
        f"schema: fedcare.site/v1\nid: {name}\ndata: [{{name: t, kind: csv, path: {name}.csv}}]\n"
    )
    return load_site(manifest)


@pytest.mark.slow
def test_who_was_measured_is_learnt_from_and_a_hospital_without_the_value_takes_part(
    tmp_path: Path,
) -> None:
    sites = [
        write_site(tmp_path, name, seed, measures=name != "c")
        for seed, name in enumerate(("a", "b", "c"))
    ]
    found = simulate(parse_study(STUDY), sites, LineDisplay(), time.monotonic()).comparison
    aurocs = {site: figures["auroc"] for site, figures in found.federated.by_site.items()}
    assert set(aurocs) == {"a", "b", "c"}
    for name in ("a", "b"):
        auroc = aurocs[name]
        assert auroc is not None
        assert auroc > 0.7
    assert aurocs["c"] == 0.5
