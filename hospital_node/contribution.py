"""From a hospital's input to the masked vector on disk: quantise, mask, hash, write.

One pass in blocks of 1 MiB with reused buffers, whatever the vector's length (protocol,
4.3 and 7). The file is complete and on the disk before its digest is returned, because
the machine promises the coordinator exactly these bytes: if they are lost the node
leaves the round and never makes others for the same header.

Measured on one core, 25 million parameters, 4 hospitals: see docs/benchmarks.md.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from common.errors import RoundError, StateError
from common.failpoints import failpoint
from common.ids import Sha256
from common.messages import CHUNK_BYTES, UploadChunk
from common.secagg.masking import MaskPlan
from common.secagg.ring import Words, word_dtype
from hospital_node import files


class WordSource(Protocol):
    """A finished `v_i`; `common.quantise.VectorEncoder` is one."""

    @property
    def words(self) -> int:
        """`d`."""
        ...

    def fill(self, out: Words, word_offset: int) -> None:
        """Write the words from `word_offset` on; called once, front to back, in blocks."""
        ...


def write_masked(
    path: Path, source: WordSource, plan: MaskPlan, abandoned: Callable[[], bool] = lambda: False
) -> Sha256:
    """Write `y_i` to `path`, durably, and return `ydig`. Blocking; any thread.

    `abandoned` is asked between blocks: the round may end while this works.

    Raises:
        Refusal: INPUT_NAN, from the source; nothing is left under `path`.
        RoundError: RUN_CANCELLED, `abandoned` said so.
        StateError: DISK.
    """
    temporary = path.with_name(path.name + files.TEMPORARY)
    with files.disk_errors(path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        handle = os.open(temporary, flags, files.FILE_MODE)
    try:
        digest = _write_blocks(handle, path, source, plan, abandoned)
        with files.disk_errors(path):
            failpoint("node.vector.before_fsync")
            os.fsync(handle)
            failpoint("node.vector.before_rename")
            temporary.replace(path)
        files.sync_directory(path.parent)
    except BaseException:
        failpoint("node.vector.undo")
        files.remove(temporary)
        raise
    finally:
        os.close(handle)
    failpoint("node.vector.after")
    return digest


def _write_blocks(
    handle: int, path: Path, source: WordSource, plan: MaskPlan, abandoned: Callable[[], bool]
) -> Sha256:
    dtype = word_dtype(plan.ring_bits)
    block = np.empty(min(CHUNK_BYTES // dtype.itemsize, source.words), dtype)
    masks = plan.stream()
    digest = hashlib.sha256()
    for start in range(0, source.words, block.size):
        if abandoned():
            raise RoundError("RUN_CANCELLED", "the round ended before the input was final")
        words = block[: source.words - start]
        source.fill(words, start)
        masks.apply(words, start)
        view = memoryview(words.data).cast("B")
        digest.update(view)
        with files.disk_errors(path):
            failpoint("node.vector.before_write")
            files.write_all(handle, view)
    return Sha256(digest.digest())


async def read_chunks(path: Path, first_chunk: int) -> AsyncIterator[UploadChunk]:
    """Yield the file's chunks of 1 MiB from `first_chunk` on.

    Raises:
        StateError: STATE_DAMAGED, the file is gone or shorter than that.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            index = first_chunk
            while index * CHUNK_BYTES < size:
                wanted = min(CHUNK_BYTES, size - index * CHUNK_BYTES)
                data = os.pread(file.fileno(), wanted, index * CHUNK_BYTES)
                if len(data) != wanted:
                    raise StateError("STATE_DAMAGED", f"{path} became shorter while it was read")
                failpoint("node.upload")
                yield UploadChunk(index, data)
                index += 1
    except OSError as failure:
        raise StateError("STATE_DAMAGED", f"{path}: {failure.strerror}") from failure


def digest_of(path: Path) -> Sha256 | None:
    """Return SHA-256 of a file, None if it is not there. Blocking."""
    try:
        with path.open("rb") as file:
            return Sha256(hashlib.file_digest(file, "sha256").digest())
    except OSError:
        return None
