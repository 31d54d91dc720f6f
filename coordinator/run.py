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

from dataclasses import replace
from typing import Final, assert_never

from common.errors import Refusal
from common.events import Event
from common.ids import NodeId, site_name
from common.messages import ReleaseReceipt, StudyDecision
from common.secagg import coordinator as rounds
from common.secagg import coordinator_session as sessions
from common.secagg.coordinator_session import SetupPhase
from common.secagg.messages import (
    Commit,
    Confirm,
    Kem,
    KeyAdvert,
    Ready,
    RecoverShares,
    Refused,
    Release,
)
from common.views import RunPhase
from coordinator.run_members import (
    connected,
    enrol,
    late_confirmation,
    open_epoch,
    take_decision,
    to_session,
)
from coordinator.run_release import receipt, release_made
from coordinator.run_rounds import (
    gather,
    gathered,
    round_message,
    sum_refused,
    sum_used,
    to_round,
    worth_another_header,
)
from coordinator.run_state import (
    Begin,
    Cancel,
    EpochReserved,
    FirstModelMade,
    FromNode,
    ModelMade,
    NodeConnected,
    NodeLost,
    ReleaseMade,
    RunCommand,
    RunEvent,
    RunState,
    SumRefused,
    SumUsed,
    TimerFired,
    UploadComplete,
)
from coordinator.run_step import (
    ENROLMENT,
    REJOIN,
    RELEASE,
    RETRY,
    ROUND,
    SESSION,
    WAITING,
    RunContext,
    Step,
    ask_epoch,
    end,
    fewest,
    gather_timer,
    names,
    round_is_open,
)
from coordinator.run_words import still_waiting, tell_gone, watch_wait

EARLY_S: Final = 0.05
"""A timer may fire a little before its time."""


def handle(state: RunState, event: RunEvent, ctx: RunContext) -> tuple[RunState, list[RunCommand]]:
    """Return the new state and what the driver has to do, in order.

    Raises:
        Refusal: a node's step is refused; the state still holds.
    """
    if state.phase.final and not _heard_after_the_end(event):
        return state, []
    step = Step(state, ctx)
    _take(step, event)
    if not step.state.phase.final:
        watch_wait(step)
    return step.state, step.commands


def _take(step: Step, event: RunEvent) -> None:
    match event:
        case Begin():
            _begin(step)
        case NodeConnected():
            connected(step, event)
        case NodeLost():
            step.state = replace(step.state, connected=step.state.connected - {event.node})
        case FromNode():
            _from_node(step, event)
        case UploadComplete():
            upload = rounds.UploadReceived(event.node, event.end, event.ydig, event.size_bytes)
            to_round(step, upload)
        case TimerFired():
            _timer(step, event.name)
        case EpochReserved():
            open_epoch(step, event)
        case FirstModelMade():
            _first_model(step, event)
        case SumUsed():
            sum_used(step, event)
        case SumRefused():
            sum_refused(step, event)
        case ReleaseMade():
            release_made(step, event)
        case Cancel():
            end(step, RunPhase.CANCELLED, event.reason)
        case _:
            assert_never(event)


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


def _first_model(step: Step, event: FirstModelMade) -> None:
    step.state = replace(step.state, model_asked=False)
    if step.state.model is None:
        step.record(ModelMade(event.model))
    gather(step)


def _begin(step: Step) -> None:
    """Start a run, or go on where its facts end."""
    state = step.state
    if state.decisions or state.session is not None:
        number = state.position + 1 if round_is_open(state) else None
        step.tell(Event.STATE_RECOVERED, round=number, phase=state.phase.value)
    if state.session is None:
        enrol(step)
    elif state.session.phase is SetupPhase.FAILED:
        ask_epoch(step)
    elif state.session.phase is not SetupPhase.READY:
        to_session(step, sessions.Restarted())
    elif state.round is not None:
        step.state = replace(state, round_began=step.ctx.now)
        to_round(step, rounds.Restarted())
    else:
        gather(step)


