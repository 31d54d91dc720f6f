"""Several levels, and a number, through whole federations: figures over the wire and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from researcher.sim_cli import app
from tests.unit.researcher.test_report import Checker

STUDY = """
schema: fedcare.study/v1
id: targets
purpose: research
dataset: t
owner: {{name: A, organisation: b}}
features: [{{name: a, type: float}}, {{name: b, type: float}}]
target: {target}
split: {{test: 0.4, seed: 1}}
model: {{kind: {kind}}}
train: {{lr: 0.3, batch: 32, local_epochs: 2}}
federation: {{rounds: 3, min_sites: 3}}
evaluate: {{metrics: [{metric}], subgroups: [{{feature: a, bands: [0]}}]}}
seed: 1
"""


def write_sites(folder: Path, kind: str) -> list[str]:
    arguments: list[str] = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = rng.normal(0.2 * seed, 1, (300, 2))
        noise = rng.normal(0, 0.7, 300)
        if kind == "levels":
            y = np.array(["low", "middle", "high"])[np.digitize(x.sum(axis=1) + noise, [-1, 0.5])]
        else:  # a laboratory value in the thousands: its squares fill more than one word
            y = np.char.mod("%.3f", 40_000 + 9000 * (x @ [1.0, 0.5] + noise))
        lines = [f"{a:.6f},{b:.6f},{value}" for (a, b), value in zip(x, y, strict=True)]
        (folder / f"s{seed}.csv").write_text("\n".join(["a,b,y", *lines, ""]))
        (folder / f"s{seed}.yaml").write_text(
            f"schema: fedcare.site/v1\nid: s{seed}\n"
            f"data: [{{name: t, kind: csv, path: s{seed}.csv}}]\n"
        )
        arguments += ["--site", str(folder / f"s{seed}.yaml")]
    return arguments


def simulated(folder: Path, kind: str, text: str) -> tuple[dict[str, Any], str]:
    """Return the envelope's data and the page."""
    (folder / "study.yaml").write_text(text)
    arguments = [str(folder / "study.yaml"), *write_sites(folder, kind)]
    found = CliRunner().invoke(app, [*arguments, "--out", str(folder / "page"), "--json"])
    assert found.exit_code == 0, found.output
    data: dict[str, Any] = json.loads(found.stdout)["data"]
    return data, (folder / "page" / "result.html").read_text()


def check_agreement(data: dict[str, Any], relative: bool) -> None:
    exact, wire = data["metrics"]["pooled"], data["over_the_wire"]
    assert exact.keys() == wire.keys()
    for name, value in exact.items():
        scale = max(1.0, abs(value)) if relative else 1.0
        assert wire[name] == pytest.approx(value, abs=0.002 * scale), name


@pytest.mark.slow
def test_several_levels(tmp_path: Path) -> None:
    text = STUDY.format(
        target="{type: multiclass, name: y, levels: [low, middle, high]}",
        kind="logistic", metric="auroc",
    )  # fmt: skip
    data, page = simulated(tmp_path, "levels", text)
    check_agreement(data, relative=False)
    assert data["over_the_wire"]["auroc"] > 0.8
    assert {"auroc_low", "auroc_high", "brier_low"} <= data["over_the_wire"].keys()
    assert np.array(data["metrics"]["confusion"]).sum() == data["metrics"]["pooled"]["rows"]
    for part in ("middle", "said middle", "sensitivity"):
        assert part in page
    checker = Checker()
    checker.feed(page)
    assert (checker.outside, checker.open, checker.svgs) == ([], [], 1)
    assert "By hospital: local only" in page
    assert "a &gt;=0" in page


@pytest.mark.slow
def test_a_number(tmp_path: Path) -> None:
    text = STUDY.format(target="{type: continuous, name: y}", kind="linear", metric="rmse")
    text = text.replace("lr: 0.3", "lr: 0.05")
    data, page = simulated(tmp_path, "number", text)
    check_agreement(data, relative=True)
    names = {"rmse", "mae", "r2", "calibration_slope", "calibration_intercept"}
    assert names <= data["over_the_wire"].keys()
    assert all(names <= figures.keys() for figures in data["metrics"]["by_site"].values())
    for part in ("RMSE", "MAE", "calibration slope (1 is best)", "By hospital: federated model"):
        assert part in page
