"""A bundle: all that a hospital without internet needs, under one signature.

`make bundle` writes `fedcare-bundle-VERSION.tar` (common.ustar is its form):

    bundle.json     the list: version, commit, and every other file with size and SHA-256
    bundle.sig      Ed25519 over PREFIX and the bytes of bundle.json
    SHA256SUMS      the same digests, for `sha256sum -c` where fedcare is not installed yet
    source/         the source tree of the commit, with deploy/wheelhouse filled
    dist/           our own wheel, built from that tree
    images/         container images, where the bundle was made with any
    sbom.cdx.json   every wheel and image by digest and licence (CycloneDX)
    licences/       the licence texts of every wheel, and INDEX.tsv

The bundle carries no key. Who verifies names the release key that the hospital pinned, and
trusts nothing else: docs/adr/0012. What is read here before the signature is checked is the
list's bytes only; `common.bundle_check` does the rest. Standard library and `cryptography`
are all this needs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from common.errors import ConfigError, IdentityError, StateError
from common.install import PRIVATE, Content, write_new
from common.text import show
from common.ustar import MAX_SIZE, bad_name

SCHEMA: Final = "fedcare.bundle/v1"
PREFIX: Final = b"fedcare.bundle/v1\n"
"""Stands before the list in what is signed, so that no other signature of this key fits."""

LIST_FILE: Final = "bundle.json"
SIGNATURE_FILE: Final = "bundle.sig"
SUMS_FILE: Final = "SHA256SUMS"
SBOM_FILE: Final = "sbom.cdx.json"
LICENCES_FILE: Final = "licences/INDEX.tsv"
WHEELHOUSE: Final = "source/deploy/wheelhouse/"
UNLISTED: Final = (LIST_FILE, SIGNATURE_FILE)

MAX_LIST: Final = 16 << 20
SIGNATURE_SIZE: Final = 64

_HEX64 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FORMS: Final = {
    "version": re.compile(r"[0-9A-Za-z.+!]{1,64}", re.ASCII),
    "commit": re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII),
    "created": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII),
    "platform": re.compile(r"[0-9a-z_.-]{1,80}", re.ASCII),
    "base_image": re.compile(r"[0-9A-Za-z_.:/@-]{1,200}", re.ASCII),
    "signer": _HEX64,
}
_FIELDS: Final = frozenset({"schema", "dirty", "files", *_FORMS})


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the bundle as the list names it."""

    path: str
    sha256: str
    size: int
    executable: bool


@dataclass(frozen=True, slots=True)
class Contents:
    """The list. `created` is the commit's time, `signer` the release key's fingerprint.

    `dirty`: made from a tree with changes that no commit holds.
    """

    version: str
    commit: str
    dirty: bool
    created: str
    platform: str
    base_image: str
    signer: str
    files: tuple[FileEntry, ...]

    @property
    def name(self) -> str:
        """The folder that the archive unpacks into."""
        return f"fedcare-bundle-{self.version}"

    @property
    def wheels(self) -> tuple[FileEntry, ...]:
        """The wheels of the wheel house and our own."""
        return tuple(entry for entry in self.files if entry.path.endswith(".whl"))

    @property
    def images(self) -> tuple[FileEntry, ...]:
        """The container images."""
        return tuple(entry for entry in self.files if entry.path.startswith("images/"))

    def to_json(self) -> bytes:
        """Return the bytes that are signed."""
        body = {"schema": SCHEMA, **asdict(self)}
        return (json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True) + "\n").encode()


# --- reading the list --------------------------------------------------------------------


def parse_contents(raw: bytes) -> Contents:
    """Read a list; unless its signature was checked before, it is only a claim.

    Raises:
        StateError: BUNDLE_FORM, it is not a list, or names a file no bundle may hold.
        ConfigError: SCHEMA_VERSION, it is the list of another version.
    """
    body = _object(parse_strict(raw, LIST_FILE), LIST_FILE)
    schema = body.get("schema")
    if schema != SCHEMA:
        raise ConfigError("SCHEMA_VERSION", f"{LIST_FILE}: schema is {show(schema)}, not {SCHEMA}")
    if body.keys() != _FIELDS:
        odd = min(body.keys() ^ _FIELDS)
        raise _malformed(f"key {show(odd)} is missing or unknown")
    texts = {key: _text(body[key], key) for key in _FORMS}
    dirty, files = body["dirty"], body["files"]
    if not isinstance(dirty, bool):
        raise _malformed("dirty is not true or false")
    if not isinstance(files, list):
        raise _malformed("files is not a list")
    entries = tuple(_entry(item) for item in files)
    _check_names(entries)
    return Contents(dirty=dirty, files=entries, **texts)


def parse_strict(raw: bytes, name: str) -> object:
    """Return a JSON document's data.

    Raises:
        StateError: BUNDLE_FORM, it is not JSON or a key stands twice.
    """

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(items)
        if len(result) != len(items):
            raise StateError("BUNDLE_FORM", f"{name}: a key stands twice")
        return result

    try:
        data: object = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        raise StateError("BUNDLE_FORM", f"{name}: not valid JSON") from None
    return data


