"""A model comes in: written, hashed and checked in one pass, a piece at a time.

The layout is known from the study, so every byte before the tensor data is known too
(`common.model_file`) and anything else is refused at once. Tensor bytes are hashed into
`model_sha256` as they arrive; a value that is not finite is refused (protocol, 10.2).
Memory is one piece, whatever the model's size.

A broken download goes on by offset. What an earlier process left of one is read and
hashed again, not trusted.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from common.errors import Refusal, StateError
from common.failpoints import failpoint
from common.ids import Sha256
from common.messages import CHUNK_BYTES, DownloadChunk
from common.model_file import model_header
from common.vectors import ModelHasher, ParameterSchema, TensorSpec, TensorType
from hospital_node import files

_BFLOAT16_EXPONENT: Final = np.uint16(0x7F80)
_DTYPES: Final[dict[TensorType, np.dtype[Any]]] = {
    TensorType.FLOAT16: np.dtype("<f2"),
    TensorType.BFLOAT16: np.dtype("<u2"),
    TensorType.FLOAT32: np.dtype("<f4"),
    TensorType.FLOAT64: np.dtype("<f8"),
}


class ModelReceiver:
    """Takes the bytes of one model file in order; `finish` gives it its name.

    Raises (construction): StateError DISK.
    """

    def __init__(self, path: Path, schema: ParameterSchema) -> None:
        self._path = path
        self.part = path.with_name(path.name + files.TEMPORARY)
        self.ignored = False
        """Whether what an earlier process left was no beginning of such a model."""
        self._head = model_header(schema)
        self._hasher = ModelHasher(schema)
        self._finite = _FiniteCheck(schema.tensors)
        self.total = len(self._head) + schema.byte_size
        self.offset = 0
        with files.disk_errors(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(self.part, flags, files.FILE_MODE)
        try:
            self._read_again()
        except Refusal:
            self.ignored = True
            self._restart(schema)

    def _read_again(self) -> None:
        """Take up what an earlier process left."""
        with files.disk_errors(self.part):
            while piece := os.read(self._file, CHUNK_BYTES):
                self._check(piece)
                self.offset += len(piece)

    def _restart(self, schema: ParameterSchema) -> None:
        self._hasher = ModelHasher(schema)
        self._finite = _FiniteCheck(schema.tensors)
        self.offset = 0
        with files.disk_errors(self.part):
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)

    def take(self, piece: DownloadChunk) -> None:
        """Check, hash and write the next piece.

        Raises:
            Refusal: MODEL_HASH, a gap, another size or another header than the layout's;
                MODEL_RANGE, a value that is not finite.
            StateError: DISK.
        """
        if piece.total != self.total:
            raise Refusal(
                "MODEL_HASH", f"the object has {piece.total} bytes; the layout gives {self.total}"
            )
        if piece.offset != self.offset or self.offset + len(piece.data) > self.total:
            raise Refusal("MODEL_HASH", f"a piece at byte {piece.offset}, expected {self.offset}")
        if not piece.data:
            raise Refusal("MODEL_HASH", "an empty piece: a stream of these would never end")
        self._check(piece.data)
        with files.disk_errors(self.part):
            failpoint("node.model.before_write")
            files.write_all(self._file, piece.data)
        self.offset += len(piece.data)

    def _check(self, data: bytes) -> None:
        """Compare header bytes, hash tensor bytes; `data` stands at `self.offset`."""
        view = memoryview(data)
        if self.offset < len(self._head):
            head = view[: len(self._head) - self.offset]
            if head != self._head[self.offset : self.offset + len(head)]:
                raise Refusal("MODEL_HASH", "the model file's header is not that of the layout")
            view = view[len(head) :]
        self._hasher.update(view)
        self._finite.update(view)

    @property
    def complete(self) -> bool:
        """Whether every byte is here."""
        return self.offset == self.total

    def finish(self) -> Sha256:
        """Give the file its name and return `model_sha256`.

        Raises:
            Refusal: MODEL_HASH, bytes are missing.
            StateError: DISK.
        """
        digest = self._hasher.finish()
        with files.disk_errors(self._path):
            failpoint("node.model.before_rename")
            self.part.replace(self._path)
            failpoint("node.model.after")
        self.close()
        return digest

    def discard(self) -> None:
        """Forget what came: it is not the model that was announced."""
        self.close()
        files.remove(self.part)

    def close(self) -> None:
        """Let go of the file; what is on disk stays for a later attempt."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def take_all(receiver: ModelReceiver, pieces: AsyncIterator[DownloadChunk]) -> None:
    """Take pieces until the stream ends or the model is complete.

    About 1 ms of work for each piece of 1 MiB, done in place: handing it to a thread
    would cost more than it saves, and heartbeats pass between two pieces.

    Raises:
        Refusal, StateError: see `ModelReceiver.take`.
        ConnectError: from the stream; the receiver stays usable.
    """
    async for piece in pieces:
        receiver.take(piece)
        if receiver.complete:
            return


