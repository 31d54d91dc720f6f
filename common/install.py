"""Files put in their place so that a crash leaves the old one or the new one, never half.

`replace_files` works inside a folder that cannot itself be renamed (a mount point): each
file is written whole under a temporary name, all of them are flushed, and only then do
they take their names, in the order given. A crash in between leaves some new and some
old ones; whoever needs them to fit together has to notice that the next time.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from common.errors import ConfigError, StateError

PRIVATE: Final = 0o600
PUBLIC: Final = 0o644


@dataclass(frozen=True, slots=True)
class Content:
    """What a file is to hold, and its permissions whatever the umask."""

    data: bytes = field(repr=False)
    mode: int = PUBLIC


def temporary(name: str) -> str:
    """Return the name under which a file is written; what a crash leaves has it."""
    return f".{name}.new"


def make_folder(folder: Path) -> None:
    """Make a folder of mode 0700 where none is.

    Raises:
        StateError: DISK.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StateError("DISK", f"{folder}: {error.strerror}") from None


def replace_files(folder: Path, files: Mapping[str, Content]) -> None:
    """Write `files` by name into `folder`, which is there; others in it are not touched.

    Raises:
        StateError: DISK; a file that was not reached still holds what it did.
    """
    try:
        for name, content in files.items():
            (folder / temporary(name)).unlink(missing_ok=True)
            write_new(folder / temporary(name), content)
        for name in files:
            (folder / temporary(name)).replace(folder / name)
        sync_folder(folder)
    except OSError as error:
        for name in files:
            _forget(folder / temporary(name))
        raise StateError("DISK", f"{folder}: {error.strerror or error}") from None


def write_new(path: Path, content: Content) -> None:
    """Write a file that must not exist yet, and flush it. Raises OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, content.mode)
        file.write(content.data)
        file.flush()
        os.fsync(handle)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock(folder: Path) -> int | None:
    """Hold a folder against other processes that ask for it; None: another one holds it.

    Returns the handle to close in the end; a process that dies gives it back.

    Raises:
        ConfigError: FILE_MISSING, the folder cannot be read.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError("FILE_MISSING", f"{folder}: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _forget(path: Path) -> None:
    """Remove what could not be finished; if even that fails, the next attempt does."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


# --- whole folders -------------------------------------------------------------------------


def install_folder(
    folder: Path, files: Mapping[str, Content], *, force: bool, now: datetime
) -> None:
    """Make `folder` appear with all `files` at once, with mode 0700.

    With `force` a folder that is there is moved aside whole.

    Raises:
        ConfigError: OUTPUT_EXISTS, it holds anything; FILE_MISSING, unreadable.
        StateError: DISK.
    """
    folder = folder.absolute()
    if _occupied(folder) and not force:
        raise ConfigError(
            "OUTPUT_EXISTS",
            f"{folder} already holds something",
            fix="Choose another folder, or --force to move the old one aside.",
        )
    staged = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.new")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged.mkdir(mode=0o700)
        for name, content in files.items():
            write_new(staged / name, content)
        sync_folder(staged)
        if _occupied(folder):
            folder.rename(_aside(folder, now))
        staged.rename(folder)  # also replaces an empty folder; fails on a filled one
        sync_folder(folder.parent)
    except OSError as error:
        raise StateError("DISK", f"{folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _occupied(folder: Path) -> bool:
    try:
        return (
            folder.is_symlink()
            or (folder.exists() and not folder.is_dir())
            or any(folder.iterdir())
        )
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError("FILE_MISSING", f"{folder}: {error.strerror}") from None


def _aside(folder: Path, now: datetime) -> Path:
    return folder.with_name(f"{folder.name}.replaced-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}")
