"""The whole state of a training that goes on step by step, as arrays, and back.

model/NAME            parameters and running statistics
optimiser/I/NAME      what the optimiser keeps of parameter I: Adam's moments and count
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from common.features import Encoded
from common.study import Study, Train, canonical_json
from common.version import VERSION
from hospital_node.checkpoints import Arrays

_MODEL: Final = "model/"
_OPTIMISER: Final = "optimiser/"
_ADAM: Final = frozenset({"step", "exp_avg", "exp_avg_sq"})


def snapshot(module: nn.Module, optimiser: torch.optim.Optimizer | None = None) -> Arrays:
    """Return the state; arrays share the tensors' memory, so use them before the next step."""
    found = {_MODEL + name: value.detach().numpy() for name, value in module.state_dict().items()}
    if optimiser is not None:
        for place, parameter in enumerate(module.parameters()):
            for name, value in optimiser.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    found[f"{_OPTIMISER}{place}/{name}"] = value.detach().numpy()
    return found


def fits(module: nn.Module, optimiser: torch.optim.Optimizer, arrays: Arrays) -> bool:
    """Whether `arrays` are a state of this very module, with or without its optimiser's."""
    own = {name: values for name, values in arrays.items() if name.startswith(_MODEL)}
    mine = snapshot(module)
    if own.keys() != mine.keys() or not all(_alike(own[name], mine[name]) for name in mine):
        return False
    rest = {name: values for name, values in arrays.items() if name not in own}
    adam = isinstance(optimiser, torch.optim.Adam)
    parameters = [value.detach().numpy() for value in module.parameters()] if adam else []
    moments = {
        f"{_OPTIMISER}{place}/{name}": (np.zeros((), np.float32) if name == "step" else value)
        for place, value in enumerate(parameters)
        for name in _ADAM
    }
    return not rest or (
        rest.keys() == moments.keys() and all(_alike(rest[name], moments[name]) for name in rest)
    )


def put_back(module: nn.Module, optimiser: torch.optim.Optimizer, arrays: Arrays) -> None:
    """Put a state that `fits` back in place."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            value.copy_(torch.from_numpy(arrays[_MODEL + name].copy()))
    parameters = list(module.parameters())
    for name, values in arrays.items():
        if name.startswith(_OPTIMISER):
            place, _, what = name.removeprefix(_OPTIMISER).partition("/")
            kept = optimiser.state[parameters[int(place)]]
            kept[what] = torch.from_numpy(values.copy())


def made_of(study: Study, data: Encoded, seed: int, terms: Train, how: str) -> bytes:
    """Return the digest of what a training follows from besides its header's model."""
    said = (canonical_json(study).decode(), terms.model_dump_json(), seed, how)
    digest = hashlib.sha256(repr((*said, VERSION, torch.__version__)).encode())
    for values in (data.features, data.target):
        digest.update(repr((values.shape, values.dtype.str)).encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.digest()


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype
