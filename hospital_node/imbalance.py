"""What is done about a rare class, by a hospital's own training rows (`train.imbalance`).

* `weighted`: a row of class c weighs rows / (classes present * rows of c), on average 1.
* `resampled`: a pass draws each class that is present equally often, the rare one's rows
  several times; a pass is as long as without.
* `focal`: a row's loss is multiplied by (1 - p)^2, p the probability of its own class (Lin
  et al. 2017, gamma 2).

With one class only `weighted` and `resampled` change nothing.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GAMMA: Final = 2.0


def class_weights(target: Tensor) -> Tensor:
    """Return each row's weight, [rows], with mean 1."""
    _, places, counts = torch.unique(target, return_inverse=True, return_counts=True)
    by_class = len(target) / (len(counts) * counts.to(torch.float32))
    weights: Tensor = by_class[places]
    return weights


def focal(losses: Tensor) -> Tensor:
    """Return cross-entropies of rows, each times (1 - exp(-loss))^gamma."""
    return (-torch.expm1(-losses)) ** GAMMA * losses


def balanced_order(target: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return as many row numbers as there are rows, classes equally often but for one row.

    A class's rows come in shuffled passes, so that none comes twice before all have come.
    """
    classes = np.unique(target)
    total, drawn = len(target), []
    for place, value in enumerate(classes):
        rows = np.flatnonzero(target == value)
        count = total // len(classes) + (place < total % len(classes))
        passes = [rng.permutation(rows) for _ in range(-(-count // len(rows)))]
        drawn.append(np.concatenate(passes)[:count] if passes else rows[:0])
    order: NDArray[np.int64] = rng.permutation(np.concatenate(drawn)).astype(np.int64)
    return order
