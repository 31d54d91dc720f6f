"""Predictions of a model for one hospital's rows, and what it may say about them.

`predict` turns a flat model vector and encoded rows into probabilities (or numbers);
`common.evaluation` turns those into metrics. `site_metrics` stays at the hospital unless
its policy releases it; `evaluation_contribution` is what it adds to a masked sum.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from common import evaluation
from common.errors import Refusal
from common.evaluation import Metrics
from common.features import Encoded
from common.study import Study
from hospital_node.models import build
from hospital_node.train import make_deterministic


def predict(
    study: Study, model: NDArray[np.float32], features: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return P(positive) [rows], P(level) [rows, levels] or the number [rows].

    What the model gives for a row, finite or not: `finite` asks.
    """
    make_deterministic()
    with torch.no_grad():
        outputs = build(study, model)(torch.from_numpy(features)).double()
        match study.target.type:
            case "binary":
                found = torch.sigmoid(outputs[:, 0])
            case "multiclass":
                found = torch.softmax(outputs, dim=1)
            case _:
                found = outputs[:, 0]
    predictions: NDArray[np.float64] = found.numpy()
    return predictions


def finite(predictions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return predictions whose figures are taken without noise.

    With differential privacy nobody asks: whether all are finite can hang on one patient, and
    a hospital that leaves a round tells.

    Raises:
        Refusal: INPUT_NAN, one is not finite.
    """
    if not np.isfinite(predictions).all():
        raise Refusal("INPUT_NAN", "the model predicts a value that is not finite")
    return predictions


def site_metrics(study: Study, model: NDArray[np.float32], data: Encoded) -> Metrics:
    """Return exact metrics of `model` over one hospital's rows.

    Raises:
        Refusal: INPUT_NAN, a prediction is not finite.
    """
    predictions = finite(predict(study, model, data.features))
    return evaluation.site_metrics(study, predictions, data.target.astype(np.float64))


def evaluation_contribution(
    study: Study, model: NDArray[np.float32], data: Encoded
) -> NDArray[np.float64]:
    """Return the hospital's vector of an evaluate round (`common.evaluation.layout`).

    Raises:
        Refusal: INPUT_NAN, a prediction is not finite.
    """
    predictions = finite(predict(study, model, data.features))
    return evaluation.contribution(study, predictions, data.target.astype(np.float64))
