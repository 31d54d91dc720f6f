"""A service's state directory: whose it is, and whether this process may use it.

    folder.check(path, owner)     # before anything in it is opened or made
    ... take the lock ...
    folder.mark(path, owner)      # at the first start: `owner.json`, durable

A directory is used by one service of one federation for its whole life: with another
hospital's state a node would forget which survivor sets it agreed to, and with another
federation's a coordinator would go on with foreign runs. So the first start writes down
whose the directory is, and every later one compares before it reads anything else.

A directory without `owner.json` is taken if it is empty or a former version of the same
service left it: then it holds that version's names only, and the service looks for itself
whether what is stored is its own (`Adopt`). Anything else is refused, and nothing is written.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from common.errors import ConfigError, NoRoom, StateError
from common.text import show

MARKER: Final = "owner.json"
SCHEMA: Final = "fedcare.state-owner/v1"
FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600

_MOST_BYTES: Final = 4096
_WORD: Final = re.compile("[a-z0-9-]{1,63}")
_NOT_OURS: Final = frozenset({"lost+found", ".snapshot"})
"""What a file system itself puts into a volume's root."""

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a state directory is: a certificate's role, federation and id."""

    role: str
    federation: str
    id: str

    def __str__(self) -> str:
        return f"{self.role} {self.id} of {self.federation}"


Adopt: TypeAlias = Callable[[Path], Owner | None]
"""Says whose the state of a former version is; None where nothing in it tells."""


# --- whose it is ----------------------------------------------------------------------------


def check(path: Path, owner: Owner, names: frozenset[str], adopt: Adopt) -> None:
    """Refuse a directory that is not `owner`'s; nothing is written or made.

    `names` are what this service keeps in it; `adopt` looks into one without a marker.

    Raises:
        StateError: STATE_FOREIGN; STATE_ACCESS; STATE_DAMAGED, the marker is none.
        ConfigError: BAD_VALUE, a file stands where the folder should.
    """
    if not _is_folder(path):
        return
    _check_access(path)
    found = _read(path / MARKER)
    if found is None:
        found = _without_marker(path, names, adopt)
    if found is not None and found != owner:
        raise StateError(
            "STATE_FOREIGN", f"{path} is the state of {found}; this service is {owner}"
        )


def _without_marker(path: Path, names: frozenset[str], adopt: Adopt) -> Owner | None:
    held = {entry.name for entry in path.iterdir()} - _NOT_OURS - {f".{MARKER}"}
    strange = sorted(held - names)
    if strange:
        raise StateError(
            "STATE_FOREIGN",
            f"{path} holds {show(strange[0])}, which is no state of this service, and no {MARKER}",
            fix="Name an empty folder, or the one this service used before.",
        )
    return adopt(path) if held else None


def mark(path: Path, owner: Owner) -> None:
    """Write down whose the directory is, durably, unless it is written already.

    Raises:
        StateError: DISK.
    """
    if (path / MARKER).exists():
        return
    text = {"schema": SCHEMA, "role": owner.role, "federation": owner.federation, "id": owner.id}
    temporary = path / f".{MARKER}"
    with disk_errors(path / MARKER):
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(json.dumps(text) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path / MARKER)
        fsync_folder(path)


def owner_of(path: Path) -> Owner | None:
    """Return whose a state directory is by its marker, None without one.

    Raises:
        StateError: STATE_DAMAGED.
    """
    return _read(path / MARKER)


def _read(path: Path) -> Owner | None:
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise StateError("STATE_DAMAGED", f"{path}: {failure.strerror}") from None
    try:
        tree = json.loads(text)
        schema, words = tree["schema"], [tree[name] for name in ("role", "federation", "id")]
    except (ValueError, TypeError, KeyError, RecursionError):
        schema, words = None, []
    if schema != SCHEMA or not all(isinstance(w, str) and _WORD.fullmatch(w) for w in words):
        raise StateError(
            "STATE_DAMAGED",
            f"{path} does not say whose the directory is",
            fix="Restore the directory from a backup, or name an empty one.",
        )
    return Owner(*words)


# --- whether it can be used ---------------------------------------------------------------------


