"""What a hospital keeps of its own from round to round: tensors that never leave it.

    ditto              its personal model (`hospital_node.strategies.personal`)
    fedbn              its normalisation tensors
    scaffold.control   its control variate c_i (`hospital_node.strategies.scaffold`)

A round's new values are *staged* before anything of the round leaves the hospital, and
take the place of the former ones only when the round was opened with this hospital's
upload in the sum. A voided or missed round leaves everything as it was, and a node that
was killed in between finds either the former values or the staged ones, never a mix:

    own/<run>.<name>.f32              what counts
    own/<run>.<name>.<hd>.staged      what will, if the round of header digest hd counts

A file is the SHA-256 of its purpose and content, then little-endian float32 values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import StateError
from common.ids import HeaderDigest, RunId
from hospital_node import files

DITTO: Final = "ditto"
FEDBN: Final = "fedbn"
CONTROL: Final = "scaffold.control"
NAMES: Final = (DITTO, FEDBN, CONTROL)

_FORMAT: Final = "fedcare.own-tensors/1"
_DIGEST: Final = 32
_STAGED: Final = ".staged"

Own = Mapping[str, NDArray[np.float32]]
"""Flat tensors by name."""


class OwnTensors:
    """One run's own tensors in the node's folder `own/`. Blocking calls."""

    def __init__(self, folder: Path, run_id: RunId) -> None:
        self._folder = folder
        self._run = run_id

    def get(self, name: str) -> NDArray[np.float32] | None:
        """Return the tensor that counts, None if there is none yet.

        Raises:
            StateError: STATE_DAMAGED, naming the file.
        """
        return self._read(self._path(name), name)

    def _read(self, path: Path, name: str) -> NDArray[np.float32] | None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as failure:
            raise StateError("STATE_DAMAGED", f"{path}: {failure.strerror}") from failure
        values = memoryview(content)[_DIGEST:]
        if content[:_DIGEST] != self._digest(name, values):
            raise StateError("STATE_DAMAGED", f"{path} is not what this node wrote")
        return np.frombuffer(values, "<f4").astype(np.float32)

    def check(self, path: Path) -> None:
        """Read a file of this run, staged or not, whole against its checksum.

        Raises:
            StateError: STATE_DAMAGED, naming the file.
        """
        rest = path.name.removeprefix(f"{self._run}.").removesuffix(".f32")
        self._read(path, next((name for name in NAMES if f"{rest}.".startswith(f"{name}.")), ""))

    def all(self) -> Own:
        """Return every tensor that counts, by name.

        Raises:
            StateError: STATE_DAMAGED.
        """
        found = {name: self.get(name) for name in NAMES}
        return {name: values for name, values in found.items() if values is not None}

    def put(self, name: str, values: NDArray[np.float32]) -> None:
        """Make a tensor count at once, durably.

        Raises:
            StateError: DISK; what counted before still does.
        """
        files.replace(self._path(name), self._content(name, values))

    def stage(self, hd: HeaderDigest, own: Own) -> None:
        """Write durably what counts if the round of header digest `hd` does.

        Raises:
            StateError: DISK.
        """
        for name, values in own.items():
            files.replace(self._staged(name, hd), self._content(name, values))

    def settle(self, hd: HeaderDigest, *, counted: bool) -> None:
        """A round is over: what it staged counts from now on, or is forgotten; may be repeated.

        Raises:
            StateError: DISK.
        """
        left = self._staged_files()
        for name in NAMES if counted else ():
            staged = self._staged(name, hd)
            if staged in left:
                with files.disk_errors(staged):
                    staged.replace(self._path(name))
        self._forget(left)
        files.sync_directory(self._folder)  # also where it had come this far before

    def drop(self, names: Iterable[str] = NAMES) -> None:
        """Forget tensors and whatever is staged.

        Raises:
            StateError: DISK.
        """
        known = [path for path in map(self._path, names) if path.exists()]
        self._forget([*known, *self._staged_files()])
        files.sync_directory(self._folder)

    def _staged_files(self) -> list[Path]:
        return list(self._folder.glob(f"{self._run}.*{_STAGED}"))

    def _forget(self, paths: list[Path]) -> None:
        for path in paths:
            files.remove(path)

    def _path(self, name: str) -> Path:
        return self._folder / f"{self._run}.{name}.f32"

    def _staged(self, name: str, hd: HeaderDigest) -> Path:
        return self._folder / f"{self._run}.{name}.{hd.hex()}{_STAGED}"

    def _content(self, name: str, values: NDArray[np.float32]) -> bytes:
        data = values.astype("<f4", copy=False).tobytes()
        return self._digest(name, data) + data

    def _digest(self, name: str, data: bytes | memoryview) -> bytes:
        purpose = f"{_FORMAT}/{self._run}/{name}/".encode()
        digest = hashlib.sha256(purpose)
        digest.update(data)
        return digest.digest()
