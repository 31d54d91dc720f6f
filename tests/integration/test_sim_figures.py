"""Constants and figures that a private study pays for come about, each with its own charge."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from common.study import parse_study
from hospital_node.ledger import Ledger
from hospital_node.ledger_lines import Charge
from researcher.progress import LineDisplay
from researcher.sim import simulate
from tests.integration.test_sim import write_site

SITES = ("north", "east", "west")
STUDY = """\
schema: fedcare.study/v1
id: paid-figures
purpose: research
dataset: heart
owner: {name: A, organisation: uni-x}
features:
  - {name: age, type: float, range: [0, 120], impute: mean}
  - {name: sex, type: category, levels: ["0", "1"]}
target: {type: binary, name: sick}
split: {test: 0.25, seed: 1}
model: {kind: logistic}
train: {lr: 2.0}
federation: {rounds: 3, min_sites: 3}
privacy:
  secure_aggregation: {colluders: 1}
  dp: {epsilon: 30, delta: 1.0e-5, clip: 1.0, batch: 540, spare_rounds: 0,
       statistics_epsilon: 10, evaluation_epsilon: 10}
"""


def test_noised_constants_and_figures_are_those_of_the_right_patients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    charged: list[Charge] = []
    real = Ledger.append

    def append(ledger: Ledger, charge: Charge) -> None:
        charged.append(charge)
        real(ledger, charge)

    monkeypatch.setattr(Ledger, "append", append)
    sites = [write_site(tmp_path, name, place, rows=240) for place, name in enumerate(SITES)]
    result = simulate(parse_study(STUDY), sites, LineDisplay(), time.monotonic())

    exact = result.comparison.federated.pooled
    told = result.data["over_the_wire"]
    assert isinstance(told, dict)
    spread = 6 * 32**0.5 * told["noise_sd"]  # of a total of 32 cells
    assert spread < 60, "test and training patients must not look alike"
    assert abs(told["rows"] - float(exact["rows"] or 0)) < spread
    assert 120 < float(exact["rows"] or 0) < 240
    assert float(exact["auroc"] or 0) > 0.9
    kinds = [charge.kind for charge in charged]
    assert [kinds.count(kind) for kind in ("statistics", "train", "evaluate")] == [3, 9, 3]
    dp = result.data["dp"]
    assert isinstance(dp, dict)
    assert 29.9 < dp["epsilon"] <= 30