def make(path: Path) -> None:
    """Make a state directory of mode 0700 where none is.

    Raises:
        StateError: STATE_ACCESS; DISK.
        ConfigError: BAD_VALUE, a file stands there or on the way.
    """
    if _is_folder(path):
        return
    try:
        _make_durable(path)
    except (FileExistsError, NotADirectoryError):
        raise _no_folder(path) from None
    except OSError as failure:
        if failure.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StateError(
                "STATE_ACCESS",
                f"{path} is not there and uid {os.geteuid()} cannot make it: {failure.strerror}",
                fix=f"Make it for this user: install -d -m 0700 -o {os.geteuid()} {path}",
            ) from None
        raise disk_error(path, failure) from failure


def _make_durable(path: Path) -> None:
    """Make a folder and those above it that are missing; their names are durable."""
    if not path.parent.is_dir():
        _make_durable(path.parent)
    path.mkdir(mode=FOLDER_MODE, exist_ok=True)
    fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Make new names, renames and removals in a folder durable. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def take_over(path: Path, parts: Iterable[Path] = ()) -> None:
    """Make durable what lies in a folder and its `parts` under its names; those are made first.

    A process that was killed between a rename and the flush of the folder leaves a name that
    the next process sees, and that a power cut takes back. Whoever relies on what it finds, and
    tells others, has to flush the folders first.

    Raises:
        StateError: DISK.
    """
    for part in parts:
        with disk_errors(part):
            part.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            fsync_folder(part)
    with disk_errors(path):
        fsync_folder(path)


def _is_folder(path: Path) -> bool:
    """Say whether `path` is there; a file there or on the way is refused."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        raise _no_folder(path) from None
    except OSError as failure:
        raise StateError("STATE_ACCESS", f"{path}: {failure.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise _no_folder(path)
    return True


def _no_folder(path: Path) -> ConfigError:
    return ConfigError(
        "BAD_VALUE",
        f"{path}: a file stands where a folder is needed",
        fix="Move the file away, or name another state_dir.",
    )


def _check_access(path: Path) -> None:
    """Refuse a directory of another user, or one that cannot be written."""
    facts, uid = path.stat(), os.geteuid()
    if facts.st_uid != uid:
        raise StateError(
            "STATE_ACCESS",
            f"{path} is owned by uid {facts.st_uid}, and this process runs as uid {uid}",
            fix=f"Start it as uid {facts.st_uid}; or chown -R {uid} {path}; or name a folder in it"
            " as state_dir.",
        )
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        raise StateError(
            "STATE_ACCESS",
            f"{path} is on a read-only file system",
            fix="Mount it writable (compose: no `:ro`; systemd: StateDirectory=).",
        )
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise StateError(
            "STATE_ACCESS",
            f"{path} has mode {stat.S_IMODE(facts.st_mode):04o}; uid {uid} cannot write in it",
            fix=f"chmod 700 {path}",
        )


# --- a disk that takes no more ------------------------------------------------------------------


def free_bytes(path: Path) -> int:
    """Return how much room this user has where `path` lies. Raises OSError."""
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


def free_text(path: Path) -> str:
    """Return how much room the file system of `path` has, for a message; empty if unknown."""
    for folder in (path, *path.parents):
        try:
            facts = os.statvfs(folder)
        except OSError:
            continue
        free, size = facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize
        return f"{_size(free)} of {_size(size)} are free in {folder}"
    return ""


def _size(count: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def disk_error(path: Path, failure: OSError) -> StateError:
    """Return what to raise when the system refused to write `path`; a full disk says how full."""
    detail = f"{path}: {failure.strerror or failure}"
    if failure.errno in _NO_ROOM:
        return NoRoom(f"{detail}; {free_text(path.parent)}")
    return StateError("DISK", detail)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an operating system error while writing `path` into one clear line.

    Raises:
        StateError: DISK, with the system's own reason; `NoRoom` if that is a full disk.
    """
    try:
        yield
    except OSError as failure:
        raise disk_error(path, failure) from failure


@contextmanager
def fatal_disk_errors(path: Path) -> Iterator[None]:
    """Name the state directory and its free room in a disk error that ends the process.

    Raises:
        StateError: DISK.
    """
    try:
        yield
    except StateError as failure:
        if failure.name != "DISK" or " are free in " in failure.detail:
            raise
        raise StateError("DISK", f"{failure.detail}; {free_text(path)}") from failure
    except OSError as failure:
        if failure.errno not in (*_NO_ROOM, errno.EIO, errno.EROFS):
            raise
        where = Path(os.fsdecode(failure.filename)) if failure.filename else path
        raise StateError("DISK", f"{where}: {failure.strerror}; {free_text(path)}") from failure
