"""A coordinator that keeps what it sees, in a real federation of this process.

Coordinator, nodes, keys, masks, certificates and files are those of production, as in
`fedcare sim`; the one thing added stands where a round's sum is opened: there the
uploads' files, the opened words and the round's model are copied. `alter` makes the
coordinator a liar: it adds something to the first model of a run.
"""

from __future__ import annotations

import asyncio
import io
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks.privacy.hearts import Row, csv_text
from common.clock import SystemClock
from common.errors import RoundError
from common.identity import load_identity, sign_study
from common.ids import RunId, hospital_id, site_name
from common.layouts import constant_count, first_model, model_schema, split_model
from common.logs import make_log
from common.preprocessing import Preprocessing
from common.secagg.header import Header, RoundKind, sum_bound
from common.secagg.ring import signed_view, word_bytes, word_dtype
from common.study import Study, canonical_json, config_hash
from common.views import RunPhase
from common.wire_operations import Submission
from coordinator import driver, use_sum
from coordinator.app import build_service, lock_state
from coordinator.config import CoordinatorConfig
from coordinator.objects import ObjectStore
from coordinator.opening import Collect, Opening, open_sum
from coordinator.run_state import OpenSum, SumUsed
from coordinator.service import CoordinatorService
from coordinator.spool import Spool
from hospital_node.app import build_node, load_setup
from hospital_node.config import NodeConfig
from hospital_node.driver import Node
from hospital_node.receive import read_model
from researcher.local import FederationPlan, SitePlan, build
from researcher.memory_link import MemoryDialler

Words = NDArray[np.int64]
Weights = NDArray[np.float32]

FEDERATION: Final = "attacked"
_LONGEST_S: Final = 60.0
_LAST_WORDS: Final = 600
_NOWHERE: Final = "127.0.0.1:1"
_TIMING: Final = {"enrolment_grace": "500ms", "gather": "500ms", "release": "2s"}


@dataclass(frozen=True, slots=True)
class Kept:
    """What the coordinator holds of one training round.

    `masked`: each survivor's upload as it lay in the spool, read as signed words; `opened`:
    the sum; `model`: the weights that the hospitals were given.
    """

    header: Header
    masked: Mapping[str, Words]
    opened: Words
    model: Weights

    @property
    def survivors(self) -> tuple[str, ...]:
        """The hospitals in the sum."""
        return tuple(self.masked)


class Federation:
    """Hospitals and their coordinator: files in a folder, alive during a run.

    A hospital remembers from run to run what it signed and spent. The coordinator forgets:
    each run begins with an empty state, so that it can run an approved study once more.
    """

    def __init__(self, folder: Path, study: Study, tables: Mapping[str, Sequence[Row]]) -> None:
        sites = []
        for site, rows in tables.items():
            path = folder / f"{site}.csv"
            path.write_text(csv_text(rows), encoding="utf-8")
            sites.append(SitePlan(site, path, in_place=True))
        self._plan = FederationPlan(
            folder / "federation", FEDERATION, study, sites, _TIMING, min_cell=1
        )
        self._words = io.StringIO()
        build(self._plan, _NOWHERE)

    def run(
        self,
        sites: Sequence[str],
        *,
        alter: Callable[[Weights], Weights] | None = None,
        study: Study | None = None,
    ) -> list[Kept]:
        """Run the study, or another, over some of the hospitals; return what is kept. Blocking.

        Raises:
            RoundError: RUN_FAILED, the run ended without a model; the reason says why.
        """
        return asyncio.run(self._run(sites, alter, study or self._plan.study))

    async def _run(
        self, sites: Sequence[str], alter: Callable[[Weights], Weights] | None, study: Study
    ) -> list[Kept]:
        kept: list[Kept] = []
        async with self._coordinator() as service, self._serving(service, sites):
            with _copying(kept, study), _lying(alter), _forgetful():
                run = await service.submit(self._submission(study), "attack")
                async with asyncio.timeout(_LONGEST_S):
                    reason = await _end(service, run.run_id)
            said = self._words.getvalue()[-_LAST_WORDS:]  # before everybody leaves
        if reason is not None:
            raise RoundError("RUN_FAILED", f"{reason}; the last that was logged: {said}")
        return kept

    def _submission(self, study: Study) -> Submission:
        owner = load_identity(self._plan.researcher_folder, now_unix=SystemClock().unix())
        signature = sign_study(owner, config_hash(study))
        return Submission(canonical_json(study), "attack", signature, owner.chain)

    @asynccontextmanager
    async def _coordinator(self) -> AsyncIterator[CoordinatorService]:
        clock = SystemClock()
        config = CoordinatorConfig.read(self._plan.coordinator_folder / "coordinator.yaml")
        state = config.path(config.state_dir)
        shutil.rmtree(state, ignore_errors=True)
        identity = load_identity(self._plan.coordinator_folder, now_unix=clock.unix())
        lock = lock_state(state)
        log = make_log(self._words, form="console", level="warning", clock=clock)
        service = build_service(config, identity, clock, log)
        service.recover()
        try:
            yield service
        finally:
            await service.close()
            lock.close()

    @asynccontextmanager
    async def _serving(
        self, service: CoordinatorService, sites: Sequence[str]
    ) -> AsyncIterator[None]:
        nodes = [self._node(service, site) for site in sites]
        serving = [asyncio.create_task(node.run()) for node in nodes]
        try:
            yield
        finally:
            for node in nodes:
                node.stop()
            await asyncio.gather(*serving, return_exceptions=True)

    def _node(self, service: CoordinatorService, site: str) -> Node:
        clock = SystemClock()
        log = make_log(self._words, form="console", level="warning", clock=clock)
        setup = load_setup(NodeConfig.read(self._plan.site_folder(site) / "node.yaml"), clock)
        dialler = MemoryDialler(service, hospital_id(FEDERATION, site))
        return build_node(setup, dialler, log=log.bind(site=site), clock=clock)


