"""A run's rounds: gather who is ready, open, pass on what comes, close, try again.

A round is `common.secagg.coordinator`; this is what stands around it. A round that
fails is tried again with the next number and the same model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, assert_never

from common.errors import InternalError, Refusal
from common.events import Event
from common.ids import NodeId, site_name
from common.layouts import header_ranges
from common.secagg import coordinator as rounds
from common.secagg import coordinator_session as sessions
from common.secagg import coordinator_state as round_types
from common.secagg.coordinator_session import SessionState, SetupPhase
from common.secagg.coordinator_state import RoundPhase, RoundTerms, SessionView
from common.secagg.header import RoundKind, quant_bound
from common.secagg.messages import (
    FromCoordinator,
    Ready,
    Refused,
    RoundStart,
    RoundStatus,
)
from common.secagg.params import EPOCH_ROUNDS
from common.vectors import EMPTY_MODEL
from common.views import RunPhase
from coordinator.run_facts import signed
from coordinator.run_joiners import may_join
from coordinator.run_state import (
    AckUpload,
    DropSpool,
    MakeFirstModel,
    MakeRelease,
    OpenSum,
    Record,
    RoundEnded,
    RoundRecord,
    RoundStep,
    RunState,
    Send,
    SumRefused,
    SumUsed,
    Witnessed,
)
from coordinator.run_step import (
    RETRY,
    ROUND,
    RunContext,
    Step,
    ask_epoch,
    current_kind,
    current_layout,
    end,
    fewest,
    gather_timer,
    live,
    names,
    round_is_open,
    session_context,
    too_few,
)
from coordinator.run_words import tell_end, tell_fact, tell_gone, tell_summed

MAX_VOIDED_IN_A_ROW: Final = 10
"""A run whose rounds fail this often in a row ends; the model so far is kept."""


LATEST_ANEW: Final = 0.5
"""Share of the round's deadline after which it does not begin anew for one hospital."""
MAX_REFUSED_WITH_NOISE: Final = 2
"""The same for rounds with differential privacy that a hospital keeps refusing."""


def gather(step: Step) -> None:
    """Between two rounds: decide what comes next, and wait for those it needs."""
    state = step.state
    session = live(state)
    kind = current_kind(state)
    if kind is None:
        step.state = replace(state, phase=RunPhase.RELEASING)
        step.do(MakeRelease())
    elif (why := too_few(state)) is not None and not round_is_open(state):
        end(step, RunPhase.FAILED, why)
    elif session.phase is not SetupPhase.READY or round_is_open(state):
        return
    elif kind is not RoundKind.STATISTICS and state.model is None:
        _ask_first_model(step)
    elif state.next_r > EPOCH_ROUNDS or _expired(step, session) or may_join(step):
        ask_epoch(step)
    else:
        if state.round is None:
            view = SessionView.of(session)
            fresh = rounds.begin_round(view, state.next_r, state.edges)
            step.state = replace(state, round=_with_early(fresh, state.early), early=())
        _open_when_ready(step)


def _ask_first_model(step: Step) -> None:
    """Have the first model made, once: whoever connects meanwhile brings a run here again."""
    if not step.state.model_asked:
        step.state = replace(step.state, model_asked=True)
        step.do(MakeFirstModel())


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


def _expired(step: Step, session: SessionState) -> bool:
    return any(step.ctx.unix >= advert.not_after for advert in session.adverts)


def _open_when_ready(step: Step) -> None:
    state = step.state
    if state.round is None or state.epoch_asked or step.ctx.draining:
        return
    ready = {node for node, _ in state.round.ready} & state.connected
    expected = set(live(state).confirmed) & state.accepted  # some may have withdrawn since
    if state.agreed:
        # However long it takes: with any other set those who signed would void the round.
        if ready & expected >= set(state.agreed):
            _open_round(step, set(state.agreed))
        elif _needed_without_keys(state) and RETRY not in state.timers:
            step.timer(RETRY, step.ctx.timing.setup)
        return
    if len(expected - state.sitting_out) >= fewest(state):
        expected -= state.sitting_out
    ready &= expected
    if len(ready) < fewest(state):
        return
    if ready == expected:
        _open_round(step, ready)
    elif gather_timer(state) not in state.timers:
        step.timer(gather_timer(state), step.ctx.timing.gather)


