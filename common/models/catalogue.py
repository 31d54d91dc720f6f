"""Layouts and seeded initial values of the models a study may name.

`mlp` is a chain of fully connected layers with ReLU between, one more than `hidden` has
widths; `logistic`, `linear`, `poisson` and `cox` have one layer, and `cox` no bias. Layer
i has the tensors `layers.<i>.weight` [outputs, inputs] and `layers.<i>.bias` [outputs].
With `norm`, the outputs of hidden layer i are normalised before the ReLU:
`norms.<i>.weight` and `norms.<i>.bias` [outputs], and for `batch` the statistics
`norms.<i>.running_mean` and `norms.<i>.running_var`, which count as tensors. `cnn` has
`convs.<i>.weight` [channels, channels before, 3, 3], `convs.<i>.bias` and `norms.<i>.*` for
each block, then one layer. `vector` is
one tensor `w` that starts at zero and learns nothing (`common.models.vector`).

With the strategy `fedbn` each hospital keeps the `norms.*` tensors of its own: they are in
`full_layout`, which a hospital trains, and not in `layout`, which is all that travels.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import InternalError
from common.features import encoded_columns
from common.study import (
    CnnModel,
    CoxModel,
    FedBn,
    LinearModel,
    LogisticModel,
    MlpModel,
    MulticlassTarget,
    PoissonModel,
    Study,
    VectorModel,
    config_hash,
)
from common.study_images import image_of
from common.vectors import ParameterSchema, TensorSpec, TensorType

METRIC_WORDS: Final = ("loss", "clipped")
"""Metric words of a training round: u times the mean loss of the received model over the
hospital's training rows, and the number of update values clipped to their range."""

STATISTICS: Final = ("running_mean", "running_var")
"""Of batch normalisation: moving mean and variance of each column, as a hospital saw them."""

_NORM: Final = "norms."

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


def is_norm(name: str) -> bool:
    """Whether a tensor belongs to a normalisation layer."""
    return name.startswith(_NORM)


def is_statistic(name: str) -> bool:
    """Whether a tensor holds running statistics: averaged, but no gradient leads to it."""
    return is_norm(name) and name.endswith(STATISTICS)


def layout(study: Study) -> ParameterSchema:
    """Return the layout of the study's training rounds: float32 tensors and metric words."""
    whole = full_layout(study)
    if not isinstance(study.federation.strategy, FedBn):
        return whole
    shared = tuple(tensor for tensor in whole.tensors if not is_norm(tensor.name))
    return ParameterSchema(shared, whole.metrics)


def own_layout(study: Study) -> ParameterSchema:
    """Return the layout of the tensors that each hospital keeps of its own: often none."""
    if not isinstance(study.federation.strategy, FedBn):
        return ParameterSchema(())
    whole = full_layout(study)
    return ParameterSchema(tuple(tensor for tensor in whole.tensors if is_norm(tensor.name)))


def full_layout(study: Study) -> ParameterSchema:
    """Return the layout of everything the study's model has, own tensors included."""
    if isinstance(study.model, VectorModel):
        return ParameterSchema((TensorSpec("w", TensorType.FLOAT32, (study.model.size,)),))
    if isinstance(study.model, CnnModel):
        return ParameterSchema(_convolutional(study, study.model), METRIC_WORDS)
    widths = layer_widths(study)
    tensors: list[TensorSpec] = []
    for place, (inputs, outputs) in enumerate(pairwise(widths)):
        tensors.append(TensorSpec(f"layers.{place}.weight", TensorType.FLOAT32, (outputs, inputs)))
        if has_bias(study):
            tensors.append(TensorSpec(f"layers.{place}.bias", TensorType.FLOAT32, (outputs,)))
        if place < len(widths) - 2:
            tensors += _norm(study, place, outputs)
    return ParameterSchema(tuple(tensors), METRIC_WORDS)


def image_shape(study: Study) -> tuple[int, int, int]:
    """Return channels, height and width of the study's image.

    Raises:
        InternalError: the study has none.
    """
    image = image_of(study)
    if image is None or image.size is None or image.channels is None:
        raise InternalError(f"study {study.id} has no image")
    return (image.channels, *image.size)


