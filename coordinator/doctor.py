"""`fedcare doctor RUN`: why a run does not move, from the store alone.

It asks no coordinator, so it tells the same whether one serves, hangs, or does not start. What
only a live coordinator knows (who is connected, timers) it does not guess: since when is the
time at which the last fact was stored, until when is the header's deadline counted from
the time at which the header was.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from common import state_folder
from common.errors import RoundError
from common.ids import site_name
from common.layouts import round_kinds
from common.secagg.coordinator_session import SetupPhase
from common.secagg.coordinator_state import RoundPhase
from common.state_folder import Owner, free_bytes
from common.views import RunPhase
from coordinator.backup import roster_of
from coordinator.config import CoordinatorConfig
from coordinator.failures import Failure, recorded
from coordinator.history import History
from coordinator.run_state import RoundRecord, RunState
from coordinator.run_step import fewest
from coordinator.signed_set import SignedSet, signed_set, what_to_do, who_unlocks
from coordinator.snapshot import snapshot
from coordinator.stored_runs import KnownRun, read_runs
from coordinator.verify import verify
from coordinator.waits import awaited, wait_of

SHOWN_VOIDED: Final = 5
SHOWN_FAILURES: Final = 4
LEAST_ROOM: Final = 32 << 20
"""Bytes; with less the disk counts as full. Uploads of large models need more."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the store tells of one run; times are Unix seconds."""

    run: str
    study: str
    state: str
    served: bool
    """Whether a process serves on this state directory just now."""
    round: int
    rounds: int
    step: str
    """What it is in the middle of, in words."""
    waiting_for: tuple[str, ...]
    what: str
    since: float | None
    until: float | None
    then: str
    agreed: SignedSet | None
    withdrawn: tuple[str, ...]
    refused: tuple[str, ...]
    people: tuple[str, ...]
    """Hospitals whose people have not answered yet, with their names."""
    voided: tuple[RoundRecord, ...]
    reason: str
    damaged: tuple[str, ...]
    history: tuple[str, ...]
    room: str
    failures: tuple[Failure, ...]
    """The last ones on record; see `coordinator.failures`."""
    full: bool
    """Whether a write found no room, or less than `LEAST_ROOM` is left."""
    advice: tuple[str, ...]


def examine(config: CoordinatorConfig, owner: Owner, wanted: str | None) -> list[Findings]:
    """Return what is to be said of a run, or of every run that is not over.

    Raises:
        RoundError: NOT_FOUND, no such run.
        StateError: STATE_DAMAGED, the store cannot be read; it says what is damaged.
    """
    state_dir = config.path(config.state_dir)
    with snapshot(config) as store:
        runs = read_runs(store, config.federation, roster_of(config))
        times = {run.stored.run_id: store.facts(run.stored.run_id) for run in runs}
    history = History(state_dir, config.members)
    damaged = tuple(f"{p.name}: {p.trouble}" for p in verify(config, owner) if p.trouble)
    chosen = [run for run in runs if wanted in (run.stored.run_id, run.stored.study_id)]
    if wanted is None:
        chosen = [run for run in runs if not run.state.phase.final]
    elif not chosen:
        known = ", ".join(run.stored.run_id for run in runs[-5:]) or "none"
        raise RoundError("NOT_FOUND", f"no run {wanted}; the latest: {known}")
    around = _Around(
        is_served(state_dir),
        config.timing.setup,
        damaged,
        tuple(f"{one.site}: {one.why}" for one in history.told),
        state_folder.free_text(state_dir),
        tuple(recorded(state_dir)[-SHOWN_FAILURES:]),
        full=free_bytes(state_dir) < LEAST_ROOM or _full(recorded(state_dir)),
    )
    return [
        _findings(run, [fact.unix for fact in times[run.stored.run_id]], around) for run in chosen
    ]


@dataclass(frozen=True, slots=True)
class _Around:
    """What is the same for all runs; see `Findings`."""

    served: bool
    setup_s: float
    damaged: tuple[str, ...]
    told: tuple[str, ...]
    room: str
    failures: tuple[Failure, ...]
    full: bool


def _full(failures: list[Failure]) -> bool:
    """Whether the last thing on record is a write that found no room."""
    return bool(failures) and failures[-1].what == "full"


