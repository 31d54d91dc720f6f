"""The coordinator's round machine: sans-I/O and event-sourced.

    handle(state, event) -> (new state, commands)       or raises Refusal
    replay(facts)        -> the state after a crash

`Record(fact)` means: durable before anything after it. What no node was told yet may
be lost; what a node was told never is. One round is one `RoundState`, from
`begin_round` on (section 5):

    phase        event                                     next         what goes out
    COLLECTING   Ready                                     --           (last nonce counts)
                 OpenRound                                 RUNNING      RoundStart to U
    RUNNING      UploadReceived                            --           AckUpload
                 nobody awaited, or Deadline(round)        PROPOSED     Propose to S
    PROPOSED     q-th Commit                               CERTIFIED    Certificate to S
    CERTIFIED    Release of every member of S              OPENED       Open
                 silent ones away, or Deadline(release)    RECOVERING   RecoverRequest
    RECOVERING   RecoverShares, late Release: enough       OPENED       Open
    OPENED       SumOpened                                 CLOSED       RoundResult
    RUNNING      NonceLost                                 ABORTED      RoundResult
    any          not enough left, Deadline, SumOutOfRange  ABORTED      RoundResult
    any          MemberBack, Restarted                     same         what they may have missed

A crash at any point resumes with the same header and the same S: a set is recorded
before it is proposed, and there is no event that changes a recorded one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from common.errors import Refusal
from common.ids import NodeId, RoundNo
from common.secagg import coordinator_open as late
from common.secagg import coordinator_round as early
from common.secagg import coordinator_step as work
from common.secagg.coordinator_facts import (
    AckUpload,
    Close,
    Evidence,
    Open,
    Record,
    Report,
    RoundCommand,
    RoundFact,
    apply,
    decode_fact,
    encode_fact,
    replay,
)
from common.secagg.coordinator_state import (
    MemberGone,
    NonceLost,
    OpenRound,
    RoundEvent,
    RoundPhase,
    RoundState,
    RoundTerms,
    SessionView,
    SumOpened,
    SumOutOfRange,
    UploadReceived,
)
from common.secagg.cover import EdgeRecord
from common.secagg.messages import (
    Commit,
    Propose,
    Ready,
    RecoverShares,
    Refused,
    Release,
    RoundStart,
)
from common.secagg.setup_state import (
    ArmTimer,
    Deadline,
    From,
    MemberBack,
    Restarted,
    SendTo,
)

__all__ = [
    "AckUpload",
    "ArmTimer",
    "Close",
    "Deadline",
    "Evidence",
    "From",
    "MemberBack",
    "MemberGone",
    "NonceLost",
    "Open",
    "OpenRound",
    "Record",
    "Report",
    "Restarted",
    "RoundCommand",
    "RoundEvent",
    "RoundFact",
    "RoundPhase",
    "RoundState",
    "RoundTerms",
    "SendTo",
    "SessionView",
    "SumOpened",
    "SumOutOfRange",
    "UploadReceived",
    "apply",
    "begin_round",
    "decode_fact",
    "encode_fact",
    "handle",
    "replay",
]

_TIMER_OF = {
    RoundPhase.RUNNING: "round",
    RoundPhase.PROPOSED: "commit",
    RoundPhase.CERTIFIED: "release",
    RoundPhase.RECOVERING: "recover",
}


def begin_round(session: SessionView, r: RoundNo, edges: EdgeRecord | None = None) -> RoundState:
    """Return round `r`, collecting nonces; `edges` is the last round's record."""
    return RoundState(session, r, edges or EdgeRecord())


def handle(state: RoundState, event: RoundEvent) -> tuple[RoundState, list[RoundCommand]]:
    """Return the new state and what the driver has to do, in order.

    Raises:
        Refusal: a message is refused by its name; `state` still holds, its sender is told.
        InternalError: the driver broke the order of its own events.
    """
    step = work.Step(state)
    match event:
        case From():
            _message(step, event)
        case OpenRound():
            early.open_round(step, event)
        case UploadReceived():
            step.state = _present(step.state, event.sender)
            early.upload(step, event)
        case MemberGone():
            step.state = replace(step.state, gone=step.state.gone | {event.node})
            _go_on(step)
        case MemberBack():
            step.state = _present(step.state, event.node)
            _tell(step, event.node)
        case NonceLost():
            if step.state.phase is RoundPhase.RUNNING:  # no set of it was shown to anybody
                work.abort(step, "HEADER_NONCE")
        case Deadline():
            _deadline(step, event.name)
        case SumOpened():
            work.sum_opened(step, event)
        case SumOutOfRange():
            work.abort(step, "SUM_RANGE")
        case Restarted():
            _restart(step)
        case _:
            assert_never(event)
    return step.state, step.commands


