"""PRG(seed): a 32-byte seed becomes ring words, by AES-256 in counter mode (4.3).

The keystream's byte `o*w/8` starts word `o`, so any chunk that starts at a multiple
of 16 bytes can be made alone. `Keystream` stays positioned: reading on costs no new
cipher, and nothing is allocated, since the cipher writes into the caller's buffer.
"""

from __future__ import annotations

from typing import Any, Final, Self

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from common.encoding import Label, expand
from common.errors import InternalError
from common.secagg.ring import Words, word_bytes
from common.secret import Secret

BLOCK_BYTES: Final = 16
PIECE_BYTES: Final = 1 << 20
"""Most bytes per cipher call: it holds the interpreter lock (0.13 ms at 8 GB/s)."""

_ZEROS: Final = bytes(PIECE_BYTES)
_COUNTER_LIMIT: Final = 1 << 128


class Keystream:
    """One AES-256-CTR keystream, readable from any 16-byte-aligned offset.

    Not thread-safe: it holds its position.
    """

    __slots__ = ("_cipher", "_key", "_position")

    def __init__(self, key: bytes) -> None:
        self._key = algorithms.AES256(key)
        self._position = -1
        self._cipher: CipherContext | None = None

    @classmethod
    def of_mask(cls, seed: Secret, ring_bits: int) -> Self:
        """Return `PRG(seed)` for words of `ring_bits` bits."""
        word_bytes(ring_bits)  # refuse a ring that does not exist
        return cls(expand(seed.reveal(), Label.MASK, ring_bits))

    @classmethod
    def of_rounding(cls, seed: Secret) -> Self:
        """Return the 64-bit words of stochastic rounding, key `X(a_i, "round")` (7.2)."""
        return cls(expand(seed.reveal(), Label.ROUND))

    @classmethod
    def of_noise(cls, seed: Secret) -> Self:
        """Return the 64-bit words of noise, key `X(a_i, "noise")` (9.2)."""
        return cls(expand(seed.reveal(), Label.NOISE))

    @classmethod
    def of_noise_tie(cls, seed: Secret) -> Self:
        """Return the words that resolve ties of noise, key `X(a_i, "noise-tie")` (9.2)."""
        return cls(expand(seed.reveal(), Label.NOISE_TIE))

    def into(self, buffer: bytearray | memoryview | NDArray[Any], byte_offset: int) -> None:
        """Fill `buffer` (contiguous, writable) with the bytes from `byte_offset` on.

        Raises:
            InternalError: the offset neither continues the last call nor is a
                multiple of 16.
        """
        raw = buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)
        if not raw.nbytes:
            return
        view = raw.cast("B")
        cipher = self._at(byte_offset)
        size = len(view)
        for start in range(0, size, PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            zeros = _ZEROS if len(piece) == PIECE_BYTES else memoryview(_ZEROS)[: len(piece)]
            cipher.update_into(zeros, piece)
        self._position = byte_offset + size

    def words_into(self, words: Words, word_offset: int) -> None:
        """Fill `words` with the words from `word_offset` on; see `into`."""
        self.into(words, word_offset * words.dtype.itemsize)

    def _at(self, byte_offset: int) -> CipherContext:
        if self._cipher is not None and byte_offset == self._position:
            return self._cipher
        counter, rest = divmod(byte_offset, BLOCK_BYTES)
        if rest or not 0 <= counter < _COUNTER_LIMIT:
            raise InternalError(f"keystream offset {byte_offset} is not a multiple of 16")
        mode = modes.CTR(counter.to_bytes(BLOCK_BYTES, "big"))
        self._cipher = Cipher(self._key, mode).encryptor()
        return self._cipher
