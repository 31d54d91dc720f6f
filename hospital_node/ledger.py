"""What privacy this hospital has spent on a data set, over all studies, for ever (9.4).

    ledger/<dataset>.jsonl      one line an entry, each chained to the one before
    ledger/<dataset>.head.sealed    how many entries there are, and the last one's hash
    <ledger_anchor>/<dataset>.anchor    the same once more elsewhere, if the hospital wants it

The first entry says whose ledger it is. A charge is written once for a header, before
anything of the round leaves, and never taken back. The line is flushed first, then the
anchor, then the sealed head, and only then is the charge acknowledged: a crash between
leaves the file ahead of the others, which counts. A file that is behind its head or its
anchor was rolled back, one that is gone was lost: then everything counts as spent and no
round is joined until the hospital restores its ledger. The one thing cut off at opening is
a last line without its end, that neither head nor anchor knows: the charge was never
acknowledged, so nothing of its round has left.

`look` reads while a node writes, and changes nothing.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, Protocol

from common.errors import StateError
from common.failpoints import failpoint
from common.privacy.accountant import Rdp
from hospital_node import files
from hospital_node.ledger_anchor import Anchor, Mark
from hospital_node.ledger_lines import Charge, Entries, charging, opening, read_lines

__all__ = ["Charge", "Entries", "Heads", "Ledger", "ledger_path", "look", "lost"]

_FIRST: Final = 1
"""Lines of a ledger without a charge."""


class Heads(Protocol):
    """Where the sealed heads are kept: `hospital_node.store.NodeStore`."""

    def save_sealed(self, name: str, plain: bytes) -> None:
        """Make a record durable."""
        ...

    def load_sealed(self, name: str) -> bytes | None:
        """Return a record, None if there is none."""
        ...


class Ledger:
    """The ledger of one data set. Not thread-safe: `hospital_node.private.books` has a lock."""

    def __init__(
        self, folder: Path, node: str, dataset: str, heads: Heads, anchor: Anchor | None = None
    ) -> None:
        self._path = ledger_path(folder, dataset)
        self._node = node
        self._dataset = dataset
        self._heads = heads
        self._anchor = anchor
        self._entries = Entries()
        self._size = 0
        self._marked = False
        """Whether head and anchor know the last line."""
        self._broken = False
        """A line was begun and could be neither finished nor taken off again."""

    @classmethod
    def open(
        cls,
        folder: Path,
        node: str,
        dataset: str,
        heads: Heads,
        begun: int | None,
        anchor: Anchor | None = None,
    ) -> Ledger:
        """Return the ledger, made at the Unix time `begun` if this data set never had one.

        `begun` is None where one must be there: for a study that was accepted before.

        Raises:
            StateError: LEDGER_LOST, LEDGER_ROLLED_BACK, LEDGER_DAMAGED, LEDGER_ANCHOR,
                STATE_DAMAGED (its head does not open), DISK. Nothing is repaired.
        """
        ledger = cls(folder, node, dataset, heads, anchor)
        found = _verified(folder, node, dataset, heads, anchor, begun=begun is not None)
        if found is None:
            files.replace(ledger._path, b"")
            line, head = opening(node, dataset, begun or 0)
            ledger._write(line)
            ledger._entries.take(None, head)
        else:
            ledger._entries, ledger._size = found
            ledger._cut()
        ledger._mark()
        return ledger

    @property
    def charges(self) -> tuple[Charge, ...]:
        """Return every charge, oldest first."""
        return tuple(self._entries.charges)

    @property
    def entries(self) -> Entries:
        """Return what the ledger holds, for reading."""
        return self._entries

    def knows(self, hd: str) -> bool:
        """Whether the round of that header has a line, which counts, acknowledged or not."""
        return hd in self._entries.rounds

    def spent(self, task: str | None = None) -> Rdp:
        """Return the cost of all charges, or of one task's."""
        return self._entries.spent(task)

    def append(self, charge: Charge) -> None:
        """Write a charge durably; the same header is written once only.

        Raises:
            StateError: DISK, LEDGER_ANCHOR: not acknowledged, nothing of the round may leave;
                LEDGER_LOST, LEDGER_ROLLED_BACK, LEDGER_DAMAGED: the file is not as it was left.
        """
        if charge.hd not in self._entries.rounds:
            line, head = charging(charge, self._entries.head)
            self._write(line)
            self._entries.take(charge, head)
        if not self._marked:
            self._mark()

    # --- writing --------------------------------------------------------------------------

    def _write(self, line: bytes) -> None:
        """Make a line durable, or leave the file as it was."""
        if self._broken:
            raise StateError("DISK", f"{self._path}: an earlier write failed; restart the node")
        with files.disk_errors(self._path):
            handle = self._open()
            try:
                self._flush(handle, line)
            finally:
                os.close(handle)
        self._size += len(line)
        self._marked = False

    def _open(self) -> int:
        """Open the file that this object knows, at its end."""
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            raise lost(self._path) from None
        size = os.fstat(handle).st_size
        if size == self._size:
            return handle
        os.close(handle)
        name = "LEDGER_ROLLED_BACK" if size < self._size else "LEDGER_DAMAGED"
        raise StateError(
            name, f"{self._path} has {size} bytes; this hospital left it with {self._size}"
        )

    def _flush(self, handle: int, line: bytes) -> None:
        written = False
        try:
            failpoint("node.ledger.before_write")
            files.write_all(handle, line)
            written = True
            failpoint("node.ledger.before_fsync")
            os.fsync(handle)
        except BaseException:
            self._broken = True
            failpoint("node.ledger.undo")
            with contextlib.suppress(OSError):
                os.ftruncate(handle, self._size)
                os.fsync(handle)
                # A flush that works after one that failed proves nothing (F38): then the next
                # process reads what there is.
                self._broken = written
            raise
        failpoint("node.ledger.after")

    def _cut(self) -> None:
        """Take off a last line without its end; nobody was told of it."""
        with files.disk_errors(self._path):
            if self._path.stat().st_size > self._size:
                os.truncate(self._path, self._size)
                files.sync_file(self._path)

    def _mark(self) -> None:
        mark = Mark(self._entries.count, self._entries.head)
        if self._anchor is not None:
            self._anchor.write(mark)
        words = [str(mark.count), mark.head, *(["anchored"] if self._anchor else [])]
        self._heads.save_sealed(_head_name(self._dataset), " ".join(words).encode())
        self._marked = True


