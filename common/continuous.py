"""The evaluation of a continuous target from sums over rows: error, R^2, calibration line.

With y the true number and p the predicted one, what adds up is n and the sums of (y - p)^2,
|y - p|, y, y^2, p, p^2 and y p. The calibration line is y on p by least squares: slope 1 and
intercept 0 are best (Steyerberg 2019, chapter 15).

A number may be of any size, laboratory values in mol/l or costs in cents, and its square wants
twice the digits. So each sum travels in two limbs (`common.quantise.limbs`) with range 2^60:
together they resolve 2^-44, and a sum beyond 2^60 is refused, never cut off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common import medical
from common.errors import Refusal
from common.medical import Estimate
from common.quantise import from_limbs, limbs
from common.secagg.node_state import RangeRule
from common.vectors import ParameterSchema, TensorSpec, TensorType

SUMS: Final = ("rows", "squared", "absolute", "y", "y_squared", "p", "p_squared", "y_p")
LIMIT: Final = 2.0**60
"""R of `high`: squares of a million rows of values up to a million."""

RANGES: Final[tuple[RangeRule, ...]] = (LIMIT, "free")

_CONSTANT: Final = 1e-12
"""A variance below this share of the mean square is rounding: the number does not vary."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Found:
    """Figures over rows; an estimate without value or interval where the rows give none."""

    rows: float
    mse: float
    mae: Estimate
    r2: float | None
    slope: Estimate
    intercept: Estimate


def layout(parts: int) -> ParameterSchema:
    """Return the layout of an evaluate round over everybody and `parts` cells of subgroups."""
    shape = (1 + parts, len(SUMS))
    return ParameterSchema(
        tuple(TensorSpec(name, TensorType.FLOAT64, shape) for name in ("high", "low"))
    )


def row_terms(predictions: Floats, target: Floats) -> Floats:
    """Return each row's terms of `SUMS`, float64 [rows, names]."""
    error = predictions - target
    terms = [np.ones(len(target)), error**2, np.abs(error), target, target**2]
    return np.stack([*terms, predictions, predictions**2, target * predictions], axis=1)


def contribution(sums: Floats, levels: int) -> Floats:
    """Return a hospital's vector of `sums` [1 + parts, names]; `levels` is B.

    Raises:
        Refusal: INPUT_NAN, a sum is not finite or beyond `LIMIT`.
    """
    if not np.isfinite(sums).all() or float(np.abs(sums).max()) > LIMIT:
        raise Refusal(
            "INPUT_NAN",
            "sums of squares of the target or the predictions are not finite or exceed 2^60: "
            "give the target in a larger unit",
        )
    return limbs(sums.ravel(), LIMIT, levels)


def opened(words: NDArray[np.int64], levels: int) -> Floats:
    """Return the sums over all hospitals, float64 [1 + parts, names], of opened words."""
    return from_limbs(words, LIMIT, levels).reshape(-1, len(SUMS))


def figures(sums: Floats, confidence: float) -> Found:
    """Return the figures of `sums` [names] over at least one row."""
    rows = float(sums[0])
    squared, absolute, y, y_squared, p, p_squared, y_p = (float(v) / rows for v in sums[1:])
    y_variance, p_variance = y_squared - y * y, p_squared - p * p
    r2 = 1.0 - squared / y_variance if y_variance > _CONSTANT * y_squared else None
    z = medical.quantile(confidence)
    mae = Estimate(absolute)
    if rows > 1:
        half = z * (max(0.0, squared - absolute * absolute) / (rows - 1.0)) ** 0.5
        mae = Estimate(absolute, max(0.0, absolute - half), absolute + half)
    if p_variance <= _CONSTANT * p_squared or rows <= 2:  # noqa: PLR2004 - degrees of freedom
        return Found(rows, squared, mae, r2, medical.NONE, medical.NONE)
    slope = (y_p - y * p) / p_variance
    left = max(0.0, y_variance - slope * (y_p - y * p)) / (rows - 2.0)
    at_slope = z * (left / p_variance) ** 0.5
    at_zero = z * (left * (1.0 + p * p / p_variance)) ** 0.5
    level = y - slope * p
    return Found(
        rows,
        squared,
        mae,
        r2,
        Estimate(slope, slope - at_slope, slope + at_slope),
        Estimate(level, level - at_zero, level + at_zero),
    )
