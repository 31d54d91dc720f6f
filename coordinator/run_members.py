"""Who takes part in a run: decisions, epochs, and what a returning hospital is told.

An epoch's key exchange is `common.secagg.coordinator_session`; this is what stands
around it. A hospital that comes back, or accepts late, joins through a new epoch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, assert_never

from common.errors import Refusal
from common.events import Event
from common.ids import NodeId, site_name
from common.messages import BeginEpoch, RunEnded, StudyDecision, StudyOffer, Verdict
from common.secagg import coordinator as rounds
from common.secagg import coordinator_session as sessions
from common.secagg.coordinator_session import SessionState, SetupPhase
from common.secagg.coordinator_state import RoundPhase, SessionView
from common.secagg.keys import Suite
from common.secagg.params import EPOCH_SECONDS
from common.secagg.session import EpochTerms
from common.study import canonical_json
from common.views import RunPhase
from coordinator.run_rounds import gather, to_round
from coordinator.run_state import (
    Decided,
    Decision,
    EpochReserved,
    NodeConnected,
    RunState,
    Send,
    SendRelease,
    SessionStep,
    TakenBack,
    Waiting,
    Withdrew,
)
from coordinator.run_step import (
    ENROLMENT,
    RETRY,
    SESSION,
    Step,
    aside,
    ask_epoch,
    end,
    fewest,
    live,
    names,
    round_is_open,
    session_context,
    too_few,
)
from coordinator.run_words import tell_pause

MOST_DECISIONS: Final = 16
"""How often a hospital may decide on a run: each time is a fact that is kept for good."""


def connected(step: Step, event: NodeConnected) -> None:
    """A hospital's stream is up: offer the study, and repeat what it may have missed."""
    node, state = event.node, step.state
    if state.phase.final:
        _late_release(step, event)
        return
    keyless = state.without_keys - {node} if event.has_keys else state.without_keys | {node}
    step.state = replace(
        state,
        connected=state.connected | {node},
        sitting_out=state.sitting_out - {node},
        without_keys=keyless,
    )
    step.do(Send(node, offer(state)))
    _tell_again(step, node)
    _go_on(step)


def offer(state: RunState) -> StudyOffer:
    """Return what every hospital is asked to decide on."""
    return StudyOffer(
        run_id=state.run_id,
        study=canonical_json(state.study),
        config_hash=state.config_hash,
        signature=state.signature,
        cert_chain=state.cert_chain,
    )


def owed_the_model(state: RunState) -> frozenset[NodeId]:
    """Return who helped to make a released model and has not said that it keeps it."""
    finished = state.phase is RunPhase.FINISHED
    return state.accepted - state.receipts if finished else frozenset()


def _late_release(step: Step, event: NodeConnected) -> None:
    """A hospital that was away at the end still gets the model it helped to make.

    It is told of the end if it names the run: a federation may have thousands of ended runs, and
    told of each its outbox would overflow. It names those that go on as far as it knows.
    """
    node, state = event.node, step.state
    if node in owed_the_model(state):
        step.do(SendRelease(node))
    if event.named:
        step.do(Send(node, RunEnded(state.run_id, state.phase.value, state.reason)))


def _tell_again(step: Step, node: NodeId) -> None:
    """Repeat to a hospital whose stream is new whatever it may still need."""
    state = step.state
    session = state.session
    if session is None:
        return
    if node not in state.accepted:
        # Who withdrew after its upload still owes the open round its signature and seeds.
        if round_is_open(state):
            to_round(step, rounds.MemberBack(node))
        return
    if session.phase is SetupPhase.ADVERTS and node in session.invited:
        if node not in session.members:
            step.do(Send(node, begin_epoch(step, session)))
        return
    to_session(step, sessions.MemberBack(node, state.next_r))
    if round_is_open(state):
        to_round(step, rounds.MemberBack(node))
    elif state.last_round is not None:
        _, commands = rounds.handle(state.last_round, rounds.MemberBack(node))
        step.do(*(Send(c.to, c.message) for c in commands if isinstance(c, rounds.SendTo)))
    if state.released is not None and node not in state.receipts:
        step.do(SendRelease(node))


