"""A backup is read: all of it is verified, and a state directory is made of it or none.

The manifest has to be signed by a coordinator of the pinned CA, whose certificate was valid
when it signed; every file has to be there with its size and SHA-256, and no other file; and
the database has to fit its own checksums (`coordinator.checksums`). Files are copied into a
folder inside the state directory and moved into their places when all is verified and
durable, `owner.json` last: what a crash leaves behind is no state that a coordinator takes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from cryptography.exceptions import InvalidSignature

from common import state_folder, ustar
from common.certificates import Role, read_leaf, to_der, verify_chain, verify_signature
from common.errors import ConfigError, FedError, IdentityError, StateError
from common.failpoints import failpoint
from common.identity import load_certificates
from common.state_folder import fsync_folder
from common.text import show
from coordinator.backup import (
    BLOCK,
    CHAIN,
    MANIFEST,
    MOST_MANIFEST,
    PREFIX,
    SCHEMA,
    SIGNATURE,
    FileOf,
    Made,
    Tell,
    roster_of,
)
from coordinator.checksums import MARK_NAME
from coordinator.config import CoordinatorConfig
from coordinator.store import default_url, open_store
from coordinator.stored_runs import read_runs

STAGING: Final = ".restoring"
"""In the state directory while a restore is under way; a coordinator does not start beside it."""


@dataclass(slots=True)
class _Reader:
    """The files of a backup, by name."""

    path: Path
    _members: dict[str, ustar.Member] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Return every file's name."""
        if self.path.is_dir():
            found = []
            for path in sorted(self.path.rglob("*")):
                if path.is_symlink() or not (path.is_dir() or path.is_file()):
                    raise self.damaged(f"{path.relative_to(self.path)} is no plain file")
                if path.is_file():
                    found.append(str(path.relative_to(self.path)))
            return found
        try:
            with self.path.open("rb") as archive:
                self._members = {one.name: one for one in ustar.members(archive, self.path.name)}
        except FileNotFoundError:
            raise ConfigError("FILE_MISSING", f"{self.path} is not there") from None
        except StateError as failure:
            raise self.damaged(failure.detail) from failure
        return list(self._members)

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        """Yield a file at its beginning, and its size."""
        if self._members:
            with self.path.open("rb") as archive:
                archive.seek(self._members[name].offset)
                yield archive, self._members[name].size
        else:
            with (self.path / name).open("rb") as file:
                yield file, os.fstat(file.fileno()).st_size

    def small(self, name: str) -> bytes:
        """Return a small file whole."""
        with self.open(name) as (file, size):
            if size > MOST_MANIFEST:
                raise self.damaged(f"{name} is too large")
            return file.read(size)

    def damaged(self, what: str) -> StateError:
        """Return what to raise about this backup."""
        return StateError(
            "STATE_DAMAGED",
            f"{self.path}: {what}",
            fix="Use another backup; nothing was restored.",
        )


def read_backup(
    path: Path, *, ca: Path, federation: str, tell: Tell, into: Path | None = None
) -> Made:
    """Verify a whole backup; with `into`, copy its files there meanwhile.

    Raises:
        ConfigError: FILE_MISSING.
        StateError: STATE_DAMAGED, it is not what a coordinator of `federation` signed,
            naming the file; STATE_FOREIGN; DISK.
    """
    reader = _Reader(path)
    names = reader.names()
    for name in (MANIFEST, SIGNATURE, CHAIN):
        if name not in names:
            raise reader.damaged(f"{name} is not there: it is no backup")
    raw = reader.small(MANIFEST)
    body = _signed_body(reader, raw, ca, federation)
    try:
        files = tuple(FileOf(f["name"], int(f["size"]), f["sha256"]) for f in body["files"])
    except (KeyError, TypeError, ValueError):
        raise reader.damaged(f"{MANIFEST} is none") from None
    listed = {file.name for file in files} | {MANIFEST, SIGNATURE, CHAIN}
    for name in sorted(listed.symmetric_difference(names)):
        state = "is not there" if name in listed else "is not of it"
        raise reader.damaged(f"{show(name)} {state}")
    total, done = sum(file.size for file in files), 0
    for file in files:
        tell(file.name, done, total)
        _take(reader, file, into)
        done += file.size
    tell("", total, total)
    return Made(path, hashlib.sha256(raw).hexdigest(), body, files)


