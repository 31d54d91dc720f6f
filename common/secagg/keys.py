"""Keys of an epoch and of a round, as types that cannot be swapped (sections 3.3, 4.2).

    AgreementKeys --x25519 (+ ML-KEM)--> prk --> ChainKey CK_1 --> CK_2 --> ... one step a round
                                                    |-> EdgeSeed e_ij (mask), its tag
                                                    `-> ShareKey i -> h (seals shares)
    SessionKey signs this epoch's statements; the certificate key signs the advert only.

Order that matters: the agreement keys are erased once all pair chains are durable,
and a chain is stepped on (the old key erased) once a round's keys are derived. Then
neither recorded traffic nor a stolen disk opens an earlier round.

Every function takes and returns typed secrets; `Secret.reveal()` is called only next
to a primitive. ML-KEM encapsulation draws inside OpenSSL: the library takes no seed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NewType, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from common.encoding import Label, expand, extract, hash_label
from common.entropy import Entropy
from common.errors import InternalError, Refusal
from common.ids import HeaderDigest, NodeId, SessionId
from common.secret import Secret

KEY_BYTES: Final = 32
MLKEM_SEED_BYTES: Final = 64
MLKEM_PUBLIC_BYTES: Final = 1184
MLKEM_CIPHERTEXT_BYTES: Final = 1088
SIGNATURE_BYTES: Final = 64
TAG_BYTES: Final = 16

EdgeTag = NewType("EdgeTag", bytes)
"""16 bytes that both ends of an edge send; equal if key and header are."""

SelfCommit = NewType("SelfCommit", bytes)
"""32 bytes that bind a node to its self seed before anything is released."""


class Suite(StrEnum):
    """How pair keys are agreed; part of the canonical study."""

    HYBRID = "hybrid"
    CLASSICAL = "classical"


class _Key32(Secret):
    """A secret of exactly 32 bytes."""

    __slots__ = ()

    def __init__(self, value: bytes) -> None:
        if len(value) != KEY_BYTES:
            raise InternalError(f"a {type(self).__name__} has 32 bytes, not {len(value)}")
        super().__init__(value)

    @classmethod
    def fresh(cls, entropy: Entropy) -> Self:
        """Return a new one from `entropy`."""
        return cls(entropy.take(KEY_BYTES))


class PairKey(_Key32):
    """`prk_ij`: what the key agreement gave; erased as soon as `CK_1` exists."""

    __slots__ = ()


class ChainKey(_Key32):
    """`CK_ij,r`: one pair, one round of the ratchet."""

    __slots__ = ()


class EdgeSeed(_Key32):
    """`e_ij`: seed of the pairwise mask of one header."""

    __slots__ = ()


class ShareKey(_Key32):
    """`sh_ih`: seals i's shares for helper h under one header."""

    __slots__ = ()


class SelfSeed(_Key32):
    """`b_i`: seed of a node's own mask of one header."""

    __slots__ = ()


class CoefficientSeed(_Key32):
    """`a_i`: Shamir coefficients, rounding and noise of one node and header."""

    __slots__ = ()


class KemSecret(_Key32):
    """The shared secret of one ML-KEM-768 encapsulation."""

    __slots__ = ()


