"""The fixed inputs of the vectors: members, terms, updates, certificates.

All secrets are SHA-256 of a name, so that a reader can make them again by hand.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.reference import plain, quantiser, rounds

FEDERATION = "vectors"
TASK = "toy-study"
NOT_BEFORE = 1_800_000_000
NOT_AFTER = 1_800_604_800
CONFIG_HASH = hashlib.sha256(b"toy configuration").digest()

LAYOUT = (("w", "float32", (5,)),)
METRICS = ("loss", "clipped")
RANGES_HEAD = (0.5, 10.0)
W_MAX = 1024
MODEL = {"w": plain.little_endian("float32", [0.5, -1.25, 3.0, 0.0, -0.0])}


def fixed(*name: object, size: int = 32) -> bytes:
    """Return `size` bytes that belong to a name."""
    text = "/".join(str(part) for part in name).encode()
    return hashlib.shake_256(text).digest(size)


def node(site: str) -> str:
    """Return a node id."""
    return f"spiffe://{FEDERATION}/hospital/{site}"


def member(site: str, *, hybrid: bool) -> rounds.Member:
    """Return a hospital's epoch keys."""
    return rounds.Member(
        node(site),
        fixed("x25519", site),
        fixed("mlkem", site, size=64) if hybrid else b"",
        fixed("session", site),
    )


def terms(epoch: int) -> rounds.Terms:
    """Return what the adverts agree on."""
    return rounds.Terms(FEDERATION, TASK, epoch, CONFIG_HASH, NOT_BEFORE, NOT_AFTER)


def session(sites: str, *, hybrid: bool, epoch: int) -> rounds.Session:
    """Return the session of one-letter sites."""
    ids = [node(site) for site in sorted(sites)]
    messages = {(a, b): fixed("encapsulate", a, b) for k, a in enumerate(ids) for b in ids[k + 1 :]}
    return rounds.run_session([member(s, hybrid=hybrid) for s in sites], terms(epoch), messages)


@dataclass(frozen=True, slots=True)
class Local:
    """What a hospital has before it quantises: an update, a count, a loss, clipped words."""

    update: tuple[float, ...]
    count: int
    loss: float
    clipped: int


LOCALS = (
    Local((0.125, -0.5, 0.25, 1e-9, 0.75), 300, 0.6931, 1),
    Local((-0.0625, 0.5, -0.7, 0.0, 0.1), 1500, 0.25, 1),
    Local((0.3, 0.2, 0.1, -0.1, -0.2), 64, 12.0, 0),
    Local((-0.4, 0.4999, -0.4999, 0.05, -0.0), 1, 0.0, 0),
    Local((0.01, -0.02, 0.03, -0.04, 0.05), 777, 1.5, 0),
)


def vector(local: Local, n: int, w: int) -> list[int]:
    """Return v: the weighted update, the weight word by size class, two metric words."""
    b = quantiser.levels(n, w)
    size = quantiser.size_class(local.count)
    words = [
        quantiser.even(x, RANGES_HEAD[0], b) for x in quantiser.weighted(local.update, size, W_MAX)
    ]
    words.append(quantiser.weight_word(size, W_MAX, b))
    words.append(quantiser.even(local.loss, RANGES_HEAD[1], b))
    words.append(quantiser.even(float(local.clipped), float(b), b))
    return words


def round_inputs(sites: str, w: int) -> dict[str, rounds.Input]:
    """Return each site's input to a round over `sites`."""
    out = {}
    for place, site in enumerate(sorted(sites)):
        others = [s for s in sites if s != site]
        out[node(site)] = rounds.Input(
            fixed("nonce", site),
            fixed("self", site),
            fixed("poly", site),
            vector(LOCALS[place], len(sites), w),
            {node(s): fixed("gcm", site, s, size=12) for s in others},
        )
    return out


def header(
    made: rounds.Session, inputs: dict[str, rounds.Input], *, r: int, c: int, s_min: int, w: int
) -> dict[str, object]:
    """Return the header of a `train` round over the toy layout."""
    b = quantiser.levels(len(inputs), w)
    return rounds.make_header(
        made,
        inputs,
        {
            "r": r,
            "kind": "train",
            "model_sha256": plain.model_sha256(LAYOUT, MODEL),
            "layout_sha256": plain.layout_sha256(LAYOUT, METRICS),
            "d": 8,
            "w": w,
            "c": c,
            "s_min": s_min,
            "ranges": [*RANGES_HEAD, float(b)],
            "W_max": W_MAX,
            "rounding": "even",
            "deadline_ms": 600_000,
        },
    )


# --- certificates --------------------------------------------------------------------


def _when(unix: int) -> datetime:
    return datetime.fromtimestamp(unix, UTC)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


Key = ec.EllipticCurvePrivateKey | Ed25519PrivateKey


def _key(*name: str, ed25519: bool) -> Key:
    """Return a certificate key; ECDSA signs deterministically (RFC 6979) below."""
    if ed25519:
        return Ed25519PrivateKey.from_private_bytes(fixed(*name))
    return ec.derive_private_key(int.from_bytes(fixed(*name), "big") >> 1, ec.SECP256R1())


def _issued(builder: x509.CertificateBuilder, key: Key) -> x509.Certificate:
    if isinstance(key, Ed25519PrivateKey):
        return builder.sign(key, None)
    return builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)


def certificate_signature(key: Key, data: bytes) -> bytes:
    """Return a certificate key's signature over a statement, the same every time."""
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(data)
    return key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def authority(name: str = "ca", *, ed25519: bool = False) -> tuple[Key, x509.Certificate]:
    """Return a test CA: key and self-signed certificate, the same bytes every time."""
    key = _key("ca", name, ed25519=ed25519)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(f"Test consortium {name}"))
        .issuer_name(_name(f"Test consortium {name}"))
        .public_key(key.public_key())
        .serial_number(1000)
        .not_valid_before(_when(NOT_BEFORE - 86_400))
        .not_valid_after(_when(NOT_AFTER + 86_400 * 365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return key, _issued(builder, key)


def leaf(
    site: str,
    *,
    ca: str = "ca",
    expired: bool = False,
    signing: bool = True,
    ed25519: bool = False,
) -> tuple[Key, bytes]:
    """Return a hospital's certificate key and DER certificate."""
    ca_key, ca_cert = authority(ca, ed25519=ed25519)
    key = _key("certificate", site, ed25519=ed25519)
    end = NOT_BEFORE - 1 if expired else NOT_AFTER + 86_400
    usage = _usage(ca=not signing)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(site))
        .issuer_name(ca_cert.subject)
        .public_key(key.public_key())
        .serial_number(2000 + ord(site[0]))
        .not_valid_before(_when(NOT_BEFORE - 3600))
        .not_valid_after(_when(end))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
            ),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(node(site))]),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return key, _issued(builder, ca_key).public_bytes(Encoding.DER)
