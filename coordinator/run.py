"""A run, from the offer of a study to its released model; sans-io.

    ENROLLING    offer; hospitals decide by their own policies
    SETTING_UP   an epoch's key exchange           (common.secagg.coordinator_session)
    RUNNING      round after round                 (common.secagg.coordinator)
    RELEASING    sign the model, send it to every hospital
    FINISHED | FAILED | CANCELLED

`handle(state, event, ctx) -> (state, commands)`. Every durable change is a fact; `apply`
is the only way in which one changes the state, so `replay` after a crash ends where the
run stood. The driver makes all facts of a step durable before it acts on any other of
its commands.

A round that fails is tried again with the next round number and the same model; a
hospital that comes back, or accepts late, joins at the next round through a new epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, assert_never

from common.errors import InternalError, Refusal
from common.events import Event
from common.ids import NodeId, RoundNo, site_name
from common.layouts import RoundLayout, header_ranges, round_kinds, round_layout
from common.messages import BeginEpoch, ReleaseReceipt, RunEnded, StudyDecision, StudyOffer
from common.secagg import coordinator as rounds
from common.secagg import coordinator_session as sessions
from common.secagg import coordinator_state as round_types
from common.secagg.coordinator_session import SessionOpened, SessionState, SetupPhase
from common.secagg.coordinator_state import RoundPhase, RoundTerms, SessionView
from common.secagg.header import RoundKind, quant_bound
from common.secagg.keys import Suite
from common.secagg.messages import (
    Commit,
    Confirm,
    FromCoordinator,
    Kem,
    KeyAdvert,
    Ready,
    RecoverShares,
    Refused,
    Release,
    RoundStart,
    RoundStatus,
)
from common.secagg.params import EPOCH_ROUNDS, EPOCH_SECONDS, SecAggParams
from common.secagg.session import EpochTerms, Trust
from common.study import canonical_json
from common.vectors import EMPTY_MODEL
from common.views import RunPhase
from coordinator.run_state import (
    NO_DISPUTES,
    AckUpload,
    Begin,
    Cancel,
    Decided,
    Decision,
    DropSpool,
    Ended,
    EpochReserved,
    Finish,
    FirstModelMade,
    FromNode,
    MakeFirstModel,
    MakeRelease,
    ModelMade,
    NodeConnected,
    NodeLost,
    OpenSum,
    Received,
    Record,
    Released,
    ReleaseMade,
    ReserveEpoch,
    RoundEnded,
    RoundRecord,
    RoundStep,
    RunCommand,
    RunEvent,
    RunFact,
    RunState,
    Send,
    SendRelease,
    SessionStep,
    Shown,
    StartTimer,
    SumRefused,
    SumUsed,
    Tell,
    TimerFired,
    UploadComplete,
)

MAX_VOIDED_IN_A_ROW: Final = 10
"""A run whose rounds fail this often in a row ends; the model so far is kept."""

_ENROLMENT, _GATHER, _RETRY, _RELEASE = "enrolment", "gather", "retry", "release"
_SESSION, _ROUND = "session", "round"
"""Timers of the protocol's machines are called `session:EPOCH:NAME` and `round:R:NAME`: one
that ran out just as its round ended must not be taken for the next round's."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Waits in seconds; see `coordinator.config.Timing`."""

    enrolment_grace: float = 20.0
    setup: float = 30.0
    gather: float = 2.0
    release: float = 30.0


@dataclass(frozen=True, slots=True)
class RunContext:
    """What the driver passes with each event: clocks, the pinned CA and members, waits."""

    now: float
    unix: int
    trust: Trust
    timing: Timing


# --- facts ----------------------------------------------------------------------------------


def apply(state: RunState, fact: RunFact) -> RunState:
    """Return the state after a fact."""
    match fact:
        case Decided():
            others = (entry for entry in state.decisions if entry[0] != fact.node)
            return replace(state, decisions=(*others, (fact.node, fact.decision)))
        case SessionStep():
            return _apply_session(state, fact)
        case RoundStep():
            same = state.round if state.round is not None and state.round.r == fact.r else None
            return replace(state, round=rounds.apply(same, fact.fact))
        case ModelMade():
            return replace(state, model=fact.model)
        case RoundEnded():
            return _apply_ended_round(state, fact)
        case Released():
            return replace(state, released=fact.manifest_sha256)
        case Received():
            return replace(state, receipts=state.receipts | {fact.node})
        case Ended():
            return replace(state, phase=fact.phase, reason=fact.reason)
        case _:
            assert_never(fact)


