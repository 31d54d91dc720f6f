"""Views as data for scripts and as text for people; the same facts in both.

Names, reasons and titles come from other machines, so they are escaped before they
reach a terminal (`common.text.escape`).
"""

from __future__ import annotations

from collections.abc import Sequence

from common.commands import Outcome
from common.errors import ExitCode
from common.tables import table
from common.text import escape
from common.views import RoundView, RunPhase, RunView, SiteView, StudyView
from researcher.figures import listed


def study_data(view: StudyView) -> dict[str, object]:
    """Return a study's view for an envelope."""
    return {
        "study_id": view.study_id,
        "hash": f"sha256:{view.config_hash.hex()}",
        "title": view.title,
        "owner": view.owner,
        "runs": list(view.run_ids),
    }


def site_data(view: SiteView) -> dict[str, object]:
    """Return a hospital's view for an envelope."""
    return {
        "site": view.site,
        "connected": view.connected,
        "state": view.state,
        "waiting_for": view.waiting_for,
        "objection": view.objection,
        "people": list(view.people),
    }


def round_data(view: RoundView) -> dict[str, object]:
    """Return a round's view for an envelope."""
    return {
        "number": view.number,
        "kind": view.kind,
        "state": view.state,
        "survivors": list(view.survivors),
        "dropped": list(view.dropped),
        "seconds": round(view.seconds, 6),
        "reason": view.reason,
        "header_digest": view.header_digest.hex(),
        "sum_sha256": view.sum_sha256.hex(),
    }


def run_data(view: RunView) -> dict[str, object]:
    """Return a run's view for an envelope."""
    return {
        "run_id": view.run_id,
        "study_id": view.study_id,
        "state": view.state.value,
        "round": view.round,
        "rounds": view.rounds,
        "sites": [site_data(site) for site in view.sites],
        "history": [round_data(entry) for entry in view.history],
        "metrics": {"pooled": dict(view.pooled)},
        "model_sha256": view.model_sha256,
        "reason": view.reason,
        "waiting_for_people": waits_for_people(view),
        "seconds": round(view.seconds, 3),
        "seconds_to_first_round": round(view.seconds_to_first_round, 3),
    }


def counted(view: RunView) -> bool:
    """Whether the run is over and published counts, not a model."""
    return view.state is RunPhase.FINISHED and all(
        entry.kind == "statistics" for entry in view.history if entry.state == "CLOSED"
    )


def waits_for_people(view: RunView) -> bool:
    """Whether nothing can go on before people at hospitals have approved the study."""
    return view.wait is not None and view.wait.for_people


def people_text(view: RunView) -> str:
    """Name, hospital by hospital, the people whose approval a run waits for."""
    parts = [
        f"{escape(', '.join(site.people))} at {escape(site.site)}"
        for site in view.sites
        if site.people
    ]
    return "; ".join(parts)


def waiting(view: RunView) -> Outcome:
    """Return how a command ends that was told not to wait for people: with exit code 6."""
    text = f"run {escape(view.run_id)} waits for approval by {people_text(view)}"
    return Outcome(run_data(view), text, ExitCode.WAITING)


def studies_text(views: Sequence[StudyView]) -> str:
    """Return the list of studies, one a line."""
    if not views:
        return "no study was submitted yet"
    rows = [
        (view.study_id, view.title, view.owner, ", ".join(view.run_ids) or "-") for view in views
    ]
    return table(("study", "title", "owner", "runs"), rows)


def study_text(view: StudyView) -> str:
    """Return one study's head lines."""
    return "\n".join(
        [
            f"study  {escape(view.study_id)}",
            f"title  {escape(view.title)}",
            f"owner  {escape(view.owner)}",
            f"hash   sha256:{view.config_hash.hex()}",
            f"runs   {escape(', '.join(view.run_ids)) or '-'}",
        ]
    )


def progress_line(view: RunView) -> str:
    """Return one line about where a run stands."""
    words = f"{escape(view.run_id)}  {view.state.value}"
    if view.state is RunPhase.RUNNING:
        words += f"  round {view.round} of {view.rounds}"
    if view.history:
        last = view.history[-1]
        words += f"  last: {escape(last.kind)} {last.number} {escape(last.state)}"
        words += f" with {len(last.survivors)} hospitals in {last.seconds:.2f} s"
    if view.reason:
        words += f"  {escape(view.reason)}"
    return words


def _two_party(view: RunView) -> bool:
    """Whether some sum was, or can only be, over two hospitals."""
    two = 2
    return len(view.sites) == two or any(len(entry.survivors) == two for entry in view.history)


def run_text(view: RunView) -> str:
    """Return a run as a page: state, hospitals, rounds, pooled figures."""
    parts = [progress_line(view), "", _sites_text(view.sites)]
    if view.history:
        parts += ["", _history_text(view.history)]
    if view.pooled:
        figures = listed(dict(view.pooled))
        parts += ["", f"pooled (from masked sums): {escape(figures)}"]
    if _two_party(view):
        parts += ["two hospitals took part: each can compute the other's update from the sum"]
    if view.model_sha256:
        what = "statistics" if counted(view) else "model"
        parts += [f"{what} sha256 {escape(view.model_sha256)}"]
    return "\n".join(parts)


def _sites_text(sites: Sequence[SiteView]) -> str:
    rows = [
        (
            site.site,
            "yes" if site.connected else "no",
            site.state,
            site.objection or site.waiting_for or "-",
        )
        for site in sites
    ]
    return table(("hospital", "connected", "state", "waiting for"), rows)


def _history_text(history: Sequence[RoundView]) -> str:
    rows = [
        (
            str(entry.number),
            entry.kind,
            entry.state,
            f"{entry.seconds:.3f}",
            ", ".join(entry.survivors) or "-",
            ", ".join(entry.dropped) or "-",
            entry.reason or "-",
        )
        for entry in history
    ]
    head = ("round", "kind", "state", "seconds", "took part", "dropped", "reason")
    return table(head, rows, right=frozenset({0, 3}))
