"""Compares what a federation left behind: durable state and logs, nothing that a process says.

    checker = Checker(folder, url)
    checker.read()                      # the logs, as far as they go now
    checker.problems(run_id)            # [] if all witnesses agree about the run

The witnesses of a run: the receipts that hospitals hold (their logs), the round records (the
coordinator's store), the opened sums (their digests), the hospitals' privacy ledgers, and the
released model at the coordinator and at every hospital. The hospitals contribute indicators
(`common.models.vector`): a sum over S is known to the last word, and one that is not that of S
is taken apart, so that a failure says who was lost or counted twice.

It knows nothing of how the processes were disturbed, and changes nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import sqlalchemy as sql
from safetensors.numpy import load

from common.ids import NodeId, hospital_id, site_name
from common.models.vector import PERIOD, cell
from common.secagg.header import quant_bound
from common.secagg.setup_state import SessionOpened
from common.study import Study, study_from_canonical
from common.views import RunPhase
from coordinator.journal import Journal
from coordinator.run_facts import apply
from coordinator.run_state import RoundRecord, RunFact, RunState, SessionStep
from coordinator.store import SqlStore, StoredRun
from hospital_node.ledger_lines import Charge, read_lines
from tests.faults.log_tail import LogTail

COORDINATOR: Final = "coordinator"
_RELEASE: Final = ("manifest.json", "model.safetensors")
_TWICE: Final = 2

Key = tuple[int, int]
"""A round of a run: the epoch's number and `r`."""


@dataclass(slots=True)
class Words:
    """What one hospital's log says of one run, in the order of its lines."""

    trained: list[Key] = field(default_factory=list)
    sealed: set[Key] = field(default_factory=set)
    """Rounds whose masked vector is final: its upload began."""
    drawn_again: set[Key] = field(default_factory=set)
    """Rounds that were trained after that."""
    receipts: set[Key] = field(default_factory=set)
    epoch: int = 0

    def take(self, line: Mapping[str, Any]) -> None:
        """Take note of a line."""
        key = (self.epoch, int(line.get("round") or 0))
        match line["event"]:
            case "session.ready":
                self.epoch = int(line.get("epoch") or self.epoch)
            case "round.training":
                self.trained.append(key)
                if key in self.sealed:
                    self.drawn_again.add(key)
            case "upload.started" | "upload.resumed":
                self.sealed.add(key)
            case "upload.finished":
                self.receipts.add(key)
            case _:
                pass


@dataclass(frozen=True, slots=True)
class StoredState:
    """A run as its stored facts tell it; `keys` has the epoch and r of each of its records."""

    state: RunState
    keys: tuple[Key, ...]
    epoch: int = 0
    """The epoch it is in."""

    @property
    def study(self) -> Study:
        """Return the run's study."""
        return self.state.study

    @property
    def records(self) -> Mapping[Key, RoundRecord]:
        """Return every round that ended."""
        return dict(zip(self.keys, self.state.history, strict=True))


