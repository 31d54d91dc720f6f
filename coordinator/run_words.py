"""What operators read of a run: about ten lines a round at four hospitals; sans-io.

Everything here only asks for lines (`Tell`); the driver writes them, after the facts they
speak of are durable. A line says nothing about one hospital but that its vector arrived,
and when: its length is the same for all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from common.events import Event
from common.ids import NodeId, site_name
from common.layouts import round_kinds
from common.secagg.coordinator_facts import (
    Certified,
    RecoveryBegun,
    RoundFact,
    RoundOpened,
    SetProposed,
    UploadAccepted,
)
from common.secagg.header import Header
from common.secagg.ring import word_bytes
from common.views import APPROVAL
from coordinator.run_state import At, RoundRecord, Shown, Tell
from coordinator.run_step import WAITING, Step, fewest, names
from coordinator.waits import Wait, stage_of, wait_of

MOST_NAMED: Final = 64
"""In larger cohorts the hospitals' uploads have no line each."""

FIRST_SHARE: Final = 0.25
SHORTEST_S: Final = 5.0
FIRST_S: Final = 30.0
LONGEST_FIRST_S: Final = 60.0
LONGEST_S: Final = 900.0
"""People are told of a wait after a quarter of it, but within a minute (after half a minute
if it has no end), and then after twice as long each time, at most a quarter of an hour."""


# --- rounds ---------------------------------------------------------------------------------


def tell_fact(step: Step, fact: RoundFact) -> None:
    """Tell of a fact that takes a round further."""
    current = step.state.round
    if current is None or current.header is None:
        return
    header, gone_by = current.header, step.ctx.now - step.state.round_began
    match fact:
        case RoundOpened():
            _tell_opened(step, header)
        case UploadAccepted() if header.n <= MOST_NAMED:
            _tell(
                step,
                Event.UPLOAD_FINISHED,
                site=site_name(fact.sender),
                bytes=header.d * word_bytes(header.w),
                seconds=gone_by,
            )
        case SetProposed():
            inside = {node for node, _ in fact.digests}
            out = names(node for node in header.ids if node not in inside)
            _tell(step, Event.ROUND_PROPOSED, survivors=len(inside), dropped=out, seconds=gone_by)
        case Certified():
            signed = len(fact.certificate.sigs)
            _tell(step, Event.ROUND_CERTIFIED, signed=signed, seconds=gone_by)
        case RecoveryBegun():
            released = {node for node, _ in current.releases}
            silent = names(node for node in current.survivors if node not in released)
            _tell(step, Event.ROUND_RECOVERING, waiting_for=silent, seconds=gone_by, warning=True)
        case _:
            pass


def _tell(
    step: Step, event: Event, *, warning: bool = False, **fields: str | float | tuple[str, ...]
) -> None:
    step.tell(event, warning=warning, round=step.state.position + 1, **fields)


def _tell_opened(step: Step, header: Header) -> None:
    _tell(
        step,
        Event.ROUND_OPENED,
        kind=header.kind.value,
        of=len(round_kinds(step.state.study)),
        cohort=names(header.ids),
        quorum=header.q,
        needs=header.s_min,
        deadline_s=header.deadline_ms / 1000,
    )


def tell_summed(step: Step) -> None:
    """Tell that a sum was opened and is in range."""
    _tell(step, Event.ROUND_SUMMED, seconds=step.ctx.now - step.state.round_began)


def tell_end(step: Step, record: RoundRecord) -> None:
    """Tell how a round ended, and who is not in its sum."""
    if record.opened:
        step.tell(
            Event.ROUND_CLOSED,
            round=record.position,
            kind=record.kind,
            survivors=len(record.survivors),
            dropped=names(record.dropped),
            seconds=record.seconds,
        )
    else:
        step.tell(
            Event.ROUND_VOIDED,
            round=record.position,
            kind=record.kind,
            reason=record.reason,
            seconds=record.seconds,
            warning=True,
        )


def tell_gone(step: Step, nodes: Iterable[NodeId], then: str) -> None:
    """Tell that hospitals are out of a round."""
    gone = names(nodes)
    if gone:
        _tell(step, Event.MEMBER_GONE, sites=gone, then=then, warning=True)


# --- waits ----------------------------------------------------------------------------------


def watch_wait(step: Step) -> None:
    """After each event: a new wait begins, and people are told if it takes long."""
    stage = stage_of(step.state)
    if stage == step.state.stage:
        return
    step.state = replace(step.state, stage=stage, stage_since=step.ctx.now)
    step.timer(WAITING, _first_pause(wait_of(step.state)))


def _first_pause(wait: Wait | None) -> float:
    if wait is None or wait.until is None:
        return FIRST_S
    return min(max(SHORTEST_S, FIRST_SHARE * (wait.until - wait.since)), LONGEST_FIRST_S)


def still_waiting(step: Step) -> None:
    """The run has waited for long: say for whom, since when, until when, and what follows."""
    state, now = step.state, step.ctx.now
    wait = wait_of(state)
    pause = max(SHORTEST_S, now - state.stage_since)
    step.timer(WAITING, min(pause, LONGEST_S))
    if wait is not None:
        tell_wait(step, wait)


def tell_pause(step: Step) -> None:
    """Tell at once that too few hospitals are there."""
    step.state = replace(step.state, stage_since=step.ctx.now)
    wait = wait_of(step.state)
    if wait is not None:
        tell_wait(step, wait)


def _people(step: Step, wait: Wait) -> dict[str, Shown]:
    """Return the approvers that a wait is for, each with the hospital; nothing for other waits."""
    if wait.what != APPROVAL:
        return {}
    waiting = ((node, one) for node, one in step.state.waiting if node in wait.nodes)
    return {
        "people": tuple(f"{site_name(at)}/{name}" for at, one in waiting for name in one.people)
    }


def tell_wait(step: Step, wait: Wait) -> None:
    """Tell of a wait: of the open round, of a paused run, or of the run between rounds."""
    state, now = step.state, step.ctx.now
    until = None if wait.until is None else At(wait.until)
    common: dict[str, Shown] = {
        "waiting_for": names(wait.nodes),
        "since": At(wait.since),
        "until": until,
        "seconds": now - wait.since,
        "then": wait.then,
        **_people(step, wait),
    }
    if state.paused:
        here = names((state.accepted & state.connected) - state.sitting_out)
        fields: dict[str, Shown] = {"need": fewest(state), "present": here, **common}
        step.do(Tell(Event.RUN_PAUSED, tuple(fields.items()), warning=True))
        return
    in_round = state.round is not None and state.round.header is not None
    number = state.position + 1 if in_round else None
    fields = {"round": number, "what": wait.what, **common}
    step.do(Tell(Event.ROUND_WAITING, tuple(fields.items())))