# --- reading ----------------------------------------------------------------------------------


def look(
    folder: Path,
    node: str,
    dataset: str,
    heads: Heads,
    anchor: Anchor | None = None,
    *,
    begun: bool = True,
) -> Entries:
    """Return what a ledger says; nothing if this data set never had one. Changes nothing.

    `begun`: whether it is right that there is none.

    Raises:
        StateError: as `Ledger.open`.
    """
    found = _verified(folder, node, dataset, heads, anchor, begun=begun)
    return Entries() if found is None else found[0]


def _verified(
    folder: Path, node: str, dataset: str, heads: Heads, anchor: Anchor | None, *, begun: bool
) -> tuple[Entries, int] | None:
    """Return the entries and the bytes of their lines; None for a ledger that is to be begun."""
    path = ledger_path(folder, dataset)
    # The marks come first: a node that writes meanwhile only makes the file longer.
    known, anchored = _sealed_mark(heads, dataset)
    stored = b"" if anchor is None else anchor.load()
    raw = _read(path)
    if raw is None or (known is None and b"\n" not in raw):
        if known is not None or not begun or stored:
            raise lost(path)
        return None
    entries, size = read_lines(raw, node, dataset, str(path))
    if anchor is not None:
        elsewhere = anchor.furthest(stored)
        if elsewhere is not None:
            _check_mark(entries, elsewhere, path, f"the anchor {anchor.path}")
        elif anchored:
            raise StateError("LEDGER_ANCHOR", f"{anchor.path} is gone; it was written before")
    if known is not None:
        _check_mark(entries, known, path, "its sealed head")
    elif entries.count > _FIRST:
        raise StateError("LEDGER_DAMAGED", f"{path} has charges but no sealed head")
    elif not begun:
        raise lost(path)
    return entries, size


def _check_mark(entries: Entries, mark: Mark, path: Path, whose: str) -> None:
    if mark.count > entries.count:
        raise StateError(
            "LEDGER_ROLLED_BACK",
            f"{path} has {entries.count} entries; {whose} knows of {mark.count}",
        )
    if entries.heads[mark.count] != mark.head:
        raise StateError(
            "LEDGER_DAMAGED", f"{path}, line {mark.count}: is not the one that {whose} knows"
        )


def _sealed_mark(heads: Heads, dataset: str) -> tuple[Mark | None, bool]:
    """Return the sealed head, and whether an anchor was written along with it."""
    plain = heads.load_sealed(_head_name(dataset))
    if plain is None:
        return None, False
    count, head, *rest = plain.decode().split(" ")
    return Mark(int(count), head), rest == ["anchored"]


def lost(path: Path) -> StateError:
    """Return the error about a ledger that is gone."""
    return StateError("LEDGER_LOST", f"{path} is gone; it held charges")


def ledger_path(folder: Path, dataset: str) -> Path:
    """Return where a data set's ledger lies in the folder of ledgers."""
    return folder / f"{dataset}.jsonl"


def _head_name(dataset: str) -> str:
    return f"{dataset}.head"


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise StateError("DISK", f"{path}: {failure.strerror}") from failure
