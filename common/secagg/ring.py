"""Words of the ring of integers modulo 2^w, w one of 16, 32, 64.

A vector is an array of unsigned little-endian words; numpy's own wrap-around *is*
the arithmetic modulo 2^w. A signed reading (two's complement) is a view, no copy.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import InternalError, Refusal

RING_BITS: Final = (16, 32, 64)
"""Allowed widths `w`."""

Words: TypeAlias = NDArray[np.unsignedinteger[Any]]
SignedWords: TypeAlias = NDArray[np.signedinteger[Any]]

_DTypes: TypeAlias = dict[int, np.dtype[Any]]

_UNSIGNED: Final[_DTypes] = {16: np.dtype("<u2"), 32: np.dtype("<u4"), 64: np.dtype("<u8")}
_SIGNED: Final[_DTypes] = {16: np.dtype("<i2"), 32: np.dtype("<i4"), 64: np.dtype("<i8")}


def word_bytes(ring_bits: int) -> int:
    """Return the bytes of one word.

    Raises:
        InternalError: the width is not one of `RING_BITS`.
    """
    return word_dtype(ring_bits).itemsize


def word_dtype(ring_bits: int) -> np.dtype[Any]:
    """Return the unsigned little-endian dtype of a word.

    Raises:
        InternalError: the width is not one of `RING_BITS`.
    """
    try:
        return _UNSIGNED[ring_bits]
    except KeyError:
        raise InternalError(f"no ring of {ring_bits} bits; 16, 32 and 64 exist") from None


def signed_view(words: Words) -> SignedWords:
    """Return the same memory read as two's complement."""
    return words.view(_SIGNED[words.dtype.itemsize * 8])


def words_of(data: bytes | bytearray | memoryview, ring_bits: int) -> Words:
    """Return little-endian bytes as words without a copy (read-only for `bytes`).

    Raises:
        Refusal: UPLOAD_SIZE, the bytes do not make whole words.
    """
    dtype = word_dtype(ring_bits)
    if len(data) % dtype.itemsize:
        raise Refusal("UPLOAD_SIZE", f"{len(data)} bytes are not whole words of {ring_bits} bits")
    return np.frombuffer(data, dtype=dtype)


def check_sum_range(words: Words, bound: int) -> None:
    """Refuse an opened sum with a word outside -bound to bound (section 4.7).

    With the spare bits of section 7.2 a mask that did not cancel is seen with
    probability about 1 - 4^-d.

    Raises:
        Refusal: SUM_RANGE; says nothing about the value.
    """
    if not words.size:
        return
    signed = signed_view(words)
    # Python integers: -min would overflow in the word's own type.
    if int(signed.max()) > bound or int(signed.min()) < -bound:
        raise Refusal("SUM_RANGE", "the opened sum has a word outside the bound of the round")