def _from_node(step: Step, event: FromNode) -> None:
    node, message = event.node, event.step
    state = step.state
    match message:
        case StudyDecision():
            take_decision(step, node, message)
        case ReleaseReceipt():
            receipt(step, node, message)
        case KeyAdvert() | Kem() | Confirm():
            if state.session is None:
                raise Refusal("OUT_OF_TURN", "no epoch is being set up")
            if isinstance(message, Confirm):
                step.state = replace(state, without_keys=state.without_keys - {node})
            to_session(step, sessions.From(node, message))
            if isinstance(message, Confirm):
                late_confirmation(step)
        case Ready() | Commit() | Release() | RecoverShares():
            round_message(step, rounds.From(node, message))
        case Refused():
            _trouble(step, node, message)
        case _:
            raise Refusal("OUT_OF_TURN", f"a run takes no {type(message).__name__}")


def _trouble(step: Step, node: NodeId, message: Refused) -> None:
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
    keyless = _has_no_keys(state, node, message)
    if keyless:
        step.state = replace(step.state, without_keys=step.state.without_keys | {node})
    if worth_another_header(step, node, message):
        to_round(step, rounds.NonceLost())
    elif round_is_open(state):
        _leave(step, node, message)
    elif keyless and state.phase is RunPhase.RUNNING:
        gather(step)


def _has_no_keys(state: RunState, node: NodeId, message: Refused) -> bool:
    """Whether a member says that it has no keys of the epoch that were confirmed in its name.

    Another process with its certificate has done so, or its clock was set beyond their validity.
    It is asked for keys again as one that comes back without any is; else a run that cannot do
    without it would wait for ever. What it says may be about the round that has just ended, or
    about the next one, which has no header yet.
    """
    if state.session is None or node not in state.session.confirmed:
        return False
    headers = (one.header for one in (state.round, state.last_round) if one is not None)
    of_epoch = message.hd in {b"", *(header.digest() for header in headers if header is not None)}
    return message.code == "OWN_ADVERT" or (message.code == "EPOCH_OLD" and of_epoch)


def _leave(step: Step, node: NodeId, message: Refused) -> None:
    """Have the open round go on without a hospital that refused it."""
    before, position = step.state.round, step.state.position
    to_round(step, rounds.From(node, message))
    now = step.state.round
    if before is None or now is None or node in before.left or node not in now.left:
        return  # it was of another round, or the round has ended and said so
    if position == step.state.position:
        tell_gone(step, (node,), "the round goes on without it")


def _timer(step: Step, name: str) -> None:
    if name == WAITING:
        span = step.state.timers.get(WAITING)
        if span is not None and step.ctx.now >= span.until - EARLY_S:  # else it was started again
            still_waiting(step)
        return
    step.forget_timer(name)
    state = step.state
    kind, _, rest = name.partition(":")
    number, _, phase = rest.partition(":")
    if kind == SESSION and state.session is not None:
        if number == str(state.session.terms.epoch):
            to_session(step, sessions.Deadline(phase))
    elif kind == ROUND and state.round is not None:
        if number == str(state.round.r):
            to_round(step, rounds.Deadline(phase))
    elif name == gather_timer(state):
        gathered(step)
    elif name == ENROLMENT and state.phase is RunPhase.ENROLLING:
        if len(state.accepted & state.connected) >= fewest(state):
            step.tell(Event.RUN_STARTED, sites=names(state.accepted))
            ask_epoch(step)
    elif name == RETRY:
        step.state = replace(state, sitting_out=frozenset())
        if not round_is_open(state):
            ask_epoch(step)
    elif name == REJOIN and state.phase is RunPhase.RUNNING:
        gather(step)
    elif name == RELEASE and state.phase is RunPhase.RELEASING:
        end(step, RunPhase.FINISHED, "")
