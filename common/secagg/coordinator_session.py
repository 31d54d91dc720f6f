"""The coordinator's side of an epoch's set-up (section 3.3), event-sourced.

    phase      leaves it when                                    then
    ADVERTS    every invited node advertised, or the deadline    Roster to all
    KEMS       every ciphertext is there (hybrid suite only)     KemForward, as they complete
    CONFIRMS   every member confirmed, or the deadline           SessionReady
    READY      --                                                late confirmations count
    FAILED     --                                                a new epoch, without `missing`

A faulty message is refused with its code and leaves its sender out; nobody else's
keys depend on it. A deadline without enough members, or with a ciphertext missing,
fails the epoch: the driver opens the next one without those it names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeAlias, assert_never

from common.errors import InternalError, Refusal
from common.ids import NodeId, RoundNo, SessionId
from common.secagg import codec
from common.secagg.keys import Suite
from common.secagg.messages import (
    Confirm,
    FromCoordinator,
    FromNode,
    Kem,
    KemForward,
    KemFrom,
    KeyAdvert,
    Roster,
)
from common.secagg.params import DEFAULT_MIN_COHORT
from common.secagg.session import (
    EpochTerms,
    Trust,
    check_advert,
    check_confirm,
    check_distinct,
    check_kem,
    session_of,
    smaller_ids,
)
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


# --- events, facts, commands ---------------------------------------------------------------


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
            return replace(state, session_id=fact.session_id)
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


# --- the machine --------------------------------------------------------------------------------


class _Step:
    """One event's work: the state as it grows, and the commands so far."""

    def __init__(self, state: SessionState) -> None:
        self.state = state
        self.commands: list[SessionCommand] = []

    def record(self, fact: SessionFact) -> None:
        self.state = apply(self.state, fact)
        self.commands.append(RecordSession(fact))

    def enter(self, phase: SetupPhase) -> None:
        self.record(PhaseEntered(phase))
        if phase in (SetupPhase.KEMS, SetupPhase.CONFIRMS):
            self.commands.append(ArmTimer(phase.value, self.state.wait_s))


def handle(
    state: SessionState | None, event: SessionEvent, ctx: SessionContext
) -> tuple[SessionState, list[SessionCommand]]:
    """Return the new state and what the driver has to do, in order.

    Raises:
        Refusal: the message is refused; the state still holds and its sender is left
            out unless it sends a proper one in time.
        InternalError: the first event is not OpenSession, or a second one came.
    """
    if isinstance(event, OpenSession):
        return _open(state, event)
    if state is None:
        raise InternalError("a session begins with OpenSession")
    step = _Step(state)
    match event:
        case From(sender=sender, message=KeyAdvert() as advert):
            _advert(step, sender, advert, ctx)
        case From(sender=sender, message=Kem() as kem):
            _kem(step, sender, kem)
        case From(sender=sender, message=Confirm() as confirm):
            _confirm(step, sender, confirm)
        case From():
            raise Refusal("OUT_OF_TURN", f"{event.sender} sent a message of no session set-up")
        case Deadline():
            _deadline(step, event)
        case MemberBack():
            _tell(step, event.node, event.next_r)
        case Restarted():
            _restart(step)
        case _:
            assert_never(event)
    return step.state, step.commands


def _open(
    state: SessionState | None, event: OpenSession
) -> tuple[SessionState, list[SessionCommand]]:
    if state is not None:
        raise InternalError("an epoch is opened once")
    fact = SessionOpened(event)
    timer = ArmTimer(SetupPhase.ADVERTS.value, event.wait_s)
    return apply(None, fact), [RecordSession(fact), timer]


def _advert(step: _Step, sender: NodeId, advert: KeyAdvert, ctx: SessionContext) -> None:
    state = step.state
    if advert.id != sender or sender not in state.invited:
        raise Refusal("KEY_ADVERT", f"{sender} is not invited, or advertised for another node")
    if advert in state.adverts:
        if state.session_id is not None:
            _tell(step, sender, FIRST_ROUND)
        return
    if state.phase is not SetupPhase.ADVERTS or sender in state.members:
        raise Refusal("OUT_OF_TURN", f"{sender} advertised after the roster, or a second time")
    check_advert(advert, state.terms, ctx.trust, ctx.now_unix)
    check_distinct((*state.adverts, advert))
    step.record(AdvertAccepted(advert))
    if step.state.members == state.invited:
        _fix_roster(step)


