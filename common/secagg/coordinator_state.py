"""What the coordinator's round machine knows, hears and asks for.

Every durable change is a *fact*: the driver stores it before it acts on the commands
that follow, and `replay(facts)` gives the state back after a crash. Who is ready and
who is away is not stored: the nodes say so again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, Literal, TypeAlias, assert_never

from common.errors import InternalError
from common.ids import ConfigHash, HeaderDigest, NodeId, RoundNo, SessionId, Sha256
from common.secagg import codec
from common.secagg.coordinator_session import (
    ArmTimer,
    Deadline,
    From,
    MemberBack,
    Restarted,
    SendTo,
    SessionState,
)
from common.secagg.cover import Edge, EdgeRecord, edge
from common.secagg.header import Header, RoundKind, Rounding
from common.secagg.keys import EdgeSeed, SelfSeed
from common.secagg.masking import OpeningPlan
from common.secagg.messages import (
    Certificate,
    Commit,
    Digests,
    RecoverShares,
    Release,
    RoundStatus,
    UploadEnd,
)

FACT_SCHEMA: Final = "fedcare.round-fact/1"


@dataclass(frozen=True, slots=True)
class SessionView:
    """What a round needs of its session: the confirmed members and their keys."""

    session_id: SessionId
    config_hash: ConfigHash
    keys: tuple[tuple[NodeId, bytes], ...]

    @classmethod
    def of(cls, state: SessionState) -> SessionView:
        """Return the view of a ready session.

        Raises:
            InternalError: the session has no roster yet.
        """
        if state.session_id is None:
            raise InternalError("a round needs a session whose roster is fixed")
        keys = tuple((node, state.keys[node]) for node in state.confirmed)
        return cls(state.session_id, state.terms.config_hash, keys)


class RoundPhase(StrEnum):
    """The states of section 5."""

    COLLECTING = "collecting"
    RUNNING = "running"
    PROPOSED = "proposed"
    CERTIFIED = "certified"
    RECOVERING = "recovering"
    OPENED = "opened"
    CLOSED = "closed"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """A complete, signed upload; its words lie in the driver's spool."""

    sender: NodeId
    end: UploadEnd


@dataclass(frozen=True, slots=True)
class DoubleCommit:
    """Two different commits of one node in one round."""

    node: NodeId
    first: Commit
    second: Commit


@dataclass(frozen=True, slots=True)
class RecoveredSecrets:
    """A silent survivor's self seed and pair seeds towards U minus S."""

    node: NodeId
    b: SelfSeed
    edges: tuple[tuple[NodeId, EdgeSeed], ...]


@dataclass(frozen=True, slots=True)
class RoundState:
    """One round. `header` and `hd` exist from RUNNING on."""

    session: SessionView
    r: RoundNo
    edges: EdgeRecord
    """The epoch's bad edges, this round's included; the next round begins with it."""
    phase: RoundPhase = RoundPhase.COLLECTING
    header: Header | None = None
    hd: HeaderDigest = HeaderDigest(b"")  # noqa: RUF009 - a NewType is no call
    uploads: tuple[StoredUpload, ...] = ()
    digests: Digests = ()
    """S, from PROPOSED on."""
    commits: tuple[tuple[NodeId, Commit], ...] = ()
    evidence: tuple[DoubleCommit, ...] = ()
    certificate: Certificate | None = None
    releases: tuple[tuple[NodeId, Release], ...] = ()
    shares: tuple[tuple[NodeId, RecoverShares], ...] = ()
    recovered: tuple[RecoveredSecrets, ...] = ()
    sum_sha256: bytes = b""
    model_sha256: bytes = b""
    reason: str = ""
    ready: tuple[tuple[NodeId, bytes], ...] = field(default=(), compare=False)
    """Last nonce of each ready node; not stored."""
    gone: frozenset[NodeId] = field(default=frozenset(), compare=False)
    """Away for longer than the grace period; may come back. Not stored."""
    left: frozenset[NodeId] = field(default=frozenset(), compare=False)
    """Refused this round for good. Not stored."""

    @property
    def survivors(self) -> tuple[NodeId, ...]:
        """S, sorted."""
        return tuple(node for node, _ in self.digests)


