"""A study of a few seconds and its tables, for tests that start a federation of real processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.study import Study, parse_study

TIMING = {"enrolment_grace": "2s", "setup": "5s", "gather": "500ms", "release": "2s"}
"""A coordinator that does not wait long for anybody."""

_TEXT = """\
schema: fedcare.study/v1
id: small-study
purpose: research
dataset: heart
owner: {name: Somebody, organisation: uni-x}
features: [{name: age, type: float}]
target: {type: binary, name: sick}
split: {test: 0.3, seed: 1}
model: {kind: logistic}
train: {local_steps: STEPS}
federation: {rounds: ROUNDS, min_sites: MIN, round_deadline: DEADLINE}
"""


def small_text(
    rounds: int = 2, min_sites: int = 3, *, deadline: str = "20s", local_steps: int = 2
) -> str:
    """Return the study as a researcher would write it."""
    values = {"STEPS": local_steps, "ROUNDS": rounds, "MIN": min_sites, "DEADLINE": deadline}
    text = _TEXT
    for name, value in values.items():
        text = text.replace(name, str(value))
    return text


def small_study(
    rounds: int = 2, min_sites: int = 3, *, deadline: str = "20s", local_steps: int = 2
) -> Study:
    """Return the study, parsed."""
    return parse_study(small_text(rounds, min_sites, deadline=deadline, local_steps=local_steps))


def write_table(path: Path, seed: int, noise: float = 0.0) -> Path:
    """Write a hospital's table of 40 patients, who are sick when they are over 60.

    With `noise`, a standard deviation in years, there is a regression to fit.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    ages = rng.normal(60, 10, 40)
    rows = [f"{age:.1f},{int(age + rng.normal(0, noise) > 60)}" for age in ages]
    path.write_text("\n".join(["age,sick", *rows, ""]), encoding="utf-8")
    return path
