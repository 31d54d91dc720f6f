"""Files that survive a crash: the few ways in which this node writes to disk.

`replace` leaves the old bytes or the new ones under a name, never a mix, and has
them on the disk when it returns: temporary file, fsync, rename, fsync of the
directory. Everything is created with mode 0600 inside directories of mode 0700.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from common import state_folder
from common.errors import ConfigError
from common.failpoints import failpoint

FILE_MODE: Final = state_folder.FILE_MODE
DIRECTORY_MODE: Final = 0o700
TEMPORARY: Final = ".part"
"""Suffix of a file that is still being written; swept at the next start."""


disk_errors = state_folder.disk_errors


@contextlib.contextmanager
def misplaced(path: Path) -> Iterator[None]:
    """Tell a wrong path from a failing disk while the folder `path` is made.

    Raises:
        ConfigError: BAD_VALUE, a file stands there or on the way; FILE_MISSING, forbidden.
    """
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(
            "BAD_VALUE",
            f"{path}: a file stands where a folder is needed",
            fix="Move the file away, or name another folder.",
        ) from None
    except PermissionError:
        raise ConfigError("FILE_MISSING", f"{path}: this user may not make this folder") from None


def make_directory(path: Path) -> None:
    """Create a directory of mode 0700 where none is.

    Raises:
        ConfigError: BAD_VALUE, a file stands there or on the way; FILE_MISSING, forbidden.
        StateError: DISK, it cannot be made.
    """
    with disk_errors(path), misplaced(path):
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)


def sync_directory(path: Path) -> None:
    """Make renames and removals inside `path` durable.

    Raises:
        StateError: DISK.
    """
    with disk_errors(path):
        state_folder.fsync_folder(path)


def sync_file(path: Path) -> None:
    """Make a file's contents durable.

    Raises:
        StateError: DISK.
    """
    with disk_errors(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def replace(path: Path, content: bytes) -> None:
    """Write `content` under `path`, atomically and durably.

    Raises:
        StateError: DISK; what stood under the name before still does.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    with disk_errors(path):
        _write(temporary, content, os.O_TRUNC)
        failpoint("node.file.before_rename")
        temporary.replace(path)
    sync_directory(path.parent)
    failpoint("node.file.after")


def write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet: whole and durable, or not at all.

    Raises:
        StateError: DISK, it cannot be written or exists.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    with disk_errors(path):
        _write(temporary, content, os.O_TRUNC)
        # A link, unlike a rename, refuses to take the place of an existing file.
        path.hardlink_to(temporary)
        temporary.unlink()
    sync_directory(path.parent)


def _write(path: Path, content: bytes, flag: int) -> None:
    failpoint("node.file.before_write")
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | flag, FILE_MODE)
    try:
        write_all(handle, content)
        failpoint("node.file.before_fsync")
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(handle: int, content: bytes | memoryview) -> None:
    """Write every byte; the system may take fewer at a time. Raises OSError."""
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]


def remove(path: Path) -> None:
    """Remove a file if it is there (not yet durable: see `sync_directory`).

    Raises:
        StateError: DISK.
    """
    with disk_errors(path):
        path.unlink(missing_ok=True)


def sweep(directory: Path) -> None:
    """Remove what a crash left half-written.

    Raises:
        StateError: DISK.
    """
    with disk_errors(directory):
        for left in directory.glob(f"*{TEMPORARY}"):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)
