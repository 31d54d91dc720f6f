"""What a certificate of a federation must look like, and who it then names.

One rule decides identity everywhere, in TLS (`common.transport.identity`), in the
roster of secure aggregation (`ChainTrust`) and for signed models (`verify_manifest`):

1. The chain leads to the *pinned* CA, with valid dates and with the right usage.
2. The leaf is an end-entity certificate for client authentication.
3. It carries exactly one URI name, `spiffe://<federation>/<role>/<id>`, of the
   narrow alphabet of `common.ids`. Nothing else names anybody: the common name is
   never read, and DNS or IP names stand only on a coordinator's leaf, for dialling.

Steps 2 and 3 are ours to make: TLS itself lets certificates with no URI name, with
two, or with odd ones through (promise P7, faults F41 and F42).

Pure: no files, no clock, no sockets. Times are Unix seconds and are arguments.
Source: docs/protocol.md, sections 3.2 and 3.3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from common.errors import IdentityError, Refusal, StateError
from common.ids import NAME_PATTERN, NodeId

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CHAIN: Final = 3
"""Certificates in a presented chain: a leaf and at most two intermediates."""

MAX_CERTIFICATE_BYTES: Final = 8 * 1024
"""Size cap of one DER certificate from a peer; ours are about 600 bytes."""

MANIFEST_PREFIX: Final = b"fedcare/manifest/v1\x00"
STUDY_PREFIX: Final = b"fedcare/study/v1\x00"
"""Goes before every signed model manifest, so that no other signature of the same
key (a key advert begins otherwise) can be passed off as one."""


class Role(StrEnum):
    """What a certificate lets its holder be; the middle segment of its URI name."""

    HOSPITAL = "hospital"
    COORDINATOR = "coordinator"
    OPERATOR = "operator"
    RESEARCHER = "researcher"


_MALFORMED: Final = (
    # All that the library raises on hostile bytes; found by flipping every bit of a leaf.
    ValueError,
    UnsupportedAlgorithm,
    UserWarning,  # a serial number below 1, where warnings are errors
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

PublicKey = ec.EllipticCurvePublicKey | Ed25519PublicKey
"""The key kinds a hospital's certificate may hold: ECDSA P-256 or Ed25519."""