def _apply_session(state: RunState, fact: SessionStep) -> RunState:
    if isinstance(fact.fact, SessionOpened):
        return replace(
            state,
            phase=RunPhase.SETTING_UP,
            session=sessions.apply(None, fact.fact),
            next_r=sessions.FIRST_ROUND,
            edges=NO_DISPUTES,
            round=None,
            last_round=None,
        )
    session = sessions.apply(state.session, fact.fact)
    ready = session.phase is SetupPhase.READY
    return replace(state, session=session, phase=RunPhase.RUNNING if ready else state.phase)


def _apply_ended_round(state: RunState, fact: RoundEnded) -> RunState:
    record = fact.record
    opened = record.opened
    return replace(
        state,
        history=(*state.history, record),
        position=record.position if opened else state.position,
        model=fact.model if fact.model is not None else state.model,
        pooled=fact.pooled or state.pooled,
        next_r=RoundNo(record.r + 1),
        edges=state.round.edges if state.round is not None else state.edges,
        round=None,
        last_round=state.round,
    )


def replay(state: RunState, facts: Iterable[RunFact]) -> RunState:
    """Return the state after all facts of a run, given its first state."""
    for fact in facts:
        state = apply(state, fact)
    return state


# --- the machine ------------------------------------------------------------------------------


class _Step:
    """One event's work: the state as it grows, and the commands so far."""

    def __init__(self, state: RunState, ctx: RunContext) -> None:
        self.state = state
        self.ctx = ctx
        self.commands: list[RunCommand] = []
        self.used: SumUsed | None = None
        """What the sum of the round that is being closed was used for."""

    def record(self, fact: RunFact) -> None:
        self.state = apply(self.state, fact)
        self.commands.append(Record(fact))

    def do(self, *commands: RunCommand) -> None:
        self.commands += commands

    def timer(self, name: str, seconds: float) -> None:
        self.state = replace(self.state, timers=self.state.timers | {name})
        self.do(StartTimer(name, seconds))

    def tell(self, event: Event, *, warning: bool = False, **fields: Shown) -> None:
        self.do(Tell(event, tuple(fields.items()), warning))


def handle(state: RunState, event: RunEvent, ctx: RunContext) -> tuple[RunState, list[RunCommand]]:
    """Return the new state and what the driver has to do, in order.

    Raises:
        Refusal: a node's step is refused; the state still holds.
    """
    if state.phase.final and not _heard_after_the_end(event):
        return state, []
    step = _Step(state, ctx)
    match event:
        case Begin():
            _begin(step)
        case NodeConnected():
            _connected(step, event)
        case NodeLost():
            step.state = replace(state, connected=state.connected - {event.node})
        case FromNode():
            _from_node(step, event)
        case UploadComplete():
            upload = rounds.UploadReceived(event.node, event.end, event.ydig, event.size_bytes)
            _round(step, upload)
        case TimerFired():
            _timer(step, event.name)
        case EpochReserved():
            _open_epoch(step, event)
        case FirstModelMade():
            step.record(ModelMade(event.model))
            _gather(step)
        case SumUsed():
            _sum_used(step, event)
        case SumRefused():
            _sum_refused(step, event)
        case ReleaseMade():
            _release_made(step, event)
        case Cancel():
            _end(step, RunPhase.CANCELLED, event.reason)
        case _:
            assert_never(event)
    return step.state, step.commands


def _heard_after_the_end(event: RunEvent) -> bool:
    """Whether an ended run still takes an event; work that was under way comes to nothing.

    Raises:
        Refusal: CLOSED, it came from a hospital that has to be told.
    """
    match event:
        case NodeConnected() | NodeLost():
            return True
        case FromNode(step=StudyDecision() | ReleaseReceipt()):
            return True
        case FromNode() | UploadComplete():
            raise Refusal("CLOSED", "the run has ended")
        case _:
            return False


def _begin(step: _Step) -> None:
    """Start a run, or go on where its facts end."""
    state = step.state
    if state.session is None:
        _enrol(step)
    elif state.session.phase is SetupPhase.FAILED:
        _ask_epoch(step)
    elif state.session.phase is not SetupPhase.READY:
        _session(step, sessions.Restarted())
    elif state.round is not None:
        step.state = replace(state, round_began=step.ctx.now)
        _round(step, rounds.Restarted())
    else:
        _gather(step)


