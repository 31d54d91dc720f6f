"""A round's training as files: what goes to the processes that train, and what comes back.

    task.safetensors     the study; rows, received vectors, what the hospital keeps
    done.safetensors     the loss; the update, what stays
    failed.json          instead of it: what went wrong

Formats that cannot hold code. The folder is the node's own (mode 0700) and goes after the round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from common.errors import DataError, FedError, Refusal, RoundError
from common.features import Encoded
from common.study import Study, canonical_json, study_from_canonical
from hospital_node.personal_state import Own
from hospital_node.strategies import LocalRound, Received, local_round

Arrays = dict[str, NDArray[np.float32]]

_TASK: Final = "task.safetensors"
_DONE: Final = "done.safetensors"
_FAILED: Final = "failed.json"
_OWN: Final = "own/"
_SAME: Final[Mapping[str, type[FedError]]] = {"DataError": DataError, "Refusal": Refusal}
"""What the node makes of it is the same, whoever trained."""


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """One round's local training, see `hospital_node.strategies.local_round`."""

    study: Study
    data: Encoded
    received: Received
    kept: Own
    site: str

    def train(self) -> LocalRound:
        """Train in this process."""
        return local_round(self.study, self.data, self.received, self.kept, site=self.site)


def write_task(folder: Path, task: TrainingTask) -> None:
    """Write what the processes need. Raises OSError."""
    arrays = {
        "features": task.data.features,
        "target": task.data.target,
        "weights": task.received.weights,
        "control": task.received.control,
    }
    about = {
        "study": canonical_json(task.study).decode(),
        "site": task.site,
        "limits": json.dumps([float(limit) for limit in task.received.limits]),
    }
    _write(folder / _TASK, arrays | _marked(task.kept), about)


def read_task(folder: Path) -> TrainingTask:
    """Return what `write_task` wrote."""
    arrays, about = _read(folder / _TASK)
    return TrainingTask(
        study_from_canonical(about["study"].encode()),
        Encoded(arrays["features"], arrays["target"]),
        Received(arrays["weights"], arrays["control"], json.loads(about["limits"])),
        _own(arrays),
        about["site"],
    )


def write_result(folder: Path, done: LocalRound) -> None:
    """Leave what the training found."""
    arrays = {"delta": done.delta} | _marked(done.own)
    _write(folder / _DONE, arrays, {"loss": repr(done.loss)})


def write_failure(folder: Path, rank: int, failure: Exception) -> None:
    """Leave why a process has no result: of anything but the node's own errors the kind only."""
    said = {"kind": type(failure).__name__}
    if isinstance(failure, FedError):
        said |= {"name": failure.name, "detail": failure.detail}
    part = folder / f"failed-{rank}.part"
    part.write_text(json.dumps(said), "utf-8")
    part.replace(folder / _FAILED)  # whole, also if this process is ended by another's failure


def read_result(folder: Path, code: int) -> LocalRound:
    """Return what the processes found, which ended with `code`.

    Raises:
        DataError, Refusal: as if the node had trained by itself.
        RoundError: TRAINING_LOST, anything else went wrong.
    """
    if (folder / _FAILED).exists():
        said = json.loads((folder / _FAILED).read_text("utf-8"))
        if said["kind"] in _SAME:
            raise _SAME[said["kind"]](said["name"], said["detail"])
        raise RoundError("TRAINING_LOST", f"a training process failed: {said['kind']}")
    if code != 0:
        raise RoundError("TRAINING_LOST", f"a training process ended early ({code})")
    arrays, about = _read(folder / _DONE)
    return LocalRound(arrays["delta"], float(about["loss"]), _own(arrays))


def _write(path: Path, arrays: Arrays, about: dict[str, str]) -> None:
    # save_file would write a transposed array in the order in which it lies in memory.
    save_file({name: np.ascontiguousarray(one) for name, one in arrays.items()}, path, about)


def _read(path: Path) -> tuple[Arrays, dict[str, str]]:
    with safe_open(path, "numpy") as file:
        return load_file(path), file.metadata()


def _marked(own: Own) -> Arrays:
    return {_OWN + name: values for name, values in own.items()}


def _own(arrays: Arrays) -> Own:
    return {
        name.removeprefix(_OWN): values for name, values in arrays.items() if name.startswith(_OWN)
    }
