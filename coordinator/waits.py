"""Whom a run waits for, for what, until when, and what happens then; sans-io.

One place says so for the log (`round.waiting`, `run.paused`, `link.lost`) and for the status
screen. Times are monotonic seconds; whoever shows them turns them into what people read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from common.ids import NodeId
from common.secagg.coordinator_session import SessionState, SetupPhase
from common.secagg.coordinator_state import RoundPhase, RoundState
from common.secagg.header import Header
from common.views import APPROVAL, RunPhase
from coordinator.run_state import RunState, Span
from coordinator.run_step import ENROLMENT, RELEASE, RETRY, ROUND, SESSION, fewest, gather_timer

Stage: TypeAlias = tuple[object, ...]
"""What a wait belongs to: while it stays the same, the run waits for the same thing."""

_ROUND_TIMER = {
    RoundPhase.RUNNING: "round",
    RoundPhase.PROPOSED: "commit",
    RoundPhase.CERTIFIED: "release",
    RoundPhase.RECOVERING: "recover",
}


@dataclass(frozen=True, slots=True)
class Wait:
    """`until` is None when only the hospitals themselves end it."""

    nodes: frozenset[NodeId]
    what: str
    since: float
    until: float | None
    then: str


def stage_of(state: RunState) -> Stage:
    """Return what `state` waits in; cheap, for it is asked after every event."""
    session, current = state.session, state.round
    in_round = current is not None and current.phase is not RoundPhase.COLLECTING
    return (
        state.phase,
        state.paused,
        None if session is None else (session.terms.epoch, session.phase),
        state.next_r,
        current.phase if in_round and current is not None else None,
    )


def wait_of(state: RunState) -> Wait | None:
    """Return what a run waits for; None if it is over or waits for nobody but itself."""
    session, current = state.session, state.round
    if state.phase.final:
        found = None
    elif state.phase is RunPhase.ENROLLING:
        found = _enrolment(state)
    elif state.phase is RunPhase.RELEASING:
        found = _release(state)
    elif state.paused or session is None:
        found = _consents(state) or _pause(state)
    elif session.phase is not SetupPhase.READY:
        found = _keys(state, session)
    elif current is None or current.header is None:
        found = _consents(state) or _readiness(state, session)
    else:
        found = _in_round(state, current, current.header)
    return found if found is not None and found.nodes else None


def _made(
    state: RunState, nodes: Iterable[NodeId], what: str, span: Span | None, then: str
) -> Wait:
    since = state.stage_since if span is None else span.since
    return Wait(frozenset(nodes), what, since, None if span is None else span.until, then)


def _enrolment(state: RunState) -> Wait:
    need = fewest(state)
    here = state.accepted & state.connected
    if len(here) >= need:
        span, owed = state.timers.get(ENROLMENT), _owed(state, state.undecided)
        return _made(state, state.undecided, owed, span, "the run begins without them")
    missing = frozenset(state.roster) - state.refused - here
    then = f"the run begins once {need} hospitals have accepted"
    return _made(state, missing, _owed(state, missing), None, then)


def _owed(state: RunState, missing: frozenset[NodeId]) -> str:
    """Say what hospitals owe that have not accepted: their people's word, theirs, or a stream."""
    if missing <= {node for node, _ in state.waiting}:
        return APPROVAL
    return "decision" if missing & state.connected else "connection"


def _consents(state: RunState) -> Wait | None:
    """Return the wait of a run that had begun, and of which too few hospitals still consent."""
    need = fewest(state)
    if len(state.accepted) >= need:
        return None
    then = f"the run goes on once {need} hospitals have accepted"
    return _made(state, state.undecided, _owed(state, state.undecided), None, then)


def _pause(state: RunState) -> Wait:
    missing = state.accepted - (state.connected - state.sitting_out)
    then = f"it is tried again; {fewest(state)} hospitals are needed"
    return _made(state, missing, "connection", state.timers.get(RETRY), then)


def _keys(state: RunState, session: SessionState) -> Wait:
    members = frozenset(session.members)
    then = f"goes on without them if {session.min_members} remain"
    match session.phase:
        case SetupPhase.ADVERTS:
            missing = frozenset(session.invited) - members
        case SetupPhase.KEMS:
            missing = members - {kem.sender for kem in session.kems}
            then = "a new epoch begins without them"
        case _:
            missing = members - frozenset(session.confirmed)
    span = state.timers.get(f"{SESSION}:{session.terms.epoch}:{session.phase.value}")
    return _made(state, missing, "keys", span, then)


def _readiness(state: RunState, session: SessionState) -> Wait:
    need = fewest(state)
    expected = frozenset(session.confirmed) & state.accepted
    if len(expected - state.sitting_out) >= need:
        expected -= state.sitting_out
    ready = frozenset(node for node, _ in state.round.ready) if state.round is not None else set()
    if state.agreed:
        missing = frozenset(state.agreed) - (ready & state.connected & state.accepted)
        what = "readiness" if missing & state.connected else "connection"
        then = "the round opens with exactly the hospitals whose set was signed for its model"
        return _made(state, missing, what, None, then)
    missing = expected - (ready & state.connected)
    span = state.timers.get(gather_timer(state))
    then = "the round opens without them"
    if span is None:
        then = f"the round opens once {need} are ready"
    what = "readiness" if missing & state.connected else "connection"
    return _made(state, missing, what, span, then)


