"""What may be printed of a certificate: names, dates, fingerprints; never a key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from common.certificates import read_leaf, stamp
from common.errors import IdentityError
from common.identity import load_certificates
from common.text import escape


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What `fedcare pki show` prints; public items only."""

    spiffe: str | None
    names: tuple[str, ...]
    issuer: str
    serial: str
    not_before: str
    not_after: str
    sha256: str


def describe(path: Path) -> list[CertificateFacts]:
    """Return the facts of every certificate in a PEM file, well-formed or not.

    Raises:
        FedError: FILE_MISSING or CERT_INVALID.
    """
    return [facts_of(certificate) for certificate in load_certificates(path)]


def facts_of(certificate: x509.Certificate) -> CertificateFacts:
    """Return what may be printed of a certificate, well-formed or not."""
    try:
        spiffe = read_leaf(certificate).spiffe.uri
    except IdentityError:
        spiffe = None
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = tuple(escape(str(name.value)) for name in extension.value)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        names = ()
    return CertificateFacts(
        spiffe=spiffe,
        names=names,
        issuer=escape(certificate.issuer.rfc4514_string()),
        serial=f"{certificate.serial_number:x}",
        not_before=stamp(certificate.not_valid_before_utc),
        not_after=stamp(certificate.not_valid_after_utc),
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
    )
