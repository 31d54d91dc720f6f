"""A statistics study over invented patients, and the frames that are its oracle."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common import counting
from common.counting import Sums
from common.features import Table
from common.quantise import Coding, VectorEncoder
from common.secagg.header import Rounding, quant_bound
from common.study import Study, parse_study

TEXT = """
schema: fedcare.study/v1
id: first-table
kind: statistics
purpose: research
dataset: heart
owner: {name: A, organisation: uni-x}
features:
  - {name: age, type: int, range: [18, 99]}
  - {name: lab, type: float, unit: mg/dL, range: [-3, 12]}
  - {name: arm, type: category, levels: [a, b, c]}
  - {name: sex, type: category, levels: ["0", "1"]}
statistics:
  group_by: arm
  cross: [[sex, {feature: age, bands: [50, 65]}]]
  survival: {time: days, event: dead, horizon: 400, bins: 400}
federation: {min_sites: 3}
"""
FEATURES = ("age", "lab", "arm", "sex")


def study(text: str = TEXT) -> Study:
    return parse_study(text)


def patients(rows: int, seed: int) -> pd.DataFrame:
    """Return rows with a bit of everything missing; times are whole days."""
    rng = np.random.Generator(np.random.PCG64(seed))
    arm = rng.integers(0, 3, rows).astype(float)
    life = rng.exponential(250 / (1 + 0.5 * arm)) + 1
    watched = rng.uniform(50, 600, rows)
    frame = pd.DataFrame(
        {
            "age": np.clip(np.rint(rng.normal(60, 12, rows)), 18, 99),
            "lab": np.clip(rng.normal(2, 2, rows), -3, 12),
            "arm": arm,
            "sex": rng.integers(0, 2, rows).astype(float),
            "days": np.ceil(np.minimum(life, watched)),
            "dead": (life <= watched).astype(float),
        }
    )
    for name, share in (("age", 0.05), ("lab", 0.1), ("arm", 0.08), ("sex", 0.05)):
        frame.loc[rng.random(rows) < share, name] = np.nan
    return frame


def table(frame: pd.DataFrame) -> Table:
    return Table(
        frame[list(FEATURES)].to_numpy(np.float64),
        frame[["days", "dead"]].to_numpy(np.float64),
        np.arange(len(frame)),
    )


def summed(of: Study, frames: list[pd.DataFrame]) -> Sums:
    """Return the opened sum: each hospital's vector quantised as a round does, then added."""
    bound = quant_bound(len(frames), counting.RING_BITS)
    schema = counting.layout(of)
    coding = Coding(bound, counting.RING_BITS, Rounding.EVEN)
    total: NDArray[np.int64] = np.zeros(schema.parameters, np.int64)
    for frame in frames:
        value = counting.contribution(of, table(frame))
        encoder = VectorEncoder(schema, value, ranges=(bound, bound, 1.0), coding=coding)
        words = np.empty(schema.words, np.uint64)
        encoder.fill(words, 0)
        total += words.view(np.int64)[: schema.parameters]
    return counting.opened(of, total, bound)
