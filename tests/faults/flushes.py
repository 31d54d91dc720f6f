"""Every flush of every durable write, by itself: it fails once, or the process dies before it.

    python -m tests.faults.flushes FOLDER CASE RULE   # under the library; a line of JSON a trial

Two rules, each tried at each flush of each of `CASES`, in a forked process and with the
product's own functions:

* `fail`: a flush fails once and later ones work (F38). Whoever says in the end that it is
  durable speaks the truth, or the process stops.
* `kill`: a process dies before a flush, the next one looks, and the power goes. What the next
  one saw is still there: it could have told others.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import alembic.command  # noqa: F401 - the children of this process would import it one by one
import numpy as np

from common import state_folder
from common.entropy import OsEntropy
from common.errors import StateError
from common.ids import HeaderDigest, NodeId, RunId, Sha256
from common.state_folder import Owner
from coordinator.objects import ObjectStore
from coordinator.spool import Spool
from coordinator.store import default_url, open_store
from hospital_node.contribution import write_masked
from hospital_node.personal_state import CONTROL
from hospital_node.store import NodeStore, SessionRecord
from tests.faults.lostwrites import Disk

MOST: Final = 60
"""Flushes of one case, its opening included; there are far fewer."""
_TRIES: Final = 4
_RUN: Final = RunId("run-1")
_HD: Final = HeaderDigest(bytes(32))
_DATA: Final = bytes(range(256)) * 40
_DIGEST: Final = Sha256(hashlib.sha256(_DATA).digest())


@dataclass(frozen=True)
class Case:
    """`open` gives what `write` writes to, again and again if it fails, and `see` reads."""

    open: Callable[[Path], Any]
    write: Callable[[Any], object]
    see: Callable[[Any], bytes]
    stops: bool = False
    """Whether the process ends when a write fails."""
    opening: bool = True
    """Whether the flushes of opening are tried too; those of a node are the same in all."""


class _Zeros:
    """A vector to be masked, and its mask."""

    ring_bits = 32
    words = len(_DATA) // 4

    def fill(self, out: np.ndarray, word_offset: int) -> None:
        out[:] = np.frombuffer(_DATA, "<u4")[word_offset : word_offset + out.size]

    def stream(self) -> _Zeros:
        return self

    def apply(self, out: np.ndarray, word_offset: int) -> None:
        del out, word_offset


def _node(root: Path) -> NodeStore:
    state = root / "state"
    store = NodeStore.open(state, OsEntropy())
    state_folder.mark(state, Owner("hospital", "f", "h"))
    return store


def _session(store: NodeStore) -> bytes:
    record = store.load_session("task")
    return b"" if record is None else record.state


def _stage_and_settle(store: NodeStore) -> None:
    own = store.own(_RUN)
    own.stage(_HD, {CONTROL: np.ones(7, np.float32)})
    own.settle(_HD, counted=True)


def _own(store: NodeStore) -> bytes:
    found = store.own(_RUN).get(CONTROL)
    return b"" if found is None else found.tobytes()


def _coordinator(root: Path) -> Path:
    state_folder.make(root / "state")
    return root / "state"


def _spool(root: Path) -> Spool:
    return Spool(_coordinator(root) / "spool")


def _receive(spool: Spool) -> None:
    file = spool.file(_HD, NodeId("spiffe://f/hospital/h"), len(_DATA))
    if not file.complete:
        file.append(0, _DATA)
    file.finish(_DIGEST)
    spool.sync_round(_HD)


def _received(spool: Spool) -> bytes:
    """A hospital that asks is told how much came; only a receipt is relied on."""
    file = spool.file(_HD, NodeId("spiffe://f/hospital/h"), len(_DATA))
    if not file.complete:
        return b""
    file.finish(_DIGEST)
    spool.sync_round(_HD)
    return file.path.read_bytes()


def _object(objects: ObjectStore) -> bytes:
    path = objects.path(_DIGEST)
    return path.read_bytes() if path.exists() else b""


def _vector(store: NodeStore) -> bytes:
    path = store.spool_path(_HD)
    return path.read_bytes() if path.exists() else b""


CASES: Final = {
    "session": Case(
        _node,
        lambda store: store.save_session("task", SessionRecord(_RUN, _DATA)),
        _session,
    ),
    "own tensors": Case(_node, _stage_and_settle, _own, opening=False),
    "vector": Case(
        _node,
        lambda store: write_masked(store.spool_path(_HD), _Zeros(), _Zeros()),  # type: ignore[arg-type]
        _vector,
        opening=False,
    ),
    "spool": Case(_spool, _receive, _received),
    "object": Case(
        lambda root: ObjectStore(_coordinator(root) / "objects"),
        lambda objects: objects.put(_DATA),
        _object,
    ),
    "facts": Case(
        lambda root: open_store(default_url(_coordinator(root))),
        lambda store: store.append(_RUN, 0, [_DATA]),
        lambda store: b"".join(fact.body for fact in store.facts(_RUN)),
        stops=True,
    ),
}


# --- one trial ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A flush at which something happened, and what is wrong; empty if nothing."""

    case: str
    what: str
    at: int
    path: str
    wrong: str


