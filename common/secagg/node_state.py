"""What a node's machine knows, hears and asks for: states, events, commands.

The state is frozen and holds one task: at most one epoch being set up, at most one
live session, in it at most one open round, and the memory of rule 10.4. Each phase is
a type that carries exactly its own data. `encode_state` and `decode_state` turn it
into bytes that the driver seals; they contain key material.

A round's nonce is deliberately not stored: a node restored from a backup must not be
able to accept an old header again (section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal, TypeAlias

from common.entropy import Entropy
from common.ids import Epoch, HeaderDigest, NodeId, RoundNo, SessionId, Sha256
from common.secagg import codec
from common.secagg.dp import DpPlan
from common.secagg.header import Header, Rounding, RoundKind
from common.secagg.keys import (
    AgreementKeys,
    ChainKey,
    CoefficientSeed,
    EdgeSeed,
    KemSecret,
    SelfSeed,
    SessionKey,
    ShareKey,
)
from common.secagg.messages import (
    Certificate,
    Digests,
    FromNode,
    Kem,
    KemForward,
    KeyAdvert,
    Propose,
    RecoverRequest,
    Roster,
    RoundResult,
    UploadEnd,
)
from common.secagg.rerun import RerunMemory
from common.secagg.rules import NodeRules
from common.secagg.session import EpochTerms, Signer, Trust

STATE_SCHEMA: Final = "fedcare.node-state/1"
NO_EPOCH: Final = Epoch(0)
NO_ROUND: Final = RoundNo(0)
EMPTY_MEMORY: Final = RerunMemory()

RangeRule: TypeAlias = float | Literal["free", "count"]
"""A fixed range; `free`: the coordinator chooses; `count`: R = B, that is scale 1."""


# --- what the node was told by its own hospital, and what a study implies ---------------


@dataclass(frozen=True, slots=True)
class HeaderExpectation:
    """One kind of round that the accepted study implies; a header has to match one."""

    kind: RoundKind
    layout_sha256: Sha256
    d: int
    ranges: tuple[RangeRule, ...]
    """One rule for each `R_l`; their number is `L`."""
    w_max: int
    rounding: Rounding | None = None
    """None: the rule of section 7.2."""
    w: int = 32
    s_min: int = 0
    """At least this many survivors, by the study."""
    dp: DpPlan | None = None
    """None: a round without differential privacy."""


@dataclass(frozen=True, slots=True)
class SessionExpectation:
    """All that the accepted study fixes for a session's headers; no groups yet."""

    rounds: tuple[HeaderExpectation, ...]
    colluders: int
    max_deadline_ms: int


@dataclass(frozen=True, slots=True)
class NodeContext:
    """What the driver passes with each event; nothing in here is stored."""

    entropy: Entropy
    now_unix: int
    signer: Signer
    trust: Trust
    rules: NodeRules


# --- an epoch being set up ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Advertised:
    """The advert is sent; the roster is awaited."""

    terms: EpochTerms
    expect: SessionExpectation
    agreement: AgreementKeys
    key: SessionKey
    advert: KeyAdvert


@dataclass(frozen=True, slots=True)
class SentCiphertext:
    """What this node encapsulated to a larger id; needed until the pair key exists."""

    to: NodeId
    ct: bytes
    secret: KemSecret


@dataclass(frozen=True, slots=True)
class Encapsulated:
    """The Kem is sent; ciphertexts of the smaller ids are awaited (hybrid suite)."""

    begun: Advertised
    session_id: SessionId
    members: tuple[KeyAdvert, ...]
    """Sorted by id, certificate chains dropped."""
    next_r: RoundNo
    not_after: int
    sent: tuple[SentCiphertext, ...]
    kem: Kem


Setup: TypeAlias = Advertised | Encapsulated


# --- a live session and its open round ------------------------------------------------


@dataclass(frozen=True, slots=True)
class Peer:
    """Another member: its session key and the chain shared with it."""

    id: NodeId
    key: bytes
    chain: ChainKey


class Phase(StrEnum):
    """Where an open round stands, in order."""

    STARTED = "started"
    UPLOADING = "uploading"
    UPLOADED = "uploaded"
    COMMITTED = "committed"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class PairSecrets:
    """A round's secrets with one other member of U."""

    peer: NodeId
    edge: EdgeSeed
    """`e_ij`."""
    seal_to: ShareKey
    """Seals this node's shares for the peer."""
    open_from: ShareKey
    """Opens the peer's shares."""


