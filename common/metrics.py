"""What a prediction is worth: AUROC, accuracy, Brier score, log-loss, in plain numpy.

Every function takes probabilities and labels of the same length and is defined for
each input a hospital can have: no rows, one class only, ties. Where a figure has no
value (the AUROC of one class) the answer is `None`, never NaN.

A pooled AUROC needs every hospital's scores, which must not leave. Its stand-in is a
histogram of scores per class (`common.score_counts`): counts add up under the masks, and the
two summed histograms give the AUROC up to the pairs that share a bin, which count one half.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

THRESHOLD: Final = 0.5
"""A probability above this says yes."""

PROBABILITY_FLOOR: Final = 1e-7
"""Log-loss sees probabilities within [1e-7, 1 - 1e-7]: a row costs at most 16.2."""


def auroc(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> float | None:
    """Return the area under the ROC curve: P(score of a sick > score of a healthy row).

    Ties count one half (Mann-Whitney, mid-ranks). `labels` are 0 or 1; the scores may
    be on any increasing scale. `None` if either class is absent.
    """
    positive = labels > 0
    sick = int(positive.sum())
    healthy = len(labels) - sick
    if sick == 0 or healthy == 0:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # Ranks count from 1; equal scores share the mean of the ranks they occupy.
    mid_ranks = np.cumsum(counts) - (counts - 1) / 2.0
    rank_sum = float(mid_ranks[inverse][positive].sum())
    return (rank_sum - sick * (sick + 1) / 2.0) / (sick * healthy)


def auroc_from_histogram(healthy: NDArray[np.float64], sick: NDArray[np.float64]) -> float | None:
    """Return the AUROC of two score histograms with common bins, lowest score first.

    Pairs inside one bin count one half. Bins hold counts or weighted counts; values
    below zero (rounding of a dequantised sum) count as zero. `None` if a class is empty.
    """
    low, high = np.maximum(healthy, 0.0), np.maximum(sick, 0.0)
    pairs = float(low.sum()) * float(high.sum())
    if pairs == 0.0:
        return None
    below = np.cumsum(low) - low
    return float(np.dot(high, below + low / 2.0)) / pairs


def accuracy(probabilities: NDArray[np.float64], labels: NDArray[np.float64]) -> float | None:
    """Return the share of rows whose p > 0.5 agrees with the label; `None` without rows."""
    return float(np.mean((probabilities > THRESHOLD) == (labels > 0))) if len(labels) else None


def brier(probabilities: NDArray[np.float64], labels: NDArray[np.float64]) -> float | None:
    """Return the mean of (p - label)^2, in [0, 1]; `None` without rows."""
    return float(np.mean((probabilities - labels) ** 2)) if len(labels) else None


def log_loss(probabilities: NDArray[np.float64], labels: NDArray[np.float64]) -> float | None:
    """Return the mean negative log-likelihood in nats; `None` without rows."""
    if len(labels) == 0:
        return None
    p = np.clip(probabilities, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    return float(-np.mean(labels * np.log(p) + (1.0 - labels) * np.log1p(-p)))
