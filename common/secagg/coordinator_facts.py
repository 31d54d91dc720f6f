"""The coordinator's round as a list of facts, and what it asks its driver for.

A fact is durable before any node hears of it, and only facts change the durable part
of a `RoundState`: `replay(facts)` after a crash gives the same state, hence the same
header and the same S. Once a round has ended, what was released for it is forgotten;
the driver then drops the stored facts too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, assert_never

from common.errors import InternalError
from common.ids import HeaderDigest, NodeId, Sha256
from common.secagg import codec
from common.secagg.coordinator_state import (
    DoubleCommit,
    RecoveredSecrets,
    RoundPhase,
    RoundState,
    SessionView,
    StoredUpload,
)
from common.secagg.cover import Edge, EdgeRecord, edge
from common.secagg.header import Header
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
from common.secagg.setup_state import ArmTimer, SendTo

FACT_SCHEMA: Final = "fedcare.round-fact/1"


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
    return tuple(
        edge(sender, other.sender)
        for other in state.uploads
        if dict(other.end.tags).get(sender) != own.get(other.sender)
    )


def apply(state: RoundState | None, fact: RoundFact) -> RoundState:
    """Return the state after a fact; the only way a durable part of it changes.

    Raises:
        InternalError: a first fact that is not RoundOpened.
    """
    if isinstance(fact, RoundOpened):
        return _opened(state, fact)
    if state is None:
        raise InternalError("a round's facts begin with RoundOpened")
    match fact:
        case UploadAccepted() | SetProposed() | RecoveryBegun():
            return _moved(state, fact)
        case CommitAccepted():
            return replace(state, commits=(*state.commits, (fact.sender, fact.commit)))
        case CommitsConflict():
            return replace(state, evidence=(*state.evidence, fact.evidence))
        case Certified():
            return replace(state, phase=RoundPhase.CERTIFIED, certificate=fact.certificate)
        case ReleaseAccepted():
            return replace(state, releases=(*state.releases, (fact.sender, fact.release)))
        case SharesAccepted():
            return replace(state, shares=(*state.shares, (fact.sender, fact.shares)))
        case SeedsComplete():
            return replace(state, phase=RoundPhase.OPENED, recovered=fact.recovered)
        case RoundClosed() | RoundAborted():
            return _ended(state, fact)
        case _:
            assert_never(fact)


def _moved(state: RoundState, fact: UploadAccepted | SetProposed | RecoveryBegun) -> RoundState:
    match fact:
        case UploadAccepted(sender=sender, end=end):
            edges = state.edges.noted(disputed(state, sender, end))
            uploads = (*state.uploads, StoredUpload(sender, end))
            return replace(state, edges=edges, uploads=uploads)
        case SetProposed():
            return replace(state, phase=RoundPhase.PROPOSED, digests=fact.digests)
        case RecoveryBegun():
            return replace(state, phase=RoundPhase.RECOVERING)
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


# --- commands -------------------------------------------------------------------------


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
