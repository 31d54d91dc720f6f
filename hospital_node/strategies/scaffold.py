"""SCAFFOLD at a hospital (Karimireddy et al. 2020, algorithm 1, option II).

    y_i <- x
    K times:  y_i <- y_i - lr (g_i(y_i) - c_i + c)                     line 10
    c_i+ <- c_i - c + (x - y_i) / (K lr)                               line 12, option II
    send  y_i - x,  c_i+ - c_i                                         line 13
    c_i <- c_i+                                                        line 14

`c` came with the model, `c_i` is this hospital's own and starts at zero, as `c` does. Both
differences leave as one masked vector. A difference of control variates that lies beyond
its range is clipped on the way, as every update is; c_i+ is then what was sent made of it,
so that the server's c stays the mean of all c_i. Plain gradient steps only: K lr is what a
step moves per unit of gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.features import Encoded
from common.models import is_statistic, layout
from common.study import Study
from common.vectors import ParameterSchema
from hospital_node.train import Hooks, Update, train


@dataclass(frozen=True, slots=True)
class Controlled:
    """`update` of the weights; `change` c_i+ - c_i, as it is sent; `control` c_i+, to keep."""

    update: Update
    change: NDArray[np.float32]
    control: NDArray[np.float32]


def trained_schema(study: Study) -> ParameterSchema:
    """Return the layout of a control variate by the weights' own names, without statistics."""
    tensors = layout(study).tensors
    return ParameterSchema(tuple(tensor for tensor in tensors if not is_statistic(tensor.name)))


def scaffold_round(
    study: Study,
    data: Encoded,
    model: NDArray[np.float32],
    server: NDArray[np.float32],
    own: NDArray[np.float32] | None,
    limits: Sequence[float],
    *,
    site: str,
) -> Controlled:
    """Take one round's corrected steps.

    `server` is c and `own` c_i (None: zero), float32 in `trained_schema`; `limits` the
    ranges of its tensors.

    Raises:
        DataError: DATA_EMPTY. Refusal: INPUT_NAN.
    """
    schema = trained_schema(study)
    mine = np.zeros(schema.parameters, np.float32) if own is None else own
    hooks = Hooks(gradients=_corrected(schema, server - mine))
    update = train(study, data, model, site=site, hooks=hooks)
    moved = _trained(study, update.delta).astype(np.float64)
    after = mine - server.astype(np.float64) - moved / (update.steps * study.train.lr)
    change = (after - mine).astype(np.float32)
    return Controlled(update, change, mine + _clipped(schema, change, limits))


def _corrected(
    schema: ParameterSchema, correction: NDArray[np.float32]
) -> Callable[[nn.Module], None]:
    """Return what adds `c - c_i` to every gradient."""
    terms: dict[str, Tensor] = {
        name: torch.from_numpy(values) for name, values in schema.views(correction).items()
    }

    def gradients(module: nn.Module) -> None:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if parameter.grad is not None:
                    parameter.grad += terms[name]

    return gradients


def _trained(study: Study, delta: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an update without running statistics, in `trained_schema`."""
    views = layout(study).views(delta)
    schema = trained_schema(study)
    return schema.flatten({tensor.name: views[tensor.name] for tensor in schema.tensors})


def _clipped(
    schema: ParameterSchema, change: NDArray[np.float32], limits: Sequence[float]
) -> NDArray[np.float32]:
    out = change.copy()
    for segment, limit in zip(schema.segments(), limits, strict=True):
        np.clip(out[segment.start : segment.stop], -limit, limit, out[segment.start : segment.stop])
    return out