# --- who takes part ---------------------------------------------------------------------------


def fewest(state: RunState) -> int:
    """Return how many hospitals a round of this study needs at the least."""
    roster = len(state.roster)
    c = state.study.colluders(roster)
    s_min = state.study.federation.min_sites
    for n in range(2, roster + 1):
        try:
            if SecAggParams.derive(n, c, s_min=s_min).s_min <= n:
                return n
        except Refusal:
            continue
    return roster + 1


def _connected(step: _Step, event: NodeConnected) -> None:
    node, state = event.node, step.state
    if state.phase.final:
        _late_release(step, node)
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


def _late_release(step: _Step, node: NodeId) -> None:
    """A hospital that was away at the end still gets the model it helped to make."""
    state = step.state
    if state.phase is RunPhase.FINISHED and node in state.accepted - state.receipts:
        step.do(SendRelease(node))
    if node in state.accepted:
        step.do(Send(node, RunEnded(state.run_id, state.phase.value, state.reason)))


def _tell_again(step: _Step, node: NodeId) -> None:
    """Repeat to a hospital whose stream is new whatever it may still need."""
    state = step.state
    session = state.session
    if session is None or node not in state.accepted:
        return
    if session.phase is SetupPhase.ADVERTS and node in session.invited:
        if node not in session.members:
            step.do(Send(node, _begin_epoch(step, session)))
        return
    _session(step, sessions.MemberBack(node, state.next_r))
    if _round_is_open(state):
        _round(step, rounds.MemberBack(node))
    elif state.last_round is not None:
        _, commands = rounds.handle(state.last_round, rounds.MemberBack(node))
        step.do(*(Send(c.to, c.message) for c in commands if isinstance(c, rounds.SendTo)))
    if state.released is not None and node not in state.receipts:
        step.do(SendRelease(node))


def _go_on(step: _Step) -> None:
    """Something changed about who is there: see whether that was waited for."""
    phase = step.state.phase
    if phase is RunPhase.ENROLLING:
        _enrol(step)
    elif phase is RunPhase.RUNNING and not _round_is_open(step.state):
        _gather(step)
    elif phase is RunPhase.SETTING_UP and _RETRY in step.state.timers:
        _ask_epoch(step)


def _round_is_open(state: RunState) -> bool:
    return state.round is not None and state.round.phase is not RoundPhase.COLLECTING


def _enrol(step: _Step) -> None:
    state = step.state
    need = fewest(state)
    if len(state.accepted | state.undecided) < need:
        _end(step, RunPhase.FAILED, _enrolment_failure(state, need))
    elif len(state.accepted & state.connected) < need:
        return
    elif not state.undecided:
        step.tell(Event.RUN_STARTED, sites=_names(state.accepted))
        _ask_epoch(step)
    elif _ENROLMENT not in state.timers:
        wait = step.ctx.timing.enrolment_grace
        step.tell(
            Event.ROUND_WAITING, waiting_for=_names(state.undecided), what="decision", seconds=wait
        )
        step.timer(_ENROLMENT, wait)


def _enrolment_failure(state: RunState, need: int) -> str:
    said = [
        f"{site_name(node)}: {'; '.join(o.detail for o in decision.objections)}"
        for node, decision in state.decisions
        if not decision.accepted
    ]
    return f"ENROLMENT: {need} hospitals are needed; refused by {' | '.join(said)}"


def _decision(step: _Step, node: NodeId, step_: StudyDecision) -> None:
    state = step.state
    if step_.config_hash != state.config_hash or node not in state.roster:
        raise Refusal("CONFIG_HASH", "the decision is on another study than this run's")
    decision = Decision(step_.accepted, step_.objections)
    if dict(state.decisions).get(node) == decision:
        return
    step.record(Decided(node, decision))
    event = Event.STUDY_ACCEPTED if decision.accepted else Event.STUDY_REFUSED
    reasons = tuple(o.detail for o in decision.objections)
    step.tell(event, site=site_name(node), reasons=reasons, warning=not decision.accepted)
    _go_on(step)


def _names(nodes: Iterable[NodeId]) -> tuple[str, ...]:
    return tuple(sorted(site_name(node) for node in nodes))


# --- epochs ---------------------------------------------------------------------------------