def _needed_without_keys(state: RunState) -> frozenset[NodeId]:
    """Who is here, has no keys of this epoch, and is one of the set that the next round has.

    No round can do without it, so an epoch with it is set up, and again, until one has it.
    """
    present = frozenset(state.agreed) & state.accepted & state.connected
    return present - frozenset(live(state).confirmed)


def _open_round(step: Step, members: set[NodeId]) -> None:
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
        s_min=max(state.study.federation.min_sites, len(state.agreed)),
        w=layout.ring_bits,
        rounding=layout.rounding,
        dp=layout.dp,
    )
    step.state = replace(state, round_began=step.ctx.now, sitting_out=frozenset())
    step.forget_timer(gather_timer(state))
    to_round(step, rounds.OpenRound(terms, tuple(sorted(members))))


def to_round(step: Step, event: rounds.RoundEvent) -> None:
    """Hand an event to the round and do what it asks for.

    Raises:
        Refusal: CLOSED, there is none; or the round refuses a hospital's message.
    """
    state = step.state
    if state.round is None:
        raise Refusal("CLOSED", "no round is open")
    new, commands = rounds.handle(state.round, event)
    gone = new.left - state.round.left
    step.state = replace(state, round=new)
    for command in commands:
        if not (isinstance(command, rounds.Report) and gone >= set(command.nodes)):
            _round_command(step, command)  # what `gone` refused was told where it came in