def _go_on(step: Step) -> None:
    """Something changed about who is there: see whether that was waited for."""
    phase = step.state.phase
    if phase is RunPhase.ENROLLING:
        enrol(step)
    elif phase is RunPhase.RUNNING and not round_is_open(step.state):
        gather(step)
    elif phase is RunPhase.SETTING_UP and RETRY in step.state.timers:
        # Not for whoever comes and goes: each number is a write, and each epoch keys of all.
        enough = len(_invited(step.state)) >= fewest(step.state)
        if enough or too_few(step.state) is not None:
            ask_epoch(step)


def enrol(step: Step) -> None:
    """Begin once every hospital has decided, or enough have and the others were waited for."""
    state = step.state
    need = fewest(state)
    if (why := too_few(state)) is not None:
        end(step, RunPhase.FAILED, why)
    elif len(state.accepted & state.connected) < need:
        return
    elif not state.undecided:
        step.tell(Event.RUN_STARTED, sites=names(state.accepted))
        ask_epoch(step)
    elif ENROLMENT not in state.timers:
        step.timer(ENROLMENT, step.ctx.timing.enrolment_grace)


def take_decision(step: Step, node: NodeId, step_: StudyDecision) -> None:
    """Take note of a hospital's word on the study.

    Raises:
        Refusal: CONFIG_HASH, it is on another study; OUT_OF_TURN, one change too many.
    """
    state = step.state
    if step_.config_hash != state.config_hash or node not in state.roster:
        raise Refusal("CONFIG_HASH", "the decision is on another study than this run's")
    if step_.verdict is Verdict.WAITING:
        _take_waiting(step, node, Waiting(step_.waiting_for, step_.objections))
        return
    decision = Decision(step_.verdict is Verdict.ACCEPTED, step_.objections)
    known = dict(state.decisions).get(node)
    if known == decision:
        return
    _check_count(state, node)
    step.record(Decided(node, decision))
    step.state = replace(step.state, waiting=_others(state, node))
    if known is not None and known.accepted and not state.phase.final:
        step.record(Withdrew(node, state.position, step.ctx.unix_s))
    _tell_decision(step, node, decision, before=known)
    _go_on(step)


def _check_count(state: RunState, node: NodeId) -> None:
    if state.decided.count(node) >= MOST_DECISIONS:
        raise Refusal("OUT_OF_TURN", "the hospital has changed its mind too often")


def _others(state: RunState, node: NodeId) -> tuple[tuple[NodeId, Waiting], ...]:
    return tuple(entry for entry in state.waiting if entry[0] != node)


def _take_waiting(step: Step, node: NodeId, waiting: Waiting) -> None:
    """A hospital's people have to answer: it is undecided, however often it says for whom.

    Only taking back a decision is a fact; whom it waits for, it says again when it connects.
    """
    state = step.state
    if state.phase.final or dict(state.waiting).get(node) == waiting:
        return
    if node in dict(state.decisions):
        _check_count(state, node)
        step.record(TakenBack(node))
    step.state = replace(step.state, waiting=(*_others(state, node), (node, waiting)))
    step.tell(
        Event.STUDY_WAITING,
        site=site_name(node),
        people=waiting.people,
        detail="; ".join(map(str, waiting.objections)) or None,
    )
    _go_on(step)


def _tell_decision(
    step: Step, node: NodeId, decision: Decision, *, before: Decision | None
) -> None:
    site, reasons = site_name(node), tuple(map(str, decision.objections))
    if decision.accepted:
        step.tell(Event.STUDY_ACCEPTED, site=site)
    elif before is not None and before.accepted:
        detail = "; ".join(reasons)
        number = step.state.position + 1
        step.tell(Event.STUDY_WITHDRAWN, site=site, round=number, detail=detail, warning=True)
    elif any(found.code == "APPROVAL_DENIED" for found in decision.objections):
        step.tell(Event.STUDY_DENIED, site=site, detail="; ".join(reasons), warning=True)
    else:
        step.tell(Event.STUDY_REFUSED, site=site, reasons=reasons or None, warning=True)