def is_served(state_dir: Path) -> bool:
    """Whether a process holds the state directory."""
    try:
        with (state_dir / "lock").open("r") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _findings(run: KnownRun, written: list[float], around: _Around) -> Findings:
    state = run.state
    # The store does not know who is connected; whom it waits for follows as if all were.
    wait = wait_of(replace(state, connected=frozenset(state.roster)))
    since = max(written, default=0.0) or run.stored.created_unix
    voided = tuple(record for record in state.history if not record.opened)
    found = Findings(
        run=run.stored.run_id,
        study=run.stored.study_id,
        state=state.phase.value,
        served=around.served,
        round=state.position,
        rounds=len(round_kinds(state.study)),
        step=_step(state),
        waiting_for=() if wait is None else _names(wait.nodes),
        what="" if wait is None else wait.what,
        since=None if state.phase.final else since,
        until=_until(run, written, since, around.setup_s),
        then="" if wait is None else wait.then,
        agreed=signed_set(state),
        withdrawn=_names(entry.node for entry in state.withdrawn if entry.node in state.refused),
        refused=_refused(state),
        people=tuple(f"{site_name(n)}: {', '.join(one.people)}" for n, one in state.waiting),
        voided=voided,
        reason=state.reason,
        damaged=around.damaged,
        history=around.told,
        room=around.room,
        full=around.full,
        failures=around.failures,
        advice=(),
    )
    return replace(found, advice=tuple(_advice(found, state)))


def _names(nodes: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(site_name(node) for node in nodes))  # type: ignore[arg-type]


def _refused(state: RunState) -> tuple[str, ...]:
    return tuple(
        f"{site_name(node)}: {'; '.join(map(str, said.objections))}"
        for node, said in state.decisions
        if not said.accepted
    )


def _step(state: RunState) -> str:
    session, current = state.session, state.round
    if state.phase.final:
        return "nothing: it is over"
    if state.phase is RunPhase.ENROLLING:
        return f"{len(state.accepted)} of {len(state.roster)} hospitals accepted"
    if state.phase is RunPhase.RELEASING:
        return f"the model is released; {len(state.receipts)} hospitals have confirmed it"
    if current is not None and current.header is not None:
        nodes, what = awaited(current, current.header)
        done = len(current.header.ids) - len(nodes)
        if current.phase is RoundPhase.OPENED:
            return f"round {state.position + 1}: the sum is being opened"
        word = current.phase.value.lower()
        kind = current.header.kind.value
        return f"round {state.position + 1} ({kind}) is {word}: {done} have given their {what}"
    if session is None:
        return "no epoch yet"
    if session.phase in _SETUP:
        return f"epoch {session.terms.epoch} is set up: {_SETUP[session.phase]}"
    return f"between two rounds of epoch {session.terms.epoch}"


_SETUP: Final = {
    SetupPhase.ADVERTS: "the hospitals make their keys",
    SetupPhase.KEMS: "the hospitals exchange keys",
    SetupPhase.CONFIRMS: "the hospitals confirm their keys",
}


def _until(run: KnownRun, written: list[float], since: float, setup_s: float) -> float | None:
    """Return until when an epoch's keys, or the open round's uploads, are waited for.

    A coordinator that was started again since gives keys their whole time once more.
    """
    current, session = run.state.round, run.state.session
    if session is not None and session.phase in _SETUP and not run.state.phase.final:
        return since + setup_s
    if run.open_header is None or current is None or current.header is None:
        return None
    if current.phase is not RoundPhase.RUNNING:
        return None
    # Its facts are the last ones: the header, then one for each upload.
    place = len(written) - 1 - len(current.uploads)
    if not 0 <= place < len(written) or not written[place]:
        return None
    return written[place] + current.header.deadline_ms / 1000


def _advice(found: Findings, state: RunState) -> Iterable[str]:
    """Yield what to do next, what stops everything first."""
    if found.damaged:
        yield (
            "Look after the disk; `fedcare coordinator verify` names every damaged part. Restore"
            " the newest backup into an empty folder: `fedcare coordinator restore`."
        )
    if found.history:
        yield (
            "Hospitals have seen more than this store. Restore a newer backup; if there is none,"
            " stop the coordinator and `fedcare coordinator accept-loss --reason ...`."
        )
        sites = {one.partition(":")[0] for one in found.history}
        if len(sites) == 1:
            yield (
                f"Only {min(sites)} says so. Where others of that run are connected and do not, and"
                " no backup was put back, ask its operator first, or take it out of `members`."
            )
    if state.phase.final:
        yield "Nothing: submit the study again if it should run once more."
        if found.agreed is not None:
            yield f"In no later run either: {who_unlocks(found.agreed)}"
        return
    if found.full:
        yield (
            "The disk is full: nothing more is written until there is room; what was acknowledged"
            " stays. Free space on the coordinator's disk: it goes on by itself within seconds."
        )
    if not found.served:
        yield (
            "No coordinator serves on this state: start it with `fedcare coordinator serve`. Where"
            " it does not stay up, its last log line says why."
        )
    if found.agreed is not None:
        yield what_to_do(found.run, found.agreed)
    yield from _waits(found, state)
    if found.voided and not state.history[-1].opened:
        last = state.history[-1]
        yield (
            f"The last round was voided: `fedcare explain {last.reason}` tells what that means,"
            " the log's `member.gone` and `protocol.refused` just before who gave nothing, and why."
        )
        if state.study.privacy.dp.on:
            yield (
                "Where a hospital named its privacy limit (FC-3023 BUDGET), `fedcare node budget"
                " show` there says what is left; only that hospital can raise it."
            )