@dataclass(frozen=True, slots=True)
class Upload:
    """What rebuilds the end record byte for byte: drawn once, before the first byte."""

    ydig: Sha256
    helpers: tuple[NodeId, ...]
    seal_nonces: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class OpenRound:
    """A round from its accepted header until it is closed; `b`, `a`: `b_i`, `a_i`."""

    hd: HeaderDigest
    header: Header
    phase: Phase
    b: SelfSeed
    a: CoefficientSeed
    pairs: tuple[PairSecrets, ...]
    upload: Upload | None = None
    accepted: Digests | None = None
    """The one set this node signed or accepted; never replaced by another."""


@dataclass(frozen=True, slots=True)
class LiveSession:
    """A confirmed session. Chains stand at round `chain_r`, the first not yet started."""

    session_id: SessionId
    terms: EpochTerms
    expect: SessionExpectation
    key: SessionKey
    peers: tuple[Peer, ...]
    chain_r: RoundNo
    next_r: RoundNo
    """The coordinator's word for the next round's number; a hint, never trusted."""
    not_after: int
    open: OpenRound | None = None
    last_hd: bytes = b""
    """The header last closed, empty before the first."""
    nonce_r: RoundNo = field(default=NO_ROUND, metadata=codec.transient())
    nonce: bytes = field(default=b"", metadata=codec.transient(), repr=False)


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node's whole memory of one task."""

    last_epoch: Epoch = NO_EPOCH
    setup: Setup | None = None
    session: LiveSession | None = None
    rerun: RerunMemory = EMPTY_MEMORY


def encode_state(state: NodeState) -> bytes:
    """Return the state as JSON, to be sealed before it touches a disk."""
    return codec.encode(STATE_SCHEMA, NodeState, state)


def decode_state(data: bytes) -> NodeState:
    """Return the state that `encode_state` wrote.

    Raises:
        StateError: STATE_DAMAGED, naming what does not fit.
    """
    state: NodeState = codec.decode(STATE_SCHEMA, NodeState, data)
    return state


# --- events ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BeginEpoch:
    """Local: the hospital accepted a study; make keys for an epoch of it."""

    terms: EpochTerms
    expect: SessionExpectation
    not_before: int
    not_after: int


@dataclass(frozen=True, slots=True)
class MakeReady:
    """Local: this node can take part in the next round."""


@dataclass(frozen=True, slots=True)
class HeaderReceived:
    """A RoundStart; the driver hashed the model as it came in (section 4.2)."""

    header: Header
    received_model_sha256: Sha256


@dataclass(frozen=True, slots=True)
class InputFinal:
    """Local: `v_i` and `y_i` are final and durable; `ydig` is SHA-256 of `y_i`."""

    hd: HeaderDigest
    ydig: Sha256


@dataclass(frozen=True, slots=True)
class InputFailed:
    """Local: no input for this round (`code`, for example INPUT_NAN); leave it."""

    hd: HeaderDigest
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class UploadAcked:
    """The coordinator holds the whole upload."""

    hd: HeaderDigest


@dataclass(frozen=True, slots=True)
class LocalTimeout:
    """Local: the round has lasted too long; its keys are erased."""

    hd: HeaderDigest


@dataclass(frozen=True, slots=True)
class Restarted:
    """Local: after a crash or a lost stream, say again what was said last."""


@dataclass(frozen=True, slots=True)
class BackupRestored:
    """Local: the state came from an old copy; its session and what it was setting up are wiped.

    `last_epoch`: the largest epoch that others have seen this node in.
    """

    last_epoch: int = 0


NodeEvent: TypeAlias = (
    BeginEpoch
    | Roster
    | KemForward
    | MakeReady
    | HeaderReceived
    | InputFinal
    | InputFailed
    | UploadAcked
    | Propose
    | Certificate
    | RecoverRequest
    | RoundResult
    | LocalTimeout
    | Restarted
    | BackupRestored
)


# --- commands -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Persist:
    """Make the new state durable before any command after this one."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to the coordinator."""

    message: FromNode


@dataclass(frozen=True, slots=True)
class PrepareInput:
    """Train now; make `v_i`, mask it with `mask_plan(state)`, then say `InputFinal`."""

    hd: HeaderDigest
    header: Header


@dataclass(frozen=True, slots=True)
class StartUpload:
    """Stream the durable `y_i` (from where the coordinator has it), then this record."""

    end: UploadEnd


@dataclass(frozen=True, slots=True)
class RoundClosed:
    """Erase `v_i`, `y_i` and all spools of this header."""

    hd: HeaderDigest
    status: str


@dataclass(frozen=True, slots=True)
class Report:
    """Log a refusal that did not stop the step."""

    code: str
    detail: str


NodeCommand: TypeAlias = Persist | Send | PrepareInput | StartUpload | RoundClosed | Report

Outcome: TypeAlias = tuple[NodeState, list[NodeCommand]]
