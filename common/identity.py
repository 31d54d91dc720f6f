"""A machine's own identity: its certificate, key and pinned CA, loaded from files.

`load_identity` makes every check that can be made before dialling (permissions, key
matches certificate, chain to the CA, name, dates against this machine's clock), so
that the message says what is wrong here instead of "handshake failed" (fault F25).

Rotation comes later; its seam is that an `Identity` is a value: whoever renews the
files loads a new one and hands it to the transport.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from common.certificates import (
    MANIFEST_PREFIX,
    STUDY_PREFIX,
    Leaf,
    Role,
    SpiffeId,
    read_leaf,
    stamp,
    to_der,
    verify_chain,
)
from common.errors import ConfigError, IdentityError
from common.ids import NodeId
from common.secret import Secret

MAX_FILE_BYTES: Final = 64 * 1024
"""Certificate and key files are read up to this size."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with its key and the CA it belongs to, checked against each other.

    `chain` is DER, leaf first, without the CA: what travels in key adverts. The key
    never prints and cannot be pickled. Times are Unix seconds.
    """

    leaf: Leaf
    chain: tuple[bytes, ...] = field(repr=False)
    ca_der: tuple[bytes, ...] = field(repr=False)
    certificate_pem: bytes = field(repr=False)
    ca_pem: bytes = field(repr=False)
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def spiffe(self) -> SpiffeId:
        """The certificate's one name."""
        return self.leaf.spiffe

    @property
    def node_id(self) -> NodeId:
        """The whole URI; a hospital's id in the protocol."""
        return NodeId(self.leaf.spiffe.uri)

    @property
    def federation(self) -> str:
        """The federation the certificate belongs to."""
        return self.leaf.spiffe.federation

    @property
    def role(self) -> Role:
        """The certificate's role."""
        return self.leaf.spiffe.role

    @property
    def ca_sha256(self) -> frozenset[str]:
        """SHA-256 of each trusted CA's DER in lower-case hex, to compare with a policy's pin."""
        return frozenset(hashlib.sha256(der).hexdigest() for der in self.ca_der)

    def sign(self, data: bytes) -> bytes:
        """Return the certificate key's ECDSA signature over SHA-256 of `data`, in DER."""
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))

    def key_pem(self) -> Secret:
        """Return the private key for the TLS library."""
        return Secret(key_pem_bytes(self._key))

    def check_dates(self, now_unix: float) -> None:
        """Compare this machine's clock with the certificate.

        Raises:
            IdentityError: CLOCK_OFF before the certificate begins (a certificate is
                never issued for later, so the clock is behind), CERT_INVALID after
                it ended.
        """
        _check_dates(self.leaf, now_unix)


class OutOfDates(IdentityError):
    """A certificate is not valid now by this machine's clock, by `by_s` seconds at least."""

    def __init__(
        self, name: str, detail: str, *, fix: str | None = None, by_s: float = 0.0
    ) -> None:
        super().__init__(name, detail, fix=fix)
        self.by_s = by_s


def sign_manifest(identity: Identity, data: bytes) -> bytes:
    """Return a coordinator's signature over a model manifest's bytes.

    Raises:
        IdentityError: ROLE_DENIED, the certificate is not a coordinator's.
    """
    if identity.role is not Role.COORDINATOR:
        raise IdentityError("ROLE_DENIED", f"{identity.spiffe} may not sign models")
    return identity.sign(MANIFEST_PREFIX + data)


def sign_study(identity: Identity, config_hash: bytes) -> bytes:
    """Return an owner's signature over its study's hash.

    Raises:
        IdentityError: ROLE_DENIED, the certificate is not a researcher's.
    """
    if identity.role is not Role.RESEARCHER:
        raise IdentityError("ROLE_DENIED", f"{identity.spiffe} may not submit studies")
    return identity.sign(STUDY_PREFIX + config_hash)