# --- events --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RoundTerms:
    """The header without what the machine fills in: n, q, t_h, kappa and the nonces."""

    kind: RoundKind
    model_sha256: Sha256
    layout_sha256: Sha256
    d: int
    c: int
    ranges: tuple[float | Literal["count"], ...]
    """`count` stands for R = B."""
    w_max: int
    deadline_ms: int
    s_min: int = 0
    """At least; never below the rule of section 1."""
    w: int = 32
    rounding: Rounding | None = None
    """None: the rule of section 7.2."""


@dataclass(frozen=True, slots=True)
class OpenRound:
    """Start the round with these ready nodes as U."""

    terms: RoundTerms
    members: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class UploadReceived:
    """A whole upload is in the spool and durable; what the driver measured of it."""

    sender: NodeId
    end: UploadEnd
    ydig: Sha256
    size_bytes: int


@dataclass(frozen=True, slots=True)
class MemberGone:
    """A node's stream was lost for longer than the grace period."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class SumOpened:
    """The sum is in range and the next model (if any) durable; `model_sha256` may be empty."""

    sum_sha256: Sha256
    model_sha256: bytes


@dataclass(frozen=True, slots=True)
class SumOutOfRange:
    """A word of the opened sum lies outside its bound."""


RoundEvent: TypeAlias = (
    From
    | OpenRound
    | UploadReceived
    | MemberGone
    | MemberBack
    | Deadline
    | SumOpened
    | SumOutOfRange
    | Restarted
)


# --- facts -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RoundOpened:
    """The header, and what the round took over from its session and epoch."""

    session: SessionView
    edges: EdgeRecord
    header: Header


@dataclass(frozen=True, slots=True)
class UploadAccepted:
    """A complete upload; never replaced."""

    sender: NodeId
    end: UploadEnd


@dataclass(frozen=True, slots=True)
class SetProposed:
    """S, before any node hears of it; never another."""

    digests: Digests


@dataclass(frozen=True, slots=True)
class CommitAccepted:
    """A verified signature over S."""

    sender: NodeId
    commit: Commit


@dataclass(frozen=True, slots=True)
class CommitsConflict:
    """Signed evidence against a node."""

    evidence: DoubleCommit


@dataclass(frozen=True, slots=True)
class Certified:
    """The first q signatures."""

    certificate: Certificate


@dataclass(frozen=True, slots=True)
class ReleaseAccepted:
    """A release that fits the sender's commitment and tags."""

    sender: NodeId
    release: Release


@dataclass(frozen=True, slots=True)
class RecoveryBegun:
    """Helpers are asked for what the silent members keep back."""


@dataclass(frozen=True, slots=True)
class SharesAccepted:
    """A helper's well-formed answer."""

    sender: NodeId
    shares: RecoverShares


@dataclass(frozen=True, slots=True)
class SeedsComplete:
    """Every seed that opens the sum is known."""

    recovered: tuple[RecoveredSecrets, ...]


@dataclass(frozen=True, slots=True)
class RoundClosed:
    """The sum was opened and used."""

    sum_sha256: Sha256
    model_sha256: bytes


@dataclass(frozen=True, slots=True)
class RoundAborted:
    """The round ended without a sum."""

    reason: str


RoundFact: TypeAlias = (
    RoundOpened
    | UploadAccepted
    | SetProposed
    | CommitAccepted
    | CommitsConflict
    | Certified
    | ReleaseAccepted
    | RecoveryBegun
    | SharesAccepted
    | SeedsComplete
    | RoundClosed
    | RoundAborted
)


def encode_fact(fact: RoundFact) -> bytes:
    """Return a fact as JSON; releases and shares in it are secret until the round closes."""
    return codec.encode(FACT_SCHEMA, RoundFact, fact)


def decode_fact(data: bytes) -> RoundFact:
    """Return the fact that `encode_fact` wrote.

    Raises:
        StateError: STATE_DAMAGED.
    """
    fact: RoundFact = codec.decode(FACT_SCHEMA, RoundFact, data)
    return fact