def _release(state: RunState) -> Wait:
    missing = (state.accepted & state.connected) - state.receipts
    then = "the run ends; they get the model when they connect again"
    return _made(state, missing, "receipt", state.timers.get(RELEASE), then)


# --- open rounds ----------------------------------------------------------------------------


def _in_round(state: RunState, current: RoundState, header: Header) -> Wait | None:
    name = _ROUND_TIMER.get(current.phase)
    if name is None:
        return None  # the sum is being opened
    span = state.timers.get(f"{ROUND}:{current.r}:{name}")
    nodes, what = awaited(current, header)
    return _made(state, nodes, what, span, _without(current, header))


def awaited(current: RoundState, header: Header) -> tuple[frozenset[NodeId], str]:
    """Return whom an open round waits for and what they owe."""
    survivors = frozenset(current.survivors)
    released = {node for node, _ in current.releases}
    match current.phase:
        case RoundPhase.RUNNING:
            done = {upload.sender for upload in current.uploads} | current.left
            return frozenset(header.ids) - done, "upload"
        case RoundPhase.PROPOSED:
            return survivors - {node for node, _ in current.commits}, "commit"
        case RoundPhase.CERTIFIED:
            return survivors - released, "release"
        case RoundPhase.RECOVERING:
            helpers = (survivors & released) - {node for node, _ in current.shares}
            return (helpers, "shares") if helpers else (survivors - released, "release")
        case _:
            return frozenset(), ""


def _without(current: RoundState, header: Header) -> str:
    """Say what a round does when the wait of its phase ends and nothing more came."""
    match current.phase:
        case RoundPhase.RUNNING:
            short = header.s_min - len(current.uploads)
            if short <= 0:
                return "goes on without them"
            return f"voided unless {short} more of them upload"
        case RoundPhase.PROPOSED:
            return f"voided unless {header.q - len(current.commits)} more of them sign"
        case RoundPhase.CERTIFIED:
            return "their seeds are recovered from the others"
        case _:
            return "voided if their seeds cannot be recovered"


@dataclass(frozen=True, slots=True)
class LinkNews:
    """What a hospital's lost or new stream means for the round that is open."""

    round: int
    what: str
    until: float | None
    then: str
    matters: bool
    """Whether the round now waits for a hospital that is away."""


def link_lost(state: RunState, node: NodeId, connected: Collection[NodeId]) -> LinkNews | None:
    """Return what losing a hospital means for the open round; None if it has no part in one.

    `connected`: whose streams are up now; the run may not have heard of all others yet.
    """
    found = _part(state, node)
    if found is None:
        return None
    current, header, number = found
    nodes, what = awaited(current, header)
    wait = _in_round(state, current, header)
    if node not in nodes or wait is None:
        then = "its part is done; the round goes on"
        if current.phase in (RoundPhase.RUNNING, RoundPhase.PROPOSED):
            then = "its upload counts; its seeds can be recovered from the others"
        return LinkNews(number, "", None, then, matters=False)
    then = _without_one(current, header, node, connected)
    return LinkNews(number, what, wait.until, then, matters=True)


def _without_one(
    current: RoundState, header: Header, node: NodeId, connected: Collection[NodeId]
) -> str:
    """Say what a round does if one of its hospitals does not come back in time."""
    if current.phase is RoundPhase.CERTIFIED:
        return "its seeds are recovered from the others"
    if current.phase is RoundPhase.RECOVERING:
        return "voided if the seeds cannot be recovered without it"
    have, need = len(current.commits), header.q
    if current.phase is RoundPhase.RUNNING:
        have, need = len(current.uploads), header.s_min
    nodes, what = awaited(current, header)
    others = (nodes - {node}).intersection(connected)
    if have >= need:
        return "goes on without it"
    if have + len(others) >= need:
        return f"goes on without it if {need - have} of the other {len(others)} {what}s come"
    return "voided unless it is back by then"


def link_back(state: RunState, node: NodeId) -> LinkNews | None:
    """Return what a hospital that is back means for the open round; None if none is open."""
    current = state.round
    if state.phase.final or current is None or current.header is None:
        return None
    found = _part(state, node)
    if found is None:
        known = node in state.accepted
        then = "it takes part from the next round on"
        return LinkNews(state.position + 1, "", None, then, matters=False) if known else None
    nodes, what = awaited(current, current.header)
    owes = node in nodes
    then = f"it takes part again; its {what} is waited for" if owes else "its part is done"
    return LinkNews(found[2], what if owes else "", None, then, matters=False)


def _part(state: RunState, node: NodeId) -> tuple[RoundState, Header, int] | None:
    """Return the open round if the hospital is in it."""
    current = state.round
    if state.phase.final or current is None or current.header is None:
        return None
    if node not in current.header.ids or node in current.left:
        return None
    return current, current.header, state.position + 1
