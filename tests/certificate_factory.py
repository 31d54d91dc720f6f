"""Makes every wrong certificate of faults F41 and F42 in memory, and a right one.

`wrong_leaves` is the factory's list: each entry differs from the right hospital leaf
in one thing only, so a test that accepts one of them names the missing check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = 1_800_000_000
FEDERATION = "heart"
RIGHT = f"spiffe://{FEDERATION}/hospital/cleveland"

CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True)
class Spec:
    """A certificate to make; the defaults are the right hospital leaf. Times from now."""

    uris: Sequence[str] = (RIGHT,)
    dns: Sequence[str] = ()
    common_name: str = "hospital cleveland"
    ca: bool = False
    cert_sign: bool = False
    purposes: Sequence[x509.ObjectIdentifier] | None = (CLIENT,)
    key_usage: bool | None = True  # None: no extension; False: without digital signature
    begins: timedelta = timedelta(hours=-1)
    ends: timedelta = timedelta(days=90)
    key: Key = field(default_factory=new_key)


@dataclass(frozen=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


def make(spec: Spec, signer: Authority | None, now: float = NOW) -> x509.Certificate:
    """Sign a certificate as described; without a signer it signs itself."""
    moment = datetime.fromtimestamp(now, UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, spec.common_name)])
    signing_key = spec.key if signer is None else signer.key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if signer is None else signer.certificate.subject)
        .public_key(spec.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment + spec.begins)
        .not_valid_after(moment + spec.ends)
        .add_extension(x509.BasicConstraints(ca=spec.ca, path_length=None), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(spec.key.public_key()), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()),
            critical=False,
        )
    )
    if spec.key_usage is not None:
        builder = builder.add_extension(
            x509.KeyUsage(
                digital_signature=spec.key_usage,
                key_cert_sign=spec.cert_sign,
                crl_sign=False,
                content_commitment=False,
                key_encipherment=not spec.key_usage,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    if spec.purposes is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(spec.purposes)), critical=False)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(u) for u in spec.uris]
    names += [x509.DNSName(name) for name in spec.dns]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    algorithm = None if isinstance(signing_key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(signing_key, algorithm)


def new_ca(name: str = "heart CA", now: float = NOW) -> Authority:
    key = new_key()
    spec = Spec(
        uris=(),
        common_name=name,
        ca=True,
        cert_sign=True,
        purposes=None,
        key_usage=False,
        key=key,
        begins=timedelta(days=-400),
        ends=timedelta(days=4000),
    )
    return Authority(make(spec, None, now), key)


@dataclass(frozen=True)
class Wrong:
    """One wrong leaf: what is wrong, how it is described, and who signs it."""

    name: str
    change: Callable[[Spec], Spec]
    signer: str = "ca"  # ca | other | self

    def make(
        self, ca: Authority, other: Authority, now: float = NOW
    ) -> tuple[x509.Certificate, Key]:
        spec = self.change(Spec())
        signer = {"ca": ca, "other": other, "self": None}[self.signer]
        return make(spec, signer, now), spec.key


def _uris(*uris: str) -> Callable[[Spec], Spec]:
    return lambda spec: replace(spec, uris=uris)


def _same(spec: Spec) -> Spec:
    return spec


WRONG_LEAVES = (
    Wrong("expired", lambda s: replace(s, begins=timedelta(days=-91), ends=timedelta(seconds=-1))),
    Wrong("not yet valid", lambda s: replace(s, begins=timedelta(days=1))),
    Wrong("of another CA", _same, "other"),
    Wrong("signed by itself", _same, "self"),
    Wrong("CA flag set", lambda s: replace(s, ca=True)),
    Wrong("may sign certificates", lambda s: replace(s, cert_sign=True)),
    Wrong("CA flag set and may sign", lambda s: replace(s, ca=True, cert_sign=True)),
    Wrong("server certificate as client", lambda s: replace(s, purposes=(SERVER,))),
    Wrong("no extended key usage", lambda s: replace(s, purposes=None)),
    Wrong("no key usage", lambda s: replace(s, key_usage=None)),
    Wrong("key usage without signing", lambda s: replace(s, key_usage=False)),
    Wrong("no name at all", _uris()),
    Wrong(
        "no name but a common name of our form", lambda s: replace(s, uris=(), common_name=RIGHT)
    ),
    Wrong("a DNS name only", lambda s: replace(s, uris=(), dns=("cleveland",))),
    Wrong("a DNS name beside the URI", lambda s: replace(s, dns=("cleveland",))),
    Wrong("two URIs", _uris(RIGHT, f"spiffe://{FEDERATION}/hospital/va")),
    Wrong("the same URI twice", _uris(RIGHT, RIGHT)),
    Wrong("a second, odd URI", _uris(RIGHT, "https://example.org/")),
    Wrong("not a SPIFFE URI", _uris("https://heart/hospital/cleveland")),
    Wrong("upper-case scheme", _uris("SPIFFE://heart/hospital/cleveland")),
    Wrong("mixed-case federation", _uris("spiffe://Heart/hospital/cleveland")),
    Wrong("mixed-case role", _uris("spiffe://heart/Hospital/cleveland")),
    Wrong("mixed-case id", _uris("spiffe://heart/hospital/Cleveland")),
    Wrong("dots in the path", _uris("spiffe://heart/hospital/../operator/root")),
    Wrong("dots as the id", _uris("spiffe://heart/hospital/..")),
    Wrong("an unknown role", _uris("spiffe://heart/admin/cleveland")),
    Wrong("a segment missing", _uris("spiffe://heart/hospital")),
    Wrong("a segment too many", _uris("spiffe://heart/hospital/cleveland/x")),
    Wrong("an empty id", _uris("spiffe://heart/hospital/")),
    Wrong("a trailing slash", _uris(f"{RIGHT}/")),
    Wrong("a double slash", _uris("spiffe://heart//hospital/cleveland")),
    Wrong("a query", _uris(f"{RIGHT}?x=1")),
    Wrong("a fragment", _uris(f"{RIGHT}#x")),
    Wrong("a port", _uris("spiffe://heart:8443/hospital/cleveland")),
    Wrong("user information", _uris("spiffe://va@heart/hospital/cleveland")),
    Wrong("percent escapes", _uris("spiffe://heart/hospital/cleve%6Cand")),
    Wrong("a newline at the end", _uris(f"{RIGHT}\n")),
    Wrong("a NUL", _uris(f"{RIGHT}\x00.example.org")),
    Wrong("a hyphen at the start", _uris("spiffe://heart/hospital/-cleveland")),
    Wrong("an id of 64 characters", _uris("spiffe://heart/hospital/" + "a" * 64)),
    Wrong("another federation", _uris("spiffe://lung/hospital/cleveland")),
    Wrong("an RSA key", lambda s: replace(s, key=rsa.generate_private_key(65537, 2048))),
    Wrong("a P-384 key", lambda s: replace(s, key=ec.generate_private_key(ec.SECP384R1()))),
)


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def key_pem(key: Key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write_identity(folder: Path, certificate: x509.Certificate, key: Key, ca: Authority) -> Path:
    """Write the three files of an identity as `fedcare pki issue` would."""
    folder.mkdir(mode=0o700, parents=True)
    (folder / "tls.crt").write_bytes(pem(certificate))
    (folder / "ca.crt").write_bytes(pem(ca.certificate))
    (folder / "tls.key").touch(mode=0o600)
    (folder / "tls.key").write_bytes(key_pem(key))
    return folder
