"""The study of the architecture page, for tests to alter one place at a time."""

from __future__ import annotations

HEART = """\
schema: fedcare.study/v1
id: heart-disease
kind: training
title: Angiographic heart disease from routine measurements
purpose: research
dataset: heart
owner: {name: "A. Researcher", organisation: "uni-x"}
features:
  - {name: age,  type: float, unit: a, range: [18, 110], impute: mean}
  - {name: sex,  type: category, levels: ["0", "1"]}
  - {name: chol, type: float, unit: mg/dL, range: [50, 700], missing: [0], impute: mean}
target: {type: binary, name: num, positive: "> 0"}
split: {test: 0.34, seed: 43, stratify: true}
patient_key: null
normalise: federated
model: {kind: logistic}
train: {optimiser: sgd, lr: 0.02, batch: 16, local_steps: 25, weight_decay: 0}
federation:
  strategy: {name: fedavg}
  weights: size_class
  rounds: 15
  min_sites: 3
  round_deadline: 10m
privacy:
  secure_aggregation: {colluders: 1}
  dp: {mode: none}
evaluate: {metrics: [auroc, accuracy, brier]}
"""

SHORTEST = """\
schema: fedcare.study/v1
id: tiny
purpose: research
dataset: heart
owner: {name: A, organisation: B}
features: [{name: age, type: float}]
target: {type: binary, name: num}
model: {kind: logistic}
"""

STATISTICS = """\
schema: fedcare.study/v1
id: counts
kind: statistics
purpose: research
dataset: heart
owner: {name: A, organisation: B}
features: [{name: age, type: float, range: [18, 110]}]
"""


def altered(text: str, old: str, new: str, count: int = 1) -> str:
    """Return `text` with its `count` places of `old` replaced; fails where there are others."""
    if text.count(old) != count:
        raise AssertionError(f"{old!r} stands {text.count(old)} times")
    return text.replace(old, new)
