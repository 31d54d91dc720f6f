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
from typing import Final, assert_never

from common.errors import InternalError, Refusal
from common.ids import NodeId, RoundNo, SessionId
from common.secagg.messages import (
    Confirm,
    Kem,
    KemForward,
    KemFrom,
    KeyAdvert,
    Roster,
)
from common.secagg.session import (
    check_advert,
    check_confirm,
    check_distinct,
    check_kem,
    session_of,
    smaller_ids,
)
from common.secagg.setup_state import (
    FIRST_ROUND,
    AdvertAccepted,
    ArmTimer,
    ConfirmAccepted,
    Deadline,
    From,
    KemAccepted,
    MemberBack,
    OpenSession,
    PhaseEntered,
    RecordSession,
    Restarted,
    RosterFixed,
    SendTo,
    SessionCommand,
    SessionContext,
    SessionEvent,
    SessionFact,
    SessionFailed,
    SessionOpened,
    SessionReady,
    SessionState,
    SetupPhase,
    apply,
    decode_fact,
    encode_fact,
    replay,
)
from common.secagg.transcript import sort_ids

__all__ = [
    "FIRST_ROUND",
    "AdvertAccepted",
    "ArmTimer",
    "ConfirmAccepted",
    "Deadline",
    "From",
    "KemAccepted",
    "MemberBack",
    "OpenSession",
    "PhaseEntered",
    "RecordSession",
    "Restarted",
    "RosterFixed",
    "SendTo",
    "SessionCommand",
    "SessionContext",
    "SessionEvent",
    "SessionFact",
    "SessionFailed",
    "SessionOpened",
    "SessionReady",
    "SessionState",
    "SetupPhase",
    "apply",
    "decode_fact",
    "encode_fact",
    "handle",
    "replay",
]


SHORTEST_EPOCH_S: Final = 3600
"""How long an advert has to be valid from now on."""


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
        self.arm()

    def arm(self) -> None:
        phase = self.state.phase
        if phase not in (SetupPhase.READY, SetupPhase.FAILED):
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
    if advert.not_after < ctx.now_unix + SHORTEST_EPOCH_S:
        # The first key to run out ends the epoch for all.
        raise Refusal("EPOCH_OLD", f"the advert of {sender} runs out too soon")
    check_advert(advert, state.terms, ctx.trust, ctx.now_unix)
    check_distinct((*state.adverts, advert))
    step.record(AdvertAccepted(advert))
    _go_on(step)


def _fix_roster(step: _Step) -> None:
    state = step.state
    step.record(RosterFixed(session_of(state.adverts, state.terms)))
    step.arm()
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
    for to in (sender, *(item.to for item in kem.items)):
        step.commands += _forward(step.state, to)
    _go_on(step)


def _forward(state: SessionState, to: NodeId) -> list[SessionCommand]:
    """Return the one message with all of a node's ciphertexts, once all are there.

    The smallest id's is empty: it says that the node's own Kem has arrived, so that
    no member confirms before its ciphertexts are safe here.
    """
    due = smaller_ids(to, state.members)
    kems = {kem.sender: kem for kem in state.kems}
    if not kems.keys() >= {to, *due}:
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
    _go_on(step)


def _go_on(step: _Step) -> None:
    """Enter every phase whose turn has come; also after a crash between two facts.

    A confirmation may overtake another member's ciphertexts.
    """
    if step.state.phase is SetupPhase.ADVERTS and step.state.members == step.state.invited:
        _fix_roster(step)
    if step.state.phase is SetupPhase.KEMS and len(step.state.kems) == len(step.state.members):
        step.enter(SetupPhase.CONFIRMS)
    confirmed = step.state.confirmed == step.state.members
    if step.state.phase is SetupPhase.CONFIRMS and confirmed:
        _get_ready(step)


def _get_ready(step: _Step) -> None:
    step.enter(SetupPhase.READY)
    step.commands.append(SessionReady(_session_id(step.state)))


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
                _get_ready(step)
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
    before = step.state.phase
    _go_on(step)
    state = step.state
    if state.phase in (SetupPhase.READY, SetupPhase.FAILED):
        return
    if state.phase is before:
        step.arm()
    for node in state.members:
        if node not in state.confirmed:
            _tell(step, node, FIRST_ROUND)
