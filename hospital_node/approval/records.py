"""Signed statements as files: `approvals/<study hash>.<time>.<name>.json`, never changed.

A file appears whole and flushed, or not at all, and no lock is needed to add one: the
commands do it while the node serves. Reading trusts nothing: size, form, name, site,
federation, person and signature are checked, each refusal with its code. A file that does
not pass is no grant; as it may have been a denial or a withdrawal, an *earlier* grant by
the person whom its name names does not count either, until that person signs again.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.approval import MOST_BYTES, Statement, parse, verify
from common.approval_keys import key_bytes
from common.errors import PolicyRefusal, StateError
from common.ids import ConfigHash
from common.policy import Approval
from common.text import show
from hospital_node import files

FOLDER: Final = "approvals"
MOST_RECORDS: Final = 5000
"""Files in the folder; with more of them nothing counts as approved."""

_SHOWN: Final = 160
_NAME: Final = re.compile(r"([0-9a-f]{64})\.([0-9]{13})\.([a-z0-9][a-z0-9._-]{0,62})\.json")


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that counts as nothing: why, and what its name claims (no more than a claim)."""

    file: str
    refusal: PolicyRefusal
    config_hash: ConfigHash | None = None
    name: str = ""
    time: int = 0


@dataclass(frozen=True, slots=True)
class Records:
    """Every file of the folder: statements whose signature holds, and the rest."""

    statements: tuple[Statement, ...] = ()
    rejected: tuple[Rejected, ...] = ()

    def of(self, config_hash: ConfigHash) -> tuple[Statement, ...]:
        """Return what was said to one study, oldest first."""
        return tuple(one for one in self.statements if one.config_hash == config_hash)


class ApprovalFolder:
    """The folder of one hospital, read against its policy; remembers what it has verified."""

    def __init__(self, state_dir: Path, site: str, federation: str, approval: Approval) -> None:
        self._path = state_dir / FOLDER
        self._site = site
        self._federation = federation
        self._approval = approval
        self._seen: dict[str, tuple[tuple[int, ...], Statement | Rejected]] = {}

    def read(self) -> Records:
        """Return what the folder holds now, oldest first.

        Raises:
            PolicyRefusal: APPROVAL_RECORD, too many files, or the folder cannot be read.
        """
        seen: dict[str, tuple[tuple[int, ...], Statement | Rejected]] = {}
        try:
            for name, facts in self._entries():
                known = self._seen.get(name)
                fresh = known is None or known[0] != facts
                seen[name] = (facts, self._judge(name)) if fresh or known is None else known
        except OSError as failure:
            detail = f"{self._path}: {failure.strerror}"
            raise PolicyRefusal("APPROVAL_RECORD", detail) from None
        self._seen = seen
        found = [entry for _, entry in seen.values()]
        statements = [one for one in found if isinstance(one, Statement)]
        statements.sort(key=lambda one: one.time)
        rejected = sorted((one for one in found if isinstance(one, Rejected)), key=_file)
        return Records(tuple(statements), tuple(rejected))

    def _entries(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name of each file and what changes when its contents do."""
        if not self._path.exists():
            return
        with os.scandir(self._path) as entries:
            for count, entry in enumerate(entries, 1):
                if count > MOST_RECORDS:
                    detail = f"{self._path} holds more than {MOST_RECORDS} files"
                    raise PolicyRefusal("APPROVAL_RECORD", detail)
                if not entry.name.endswith(files.TEMPORARY):
                    facts = entry.stat(follow_symlinks=False)
                    yield (
                        entry.name,
                        (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns),
                    )

    def _judge(self, file: str) -> Statement | Rejected:
        found = _NAME.fullmatch(file)
        try:
            if found is None:
                raise _bad("has no name of a record")
            statement = self._checked(_contents(self._path / file))
            if file_name(statement) != file:
                raise _bad("holds a statement that belongs under another name")
        except PolicyRefusal as refusal:
            detail = f"{FOLDER}/{show(file, _SHOWN)[1:-1]}: {refusal.detail}"
            named = PolicyRefusal(refusal.name, detail, fix=refusal.fix)
            if found is None:
                return Rejected(file, named)
            digest = ConfigHash(bytes.fromhex(found[1]))
            return Rejected(file, named, digest, found[3], int(found[2]))
        return statement

    def _checked(self, raw: bytes) -> Statement:
        """Return the statement of a file if a key of the policy signed it for this hospital."""
        signed = parse(raw)
        statement = signed.statement
        if (statement.site, statement.federation) != (self._site, self._federation):
            raise _bad(
                f"is of {show(statement.site)} in {show(statement.federation)}, not of "
                f"{self._site} in {self._federation}"
            )
        key = self._approval.key_of(statement.name)
        if key is None:
            detail = f"is signed as {statement.name}, whom the policy does not name"
            raise PolicyRefusal("APPROVAL_PERSON", detail)
        verify(signed, key_bytes(key))
        return statement


def file_name(statement: Statement) -> str:
    """Return the one name that a statement's file may have."""
    return f"{statement.config_hash.hex()}.{statement.time:013d}.{statement.name}.json"


def add(state_dir: Path, statement: Statement, raw: bytes) -> Path:
    """Write a signed statement durably; nothing is ever overwritten.

    Raises:
        StateError: STATE_ACCESS, the directory is another user's, whose node could not read
            the file; DISK.
    """
    owner = state_dir.stat().st_uid
    if owner != os.geteuid():
        raise StateError(
            "STATE_ACCESS",
            f"{state_dir} is of uid {owner}, and this command runs as uid {os.geteuid()}: the "
            "node could not read what it writes",
            fix=f"Run it as uid {owner}, as the node does.",
        )
    folder = state_dir / FOLDER
    files.make_directory(folder)
    path = folder / file_name(statement)
    files.write_new(path, raw)
    return path


def _contents(path: Path) -> bytes:
    """Return a record's bytes; no link is followed, and no more is read than a record has."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as failure:
        raise _bad(f"cannot be read: {failure.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise _bad("is no file")
        return os.read(handle, MOST_BYTES + 1)
    except OSError as failure:
        raise _bad(f"cannot be read: {failure.strerror}") from None
    finally:
        os.close(handle)


def _bad(why: str) -> PolicyRefusal:
    return PolicyRefusal("APPROVAL_RECORD", why)


def _file(rejected: Rejected) -> str:
    return rejected.file
