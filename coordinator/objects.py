"""Content-addressed files: an object's name is the SHA-256 of its bytes.

An object appears under its name only when all of its bytes are durable (temporary
file, fsync, rename, fsync of the folder), so a name that exists can be trusted to be
whole, and writing the same object twice is harmless.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from common.errors import RoundError, StateError
from common.failpoints import failpoint
from common.ids import Sha256
from common.state_folder import disk_errors, fsync_folder, take_over


class ObjectWriter:
    """Receives an object's bytes in order; nothing is visible before `commit`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temp = root / f".{secrets.token_hex(8)}.part"
        with disk_errors(self._temp):
            self._file = self._temp.open("xb", buffering=0)
        self._hash = hashlib.sha256()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`. Raises StateError: DISK."""
        self._hash.update(data)
        view = memoryview(data).cast("B")
        with disk_errors(self._temp):
            failpoint("coordinator.object.before_write")
            while view:
                view = view[self._file.write(view) :]

    def commit(self) -> Sha256:
        """Make the object durable under its digest and return that.

        Raises:
            StateError: DISK; what was written is gone.
        """
        digest = self._hash.digest()
        with disk_errors(self._temp):
            failpoint("coordinator.object.before_fsync")
            os.fdatasync(self._file.fileno())
            self._file.close()
            failpoint("coordinator.object.before_rename")
            self._temp.rename(self._root / digest.hex())
            fsync_folder(self._root)
        failpoint("coordinator.object.after")
        return Sha256(digest)

    def discard(self) -> None:
        """Forget what was written."""
        self._file.close()
        self._temp.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._file.closed:
            self.discard()


class ObjectReader:
    """Reads one object by offset."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer only at the object's end."""
        return os.pread(self._fd, length, offset)

    def close(self) -> None:
        """Release the file."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class ObjectStore:
    """The folder `objects/` of the coordinator's state directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._held: Counter[Sha256] = Counter()
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(".*.part"):
            leftover.unlink()
        take_over(root.parent, [root])

    @classmethod
    def reading(cls, root: Path) -> Self:
        """Return the folder for who only reads, beside a coordinator: nothing is made or swept."""
        store = cls.__new__(cls)
        store._root, store._held = root, Counter()  # noqa: SLF001 - of this very class
        return store

    def writer(self) -> ObjectWriter:
        """Begin a new object."""
        return ObjectWriter(self._root)

    def put(self, data: bytes) -> Sha256:
        """Store a small object whole."""
        with self.writer() as writer:
            writer.write(data)
            return writer.commit()

    def path(self, digest: Sha256) -> Path:
        """Return where the object lies, whether it exists or not."""
        return self._root / digest.hex()

    def open(self, digest: Sha256) -> ObjectReader:
        """Open an object for reading, once it was read whole against its name.

        Raises:
            RoundError: NOT_FOUND, no such object.
            StateError: STATE_DAMAGED, its bytes are not those that were written.
        """
        self.check(digest)
        return self.open_unchecked(digest)

    def check(self, digest: Sha256) -> None:
        """Read an object whole against its name. Blocking.

        Raises:
            RoundError, StateError: as `open`.
        """
        path = self.path(digest)
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").digest()
        except FileNotFoundError:
            raise RoundError("NOT_FOUND", f"no stored object {digest.hex()[:16]}") from None
        except OSError as failure:
            raise StateError("STATE_DAMAGED", f"{path}: {failure.strerror}") from failure
        if found != digest:
            raise StateError("STATE_DAMAGED", f"{path} is not what was written: its name says so")

    def open_unchecked(self, digest: Sha256) -> ObjectReader:
        """Open an object for whoever checks its digest, as every hospital that fetches one does.

        Raises:
            RoundError: NOT_FOUND, no such object.
        """
        try:
            return ObjectReader(self.path(digest))
        except FileNotFoundError:
            raise RoundError("NOT_FOUND", f"no stored object {digest.hex()[:16]}") from None

    def hold(self, digest: Sha256) -> None:
        """Have an object stay: two runs may well make the same one."""
        self._held[digest] += 1

    def let_go(self, digest: Sha256) -> None:
        """Take back one `hold`; with the last one the object is deleted."""
        self._held[digest] -= 1
        self.remove(digest)

    def remove(self, digest: Sha256) -> None:
        """Delete an object that nobody holds; one that is not there is no error."""
        if self._held[digest] <= 0:
            del self._held[digest]
            self.path(digest).unlink(missing_ok=True)