def _message(step: work.Step, event: From) -> None:
    sender = event.sender
    match event.message:
        case Ready() as message:
            step.state = replace(step.state, ready=early.ready(step.state, sender, message))
        case Commit() as message:
            early.commit(step, sender, message)
        case Release() as message:
            late.release(step, sender, message)
        case RecoverShares() as message:
            late.shares(step, sender, message)
        case Refused() as message:
            _refused(step, sender, message)
        case _:
            raise Refusal("OUT_OF_TURN", f"{sender} sent a message of no round")
    step.state = _present(step.state, sender)


def _present(state: RoundState, node: NodeId) -> RoundState:
    return replace(state, gone=state.gone - {node}) if node in state.gone else state


def _refused(step: work.Step, sender: NodeId, message: Refused) -> None:
    """A member says no to this round for good; perhaps it cannot succeed any more."""
    state = step.state
    if state.header is None or message.hd != state.hd or sender not in state.header.ids:
        return
    step.report((sender,), message.code, f"{sender} refused a step of round {state.r}")
    step.state = replace(state, left=state.left | {sender})
    _go_on(step)


def _go_on(step: work.Step) -> None:
    """Enter the phase whose turn has come: somebody is away, or a crash cut a step short."""
    state = step.state
    match state.phase:
        case RoundPhase.RUNNING:
            early.maybe_propose(step)
        case RoundPhase.PROPOSED:
            early.maybe_certify(step)
        case RoundPhase.CERTIFIED | RoundPhase.RECOVERING:
            late.maybe_open(step)
            late.maybe_recover(step)
        case _:
            return


def _deadline(step: work.Step, name: str) -> None:
    state = step.state
    if _TIMER_OF.get(state.phase) != name:
        return
    match state.phase:
        case RoundPhase.RUNNING:
            early.maybe_propose(step, final=True)
        case RoundPhase.PROPOSED:
            work.abort(step, "NOT_ENOUGH")
        case RoundPhase.CERTIFIED:
            late.maybe_recover(step, final=True)
        case RoundPhase.RECOVERING:
            late.give_up(step)
        case _:
            return


def _tell(step: work.Step, node: NodeId) -> None:
    """Send one member again what it has not answered yet."""
    state = step.state
    match state.phase:
        case RoundPhase.COLLECTING | RoundPhase.OPENED:
            return
        case RoundPhase.RUNNING:
            if node in step.header.ids and node not in work.ends(state):
                step.send(node, RoundStart(step.header))
        case RoundPhase.PROPOSED:
            if node in state.survivors and work.find(state.commits, node) is None:
                step.send(node, Propose(state.hd, state.digests))
        case RoundPhase.CERTIFIED | RoundPhase.RECOVERING:
            _tell_certified(step, node)
        case RoundPhase.CLOSED | RoundPhase.ABORTED:
            step.send(node, work.result(state))
        case _:
            assert_never(state.phase)


def _tell_certified(step: work.Step, node: NodeId) -> None:
    state = step.state
    if state.certificate is None or node not in state.survivors:
        return
    if node in late.silent(state):
        step.send(node, state.certificate)
    elif state.phase is RoundPhase.RECOVERING and work.find(state.shares, node) is None:
        late.ask(step, node)


def _restart(step: work.Step) -> None:
    """After a crash: the timer of the phase, and to each member what it may have missed."""
    before = step.state.phase
    _go_on(step)
    state = step.state
    timer = _TIMER_OF.get(state.phase)
    if timer is not None and state.phase is before:
        step.arm(timer)
    if state.phase is before is RoundPhase.OPENED:
        step.commands.append(late.opening(state, step.header))
    for node, _ in state.session.keys:
        _tell(step, node)
