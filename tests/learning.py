"""Studies and tables that several tests of learning need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.features import Table
from common.study import Study, parse_study

FEATURES = """
  - {name: age, type: float, range: [18, 110], impute: mean}
  - {name: visits, type: int, range: [0, 40], impute: median}
  - {name: dose, type: float, range: [0, 8], impute: median}
  - {name: marker, type: float, impute: mean}
  - {name: stage, type: category, levels: [a, b, c], impute: most-frequent}
"""


def study(
    features: str = FEATURES,
    *,
    target: str = "{type: binary, name: sick}",
    model: str = "{kind: logistic}",
    train: str = "{lr: 0.1, batch: 8, local_steps: 5}",
    federation: str = "{weights: samples, max_weight: 1024, rounds: 3}",
    more: str = "",
) -> Study:
    return parse_study(
        f"""
schema: fedcare.study/v1
id: test-study
purpose: research
dataset: t
owner: {{name: n, organisation: o}}
features:{features}
target: {target}
model: {model}
train: {train}
federation: {federation}
seed: 5
{more}
"""
    )


def table(columns: Sequence[object], target: object = None) -> Table:
    """A table from columns of numbers, NaN where missing."""
    values = np.column_stack([np.asarray(c, np.float64) for c in columns])
    labels: NDArray[np.float64] = (
        np.zeros(len(values)) if target is None else np.asarray(target, np.float64)
    )
    return Table(values, labels, np.arange(len(values), dtype=np.int64))


def random_table(rows: int, seed: int, missing: float = 0.2) -> Table:
    """A hospital's rows for `FEATURES`, with missing values and a shift by seed."""
    rng = np.random.default_rng(seed)
    columns = [
        np.clip(rng.normal(55 + 3 * seed, 9, rows), 18, 110),
        rng.integers(0, 12 + seed, rows).astype(np.float64),
        rng.uniform(0, 8, rows),
        rng.normal(1e3, 1.0 + seed, rows),
        rng.choice(3, rows, p=[0.5, 0.3, 0.2]).astype(np.float64),
    ]
    for column in columns:
        column[rng.random(rows) < missing] = np.nan
    return table(columns, rng.integers(0, 2, rows))