def disputed(state: RoundState, sender: NodeId, end: UploadEnd) -> tuple[Edge, ...]:
    """Return the edges on which an upload's tags differ from the other ends' (4.3)."""
    own = dict(end.tags)
    bad = []
    for other in state.uploads:
        if dict(other.end.tags).get(sender) != own.get(other.sender):
            bad.append(edge(sender, other.sender))
    return tuple(bad)


def apply(state: RoundState | None, fact: RoundFact) -> RoundState:  # noqa: PLR0911
    """Return the state after a fact; the only way a durable part of it changes.

    Raises:
        InternalError: a first fact that is not RoundOpened.
    """
    if isinstance(fact, RoundOpened):
        return _opened(state, fact)
    if state is None:
        raise InternalError("a round's facts begin with RoundOpened")
    match fact:
        case UploadAccepted(sender=sender, end=end):
            edges = state.edges.noted(disputed(state, sender, end))
            uploads = (*state.uploads, StoredUpload(sender, end))
            return replace(state, edges=edges, uploads=uploads)
        case SetProposed():
            return replace(state, phase=RoundPhase.PROPOSED, digests=fact.digests)
        case CommitAccepted():
            return replace(state, commits=(*state.commits, (fact.sender, fact.commit)))
        case CommitsConflict():
            return replace(state, evidence=(*state.evidence, fact.evidence))
        case Certified():
            return replace(state, phase=RoundPhase.CERTIFIED, certificate=fact.certificate)
        case ReleaseAccepted():
            return replace(state, releases=(*state.releases, (fact.sender, fact.release)))
        case RecoveryBegun():
            return replace(state, phase=RoundPhase.RECOVERING)
        case SharesAccepted():
            return replace(state, shares=(*state.shares, (fact.sender, fact.shares)))
        case SeedsComplete():
            return replace(state, phase=RoundPhase.OPENED, recovered=fact.recovered)
        case RoundClosed() | RoundAborted():
            return _ended(state, fact)
        case _:
            assert_never(fact)


def _opened(state: RoundState | None, fact: RoundOpened) -> RoundState:
    fresh = RoundState(fact.session, fact.header.r, fact.edges)
    return replace(
        fresh if state is None else state,
        phase=RoundPhase.RUNNING,
        header=fact.header,
        hd=fact.header.digest(),
    )


def _ended(state: RoundState, fact: RoundClosed | RoundAborted) -> RoundState:
    """End the round; what was released for it is forgotten."""
    match fact:
        case RoundClosed():
            return replace(
                state,
                phase=RoundPhase.CLOSED,
                releases=(),
                shares=(),
                recovered=(),
                sum_sha256=fact.sum_sha256,
                model_sha256=fact.model_sha256,
            )
        case RoundAborted():
            return replace(
                state,
                phase=RoundPhase.ABORTED,
                releases=(),
                shares=(),
                recovered=(),
                reason=fact.reason,
            )
        case _:
            assert_never(fact)


def replay(facts: Iterable[RoundFact]) -> RoundState | None:
    """Return the state after all facts; None before the first."""
    state: RoundState | None = None
    for fact in facts:
        state = apply(state, fact)
    return state


# --- commands ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """Make the fact durable before any command after this one."""

    fact: RoundFact


@dataclass(frozen=True, slots=True)
class AckUpload:
    """Answer an upload: it is durable and counted among those S is chosen from."""

    to: NodeId
    hd: HeaderDigest


@dataclass(frozen=True, slots=True)
class Open:
    """Take the masks off the sum of the survivors' uploads, check its range, use it.

    Answer with SumOpened or SumOutOfRange. Uploads outside `survivors` are not in it.
    """

    header: Header
    survivors: tuple[NodeId, ...]
    plan: OpeningPlan


@dataclass(frozen=True, slots=True)
class Evidence:
    """Keep this, and show it to the operator."""

    evidence: DoubleCommit


@dataclass(frozen=True, slots=True)
class Report:
    """Log a catalogue name about these nodes; the round goes on."""

    nodes: tuple[NodeId, ...]
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Close:
    """The round is over; spools can go. `sit_out`: not in the next cohort (4.6)."""

    status: RoundStatus
    reason: str
    sit_out: tuple[NodeId, ...]


RoundCommand: TypeAlias = Record | SendTo | ArmTimer | AckUpload | Open | Evidence | Report | Close
