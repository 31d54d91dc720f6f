"""Checksums of what the store holds, so that a flipped byte is found and never acted on.

Neither SQLite nor a disk promises to notice a byte that changed. So each row carries the
SHA-256 of what was written, the facts of a run are a chain, and the run's head says how
many there are and how the chain ends:

    link_n = SHA-256(enc(label, "fact", run, n, link_(n-1), body_n, time_n))
    link_-1 = 32 zeros

A blanked fact keeps its link: the chain still holds, and its content is gone for good.

What no checksum inside the database can show is that its newest part is missing, as when
a byte flips in the write-ahead log: SQLite then takes the log to end there. Beside the
database lies a *mark* with the number of transactions it has acknowledged. It is written
after each commit and never flushed, so a crash may lose it, or leave an older one; a database
that has fewer transactions than its mark has lost some.
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Final

from common.encoding import Item, enc
from common.errors import StateError
from common.state_folder import FILE_MODE, disk_errors

LABEL: Final = "fedcare/store/1"
FIRST_LINK: Final = bytes(32)
MARK_NAME: Final = "coordinator.mark"

_MAGIC: Final = b"FCM1"
_COUNT_BYTES: Final = 8
_SIZE: Final = len(_MAGIC) + _COUNT_BYTES + 32


def row_digest(table: str, *values: Item) -> bytes:
    """Return the checksum of a row; `values` in the order of its columns."""
    return hashlib.sha256(enc(LABEL, table, *values)).digest()


def link(run_id: str, seq: int, before: bytes, body: bytes, unix: float) -> bytes:
    """Return a fact's place in the chain of its run; `unix`: when it was stored."""
    return hashlib.sha256(enc(LABEL, "fact", run_id, seq, before, body, unix)).digest()


class Mark:
    """The number of acknowledged transactions, in a file beside the database."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = 0
        self._busy = threading.Lock()

    def read(self) -> int:
        """Return the number; 0 where a power cut left no mark, or none was ever written.

        Raises:
            StateError: STATE_DAMAGED, the file is no mark.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return 0
        except OSError as failure:
            raise StateError("STATE_DAMAGED", f"{self.path}: {failure.strerror}") from failure
        if not any(content):
            return 0
        count = content[len(_MAGIC) : len(_MAGIC) + _COUNT_BYTES]
        if content != self._content(int.from_bytes(count, "big")):
            raise StateError(
                "STATE_DAMAGED",
                f"{self.path} is not what the coordinator wrote",
                fix="`fedcare coordinator verify` says whether all else is good; if so, remove"
                " this file.",
            )
        return int.from_bytes(count, "big")

    def check(self, stored: int, database: object) -> None:
        """Compare with what the database says, and take that over.

        Raises:
            StateError: STATE_DAMAGED, transactions are missing; DISK.
        """
        known = self.read()
        if stored < known:
            raise StateError(
                "STATE_DAMAGED",
                f"{database} has lost its newest part, or is an older copy: it holds {stored}"
                f" transactions, and {known} were acknowledged",
            )
        self.write(stored)

    def write(self, count: int) -> None:
        """Note that so many transactions are durable; a smaller number changes nothing.

        Raises:
            StateError: DISK.
        """
        with self._busy, disk_errors(self.path):
            if count <= self._count:
                return
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            try:
                os.pwrite(handle, self._content(count), 0)
            finally:
                os.close(handle)
            self._count = count

    @staticmethod
    def _content(count: int) -> bytes:
        head = _MAGIC + count.to_bytes(_COUNT_BYTES, "big")
        return head + hashlib.sha256(head).digest()
