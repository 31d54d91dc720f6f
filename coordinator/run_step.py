"""One event's work on a run: the state as it grows, the commands so far.

Every function of the run's machine (`coordinator.run`) takes a `Step`. What all of them
need stands here: recording a fact, starting a timer, ending the run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from common.errors import InternalError, Refusal
from common.events import Event
from common.ids import NodeId, site_name
from common.layouts import RoundLayout, round_kinds, round_layout
from common.messages import RunEnded
from common.secagg import coordinator_session as sessions
from common.secagg.coordinator_session import SessionState, SetupPhase
from common.secagg.coordinator_state import RoundPhase
from common.secagg.header import RoundKind
from common.secagg.params import SecAggParams
from common.secagg.session import Trust
from common.views import RunPhase
from coordinator.run_facts import apply
from coordinator.run_state import (
    DropSpool,
    Ended,
    Finish,
    Record,
    ReserveEpoch,
    RunCommand,
    RunFact,
    RunState,
    Send,
    Shown,
    Span,
    StartTimer,
    SumUsed,
    Tell,
)

ENROLMENT, GATHER, RETRY, RELEASE = "enrolment", "gather", "retry", "release"
REJOIN = "rejoin"
"""The timer that ends the pause before a hospital is asked for its keys once more."""
WAITING = "waiting"
"""The timer that has people told, now and then, whom the run still waits for."""
SESSION, ROUND = "session", "round"
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
    unix_s: float
    trust: Trust
    timing: Timing
    draining: bool = False
    """No further round opens."""

    @property
    def unix(self) -> int:
        """Whole Unix seconds, as certificates and keys count them."""
        return int(self.unix_s)


class Step:
    """One event's work: the state as it grows, and the commands so far."""

    def __init__(self, state: RunState, ctx: RunContext) -> None:
        self.state = state
        self.ctx = ctx
        self.commands: list[RunCommand] = []
        self.used: SumUsed | None = None
        """What the sum of the round that is being closed was used for."""

    def record(self, fact: RunFact) -> None:
        """Apply a fact and have it stored."""
        self.state = apply(self.state, fact)
        self.commands.append(Record(fact))

    def do(self, *commands: RunCommand) -> None:
        """Have something done."""
        self.commands += commands

    def timer(self, name: str, seconds: float) -> None:
        """Start a timer; a running one of that name restarts."""
        span = Span(self.ctx.now, self.ctx.now + seconds)
        self.state = replace(self.state, timers={**self.state.timers, name: span})
        self.do(StartTimer(name, seconds))

    def forget_timer(self, name: str) -> None:
        """Note that a timer ran out, or is not needed any more."""
        timers = {other: span for other, span in self.state.timers.items() if other != name}
        self.state = replace(self.state, timers=timers)

    def tell(self, event: Event, *, warning: bool = False, **fields: Shown) -> None:
        """Have a line logged."""
        self.do(Tell(event, tuple(fields.items()), warning))


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


def aside(state: RunState) -> frozenset[NodeId]:
    """Return who sits out; nobody of a set that was signed may: the round needs all of it."""
    return state.sitting_out - set(state.agreed)


def too_few(state: RunState) -> str | None:
    """Return why the run cannot go on, if too many hospitals have refused."""
    need = fewest(state)
    if len(state.accepted | state.undecided) >= need:
        return None
    said = [
        f"{site_name(node)}: {'; '.join(map(str, decision.objections))}"
        for node, decision in state.decisions
        if not decision.accepted
    ]
    return f"ENROLMENT: {need} hospitals are needed; refused by {' | '.join(said)}"


def live(state: RunState) -> SessionState:
    """Return the run's epoch.

    Raises:
        InternalError: there is none yet.
    """
    if state.session is None:
        raise InternalError("a step that needs an epoch came before one")
    return state.session


def round_is_open(state: RunState) -> bool:
    """Whether a round's header is out and the round has not ended."""
    return state.round is not None and state.round.phase is not RoundPhase.COLLECTING


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


def gather_timer(state: RunState) -> str:
    """Return the name of the timer that waits for hospitals to be ready for this round."""
    epoch = 0 if state.session is None else state.session.terms.epoch
    return f"{GATHER}:{epoch}:{state.next_r}"


def taken_epoch(state: RunState) -> int:
    """Return the epoch that hospitals are in, 0 for none: no later one may have a smaller number.

    The clock may be far behind; and its number may have been reserved by one far ahead, and be
    nobody's, unless a whole set of hospitals has confirmed it.
    """
    session = state.session
    taken = session is not None and session.phase is SetupPhase.READY
    return session.terms.epoch if session is not None and taken else 0


def ask_epoch(step: Step) -> None:
    """Have an epoch number reserved; `EpochReserved` goes on."""
    if not step.state.epoch_asked:
        step.state = replace(step.state, epoch_asked=True)
        step.do(ReserveEpoch())


def end(step: Step, phase: RunPhase, reason: str) -> None:
    """End the run, tell every hospital, and let go of what was open."""
    state = step.state
    if state.phase.final:
        return
    step.record(Ended(phase, reason, step.ctx.unix_s))
    event = {
        RunPhase.FINISHED: Event.RUN_FINISHED,
        RunPhase.CANCELLED: Event.RUN_CANCELLED,
    }.get(phase, Event.RUN_FAILED)
    step.tell(event, reason=reason or None, warning=phase is not RunPhase.FINISHED)
    ended = RunEnded(state.run_id, phase.value, reason)
    step.do(*(Send(node, ended) for node in sorted(state.connected)))
    if round_is_open(state) and state.round is not None:
        step.do(DropSpool(state.round.hd))
    step.do(Finish(phase))


def names(nodes: Iterable[NodeId]) -> tuple[str, ...]:
    """Return hospitals by their short names, sorted."""
    return tuple(sorted(site_name(node) for node in nodes))


def session_context(ctx: RunContext) -> sessions.SessionContext:
    """Return what the set-up machine is told besides the event."""
    return sessions.SessionContext(ctx.trust, ctx.unix)
