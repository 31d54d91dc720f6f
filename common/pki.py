"""Makes the certificates of a federation, and shows them.

Folder layout, as `fedcare pki init` and `fedcare pki issue` write it:

    pki/                      0700
      ca.crt  ca.key          the consortium's CA; the key 0600, best kept offline
      hospital-cleveland/     0700; everything one machine needs, handed over whole
        tls.crt tls.key ca.crt

A folder appears complete or not at all: it is written under a temporary name,
flushed, then renamed. Nothing is overwritten: replacing moves the old folder aside.

What a certificate must look like is in `common.certificates`, loading one in
`common.identity`; their names that users of an identity need are repeated here.
Enrolment without handling keys comes later and replaces `issue` by a signing request.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.certificate_facts import CertificateFacts, describe, facts_of
from common.certificates import (
    ChainTrust,
    Role,
    SpiffeId,
    parse_spiffe,
    stamp,
    verify_chain,
    verify_manifest,
    verify_signature,
)
from common.errors import ConfigError, IdentityError
from common.identity import (
    Identity,
    check_match,
    key_pem_bytes,
    load_certificates,
    load_identity,
    load_key,
    sign_manifest,
    to_pem,
)
from common.ids import check_name
from common.install import PRIVATE, Content, install_folder

__all__ = [
    "CertificateFacts",
    "ChainTrust",
    "Identity",
    "Role",
    "SpiffeId",
    "create_ca",
    "describe",
    "issue",
    "load_identity",
    "parse_spiffe",
    "sign_manifest",
    "verify_chain",
    "verify_manifest",
    "verify_signature",
]

CA_DAYS: Final = 3650
LEAF_DAYS: Final = 90
MAX_LEAF_DAYS: Final = 825

BACKDATE: Final = timedelta(minutes=5)
"""New certificates begin this long before now, for peers whose clocks lag a little."""

_HOST = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)


CERTIFICATE_FILE: Final = "tls.crt"
KEY_FILE: Final = "tls.key"
CA_FILE: Final = "ca.crt"
CA_KEY: Final = "ca.key"


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA with its key, which never prints."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class Made:
    """A new certificate, its key, and the files they come as, by name, in writing's order."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    files: Mapping[str, Content]

    @property
    def authority(self) -> Authority:
        """Return it as what signs others; for a CA only."""
        return Authority(self.certificate, self.key)

    @property
    def facts(self) -> CertificateFacts:
        """Return what may be printed of it."""
        return facts_of(self.certificate)


# ------------------------------------------------------------------ making certificates


def create_ca(
    folder: Path, federation: str, *, now_unix: float, days: int = CA_DAYS, force: bool = False
) -> CertificateFacts:
    """Make a consortium's CA in `folder` (`ca.crt`, `ca.key`).

    With `force` a folder that is there is moved aside whole, never deleted.

    Raises:
        FedError: BAD_VALUE for the federation's name or the days, OUTPUT_EXISTS if the
            folder holds anything, DISK.
    """
    now = datetime.fromtimestamp(now_unix, UTC)
    made = make_ca(federation, now_unix=now_unix, days=days)
    install_folder(folder, made.files, force=force, now=now)
    return made.facts


