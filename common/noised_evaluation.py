"""Pooled figures of a study with differential privacy, from one noised sum of patients.

Every test patient adds 1 to one cell of a histogram [healthy or sick, score]; one with
several rows adds a share of 1 for each. So a patient changes the sum by a vector of norm
at most 1, and the noise of section 9 on every cell is all that has to be known to bound
what the figures say of anybody (docs/protocol.md, section 9.5). Scores are binned evenly
in [0, 1] with an edge at the threshold, so that the accuracy loses nothing to the bins;
Brier score and log-loss take a bin's middle for its scores.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common import metrics
from common.errors import InternalError
from common.evaluation import Metrics
from common.secagg.dp import DpTerms
from common.vectors import ParameterSchema, TensorSpec, TensorType

BINS: Final = 16
"""Bins of the scores: each cell carries the same noise, so a total of few cells has less."""

CLIP: Final = 1.0
"""The norm of a patient's contribution, by construction."""

_CLASSES: Final = 2


def layout() -> ParameterSchema:
    """Return the layout of a noised evaluate round: the histogram alone (section 7.1)."""
    cells = TensorSpec("noised.histogram", TensorType.FLOAT64, (_CLASSES, BINS))
    return ParameterSchema((cells,), weighted=False)


def contributions(
    predictions: NDArray[np.float64], target: NDArray[np.float64], groups: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return each patient's vector, float64 [patients, 2 BINS], of norm at most 1.

    `predictions` P(positive) [rows], `target` 0 or 1 [rows]; `groups` [rows] numbers each
    row's patient from 0 without a gap. A row whose score is not finite adds nothing: a refusal
    would tell, without noise, that there is such a patient.
    """
    scored = np.isfinite(predictions)
    predictions = np.where(scored, predictions, 0.0)
    place = np.clip((predictions * BINS).astype(np.int64), 0, BINS - 1)
    # A score of exactly the threshold says no (`metrics.THRESHOLD`): it stays below the edge.
    place = np.where(predictions == metrics.THRESHOLD, BINS // 2 - 1, place)
    cell = (target > 0) * BINS + place
    out = np.zeros((int(groups.max(initial=-1)) + 1, _CLASSES * BINS))
    np.add.at(out, (groups, cell), scored / np.bincount(groups)[groups])
    return out


def pooled(opened: NDArray[np.int64], terms: DpTerms, survivors: int) -> Metrics:
    """Return the figures of the opened histogram, int64 [2 BINS], noise and all.

    `rows` counts patients; `noise_sd` is the standard deviation of the noise on each cell.

    Raises:
        InternalError: `opened` has not the layout's length.
    """
    if opened.shape != (_CLASSES * BINS,):
        raise InternalError("a noised evaluation's sum is not of the layout")
    unit = terms.delta_int / CLIP
    cells = opened.astype(np.float64).reshape(_CLASSES, BINS) / unit
    noise_sd = terms.sigma_loc * math.sqrt(survivors) / unit
    rows = float(cells.sum())
    if rows < 1:  # the noise is larger than everything under it
        return Metrics(noise_sd=noise_sd)
    found = _shares(np.maximum(cells, 0.0))
    return Metrics(
        rows=rows,
        positives=float(cells[1].sum()),
        auroc=metrics.auroc_from_histogram(cells[0], cells[1]),
        accuracy=found[0],
        brier=found[1],
        log_loss=found[2],
        noise_sd=noise_sd,
    )


def _shares(cells: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return accuracy, Brier score and log-loss of non-negative cells [2, BINS]."""
    half = BINS // 2
    middle = (np.arange(BINS) + 0.5) / BINS
    right = np.stack([1.0 - middle, middle])
    total = float(cells.sum())
    correct = float(cells[0, :half].sum() + cells[1, half:].sum())
    brier = float((cells * (1.0 - right) ** 2).sum())
    loss = float((cells * -np.log(right)).sum())
    return correct / total, brier / total, loss / total
