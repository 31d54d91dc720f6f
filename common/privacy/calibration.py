"""From an epsilon to the noise that gives it: bisection on the charged accountant."""

from __future__ import annotations

from typing import Final

from common.errors import ConfigError
from common.privacy.accountant import NOTHING, Rdp, add, epsilon, step_rdp, times

GRID: Final = 10_000
"""Noise multipliers are whole multiples of 1/GRID: the same text on every machine."""

_MOST: Final = 1_000_000 * GRID


def charged_epsilon(
    z: float, delta: float, steps: int, p: float = 1.0, besides: Rdp = NOTHING
) -> float:
    """Return the epsilon of `steps` steps of noise `z` and sampling `p`, and of `besides`."""
    return epsilon(add(times(step_rdp(1 / z, p), steps), besides), delta).epsilon


def noise_multiplier(
    wanted: float, delta: float, steps: int, p: float = 1.0, besides: Rdp = NOTHING
) -> float:
    """Return the least z on the grid whose charged epsilon is at most `wanted` > 0.

    `besides` is what the study charges apart from these steps.

    Raises:
        ConfigError: BAD_VALUE, no noise gives so small an epsilon at this delta.
    """

    def enough(ticks: int) -> bool:
        return charged_epsilon(ticks / GRID, delta, steps, p, besides) <= wanted

    high = GRID
    while not enough(high):
        high *= 2
        if high > _MOST:
            raise ConfigError(
                "BAD_VALUE",
                f"is {wanted:g}, which no noise gives over {steps} rounds at delta {delta:g}",
                fix="State a larger epsilon or a larger delta.",
            )
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high / GRID