# --- key agreement ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgreementKeys:
    """A node's X25519 key and, in the hybrid suite, ML-KEM-768 seed of one epoch.

    Both are raw secrets so that a pending epoch can be sealed and read back:
    `AgreementKeys(Secret(x), Secret(m))`.
    """

    x25519: Secret
    mlkem: Secret | None

    @classmethod
    def generate(cls, suite: Suite, entropy: Entropy) -> Self:
        """Return fresh keys."""
        x25519 = Secret(entropy.take(KEY_BYTES))
        match suite:
            case Suite.HYBRID:
                return cls(x25519, Secret(entropy.take(MLKEM_SEED_BYTES)))
            case Suite.CLASSICAL:
                return cls(x25519, None)

    @property
    def suite(self) -> Suite:
        """Which suite these keys serve."""
        return Suite.CLASSICAL if self.mlkem is None else Suite.HYBRID

    def x25519_public(self) -> bytes:
        """Return the raw public key, 32 bytes."""
        return (
            X25519PrivateKey.from_private_bytes(self.x25519.reveal())
            .public_key()
            .public_bytes_raw()
        )

    def mlkem_public(self) -> bytes:
        """Return the raw encapsulation key, 1,184 bytes; empty in the classical suite."""
        if self.mlkem is None:
            return b""
        return _mlkem_private(self.mlkem).public_key().public_bytes_raw()

    def exchange(self, peer_x25519: bytes) -> Secret:
        """Return the X25519 result with a peer's raw public key.

        Raises:
            Refusal: ZERO_DH, the result is all zero; KEY_ADVERT, not a public key.
        """
        if len(peer_x25519) != KEY_BYTES:
            raise Refusal("KEY_ADVERT", "an X25519 public key has 32 bytes")
        own = X25519PrivateKey.from_private_bytes(self.x25519.reveal())
        try:
            shared = own.exchange(X25519PublicKey.from_public_bytes(peer_x25519))
        except ValueError:
            raise Refusal("ZERO_DH", "a peer's X25519 key gives the all-zero result") from None
        if not any(shared):  # the library refuses it already; the rule is ours to keep
            raise Refusal("ZERO_DH", "a peer's X25519 key gives the all-zero result")
        return Secret(shared)

    def decapsulate(self, ct: bytes) -> KemSecret:
        """Return the secret a peer encapsulated to this node's ML-KEM key.

        A forged ciphertext of the right length gives a secret that nobody knows
        (implicit rejection): the edge tags then differ.

        Raises:
            Refusal: KEM, no ML-KEM key, or a ciphertext of another length.
        """
        if self.mlkem is None:
            raise Refusal("KEM", "a ciphertext came although the suite is classical")
        if len(ct) != MLKEM_CIPHERTEXT_BYTES:
            raise Refusal("KEM", f"an ML-KEM-768 ciphertext has 1088 bytes, not {len(ct)}")
        return KemSecret(_mlkem_private(self.mlkem).decapsulate(ct))


def _mlkem_private(seed: Secret) -> MLKEM768PrivateKey:
    return MLKEM768PrivateKey.from_seed_bytes(seed.reveal())


def encapsulate(peer_mlkem: bytes) -> tuple[bytes, KemSecret]:
    """Return a ciphertext for a peer's raw ML-KEM-768 key, and the shared secret.

    Raises:
        Refusal: KEM, the key is not an ML-KEM-768 encapsulation key.
    """
    try:
        shared, ct = MLKEM768PublicKey.from_public_bytes(peer_mlkem).encapsulate()
    except ValueError:
        raise Refusal("KEM", "a peer's ML-KEM-768 key is malformed") from None
    return ct, KemSecret(shared)


def check_public_keys(x25519: bytes, mlkem: bytes) -> None:
    """Return if every other member can agree on keys with the owner of these.

    Without this a hostile member's key would fail at all the others, and they, not it,
    would be missing from the epoch. `mlkem` is empty in the classical suite.

    Raises:
        Refusal: ZERO_DH, an X25519 point of small order; KEM, no ML-KEM-768 key.
    """
    # Private keys are multiples of the cofactor: with such a point all of them give zero.
    AgreementKeys(Secret(bytes([1]) * KEY_BYTES), None).exchange(x25519)
    if mlkem:
        encapsulate(mlkem)


def pair_prk(session_id: SessionId, shared: Secret, kem: KemSecret | None, ct: bytes) -> PairKey:
    """Return `prk_ij`; in the classical suite `kem` is None and `ct` empty.

    Raises:
        InternalError: a KEM secret without its ciphertext, or the reverse.
    """
    if (kem is None) != (ct == b""):
        raise InternalError("a KEM secret and its ciphertext go together")
    ikm = shared.reveal()
    if kem is not None:
        ikm += kem.reveal() + hashlib.sha256(ct).digest()
    return PairKey(extract(session_id, ikm))


