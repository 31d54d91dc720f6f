"""A model's tensors as one flat vector, in one agreed order (sections 4.2 and 7.1).

`ParameterSchema` names the tensors (order, dtype, shape) and the metric words behind
them; its hash is what a round header carries. The vector that is added up is

    v = [tensors in layout order, row-major | weight word | metric words]

A model travels as its tensors' little-endian bytes, one after the other, and is hashed
by `ModelHasher` while it arrives: chunk borders do not matter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.encoding import Item, Label, enc, hash_label
from common.errors import InternalError, Refusal
from common.ids import Sha256


class TensorType(StrEnum):
    """Floating types a layout may name; integer buffers are never sent."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"


_ITEM_BYTES: Final = {
    TensorType.FLOAT16: 2,
    TensorType.BFLOAT16: 2,
    TensorType.FLOAT32: 4,
    TensorType.FLOAT64: 8,
}


_NUMBER_TYPES: Final[Mapping[TensorType, np.dtype[Any]]] = {
    TensorType.FLOAT16: np.dtype("<f2"),
    TensorType.FLOAT32: np.dtype("<f4"),
}
_FLOAT16_LIMIT: Final = 65504.0


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a layout; `shape` may be empty (a scalar) or hold a 0 (no words)."""

    name: str
    dtype: TensorType
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def byte_size(self) -> int:
        """Bytes in a model file or stream."""
        return self.size * _ITEM_BYTES[self.dtype]

    @property
    def number_type(self) -> np.dtype[Any]:
        """The values' type in numpy.

        Raises:
            InternalError: the type is neither float32 nor float16.
        """
        try:
            return _NUMBER_TYPES[self.dtype]
        except KeyError:
            raise InternalError(f"models of {self.dtype.value} are not in the catalogue") from None


def layout_digest(tensors: tuple[TensorSpec, ...], metrics: tuple[str, ...]) -> Sha256:
    """Return `layout_sha256` of section 4.2."""
    items: list[Item] = [len(tensors)]
    for tensor in tensors:
        items += (tensor.name, tensor.dtype.value, len(tensor.shape), *tensor.shape)
    return Sha256(hash_label(Label.LAYOUT, *items, len(metrics), *metrics))


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of words of `v` with one range: a tensor's or a single metric's."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class ParameterSchema:
    """Tensors in order, then metric words; `weighted` says whether a weight word stands between.

    With any DP mode there is neither weight word nor metric word (section 7.1).
    """

    tensors: tuple[TensorSpec, ...]
    metrics: tuple[str, ...] = ()
    weighted: bool = True

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.tensors]
        if len(set(names)) != len(names) or len(set(self.metrics)) != len(self.metrics):
            raise InternalError("a layout names a tensor or metric twice")
        if any(dim < 0 for tensor in self.tensors for dim in tensor.shape):
            raise InternalError("a layout has a negative dimension")
        if self.metrics and not self.weighted:
            raise InternalError("metric words stand behind a weight word or not at all")

    @property
    def parameters(self) -> int:
        """Number of tensor values."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def words(self) -> int:
        """`d`: tensor, weight and metric words."""
        return self.parameters + (1 if self.weighted else 0) + len(self.metrics)

    @property
    def range_count(self) -> int:
        """The ranges of a vector coded by 7.2: one for each tensor and each metric word."""
        return len(self.tensors) + len(self.metrics)

    @property
    def byte_size(self) -> int:
        """Bytes of the model."""
        return sum(tensor.byte_size for tensor in self.tensors)

    @property
    def layout_sha256(self) -> Sha256:
        """The hash of this layout."""
        return layout_digest(self.tensors, self.metrics)

    @property
    def is_flat_float32(self) -> bool:
        """Whether the model's bytes are one float32 vector as they are."""
        return all(tensor.dtype is TensorType.FLOAT32 for tensor in self.tensors)

    def segments(self) -> tuple[Segment, ...]:
        """Return the word range of each tensor, in order."""
        out: list[Segment] = []
        start = 0
        for tensor in self.tensors:
            out.append(Segment(start, start + tensor.size))
            start += tensor.size
        return tuple(out)

    def flat(self, model: bytes | bytearray | memoryview) -> NDArray[np.float32]:
        """Return a model's bytes as one float32 vector; without a copy if all are float32.

        Raises:
            InternalError: a tensor is neither float32 nor float16.
            Refusal: MODEL_HASH, the bytes are longer or shorter than the layout.
        """
        self.check_size(len(model))
        if self.is_flat_float32:
            return np.frombuffer(model, dtype="<f4")
        out = np.empty(self.parameters, np.float32)
        start = 0
        for tensor, segment in zip(self.tensors, self.segments(), strict=True):
            dtype = tensor.number_type
            out[segment.start : segment.stop] = np.frombuffer(model, dtype, tensor.size, start)
            start += tensor.byte_size
        return out

    def pack(self, values: NDArray[np.float32], start: int = 0) -> bytes:
        """Return the bytes of `values`, which stand at word `start` of a flat vector.

        A float16 is the nearest one, ties to even; beyond the largest it is the largest.

        Raises:
            InternalError: a tensor is neither float32 nor float16.
        """
        stop, parts = start + values.size, []
        for tensor, segment in zip(self.tensors, self.segments(), strict=True):
            low, high = max(segment.start, start), min(segment.stop, stop)
            if low < high:
                part = values[low - start : high - start]
                dtype = tensor.number_type
                if dtype.itemsize < part.dtype.itemsize:
                    part = np.clip(part, -_FLOAT16_LIMIT, _FLOAT16_LIMIT)
                parts.append(part.astype(dtype).tobytes())
        return b"".join(parts)

    def views(self, flat: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return each tensor as a shaped view into a flat float32 vector.

        Raises:
            InternalError: the vector's length is not the layout's.
        """
        if flat.shape != (self.parameters,):
            raise InternalError(f"a flat vector has {self.parameters} values, not {flat.shape}")
        return {
            tensor.name: flat[segment.start : segment.stop].reshape(tensor.shape)
            for tensor, segment in zip(self.tensors, self.segments(), strict=True)
        }

    def flatten(self, values: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return named tensors as one new flat float32 vector in layout order.

        Raises:
            InternalError: a tensor is missing, unknown or of another shape.
        """
        if set(values) != {tensor.name for tensor in self.tensors}:
            raise InternalError("the tensors given are not those of the layout")
        out = np.empty(self.parameters, np.float32)
        for name, view in self.views(out).items():
            if values[name].shape != view.shape:
                raise InternalError(f"tensor {name} has another shape than the layout's")
            view[...] = values[name]
        return out

    def check_size(self, byte_count: int) -> None:
        """Refuse a model of another length than the layout's.

        Raises:
            Refusal: MODEL_HASH.
        """
        if byte_count != self.byte_size:
            raise Refusal(
                "MODEL_HASH", f"a model of {byte_count} bytes; the layout has {self.byte_size}"
            )


def widened(schema: ParameterSchema) -> ParameterSchema:
    """Return the same layout with float32 throughout: what updates are added up in."""
    wide = (replace(tensor, dtype=TensorType.FLOAT32) for tensor in schema.tensors)
    return replace(schema, tensors=tuple(wide))


class ModelHasher:
    """`model_sha256` of a stream of tensor bytes, in layout order, in any chunks.

    A `statistics` round has no model: its hash is that of nothing (`EMPTY_MODEL`).
    """

    __slots__ = ("_hash", "_heads", "_left", "_schema", "_total")

    def __init__(self, schema: ParameterSchema) -> None:
        self._schema = schema
        self._hash = hashlib.sha256()
        self._heads = self._tensor_heads()
        self._left = 0
        self._total = 0
        self._next_tensors()

    def _tensor_heads(self) -> Iterator[tuple[bytes, int]]:
        for tensor in self._schema.tensors:
            rank = len(tensor.shape)
            size = tensor.byte_size
            yield enc(tensor.name, tensor.dtype.value, rank, *tensor.shape, size), size

    def _next_tensors(self) -> None:
        """Hash the heads up to and including the next tensor that has bytes."""
        while self._left == 0:
            head, self._left = next(self._heads, (b"", -1))
            self._hash.update(head)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes.

        Raises:
            Refusal: MODEL_HASH, more bytes than the layout has.
        """
        view = memoryview(data).cast("B")
        self._total += len(view)
        while view:
            if self._left < 0:
                self._schema.check_size(self._total)
                raise InternalError("a model hasher lost count")
            part = view[: self._left]
            self._hash.update(part)
            self._left -= len(part)
            view = view[len(part) :]
            self._next_tensors()

    def finish(self) -> Sha256:
        """Return the digest.

        Raises:
            Refusal: MODEL_HASH, bytes are missing.
        """
        self._schema.check_size(self._total)
        return Sha256(self._hash.digest())


EMPTY_MODEL: Final = Sha256(hashlib.sha256(b"").digest())
"""`model_sha256` where no model travels."""


def model_digest(schema: ParameterSchema, model: bytes | bytearray | memoryview) -> Sha256:
    """Return `model_sha256` of a whole model in memory.

    Raises:
        Refusal: MODEL_HASH, the length is not the layout's.
    """
    hasher = ModelHasher(schema)
    hasher.update(model)
    return hasher.finish()