def _ask_epoch(step: _Step) -> None:
    if not step.state.epoch_asked:
        step.state = replace(step.state, epoch_asked=True)
        step.do(ReserveEpoch())


def _open_epoch(step: _Step, event: EpochReserved) -> None:
    step.state = replace(step.state, epoch_asked=False)
    state = step.state
    if state.phase.final:
        return
    invited = (state.accepted & state.connected) - state.sitting_out
    need = fewest(state)
    if len(invited) < need:
        step.tell(Event.RUN_PAUSED, need=need, present=_names(invited))
        step.state = replace(state, phase=RunPhase.SETTING_UP)
        step.timer(_RETRY, step.ctx.timing.setup)
        return
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
    session, commands = sessions.handle(None, opened, _session_context(step.ctx))
    step.state = replace(step.state, session=session)
    _session_commands(step, commands)
    step.tell(Event.SESSION_OPENED, epoch=event.epoch, sites=_names(members))
    begin = _begin_epoch(step, session)
    step.do(*(Send(node, begin) for node in members))


def _begin_epoch(step: _Step, session: SessionState) -> BeginEpoch:
    state, now = step.state, step.ctx.unix
    epoch = session.terms.epoch
    return BeginEpoch(state.run_id, state.study.id, epoch, now, now + EPOCH_SECONDS)


def _session_context(ctx: RunContext) -> sessions.SessionContext:
    return sessions.SessionContext(ctx.trust, ctx.unix)


def _session(step: _Step, event: sessions.SessionEvent) -> None:
    _, commands = sessions.handle(step.state.session, event, _session_context(step.ctx))
    _session_commands(step, commands)


def _session_commands(step: _Step, commands: list[sessions.SessionCommand]) -> None:
    for command in commands:
        match command:
            case sessions.RecordSession():
                step.record(SessionStep(command.fact))
            case sessions.SendTo():
                step.do(Send(command.to, command.message))
            case sessions.ArmTimer():
                step.timer(
                    f"{_SESSION}:{_live(step.state).terms.epoch}:{command.name}", command.seconds
                )
            case sessions.SessionReady():
                _session_ready(step)
            case sessions.SessionFailed():
                step.tell(
                    Event.SESSION_FAILED,
                    reason=command.reason,
                    missing=_names(command.missing),
                    warning=True,
                )
                out = step.state.sitting_out | set(command.missing)
                step.state = replace(step.state, sitting_out=out)
                _ask_epoch(step)
            case _:
                assert_never(command)


def _session_ready(step: _Step) -> None:
    session = _live(step.state)
    keyless = step.state.without_keys - set(session.invited)
    step.state = replace(step.state, without_keys=keyless)
    step.tell(Event.SESSION_READY, epoch=session.terms.epoch, sites=_names(session.confirmed))
    _gather(step)


def _live(state: RunState) -> SessionState:
    if state.session is None:
        raise InternalError("a step that needs an epoch came before one")
    return state.session


# --- rounds -----------------------------------------------------------------------------------


def current_kind(state: RunState) -> RoundKind | None:
    """Return the kind of the next round, None when all are done."""
    kinds = round_kinds(state.study)
    return kinds[state.position] if state.position < len(kinds) else None


def current_layout(state: RunState) -> RoundLayout:
    """Return the layout of the open or next round."""
    kind = current_kind(state)
    if kind is None:
        raise InternalError("the run has no further round")
    return round_layout(state.study, kind)


def _gather(step: _Step) -> None:
    """Between two rounds: decide what comes next, and wait for those it needs."""
    state = step.state
    session = _live(state)
    kind = current_kind(state)
    if kind is None:
        step.state = replace(state, phase=RunPhase.RELEASING)
        step.do(MakeRelease())
    elif session.phase is not SetupPhase.READY or _round_is_open(state):
        return
    elif kind is not RoundKind.STATISTICS and state.model is None:
        step.do(MakeFirstModel())
    elif _joiners(state) or state.next_r > EPOCH_ROUNDS or _expired(step, session):
        _ask_epoch(step)
    else:
        if state.round is None:
            view = SessionView.of(session)
            fresh = rounds.begin_round(view, state.next_r, state.edges)
            step.state = replace(state, round=_with_early(fresh, state.early), early=())
        _open_when_ready(step)


