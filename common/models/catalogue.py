"""Layouts and seeded initial values of the models a study may name.

`mlp` is a chain of fully connected layers with ReLU between, one more than `hidden` has
widths; `logistic`, `linear`, `poisson` and `cox` have one layer, and `cox` no bias. Layer
i has the tensors `layers.<i>.weight` [outputs, inputs] and `layers.<i>.bias` [outputs].
`vector` is one tensor `w` that starts at zero and learns nothing (`common.models.vector`).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import InternalError
from common.features import encoded_columns
from common.study import (
    CoxModel,
    LinearModel,
    LogisticModel,
    MlpModel,
    MulticlassTarget,
    PoissonModel,
    Study,
    VectorModel,
    config_hash,
)
from common.vectors import ParameterSchema, TensorSpec, TensorType

METRIC_WORDS: Final = ("loss", "clipped")
"""Metric words of a training round: u times the mean loss of the received model over the
hospital's training rows, and the number of update values clipped to their range."""

LOSS_LIMIT: Final = 32.0
"""Range of the `loss` word; a larger loss is reported as this."""


REGRESSIONS: Final = (LogisticModel, LinearModel, PoissonModel, CoxModel)
"""Models of one layer."""


def has_bias(study: Study) -> bool:
    """Whether layers have a bias: not in Cox regression, whose baseline takes its place."""
    return not isinstance(study.model, CoxModel)


def output_count(study: Study) -> int:
    """Return the model's outputs: one per level of a multiclass target, else one."""
    return len(study.target.levels) if isinstance(study.target, MulticlassTarget) else 1


def layer_widths(study: Study) -> tuple[int, ...]:
    """Return inputs, widths of the hidden layers, outputs.

    Raises:
        InternalError: the study's model has no layers.
    """
    hidden: tuple[int, ...] = ()
    if isinstance(study.model, MlpModel):
        hidden = study.model.hidden
    elif not isinstance(study.model, REGRESSIONS):
        raise InternalError(f"a model of kind {study.model.kind} has no layers")
    return (len(encoded_columns(study)), *hidden, output_count(study))


def layout(study: Study) -> ParameterSchema:
    """Return the layout of the study's training rounds: float32 tensors and metric words."""
    if isinstance(study.model, VectorModel):
        return ParameterSchema((TensorSpec("w", TensorType.FLOAT32, (study.model.size,)),))
    widths = layer_widths(study)
    tensors: list[TensorSpec] = []
    for place, (inputs, outputs) in enumerate(pairwise(widths)):
        tensors.append(TensorSpec(f"layers.{place}.weight", TensorType.FLOAT32, (outputs, inputs)))
        if has_bias(study):
            tensors.append(TensorSpec(f"layers.{place}.bias", TensorType.FLOAT32, (outputs,)))
    return ParameterSchema(tuple(tensors), METRIC_WORDS)


def metric_ranges(levels: int) -> tuple[float, float]:
    """Return R of the metric words for a quantiser with `levels` = B (a count has R = B)."""
    return LOSS_LIMIT, float(levels)


def initial(study: Study, seed: int | None = None) -> NDArray[np.float32]:
    """Return the first model, float32 [parameters], the same bits on every machine.

    A regression starts at zero. The weights of an mlp are Kaiming-uniform (He et al.
    2015): within +-sqrt(6 / inputs) before a ReLU, +-sqrt(3 / inputs) before the output;
    biases are zero. `seed` defaults to the study's, and where it states none to its hash.
    """
    schema = layout(study)
    model = np.zeros(schema.parameters, np.float32)
    if isinstance(study.model, (*REGRESSIONS, VectorModel)):
        return model
    # The raw stream of a bit generator is frozen; the distributions built on it are not.
    stream = np.random.PCG64(_seed(study) if seed is None else seed)
    views = schema.views(model)
    last = len(layer_widths(study)) - 2
    for place in range(last + 1):
        weight = views[f"layers.{place}.weight"]
        limit = ((3.0 if place == last else 6.0) / weight.shape[1]) ** 0.5
        raw = np.asarray(stream.random_raw(weight.size), np.uint64)
        unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
        weight[...] = ((2.0 * unit - 1.0) * limit).reshape(weight.shape)
    return model


def _seed(study: Study) -> int:
    if study.seed is not None:
        return study.seed
    return int.from_bytes(config_hash(study)[:8], "big")
