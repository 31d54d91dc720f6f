"""Who joins a run through a new epoch, and how often others make keys for that."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from common.ids import NodeId
from coordinator.run_state import RunState
from coordinator.run_step import REJOIN, Step, aside, fewest, live

REJOIN_FIRST_S: Final = 0.5
"""The pause after a first epoch for joiners; each further one is twice as long."""


def may_join(step: Step) -> bool:
    """Whether an epoch is set up now for hospitals that are here and hold no keys.

    The first is at once. Each further one before a round was opened waits twice as long as
    the one before, up to the time of a set-up: a hospital that confirms its keys and disowns
    them, or two that come and go in turn, would have all the others make keys without pause.
    """
    state = step.state
    if not _joiners(state):
        return False
    if state.epoch_asked:
        return True
    wait = state.rejoin_at - step.ctx.now
    if wait > 0:
        if REJOIN not in state.timers:
            step.timer(REJOIN, wait)
        return False
    longest = step.ctx.timing.setup
    pause = min(max(REJOIN_FIRST_S, 2 * state.rejoin_pause), longest)
    step.state = replace(state, rejoin_pause=pause, rejoin_at=step.ctx.now + pause)
    return True


def _joiners(state: RunState) -> frozenset[NodeId]:
    """Hospitals that are here and want to take part but were not asked for keys yet.

    One that was invited and sent none is asked again when it connects again, not
    before every round: it must not hold up the others. Nor may it have epoch after epoch
    set up by connecting without keys: each epoch that can do without it has a round first.
    Where those who have keys are too few, everybody who is here and has none is asked again:
    its clock may have been wrong, and its connection never broke.
    """
    session = live(state)
    inside = frozenset(session.invited)
    others = frozenset(session.confirmed) - state.without_keys
    if len(others & state.connected) < fewest(state):
        inside &= others
    elif state.last_round is not None:
        inside -= state.without_keys
    return (state.accepted & state.connected) - inside - aside(state)