def _with_early(
    fresh: round_types.RoundState, early: tuple[tuple[NodeId, Ready], ...]
) -> round_types.RoundState:
    """Give a new round the nonces that came before it; stale ones are passed over."""
    for node, message in early:
        try:
            fresh, _ = rounds.handle(fresh, rounds.From(node, message))
        except Refusal:
            continue
    return fresh


def _joiners(state: RunState) -> frozenset[NodeId]:
    """Hospitals that are here and want to take part but were not asked for keys yet.

    One that was invited and sent none is asked again when it connects again, not
    before every round: it must not hold up the others.
    """
    inside = frozenset(_live(state).invited) - state.without_keys
    return (state.accepted & state.connected) - inside - state.sitting_out


def _expired(step: _Step, session: SessionState) -> bool:
    return any(step.ctx.unix >= advert.not_after for advert in session.adverts)


def _open_when_ready(step: _Step) -> None:
    state = step.state
    if state.round is None or state.epoch_asked:
        return
    ready = {node for node, _ in state.round.ready} & state.connected
    expected = set(_live(state).confirmed)
    if len(expected - state.sitting_out) >= fewest(state):
        expected -= state.sitting_out
    ready &= expected
    if ready == expected:
        _open_round(step, ready)
    elif len(ready) >= fewest(state) and _gather_timer(state) not in state.timers:
        step.timer(_gather_timer(state), step.ctx.timing.gather)


def _open_round(step: _Step, members: set[NodeId]) -> None:
    state = step.state
    layout = current_layout(state)
    model = state.model
    c = state.study.colluders(len(state.roster))
    bound = quant_bound(len(members), layout.ring_bits)
    terms = RoundTerms(
        kind=layout.kind,
        model_sha256=EMPTY_MODEL if model is None else model.model_sha256,
        layout_sha256=layout.schema.layout_sha256,
        d=layout.schema.words,
        c=c,
        ranges=header_ranges(layout, bound, () if model is None else model.rms),
        w_max=state.study.federation.max_weight,
        deadline_ms=round(state.study.federation.round_deadline * 1000),
        s_min=state.study.federation.min_sites,
        w=layout.ring_bits,
    )
    step.state = replace(
        state,
        round_began=step.ctx.now,
        sitting_out=frozenset(),
        timers=state.timers - {_gather_timer(state)},
    )
    _round(step, rounds.OpenRound(terms, tuple(sorted(members))))
    step.tell(
        Event.ROUND_OPENED,
        round=state.position + 1,
        kind=layout.kind.value,
        sites=_names(members),
        deadline_s=state.study.federation.round_deadline,
    )


def _round(step: _Step, event: rounds.RoundEvent) -> None:
    state = step.state
    if state.round is None:
        raise Refusal("CLOSED", "no round is open")
    new, commands = rounds.handle(state.round, event)
    step.state = replace(state, round=new)
    for command in commands:
        _round_command(step, command)


def _round_command(step: _Step, command: rounds.RoundCommand) -> None:
    state = step.state
    match command:
        case rounds.Record():
            if state.round is not None:
                step.do(Record(RoundStep(state.round.r, command.fact)))
        case rounds.SendTo():
            step.do(Send(command.to, _with_stream(state, command.message)))
        case rounds.ArmTimer():
            if state.round is not None:
                step.timer(f"{_ROUND}:{state.round.r}:{command.name}", command.seconds)
        case rounds.AckUpload():
            step.do(AckUpload(command.to, command.hd))
        case rounds.Open():
            step.do(OpenSum(command.header, command.survivors, command.plan, state.model))
        case rounds.Evidence():
            step.tell(Event.EVIDENCE_STORED, site=site_name(command.evidence.node), warning=True)
        case rounds.Report():
            step.tell(
                Event.PROTOCOL_REFUSED,
                sites=_names(command.nodes),
                code=command.code,
                detail=command.detail,
                warning=True,
            )
        case rounds.Close():
            _close(step, command)
        case _:
            assert_never(command)


def _with_stream(state: RunState, message: FromCoordinator) -> FromCoordinator:
    """Name the object that holds the model a header speaks of."""
    if isinstance(message, RoundStart) and state.model is not None:
        return replace(message, model_stream_id=state.model.object_sha256)
    return message