class Checker:
    """See the module; `folder` is a federation's (`researcher.local`), `url` its store's."""

    def __init__(self, folder: Path, url: str, federation: str, sites: Iterable[str]) -> None:
        self.folder = folder
        self.sites = tuple(sites)
        assert len({cell(site) for site in self.sites}) == len(self.sites), "two share a cell"
        self._federation = federation
        self._store = SqlStore(sql.create_engine(url))
        self._tail = LogTail(folder / "logs", (COORDINATOR, *self.sites))
        self._words: dict[str, dict[str, Words]] = defaultdict(lambda: defaultdict(Words))
        """By run, by hospital."""
        self._models: dict[tuple[object, ...], str] = {}
        """The model that runs without noise gave, by its size and the hospitals of each round."""
        self.bugs: list[str] = []
        """Lines about errors that should not be possible."""

    def close(self) -> None:
        """Let go of the store."""
        self._store.close()

    # --- reading ----------------------------------------------------------------------------

    def read(self) -> list[tuple[str, dict[str, Any]]]:
        """Take in what was logged since the last call, and return it."""
        new = list(self._tail.new())
        for name, line in new:
            if line["event"] == "internal.error":
                self.bugs.append(f"{name}: {json.dumps(line)}")
            if name != COORDINATOR and "run" in line:
                self._words[line["run"]][name].take(line)
        return new

    def runs(self) -> list[StoredRun]:
        """Return every stored run."""
        return self._store.runs()

    def stored(self, run_id: str) -> StoredState | None:
        """Return what the facts of a run say; None if the store has no such run."""
        found = next((run for run in self.runs() if run.run_id == run_id), None)
        if found is None:
            return None
        study = study_from_canonical(self._store.study(found.config_hash).content)
        roster = tuple(sorted(hospital_id(self._federation, site) for site in self.sites))
        state = RunState(
            run_id=found.run_id,
            study=study,
            config_hash=found.config_hash,
            federation=self._federation,
            roster=roster,
            signature=found.signature,
            cert_chain=(),
        )
        facts = Journal().read(self._store.facts(found.run_id))
        return _told(state, facts)

    def unbacked(self) -> list[str]:
        """Return receipts for uploads that the store does not have, a line each.

        To be asked while no coordinator runs: later the hospital may have sent it again.
        """
        self.read()
        found = []
        for run in self.runs():
            stored = None if run.ended else self.stored(run.run_id)
            current = None if stored is None else stored.state.round
            if stored is None or current is None or current.header is None:
                continue
            key, there = (stored.epoch, int(current.r)), {one.sender for one in current.uploads}
            for site, said in self._words.get(run.run_id, {}).items():
                if key in said.receipts and site not in names(there):
                    found.append(f"{run.run_id}: {site} holds a receipt for round {key}, and the "
                                 "store has no such upload")  # fmt: skip
        return found

    def told(self, run_id: str, site: str) -> bool:
        """Whether a hospital has the run's release."""
        return all((self._release(run_id, site) / name).is_file() for name in _RELEASE)

    def members(self, run_id: str) -> set[str]:
        """Return the hospitals that were in a round of the run."""
        stored = self.stored(run_id)
        history = () if stored is None else stored.state.history
        return {name for one in history for name in names((*one.survivors, *one.dropped))}

    def _release(self, run_id: str, site: str) -> Path:
        return self.folder / "sites" / site / "state" / "releases" / run_id

    def leftovers(self) -> list[str]:
        """Return files that nobody will ask for: of closed uploads, of writes that were cut off.

        To be asked when no run is open, after a start of each process.
        """
        found = [*(self.folder / COORDINATOR / "state" / "spool").rglob("*")]
        found += (self.folder / COORDINATOR / "state" / "objects").glob(".*")
        for site in self.sites:
            found += (self.folder / "sites" / site / "state" / "spool").iterdir()
        return sorted(str(path.relative_to(self.folder)) for path in found if path.is_file())

    def state_bytes(self) -> int:
        """Return how much the coordinator's state directory holds."""
        state = self.folder / COORDINATOR / "state"
        return sum(path.stat().st_size for path in state.rglob("*") if path.is_file())

    # --- comparing --------------------------------------------------------------------------

    def problems(self, run_id: str) -> list[str]:
        """Return what the witnesses of a run that ended disagree about, a line each.

        What the logs said of the run is forgotten then.
        """
        self.read()
        stored = self.stored(run_id)
        if stored is None:
            return [f"{run_id}: an acknowledged submission is not in the store"]
        words = self._words.pop(run_id, {})
        found = [
            *_of_history(stored),
            *_of_sums(stored),
            *_of_receipts(stored, words),
            *_of_drawings(words),
            *self._of_ledgers(stored),
            *self._of_models(stored),
        ]
        return [f"{run_id}: {one}" for one in found]

    def _of_models(self, stored: StoredState) -> Iterator[str]:
        """One model: the store's manifest, the object it names, and what every hospital holds."""
        state = stored.state
        if state.phase is not RunPhase.FINISHED or state.model is None:
            return
        manifest = self._store.release(state.run_id).manifest
        told = json.loads(manifest)
        wanted = next(one["sha256"] for one in told["files"] if one["name"] == "model.safetensors")
        raw = (self.folder / COORDINATOR / "state" / "objects" / wanted).read_bytes()
        if hashlib.sha256(raw).hexdigest() != wanted:
            yield "the coordinator's released model is not what its name says"
        opened = [record.hd.hex() for record in state.history if record.opened]
        if [one["header"] for one in told["rounds"]] != opened:
            yield "the manifest names other rounds than the store"
        if told["model_sha256"] != state.model.model_sha256.hex():
            yield "the manifest names another model than the store"
        for site in sorted(self.members(state.run_id)):
            folder = self._release(state.run_id, site)
            if not self.told(state.run_id, site):
                yield f"{site} was in the run and has no release"
            elif (folder / _RELEASE[0]).read_bytes() != manifest:
                yield f"{site} holds another manifest"
            elif (folder / _RELEASE[1]).read_bytes() != raw:
                yield f"{site} holds another model"
        if not stored.study.privacy.dp.on:
            yield from _of_values(state, raw)
            sets = (record.survivors for record in state.history if record.opened)
            digest = self._models.setdefault((len(raw), *sets), told["model_sha256"])
            if digest != told["model_sha256"]:
                yield "another run over the same hospitals gave another model"

    def _of_ledgers(self, stored: StoredState) -> Iterator[str]:
        """Each hospital paid once for each round it was summed in, and for none that never was."""
        if not stored.study.privacy.dp.on:
            return
        known = {record.hd.hex() for record in stored.state.history}
        current = stored.state.round
        if current is not None and current.header is not None:
            known.add(current.hd.hex())
        for site in self.sites:
            paid = [one.hd for one in self.charges(site) if one.task == stored.study.id]
            if len(set(paid)) != len(paid):
                yield f"{site} paid twice for one round"
            if strange := set(paid) - known:
                yield f"{site} paid for {len(strange)} rounds that the store does not know"
            for record in stored.state.history:
                summed = record.opened and site in names(record.survivors)
                if summed and record.hd.hex() not in paid:
                    yield f"{site} is in the sum of round {record.r} and did not pay"

    def charges(self, site: str) -> list[Charge]:
        """Return what a hospital's ledger says was spent, oldest first."""
        path = self.folder / "sites" / site / "state" / "ledger" / "none.jsonl"
        if not path.exists():
            return []
        node = hospital_id(self._federation, site)
        entries, _ = read_lines(path.read_bytes(), node, "none", str(path))
        return entries.charges


