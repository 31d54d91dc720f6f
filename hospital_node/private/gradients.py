"""Every patient's gradient in one batched pass, in closed form for fully connected layers.

A linear layer's gradient for one row is the outer product of the signal that came in and
the gradient by what went out (Goodfellow 2015), so one backward pass gives all rows'. No
loop over rows. A patient's loss is the mean over the patient's rows: a patient with many
rows does not reach the clip sooner than one with few.

The guarantee wants more than the right value: a patient's gradient is the same bits
whoever else takes part (`hospital_node.models.rows`), or one patient more would also move
the roundings of the others.
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
from common.vectors import ParameterSchema
from hospital_node.models import Perceptron
from hospital_node.models.rows import TILE_ROWS, backward, filled, forward, tiles
from hospital_node.train import make_deterministic

PASS_ROWS: Final = 1 << 14
"""About as many rows pass through the model before their patients' gradients are made."""

BLOCK_VALUES: Final = 1 << 20
"""Most gradient values made at a time: 4 MiB."""


def patient_gradients(
    study: Study,
    module: Perceptron,
    features: NDArray[np.float32],
    target: NDArray[np.float32],
    groups: NDArray[np.int64],
) -> Iterator[NDArray[np.float32]]:
    """Yield the gradients of patients, float32 [some, parameters], in the order of groups.

    Each array is gone when the next is asked for: they share one buffer.
    `groups` [rows] numbers each row's patient from 0 without a gap; `features` [rows,
    columns] and `target` [rows] are as `Encoded` has them.
    """
    make_deterministic()
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups))
    first = 0
    while first < ends.size:
        start = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, start + PASS_ROWS, side="right")))
        rows = order[start : ends[last - 1]]
        yield from _pass(study, module, features[rows], target[rows], groups[rows] - first)
        first = last


def _pass(
    study: Study,
    module: Perceptron,
    features: NDArray[np.float32],
    target: NDArray[np.float32],
    groups: NDArray[np.int64],
) -> Iterator[NDArray[np.float32]]:
    """Yield the gradients of the patients of these rows, which stand in the patients' order."""
    sizes = np.bincount(groups)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    layers = _signals(study, module, features, target, torch.from_numpy(1.0 / sizes[groups]))
    alone = sizes.size == groups.size  # each row is a patient's only one
    schema = layout(study)
    step = min(sizes.size, max(1, BLOCK_VALUES // schema.parameters))
    # Numpy's: torch fills what is empty too, where it has to be deterministic.
    buffer = np.empty((step, schema.parameters), np.float32)
    whole = _places(schema, torch.from_numpy(buffer))
    for first in range(0, sizes.size, step):
        last = min(first + step, sizes.size)
        rows = slice(int(starts[first]), int(starts[last]))
        out = buffer[: last - first]
        places = [(weight[: len(out)], bias[: len(out)]) for weight, bias in whole]
        if alone:
            for (weight, bias), (came_in, signal) in zip(places, layers, strict=True):
                torch.mul(signal[rows].unsqueeze(2), came_in[rows].unsqueeze(1), out=weight)
                bias.copy_(signal[rows])
        else:
            out[:] = 0.0
            _add(places, layers, rows, torch.from_numpy(groups - first))
        yield out


def _add(
    places: list[tuple[Tensor, Tensor]],
    layers: list[tuple[Tensor, Tensor]],
    rows: slice,
    patient: Tensor,
) -> None:
    """Add the rows' gradients to their patients', one row after the other."""
    for start in range(rows.start, rows.stop, TILE_ROWS):
        some = slice(start, min(start + TILE_ROWS, rows.stop))
        for (weight, bias), (came_in, signal) in zip(places, layers, strict=True):
            outer = signal[some].unsqueeze(2) * came_in[some].unsqueeze(1)
            weight.index_add_(0, patient[some], outer)
            bias.index_add_(0, patient[some], signal[some])


def _places(schema: ParameterSchema, vectors: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return each layer's weights [patients, out, in] and biases as views of the vectors."""
    found = {
        tensor.name: vectors[:, segment.start : segment.stop].view(-1, *tensor.shape)
        for tensor, segment in zip(schema.tensors, schema.segments(), strict=True)
    }
    count = len(found) // 2
    return [(found[f"layers.{k}.weight"], found[f"layers.{k}.bias"]) for k in range(count)]


def _signals(
    study: Study,
    module: Perceptron,
    features: NDArray[np.float32],
    target: NDArray[np.float32],
    share: Tensor,
) -> list[tuple[Tensor, Tensor]]:
    """Return for each layer what came in, [rows, in], and what each row sends back, [rows, out].

    That is the gradient of the row's loss by what went out, times the row's `share` [rows].
    """
    came_in: list[list[Tensor]] = [[] for _ in module.layers]
    signals: list[list[Tensor]] = [[] for _ in module.layers]
    for rows in tiles(len(target)):
        count = rows.stop - rows.start
        inputs, outputs = forward(module, filled(torch.from_numpy(features[rows])))
        wanted = filled(torch.from_numpy(target[rows]))
        last = outputs[-1].requires_grad_()
        (by_last,) = torch.autograd.grad(_row_losses(study, last, wanted.double()).sum(), last)
        for k, signal in enumerate(backward(module, outputs, by_last)):
            came_in[k].append(inputs[k][:count].float())
            signals[k].append((signal[:count] * share[rows].unsqueeze(1)).float())
    return [(torch.cat(a), torch.cat(b)) for a, b in zip(came_in, signals, strict=True)]


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
