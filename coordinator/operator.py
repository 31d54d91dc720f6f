"""Orders that only a person may give, with the coordinator stopped: each is a fact and a log line.

accept_loss   hospitals have seen more than the store knows of, and no newer backup is there:
              go on from what there is, in a new epoch (`coordinator.history`)
unlock        a set was signed on a model whose round was voided, and one of it never comes
              back: open the next round with another set (protocol, section 10.4)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from common import state_folder
from common.clock import Clock
from common.errors import ConfigError, RoundError, StateError
from common.events import Event
from common.ids import RunId
from common.logs import EventLog
from common.secagg.params import EPOCH_SECONDS
from common.views import RunPhase
from coordinator.app import lock_state
from coordinator.backup import roster_of
from coordinator.checksums import MARK_NAME
from coordinator.config import CoordinatorConfig
from coordinator.history import History, Loss, Told
from coordinator.run_state import AgreedLifted, Ended, HistoryLost, RunFact, encode_fact
from coordinator.signed_set import SignedSet, signed_set
from coordinator.store import SqlStore, default_url, open_store
from coordinator.stored_runs import KnownRun, read_runs

_WAITING: Final = "`fedcare doctor` shows each open run, and which set it waits for."


@dataclass(frozen=True, slots=True)
class Orders:
    """A stopped coordinator's state, held by this process."""

    store: SqlStore
    runs: list[KnownRun]
    history: History
    clock: Clock
    log: EventLog

    def _record(self, run: KnownRun, fact: RunFact) -> None:
        first = run.journal.length
        blank = run.journal.add([fact])
        self.store.append(run.stored.run_id, first, [encode_fact(fact)], blank, self.clock.unix())

    def accept_loss(self, reason: str) -> Sequence[Told]:
        """Go on without what hospitals told of; return what that was.

        Raises:
            RoundError: NOT_FOUND, no hospital has told of anything that the store does not know.
        """
        told = self.history.told
        if not told:
            raise RoundError(
                "NOT_FOUND",
                "no hospital has seen more than the store knows of",
                fix="There is nothing to accept: start the coordinator.",
            )
        now = self.clock.unix()
        by_run = {run.stored.run_id: run for run in self.runs}
        known = self.store.epochs()
        for task in sorted({one.seen.task for one in told}):
            largest = max(one.seen.epoch for one in told if one.seen.task == task)
            # No hospital takes part in an epoch further ahead, whoever names one.
            largest = min(largest, int(now) + EPOCH_SECONDS)
            if largest > known.get(task, 0):
                self.store.next_epoch(task, largest)
        for run_id in dict.fromkeys(one.seen.run_id for one in told):
            run = by_run.get(run_id)
            if run is None or run.state.phase.final:
                continue
            released = any(one.seen.released for one in told if one.seen.run_id == run_id)
            if released and run.state.released is None:
                why = "HISTORY_BACK: hospitals hold its release, which the store has lost"
                self._record(run, Ended(RunPhase.FAILED, why, now))
                self.store.end_run(run_id)
            elif run.state.phase is not RunPhase.RELEASING:
                self._record(run, HistoryLost(reason, now))
        runs = tuple(dict.fromkeys(one.seen.run_id for one in told))
        self.history.accept(Loss(now, reason, runs, tuple(one.seen for one in told)))
        for one in told:
            log = self.log.bind(study=one.seen.task, run=one.seen.run_id, site=one.site)
            log.warning(Event.LOSS_ACCEPTED, reason=reason, meaning=one.why)
        return told

    def unlock(self, run_id: RunId, reason: str) -> SignedSet:
        """Let a run's next round open with another set; return the set that was waited for.

        Raises:
            RoundError: NOT_FOUND, no such run, or it waits for no set.
        """
        run = next((one for one in self.runs if one.stored.run_id == run_id), None)
        if run is None:
            raise RoundError("NOT_FOUND", f"no run {run_id}", fix=_WAITING)
        found = signed_set(run.state)
        if run.state.phase.final or found is None or found.lifted:
            raise RoundError(
                "NOT_FOUND", f"{run_id} waits for no set that was signed", fix=_WAITING
            )
        self._record(run, AgreedLifted(run.state.agreed, reason, self.clock.unix()))
        log = self.log.bind(study=run.stored.study_id, run=run_id)
        log.warning(
            Event.LOSS_ACCEPTED,
            reason=reason,
            meaning=f"the set {found.code}, {', '.join(found.sites)}, is not waited for any longer",
        )
        return found


@contextmanager
def orders(config: CoordinatorConfig, clock: Clock, log: EventLog) -> Iterator[Orders]:
    """Hold a stopped coordinator's state inside the block.

    Raises:
        ConfigError: FILE_MISSING, there is none.
        StateError: STATE_LOCKED, the coordinator runs; STATE_DAMAGED; DISK.
    """
    state_dir = config.path(config.state_dir)
    if not (state_dir / state_folder.MARKER).is_file():
        raise ConfigError("FILE_MISSING", f"{state_dir} holds no coordinator's state")
    try:
        lock = lock_state(state_dir)
    except StateError as failure:
        if failure.name != "STATE_LOCKED":
            raise
        raise StateError(
            "STATE_LOCKED", failure.detail, fix="Stop the coordinator, and give the order again."
        ) from None
    with lock:
        url = config.store or default_url(state_dir)
        alone = config.store is not None
        store = open_store(url, config.federation, state_dir / MARK_NAME, alone=alone)
        try:
            runs = read_runs(store, config.federation, roster_of(config))
            yield Orders(store, runs, History(state_dir, config.members), clock, log)
        finally:
            store.close()
