"""Averaging, with and without momentum.

FedAvg (McMahan et al. 2017, algorithm 1), with a server learning rate:

    w <- w + lr * mean

where `mean` is the weighted mean of the hospitals' updates. SCAFFOLD's server does the same
(Karimireddy et al. 2020, algorithm 1, lines 16 and 17): `lr` is the server's learning rate
for the weights, and |S|/N for the control variate.

FedAvgM (Hsu et al. 2019, section 3.2):

    v <- momentum * v + mean
    w <- w + lr * v
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Mean:
    """`lr` times the mean update."""

    lr: float = 1.0

    @property
    def first(self) -> tuple[float, ...]:
        """Nothing is kept."""
        return ()

    def step(self, mean: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.float64]:  # noqa: ARG002 - it has none
        """See `ServerRule`."""
        if self.lr != 1.0:
            mean *= self.lr
        return mean


@dataclass(frozen=True, slots=True)
class Momentum:
    """FedAvgM."""

    lr: float
    momentum: float

    @property
    def first(self) -> tuple[float, ...]:
        """V = 0."""
        return (0.0,)

    def step(self, mean: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `ServerRule`."""
        velocity = moments[:, 0]
        velocity *= self.momentum
        velocity += mean
        return np.asarray(self.lr * velocity, np.float64)
