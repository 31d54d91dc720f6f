"""`fedcare coordinator backup` and `restore`: a copy of the state that proves itself.

    manifest.json    every other file with its size and SHA-256, and what the copy is of
    manifest.sig     the coordinator's signature over it, by its certificate's key
    chain.pem        that certificate
    coordinator.db   the embedded database, as of one moment
    objects/<hex>    the models and files of releases that the database names
    spool/<hd>/<id>  the uploads that an open round counts: restored at once, it goes on
    history.json     what hospitals told of, and which losses a person accepted, if any
    owner.json       whose the state is

A coordinator may serve meanwhile. SQLite's own backup copies the database as of one
transaction; whatever it names is copied afterwards, and if the coordinator has done away
with something by then, all of it is taken once more. Each file is hashed as it is read and held
against its name or the digest in the facts, so a backup never holds damaged bytes. Left
out are partial uploads (the hospitals send them again), models that nobody fetches any
more, and the address. A PostgreSQL database is its own tools' to copy; the rest is here.

DIR is a folder; a name that ends in `.tar` is one file in the one form of tar that
`common.ustar` reads. Either appears under its name only when all of it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from common import state_folder, ustar
from common.errors import ConfigError, StateError
from common.failpoints import failpoint
from common.identity import Identity
from common.ids import NodeId, Sha256, hospital_id, site_name
from common.manifest import Manifest
from common.state_folder import fsync_folder
from common.version import VERSION
from coordinator.config import CoordinatorConfig
from coordinator.driver import KEPT_MODELS
from coordinator.history import NAME as HISTORY
from coordinator.history import History
from coordinator.snapshot import DATABASE, copy_database, database_path, is_embedded
from coordinator.store import Store, open_beside, open_store
from coordinator.stored_runs import KnownRun, read_runs

SCHEMA: Final = "fedcare.coordinator-backup/1"
MANIFEST, SIGNATURE, CHAIN = "manifest.json", "manifest.sig", "chain.pem"
PREFIX: Final = b"fedcare/coordinator-backup/1\n"
BLOCK: Final = 1 << 20
_TRIES: Final = 5
MOST_MANIFEST: Final = 64 << 20

Tell = Callable[[str, int, int], None]
"""Hears of progress: the file, bytes done, bytes in all (0: not known)."""


@dataclass(frozen=True, slots=True)
class FileOf:
    """A file of a backup."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Made:
    """A backup that was made, or one that was verified."""

    path: Path
    manifest_sha256: str
    body: dict[str, Any]
    files: tuple[FileOf, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


class _Vanished(Exception):
    """The coordinator did away with a file since the database was copied."""


# --- making one -----------------------------------------------------------------------------


def make_backup(
    config: CoordinatorConfig, identity: Identity, target: Path, now_unix: int, tell: Tell
) -> Made:
    """Copy a coordinator's state to `target`, whether it serves or not.

    Raises:
        ConfigError: OUTPUT_EXISTS; FILE_MISSING, there is no state.
        StateError: STATE_DAMAGED, something that would be copied is damaged, by name; DISK.
    """
    state_dir = config.path(config.state_dir)
    if not (state_dir / state_folder.MARKER).is_file():
        raise ConfigError("FILE_MISSING", f"{state_dir} holds no coordinator's state")
    if os.path.lexists(target):
        raise ConfigError("OUTPUT_EXISTS", f"{target} is there already")
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(_TRIES):
        try:
            with state_folder.disk_errors(target), _writing(target) as out:
                return _fill(config, identity, out, target, now_unix, tell)
        except _Vanished:
            if attempt + 1 == _TRIES:
                break
    raise StateError(
        "STATE_DAMAGED",
        f"{state_dir}: what the database names was not there {_TRIES} times in a row",
        fix="`fedcare coordinator verify` says which files are missing.",
    )


def _fill(
    config: CoordinatorConfig,
    identity: Identity,
    out: _Writer,
    target: Path,
    now_unix: int,
    tell: Tell,
) -> Made:
    state_dir = config.path(config.state_dir)
    kind = "sqlite" if is_embedded(config) else "postgresql"
    # Before the database: one that is older than an order of a person would not be told of it.
    if (state_dir / HISTORY).exists():
        History(state_dir)
        out.put(HISTORY, state_dir / HISTORY, None)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fedcare-") as scratch:
        copy = Path(scratch) / DATABASE
        if kind == "sqlite":
            with closing(sqlite3.connect(copy)) as target_db:
                copy_database(database_path(config), target_db)
            store = open_store(f"sqlite:///{copy}", config.federation)
        else:
            store = open_beside(str(config.store), config.federation)
        try:
            roster = roster_of(config)
            runs = read_runs(store, config.federation, roster)
            needed = _needed(store, runs, state_dir)
            changes = store.changes()
        finally:
            store.close()
        total = sum(size for _, _, size in needed)
        if kind == "sqlite":
            out.put(DATABASE, copy, None)
    done = 0
    for name, digest, size in needed:
        tell(name, done, total)
        out.put(name, state_dir / name, digest)
        done += size
    out.put(state_folder.MARKER, state_dir / state_folder.MARKER, None)
    tell("", total, total)
    body = {
        "schema": SCHEMA,
        "federation": config.federation,
        "coordinator": identity.spiffe.id,
        "software": VERSION,
        "made_unix": now_unix,
        "database": kind,
        "transactions": changes,
        "runs": [_summary(run) for run in runs],
        "files": [
            {"name": file.name, "size": file.size, "sha256": file.sha256} for file in out.files
        ],
    }
    manifest = (json.dumps(body, sort_keys=True, indent=1) + "\n").encode("ascii")
    out.put_bytes(MANIFEST, manifest)
    out.put_bytes(SIGNATURE, identity.sign(PREFIX + manifest))
    out.put_bytes(CHAIN, identity.certificate_pem)
    return Made(target, hashlib.sha256(manifest).hexdigest(), body, tuple(out.files[:-3]))


def roster_of(config: CoordinatorConfig) -> tuple[NodeId, ...]:
    """Return every hospital of the coordinator's file, sorted."""
    return tuple(sorted(hospital_id(config.federation, site) for site in config.members))


def _needed(store: Store, runs: list[KnownRun], state_dir: Path) -> list[tuple[str, str, int]]:
    """Return (name, SHA-256, size) of every file that the runs go on with, each once.

    Of a run's models only the last has to be there: former ones may be gone any moment.
    """
    must: dict[str, str] = {}
    may: dict[str, str] = {}
    for run in runs:
        for address in objects_of(store, run):
            must[f"objects/{address.hex()}"] = address.hex()
        for model in run.models[-KEPT_MODELS:]:
            for address in model.addresses:
                may[f"objects/{address.hex()}"] = address.hex()
        hd = run.open_header
        for node, ydig, _ in run.spooled() if hd is not None else []:
            must[f"spool/{hd.hex() if hd else ''}/{site_name(node)}"] = ydig.hex()
    found = []
    for name, digest in sorted((may | must).items()):
        try:
            found.append((name, digest, (state_dir / name).stat().st_size))
        except FileNotFoundError:
            if name in must:
                raise _Vanished from None
    return found


def objects_of(store: Store, run: KnownRun) -> list[Sha256]:
    """Return the objects that a run cannot do without: its latest model, its release's files."""
    found = [] if run.state.model is None else list(run.state.model.addresses)
    if run.state.released is not None:
        manifest = Manifest.from_json(store.release(run.stored.run_id).manifest)
        found += [Sha256(bytes.fromhex(file.sha256)) for file in manifest.files]
    return found


def _summary(run: KnownRun) -> dict[str, object]:
    state = run.state
    return {
        "run": run.stored.run_id,
        "study": run.stored.study_id,
        "state": state.phase.value,
        "rounds": state.position,
        "epoch": None if state.session is None else state.session.terms.epoch,
    }


class _Writer:
    """Writes the files of a backup, one after the other, hashing what it reads."""

    def __init__(self, out: Path | BinaryIO) -> None:
        self._out = out
        self.files: list[FileOf] = []

    def put(self, name: str, source: Path, sha256: str | None) -> None:
        """Copy a file; its SHA-256 has to be `sha256` if that is given."""
        try:
            with source.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                self._copy(name, file, size, sha256)
        except FileNotFoundError:
            raise _Vanished from None

    def put_bytes(self, name: str, content: bytes) -> None:
        """Add a small file."""
        with tempfile.SpooledTemporaryFile(max_size=MOST_MANIFEST) as file:
            file.write(content)
            file.seek(0)
            self._copy(name, file, len(content), None)

    def _copy(self, name: str, source: Any, size: int, sha256: str | None) -> None:  # noqa: ANN401 - any file
        with self._place(name, size) as out:
            digest = hashlib.sha256()
            left = size
            while left and (block := source.read(min(BLOCK, left))):
                digest.update(block)
                failpoint("backup.before_write")
                out.write(block)
                left -= len(block)
        if left:
            raise _Vanished  # it was cut while it was read
        if sha256 is not None and digest.hexdigest() != sha256:
            raise StateError("STATE_DAMAGED", f"{name} does not have the SHA-256 {sha256}")
        self.files.append(FileOf(name, size, digest.hexdigest()))

    @contextmanager
    def _place(self, name: str, size: int) -> Iterator[BinaryIO]:
        if isinstance(self._out, Path):
            path = self._out / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
        else:
            self._out.write(ustar.header(name, size, executable=False))
            yield self._out
            self._out.write(bytes(ustar.padding(size)))


@contextmanager
def _writing(target: Path) -> Iterator[_Writer]:
    """Yield a writer beside `target`; what it wrote has that name when the block ends well."""
    partial = target.with_name(f".{target.name}.part")
    _clear(partial)
    try:
        if target.suffix == ".tar":
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as archive:
                yield _Writer(archive)
                archive.write(ustar.END)
                archive.flush()
                os.fsync(archive.fileno())
        else:
            partial.mkdir(mode=0o700)
            yield _Writer(partial)
            for folder in (*(p for p in partial.rglob("*") if p.is_dir()), partial):
                fsync_folder(folder)
        failpoint("backup.before_rename")
        partial.rename(target)
        fsync_folder(target.parent)
    except BaseException:
        _clear(partial)
        raise


def _clear(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
