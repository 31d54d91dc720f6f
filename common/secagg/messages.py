"""Every message of the protocol, one frozen class each (protocol, section 4.8).

These are the words both machines speak; `common/wire.py` turns peer bytes into them
and is the only place that checks sizes. Hashes and signatures are never over these
objects but over the encodings of section 3.1, which the machines rebuild field by
field.

A normal round, in order (N node, C coordinator):

    N -> C  Ready         a fresh nonce for round r
    C -> N  RoundStart    the header (the model streams beside it)
    N -> C  UploadEnd     ends the masked upload
    C -> N  Propose       the survivor set S with every digest
    N -> C  Commit        a signature over S
    C -> N  Certificate   at least q such signatures
    N -> C  Release       the self seed, and the pair seeds of those who dropped out
    C -> N  RoundResult   what came of it, and the next round's number

`RecoverRequest` and `RecoverShares` exist only if a member of S falls silent after
the certificate. `KeyAdvert`, `Roster`, `Kem`, `KemForward` and `Confirm` set up a
session, once per epoch. Fields that hold seeds or shares are `Secret`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from common.ids import ConfigHash, Epoch, HeaderDigest, NodeId, RoundNo, SessionId, Sha256
from common.secagg.header import Header
from common.secret import Secret

Digests: TypeAlias = tuple[tuple[NodeId, Sha256], ...]
"""`(id, ydig)*`: a survivor set S with the digest of each upload, sorted by id."""


class RoundStatus(Enum):
    """How a round ended; the value travels."""

    OPENED = "opened"
    ABORTED = "aborted"


# --- session set-up (section 3.3) -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyAdvert:
    """Node -> coordinator: fresh public keys for an epoch, signed by the certificate."""

    id: NodeId
    federation: str
    task: str
    epoch: Epoch
    x25519_pub: bytes
    """32 bytes."""
    mlkem_pub: bytes
    """1,184 bytes (ML-KEM-768), or empty in the classical suite."""
    ed25519_pub: bytes
    """32 bytes; the session key."""
    config_hash: ConfigHash
    not_before: int
    """Unix seconds."""
    not_after: int
    """Unix seconds."""
    cert_chain: tuple[bytes, ...]
    """DER, leaf first."""
    sig: bytes
    """By the certificate's key: Ed25519 (64 bytes) or ECDSA-SHA-256 in DER."""


@dataclass(frozen=True, slots=True)
class Roster:
    """Coordinator -> all members: every advert, and the number of the next round.

    Sent again to a member that reconnects; a node that already confirmed this very
    session answers with its confirmation and takes `next_r` from it.
    """

    adverts: tuple[KeyAdvert, ...]
    next_r: RoundNo


@dataclass(frozen=True, slots=True)
class KemItem:
    """One ciphertext of the sender of a `Kem`, for the member `to`."""

    to: NodeId
    ct: bytes
    """1,088 bytes."""
    sig: bytes
    """64 bytes, session key."""


@dataclass(frozen=True, slots=True)
class Kem:
    """Node -> coordinator: ciphertexts for every larger id (hybrid suite only)."""

    sender: NodeId
    items: tuple[KemItem, ...]


@dataclass(frozen=True, slots=True)
class KemFrom:
    """One forwarded ciphertext, from the member `sender`."""

    sender: NodeId
    ct: bytes
    sig: bytes


@dataclass(frozen=True, slots=True)
class KemForward:
    """Coordinator -> node: the ciphertexts of every smaller id, in one message.

    Sent once the node's own Kem is there too; the smallest id's has no items.
    """

    session_id: SessionId
    items: tuple[KemFrom, ...]


@dataclass(frozen=True, slots=True)
class Confirm:
    """Node -> coordinator: all pair keys are durable."""

    session_id: SessionId
    sig: bytes


# --- a round (section 4) --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """Node -> coordinator: 32 fresh bytes for round `r`; the last one sent counts."""

    session_id: SessionId
    r: RoundNo
    nonce: bytes