_SPIFFE = re.compile(
    rf"spiffe://(?P<federation>{NAME_PATTERN})/(?P<role>{'|'.join(Role)})/(?P<id>{NAME_PATTERN})"
)


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A certificate's one URI name, taken apart."""

    federation: str
    role: Role
    id: str

    @property
    def uri(self) -> str:
        """The whole name; for a hospital this is its `NodeId`."""
        return f"spiffe://{self.federation}/{self.role}/{self.id}"

    def __str__(self) -> str:
        return self.uri


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a well-formed leaf says; says nothing yet about who signed it.

    `not_before` and `not_after` are Unix seconds, both inclusive.
    """

    spiffe: SpiffeId
    not_before: int
    not_after: int
    key: PublicKey


def parse_spiffe(uri: str) -> SpiffeId:
    """Return the parts of `spiffe://<federation>/<role>/<id>`.

    Raises:
        IdentityError: IDENTITY, the text differs from that form in any character
            (case, trailing slash, percent escapes, dots and ports included).
    """
    found = _SPIFFE.fullmatch(uri)
    if found is None:
        raise IdentityError(
            "IDENTITY",
            f"the name {uri[:120]!a} is not spiffe://<federation>/<role>/<id> with "
            f"role {', '.join(Role)} and ids of a-z, 0-9 and inner hyphens",
        )
    return SpiffeId(found["federation"], Role(found["role"]), found["id"])


def parse_certificate(data: bytes) -> x509.Certificate:
    """Return one certificate from DER or PEM bytes.

    Raises:
        IdentityError: CERT_INVALID, the bytes are no certificate or over the cap.
    """
    if len(data) > 2 * MAX_CERTIFICATE_BYTES:
        raise IdentityError("CERT_INVALID", f"a certificate of {len(data)} bytes is over the cap")
    try:
        if data.startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)
    except _MALFORMED:
        raise IdentityError("CERT_INVALID", "the bytes are not an X.509 certificate") from None


def read_leaf(certificate: x509.Certificate, *, federation: str | None = None) -> Leaf:
    """Check a leaf's own contents (rules 2 and 3 of the module) and return them.

    The caller has verified the chain (`verify_chain`, or TLS did); dates are not
    looked at here. With `federation` given, the name has to be of that federation.

    Raises:
        IdentityError: CERT_INVALID for wrong usage or key kind, IDENTITY for the names.
    """
    try:
        _check_usage(certificate)
        spiffe = parse_spiffe(_single_uri(certificate))
        key = _public_key(certificate)
    except _MALFORMED:
        # The library parses lazily, so hostile bytes may surface only here.
        raise IdentityError("CERT_INVALID", "the certificate's extensions are malformed") from None
    if federation is not None and spiffe.federation != federation:
        raise IdentityError(
            "IDENTITY",
            f"{spiffe} belongs to federation {spiffe.federation!r}, not to {federation!r}",
        )
    if spiffe.role is not Role.COORDINATOR and len(_names(certificate)) != 1:
        raise IdentityError("IDENTITY", f"{spiffe} carries names beside its URI")
    return Leaf(
        spiffe=spiffe,
        not_before=int(certificate.not_valid_before_utc.timestamp()),
        not_after=int(certificate.not_valid_after_utc.timestamp()),
        key=key,
    )


def _check_usage(certificate: x509.Certificate) -> None:
    """Refuse CA certificates and leaves not made for signing as a client."""
    extensions = certificate.extensions
    if _is_ca(extensions):
        raise IdentityError("CERT_INVALID", "a CA's certificate is not an identity")
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as missing:
        raise IdentityError(
            "CERT_INVALID",
            f"the certificate does not state its usage ({missing.oid.dotted_string})",
        ) from None
    if not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise IdentityError("CERT_INVALID", "the certificate's key usage is not a leaf's")
    if ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
        raise IdentityError("CERT_INVALID", "the certificate is not for client authentication")


def _is_ca(extensions: x509.Extensions) -> bool:
    try:
        return extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return list(found.value)


def _single_uri(certificate: x509.Certificate) -> str:
    uris = [n.value for n in _names(certificate) if isinstance(n, x509.UniformResourceIdentifier)]
    if len(uris) != 1:
        raise IdentityError("IDENTITY", f"the certificate carries {len(uris)} URI names, not one")
    return uris[0]


def _public_key(certificate: x509.Certificate) -> PublicKey:
    key = certificate.public_key()
    if isinstance(key, Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise IdentityError("CERT_INVALID", "the certificate's key is neither P-256 nor Ed25519")


def verify_chain(
    chain_der: Sequence[bytes], ca_der: Sequence[bytes], now_unix: int
) -> x509.Certificate:
    """Verify a chain (leaf first, without the root) to one of the pinned CAs.

    Signatures, dates of every certificate, path length, key and extended key usage
    are the library's path validation (RFC 5280); names are left to `read_leaf`.

    Raises:
        IdentityError: CERT_INVALID, with the library's short reason.
    """
    if not 1 <= len(chain_der) <= MAX_CHAIN:
        raise IdentityError("CERT_INVALID", f"a chain has 1 to {MAX_CHAIN} certificates")
    leaf, *between = [_parse_der(der) for der in chain_der]
    anchors = [_parse_der(der) for der in ca_der]
    try:
        verifier = (
            PolicyBuilder()
            .store(Store(anchors))
            .time(datetime.fromtimestamp(now_unix, UTC))
            .max_chain_depth(MAX_CHAIN - 1)
            .extension_policies(
                ca_policy=ExtensionPolicy.webpki_defaults_ca(),
                ee_policy=ExtensionPolicy.webpki_defaults_ee(),
            )
            .build_client_verifier()
        )
        verifier.verify(leaf, between)
    except (VerificationError, ValueError, OverflowError, OSError) as error:
        raise IdentityError("CERT_INVALID", _reason(leaf, now_unix, error)) from None
    return leaf


def _parse_der(der: bytes) -> x509.Certificate:
    if len(der) > MAX_CERTIFICATE_BYTES or der.startswith(b"-----BEGIN"):
        raise IdentityError("CERT_INVALID", "a chain holds DER certificates of at most 8 KiB")
    return parse_certificate(der)


def _reason(leaf: x509.Certificate, now_unix: int, error: Exception) -> str:
    """Word the common failures; the library's text ends before it prints names."""
    if now_unix < leaf.not_valid_before_utc.timestamp():
        return f"the certificate is valid only from {stamp(leaf.not_valid_before_utc)}"
    if now_unix > leaf.not_valid_after_utc.timestamp():
        return f"the certificate expired at {stamp(leaf.not_valid_after_utc)}"
    if isinstance(error, VerificationError):
        short = str(error).split(" (encountered", 1)[0].removeprefix("validation failed: ")
        return f"the chain does not lead to the pinned CA: {short[:200]!a}"
    return "the chain cannot be verified"


