"""A run's state as people read it: what each hospital does and what it waits for."""

from __future__ import annotations

from common.ids import NodeId, SiteName, site_name
from common.layouts import round_kinds
from common.secagg.coordinator_session import SetupPhase
from common.secagg.coordinator_state import RoundPhase, RoundState
from common.views import APPROVAL, RoundView, RunPhase, RunView, SiteView, WaitView
from coordinator.run_state import RoundRecord, RunState, Waiting
from coordinator.run_step import current_kind, round_is_open
from coordinator.waits import wait_of


def view_of(state: RunState, created_unix: float, now_unix: float, now: float) -> RunView:
    """Return a run's view at a time: in Unix seconds, and `now` in monotonic ones."""
    end = now_unix if state.ended_unix is None else state.ended_unix
    first = next((record.ended_unix for record in state.history if record.opened), created_unix)
    model = state.model
    done = state.released is not None and model is not None
    return RunView(
        run_id=state.run_id,
        study_id=state.study.id,  # type: ignore[arg-type]
        state=state.phase,
        round=state.position,
        rounds=len(round_kinds(state.study)),
        sites=tuple(site_view(state, node) for node in state.roster),
        history=tuple(_round_view(record) for record in state.history),
        pooled=state.pooled,
        model_sha256=model.model_sha256.hex() if done and model is not None else "",
        reason=state.reason,
        seconds=end - created_unix,
        seconds_to_first_round=first - created_unix,
        kind=_kind(state),
        open_s=now - state.round_began if _is_open(state) else None,
        paused=state.paused and not state.phase.final,
        wait=_wait_view(state, now),
    )


def _kind(state: RunState) -> str:
    kind = None if state.phase.final else current_kind(state)
    return "" if kind is None else kind.value


def _is_open(state: RunState) -> bool:
    return round_is_open(state) and not state.phase.final


def _wait_view(state: RunState, now: float) -> WaitView | None:
    wait = wait_of(state)
    if wait is None:
        return None
    left_s = None if wait.until is None else max(0.0, wait.until - now)
    sites = _names(tuple(sorted(wait.nodes)))
    return WaitView(sites, wait.what, now - wait.since, left_s, wait.then)


def _round_view(record: RoundRecord) -> RoundView:
    return RoundView(
        number=record.position,
        kind=record.kind,
        state="CLOSED" if record.opened else "ABORTED",
        survivors=_names(record.survivors),
        dropped=_names(record.dropped),
        seconds=record.seconds,
        reason=record.reason,
        header_digest=record.hd,
        sum_sha256=record.sum_sha256,
    )


def _names(nodes: tuple[NodeId, ...]) -> tuple[SiteName, ...]:
    return tuple(site_name(node) for node in nodes)


def site_view(state: RunState, node: NodeId) -> SiteView:
    """Return what one hospital does in this run."""
    said = dict(state.decisions).get(node)
    objection = "; ".join(map(str, said.objections)) if said is not None else ""
    trouble = dict(state.trouble).get(node, "")
    held = dict(state.waiting).get(node)
    doing, waiting = _doing(state, node)
    return SiteView(
        site=site_name(node),
        connected=node in state.connected,
        state=doing,
        waiting_for=waiting,
        objection=objection or ("" if held is not None else trouble),
        people=() if held is None or state.phase.final else held.people,
    )


def _doing(state: RunState, node: NodeId) -> tuple[str, str]:
    """Return (state, what it waits for) in words."""
    if node in state.refused:
        withdrew = node in {entry.node for entry in state.withdrawn}
        word, who = ("withdrawn", "people") if withdrew else ("refused", "policy")
        return word, "" if state.phase.final else f"nobody: its {who} decided"
    if state.phase.final:
        return state.phase.value, ""
    if node in state.undecided:
        return _undecided(state, node)
    if node not in state.connected:
        return "away", "its connection"
    if state.phase is RunPhase.RELEASING:
        return ("kept", "") if node in state.receipts else ("verifying", "its receipt")
    session = state.session
    if state.paused:
        return "waiting", "other hospitals"
    if session is None:
        return "accepted", "other hospitals' decisions"
    if session.phase is not SetupPhase.READY:
        done = node in session.confirmed
        return ("confirmed", "other hospitals' keys") if done else ("keys", "its keys")
    if node not in session.confirmed:
        return "joining", "the next epoch"
    return _in_round(state.round, node)


def _undecided(state: RunState, node: NodeId) -> tuple[str, str]:
    waiting = dict(state.waiting).get(node)
    if waiting is None:
        return "offered", f"{site_name(node)}'s decision"
    return "waiting", _approval(waiting)


def _approval(waiting: Waiting) -> str:
    """Say whose approval is missing; and why, where it is not simply the first time."""
    why = [found.code for found in waiting.objections if found.code != "APPROVAL_MISSING"]
    return f"{APPROVAL} by {', '.join(waiting.people)}" + (f" ({', '.join(why)})" if why else "")


def _in_round(current: RoundState | None, node: NodeId) -> tuple[str, str]:
    if current is None or current.header is None:
        ready = current is not None and any(entry == node for entry, _ in current.ready)
        return ("ready", "other hospitals") if ready else ("between rounds", "its readiness")
    if node not in current.header.ids:
        return "sitting out", "the next round"
    if node in current.left:
        return "left the round", "the next round"
    uploaded = any(upload.sender == node for upload in current.uploads)
    match current.phase:
        case RoundPhase.RUNNING:
            return ("uploaded", "other hospitals") if uploaded else ("training", "its update")
        case RoundPhase.PROPOSED:
            signed = any(entry == node for entry, _ in current.commits)
            return ("signed", "other signatures") if signed else ("proposed", "its signature")
        case RoundPhase.CERTIFIED | RoundPhase.RECOVERING:
            given = any(entry == node for entry, _ in current.releases)
            return ("released", "other seeds") if given else ("certified", "its seeds")
        case _:
            return "done", "the next round"
