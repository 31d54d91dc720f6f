"""What privacy this hospital has spent on a data set, over all studies, for ever (9.4).

    ledger/<dataset>.jsonl      one line an entry, each chained to the one before
    ledger/<dataset>.head.sealed    how many entries there are, and the last one's hash

The first entry says whose ledger it is. A charge is written once for a header, before
anything of the round leaves, and never taken back. The line is flushed first, the sealed
head after it: a crash between leaves the file one entry ahead, which counts. A file that
is behind its head was rolled back, one that is gone was lost: then everything counts as
spent and no round is joined until the hospital restores its ledger. The one thing cut off
at opening is a last line without its end, that the head does not know: the charge was
never acknowledged, so nothing of its round has left.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from common.errors import InternalError, StateError
from common.privacy.accountant import NOTHING, ORDERS, Rdp, add
from hospital_node import files

_START: Final = "0" * 64
_KIND_OPENED, _KIND_CHARGE = "opened", "charge"


class Heads(Protocol):
    """Where the sealed heads are kept: `hospital_node.store.NodeStore`."""

    def save_sealed(self, name: str, plain: bytes) -> None:
        """Make a record durable."""
        ...

    def load_sealed(self, name: str) -> bytes | None:
        """Return a record, None if there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Charge:
    """One round's cost: `rdp` at each of the accountant's orders, and what it follows from."""

    time: int
    task: str
    session: str
    r: int
    hd: str
    mode: str
    z: float
    p: float
    delta_int: int
    sigma_loc: float
    h: int
    rdp: Rdp


class Ledger:
    """The ledger of one data set. Not thread-safe: a node's training jobs take turns."""

    def __init__(self, folder: Path, node: str, dataset: str, heads: Heads) -> None:
        self._path = folder / f"{dataset}.jsonl"
        self._name = f"{dataset}.head"
        self._node = node
        self._dataset = dataset
        self._heads = heads
        self._charges: list[Charge] = []
        self._count = 0
        self._head = _START

    @classmethod
    def open(cls, folder: Path, node: str, dataset: str, heads: Heads, begun: int | None) -> Ledger:
        """Return the ledger, made at the Unix time `begun` if this data set never had one.

        `begun` is None where one must be there: for a study that was accepted before.

        Raises:
            StateError: LEDGER_LOST, LEDGER_ROLLED_BACK, LEDGER_DAMAGED, STATE_DAMAGED (its
                head does not open), DISK. Nothing is repaired.
        """
        ledger = cls(folder, node, dataset, heads)
        known = heads.load_sealed(ledger._name)
        raw = _read(ledger._path)
        if raw is None or (known is None and b"\n" not in raw):
            if known is not None or begun is None:
                raise StateError("LEDGER_LOST", f"{ledger._path} is gone; it held charges")
            files.replace(ledger._path, b"")
            opened = {"kind": _KIND_OPENED, "node": node, "dataset": dataset, "time": begun}
            ledger._append(opened)
        else:
            ledger._read_back(raw, known)
        return ledger

    @property
    def charges(self) -> tuple[Charge, ...]:
        """Return every charge, oldest first."""
        return tuple(self._charges)

    def charged(self, hd: str) -> bool:
        """Whether the round of that header has been charged."""
        return any(charge.hd == hd for charge in self._charges)

    def spent(self, task: str | None = None) -> Rdp:
        """Return the cost of all charges, or of one task's."""
        total = NOTHING
        for charge in self._charges:
            if task is None or charge.task == task:
                total = add(total, charge.rdp)
        return total

    def append(self, charge: Charge) -> None:
        """Write a charge durably; the same header is written once only.

        Raises:
            StateError: DISK; the charge does not count and nothing of the round may leave.
        """
        if self.charged(charge.hd):
            return
        fields = {name: getattr(charge, name) for name in Charge.__slots__}
        self._append({"kind": _KIND_CHARGE, **fields, "rdp": list(charge.rdp)})
        self._charges.append(charge)

    def _append(self, body: dict[str, Any]) -> None:
        head = _hash(self._head, body)
        line = _line({**body, "prev": self._head, "sha256": head})
        size = self._path.stat().st_size
        with files.disk_errors(self._path):
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                files.write_all(handle, line)
                os.fsync(handle)
            except BaseException:
                os.ftruncate(handle, size)
                raise
            finally:
                os.close(handle)
        self._count += 1
        self._head = head
        self._save_head()

    def _save_head(self) -> None:
        self._heads.save_sealed(self._name, f"{self._count} {self._head}".encode())

    # --- reading back ---------------------------------------------------------------------

    def _read_back(self, raw: bytes, known: bytes | None) -> None:
        whole, _, torn = raw.rpartition(b"\n")
        heads = [_START]
        for number, line in enumerate(whole.split(b"\n"), 1):
            heads.append(self._take(number, line, heads[-1]))
        self._count, self._head = len(heads) - 1, heads[-1]
        self._check_head(heads, known)
        if torn:
            with files.disk_errors(self._path):
                os.truncate(self._path, len(whole) + 1)
        self._save_head()

    def _take(self, number: int, line: bytes, before: str) -> str:
        """Check one line against the chain, keep its charge, and return its hash."""
        try:
            body = json.loads(line)
            prev, head = body.pop("prev"), body.pop("sha256")
            good = prev == before and head == _hash(before, body)
            good &= line == _line({**body, "prev": prev, "sha256": head}).rstrip(b"\n")
            good &= (number == 1) == (body["kind"] == _KIND_OPENED)
            if good and number == 1:
                good = (body["node"], body["dataset"]) == (self._node, self._dataset)
            elif good:
                self._charges.append(_charge(body))
        except (ValueError, KeyError, TypeError, AttributeError):
            good, head = False, ""
        if not good:
            raise StateError(
                "LEDGER_DAMAGED",
                f"{self._path}, line {number}: is not what this hospital wrote there",
            )
        return str(head)

    def _check_head(self, heads: list[str], known: bytes | None) -> None:
        if known is None:
            if self._count > 1:
                raise StateError("LEDGER_DAMAGED", f"{self._path} has charges but no sealed head")
            return
        text, _, head = known.decode().partition(" ")
        count = int(text)
        if count >= len(heads):
            raise StateError(
                "LEDGER_ROLLED_BACK",
                f"{self._path} has {self._count} entries; this hospital wrote at least {count}",
            )
        if heads[count] != head:
            raise StateError(
                "LEDGER_DAMAGED", f"{self._path}, line {count}: is not the one that was sealed"
            )