def names(nodes: Iterable[NodeId]) -> set[str]:
    """Return the sites' short names."""
    return {site_name(node) for node in nodes}


def _told(state: RunState, facts: Iterable[RunFact]) -> StoredState:
    keys: list[Key] = []
    epoch = 0
    for fact in facts:
        if isinstance(fact, SessionStep) and isinstance(fact.fact, SessionOpened):
            epoch = int(fact.fact.opened.terms.epoch)
        state = apply(state, fact)
        if len(state.history) > len(keys):
            keys.append((epoch, int(state.history[-1].r)))
    return StoredState(state, tuple(keys), epoch)


# --- what each pair of witnesses must agree about ------------------------------------------------


def _of_history(stored: StoredState) -> Iterator[str]:
    """The run ended well, with each of its rounds opened once."""
    state = stored.state
    if state.phase is not RunPhase.FINISHED:
        yield f"it ended as {state.phase.value}: {state.reason}"
        return
    opened = [record.position for record in state.history if record.opened]
    if opened != list(range(1, stored.study.federation.rounds + 1)):
        yield f"its opened rounds are {opened}"
    if len(set(stored.keys)) != len(stored.keys):
        yield f"a round number was used twice: {stored.keys}"


def _of_sums(stored: StoredState) -> Iterator[str]:
    """Each sum is the exact sum of the hospitals that its record names."""
    if stored.study.privacy.dp.on:
        return  # noise is on it
    size = stored.study.model.size  # type: ignore[union-attr]  # a vector's
    for record in stored.state.history:
        n = len(record.survivors) + len(record.dropped)
        counts = dict.fromkeys(names(record.survivors), 1)
        if record.opened and record.sum_sha256 != _digest(size, n, tuple(sorted(counts.items()))):
            sites = sorted(names((*record.survivors, *record.dropped)))
            yield (
                f"round {record.r}: the sum is not that of {sorted(counts)}: "
                f"{taken_apart(record.sum_sha256, size, n, sites)}"
            )


@lru_cache(maxsize=1024)
def _digest(size: int, n: int, counts: tuple[tuple[str, int], ...]) -> bytes:
    bound = quant_bound(n, 32)
    total = np.zeros(size + 1, "<u4")
    for site, count in counts:
        total[cell(site) : size : PERIOD] = count * bound
    total[-1] = bound * sum(count for _, count in counts)
    return hashlib.sha256(total.tobytes()).digest()


def taken_apart(digest: bytes, size: int, n: int, sites: list[str]) -> str:
    """Say who is in a sum, and how often; nobody is a mask that did not cancel."""
    for found in itertools.product(range(_TWICE + 1), repeat=len(sites)):
        counts = tuple((site, count) for site, count in zip(sites, found, strict=True) if count)
        if _digest(size, n, counts) == digest:
            return f"it holds {dict(counts)}"
    return "it is no sum of indicators: a mask did not cancel"


def _of_receipts(stored: StoredState, words: Mapping[str, Words]) -> Iterator[str]:
    """Who holds a receipt is in the sum; who is in the sum trained; no round but the store's."""
    records = stored.records
    current = stored.state.round
    for site, said in words.items():
        for key in sorted({*said.trained, *said.receipts}):
            if key not in records and (current is None or current.r != key[1]):
                yield f"{site} saw round {key}, which the store does not know"
        for key in sorted(said.receipts & records.keys()):
            if records[key].opened and site not in names(records[key].survivors):
                yield f"{site} holds a receipt for round {key}, and is not in its sum"
    for key, record in records.items():
        for site in names(record.survivors) if record.opened else ():
            if site not in words or key not in words[site].trained:
                yield f"{site} is in the sum of round {key}, and never trained in it"


def _of_drawings(words: Mapping[str, Words]) -> Iterator[str]:
    """What was sealed is sent again, never made again."""
    for site, said in words.items():
        for key in sorted(said.drawn_again):
            yield f"{site} trained again in round {key}, whose vector was sealed"


def _of_values(state: RunState, raw: bytes) -> Iterator[str]:
    """The model is the sum of the rounds' means: in each cell the shares of its hospital."""
    (found,) = load(raw).values()
    wanted = np.zeros(found.size)
    for record in state.history:
        for site in names(record.survivors) if record.opened else ():
            wanted[cell(site) :: PERIOD] += 1 / len(record.survivors)
    if not np.allclose(found.reshape(-1), wanted, rtol=0, atol=1e-5):
        yield "the released model is not the sum of the rounds' means"
