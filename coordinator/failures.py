"""What kept the coordinator from writing, on record although there was no room for it.

    failures = Failures(state_dir)
    failures.note("full", "coordinator.db: database or disk is full", now)
    recorded(state_dir)                        # oldest first, for who only reads

The file has its size from the first start on, and an entry is written in place: that takes no
room (but on file systems that copy what is written over). It holds the last `SLOTS` entries,
a line of JSON each; one that a power cut tore is no line and is passed over.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from common.errors import NoRoom, StateError
from common.state_folder import FILE_MODE, disk_errors, fsync_folder

FAILURES_NAME: Final = "failures.log"
SLOTS: Final = 64
SLOT_BYTES: Final = 512
_MOST_WORDS: Final = 220

What: TypeAlias = Literal["full", "room", "stopped"]
"""The disk is full; it has room again; the process stopped, because a write failed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One entry; `number` counts them, `unix` is in seconds."""

    number: int
    unix: float
    what: What
    detail: str


class Failures:
    """The file, for the one process that writes it; without a folder it keeps nothing."""

    def __init__(self, state_dir: Path | None = None) -> None:
        """Make the file if it is not there; without room, the first note that finds some does.

        Raises:
            StateError: DISK, for another reason.
        """
        self._path = None if state_dir is None else state_dir / FAILURES_NAME
        self._next = 0
        if state_dir is None or self._path is None:
            return
        with contextlib.suppress(NoRoom):
            _make(self._path)
        self._next = max((one.number for one in recorded(state_dir)), default=-1) + 1

    def note(self, what: What, detail: str, unix: float) -> None:
        """Put an entry on record, durably.

        If that fails too nobody is kept from anything: the log has told it as well. Blocking.
        """
        if self._path is None:
            return
        words = "".join(one if " " <= one <= "~" else "?" for one in detail[:_MOST_WORDS])
        line = json.dumps([self._next, round(unix, 3), what, words]).encode("ascii")
        with contextlib.suppress(OSError, StateError):
            _make(self._path)
            handle = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                content = line.ljust(SLOT_BYTES - 1) + b"\n"
                os.pwrite(handle, content, self._next % SLOTS * SLOT_BYTES)
                os.fdatasync(handle)
            finally:
                os.close(handle)
        self._next += 1


def recorded(state_dir: Path) -> list[Failure]:
    """Return what is on record in a state directory, oldest first."""
    try:
        content = (state_dir / FAILURES_NAME).read_bytes()
    except OSError:
        return []
    found = []
    for at in range(0, len(content), SLOT_BYTES):
        with contextlib.suppress(ValueError, TypeError):
            number, unix, what, detail = json.loads(content[at : at + SLOT_BYTES])
            found.append(Failure(int(number), float(unix), what, str(detail)))
    return sorted(found, key=lambda one: one.number)


def _make(path: Path) -> None:
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}")
    with disk_errors(path):
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
        with os.fdopen(handle, "wb") as file:
            file.write((b" " * (SLOT_BYTES - 1) + b"\n") * SLOTS)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        fsync_folder(path.parent)