async def _end(service: CoordinatorService, run_id: RunId) -> str | None:
    """Follow a run to its end or to a voided round; return why there is no model, if so."""
    view = service.run(run_id)
    async for view in service.watch(run_id):
        refused = [site for site in view.sites if site.objection and site.state == "refused"]
        if refused:
            return f"{refused[0].site} refused: {refused[0].objection}"
        void = [entry.reason for entry in view.history if entry.state == "ABORTED"]
        if void:
            return f"a round was voided: {void[0]}"
    return None if view.state is RunPhase.FINISHED else view.reason


# --- what the coordinator adds to its own code ---------------------------------------------------


@contextmanager
def _copying(kept: list[Kept], study: Study) -> Iterator[None]:
    original = use_sum.use_sum

    def copying(
        of: Study,
        command: OpenSum,
        spool: Spool,
        objects: ObjectStore,
        stopping: Callable[[], bool],
    ) -> SumUsed:
        if command.header.kind is RoundKind.TRAIN:
            kept.append(_copy(study, command, spool, objects))
        return original(of, command, spool, objects, stopping)

    with mock.patch.object(driver, "use_sum", copying):
        yield


@contextmanager
def _forgetful() -> Iterator[None]:
    """Run an approved study once more: an honest coordinator would say that history went back."""
    with mock.patch.object(CoordinatorService, "_compare"):
        yield


def _copy(study: Study, command: OpenSum, spool: Spool, objects: ObjectStore) -> Kept:
    header = command.header
    size = header.d * word_bytes(header.w)
    files = {node: spool.file(header.digest(), node, size) for node in command.survivors}
    masked: dict[str, Words] = {}
    for node, file in files.items():
        raw = np.frombuffer(file.path.read_bytes(), word_dtype(header.w))
        masked[site_name(node)] = signed_view(raw).astype(np.int64)
    bound = sum_bound(len(files), header.word_bound)
    sink = Collect(header.d)
    open_sum(Opening(list(files.values()), command.plan, header.d, bound), sink)
    if command.model is None:
        raise ValueError("a training round has a model")
    flat = read_model(objects.path(command.model.object_sha256), model_schema(study))
    weights = split_model(study, model_schema(study).flat(flat))[1]
    return Kept(header, masked, sink.words, weights)


@contextmanager
def _lying(alter: Callable[[Weights], Weights] | None) -> Iterator[None]:
    if alter is None:
        yield
        return

    def altered(study: Study, constants: Preprocessing | None) -> Weights:
        model = first_model(study, constants)
        weights = model.size - split_model(study, model)[1].size
        model[weights:] = alter(model[weights:])
        return model

    with mock.patch.object(use_sum, "first_model", altered):
        yield


def weight_words(study: Study, words: Words) -> Words:
    """Return the words of the weights of a training vector, without what stands around them."""
    start = constant_count(study)
    return words[start : model_schema(study).parameters]
