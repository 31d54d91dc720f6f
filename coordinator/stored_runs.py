"""Runs as the store tells of them: read by the service at its start, and by commands beside it.

Nothing here needs a running coordinator, a clock or a hospital: a run's state is what its
facts give, so whoever can read the store can say what a run waits for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from common.errors import FedError, StateError
from common.ids import HeaderDigest, NodeId, Sha256
from common.secagg.ring import word_bytes
from common.study import Study, study_from_canonical
from coordinator.driver import chain_of
from coordinator.journal import Journal
from coordinator.run_facts import models_of, replay
from coordinator.run_state import ModelRef, RunFact, RunState
from coordinator.store import Store, StoredRun


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A stored run: its facts, and what follows from them."""

    stored: StoredRun
    state: RunState
    journal: Journal
    facts: Sequence[RunFact]

    @property
    def models(self) -> list[ModelRef]:
        """Every model the run made, in order."""
        return models_of(self.facts)

    @property
    def open_header(self) -> HeaderDigest | None:
        """The header of the round that is open, None if none is."""
        current = self.state.round
        if current is None or current.header is None or self.state.phase.final:
            return None
        return current.hd

    def spooled(self) -> list[tuple[NodeId, Sha256, int]]:
        """Return the uploads that the open round counts: whose, their SHA-256, their bytes."""
        current = self.state.round
        if self.open_header is None or current is None or current.header is None:
            return []
        size = current.header.d * word_bytes(current.header.w)
        return [(upload.sender, upload.end.ydig, size) for upload in current.uploads]


def _read_run(store: Store, run: StoredRun, first: RunState) -> KnownRun:
    """Return one run; `first` is its state before any fact.

    Raises:
        StateError: STATE_DAMAGED.
    """
    journal = Journal()
    facts = journal.read(store.facts(run.run_id))
    try:
        state = replay(first, facts)
    except (FedError, AttributeError, LookupError, TypeError, ValueError) as error:
        why = error.detail if isinstance(error, FedError) else type(error).__name__
        raise StateError(
            "STATE_DAMAGED", f"run {run.run_id}: its facts do not fit together: {why}"
        ) from error
    return KnownRun(run, state, journal, facts)


def read_runs(
    store: Store,
    federation: str,
    roster: tuple[NodeId, ...],
    only: Collection[StoredRun] | None = None,
) -> list[KnownRun]:
    """Return every run, or `only` some, oldest first.

    Raises:
        StateError: STATE_DAMAGED, naming what is; DISK.
    """
    found = []
    stored = {one.config_hash: one for one in store.studies()} if only is None else {}
    for run in store.runs() if only is None else only:
        one = stored.get(run.config_hash) or store.study(run.config_hash)  # which says: not there
        study = study_from_canonical(one.content)
        found.append(_read_run(store, run, first_state(run, study, federation, roster)))
    return found


def first_state(
    run: StoredRun, study: Study, federation: str, roster: tuple[NodeId, ...]
) -> RunState:
    """Return a run's state before its first fact."""
    return RunState(
        run_id=run.run_id,
        study=study,
        config_hash=run.config_hash,
        federation=federation,
        roster=roster,
        signature=run.signature,
        cert_chain=chain_of(run.chain),
    )
