"""The small convolutional network as a module; tensor names are those of the layout.

A block is a 3x3 convolution (with a border of zeros, so that the size stays), normalisation,
ReLU and 2x2 max pooling. The mean of each channel goes into one linear layer.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn

from common.errors import InternalError
from common.models import image_shape, output_count
from common.study import CnnModel, Study
from hospital_node.models.perceptron import EPSILON, BatchNorm

MOST_GROUPS: Final = 8
CHUNK: Final = 256
"""Images that go through at once outside training: bounds the memory."""


class Convolutional(nn.Module):
    """Blocks of convolution, then a linear layer; reads images as flat rows of pixels."""

    def __init__(self, shape: tuple[int, int, int], model: CnnModel, outputs: int) -> None:
        super().__init__()
        self._shape = shape
        widths = (shape[0], *model.channels)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        normed = () if model.norm == "none" else model.channels
        self.norms = nn.ModuleList(_norm(model.norm, width) for width in normed)
        self.layers = nn.ModuleList([nn.Linear(widths[-1], outputs)])

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs before sigmoid or softmax, [rows, outputs]."""
        if self.training or len(features) <= CHUNK:
            return self._outputs(features)
        return torch.cat([self._outputs(part) for part in torch.split(features, CHUNK)])

    def _outputs(self, features: Tensor) -> Tensor:
        signal = features.reshape(-1, *self._shape)
        for place, conv in enumerate(self.convs):
            signal = conv(signal)
            signal = torch.relu(self.norms[place](signal) if self.norms else signal)
            signal = nn.functional.max_pool2d(signal, 2)
        top: Tensor = self.layers[0](signal.mean(dim=(2, 3)))
        return top


def group_count(channels: int) -> int:
    """Return the largest divisor of `channels` up to `MOST_GROUPS`."""
    return max(count for count in range(1, MOST_GROUPS + 1) if channels % count == 0)


def _norm(kind: str, width: int) -> nn.Module:
    if kind == "batch":
        return BatchNorm(width)
    return nn.GroupNorm(group_count(width), width, EPSILON)


def bare(study: Study) -> Convolutional:
    """Return the study's module, its tensors as torch makes them.

    Raises:
        InternalError: the study's model is no cnn.
    """
    if not isinstance(study.model, CnnModel):
        raise InternalError(f"a model of kind {study.model.kind} has no convolutions")
    return Convolutional(image_shape(study), study.model, output_count(study))
