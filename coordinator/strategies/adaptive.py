"""Adaptive optimisers at the server (Reddi et al. 2021, algorithm 2).

With D the weighted mean of the hospitals' updates, value by value:

    m <- beta1 m + (1 - beta1) D                              line 10
    v <- v + D^2                                   FedAdagrad, line 11
    v <- v - (1 - beta2) D^2 sign(v - D^2)         FedYogi,    line 12
    v <- beta2 v + (1 - beta2) D^2                 FedAdam,    line 13
    w <- w + lr m / (sqrt(v) + tau)                           line 14

from m = 0 and v = tau^2 (the algorithm asks v >= tau^2). As in the paper nothing is
corrected for the bias of the first rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Adagrad:
    """FedAdagrad: `v` is the sum of all squared means."""

    lr: float
    beta1: float
    tau: float

    @property
    def first(self) -> tuple[float, ...]:
        """M and v before the first round."""
        return 0.0, self.tau**2

    def step(self, mean: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `ServerRule`."""
        first, second = moments[:, 0], moments[:, 1]
        first *= self.beta1
        first += (1.0 - self.beta1) * mean
        self.spread(second, np.square(mean))
        return np.asarray(self.lr * first / (np.sqrt(second) + self.tau), np.float64)

    def spread(self, second: NDArray[np.float64], square: NDArray[np.float64]) -> None:
        """Change v in place; `square` is D^2."""
        second += square


@dataclass(frozen=True, slots=True)
class Adam(Adagrad):
    """FedAdam: `v` is a moving average of squared means."""

    beta2: float

    def spread(self, second: NDArray[np.float64], square: NDArray[np.float64]) -> None:
        """Change v in place."""
        second *= self.beta2
        second += (1.0 - self.beta2) * square


@dataclass(frozen=True, slots=True)
class Yogi(Adagrad):
    """FedYogi: `v` moves towards the squared mean by a share of that, whatever `v` is."""

    beta2: float

    def spread(self, second: NDArray[np.float64], square: NDArray[np.float64]) -> None:
        """Change v in place; it stays above 0, for what is taken off is less than v."""
        second -= (1.0 - self.beta2) * square * np.sign(second - square)