def read_charges(folder: Path, node: str, dataset: str) -> tuple[Charge, ...]:
    """Return a ledger's charges for a forecast, beside a node that serves: nothing is written.

    The sealed head is not looked at, and a last line that is still being written is left out;
    whether a round may be charged only the node itself says.

    Raises:
        StateError: LEDGER_DAMAGED, DISK.
    """
    ledger = Ledger(folder, node, dataset, _Unsealed())
    raw = _read(ledger._path)  # noqa: SLF001 - of this very module
    whole = (raw or b"").rpartition(b"\n")[0]
    head = _START
    for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
        head = ledger._take(number, line, head)  # noqa: SLF001
    return ledger.charges


class _Unsealed:
    """Heads of a ledger that is only read."""

    def save_sealed(self, name: str, plain: bytes) -> None:
        """See `Heads`."""
        raise InternalError(f"a ledger that is only read wrote {name}, {len(plain)} bytes")

    def load_sealed(self, name: str) -> bytes | None:
        """See `Heads`."""
        raise InternalError(f"a ledger that is only read asked for {name}")


def _charge(body: dict[str, Any]) -> Charge:
    fields = {name: body[name] for name in Charge.__slots__}
    rdp = tuple(float(cost) for cost in fields["rdp"])
    if len(rdp) != len(ORDERS) or not all(cost >= 0 for cost in rdp):
        raise ValueError("a cost is missing or negative")
    return Charge(**{**fields, "rdp": rdp})


def _hash(before: str, body: dict[str, Any]) -> str:
    return hashlib.sha256(before.encode() + _line(body)).hexdigest()


def _line(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii") + b"\n"


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise StateError("DISK", f"{path}: {failure.strerror}") from failure