def _invited(state: RunState) -> frozenset[NodeId]:
    return (state.accepted & state.connected) - aside(state)


def open_epoch(step: Step, event: EpochReserved) -> None:
    """Invite every hospital that accepted and is here to an epoch with a fresh number."""
    step.state = replace(step.state, epoch_asked=False)
    state = step.state
    if state.phase.final:
        return
    invited = _invited(state)
    need = fewest(state)
    if (why := too_few(state)) is not None:
        end(step, RunPhase.FAILED, why)
        return
    if len(invited) < need:
        step.timer(RETRY, step.ctx.timing.setup)
        step.state = replace(step.state, phase=RunPhase.SETTING_UP, paused=True)
        if not state.paused:
            tell_pause(step)
        return
    step.forget_timer(RETRY)
    step.state = state = replace(step.state, paused=False)
    stated = state.study.privacy.secure_aggregation.suite
    terms = EpochTerms(
        federation=state.federation,
        task=state.study.id,
        epoch=event.epoch,
        config_hash=state.config_hash,
        suite=Suite(stated),
    )
    members = tuple(sorted(invited))
    opened = sessions.OpenSession(terms, members, step.ctx.timing.setup, need)
    session, commands = sessions.handle(None, opened, session_context(step.ctx))
    step.state = replace(step.state, session=session)
    _session_commands(step, commands)
    step.tell(Event.SESSION_OPENED, epoch=event.epoch, sites=names(members))
    begin = begin_epoch(step, session)
    step.do(*(Send(node, begin) for node in members))


def begin_epoch(step: Step, session: SessionState) -> BeginEpoch:
    """Return what asks a hospital for its keys; they are valid for as long as an epoch may last."""
    state, now = step.state, step.ctx.unix
    epoch = session.terms.epoch
    return BeginEpoch(state.run_id, state.study.id, epoch, now, now + EPOCH_SECONDS)


def to_session(step: Step, event: sessions.SessionEvent) -> None:
    """Hand an event to the epoch's set-up and do what it asks for.

    Raises:
        Refusal: the set-up refuses a hospital's message.
    """
    _, commands = sessions.handle(step.state.session, event, session_context(step.ctx))
    _session_commands(step, commands)


def _session_commands(step: Step, commands: list[sessions.SessionCommand]) -> None:
    for command in commands:
        match command:
            case sessions.RecordSession():
                step.record(SessionStep(command.fact))
            case sessions.SendTo():
                step.do(Send(command.to, command.message))
            case sessions.ArmTimer():
                step.timer(
                    f"{SESSION}:{live(step.state).terms.epoch}:{command.name}", command.seconds
                )
            case sessions.SessionReady():
                _session_ready(step)
            case sessions.SessionFailed():
                step.tell(
                    Event.SESSION_FAILED,
                    reason=command.reason,
                    missing=names(command.missing),
                    warning=True,
                )
                out = step.state.sitting_out | set(command.missing)
                step.state = replace(step.state, sitting_out=out)
                ask_epoch(step)
            case _:
                assert_never(command)


def _session_ready(step: Step) -> None:
    session = live(step.state)
    # Who confirmed, lost its keys and came back without them has none, though it confirmed.
    keyless = step.state.without_keys - (set(session.invited) - set(session.confirmed))
    step.state = replace(step.state, without_keys=keyless)
    step.tell(Event.SESSION_READY, epoch=session.terms.epoch, sites=names(session.confirmed))
    gather(step)


def late_confirmation(step: Step) -> None:
    """A member confirmed, perhaps after rounds began: it may say Ready from now on."""
    state = step.state
    collecting = state.round is not None and state.round.phase is RoundPhase.COLLECTING
    if state.round is not None and collecting and state.session is not None:
        view = SessionView.of(state.session)
        step.state = replace(step.state, round=replace(state.round, session=view))
