"""An approver's key: Ed25519 in a PEM file (PKCS 8) that only its owner can read.

The key is a person's, not the node's: it may lie on another machine's disk or a token, and
the hospital's policy holds the public half. A passphrase is asked for on a terminal, twice
when the key is made; a script names a file that holds it.
"""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from common.approval_keys import key_text
from common.errors import ConfigError, IdentityError, PolicyRefusal
from common.install import PRIVATE, Content, write_new
from common.secret import Secret

SHORTEST_PASSPHRASE: Final = 8
_MOST_BYTES: Final = 16 << 10
_ENCRYPTED: Final = b"BEGIN ENCRYPTED PRIVATE KEY"


def make_key(path: Path, passphrase: Secret | None) -> str:
    """Make a key at `path`, mode 0600, and return its public half as the policy states it.

    Raises:
        ConfigError: OUTPUT_EXISTS, nothing is overwritten; FILE_MISSING, no such folder.
    """
    key = Ed25519PrivateKey.generate()
    form = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase.reveal())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, form)
    try:
        write_new(path, Content(pem, PRIVATE))
    except FileExistsError:
        raise ConfigError(
            "OUTPUT_EXISTS", f"{path} is already there", fix="Choose another name for the key."
        ) from None
    return key_text(key.public_key().public_bytes_raw())


def load_key(path: Path, passphrase_file: Path | None) -> Ed25519PrivateKey:
    """Return the key of a file, asking for its passphrase if it has one.

    Raises:
        PolicyRefusal: APPROVAL_KEY, it is no such key, or the passphrase does not open it.
        FedError: FILE_MISSING, KEY_PERMISSIONS, BAD_ARGUMENT.
    """
    data = _read(path)
    encrypted = _ENCRYPTED in data
    passphrase = _passphrase(passphrase_file, path) if encrypted else None
    password = None if passphrase is None else passphrase.reveal()
    try:
        key = load_pem_private_key(data, password)
    except (ValueError, TypeError):
        why = "the passphrase does not open it" if encrypted else "it is no private key in PEM form"
        raise PolicyRefusal("APPROVAL_KEY", f"{path}: {why}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise PolicyRefusal("APPROVAL_KEY", f"{path}: a private key, but not an Ed25519 one")
    return key


def new_passphrase(passphrase_file: Path | None, *, none: bool) -> Secret | None:
    """Return the passphrase of a key that is to be made, None if it is to have none.

    Raises:
        ConfigError: BAD_ARGUMENT, it is too short, the two differ, or nobody can be asked.
    """
    if none and passphrase_file is not None:
        raise ConfigError(
            "BAD_ARGUMENT", "--no-passphrase and --passphrase-file exclude each other"
        )
    if none:
        return None
    if passphrase_file is not None:
        return _long_enough(_from_file(passphrase_file))
    first = _ask("Passphrase for the new key: ")
    if _ask("The same again: ").reveal() != first.reveal():
        raise ConfigError("BAD_ARGUMENT", "the two passphrases differ", fix="Start again.")
    return _long_enough(first)


def _passphrase(file: Path | None, path: Path) -> Secret:
    return _ask(f"Passphrase of {path}: ") if file is None else _from_file(file)


def _ask(prompt: str) -> Secret:
    if not sys.stdin.isatty():
        raise ConfigError(
            "BAD_ARGUMENT",
            "a passphrase is needed and there is no terminal to ask on",
            fix="Give --passphrase-file FILE (or, for a new key, --no-passphrase).",
        )
    return Secret(getpass.getpass(prompt, stream=sys.stderr).encode())


def _from_file(path: Path) -> Secret:
    """Return the first line of a file that only its owner can read."""
    return Secret(_read(path).split(b"\n", 1)[0].rstrip(b"\r"))


def _long_enough(passphrase: Secret) -> Secret:
    if len(passphrase.reveal()) < SHORTEST_PASSPHRASE:
        raise ConfigError(
            "BAD_ARGUMENT", f"a passphrase has at least {SHORTEST_PASSPHRASE} characters"
        )
    return passphrase


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            data = file.read(_MOST_BYTES)
    except OSError as failure:
        raise ConfigError("FILE_MISSING", f"{path}: {failure.strerror}") from None
    if mode & 0o077:
        raise IdentityError(
            "KEY_PERMISSIONS",
            f"{path} has mode {mode:04o}; others than its owner may read or change it",
            fix=f"chmod 600 {path}",
        )
    return data