def _malformed(detail: str) -> StateError:
    return StateError("BUNDLE_FORM", f"{LIST_FILE}: {detail}")


def _object(data: object, name: str) -> Mapping[str, object]:
    if not isinstance(data, dict):
        raise StateError("BUNDLE_FORM", f"{name}: not a JSON object")
    return cast("dict[str, object]", data)


def _text(value: object, key: str) -> str:
    if not isinstance(value, str) or not _FORMS[key].fullmatch(value):
        raise _malformed(f"{key} is {show(value)}")
    return value


def _entry(item: object) -> FileEntry:
    body = _object(item, LIST_FILE)
    if body.keys() != {"path", "sha256", "size", "executable"}:
        raise _malformed("an entry of files has other keys than path, sha256, size, executable")
    path, digest, size = body["path"], body["sha256"], body["size"]
    executable = body["executable"]
    if not isinstance(path, str):
        raise _malformed(f"the path {show(path)} is no text")
    wrong = bad_name(path)
    if wrong or path in UNLISTED:
        raise _malformed(f"{show(path)}: {wrong or 'may not list itself'}")
    if not isinstance(digest, str) or not _HEX64.fullmatch(digest):
        raise _malformed(f"{show(path)} has no SHA-256")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE:
        raise _malformed(f"{show(path)} has the size {show(size)}")
    if not isinstance(executable, bool):
        raise _malformed(f"{show(path)}: executable is not true or false")
    return FileEntry(path, digest, size, executable)


def _check_names(entries: tuple[FileEntry, ...]) -> None:
    """Refuse a list that is not sorted, names a file twice or puts a file below a file."""
    paths = [entry.path for entry in entries]
    if paths != sorted(set(paths)):
        raise _malformed("its files are not in order, or one stands twice")
    known = set(paths)
    for path in paths:
        parts = path.split("/")
        if any("/".join(parts[:depth]) in known for depth in range(1, len(parts))):
            raise _malformed(f"{show(path)} lies below a file")


# --- keys and signatures -----------------------------------------------------------------


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of a release key's 32 bytes, which people compare by telephone."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def sign(key: Ed25519PrivateKey, raw: bytes) -> bytes:
    """Return the signature over the list's bytes."""
    return key.sign(PREFIX + raw)


def check_signature(key: Ed25519PublicKey, raw: bytes, signature: bytes) -> None:
    """Check the signature over the list's bytes.

    Raises:
        StateError: BUNDLE_SIGNATURE.
    """
    try:
        key.verify(signature, PREFIX + raw)
    except InvalidSignature:
        raise StateError(
            "BUNDLE_SIGNATURE",
            f"{SIGNATURE_FILE} is no signature over {LIST_FILE} by the key {fingerprint(key)}",
        ) from None


def make_key(path: Path) -> tuple[Path, str]:
    """Make a release key at `path`, mode 0600, and beside it the `.pub` file that hospitals pin.

    Returns the `.pub` file's path and the key's fingerprint.

    Raises:
        ConfigError: OUTPUT_EXISTS, nothing is overwritten; BAD_ARGUMENT.
    """
    public = path.with_suffix(".pub")
    if public == path:
        raise ConfigError("BAD_ARGUMENT", f"{path}: the key and its public half need two names")
    for target in (path, public):
        if target.exists() or target.is_symlink():
            raise ConfigError(
                "OUTPUT_EXISTS",
                f"{target} is already there",
                fix="Choose another name for the key.",
            )
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_new(path, Content(pem, PRIVATE))
    text = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_new(public, Content(text))
    return public, fingerprint(key.public_key())


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Return the consortium's release key from a PEM file that only its owner can read.

    Raises:
        FedError: FILE_MISSING, KEY_PERMISSIONS or BUNDLE_KEY.
    """
    data, mode = _read_key(path)
    if mode & 0o077:
        raise IdentityError(
            "KEY_PERMISSIONS",
            f"{path} has mode {mode:04o}; others than its owner may read or change it",
            fix=f"chmod 600 {path}",
        )
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError):
        raise StateError("BUNDLE_KEY", f"{path}: not an unencrypted PEM private key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise StateError("BUNDLE_KEY", f"{path}: a private key, but not an Ed25519 one")
    return key


def load_pinned_key(path: Path) -> Ed25519PublicKey:
    """Return the release key that a hospital pinned.

    Raises:
        FedError: FILE_MISSING or BUNDLE_KEY.
    """
    data, _ = _read_key(path)
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError):
        raise StateError("BUNDLE_KEY", f"{path}: not a PEM public key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise StateError("BUNDLE_KEY", f"{path}: a public key, but not an Ed25519 one")
    return key


def _read_key(path: Path) -> tuple[bytes, int]:
    try:
        # O_NONBLOCK: a pipe of that name must not hold us up; it has no effect on files.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, opened with flags
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError("FILE_MISSING", f"{path} is not a file")
            return file.read(1 << 16), mode & 0o777
    except OSError as error:
        raise ConfigError("FILE_MISSING", f"{path}: {error.strerror}") from None