@dataclass(frozen=True, slots=True)
class RoundStart:
    """Coordinator -> members of U."""

    header: Header
    model_stream_id: bytes = b""
    """Content address (32 bytes) of the object that holds the model; the driver's affair."""


@dataclass(frozen=True, slots=True)
class SealedShares:
    """Shares of the uploader's secrets, sealed to `helper`."""

    helper: NodeId
    nonce: bytes
    """12 bytes."""
    ct: bytes


@dataclass(frozen=True, slots=True)
class UploadEnd:
    """Node -> coordinator: the end-of-upload record of section 4.3."""

    hd: HeaderDigest
    ydig: Sha256
    self_commit: Sha256
    tags: tuple[tuple[NodeId, bytes], ...]
    """(other end, 16 bytes), sorted by id."""
    sealed: tuple[SealedShares, ...]
    sig: bytes


@dataclass(frozen=True, slots=True)
class Propose:
    """Coordinator -> members of S."""

    hd: HeaderDigest
    digests: Digests


@dataclass(frozen=True, slots=True)
class Commit:
    """Node -> coordinator: a signature over `st` of section 4.4."""

    hd: HeaderDigest
    set_hash: Sha256
    sig: bytes


@dataclass(frozen=True, slots=True)
class Certificate:
    """Coordinator -> members of S: at least q signatures over the same `st`."""

    hd: HeaderDigest
    digests: Digests
    sigs: tuple[tuple[NodeId, bytes], ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Node -> coordinator: the self seed, and the pair seeds towards U minus S."""

    hd: HeaderDigest
    b: Secret
    edges: tuple[tuple[NodeId, Secret], ...]


@dataclass(frozen=True, slots=True)
class SealedFrom:
    """The sealed shares of the silent member `sender`."""

    sender: NodeId
    nonce: bytes
    ct: bytes


@dataclass(frozen=True, slots=True)
class RecoverRequest:
    """Coordinator -> helper in S: open these and return what section 4.6 allows."""

    certificate: Certificate
    sealed: tuple[SealedFrom, ...]


@dataclass(frozen=True, slots=True)
class RecoverItem:
    """A helper's shares (33 bytes each) of one silent member's secrets."""

    sender: NodeId
    b_share: Secret
    edges: tuple[tuple[NodeId, Secret], ...]


@dataclass(frozen=True, slots=True)
class RecoverShares:
    """Helper -> coordinator."""

    hd: HeaderDigest
    items: tuple[RecoverItem, ...]


@dataclass(frozen=True, slots=True)
class RoundResult:
    """Coordinator -> members of U: the round is over.

    `digests` is the certified S (empty when the round was aborted before one was
    certified); `sum_sha256` and `model_sha256` are empty unless it was opened.
    """

    hd: HeaderDigest
    status: RoundStatus
    digests: Digests
    sum_sha256: bytes
    model_sha256: bytes
    next_r: RoundNo
    reason: str = ""
    """The refusal name behind an abort, for example `NOT_ENOUGH`."""


# --- either direction -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refused:
    """What was refused and why; `hd` is empty outside a round."""

    hd: bytes
    code: str
    """A catalogue name, for example `RERUN`."""
    detail: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Node -> coordinator: how far did my upload get?"""

    hd: HeaderDigest


@dataclass(frozen=True, slots=True)
class ResumeState:
    """Coordinator -> node: the next expected chunk; `done` once the record is stored."""

    hd: HeaderDigest
    next_chunk: int
    done: bool


FromNode: TypeAlias = (
    KeyAdvert | Kem | Confirm | Ready | UploadEnd | Commit | Release | RecoverShares | Refused
)
"""What a node sends on its control stream; `UploadEnd` ends the upload stream."""

FromCoordinator: TypeAlias = (
    Roster
    | KemForward
    | RoundStart
    | Propose
    | Certificate
    | RecoverRequest
    | RoundResult
    | Refused
)
"""What the coordinator sends on a node's control stream."""
