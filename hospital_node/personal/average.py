"""A cautious candidate: half the hospital's own model, half of those that seem best.

A comparison on a hospital's few patients tells little: the smallest held-out loss is often
luck, and the released model has seen the patients it is judged on. So where a model has one
layer, the hospital's own model and the likeliest others are averaged instead of one being
picked:

    averaged = own / 2 + mean(B) / 2,   B = the others within one standard error of the best

with the standard error of paired differences, row by row. Averaging the coefficients of a
model of one layer averages its linear predictors, in which log-loss and squared error are
convex: for any patients at all

    L(averaged) <= L(own) / 2 + mean of L over B / 2

and less by what the two halves disagree. So it is worse than `own` only where B is worse by
more than that. Where it is worse than `own` on held-out rows, or by more than two standard
errors worse than the best candidate (a hospital whose own patients are too few for any model),
the best candidate is kept (`docs/adr/0017`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.models.catalogue import REGRESSIONS
from common.study import Study
from hospital_node.personal.fits import Weights, families

AVERAGED: Final = "averaged"
OWN: Final = "own"
NEAR_ERRORS: Final = 1.0
"""So many standard errors from the best is not told from it."""

FAR_ERRORS: Final = 2.0
"""More standard errors than these from the best is worse."""

Losses: TypeAlias = NDArray[np.float64]
"""A candidate's loss for each held-out row, in the same order for all."""


def possible(study: Study) -> bool:
    """Whether the study has the candidate: one layer, and another model beside `own`."""
    found = families(study)
    return (
        AVERAGED in study.personal.candidates
        and isinstance(study.model, REGRESSIONS)
        and OWN in found
        and len(found) > 1
    )


def near(losses: Mapping[str, Losses]) -> tuple[str, ...]:
    """Return B: the candidates but `own` that are not told from the best of all."""
    least = best(losses)
    return tuple(
        name
        for name, found in losses.items()
        if name != OWN and not worse(found, losses[least], NEAR_ERRORS)
    )


def best(losses: Mapping[str, Losses]) -> str:
    """Return the candidate of the smallest mean."""
    return min(losses, key=lambda name: float(losses[name].mean()))


def worse(found: Losses, than: Losses, errors: float) -> bool:
    """Whether a mean is the larger by more than so many standard errors of the differences."""
    apart = found - than
    spread = float(apart.std(ddof=1) / np.sqrt(apart.size)) if apart.size > 1 else 0.0
    return float(apart.mean()) > errors * spread


def preferred(averaged: Losses, losses: Mapping[str, Losses]) -> bool:
    """Whether the average is to be kept rather than the best candidate."""
    return float(averaged.mean()) <= float(losses[OWN].mean()) and not worse(
        averaged, losses[best(losses)], FAR_ERRORS
    )


def mixed(own: Weights, others: Sequence[Weights]) -> Weights:
    """Return `own / 2 + mean(others) / 2`."""
    middle = np.mean(np.asarray(others, np.float64), axis=0)
    found: Weights = (own.astype(np.float64) / 2 + middle / 2).astype(np.float32)
    return found
