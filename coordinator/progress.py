"""How far a run is, as far as it concerns whoever connects: less than a state, and it fits a row.

A hospital's `Hello` is compared with every run of the store, and its `Welcome` speaks of every
run it had a part in. That asks for a handful of numbers of each run, not for its rounds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from common.ids import NodeId, RunId
from common.secagg.coordinator_session import SetupPhase
from common.views import RunPhase
from coordinator.run_state import RunState


@dataclass(frozen=True, slots=True)
class Progress:
    """What hospitals may have seen of a run, and what it spent of theirs."""

    run_id: RunId
    task: str
    phase: RunPhase
    epoch: int
    """Of the keys that were exchanged last; 0: none yet."""
    confirmed: tuple[tuple[NodeId, int], ...]
    """Whoever holds keys of that epoch, with the last round in which its upload counted, or 0."""
    begun_r: int
    """The epoch's last round whose header was stored, for all that is known; 0: none."""
    next_r: int
    released: bool
    dataset: str
    noised: tuple[tuple[NodeId, int], ...]
    """In how many opened sums with differential privacy each hospital is."""


def progress_of(run: RunState) -> Progress:
    """Return how far a run is."""
    session, current = run.session, run.round
    # The header of a round that was open as the run ended is blanked with all of the round.
    begun = run.phase.final or (current is not None and current.header is not None)
    return Progress(
        run_id=run.run_id,
        task=run.study.id,
        phase=run.phase,
        epoch=0 if session is None else session.terms.epoch,
        confirmed=_confirmed(run),
        begun_r=run.next_r if begun else run.next_r - 1,
        next_r=run.next_r,
        released=run.released is not None,
        dataset=run.study.dataset,
        noised=_noised(run),
    )


def _confirmed(run: RunState) -> tuple[tuple[NodeId, int], ...]:
    session = run.session
    if session is None or session.phase is SetupPhase.FAILED:
        return ()
    last = dict.fromkeys(session.confirmed, 0)
    for record in run.history[len(run.history) - (run.next_r - 1) :]:
        last |= {node: record.r for node in record.survivors if node in last}
    if run.round is not None:
        last |= {one.sender: run.round.r for one in run.round.uploads if one.sender in last}
    return tuple(sorted(last.items()))


def _noised(run: RunState) -> tuple[tuple[NodeId, int], ...]:
    if not run.study.privacy.dp.on:
        return ()
    opened = (record.survivors for record in run.history if record.opened)
    return tuple(sorted(Counter(node for survivors in opened for node in survivors).items()))
