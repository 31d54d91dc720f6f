"""`fedcare coordinator verify`: what in a state directory is good, and what is not; it only reads.

Everything durable is read whole against its checksum: the database (its pages, each row,
each run's chain of facts, and that the facts fit together), the mark that says how much was
acknowledged, every object against its name, the uploads of open rounds against the facts,
and what a person accepted. A coordinator may serve meanwhile: the database is copied into
memory as of one transaction. Nothing is mended here, and nothing anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from common import state_folder
from common.errors import FedError
from common.ids import Sha256
from common.state_folder import Owner
from common.verified import Part
from coordinator.backup import objects_of, roster_of
from coordinator.checksums import MARK_NAME, Mark
from coordinator.config import CoordinatorConfig
from coordinator.history import History
from coordinator.objects import ObjectStore
from coordinator.snapshot import snapshot
from coordinator.spool import Spool
from coordinator.start_check import upload_trouble
from coordinator.store import STATE_NAMES, SqlStore
from coordinator.stored_runs import KnownRun, read_runs

_HEX: Final = 64

_RESTORE: Final = (
    "Stop the coordinator, keep this state, and restore the newest backup into an empty folder:"
    " `fedcare coordinator restore BACKUP --into FOLDER`."
)
FIXES: Final = {
    MARK_NAME: "Remove the file if all else is good: the next start writes it anew.",
    "spool": "Look after the disk, remove the file, start: the round is voided and tried again.",
}
"""What to do about a damaged part, by the first word of its name; else `_RESTORE`."""


def _bad(name: str, trouble: str) -> Part:
    return Part(name, trouble, FIXES.get(name.partition("/")[0], _RESTORE))


def verify(config: CoordinatorConfig, owner: Owner) -> list[Part]:
    """Return every part of a coordinator's state, good or not."""
    parts = _look(config, owner)
    if not any(part.trouble for part in parts):
        return parts
    # Beside a coordinator that serves, a file may be gone since the database was read.
    again = {part.name: part for part in _look(config, owner)}
    return [
        again.get(part.name) or part for part in parts if not part.trouble or part.name in again
    ]


def _look(config: CoordinatorConfig, owner: Owner) -> list[Part]:
    state_dir = config.path(config.state_dir)
    parts = [
        _part("owner.json", lambda: state_folder.check(state_dir, owner, STATE_NAMES, _nobody)),
        _part("history.json", lambda: History(state_dir)),
    ]
    runs: list[KnownRun] = []
    with _database(config, parts) as store:
        if store is not None:
            parts.append(_part("runs", lambda: runs.extend(_read(store, config))))
            parts += _files(store, runs, state_dir)
    return parts


def _nobody(_: Path) -> None:
    return None


def _part(name: str, work: Callable[[], object]) -> Part:
    try:
        work()
    except FedError as failure:
        return _bad(name, failure.detail)
    return Part(name)


def _read(store: SqlStore, config: CoordinatorConfig) -> list[KnownRun]:
    store.studies()
    store.epochs()
    return read_runs(store, config.federation, roster_of(config))


@contextmanager
def _database(config: CoordinatorConfig, parts: list[Part]) -> Iterator[SqlStore | None]:
    """Yield the database as of one moment, if it opens; note how it stands with its mark."""
    mark = Mark(config.path(config.state_dir) / MARK_NAME)
    known: list[int] = []
    parts.append(_part(MARK_NAME, lambda: known.append(mark.read())))
    try:
        opened = snapshot(config)
        store = opened.__enter__()
    except FedError as failure:
        parts.append(_bad("database", failure.detail))
        yield None
        return
    try:
        changes = store.changes()
        lost = f"it holds {changes} transactions; {known[0]} were acknowledged" if known else ""
        gone = known and changes < known[0]
        parts.append(_bad("database", lost) if gone else Part("database"))
        yield store
    finally:
        opened.__exit__(None, None, None)


def _files(store: SqlStore, runs: list[KnownRun], state_dir: Path) -> Iterator[Part]:
    """Yield the files that the runs need, and every other object."""
    needed: set[str] = set()
    spool = Spool.reading(state_dir / "spool")
    for run in runs:
        name = f"release of {run.stored.run_id}"
        if run.state.released is not None:
            yield _part(name, lambda run=run: store.release(run.stored.run_id))  # type: ignore[misc]
        try:
            needed |= {address.hex() for address in objects_of(store, run)}
        except FedError as failure:
            yield _bad(name, failure.detail)
        hd = run.open_header
        for node, ydig, size in run.spooled():
            wrong = None if hd is None else upload_trouble(spool, hd, node, ydig, size)
            name = str(spool.path(hd or b"", node).relative_to(state_dir))
            yield _bad(name, wrong[1]) if wrong else Part(name)
    folder = state_dir / "objects"
    there = {path.name for path in folder.glob("*") if len(path.name) == _HEX}
    objects = ObjectStore.reading(folder)
    for name in sorted(needed | there):
        if name not in there:
            yield _bad(f"objects/{name}", "is not there, and a run needs it")
            continue
        yield _part(f"objects/{name}", lambda name=name: objects.check(_digest(name)))  # type: ignore[misc]


def _digest(name: str) -> Sha256:
    return Sha256(bytes.fromhex(name))
