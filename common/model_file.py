"""The one form in which a model lies on disk and travels: canonical safetensors.

A safetensors file is an 8-byte little-endian length, a JSON header that names every
tensor with type, shape and byte range, and the raw little-endian data. The format
leaves the header's order and spacing open; here they are fixed by the layout, so the
header of a model is known before its first byte arrives, any other header is refused,
and the same tensors always give the same file digest.
"""

from __future__ import annotations

import json
from typing import Final

from common.vectors import ParameterSchema

_TYPES: Final = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
_ALIGN: Final = 8


def model_header(schema: ParameterSchema) -> bytes:
    """Return everything of the file that comes before the tensor data.

    The file is this, followed by each tensor's little-endian row-major data in layout
    order without gaps; its size is `len(model_header(schema)) + schema.byte_size`.
    """
    entries: dict[str, object] = {}
    offset = 0
    for tensor in schema.tensors:
        end = offset + tensor.byte_size
        entries[tensor.name] = {
            "dtype": _TYPES[tensor.dtype.value],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    text += b" " * (-len(text) % _ALIGN)
    return len(text).to_bytes(8, "little") + text


CONSTANT_PREFIX: Final = "preprocess."


def is_constant(name: str) -> bool:
    """Whether a tensor holds constants of the run that no round changes.

    Standardisation and imputation values travel inside the model, so that the header's
    `model_sha256` binds them and no hospital can be given others; every hospital's
    update to them is zero and the coordinator never applies one.
    """
    return name.startswith(CONSTANT_PREFIX)


CONTROL_PREFIX: Final = "control."


def is_control(name: str) -> bool:
    """Whether a tensor belongs to the server's control variate (strategy `scaffold`).

    It travels inside the model as the constants do, so that `model_sha256` binds it, and
    stays in the released file, whose digest the chain of rounds ends in. Nothing that
    predicts reads it.
    """
    return name.startswith(CONTROL_PREFIX)