def _in_child(disk: Disk, work: Callable[[], bytes | None], **more: str) -> bytes | None:
    """Return what `work` gives in a forked process, which then dies as `kill -9` does."""
    out = disk.log / "answer"
    out.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            os.environ.update(disk.environment(**more))
            answer = work()
            if answer is not None:
                out.write_bytes(answer)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    return out.read_bytes() if out.exists() else None


def _write(case: Case, root: Path) -> bytes | None:
    """Write until it is acknowledged; None if the process stops."""
    try:
        place = case.open(root)
    except StateError:
        return None
    for _ in range(_TRIES):
        try:
            case.write(place)
        except StateError:
            if case.stops:
                return None
        else:
            return b"acknowledged"
    return None


def fail(case: Case, disk: Disk, at: int) -> str:
    """A flush fails once; see the module."""
    acknowledged = _in_child(disk, lambda: _write(case, disk.root), LOSTWRITES_FAIL=str(at))
    disk.power_cut()
    seen = _in_child(disk, lambda: case.see(case.open(disk.root)))
    if acknowledged and not seen:
        return "it was acknowledged, and is lost"
    return "" if seen is not None else "what was left cannot be read"


def kill(case: Case, disk: Disk, at: int) -> str:
    """A process dies before a flush; see the module."""
    _in_child(disk, lambda: _write(case, disk.root), LOSTWRITES_KILL=str(at))
    before = _in_child(disk, lambda: case.see(case.open(disk.root)))
    disk.power_cut()
    after = _in_child(disk, lambda: case.see(case.open(disk.root)))
    if before is None or after is None:
        return "what was left cannot be read"
    return "it was seen, and is lost" if before != after else ""


def _disk(folder: Path, name: str) -> Disk:
    (folder / name).mkdir()
    return Disk(folder / name, folder / f"log of {name}", Path(os.environ["LD_PRELOAD"]))


def _opening(folder: Path, case: Case) -> int:
    """Return how often opening flushes."""
    disk = _disk(folder, "opening")
    _in_child(disk, lambda: case.open(disk.root) and b"")
    return len(disk.flushed())


def every_flush(folder: Path, name: str, what: str) -> list[Trial]:
    """Try all flushes of a case in turn, until there is none of that number.

    Raises:
        AssertionError: without a fault, what was acknowledged is not there.
    """
    found: list[Trial] = []
    case = CASES[name]
    for at in range(1 if case.opening else 1 + _opening(folder, case), MOST):
        disk = _disk(folder, f"{name} {what} {at}")
        wrong = {"fail": fail, "kill": kill}[what](case, disk, at)
        hit = [path for kind, path in disk.flushed() if kind in ("failed", "killed")]
        if not hit:
            assert not wrong, f"{name} without a fault: {wrong}"
            return found
        found.append(Trial(name, what, at, hit[0].removeprefix(str(disk.root)), wrong))
    raise AssertionError(f"{name} flushes more than {MOST} times")


if __name__ == "__main__":
    exec(os.environ.get("LOSTWRITES_SPOIL", ""), {})  # noqa: S102 - a test's own lines
    for one in every_flush(Path(sys.argv[1]), sys.argv[2], sys.argv[3]):
        sys.stdout.write(json.dumps(vars(one)) + "\n")
