"""Keystreams: AES-256-CTR, readable anywhere, in any pieces, into the caller's memory."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from common.encoding import Label, expand
from common.errors import InternalError
from common.secagg.prg import PIECE_BYTES, Keystream
from common.secagg.ring import word_dtype
from common.secret import Secret

SEED = Secret(b"\x42" * 32)


def block(key: bytes, index: int) -> bytes:
    """Return keystream block `index` by the block cipher alone."""
    cipher = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305 - one block
    return cipher.update(index.to_bytes(16, "big"))


def read(stream: Keystream, offset: int, size: int) -> bytes:
    out = bytearray(size)
    stream.into(out, offset)
    return bytes(out)


@pytest.mark.parametrize("w", [16, 32, 64])
@pytest.mark.parametrize(
    "index", [0, 1, 2**16, 2**31 - 1, 2**32 - 1, 2**32, 2**33 + 5, 2**64 - 1, 2**64]
)
def test_the_counter_is_128_bits_big_endian(w: int, index: int) -> None:
    key = expand(SEED.reveal(), Label.MASK, w)
    made = read(Keystream.of_mask(SEED, w), index * 16, 48)
    assert made == block(key, index) + block(key, index + 1) + block(key, index + 2)


def test_masks_of_other_widths_and_rounding_have_other_keys() -> None:
    streams = [Keystream.of_mask(SEED, w) for w in (16, 32, 64)]
    streams.append(Keystream.of_rounding(SEED))
    assert len({read(stream, 0, 16) for stream in streams}) == 4


@given(st.lists(st.integers(1, 70), min_size=1, max_size=8))
def test_reading_on_needs_no_alignment(sizes: list[int]) -> None:
    whole = read(Keystream(bytes(32)), 16, sum(sizes))
    stream = Keystream(bytes(32))
    at, parts = 16, b""
    for size in sizes:
        parts += read(stream, at, size)
        at += size
    assert parts == whole


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_jumping_back_and_forth_gives_the_same_bytes(one: int, other: int) -> None:
    stream = Keystream(bytes(32))
    first = read(stream, one * 16, 32)
    read(stream, other * 16, 32)
    assert read(stream, one * 16, 32) == first


def test_a_jump_to_an_unaligned_place_is_a_bug() -> None:
    stream = Keystream(bytes(32))
    for offset in (1, 15, 17, -16):
        with pytest.raises(InternalError):
            read(stream, offset, 16)
    read(stream, 0, 5)
    read(stream, 5, 5)  # but going on is not a jump
    with pytest.raises(InternalError):
        read(stream, 5, 5)


def test_buffers_longer_than_one_cipher_call_are_filled() -> None:
    size = 2 * PIECE_BYTES + 7
    whole = read(Keystream(bytes(32)), 0, size)
    for at in (0, PIECE_BYTES, 2 * PIECE_BYTES):
        assert read(Keystream(bytes(32)), at, 7) == whole[at : at + 7]


def test_only_the_callers_buffer_is_written() -> None:
    raw = bytearray(64)
    Keystream(bytes(32)).into(memoryview(raw)[16:32], 0)
    assert raw[:16] == bytes(16)
    assert raw[32:] == bytes(32)
    assert any(raw[16:32])


@pytest.mark.parametrize("w", [16, 32, 64])
def test_words_are_little_endian_at_their_offset(w: int) -> None:
    stream = Keystream.of_mask(SEED, w)
    count = 128 // w
    out = np.empty(count, word_dtype(w))
    stream.words_into(out, 5 * count)
    assert out.tobytes() == read(stream, 80, 16)
    stream.words_into(out[:0], 3)  # no words, no offset to check


def test_a_ring_that_does_not_exist_has_no_mask() -> None:
    with pytest.raises(InternalError):
        Keystream.of_mask(SEED, 8)
