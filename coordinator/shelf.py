"""Ended runs, in short: a start reads the facts of those that go on, and a line for each other one.

The facts stay the only truth. A line is made of them when a start has read them whole, and it
names the last link of their chain: where the store's is another one, where the file is not what
was written, of another version or not there at all, the facts are read again. So nothing is lost
with the file `ended.json`, and it is not worth a flush.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from common.errors import StateError
from common.ids import NodeId, RunId, Sha256
from common.messages import RunEnded
from common.secagg import codec
from common.state_folder import FILE_MODE
from common.version import VERSION
from coordinator.progress import Progress, progress_of
from coordinator.run_members import owed_the_model
from coordinator.stored_runs import KnownRun

NAME: Final = "ended.json"
SCHEMA: Final = f"fedcare.coordinator-ended/1 of {VERSION}"
_DIGEST_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class Shelved:
    """An ended run as long as nobody asks for more of it."""

    progress: Progress
    owed: tuple[NodeId, ...]
    """Hospitals that have yet to be given its model."""
    reason: str
    """Why it ended so; empty if it finished."""
    models: tuple[Sha256, ...]
    """The addresses of the models that stay on disk."""
    link: bytes
    """The last one of the run's chain of facts."""

    @property
    def end(self) -> RunEnded:
        """What a hospital is told that names it."""
        return RunEnded(self.progress.run_id, self.progress.phase.value, self.reason)


def shelve(run: KnownRun, link: bytes, models: int) -> Shelved:
    """Return an ended run in short, with its last `models` models."""
    return Shelved(
        progress_of(run.state),
        tuple(sorted(owed_the_model(run.state))),
        run.state.reason,
        tuple(chain.from_iterable(model.addresses for model in run.models[-models:])),
        link,
    )


class Shelf:
    """The file `ended.json` of a state directory; without a folder nothing is kept."""

    def __init__(self, folder: Path | None = None) -> None:
        self._path = None if folder is None else folder / NAME
        self._known: dict[RunId, Shelved] = {}
        with suppress(OSError, ValueError, StateError):
            self._known = {} if self._path is None else _decoded(self._path.read_bytes())

    def current(self, links: Mapping[RunId, bytes]) -> dict[RunId, Shelved]:
        """Return the runs whose facts are still those that were read; forget the others.

        `links`: the last one of each run's chain in the store.
        """
        self._known = {run: one for run, one in self._known.items() if links.get(run) == one.link}
        return dict(self._known)

    def keep(self, runs: Collection[Shelved]) -> None:
        """Add ended runs for the next start; on a disk that takes nothing that one takes longer."""
        if self._path is None or not runs:
            return
        self._known |= {one.progress.run_id: one for one in runs}
        temporary = self._path.with_name(f".{NAME}")
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
            with os.fdopen(handle, "wb") as file:
                file.write(_encoded(self._known))
            temporary.rename(self._path)
        except OSError:
            with suppress(OSError):  # what is left of the room is for the facts
                temporary.unlink()


def _encoded(runs: Mapping[RunId, Shelved]) -> bytes:
    body = codec.encode(SCHEMA, tuple[Shelved, ...], tuple(runs.values()))
    return _digest(body) + body


def _decoded(content: bytes) -> dict[RunId, Shelved]:
    """Return what `_encoded` wrote.

    Raises:
        StateError, ValueError: it is something else.
    """
    digest, body = content[:_DIGEST_CHARS], content[_DIGEST_CHARS:]
    if digest != _digest(body):
        raise ValueError(NAME)
    runs: tuple[Shelved, ...] = codec.decode(SCHEMA, tuple[Shelved, ...], body)
    return {one.progress.run_id: one for one in runs}


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode("ascii")
