"""What drove a prediction: a signed contribution of each feature, in the output's own scale.

The output is the log odds (binary), the log odds of the predicted level against an even
chance (its score; multiclass), the number, or the log hazard. Contributions are against a
patient whose every encoded value is average, and they add up:

    sum of contributions = output(patient) - output(average patient)

For a model of one layer a contribution is coefficient times standardised value. For others
it is the integrated gradient along the straight line between the two (Sundararajan et al.
2017, equation 1), by the midpoint rule; what the rule leaves over is returned, not hidden.
A category's indicators are added up to one contribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from common.features import encoded_columns
from common.study import Study
from hospital_node.models import build

POINTS: Final = 64
"""Of the midpoint rule."""

TOLERANCE: Final = 0.01
"""A row whose contributions miss more of the sum than this is done again, more finely."""

FINER: Final = 16

_CHUNK: Final = 2048


@dataclass(frozen=True, slots=True)
class Drivers:
    """`contributions` float64 [rows, features]; `residual` [rows], what they miss of the sum."""

    contributions: NDArray[np.float64]
    residual: NDArray[np.float64]


def drivers(study: Study, weights: NDArray[np.float32], features: NDArray[np.float32]) -> Drivers:
    """Return each feature's contribution to the prediction of each encoded row."""
    module = build(study, weights).double()
    module.eval()
    parts = [
        _integrated(module, torch.from_numpy(features[at : at + _CHUNK]).double())
        for at in range(0, len(features), _CHUNK)
    ]
    columns = encoded_columns(study)
    by_column = np.concatenate([part[0] for part in parts] or [np.empty((0, len(columns)))])
    residual = np.concatenate([part[1] for part in parts] or [np.empty(0)])
    found = np.zeros((len(features), len(study.features)))
    for place, column in enumerate(columns):
        found[:, column.feature] += by_column[:, place]
    return Drivers(found, residual)


def _integrated(
    module: torch.nn.Module, rows: torch.Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    with torch.no_grad():
        top = module(rows)
        chosen = top.argmax(dim=1, keepdim=True)
        rise = (top - module(torch.zeros_like(rows))).gather(1, chosen)[:, 0]
    contributions = _line(module, rows, chosen, POINTS)
    rough = (rise - contributions.sum(dim=1)).abs() > TOLERANCE
    if rough.any():
        contributions[rough] = _line(module, rows[rough], chosen[rough], FINER * POINTS)
    residual = rise - contributions.sum(dim=1)
    return contributions.numpy(), residual.numpy()


def _line(
    module: torch.nn.Module, rows: torch.Tensor, chosen: torch.Tensor, points: int
) -> torch.Tensor:
    """Return the integral of the gradient from the average patient to each row, by column."""
    total = torch.zeros_like(rows)
    for point in range(points):
        along = (rows * ((point + 0.5) / points)).requires_grad_()
        output = module(along).gather(1, chosen).sum()
        (gradient,) = torch.autograd.grad(output, along)
        total += gradient
    return rows * total / points