def make_ca(
    federation: str,
    *,
    now_unix: float,
    days: int = CA_DAYS,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> Made:
    """Make a CA's two files, not yet written anywhere; with a new key unless one is given.

    Raises:
        ConfigError: BAD_VALUE for the federation's name or the days.
    """
    _checked_name(federation, "federation")
    _check_days(days, MAX_LEAF_DAYS, 100 * 365)
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{federation} CA"),
        ]
    )
    now = datetime.fromtimestamp(now_unix, UTC)
    certificate = (
        _builder(name, name, key.public_key(), now - BACKDATE, now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    # The key first: a certificate without its key would look like a finished CA.
    return Made(
        certificate,
        key,
        {CA_KEY: Content(key_pem_bytes(key), PRIVATE), CA_FILE: Content(to_pem(certificate))},
    )


def issue(
    pki: Path,
    role: Role,
    name: str,
    *,
    now_unix: float,
    hosts: Sequence[str] = (),
    days: int = LEAF_DAYS,
    out: Path | None = None,
    force: bool = False,
) -> CertificateFacts:
    """Issue one leaf from the CA in `pki`, into `out` or `pki/<role>-<name>`.

    `hosts` are the DNS names and IP addresses that peers dial: at least one for a
    coordinator, none for the other roles.

    Raises:
        FedError: FILE_MISSING, KEY_PERMISSIONS or CERT_INVALID for the CA's files,
            BAD_VALUE for name, hosts and days, OUTPUT_EXISTS, DISK.
    """
    ca = load_ca(pki)
    made = make_leaf(ca, role, name, hosts=hosts, now_unix=now_unix, days=days)
    target = out if out is not None else pki / f"{role}-{name}"
    install_folder(target, made.files, force=force, now=datetime.fromtimestamp(now_unix, UTC))
    return made.facts


def make_leaf(
    ca: Authority,
    role: Role,
    name: str,
    *,
    now_unix: float,
    hosts: Sequence[str] = (),
    days: int = LEAF_DAYS,
) -> Made:
    """Make one leaf's three files, not yet written anywhere; see `issue`.

    Raises:
        FedError: BAD_VALUE for name, hosts and days; CERT_INVALID, the CA's own dates do
            not cover the leaf's.
    """
    _checked_name(name, role.value)
    _check_days(days, 1, MAX_LEAF_DAYS)
    names = host_names(role, hosts)
    spiffe = parse_spiffe(f"spiffe://{ca_federation(ca.certificate)}/{role}/{name}")
    begin, end = _leaf_dates(ca.certificate, datetime.fromtimestamp(now_unix, UTC), days)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{role} {name}"[:64])])
    certificate = (
        _builder(ca.certificate.subject, subject, key.public_key(), begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_purposes(role)), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe.uri), *names]),
            critical=False,
        )
        .sign(ca.key, hashes.SHA256())
    )
    files = {
        CA_FILE: Content(to_pem(ca.certificate)),
        KEY_FILE: Content(key_pem_bytes(key), PRIVATE),
        CERTIFICATE_FILE: Content(to_pem(certificate)),
    }
    return Made(certificate, key, files)


def _leaf_dates(ca: x509.Certificate, now: datetime, days: int) -> tuple[datetime, datetime]:
    begin, end = max(now - BACKDATE, ca.not_valid_before_utc), now + timedelta(days=days)
    if end > ca.not_valid_after_utc or now < ca.not_valid_before_utc:
        raise IdentityError(
            "CERT_INVALID",
            f"the CA is valid from {stamp(ca.not_valid_before_utc)} to "
            f"{stamp(ca.not_valid_after_utc)}, which does not cover {days} days from now",
            fix="Check this machine's clock, ask for fewer days, or make a new CA.",
        )
    return begin, end


def _builder(
    issuer: x509.Name,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    begin: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _purposes(role: Role) -> list[x509.ObjectIdentifier]:
    if role is Role.COORDINATOR:
        return [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return [ExtendedKeyUsageOID.CLIENT_AUTH]


def host_names(role: Role, hosts: Sequence[str]) -> list[x509.DNSName | x509.IPAddress]:
    """Return the names to dial as a certificate carries them.

    Raises:
        ConfigError: BAD_VALUE, one is no name, or the role has to have some, or none.
    """
    if role is not Role.COORDINATOR:
        if hosts:
            raise ConfigError(
                "BAD_VALUE", f"a {role}'s certificate carries no host names; it only dials out"
            )
        return []
    if not hosts:
        raise ConfigError(
            "BAD_VALUE",
            "a coordinator's certificate needs the DNS names or IP addresses its peers dial",
            fix="Give each with --host, for example --host coordinator.example.org.",
        )
    return [_host_name(host) for host in dict.fromkeys(hosts)]


def _host_name(host: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise ConfigError(
            "BAD_VALUE", f"{host[:120]!a} is neither an IP address nor a lower-case DNS name"
        )
    return x509.DNSName(host)


def _checked_name(value: str, what: str) -> None:
    try:
        check_name(value, what)
    except IdentityError as error:
        # Here the name is an argument, not a certificate's: it is for the caller to mend.
        raise ConfigError("BAD_VALUE", error.detail, fix="Choose a name of that form.") from None


def _check_days(days: int, least: int, most: int) -> None:
    if not least <= days <= most:
        raise ConfigError("BAD_VALUE", f"{days} days; expected {least} to {most}")


def load_ca(pki: Path) -> Authority:
    """Load a CA with its key from a folder.

    Raises:
        FedError: FILE_MISSING, KEY_PERMISSIONS or CERT_INVALID.
    """
    certificate = load_certificates(pki / CA_FILE)[0]
    key = load_key(pki / CA_KEY)
    check_match(certificate, key, pki / CA_KEY)
    return Authority(certificate, key)


def ca_federation(ca: x509.Certificate) -> str:
    """Return the federation that a CA is of.

    Raises:
        IdentityError: CERT_INVALID or IDENTITY, it is no CA of ours.
    """
    names = ca.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    if len(names) != 1:
        raise IdentityError("CERT_INVALID", "the CA was not made by `fedcare pki init`")
    return check_name(str(names[0].value), "the CA's federation")
