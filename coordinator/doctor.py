"""`fedcare coordinator doctor RUN`: why a run does not move, from the store alone.

It asks no coordinator, so it tells the same whether one serves, hangs, or does not start. What
only a live coordinator knows (who is connected, timers) it does not guess: since when is the
time at which the last fact was stored, until when is the header's deadline counted from
the time at which the header was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from common import state_folder
from common.errors import RoundError
from common.ids import site_name
from common.layouts import round_kinds
from common.secagg.coordinator_state import RoundPhase
from common.state_folder import Owner
from common.views import RunPhase
from coordinator.backup import roster_of
from coordinator.config import CoordinatorConfig
from coordinator.failures import Failure, recorded
from coordinator.history import History
from coordinator.run_state import RoundRecord, RunState
from coordinator.run_step import fewest
from coordinator.snapshot import snapshot
from coordinator.stored_runs import KnownRun, read_runs
from coordinator.verify import verify
from coordinator.waits import awaited, wait_of

SHOWN_VOIDED: Final = 5
SHOWN_FAILURES: Final = 4


@dataclass(frozen=True, slots=True)
class Findings:
    """What the store tells of one run; times are Unix seconds."""

    run: str
    study: str
    state: str
    round: int
    rounds: int
    step: str
    """What it is in the middle of, in words."""
    waiting_for: tuple[str, ...]
    what: str
    since: float | None
    until: float | None
    then: str
    agreed: tuple[str, ...]
    withdrawn: tuple[str, ...]
    refused: tuple[str, ...]
    voided: tuple[RoundRecord, ...]
    reason: str
    damaged: tuple[str, ...]
    history: tuple[str, ...]
    room: str
    failures: tuple[Failure, ...]
    """The last ones on record; see `coordinator.failures`."""
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
    history = History(state_dir)
    damaged = tuple(f"{p.name}: {p.trouble}" for p in verify(config, owner) if p.trouble)
    chosen = [run for run in runs if wanted in (run.stored.run_id, run.stored.study_id)]
    if wanted is None:
        chosen = [run for run in runs if not run.state.phase.final]
    elif not chosen:
        known = ", ".join(run.stored.run_id for run in runs[-5:]) or "none"
        raise RoundError("NOT_FOUND", f"no run {wanted}; the latest: {known}")
    disk = _Disk(state_folder.free_text(state_dir), tuple(recorded(state_dir)[-SHOWN_FAILURES:]))
    told = tuple(f"{one.site}: {one.why}" for one in history.told)
    found = []
    for run in chosen:
        written = [fact.unix for fact in times[run.stored.run_id]]
        found.append(_findings(run, written, damaged, told, disk))
    return found


@dataclass(frozen=True, slots=True)
class _Disk:
    """How much room there is, and what kept the coordinator from writing."""

    room: str
    failures: tuple[Failure, ...]


def _findings(
    run: KnownRun,
    written: list[float],
    damaged: tuple[str, ...],
    told: tuple[str, ...],
    disk: _Disk,
) -> Findings:
    state = run.state
    # The store does not know who is connected; whom it waits for follows as if all were.
    wait = wait_of(replace(state, connected=frozenset(state.roster)))
    since = max(written, default=0.0) or run.stored.created_unix
    voided = tuple(record for record in state.history if not record.opened)
    found = Findings(
        run=run.stored.run_id,
        study=run.stored.study_id,
        state=state.phase.value,
        round=state.position,
        rounds=len(round_kinds(state.study)),
        step=_step(state),
        waiting_for=() if wait is None else _names(wait.nodes),
        what="" if wait is None else wait.what,
        since=None if state.phase.final else since,
        until=_deadline(run, written),
        then="" if wait is None else wait.then,
        agreed=_names(state.agreed),
        withdrawn=_names(entry.node for entry in state.withdrawn if entry.node in state.refused),
        refused=_refused(state),
        voided=voided,
        reason=state.reason,
        damaged=damaged,
        history=told,
        room=disk.room,
        failures=disk.failures,
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
    if session is not None:
        return f"epoch {session.terms.epoch} is {session.phase.value.lower()}, between two rounds"
    return "no epoch yet"


def _deadline(run: KnownRun, written: list[float]) -> float | None:
    """Return until when the open round waits for uploads, by when its header was stored."""
    current = run.state.round
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
    if found.failures and found.failures[-1].what == "full":
        yield "Free space on the coordinator's disk: it goes on by itself within seconds."
    if found.history:
        yield (
            "Hospitals have seen more than this store. Restore a newer backup; if there is none,"
            " stop the coordinator and `fedcare coordinator accept-loss --reason ...`."
        )
    if state.phase.final:
        yield "Nothing: submit the study again if it should run once more."
        return
    if found.agreed:
        yield (
            f"Bring {', '.join(found.agreed)} back: the next round needs exactly these, because"
            " some may have signed their set. If one of them is gone for good: `fedcare"
            f" coordinator unlock {found.run} --reason ...`, coordinator stopped, and `fedcare"
            f" node unlock {found.study} --reason ...` at each of the others."
        )
    need = fewest(state)
    if len(state.accepted) < need:
        yield f"{need} hospitals have to accept, and {len(state.accepted)} have; ask the others."
    elif found.waiting_for and not found.agreed:
        yield (
            f"See whether {', '.join(found.waiting_for)} run and are connected: `fedcare node"
            " status` there, `fedcare coordinator status` here."
        )
    if len(found.voided) and state.history and not state.history[-1].opened:
        yield f"The last round was voided ({state.history[-1].reason}); `fedcare explain` knows it."


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
    if found.agreed:
        lines.append(f"  signed set (10.4): {', '.join(found.agreed)}")
    lines += [f"  refused: {one}" for one in found.refused]
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
        "round": found.round,
        "rounds": found.rounds,
        "step": found.step,
        "waiting_for": list(found.waiting_for),
        "what": found.what,
        "since_unix": found.since,
        "until_unix": found.until,
        "then": found.then,
        "agreed": list(found.agreed),
        "withdrawn": list(found.withdrawn),
        "refused": list(found.refused),
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
        "next": list(found.advice),
    }


def _stamp(unix: float) -> str:
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%d %H:%M:%S} UTC"
