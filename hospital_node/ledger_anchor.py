"""A second place that knows how long a ledger is, out of reach of what restores the first.

    <ledger_anchor>/<dataset>.anchor       one line a charge: count, head, tag

A state directory that is restored from an old copy as a whole holds an old ledger and the
old sealed head that fits it: nothing inside can tell. So `node.yaml` may name a folder on
another disk, or on a share that only takes appends. After each line of the ledger the node
writes there how many lines there are and the last one's hash, with a tag (HMAC-SHA256 by a
key that follows from the sealing key), and flushes it before the charge is acknowledged. The
file is only ever appended to. A ledger that is behind its anchor was rolled back.

Lines have one length. A shorter one is what a crash left of a write; one of full length whose
tag is wrong is not this hospital's, and stops the data set.
"""

from __future__ import annotations

import hmac
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from common.encoding import enc
from common.errors import StateError
from common.failpoints import failpoint
from hospital_node import files

_LINE: Final = re.compile(rb"(\d{12}) ([0-9a-f]{64}) ([0-9a-f]{64})")
_LENGTH: Final = 12 + 1 + 64 + 1 + 64
_PURPOSE: Final = "ledger-anchor"


class Tagger(Protocol):
    """Who makes tags: `hospital_node.store.NodeStore`."""

    def tag(self, purpose: str, content: bytes) -> bytes:
        """Return 32 bytes that only this state directory's key makes."""
        ...


@dataclass(frozen=True, slots=True)
class Mark:
    """What an anchor last heard: `count` lines, the last one's hash `head`."""

    count: int
    head: str


class Anchor:
    """The anchor of one data set's ledger, in `folder`."""

    def __init__(self, folder: Path, node: str, dataset: str, tagger: Tagger) -> None:
        self.path = folder / f"{dataset}.anchor"
        self._node = node
        self._dataset = dataset
        self._tagger = tagger

    def load(self) -> bytes:
        """Return the file as it is, empty if there is none.

        Raises:
            StateError: LEDGER_ANCHOR, the folder is not there or cannot be read.
        """
        try:
            if not self.path.parent.is_dir():
                raise StateError(
                    "LEDGER_ANCHOR", f"{self.path.parent} is not there, or is no folder"
                )
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as failure:
            raise self._trouble(failure) from failure

    def furthest(self, raw: bytes) -> Mark | None:
        """Return the furthest mark of what `load` returned, None if there is none.

        Raises:
            StateError: LEDGER_ANCHOR, a line is not this hospital's.
        """
        best: Mark | None = None
        for number, line in enumerate(raw.split(b"\n"), 1):
            if len(line) < _LENGTH:
                continue
            mark = self._mark(line, number)
            if best is None or mark.count > best.count:
                best = mark
        return best

    def write(self, mark: Mark) -> None:
        """Append a mark, durably.

        Raises:
            StateError: LEDGER_ANCHOR; the charge is not acknowledged.
        """
        text = f"{mark.count:012} {mark.head}"
        line = f"{text} {self._tag(text.encode()).hex()}\n".encode()
        try:
            new = not self.path.exists()
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            handle = os.open(self.path, flags, files.FILE_MODE)
            try:
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":
                    line = b"\n" + line
                failpoint("node.anchor.before_write")
                files.write_all(handle, line)
                failpoint("node.anchor.before_fsync")
                os.fsync(handle)
                failpoint("node.anchor.after")
            finally:
                os.close(handle)
            if new:
                files.sync_directory(self.path.parent)
        except OSError as failure:
            raise self._trouble(failure) from failure

    def _mark(self, line: bytes, number: int) -> Mark:
        found = _LINE.fullmatch(line)
        if found is not None:
            tag = self._tag(line[: found.end(2)]).hex().encode()
            if hmac.compare_digest(tag, found[3]):
                return Mark(int(found[1]), found[2].decode())
        raise StateError(
            "LEDGER_ANCHOR",
            f"{self.path}, line {number}: is not what this hospital wrote there with its "
            "sealing key",
        )

    def _tag(self, text: bytes) -> bytes:
        return self._tagger.tag(_PURPOSE, enc(self._node, self._dataset, text))

    def _trouble(self, failure: OSError) -> StateError:
        return StateError("LEDGER_ANCHOR", f"{self.path}: {failure.strerror}")