def chain0(prk: PairKey, one: NodeId, other: NodeId) -> ChainKey:
    """Return `CK_ij,1`; the order of the two ids does not matter."""
    lo, hi = sorted((one, other), key=str.encode)
    return ChainKey(expand(prk.reveal(), Label.CHAIN0, lo, hi))


# --- one round -------------------------------------------------------------------


def ratchet(chain: ChainKey) -> ChainKey:
    """Return the next round's chain key; the caller erases the old one."""
    return ChainKey(expand(chain.reveal(), Label.CHAIN))


def ratchet_to(chain: ChainKey, at: int, r: int) -> ChainKey:
    """Return `CK_r` from the key that stands at round `at <= r`.

    Raises:
        InternalError: `at > r`; a chain never goes back.
    """
    if at > r:
        raise InternalError(f"a chain at round {at} cannot go back to {r}")
    for _ in range(r - at):
        chain = ratchet(chain)
    return chain


def edge_seed(chain: ChainKey, hd: HeaderDigest) -> EdgeSeed:
    """Return `e_ij` of the header `hd`."""
    return EdgeSeed(expand(chain.reveal(), Label.EDGE, hd))


def share_key(chain: ChainKey, hd: HeaderDigest, sender: NodeId, helper: NodeId) -> ShareKey:
    """Return `sh` for shares that `sender` seals to `helper`; the direction matters."""
    return ShareKey(expand(chain.reveal(), Label.SHARE, hd, sender, helper))


def edge_tag(edge: EdgeSeed) -> EdgeTag:
    """Return the 16-byte tag that both ends of the edge send."""
    return EdgeTag(expand(edge.reveal(), Label.EDGE_TAG, length=TAG_BYTES))


def self_commit(hd: HeaderDigest, node: NodeId, seed: SelfSeed) -> SelfCommit:
    """Return the commitment to a node's self seed, 32 bytes."""
    return SelfCommit(hash_label(Label.SELF_COMMIT, hd, node, seed.reveal()))


# --- signatures ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionKey:
    """A node's Ed25519 key of one epoch, as its raw 32-byte seed."""

    seed: Secret

    @classmethod
    def generate(cls, entropy: Entropy) -> Self:
        """Return a fresh key."""
        return cls(Secret(entropy.take(KEY_BYTES)))

    def public(self) -> bytes:
        """Return the raw public key, 32 bytes."""
        return self._key().public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """Return the signature over a `statement`, 64 bytes, deterministic."""
        return self._key().sign(data)

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed.reveal())


def verify_session_signature(
    public: bytes, signature: bytes, data: bytes, *, refusal: str, who: NodeId
) -> None:
    """Return if `signature` over `data` is that of the raw Ed25519 key `public`.

    `refusal` is the catalogue name to raise (KEM, UPLOAD_SIG, COMMIT_SIG, CERT_SIG ...).

    Raises:
        Refusal: it is not; names `who`.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        raise Refusal(refusal, f"the session signature of {who} does not verify") from None


def verify_certificate_signature(
    public_key: CertificatePublicKeyTypes, signature: bytes, data: bytes
) -> None:
    """Return if `signature` over `data` is that of a certificate's key.

    Ed25519 raw, or ECDSA on P-256 with SHA-256 in DER. Other keys are refused even
    where the certificate verifies: the protocol knows these two.

    Raises:
        Refusal: ADVERT_SIG.
    """
    try:
        if isinstance(public_key, Ed25519PublicKey):
            public_key.verify(signature, data)
            return
        if isinstance(public_key, ec.EllipticCurvePublicKey) and isinstance(
            public_key.curve, ec.SECP256R1
        ):
            public_key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
            return
    except InvalidSignature:
        raise Refusal("ADVERT_SIG", "a key advert's signature does not verify") from None
    raise Refusal("ADVERT_SIG", "a certificate's key is neither Ed25519 nor ECDSA P-256")