def _convolutional(study: Study, model: CnnModel) -> tuple[TensorSpec, ...]:
    tensors: list[TensorSpec] = []
    for place, (before, after) in enumerate(pairwise((image_shape(study)[0], *model.channels))):
        shape = (after, before, 3, 3)
        tensors.append(TensorSpec(f"convs.{place}.weight", TensorType.FLOAT32, shape))
        tensors.append(TensorSpec(f"convs.{place}.bias", TensorType.FLOAT32, (after,)))
        tensors += _norm(study, place, after)
    outputs = output_count(study)
    shape_out = (outputs, model.channels[-1])
    tensors.append(TensorSpec("layers.0.weight", TensorType.FLOAT32, shape_out))
    tensors.append(TensorSpec("layers.0.bias", TensorType.FLOAT32, (outputs,)))
    return tuple(tensors)


def _norm(study: Study, place: int, width: int) -> list[TensorSpec]:
    return [
        TensorSpec(f"{_NORM}{place}.{part}", TensorType.FLOAT32, (width,))
        for part in _norm_parts(study)
    ]


def _norm_parts(study: Study) -> tuple[str, ...]:
    match study.model.norm if isinstance(study.model, MlpModel | CnnModel) else "none":
        case "batch":
            return ("weight", "bias", *STATISTICS)
        case "layer" | "group":
            return ("weight", "bias")
        case _:
            return ()


def metric_ranges(levels: int) -> tuple[float, float]:
    """Return R of the metric words for a quantiser with `levels` = B (a count has R = B)."""
    return LOSS_LIMIT, float(levels)


def initial(study: Study, seed: int | None = None) -> NDArray[np.float32]:
    """Return the first model, float32 [parameters], the same bits on every machine.

    A regression starts at zero. The weights of an mlp or cnn are Kaiming-uniform (He et al.
    2015): within +-sqrt(6 / inputs) before a ReLU, +-sqrt(3 / inputs) before the output;
    biases are zero. A normalisation layer starts as the identity: weights and variances 1.
    `seed` defaults to the study's, and where it states none to its hash.
    """
    schema = layout(study)
    model = np.zeros(schema.parameters, np.float32)
    if isinstance(study.model, (*REGRESSIONS, VectorModel)):
        return model
    # The raw stream of a bit generator is frozen; the distributions built on it are not.
    stream = np.random.PCG64(_seed(study) if seed is None else seed)
    views = schema.views(model)
    _start_norms(views)
    weights = [name for name in views if name.endswith(".weight") and not is_norm(name)]
    for name in weights:
        weight = views[name]
        inputs = weight.size // weight.shape[0]
        limit = ((3.0 if name == weights[-1] else 6.0) / inputs) ** 0.5
        raw = np.asarray(stream.random_raw(weight.size), np.uint64)
        unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
        weight[...] = ((2.0 * unit - 1.0) * limit).reshape(weight.shape)
    return model


def initial_own(study: Study) -> NDArray[np.float32]:
    """Return how a hospital's own tensors start, float32 [own_layout.parameters]."""
    schema = own_layout(study)
    own = np.zeros(schema.parameters, np.float32)
    _start_norms(schema.views(own))
    return own


def _start_norms(views: Mapping[str, NDArray[np.float32]]) -> None:
    for name, values in views.items():
        if is_norm(name) and name.endswith((".weight", ".running_var")):
            values[...] = 1.0


def with_own(
    study: Study, shared: NDArray[np.float32], own: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return the whole model, in `full_layout`, of its shared tensors and a hospital's own.

    Without `own` those are as they start. Where a study has none, `shared` is the whole.
    """
    mine = own_layout(study)
    if not mine.tensors:
        return shared
    values = mine.views(initial_own(study) if own is None else own)
    return full_layout(study).flatten({**layout(study).views(shared), **values})


def split_own(
    study: Study, full: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a whole model's shared tensors and a hospital's own, each flat in its layout."""
    shared, mine = layout(study), own_layout(study)
    if not mine.tensors:
        return full, np.zeros(0, np.float32)
    views = full_layout(study).views(full)
    return (
        shared.flatten({tensor.name: views[tensor.name] for tensor in shared.tensors}),
        mine.flatten({tensor.name: views[tensor.name] for tensor in mine.tensors}),
    )


def _seed(study: Study) -> int:
    if study.seed is not None:
        return study.seed
    return int.from_bytes(config_hash(study)[:8], "big")