def _fix_roster(step: _Step) -> None:
    state = step.state
    step.record(RosterFixed(session_of(state.adverts, state.terms)))
    hybrid = state.terms.suite is Suite.HYBRID
    step.enter(SetupPhase.KEMS if hybrid else SetupPhase.CONFIRMS)
    message = Roster(state.adverts, FIRST_ROUND)
    step.commands += [SendTo(member, message) for member in state.members]


def _session_id(state: SessionState) -> SessionId:
    if state.session_id is None:
        raise Refusal("OUT_OF_TURN", "the roster of this epoch is not fixed yet")
    return state.session_id


def _kem(step: _Step, sender: NodeId, kem: Kem) -> None:
    state = step.state
    session = _session_id(state)
    if kem.sender != sender or sender not in state.members:
        raise Refusal("KEM", f"{sender} is no member, or sent another's ciphertexts")
    if any(known.sender == sender for known in state.kems):
        return  # a repetition, or a second choice that nobody will see
    if state.phase is not SetupPhase.KEMS:
        raise Refusal("OUT_OF_TURN", f"{sender} sent ciphertexts in phase {state.phase.value}")
    check_kem(kem, session, state.keys)
    step.record(KemAccepted(kem))
    if len(step.state.kems) == len(state.members):
        step.enter(SetupPhase.CONFIRMS)
    for item in kem.items:
        step.commands += _forward(step.state, item.to)
    _finish(step)


def _forward(state: SessionState, to: NodeId) -> list[SessionCommand]:
    """Return the one message with all of a node's ciphertexts, once all are there."""
    due = smaller_ids(to, state.members)
    kems = {kem.sender: kem for kem in state.kems}
    if not due or not kems.keys() >= set(due):
        return []
    items = []
    for sender in due:
        item = next(item for item in kems[sender].items if item.to == to)
        items.append(KemFrom(sender, item.ct, item.sig))
    return [SendTo(to, KemForward(_session_id(state), tuple(items)))]


def _confirm(step: _Step, sender: NodeId, confirm: Confirm) -> None:
    state = step.state
    session = _session_id(state)
    if sender not in state.members:
        raise Refusal("KEY_ADVERT", f"{sender} is no member of this session")
    check_confirm(confirm, session, sender, state.keys[sender])
    if sender in state.confirmed or state.phase is SetupPhase.FAILED:
        return
    step.record(ConfirmAccepted(sender))
    _finish(step)


def _finish(step: _Step) -> None:
    """Everybody confirmed (a confirmation may overtake another's ciphertexts)."""
    state = step.state
    if state.phase is SetupPhase.CONFIRMS and state.confirmed == state.members:
        step.enter(SetupPhase.READY)
        step.commands.append(SessionReady(_session_id(state)))


def _deadline(step: _Step, event: Deadline) -> None:
    state = step.state
    if event.name != state.phase.value:
        return
    match state.phase:
        case SetupPhase.ADVERTS:
            if len(state.adverts) >= state.min_members:
                _fix_roster(step)
            else:
                _fail(step, "NOT_ENOUGH", state.members, state.invited)
        case SetupPhase.KEMS:
            _fail(step, "KEM", [kem.sender for kem in state.kems], state.members)
        case SetupPhase.CONFIRMS:
            if len(state.confirmed) >= state.min_members:
                step.enter(SetupPhase.READY)
                step.commands.append(SessionReady(_session_id(state)))
            else:
                _fail(step, "NOT_ENOUGH", state.confirmed, state.members)
        case SetupPhase.READY | SetupPhase.FAILED:
            return
        case _:
            assert_never(state.phase)


def _fail(step: _Step, reason: str, done: Iterable[NodeId], expected: Iterable[NodeId]) -> None:
    missing = sort_ids(set(expected) - set(done))
    step.enter(SetupPhase.FAILED)
    step.commands.append(SessionFailed(reason, missing))


def _tell(step: _Step, node: NodeId, next_r: RoundNo) -> None:
    """Send a member what it needs to go on from where it may stand."""
    state = step.state
    if state.session_id is None or node not in state.members:
        return
    if state.phase is SetupPhase.FAILED:
        return
    step.commands.append(SendTo(node, Roster(state.adverts, next_r)))
    if node not in state.confirmed:
        step.commands += _forward(state, node)


def _restart(step: _Step) -> None:
    state = step.state
    if state.phase in (SetupPhase.READY, SetupPhase.FAILED):
        return
    step.commands.append(ArmTimer(state.phase.value, state.wait_s))
    for node in state.members:
        if node not in state.confirmed:
            _tell(step, node, FIRST_ROUND)