def load_identity(
    folder: Path | None = None,
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    ca: Path | None = None,
    now_unix: float,
) -> Identity:
    """Load and check an identity from `folder` (`tls.crt`, `tls.key`, `ca.crt`).

    The three paths override the folder's one by one.

    Raises:
        FedError: FILE_MISSING; KEY_PERMISSIONS; CERT_INVALID for unreadable files, a
            key of another certificate, a foreign CA, an expired certificate; IDENTITY
            for the name; CLOCK_OFF. All before any dialling.
    """
    paths = [
        _path(certificate, folder, "tls.crt"),
        _path(key, folder, "tls.key"),
        _path(ca, folder, "ca.crt"),
    ]
    chain = load_certificates(paths[0])
    private = load_key(paths[1])
    anchors = load_certificates(paths[2])
    check_match(chain[0], private, paths[1])
    try:
        leaf = read_leaf(chain[0])
        _check_dates(leaf, now_unix)
    except OutOfDates as error:
        detail = f"{paths[0]}: {error.detail}"
        raise OutOfDates(error.name, detail, fix=error.fix, by_s=error.by_s) from None
    except IdentityError as error:
        raise IdentityError(error.name, f"{paths[0]}: {error.detail}", fix=error.fix) from None
    ca_der = tuple(to_der(anchor) for anchor in anchors)
    chain_der = tuple(to_der(link) for link in chain)
    try:
        verify_chain(chain_der, ca_der, int(now_unix))
    except IdentityError as error:
        raise IdentityError(
            error.name,
            f"{paths[0]} against {paths[2]}: {error.detail}",
            fix="The two files have to be of one federation: compare them with `fedcare pki show`.",
        ) from None
    return Identity(
        leaf=leaf,
        chain=chain_der,
        ca_der=ca_der,
        certificate_pem=b"".join(to_pem(link) for link in chain),
        ca_pem=b"".join(to_pem(anchor) for anchor in anchors),
        _key=private,
    )


def _path(given: Path | None, folder: Path | None, name: str) -> Path:
    if given is not None:
        return given
    if folder is None:
        raise ConfigError("FILE_MISSING", f"no path for {name} was given")
    return folder / name


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError("FILE_MISSING", f"{path}: {_reason(error)}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError("BAD_VALUE", f"{path}: over {MAX_FILE_BYTES} bytes")
    return data


def _reason(error: OSError) -> str:
    """Return the system's words, with what lies behind the two that puzzle in a container."""
    if isinstance(error, PermissionError):
        return f"{error.strerror} to uid {os.geteuid()}"
    if isinstance(error, IsADirectoryError):
        return f"{error.strerror}; Docker makes a folder where a file to mount is not there"
    return error.strerror or type(error).__name__


def load_certificates(path: Path) -> list[x509.Certificate]:
    """Return the certificates of a PEM file, at least one.

    Raises:
        FedError: FILE_MISSING or CERT_INVALID.
    """
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError:
        raise IdentityError("CERT_INVALID", f"{path}: not a PEM certificate") from None


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the ECDSA P-256 key of a PEM file that only its owner can read.

    Raises:
        FedError: FILE_MISSING, KEY_PERMISSIONS or CERT_INVALID.
    """
    data = _read(path)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise IdentityError(
            "KEY_PERMISSIONS",
            f"{path} has mode {mode:04o}; others than its owner may read or change it",
            fix=f"chmod 600 {path}",
        )
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError):
        raise IdentityError("CERT_INVALID", f"{path}: not an unencrypted PEM key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError("CERT_INVALID", f"{path}: not an ECDSA P-256 key")
    return key


def check_match(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, path: Path) -> None:
    """Refuse a key (from `path`) that is not the certificate's.

    Raises:
        IdentityError: CERT_INVALID.
    """
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if certificate.public_key().public_bytes(*form) != key.public_key().public_bytes(*form):
        raise IdentityError("CERT_INVALID", f"{path} is not the key of the certificate beside it")


def _check_dates(leaf: Leaf, now_unix: float) -> None:
    here = stamp(datetime.fromtimestamp(now_unix, UTC))
    if now_unix < leaf.not_before:
        raise OutOfDates(
            "CLOCK_OFF",
            f"this machine's clock ({here}) is at least {span(leaf.not_before - now_unix)} "
            f"behind: the certificate of {leaf.spiffe} begins "
            f"{stamp(datetime.fromtimestamp(leaf.not_before, UTC))}",
            by_s=leaf.not_before - now_unix,
        )
    if int(now_unix) > leaf.not_after:
        raise OutOfDates(
            "CERT_INVALID",
            f"the certificate of {leaf.spiffe} expired {span(now_unix - leaf.not_after)} ago by "
            f"this machine's clock ({here})",
            fix="Have a new one issued with `fedcare pki issue`; if that clock is wrong, set it.",
            by_s=now_unix - leaf.not_after,
        )


def span(seconds: float) -> str:
    """Return a duration for messages, in its largest fitting unit."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (unit == "h" and seconds >= length):
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def to_pem(certificate: x509.Certificate) -> bytes:
    """Return the PEM bytes of a certificate."""
    return certificate.public_bytes(Encoding.PEM)


def key_pem_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the unencrypted PKCS 8 PEM of a private key; the caller keeps it secret."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