def digest_of_file(path: Path, schema: ParameterSchema) -> Sha256 | None:
    """Return `model_sha256` of a stored model, None if the file is not of the layout.

    For a model that an earlier process received. Blocking; reads the whole file.
    """
    hasher = ModelHasher(schema)
    finite = _FiniteCheck(schema.tensors)
    head = model_header(schema)
    try:
        with path.open("rb") as file:
            if file.read(len(head)) != head:
                return None
            while piece := file.read(CHUNK_BYTES):
                hasher.update(piece)
                finite.update(memoryview(piece))
        return hasher.finish()
    except (Refusal, OSError):
        return None


def read_model(path: Path, schema: ParameterSchema) -> bytes:
    """Return the tensor bytes of a model that this process received and checked.

    Raises:
        StateError: MODEL_INVALID, the file has changed since.
    """
    skip = len(model_header(schema))
    try:
        with path.open("rb") as file:
            file.seek(skip)
            data = file.read()
    except OSError as failure:
        raise StateError("MODEL_INVALID", f"{path}: {failure.strerror}") from failure
    if len(data) != schema.byte_size:
        raise StateError("MODEL_INVALID", f"{path} has changed since it was received")
    return data


def distance(one: Path, other: Path, schema: ParameterSchema) -> float:
    """Return the L2 norm of the difference of two models of a layout, in float64. Blocking.

    Raises:
        StateError: MODEL_INVALID, a file is gone or of another length.
    """
    skip, squares = len(model_header(schema)), 0.0
    try:
        with one.open("rb") as first, other.open("rb") as second:
            first.seek(skip)
            second.seek(skip)
            for tensor in schema.tensors:
                left = tensor.byte_size
                while left:
                    size = min(left, CHUNK_BYTES)
                    a, b = (
                        _numbers(file.read(size), size, tensor.dtype) for file in (first, second)
                    )
                    squares += float(np.square(a - b).sum())
                    left -= size
    except OSError as failure:
        raise StateError("MODEL_INVALID", f"a model is gone: {failure.strerror}") from failure
    return float(np.sqrt(squares))


def _numbers(data: bytes, size: int, kind: TensorType) -> NDArray[np.float64]:
    if len(data) != size:
        raise StateError("MODEL_INVALID", "a model on disk is not of the layout's length")
    values = np.frombuffer(data, _DTYPES[kind])
    if kind is TensorType.BFLOAT16:  # the upper half of a float32
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    numbers: NDArray[np.float64] = values.astype(np.float64)
    return numbers


@dataclass(slots=True)
class _Span:
    """What is left of one tensor."""

    name: str
    kind: TensorType
    left: int


class _FiniteCheck:
    """Refuses NaN and infinity in a stream of tensor bytes cut anywhere."""

    def __init__(self, tensors: tuple[TensorSpec, ...]) -> None:
        self._spans: Iterator[_Span] = (_Span(t.name, t.dtype, t.byte_size) for t in tensors)
        self._span: _Span | None = None
        self._rest = b""

    def update(self, view: memoryview) -> None:
        while view:
            span = self._span
            if span is None or not span.left:
                span = self._span = next(self._spans)
                continue
            part = view[: span.left]
            span.left -= len(part)
            view = view[len(part) :]
            self._check(span, part)

    def _check(self, span: _Span, part: memoryview) -> None:
        dtype = _DTYPES[span.kind]
        if self._rest or len(part) % dtype.itemsize:  # a value is cut in two
            data = self._rest + bytes(part)
            whole = len(data) - len(data) % dtype.itemsize
            self._rest = data[whole:]
            part = memoryview(data)[:whole]
        if not _all_finite(np.frombuffer(part, dtype), span.kind):
            raise Refusal("MODEL_RANGE", f"tensor {span.name} holds a value that is not finite")


def _all_finite(values: NDArray[Any], kind: TensorType) -> bool:
    if kind is TensorType.BFLOAT16:
        return not bool(np.any((values & _BFLOAT16_EXPONENT) == _BFLOAT16_EXPONENT))
    return bool(np.isfinite(values).all())
