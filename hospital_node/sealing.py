"""State at rest is sealed: a copied disk without its key file tells nothing.

Seal = AES-256-GCM with a fresh 96-bit nonce per write. The associated data names
the purpose of the record and its format, so one task's record cannot be put in
another's place. The key is 32 bytes in a file of mode 0600 that the node makes at
its first start, or that the hospital's secret store provides; a state directory
that holds sealed records but no key is never given a new one.

    file = MAGIC (4 bytes) || nonce (12) || ciphertext || tag (16)
"""

from __future__ import annotations

import hmac
import os
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.encoding import enc
from common.entropy import Entropy
from common.errors import ConfigError, IdentityError, StateError
from common.secret import Secret
from hospital_node.files import write_new

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
MAGIC: Final = b"FCS1"
"""Fedcare sealed record, format 1."""


class Vault:
    """Seals and opens the records of one state directory."""

    def __init__(self, key: Secret, entropy: Entropy) -> None:
        if len(key) != KEY_BYTES:
            raise StateError(
                "STATE_DAMAGED", f"a sealing key has {KEY_BYTES} bytes, not {len(key)}"
            )
        self._aead = AESGCM(key.reveal())
        self._tags = Secret(hmac.digest(key.reveal(), enc("fedcare/node-tags/1"), "sha256"))
        self._entropy = entropy

    def seal(self, purpose: str, plain: bytes) -> bytes:
        """Return the sealed record; `purpose` (for example the task) is bound to it."""
        nonce = self._entropy.take(NONCE_BYTES)
        return MAGIC + nonce + self._aead.encrypt(nonce, plain, _associated(purpose))

    def tag(self, purpose: str, content: bytes) -> bytes:
        """Return HMAC-SHA256 of `content` for `purpose`, by a key that follows from the vault's."""
        return hmac.digest(self._tags.reveal(), enc(purpose, content), "sha256")

    def open(self, purpose: str, sealed: bytes, where: str) -> bytes:
        """Return what was sealed for `purpose`.

        Raises:
            StateError: STATE_DAMAGED, naming `where`: altered, truncated, of another
                purpose, or sealed with another key.
        """
        head = len(MAGIC) + NONCE_BYTES
        if sealed[: len(MAGIC)] == MAGIC:
            try:
                return self._aead.decrypt(
                    sealed[len(MAGIC) : head], sealed[head:], _associated(purpose)
                )
            except (InvalidTag, ValueError):
                pass
        raise StateError(
            "STATE_DAMAGED",
            f"{where} does not open: it was altered or truncated, or sealed with another key",
        )


def _associated(purpose: str) -> bytes:
    return enc("fedcare/node-state/1", purpose)


def load_key(path: Path) -> Secret:
    """Read a sealing key file.

    Raises:
        ConfigError: FILE_MISSING, it cannot be read.
        IdentityError: KEY_PERMISSIONS, group or others may read it.
        StateError: STATE_DAMAGED, it has another length than 32 bytes.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            key = file.read(KEY_BYTES + 1)
    except OSError as failure:
        raise ConfigError(
            "FILE_MISSING", f"{path}: the sealing key cannot be read ({failure.strerror})"
        ) from failure
    if mode & 0o077:
        raise IdentityError("KEY_PERMISSIONS", f"{path} is open to others (mode {mode:04o})")
    if len(key) != KEY_BYTES:
        raise StateError("STATE_DAMAGED", f"{path} is not a sealing key of {KEY_BYTES} bytes")
    return Secret(key)


def create_key(path: Path, entropy: Entropy) -> Secret:
    """Make a key file of mode 0600, durably, and return the key; never overwrites one.

    Raises:
        StateError: DISK, the file cannot be written.
    """
    key = Secret(entropy.take(KEY_BYTES))
    write_new(path, key.reveal())
    return key