def stamp(moment: datetime) -> str:
    """Return a time for messages, UTC to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def to_der(certificate: x509.Certificate) -> bytes:
    """Return the DER bytes of a certificate."""
    return certificate.public_bytes(Encoding.DER)


def verify_signature(key: PublicKey, signature: bytes, data: bytes) -> None:
    """Check a signature by a certificate's key: ECDSA with SHA-256 in DER, or Ed25519.

    Raises:
        cryptography.exceptions.InvalidSignature: it does not verify.
    """
    if isinstance(key, Ed25519PublicKey):
        key.verify(signature, data)
    else:
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))


@dataclass(frozen=True, slots=True)
class ChainTrust:
    """What a hospital pins: the consortium's CA and the list of members (3.2).

    `ca_der` are DER certificates; more than one only while a CA is being replaced.
    """

    ca_der: tuple[bytes, ...]
    members: frozenset[NodeId]
    federation: str

    def verify_chain(self, chain_der: Sequence[bytes], node_id: NodeId, now_unix: int) -> PublicKey:
        """Return the certificate key of a roster's member.

        Raises:
            Refusal: CERT_CHAIN, the chain does not verify now, is not a hospital's of
                this federation, or names another than `node_id`; NOT_MEMBER, it
                verifies but the id is not in the pinned list.
        """
        try:
            certificate = verify_chain(chain_der, self.ca_der, now_unix)
            leaf = read_leaf(certificate, federation=self.federation)
        except IdentityError as error:
            raise Refusal("CERT_CHAIN", f"{node_id[:160]!a}: {error.detail}") from None
        if leaf.spiffe.role is not Role.HOSPITAL:
            raise Refusal("CERT_CHAIN", f"{leaf.spiffe} is not a hospital's certificate")
        if leaf.spiffe.uri != node_id:
            raise Refusal("CERT_CHAIN", f"{node_id[:160]!a} came with the chain of {leaf.spiffe}")
        if node_id not in self.members:
            raise Refusal("NOT_MEMBER", f"{node_id} is not in the pinned list of members")
        return leaf.key


def verify_manifest(
    data: bytes,
    signature: bytes,
    chain_der: Sequence[bytes],
    *,
    ca_der: Sequence[bytes],
    federation: str,
    signed_at: int,
) -> SpiffeId:
    """Return the coordinator that signed a model manifest.

    Validity is judged at `signed_at` (Unix seconds, part of `data`; the caller takes
    it from there), so a model stays verifiable after its signer's certificate ran
    out. It follows that whoever steals an expired coordinator key can date a manifest
    back; the chained round records are what shows that.

    Raises:
        StateError: MANIFEST_SIGNATURE, wrong signature, chain, date, role or federation.
    """
    try:
        certificate = verify_chain(chain_der, ca_der, signed_at)
        leaf = read_leaf(certificate, federation=federation)
    except IdentityError as error:
        raise StateError("MANIFEST_SIGNATURE", error.detail) from None
    if leaf.spiffe.role is not Role.COORDINATOR:
        raise StateError("MANIFEST_SIGNATURE", f"{leaf.spiffe} is not a coordinator")
    try:
        verify_signature(leaf.key, signature, MANIFEST_PREFIX + data)
    except InvalidSignature:
        raise StateError(
            "MANIFEST_SIGNATURE", f"the signature is not {leaf.spiffe}'s over this manifest"
        ) from None
    return leaf.spiffe


def verify_study(
    config_hash: bytes,
    organisation: str,
    signature: bytes,
    chain_der: Sequence[bytes],
    *,
    ca_der: Sequence[bytes],
    federation: str,
    now_unix: int,
) -> SpiffeId:
    """Return the researcher that signed a study, if it is the owner the study names.

    A policy allows studies by their owners, so an owner's name has to be worth
    something: `organisation` must be the id of the signing certificate.

    Raises:
        Refusal: OWNER_SIGNATURE, wrong signature, chain, role, federation or owner.
    """
    try:
        leaf = read_leaf(verify_chain(chain_der, ca_der, now_unix), federation=federation)
        verify_signature(leaf.key, signature, STUDY_PREFIX + config_hash)
    except IdentityError as error:
        raise Refusal("OWNER_SIGNATURE", error.detail) from None
    except InvalidSignature:
        raise Refusal("OWNER_SIGNATURE", "the signature is not over this study's hash") from None
    if leaf.spiffe.role is not Role.RESEARCHER or leaf.spiffe.id != organisation:
        raise Refusal(
            "OWNER_SIGNATURE",
            f"the study names {organisation[:80]!a} as its owner but {leaf.spiffe} signed it",
        )
    return leaf.spiffe
