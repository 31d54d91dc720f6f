"""A personal model on disk, in the hospital's state directory.

    personal/<run>/study.json         the study, canonical
    personal/<run>/model.safetensors  constants and weights, the hospital's own among them
    personal/<run>/personal.json      the choice and why, calibration, reference ranges

`personal.json` names the digests of the other two and holds its own, so that a file that
was altered or mixed up with another run's is refused. The folder gets its name when all of
it is on the disk. Ranges are quantiles of the hospital's own training rows: they stay here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common import models
from common.errors import StateError
from common.layouts import constant_count, model_schema, split_model
from common.manifest import MODEL_FILE, STUDY_FILE
from common.model_file import CONSTANT_PREFIX, model_header
from common.preprocessing import Preprocessing
from common.study import Study, canonical_json, study_from_canonical
from common.vectors import ParameterSchema, widened
from hospital_node import files

SCHEMA: Final = "fedcare.personal/1"
CHOICE_FILE: Final = "personal.json"


@dataclass(frozen=True, slots=True)
class Personal:
    """A loaded personal model.

    `flat`: constants, then weights, float32. `record`: the file's content, without digests.
    """

    study: Study
    flat: NDArray[np.float32]
    record: Mapping[str, Any]

    @property
    def calibration(self) -> tuple[float, float]:
        """(a, b) of the calibrated logit `a + b logit`."""
        a, b = self.record["calibration"]
        return float(a), float(b)

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The 1st and 99th percentile of each number in the hospital's training rows."""
        return {name: (float(a), float(b)) for name, (a, b) in self.record["ranges"].items()}

    def model(self) -> tuple[Preprocessing, NDArray[np.float32]]:
        """Return the constants and the weights."""
        return split_model(self.study, self.flat)[0], self.flat[constant_count(self.study) :]


def save(
    folder: Path, study: Study, flat: NDArray[np.float32], record: Mapping[str, object]
) -> None:
    """Write a personal model under `folder`: all of it or nothing.

    Raises:
        StateError: DISK.
    """
    part = folder.with_name(folder.name + files.TEMPORARY)
    with files.disk_errors(part):
        shutil.rmtree(part, ignore_errors=True)
    files.make_directory(part)
    try:
        text = canonical_json(study)
        model = model_header(_schema(study)) + flat.astype("<f4").tobytes()
        body = {
            "schema": SCHEMA, **record,
            "study_sha256": _hex(text), "file_sha256": _hex(model),
        }  # fmt: skip
        sealed = {**body, "sha256": _hex(_plain(body))}
        files.replace(part / STUDY_FILE, text)
        files.replace(part / MODEL_FILE, model)
        files.replace(part / CHOICE_FILE, (json.dumps(sealed, indent=1) + "\n").encode())
        with files.disk_errors(folder):
            part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    files.sync_directory(folder.parent)


def load(folder: Path) -> Personal:
    """Read a personal model back.

    Raises:
        StateError: MODEL_INVALID, a file is missing, altered or of another model.
    """
    record = read_record(folder)
    try:
        text, model = (folder / STUDY_FILE).read_bytes(), (folder / MODEL_FILE).read_bytes()
    except OSError as failure:
        raise StateError("MODEL_INVALID", f"{folder.name}: {failure.strerror}") from failure
    if (_hex(text), _hex(model)) != (record["study_sha256"], record["file_sha256"]):
        raise StateError("MODEL_INVALID", f"{folder.name}: a file is not what {CHOICE_FILE} names")
    study = study_from_canonical(text, STUDY_FILE)
    schema = _schema(study)
    skip = len(model_header(schema))
    return Personal(study, schema.flat(model[skip:]), record)


def _schema(study: Study) -> ParameterSchema:
    """Return the file's layout: the constants, then all of the model's own tensors, float32.

    What only travels is not in it: half precision, and a control variate.
    """
    released = model_schema(study).tensors
    constants = tuple(one for one in released if one.name.startswith(CONSTANT_PREFIX))
    whole = models.full_layout(study)
    return widened(ParameterSchema((*constants, *whole.tensors), whole.metrics))


def read_record(folder: Path) -> dict[str, Any]:
    """Return a checked `personal.json`.

    Raises:
        StateError: MODEL_INVALID.
    """
    body: Any = None
    try:
        body = json.loads((folder / CHOICE_FILE).read_bytes())
        digest = body.pop("sha256")
        good = body["schema"] == SCHEMA and digest == _hex(_plain(body))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        good = False
    if not good:
        raise StateError(
            "MODEL_INVALID",
            f"{folder.name} holds no {CHOICE_FILE} of this version, or an altered one",
            fix="Remove the folder and start the node: it makes the personal model anew.",
        )
    found: dict[str, Any] = body
    return found


def _plain(body: Mapping[str, object]) -> bytes:
    return json.dumps(body, sort_keys=True, allow_nan=False).encode()


def _hex(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