def _close(step: _Step, close: rounds.Close) -> None:
    """A round is over: keep its record, and go on or try again."""
    state = step.state
    if state.round is None or state.round.header is None:
        raise InternalError("a round that never opened was closed")
    opened = close.status is RoundStatus.OPENED
    record = _record_of(state, state.round, opened=opened, seconds=step.ctx.now - state.round_began)
    used = step.used if opened else None
    step.record(
        RoundEnded(
            record,
            used.model if used is not None else None,
            used.pooled if used is not None else (),
        )
    )
    step.do(DropSpool(state.round.hd))
    step.state = replace(step.state, sitting_out=step.state.sitting_out | set(close.sit_out))
    step.tell(
        Event.ROUND_CLOSED if opened else Event.ROUND_VOIDED,
        round=record.position,
        kind=record.kind,
        survivors=_names(record.survivors),
        dropped=_names(record.dropped),
        seconds=round(record.seconds, 3),
        reason=record.reason or None,
        warning=not opened,
    )
    _tell_late_members(step, state.round)
    if _hopeless(step.state):
        _end(step, RunPhase.FAILED, f"ROUND_VOID: {MAX_VOIDED_IN_A_ROW} rounds in a row failed")
    else:
        _gather(step)


def _tell_late_members(step: _Step, ended: round_types.RoundState) -> None:
    """Who confirmed while the round was open was not told its result: tell the next number."""
    told = {node for node, _ in ended.session.keys}
    for node in _live(step.state).confirmed:
        if node not in told:
            _session(step, sessions.MemberBack(node, step.state.next_r))


def _record_of(
    state: RunState, ended: round_types.RoundState, *, opened: bool, seconds: float
) -> RoundRecord:
    header = ended.header
    members = header.ids if header is not None else ()
    kind = header.kind.value if header is not None else ""
    survivors = ended.survivors if opened else ()
    return RoundRecord(
        position=state.position + 1,
        kind=kind,
        r=ended.r,
        hd=ended.hd,
        opened=opened,
        survivors=survivors,
        dropped=tuple(node for node in members if opened and node not in survivors),
        sum_sha256=ended.sum_sha256,
        model_sha256=ended.model_sha256,
        seconds=seconds,
        reason=ended.reason,
    )


def _hopeless(state: RunState) -> bool:
    last = state.history[-MAX_VOIDED_IN_A_ROW:]
    return len(last) == MAX_VOIDED_IN_A_ROW and not any(record.opened for record in last)


def _sum_used(step: _Step, event: SumUsed) -> None:
    state = step.state
    if state.round is None or state.round.hd != event.hd:
        return
    step.used = event
    model = b"" if event.model is None else event.model.model_sha256
    _round(step, rounds.SumOpened(event.sum_sha256, model))


def _sum_refused(step: _Step, event: SumRefused) -> None:
    current = step.state.round
    if current is not None and current.hd == event.hd:
        _round(step, rounds.SumOutOfRange())


# --- what hospitals send ------------------------------------------------------------------------


def _from_node(step: _Step, event: FromNode) -> None:
    node, message = event.node, event.step
    state = step.state
    match message:
        case StudyDecision():
            _decision(step, node, message)
        case ReleaseReceipt():
            _receipt(step, node, message)
        case KeyAdvert() | Kem() | Confirm():
            if state.session is None:
                raise Refusal("OUT_OF_TURN", "no epoch is being set up")
            _session(step, sessions.From(node, message))
            if isinstance(message, Confirm):
                _late_confirmation(step, node)
        case Ready() | Commit() | Release() | RecoverShares():
            _round_message(step, rounds.From(node, message))
        case Refused():
            _trouble(step, node, message)
        case _:
            raise Refusal("OUT_OF_TURN", f"a run takes no {type(message).__name__}")


def _late_confirmation(step: _Step, node: NodeId) -> None:
    """A member confirmed after rounds began: it may say Ready from now on."""
    state = step.state
    step.state = replace(state, without_keys=state.without_keys - {node})
    collecting = state.round is not None and state.round.phase is RoundPhase.COLLECTING
    if state.round is not None and collecting and state.session is not None:
        view = SessionView.of(state.session)
        step.state = replace(step.state, round=replace(state.round, session=view))


def _round_message(step: _Step, event: rounds.From) -> None:
    state = step.state
    if state.round is None and isinstance(event.message, Ready):
        others = tuple(entry for entry in state.early if entry[0] != event.sender)
        step.state = replace(state, early=(*others, (event.sender, event.message)))
        return
    if state.round is None:
        raise Refusal("OUT_OF_TURN", "no round is open")
    _round(step, event)
    if isinstance(event.message, Ready):
        _open_when_ready(step)


