"""Logistic regression and multilayer perceptron as one module, and its flat vector.

Tensor names and order are those of `common.models.layout`; the vector that travels is
loaded into the module and read back from it in that order, never by position in torch.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.models import has_bias, layer_widths, layout
from common.study import Study
from common.vectors import ParameterSchema


class Perceptron(nn.Module):
    """Fully connected layers with ReLU between; one layer is logistic regression."""

    def __init__(self, widths: tuple[int, ...], *, bias: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in pairwise(widths))

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs before sigmoid or softmax, [rows, outputs]."""
        signal = features
        for place, layer in enumerate(self.layers):
            signal = layer(signal if place == 0 else torch.relu(signal))
        return signal


def build(study: Study, model: NDArray[np.float32]) -> Perceptron:
    """Return the study's module holding the flat vector `model` (a copy of it)."""
    module = Perceptron(layer_widths(study), bias=has_bias(study))
    load(module, layout(study), model)
    return module


def load(module: nn.Module, schema: ParameterSchema, model: NDArray[np.float32]) -> None:
    """Copy a flat vector into the module's parameters by name."""
    views = schema.views(model)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.tensor(views[name]))


def flatten(module: nn.Module, schema: ParameterSchema) -> NDArray[np.float32]:
    """Return the module's parameters as a new flat vector in layout order."""
    values = {name: value.detach().numpy() for name, value in module.named_parameters()}
    return schema.flatten(values)
