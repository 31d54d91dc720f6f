"""What the coordinator's epoch set-up knows, hears and asks for (section 3.3).

Facts are public data: adverts, ciphertexts, confirmations. `replay(facts)` gives the
state back after a crash; the machine itself is `common.secagg.coordinator_session`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeAlias, assert_never

from common.errors import InternalError
from common.ids import NodeId, RoundNo, SessionId
from common.secagg import codec
from common.secagg.keys import Suite
from common.secagg.messages import FromCoordinator, FromNode, Kem, KeyAdvert
from common.secagg.params import DEFAULT_MIN_COHORT
from common.secagg.session import EpochTerms, Trust
from common.secagg.transcript import sort_ids

FACT_SCHEMA: Final = "fedcare.session-fact/1"
FIRST_ROUND: Final = RoundNo(1)


class SetupPhase(StrEnum):
    """Where a set-up stands; also the name of the timer that guards the phase."""

    ADVERTS = "adverts"
    KEMS = "kems"
    CONFIRMS = "confirms"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SessionState:
    """One epoch. Lists are sorted by id."""

    terms: EpochTerms
    invited: tuple[NodeId, ...]
    min_members: int
    wait_s: float
    """Seconds that each of the three phases may take."""
    phase: SetupPhase = SetupPhase.ADVERTS
    session_id: SessionId | None = None
    adverts: tuple[KeyAdvert, ...] = ()
    kems: tuple[Kem, ...] = ()
    confirmed: tuple[NodeId, ...] = ()

    @property
    def members(self) -> tuple[NodeId, ...]:
        """Who advertised so far; the roster, once it is fixed."""
        return tuple(advert.id for advert in self.adverts)

    @property
    def keys(self) -> dict[NodeId, bytes]:
        """Session keys of the roster."""
        return {advert.id: advert.ed25519_pub for advert in self.adverts}


@dataclass(frozen=True, slots=True)
class SessionContext:
    """What the driver passes with each event."""

    trust: Trust
    now_unix: int


# --- events, facts, commands ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Start an epoch with these nodes, all of whom accepted the study."""

    terms: EpochTerms
    invited: tuple[NodeId, ...]
    wait_s: float
    min_members: int = DEFAULT_MIN_COHORT


@dataclass(frozen=True, slots=True)
class From:
    """A message of an authenticated node."""

    sender: NodeId
    message: FromNode


@dataclass(frozen=True, slots=True)
class Deadline:
    """The timer of this name ran out; a stale one is ignored."""

    name: str


@dataclass(frozen=True, slots=True)
class MemberBack:
    """A node's stream is back: tell it again what it may have missed."""

    node: NodeId
    next_r: RoundNo = FIRST_ROUND


@dataclass(frozen=True, slots=True)
class Restarted:
    """The coordinator restarted: send again, arm the timer again."""


SessionEvent: TypeAlias = OpenSession | From | Deadline | MemberBack | Restarted


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """The epoch's terms; no epoch number is ever used twice."""

    opened: OpenSession


@dataclass(frozen=True, slots=True)
class AdvertAccepted:
    """A verified advert."""

    advert: KeyAdvert


@dataclass(frozen=True, slots=True)
class RosterFixed:
    """No further advert counts."""

    session_id: SessionId


@dataclass(frozen=True, slots=True)
class KemAccepted:
    """A member's verified ciphertexts."""

    kem: Kem


@dataclass(frozen=True, slots=True)
class PhaseEntered:
    """The set-up went on, or ended."""

    phase: SetupPhase


@dataclass(frozen=True, slots=True)
class ConfirmAccepted:
    """A member may take part in rounds."""

    node: NodeId


SessionFact: TypeAlias = (
    SessionOpened | AdvertAccepted | RosterFixed | KemAccepted | PhaseEntered | ConfirmAccepted
)


@dataclass(frozen=True, slots=True)
class RecordSession:
    """Make the fact durable before any command after this one."""

    fact: SessionFact


@dataclass(frozen=True, slots=True)
class SendTo:
    """Send a message to a node; a driver drops it if the node is away."""

    to: NodeId
    message: FromCoordinator


@dataclass(frozen=True, slots=True)
class ArmTimer:
    """Say `Deadline(name)` after so many seconds."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class SessionReady:
    """Rounds may start with the members confirmed so far."""

    session_id: SessionId


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """The epoch is over; `missing` did not do their part."""

    reason: str
    missing: tuple[NodeId, ...]


SessionCommand: TypeAlias = RecordSession | SendTo | ArmTimer | SessionReady | SessionFailed


def encode_fact(fact: SessionFact) -> bytes:
    """Return a fact as JSON; it holds public data only."""
    return codec.encode(FACT_SCHEMA, SessionFact, fact)


def decode_fact(data: bytes) -> SessionFact:
    """Return the fact that `encode_fact` wrote.

    Raises:
        StateError: STATE_DAMAGED.
    """
    fact: SessionFact = codec.decode(FACT_SCHEMA, SessionFact, data)
    return fact


def apply(state: SessionState | None, fact: SessionFact) -> SessionState:
    """Return the state after a fact; the only way the state changes.

    Raises:
        InternalError: a first fact that is not SessionOpened.
    """
    if isinstance(fact, SessionOpened):
        opened = fact.opened
        invited = sort_ids(opened.invited)
        return SessionState(opened.terms, invited, opened.min_members, opened.wait_s)
    if state is None:
        raise InternalError("a session's facts begin with SessionOpened")
    match fact:
        case AdvertAccepted():
            adverts = sorted((*state.adverts, fact.advert), key=lambda one: one.id.encode())
            return replace(state, adverts=tuple(adverts))
        case RosterFixed():
            hybrid = state.terms.suite is Suite.HYBRID
            phase = SetupPhase.KEMS if hybrid else SetupPhase.CONFIRMS
            return replace(state, session_id=fact.session_id, phase=phase)
        case KemAccepted():
            kems = sorted((*state.kems, fact.kem), key=lambda one: one.sender.encode())
            return replace(state, kems=tuple(kems))
        case PhaseEntered():
            return replace(state, phase=fact.phase)
        case ConfirmAccepted():
            return replace(state, confirmed=sort_ids((*state.confirmed, fact.node)))
        case _:
            assert_never(fact)


def replay(facts: Iterable[SessionFact]) -> SessionState | None:
    """Return the state after all facts; None before the first."""
    state: SessionState | None = None
    for fact in facts:
        state = apply(state, fact)
    return state