def _trouble(step: _Step, node: NodeId, message: Refused) -> None:
    """A hospital refused something: people see it, and a round does not wait for it."""
    state = step.state
    others = tuple(entry for entry in state.trouble if entry[0] != node)
    text = f"{message.code}: {message.detail}"
    step.state = replace(state, trouble=(*others, (node, text)))
    step.tell(
        Event.PROTOCOL_REFUSED,
        site=site_name(node),
        code=message.code,
        detail=message.detail,
        warning=True,
    )
    if _round_is_open(state):
        _round(step, rounds.From(node, message))


# --- timers, release, end ---------------------------------------------------------------------


def _timer(step: _Step, name: str) -> None:
    step.state = replace(step.state, timers=step.state.timers - {name})
    state = step.state
    kind, _, rest = name.partition(":")
    number, _, phase = rest.partition(":")
    if kind == _SESSION and state.session is not None:
        if number == str(state.session.terms.epoch):
            _session(step, sessions.Deadline(phase))
    elif kind == _ROUND and state.round is not None:
        if number == str(state.round.r):
            _round(step, rounds.Deadline(phase))
    elif name == _gather_timer(state):
        _gathered(step)
    elif name == _ENROLMENT and state.phase is RunPhase.ENROLLING:
        if len(state.accepted & state.connected) >= fewest(state):
            step.tell(Event.RUN_STARTED, sites=_names(state.accepted))
            _ask_epoch(step)
    elif name == _RETRY:
        step.state = replace(state, sitting_out=frozenset())
        _ask_epoch(step)
    elif name == _RELEASE and state.phase is RunPhase.RELEASING:
        _end(step, RunPhase.FINISHED, "")


def _gather_timer(state: RunState) -> str:
    """Return the name of the timer that waits for hospitals to be ready for this round."""
    epoch = 0 if state.session is None else state.session.terms.epoch
    return f"{_GATHER}:{epoch}:{state.next_r}"


def _gathered(step: _Step) -> None:
    """Enough hospitals are ready and the others were waited for: begin without them."""
    state = step.state
    if state.round is None or state.round.phase is not RoundPhase.COLLECTING or state.epoch_asked:
        return
    ready = {node for node, _ in state.round.ready} & state.connected
    away = set(_live(state).confirmed) - ready
    if len(ready) >= fewest(state):
        step.tell(Event.MEMBER_GONE, sites=_names(away), round=state.position + 1, warning=True)
        _open_round(step, ready)


def _release_made(step: _Step, event: ReleaseMade) -> None:
    step.record(Released(event.manifest_sha256))
    step.tell(Event.MODEL_PUBLISHED, manifest=event.manifest_sha256.hex()[:16])
    state = step.state
    due = (state.accepted & state.connected) - state.receipts
    step.do(*(SendRelease(node) for node in sorted(due)))
    step.timer(_RELEASE, step.ctx.timing.release)
    _finish_when_received(step)


def _receipt(step: _Step, node: NodeId, message: ReleaseReceipt) -> None:
    state = step.state
    if message.manifest_sha256 != state.released:
        raise Refusal("OUT_OF_TURN", "the receipt is for another release")
    if node not in state.receipts:
        step.record(Received(node))
    _finish_when_received(step)


def _finish_when_received(step: _Step) -> None:
    state = step.state
    if (
        state.phase is RunPhase.RELEASING
        and not (state.accepted & state.connected) - state.receipts
    ):
        _end(step, RunPhase.FINISHED, "")


def _end(step: _Step, phase: RunPhase, reason: str) -> None:
    state = step.state
    if state.phase.final:
        return
    step.record(Ended(phase, reason))
    event = {
        RunPhase.FINISHED: Event.RUN_FINISHED,
        RunPhase.CANCELLED: Event.RUN_CANCELLED,
    }.get(phase, Event.RUN_FAILED)
    step.tell(event, reason=reason or None, warning=phase is not RunPhase.FINISHED)
    ended = RunEnded(state.run_id, phase.value, reason)
    step.do(*(Send(node, ended) for node in sorted(state.connected)))
    if _round_is_open(state) and state.round is not None:
        step.do(DropSpool(state.round.hd))
    step.do(Finish(phase))
