"""A round's training as files: what goes to the processes that train, and what comes back.

    task.json     the study, the site, the round, the device
    NAME.f32      rows, received vectors, and what the hospital keeps (`kept-NAME.f32`)
    done.json     the loss, written last, beside `delta.f32` and `own-NAME.f32`
    failed.json   instead of it: the name and words of what went wrong

Little-endian float32 values and JSON only, no file that could hold code. The folder is the
node's own (mode 0700) and goes after the round.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import CATALOGUE, DataError, FedError, Refusal, RoundError
from common.features import Encoded
from common.study import Study, canonical_json, study_from_canonical
from hospital_node.personal_state import Own
from hospital_node.strategies import LocalRound, Received

_F32: Final = np.dtype("<f4")
_DONE: Final = "done.json"
_FAILED: Final = "failed.json"
_STUDY: Final = "study.json"
_KEPT: Final = "kept-"
_OWN: Final = "own-"


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """One round's local training; see `hospital_node.strategies.local_round`."""

    study: Study
    data: Encoded
    received: Received
    kept: Own
    site: str
    round_no: int
    device: str


def write_task(folder: Path, task: TrainingTask) -> None:
    """Write what the processes need; `folder` is empty and private. Raises OSError."""
    (folder / _STUDY).write_bytes(canonical_json(task.study))
    _save(folder, "features", task.data.features)
    _save(folder, "target", task.data.target)
    _save(folder, "weights", task.received.weights)
    _save(folder, "control", task.received.control)
    for name, values in task.kept.items():
        _save(folder, _KEPT + name, values)
    rest = {
        "site": task.site,
        "round": task.round_no,
        "device": task.device,
        "columns": task.data.features.shape[1],
        "limits": [float(limit) for limit in task.received.limits],
    }
    (folder / "task.json").write_text(json.dumps(rest), "utf-8")


def read_task(folder: Path) -> TrainingTask:
    """Return what `write_task` wrote. Raises OSError, ValueError."""
    rest: dict[str, Any] = json.loads((folder / "task.json").read_text("utf-8"))
    features = _load(folder, "features").reshape(-1, rest["columns"])
    received = Received(_load(folder, "weights"), _load(folder, "control"), rest["limits"])
    return TrainingTask(
        study=study_from_canonical((folder / _STUDY).read_bytes()),
        data=Encoded(features, _load(folder, "target")),
        received=received,
        kept=_all(folder, _KEPT),
        site=rest["site"],
        round_no=rest["round"],
        device=rest["device"],
    )


def write_result(folder: Path, done: LocalRound) -> None:
    """Leave what the training found. Raises OSError."""
    _save(folder, "delta", done.delta)
    for name, values in done.own.items():
        _save(folder, _OWN + name, values)
    _put(folder / _DONE, {"loss": done.loss})


def write_failure(folder: Path, failure: FedError) -> None:
    """Leave why there is no result. Raises OSError."""
    _put(folder / _FAILED, {"name": failure.name, "detail": failure.detail})


def read_result(folder: Path) -> LocalRound | None:
    """Return what the training found; None, the processes left no word.

    Raises:
        DataError, Refusal: what the processes met, as if the node had trained by itself.
        RoundError: TRAINING_LOST, they met something else.
    """
    if (folder / _FAILED).exists():
        said: dict[str, str] = json.loads((folder / _FAILED).read_text("utf-8"))
        name, detail = said["name"], said["detail"]
        match CATALOGUE[name].name:
            case "DATA_EMPTY":
                raise DataError(name, detail)
            case "INPUT_NAN":
                raise Refusal(name, detail)
            case _:
                raise RoundError("TRAINING_LOST", f"a training process failed: {name}")
    if not (folder / _DONE).exists():
        return None
    loss = float(json.loads((folder / _DONE).read_text("utf-8"))["loss"])
    return LocalRound(_load(folder, "delta"), loss, _all(folder, _OWN))


def _all(folder: Path, prefix: str) -> dict[str, NDArray[np.float32]]:
    return {
        path.stem.removeprefix(prefix): _load(folder, path.stem)
        for path in sorted(folder.glob(f"{prefix}*.f32"))
    }


def _save(folder: Path, name: str, values: NDArray[np.float32]) -> None:
    (folder / f"{name}.f32").write_bytes(values.astype(_F32, copy=False).tobytes())


def _load(folder: Path, name: str) -> NDArray[np.float32]:
    return np.fromfile(folder / f"{name}.f32", _F32).astype(np.float32, copy=False)


def _put(path: Path, content: object) -> None:
    """Write a file that is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content), "utf-8")
    part.replace(path)
