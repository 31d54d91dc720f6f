"""The studies of the simulation: the pattern, with and without noise."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Final

from common.privacy.calibration import charged_epsilon
from tests.faults.plan import DEADLINE_S, NONE
from tests.federation import pattern_study

_SPARE_ROUNDS: Final = 27
"""As often may a round be voided, and charged, before the study's budget ends it."""
_NOISE_MULTIPLIER: Final = 16.0
_DELTA: Final = 1e-5
_TRAIN: Final = "train: {optimiser: sgd, local_steps: 1}\n"


@cache
def study_text(size: int, dp: str, rounds: int) -> str | None:
    """Return the study of a mode of differential privacy; None: the federation's own."""
    if dp == NONE:
        return None
    terms, deadline = json.dumps(_terms(dp, rounds)), f"{DEADLINE_S:g}s"
    return pattern_study(size=size, rounds=rounds, deadline=deadline, dp=terms) + _TRAIN


def _terms(dp: str, rounds: int) -> dict[str, object]:
    charged = charged_epsilon(_NOISE_MULTIPLIER, _DELTA, rounds + _SPARE_ROUNDS)
    terms: dict[str, object] = {
        "mode": dp,
        "epsilon": math.ceil(charged * 100) / 100,
        "delta": _DELTA,
        "clip": 1.0,
        "noise_multiplier": _NOISE_MULTIPLIER,
        "spare_rounds": _SPARE_ROUNDS,
    }
    return terms | ({} if dp == "hospital" else {"batch": 4, "max_patients": 1000})
