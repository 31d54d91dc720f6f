"""Logistic regression and multilayer perceptron as one module, and its flat vector.

Tensor names and order are those of `common.models.full_layout`; the vector that travels is
loaded into the module and read back from it in that order, never by position in torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.models import full_layout, has_bias, layer_widths, with_own
from common.study import MlpModel, Study
from common.vectors import ParameterSchema

EPSILON: Final = 1e-5
"""Added to a variance before its root, in both kinds of normalisation."""

MOMENTUM: Final = 0.1
"""How much of a batch's mean and variance goes into the running ones: the same for every
batch, so that no count of batches is part of the model."""


class BatchNorm(nn.Module):
    """Each column over the batch (Ioffe and Szegedy 2015, algorithms 1 and 2).

        y = weight * (x - mean) / sqrt(var + EPSILON) + bias

    In training mean and variance are the batch's, and the running ones move towards them
    (the variance by its unbiased estimate). Otherwise, and for a batch of a single row,
    which has no variance, they are the running ones.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, signal: Tensor) -> Tensor:
        """Return the normalised columns, [rows, width]."""
        return nn.functional.batch_norm(
            signal,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training and len(signal) > 1,
            momentum=MOMENTUM,
            eps=EPSILON,
        )


class Perceptron(nn.Module):
    """Fully connected layers, [normalisation and] ReLU between; one is logistic regression."""

    def __init__(self, widths: tuple[int, ...], *, bias: bool = True, norm: str = "none") -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in pairwise(widths))
        inner = widths[1:-1] if norm != "none" else ()
        self.norms = nn.ModuleList(
            BatchNorm(width) if norm == "batch" else nn.LayerNorm(width, EPSILON) for width in inner
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs before sigmoid or softmax, [rows, outputs]."""
        signal = features
        for place, layer in enumerate(self.layers):
            if place > 0:
                signal = torch.relu(self.norms[place - 1](signal) if self.norms else signal)
            signal = layer(signal)
        return signal


def build(study: Study, model: NDArray[np.float32]) -> Perceptron:
    """Return what `hospital_node.models.build` does, of a model without convolutions."""
    norm = study.model.norm if isinstance(study.model, MlpModel) else "none"
    module = Perceptron(layer_widths(study), bias=has_bias(study), norm=norm)
    fill(study, module, model)
    return module


def fill(study: Study, module: nn.Module, model: NDArray[np.float32]) -> None:
    """Copy a flat vector, in `layout` or `full_layout`, into the study's module."""
    schema = full_layout(study)
    load(module, schema, model if model.size == schema.parameters else with_own(study, model))


def load(module: nn.Module, schema: ParameterSchema, model: NDArray[np.float32]) -> None:
    """Copy a flat vector into the module's parameters and statistics by name."""
    views = schema.views(model)
    with torch.no_grad():
        for name, tensor in _tensors(module):
            tensor.copy_(torch.tensor(views[name]))


def flatten(module: nn.Module, schema: ParameterSchema) -> NDArray[np.float32]:
    """Return the module's parameters and statistics as a new flat vector in layout order."""
    return schema.flatten({name: value.detach().numpy() for name, value in _tensors(module)})


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())
