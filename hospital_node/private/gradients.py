"""Every patient's gradient in one batched pass, in closed form for fully connected layers.

A linear layer's gradient for one row is the outer product of the signal that came in and
the gradient of what went out (Goodfellow 2015), so one backward pass gives all rows'. No
loop over rows. A patient's loss is the mean over the patient's rows: a patient with many
rows does not reach the clip sooner than one with few.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.models import layout
from common.study import Study
from hospital_node.models import Perceptron
from hospital_node.train import make_deterministic

BLOCK_VALUES: Final = 1 << 22
"""Most gradient values held at a time: 16 MiB."""


def patient_gradients(
    study: Study,
    module: Perceptron,
    features: NDArray[np.float32],
    target: NDArray[np.float32],
    groups: NDArray[np.int64],
) -> Iterator[NDArray[np.float32]]:
    """Yield the gradients of patients, float32 [some, parameters], in the order of groups.

    `groups` [rows] numbers each row's patient from 0 without a gap; `features` [rows,
    columns] and `target` [rows] are as `Encoded` has them.
    """
    make_deterministic()
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    per_block = max(1, BLOCK_VALUES // layout(study).parameters)
    ends = np.cumsum(sizes)
    for first in range(0, sizes.size, per_block):
        last = min(first + per_block, sizes.size)
        rows = order[(ends[first - 1] if first else 0) : ends[last - 1]]
        yield _block(
            study, module, features[rows], target[rows], groups[rows] - first, sizes[first:last]
        )


def _block(
    study: Study,
    module: Perceptron,
    features: NDArray[np.float32],
    target: NDArray[np.float32],
    groups: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return the gradients of the patients 0 .. len(sizes) - 1 of these rows."""
    inputs, outputs = _forward(module, torch.from_numpy(features))
    losses = _row_losses(study, outputs[-1], torch.from_numpy(target))
    signals = torch.autograd.grad(losses.sum(), outputs)
    share = torch.from_numpy((1.0 / sizes[groups]).astype(np.float32)).unsqueeze(1)
    grouped = None if len(sizes) == len(groups) else torch.from_numpy(groups)
    out = np.empty((len(sizes), layout(study).parameters), np.float32)
    found: dict[str, Tensor] = {}
    for place, (signal, came_in) in enumerate(zip(signals, inputs, strict=True)):
        weighted = signal * share
        weight = torch.einsum("ro,ri->roi", weighted, came_in.detach())
        found[f"layers.{place}.weight"] = _by_patient(weight, grouped, len(sizes))
        found[f"layers.{place}.bias"] = _by_patient(weighted, grouped, len(sizes))
    schema = layout(study)
    for tensor, segment in zip(schema.tensors, schema.segments(), strict=True):
        out[:, segment.start : segment.stop] = found[tensor.name].reshape(len(sizes), -1).numpy()
    return out


def _forward(module: Perceptron, features: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return each layer's input and output; the last output is the model's."""
    inputs, outputs = [], []
    signal = features
    for place, layer in enumerate(module.layers):
        signal = signal if place == 0 else torch.relu(signal)
        inputs.append(signal)
        signal = layer(signal)
        outputs.append(signal)
    return inputs, outputs


def _row_losses(study: Study, outputs: Tensor, target: Tensor) -> Tensor:
    """Return each row's loss; its mean is `hospital_node.train.loss`."""
    match study.target.type:
        case "binary":
            return nn.functional.binary_cross_entropy_with_logits(
                outputs[:, 0], target, reduction="none"
            )
        case "multiclass":
            return nn.functional.cross_entropy(outputs, target.long(), reduction="none")
        case _:
            return nn.functional.mse_loss(outputs[:, 0], target, reduction="none")


def _by_patient(values: Tensor, groups: Tensor | None, patients: int) -> Tensor:
    """Sum rows of one patient; None: each row is a patient's only one, already in order."""
    if groups is None:
        return values
    return torch.zeros((patients, *values.shape[1:])).index_add_(0, groups, values)