def _round_command(step: Step, command: rounds.RoundCommand) -> None:
    state = step.state
    match command:
        case rounds.Record():
            if state.round is not None:
                step.do(Record(RoundStep(state.round.r, command.fact)))
                tell_fact(step, command.fact)
        case rounds.SendTo():
            step.do(Send(command.to, _with_stream(state, command.message)))
        case rounds.ArmTimer():
            if state.round is not None:
                step.timer(f"{ROUND}:{state.round.r}:{command.name}", command.seconds)
        case rounds.AckUpload():
            step.do(AckUpload(command.to, command.hd))
        case rounds.Open():
            hospitals = len(state.accepted | set(command.survivors))
            step.do(
                OpenSum(command.header, command.survivors, command.plan, state.model, hospitals)
            )
        case rounds.Evidence():
            step.record(Witnessed(command.evidence))
            step.tell(Event.EVIDENCE_STORED, site=site_name(command.evidence.node), warning=True)
        case rounds.Report():
            step.tell(
                Event.PROTOCOL_REFUSED,
                sites=names(command.nodes),
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


def _close(step: Step, close: rounds.Close) -> None:
    """A round is over: keep its record, and go on or try again."""
    state = step.state
    if state.round is None or state.round.header is None:
        raise InternalError("a round that never opened was closed")
    opened = close.status is RoundStatus.OPENED
    record = _record_of(state, state.round, step.ctx, opened=opened)
    used = step.used if opened else None
    step.record(
        RoundEnded(
            record,
            used.model if used is not None else None,
            used.pooled if used is not None else (),
            used.evaluation if used is not None else "",
            () if opened else signed(state.round),
            () if opened else tuple(sorted(node for node, _ in state.round.commits)),
        )
    )
    step.do(DropSpool(state.round.hd))
    step.state = replace(
        step.state,
        sitting_out=step.state.sitting_out | set(close.sit_out),
        trouble=tuple(one for one in step.state.trouble if one[0] not in record.survivors),
    )
    if opened:
        step.state = replace(step.state, rejoin_pause=0.0, rejoin_at=0.0)
    tell_end(step, record)
    _tell_late_members(step, state.round)
    if _hopeless(step.state):
        end(step, RunPhase.FAILED, _why_hopeless(step.state))
    else:
        gather(step)


def _tell_late_members(step: Step, ended: round_types.RoundState) -> None:
    """Who confirmed while the round was open was not told its result: tell the next number."""
    told = {node for node, _ in ended.session.keys}
    for node in live(step.state).confirmed:
        if node not in told:
            back = sessions.MemberBack(node, step.state.next_r)
            _, commands = sessions.handle(step.state.session, back, session_context(step.ctx))
            sends = (c for c in commands if isinstance(c, sessions.SendTo))
            step.do(*(Send(c.to, c.message) for c in sends))


def _record_of(
    state: RunState, ended: round_types.RoundState, ctx: RunContext, *, opened: bool
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
        seconds=ctx.now - state.round_began,
        reason=ended.reason,
        ended_unix=ctx.unix_s,
    )


def _most_voided(state: RunState) -> int:
    """Return after how many voided rounds in a row a run ends.

    A voided round with noise may have been charged to every hospital that did not refuse it.
    """
    refused = state.study.privacy.dp.on and bool(state.trouble)
    return MAX_REFUSED_WITH_NOISE if refused else MAX_VOIDED_IN_A_ROW


def _hopeless(state: RunState) -> bool:
    most = _most_voided(state)
    last = state.history[-most:]
    return len(last) == most and not any(record.opened for record in last)


def _why_hopeless(state: RunState) -> str:
    """Say what the hospitals refused last, for a voided round's own reason names nobody."""
    said = (f"{site_name(node)}: {text}" for node, text in sorted(state.trouble))
    return "; ".join((f"ROUND_VOID: {_most_voided(state)} rounds in a row failed", *said))


def sum_used(step: Step, event: SumUsed) -> None:
    """The sum of the open round was used: close it."""
    state = step.state
    if state.round is None or state.round.hd != event.hd:
        return
    step.used = event
    tell_summed(step)
    model = b"" if event.model is None else event.model.model_sha256
    to_round(step, rounds.SumOpened(event.sum_sha256, model))


def sum_refused(step: Step, event: SumRefused) -> None:
    """The sum of the open round was out of range: void it."""
    current = step.state.round
    if current is not None and current.hd == event.hd:
        to_round(step, rounds.SumOutOfRange())


def round_message(step: Step, event: rounds.From) -> None:
    """A step of a hospital in a round; a Ready that comes early is kept for the next one.

    Raises:
        Refusal: OUT_OF_TURN, no round is open; or the round refuses it.
    """
    state = step.state
    if state.round is None and isinstance(event.message, Ready):
        others = tuple(entry for entry in state.early if entry[0] != event.sender)
        step.state = replace(state, early=(*others, (event.sender, event.message)))
        return
    if state.round is None:
        raise Refusal("OUT_OF_TURN", "no round is open")
    to_round(step, event)
    if isinstance(event.message, Ready):
        _open_when_ready(step)


def worth_another_header(step: Step, node: NodeId, message: Refused) -> bool:
    """Whether a round begins anew for a hospital whose process died before it had the header.

    The nonce that the header carries died with the process, so nothing can bring the hospital
    into this round. The others train the same again for its sake: so not late in the round, not
    twice in a row, not where one whose upload is here could not do so again, and not with noise,
    which every hospital would have to pay for twice.
    """
    state, current = step.state, step.state.round
    if current is None or current.header is None or current.phase is not RoundPhase.RUNNING:
        return False
    if message.code != "HEADER_NONCE" or step.ctx.draining or state.study.privacy.dp.on:
        return False
    sent = {upload.sender for upload in current.uploads}
    members = set(current.header.ids) - current.left - sent
    mine = message.hd == current.hd and node in members
    late = step.ctx.now - state.round_began > LATEST_ANEW * current.header.deadline_ms / 1000
    again = bool(state.history) and state.history[-1].reason == message.code
    return mine and sent <= state.connected and not late and not again


def gathered(step: Step) -> None:
    """Enough hospitals are ready and the others were waited for: begin without them."""
    state = step.state
    if state.round is None or state.round.phase is not RoundPhase.COLLECTING or state.epoch_asked:
        return
    if state.agreed or step.ctx.draining:  # the agreed are waited for however long it takes
        return
    ready = {node for node, _ in state.round.ready} & state.connected
    expected = set(live(state).confirmed) & state.accepted
    ready &= expected
    away = expected - ready
    if len(ready) >= fewest(state):
        tell_gone(step, away, "the round opens without them")
        _open_round(step, ready)