def _signed_body(reader: _Reader, raw: bytes, ca: Path, federation: str) -> dict[str, Any]:
    try:
        body = json.loads(raw)
        schema, made = body["schema"], int(body["made_unix"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise reader.damaged(f"{MANIFEST} cannot be read") from None
    if schema != SCHEMA:
        where = f"{reader.path}: {MANIFEST}"
        raise ConfigError("SCHEMA_VERSION", f"{where}: {show(schema)}, not {SCHEMA}")
    with tempfile.NamedTemporaryFile(suffix=".pem") as pem:
        pem.write(reader.small(CHAIN))
        pem.flush()
        try:
            chain = [to_der(one) for one in load_certificates(Path(pem.name))]
            anchors = [to_der(one) for one in load_certificates(ca)]
            leaf = read_leaf(verify_chain(chain, anchors, made), federation=federation)
            verify_signature(leaf.key, reader.small(SIGNATURE), PREFIX + raw)
        except (IdentityError, InvalidSignature, ConfigError, ValueError) as error:
            why = error.detail if isinstance(error, FedError) else "the signature does not verify"
            raise reader.damaged(f"{MANIFEST} is not a coordinator's: {why}") from None
    if leaf.spiffe.role is not Role.COORDINATOR:
        raise reader.damaged(f"{MANIFEST} is signed by {leaf.spiffe}")
    return dict(body)


def _take(reader: _Reader, file: FileOf, into: Path | None) -> None:
    """Read a file whole against its checksum; copy it if `into` is given."""
    digest = hashlib.sha256()
    with reader.open(file.name) as (source, size):
        if size != file.size:
            raise reader.damaged(f"{file.name} has {size} bytes, not {file.size}")
        if into is None:
            for _ in _blocks(source, size, digest, None):
                pass
        else:
            path = into / file.name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with path.open("xb") as out:
                for _ in _blocks(source, size, digest, out):
                    pass
                out.flush()
                os.fsync(out.fileno())
    if digest.hexdigest() != file.sha256:
        raise reader.damaged(f"{file.name} does not have the SHA-256 of the manifest")


def _blocks(
    source: BinaryIO,
    size: int,
    digest: hashlib._Hash,
    out: BinaryIO | None,
) -> Iterator[int]:
    left = size
    while left and (block := source.read(min(BLOCK, left))):
        digest.update(block)
        if out is not None:
            failpoint("restore.before_write")
            out.write(block)
        left -= len(block)
        yield left


def restore(config: CoordinatorConfig, backup: Path, into: Path, tell: Tell) -> Made:
    """Make a state directory of a backup: all of it, verified, or nothing that would start.

    Raises:
        ConfigError: OUTPUT_EXISTS, `into` holds something; FILE_MISSING.
        StateError: as `read_backup`; also for a database that does not verify.
    """
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise ConfigError(
            "OUTPUT_EXISTS",
            f"{into} is not empty",
            fix="Move the old state away (keep it), and name an empty folder.",
        )
    state_folder.make(into)
    staging = into / STAGING
    with state_folder.disk_errors(into):
        staging.mkdir(mode=0o700)
        try:
            ca = config.path(config.tls.ca)
            made = read_backup(backup, ca=ca, federation=config.federation, tell=tell, into=staging)
            if made.body["database"] == "sqlite":
                _check_database(staging, config)
        except BaseException:
            shutil.rmtree(staging)
            raise
        for folder in (*(p for p in staging.rglob("*") if p.is_dir()), staging):
            fsync_folder(folder)
        # owner.json comes last: until then no coordinator takes the folder for a state.
        for name in sorted(p.name for p in staging.iterdir()):
            if name != state_folder.MARKER:
                (staging / name).rename(into / name)
        failpoint("restore.before_rename")
        (staging / state_folder.MARKER).rename(into / state_folder.MARKER)
        fsync_folder(into)
        staging.rmdir()
        fsync_folder(into)
    return made


def _check_database(staging: Path, config: CoordinatorConfig) -> None:
    """Hold the restored database against its own checksums, and give it its mark."""
    store = open_store(default_url(staging), config.federation, staging / MARK_NAME)
    try:
        read_runs(store, config.federation, roster_of(config))
    finally:
        store.close()