def _waits(found: Findings, state: RunState) -> Iterable[str]:
    """Yield what to do about those who are waited for."""
    who = ", ".join(found.waiting_for)
    need = fewest(state)
    if len(state.accepted) < need:
        have = len(state.accepted)
        yield f"{need} hospitals have to accept, and {have} have; ask {who or 'more of them'}."
        for one in found.refused:
            site = one.partition(":")[0]
            yield f"{site} has refused: it changes its policy, or the owner changes the study."
        for one in found.people:
            yield f"At {one} still have to say yes: `fedcare node approvals grant` there."
    elif found.what == "readiness" and not state.agreed:
        yield (
            f"A round opens once {need} of {who} are ready. Who is, or is away, the store does not"
            " know: `fedcare coordinator status` here, `fedcare node status` there."
        )
    elif who and not state.agreed:
        passes = (
            "" if found.until is None else f"By {_stamp(found.until)} it is over: {found.then}. "
        )
        yield (
            f"{passes}See whether a node runs and is connected at {who}: `fedcare node status`"
            " there, `fedcare coordinator status` here."
        )


# --- for people -----------------------------------------------------------------------------


def text_of(found: Findings) -> str:
    """Return findings for people, in plain lines."""
    lines = [
        f"{found.run}  {found.state}, {found.round} of {found.rounds} rounds done",
        f"  {found.step}",
    ]
    if found.waiting_for:
        since = "" if found.since is None else f", since {_stamp(found.since)}"
        until = "until they come" if found.until is None else f"until {_stamp(found.until)}"
        lines += [
            f"  waits for {', '.join(found.waiting_for)}: {found.what}{since}, {until}",
            f"    then: {found.then}",
        ]
    if found.reason:
        lines.append(f"  ended: {found.reason}")
    if found.agreed is not None:
        lines.append(f"  signed set (10.4) {found.agreed.code}: {', '.join(found.agreed.sites)}")
    lines += [f"  refused: {one}" for one in found.refused]
    lines += [f"  approval: {one}" for one in found.people]
    if found.withdrawn:
        lines.append(f"  consent withdrawn: {', '.join(found.withdrawn)}")
    shown = found.voided[-SHOWN_VOIDED:]
    if len(shown) < len(found.voided):
        lines.append(f"  {len(found.voided)} rounds were voided, the last ones:")
    lines += [
        f"  voided: round {one.position} ({one.kind}), {one.reason}, {_stamp(one.ended_unix)}"
        for one in shown
    ]
    lines += [f"  damaged: {one}" for one in found.damaged]
    lines += [f"  history went back: {one}" for one in found.history]
    lines.append(f"  disk: {found.room}")
    lines += [f"  disk: {one.what}, {_stamp(one.unix)}: {one.detail}" for one in found.failures]
    lines += [f"  next: {one}" for one in found.advice]
    return "\n".join(lines)


def data_of(found: Findings) -> dict[str, object]:
    """Return findings for scripts."""
    return {
        "run": found.run,
        "study": found.study,
        "state": found.state,
        "served": found.served,
        "round": found.round,
        "rounds": found.rounds,
        "step": found.step,
        "waiting_for": list(found.waiting_for),
        "what": found.what,
        "since_unix": found.since,
        "until_unix": found.until,
        "then": found.then,
        "agreed": None if found.agreed is None else asdict(found.agreed),
        "withdrawn": list(found.withdrawn),
        "refused": list(found.refused),
        "approval": list(found.people),
        "voided": [
            {"round": one.position, "kind": one.kind, "reason": one.reason, "unix": one.ended_unix}
            for one in found.voided
        ],
        "reason": found.reason,
        "damaged": list(found.damaged),
        "history_back": list(found.history),
        "disk": found.room,
        "disk_failures": [
            {"what": one.what, "unix": one.unix, "detail": one.detail} for one in found.failures
        ],
        "disk_full": found.full,
        "next": list(found.advice),
    }


def _stamp(unix: float) -> str:
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%d %H:%M:%S} UTC"
