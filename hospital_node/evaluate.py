"""Predictions of a model for one hospital's rows, and what it may say about them.

`predict` turns a flat model vector and encoded rows into probabilities (or numbers);
`common.evaluation` turns those into metrics. `site_metrics` stays at the hospital unless
its policy releases it; `evaluation_contribution` is what it adds to a masked sum.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common import evaluation
from common.errors import InternalError, Refusal
from common.evaluation import Metrics
from common.features import Encoded
from common.models import output_count
from common.study import Study
from common.survival_metrics import breslow
from hospital_node.models import Convolutional, Perceptron, build
from hospital_node.models.rows import filled, forward, tiles
from hospital_node.train import make_deterministic


def predict(
    study: Study, model: NDArray[np.float32], features: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return P(positive) [rows], P(level) [rows, levels], the number, or the log hazard [rows].

    What the model gives, finite or not: `finite` asks. A row's prediction is the same bits
    whatever rows stand beside it; of images only up to rounding, and they have no
    differential privacy, which is what needs more.
    """
    make_deterministic()
    with torch.no_grad():
        module, rows = build(study, model), torch.from_numpy(features)
        module.eval()
        none = _predicted(study, torch.zeros(0, output_count(study)))
        parts = [rows[part] for part in tiles(len(rows))]
        tops = [(_outputs(module, filled(part)), len(part)) for part in parts]
        found = [_predicted(study, top)[:count] for top, count in tops]
    predictions: NDArray[np.float64] = torch.cat([none, *found]).numpy()
    return predictions


def _outputs(module: Perceptron | Convolutional, tile: Tensor) -> Tensor:
    if isinstance(module, Convolutional):
        outputs: Tensor = module(tile)
        return outputs
    return forward(module, tile)[1][-1]


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


def _predicted(study: Study, outputs: Tensor) -> Tensor:
    wide = outputs.double()
    if study.model.kind == "poisson":
        return torch.exp(wide[:, 0])
    match study.target.type:
        case "binary":
            return torch.sigmoid(wide[:, 0])
        case "multiclass":
            return torch.softmax(wide, dim=1)
        case _:
            return wide[:, 0]


def judged(
    study: Study, model: NDArray[np.float32], data: Encoded, train: Encoded | None = None
) -> NDArray[np.float64]:
    """Return what `common.evaluation` judges: predictions, as `at_horizons` completes them.

    Raises:
        Refusal: INPUT_NAN, a prediction is not finite.
    """
    return at_horizons(study, model, finite(predict(study, model, data.features)), train)


def at_horizons(
    study: Study,
    model: NDArray[np.float32],
    predictions: NDArray[np.float64],
    train: Encoded | None,
) -> NDArray[np.float64]:
    """Return predictions of a survival target as [rows, 1 + horizons], of others unchanged.

    The log hazard, then S(t | x) at each horizon by the baseline of the hospital's own
    training rows, `train` (`common.survival_metrics.breslow`); the baseline itself leaves by
    no way.

    Raises:
        Refusal: INPUT_NAN, a prediction is not finite.
        InternalError: a study has horizons, and there are no training rows.
    """
    if study.target.type != "survival":
        return predictions
    horizons = np.array(study.evaluate.horizons, np.float64)
    if not len(horizons):
        return predictions[:, None]
    if train is None:
        raise InternalError("survival at a horizon needs the hospital's training rows")
    risk, seen = finite(predict(study, model, train.features)), train.target.astype(np.float64)
    hazard = breslow(seen[:, 0], seen[:, 1], risk, horizons)
    survival = np.exp(-np.exp(predictions)[:, None] * hazard)
    return finite(np.column_stack([predictions, survival]))


def site_metrics(
    study: Study, model: NDArray[np.float32], data: Encoded, train: Encoded | None = None
) -> Metrics:
    """Return exact metrics of `model` over one hospital's rows; `train` as in `at_horizons`.

    Raises:
        Refusal: INPUT_NAN, a prediction is not finite.
    """
    predictions = judged(study, model, data, train)
    return evaluation.site_metrics(study, predictions, data.target.astype(np.float64))


def evaluation_contribution(
    study: Study,
    model: NDArray[np.float32],
    data: Encoded,
    members: NDArray[np.bool_] | None = None,
    *,
    levels: int,
    train: Encoded | None = None,
) -> NDArray[np.float64]:
    """Return the hospital's vector of an evaluate round (`common.evaluation.layout`).

    `members` bool [cells, rows] says who is in which subgroup of the study; `levels` is B;
    `train` as in `at_horizons`.

    Raises:
        Refusal: INPUT_NAN, a prediction is not finite, or sums are too large.
    """
    predictions = judged(study, model, data, train)
    target = data.target.astype(np.float64)
    return evaluation.contribution(study, predictions, target, members, levels=levels)
