"""Randomness as an argument, so that vectors and simulations are possible.

Production passes `OsEntropy` and nothing else; keys, nonces, self seeds and noise
seeds come from it, one call per use.
"""

from __future__ import annotations

import hashlib
import os
from typing import Protocol


class Entropy(Protocol):
    """A source of secret random bytes."""

    def take(self, count: int) -> bytes:
        """Return `count` fresh bytes; never the same bytes for two calls."""
        ...


class OsEntropy:
    """The operating system's generator."""

    def take(self, count: int) -> bytes:
        """See `Entropy`."""
        return os.urandom(count)


class CountingEntropy:
    """SHA-256 in counter mode over a fixed seed: for vectors and simulations only."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._calls = 0

    def take(self, count: int) -> bytes:
        """See `Entropy`; the stream depends on the seed and the number of calls."""
        self._calls += 1
        out = b""
        block = 0
        while len(out) < count:
            text = self._seed + self._calls.to_bytes(8, "big") + block.to_bytes(8, "big")
            out += hashlib.sha256(text).digest()
            block += 1
        return out[:count]
