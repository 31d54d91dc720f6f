"""Uploads in flight: masked vectors on disk, from the first chunk until they are summed.

A spool file grows chunk by chunk and only by the next expected chunk, so its length
alone says where a broken upload goes on. The running SHA-256 must end as the digest
the node signed. After a crash the hash is computed again over what the file holds.
Nothing here is secret: a masked vector alone is uniform noise.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from pathlib import Path
from typing import Final, Self

from common.errors import Refusal, StateError
from common.failpoints import failpoint
from common.ids import HeaderDigest, NodeId, Sha256, site_name
from common.messages import CHUNK_BYTES
from common.state_folder import disk_error, disk_errors, fsync_folder, take_over

_BLOCK: Final = 1 << 20
_ROUND_FOLDER: Final = re.compile("[0-9a-f]{64}")


class SpoolFile:
    """One node's upload of one round; may be used from several threads."""

    def __init__(self, path: Path, expected_bytes: int) -> None:
        self.path = path
        self.expected_bytes = expected_bytes
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._busy = threading.Lock()
        self._settled = False
        self._hash = hashlib.sha256()
        self._length = self._rehash()

    def _rehash(self) -> int:
        """Hash the whole chunks already present and drop what is beyond them."""
        size = min(os.fstat(self._fd).st_size, self.expected_bytes)
        keep = size if size == self.expected_bytes else size - size % CHUNK_BYTES
        os.ftruncate(self._fd, keep)
        for offset in range(0, keep, _BLOCK):
            self._hash.update(os.pread(self._fd, min(_BLOCK, keep - offset), offset))
        return keep

    @property
    def chunks(self) -> int:
        """Number of chunks of a whole upload."""
        return -(-self.expected_bytes // CHUNK_BYTES)

    @property
    def next_chunk(self) -> int:
        """Index of the first chunk that is not here yet."""
        return -(-self._length // CHUNK_BYTES)

    @property
    def complete(self) -> bool:
        """Whether every byte that the layout implies has come."""
        return self._length == self.expected_bytes

    def append(self, index: int, data: bytes) -> None:
        """Take chunk `index`; one that is already here is passed over.

        Raises:
            Refusal: UPLOAD_SIZE, a chunk out of order, of a wrong size, or beyond the end.
            StateError: DISK.
        """
        with self._busy:
            self._append(index, data)

    def _append(self, index: int, data: bytes) -> None:
        if self._fd < 0:
            raise Refusal("UPLOAD_LATE", "the round ended while the upload was under way")
        if index < self.next_chunk:
            return
        wanted = min(CHUNK_BYTES, self.expected_bytes - self._length)
        if index > self.next_chunk or len(data) != wanted:
            raise Refusal(
                "UPLOAD_SIZE",
                f"chunk {index} of {len(data)} bytes; expected chunk {self.next_chunk}"
                f" of {wanted} bytes",
            )
        self._write(data)
        self._hash.update(data)
        self._length += len(data)

    def _write(self, data: bytes) -> None:
        """Write all of a chunk: a disk that is nearly full takes a part without an error."""
        view, offset = memoryview(data), self._length
        try:
            failpoint("coordinator.spool.before_write")
            while view:
                count = os.pwrite(self._fd, view, offset)
                view, offset = view[count:], offset + count
            failpoint("coordinator.spool.after_write")
        except OSError as error:
            raise disk_error(self.path, error) from error

    def finish(self, claimed: Sha256) -> Sha256:
        """Make a complete upload durable and return its digest.

        Bytes that were durable under one digest stay: a later claim of another digest is
        refused and changes nothing.

        Raises:
            Refusal: UPLOAD_SIZE, bytes are missing; UPLOAD_DIGEST, they are not the
                signed ones, and the spool is emptied for another attempt; UPLOAD_LATE.
            StateError: DISK, the bytes cannot be made durable; all of them have to come again.
        """
        with self._busy:
            return self._finish(claimed)

    def _finish(self, claimed: Sha256) -> Sha256:
        if self._fd < 0:
            raise Refusal("UPLOAD_LATE", "the round ended while the upload was under way")
        if not self.complete:
            raise Refusal(
                "UPLOAD_SIZE", f"{self._length} bytes came, {self.expected_bytes} were expected"
            )
        if self._hash.digest() != claimed:
            if not self._settled:
                self._reset()
            raise Refusal("UPLOAD_DIGEST", "the bytes that came have another SHA-256")
        try:
            failpoint("coordinator.spool.before_fsync")
            os.fdatasync(self._fd)
        except OSError as error:
            # After a flush that failed the system may call lost pages clean, and the next
            # one says that all is well: nothing of what was here is relied on (F38).
            self._reset()
            raise disk_error(self.path, error) from error
        failpoint("coordinator.spool.after_fsync")
        self._settled = True
        return claimed

    def _reset(self) -> None:
        """Empty the spool: the next chunk expected is the first."""
        os.ftruncate(self._fd, 0)
        self._hash = hashlib.sha256()
        self._length = 0

    @property
    def digest(self) -> bytes:
        """SHA-256 of all that was received, as it came in or lay there at the start."""
        return self._hash.digest()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from byte `offset` on.

        Raises:
            Refusal: UPLOAD_SIZE, the file is shorter than it was; UPLOAD_LATE.
        """
        with self._busy:  # else the number of a closed file might be another one's by now
            self._read_into(buffer, offset)

    def _read_into(self, buffer: memoryview, offset: int) -> None:
        if self._fd < 0:
            raise Refusal("UPLOAD_LATE", "the round ended while its uploads were read")
        if os.preadv(self._fd, [buffer], offset) != len(buffer):
            raise Refusal("UPLOAD_SIZE", f"{self.path.name} is shorter than when it was received")

    def close(self) -> None:
        """Release the file, keeping its bytes."""
        with self._busy:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


class Spool:
    """The folder `spool/`: one sub-folder a round, one file a node."""

    def __init__(self, root: Path) -> None:
        self._root = root
        take_over(root.parent, [root])
        self._open: dict[tuple[HeaderDigest, NodeId], SpoolFile] = {}

    def file(self, hd: HeaderDigest, node: NodeId, expected_bytes: int) -> SpoolFile:
        """Return the spool of `node` in round `hd`, opening or creating it.

        Raises:
            StateError: DISK.
        """
        key = (hd, node)
        if key not in self._open:
            folder = self._root / hd.hex()
            with disk_errors(folder):
                if not folder.is_dir():
                    folder.mkdir()
                    try:
                        fsync_folder(self._root)
                    except OSError:  # F38: the name may be taken for durable, and is made anew
                        folder.rmdir()
                        raise
                self._open[key] = SpoolFile(folder / site_name(node), expected_bytes)
        return self._open[key]

    @classmethod
    def reading(cls, root: Path) -> Self:
        """Return the folder for who only reads, beside a coordinator: nothing is made."""
        spool = cls.__new__(cls)
        spool._root, spool._open = root, {}  # noqa: SLF001 - of this very class
        return spool

    def path(self, hd: bytes, node: NodeId) -> Path:
        """Return where the upload of `node` in round `hd` lies, or would."""
        return self._root / hd.hex() / site_name(node)

    @staticmethod
    def digest_of(path: Path, size: int) -> Sha256 | None:
        """Return the SHA-256 of a spooled upload as it lies there; None if there is no file.

        Of a file of another length than `size` it is none that an upload has.
        """
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != size:
                    return Sha256(bytes(32))
                return Sha256(hashlib.file_digest(file, "sha256").digest())
        except FileNotFoundError:
            return None

    def sync_round(self, hd: HeaderDigest) -> None:
        """Make the names of a round's files durable, before an upload is acknowledged.

        Raises:
            StateError: DISK, and the next call makes durable what is in the folder then.
        """
        folder = self._root / hd.hex()
        try:
            with disk_errors(folder):
                fsync_folder(folder)
        except StateError:
            # As after a flush of a file that failed (F38), the system may take names for
            # durable that are not: they are made anew before the next flush.
            for path in folder.iterdir():
                path.rename(again := path.with_name(f".{path.name}"))
                again.rename(path)
            raise

    def drop(self, hd: HeaderDigest) -> None:
        """Delete a round's files: it is closed or voided."""
        for key in [key for key in self._open if key[0] == hd]:
            self._open.pop(key).close()
        folder = self._root / hd.hex()
        if folder.is_dir():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()

    def drop_all_but(self, keep: frozenset[HeaderDigest]) -> None:
        """Delete what rounds that are no longer open left behind, and nothing else."""
        names = {hd.hex() for hd in keep}
        for folder in self._root.iterdir():
            if _ROUND_FOLDER.fullmatch(folder.name) and folder.name not in names:
                self.drop(HeaderDigest(bytes.fromhex(folder.name)))
