"""`fedcare sim`: a study over several site manifests, in one process, without a network.

The same code as in production but for the transport (`researcher.memory_link`): the
hospitals' nodes, their policies, keys, masks and state, the coordinator's runs and store.
Certificates and state live in a temporary folder and are gone afterwards. Policies are
made for the occasion and allow this study's kind, over any number of rows; a hospital's real
policy decides later (`fedcare node policy explain` shows what one says).
"""

from __future__ import annotations

import asyncio
import io
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from common.clock import SystemClock
from common.errors import ConfigError, RoundError
from common.identity import load_identity, sign_study
from common.ids import RunId, hospital_id
from common.logs import make_log
from common.messages import DownloadChunk, ReleaseNotice
from common.site import Site
from common.study import Study, canonical_json, config_hash
from common.views import RunPhase, RunView
from common.wire_operations import Submission
from coordinator.app import build_service, lock_state
from coordinator.config import CoordinatorConfig
from coordinator.service import CoordinatorService
from hospital_node.app import build_node, load_setup
from hospital_node.config import NodeConfig
from hospital_node.driver import Node
from researcher.leave_one_out import LeftOut, check_enough, leave_one_out
from researcher.local import FederationPlan, SitePlan, build
from researcher.memory_link import MemoryDialler
from researcher.progress import Display
from researcher.release import VerifiedModel, pull, read_weights
from researcher.sim_privacy import privacy_data
from researcher.studies import require_agreed_epsilon

if TYPE_CHECKING:
    from common.ids import Sha256
    from hospital_node.data.load import SiteData
    from researcher.comparison import Comparison, Figures

FEDERATION: Final = "simulation"
_NOWHERE: Final = "127.0.0.1:1"
_REASON: Final = 300


@dataclass(frozen=True, slots=True)
class SimResult:
    """What the command prints."""

    data: Mapping[str, object]
    comparison: Comparison
    left_out: tuple[LeftOut, ...] = ()


class MemorySource:
    """A run's release from a service of this process; see `researcher.release.Source`."""

    def __init__(self, service: CoordinatorService) -> None:
        self._service = service

    async def release(self, run_id: str) -> ReleaseNotice:
        """Return the signed manifest."""
        return self._service.release(RunId(run_id))

    def download(self, sha256: Sha256, offset: int = 0) -> AsyncIterator[DownloadChunk]:
        """Yield an object's bytes."""
        return self._service.download(sha256, offset, "sim")


def simulate(
    study: Study,
    sites: Sequence[Site],
    screen: Display,
    began: float,
    *,
    leave_out: bool = False,
) -> SimResult:
    """Run the study over the sites and compare the result. Blocking.

    `leave_out` runs it once more without each hospital (`researcher.leave_one_out`).

    Raises:
        FedError: the study cannot run over these sites, or their data do not fit it.
    """
    check_sites(study, sites)
    require_agreed_epsilon(study)
    if leave_out:
        check_enough(study, sites)
    screen.step("reading the hospitals' tables")
    # First of all, because here an error may say what a hospital would keep to itself.
    data_of = {site.id: _load(study, site) for site in sites}
    with _planned(study, sites) as plan:
        view, model = asyncio.run(_run(plan, plan.folder.parent / "model", screen))
        screen.step("comparing with each hospital alone and with all rows in one place")
        comparison = _compare(model, data_of)
        charged = privacy_data(plan)

    def judge(others: Sequence[Site], site: Site) -> Figures:
        return _elsewhere(study, others, {site.id: data_of[site.id]}, screen)

    out = leave_one_out(sites, comparison, judge, screen.step) if leave_out else ()
    data = _data(study, view, model, comparison, began)
    left_out = {"leave_one_out": [one.data() for one in out]} if leave_out else {}
    return SimResult({**data, "dp": charged, **left_out}, comparison, out)


@contextmanager
def _planned(study: Study, sites: Sequence[Site]) -> Iterator[FederationPlan]:
    with tempfile.TemporaryDirectory(prefix="fedcare-sim-") as folder:
        plan = FederationPlan(
            Path(folder) / "federation",
            FEDERATION,
            study,
            [_plan(study, site) for site in sites],
            min_cell=1,
        )
        build(plan, _NOWHERE)
        yield plan


def _elsewhere(
    study: Study, sites: Sequence[Site], tested: Mapping[str, SiteData], screen: Display
) -> Figures:
    """Return the figures of a run over `sites` on another hospital's test rows."""
    from common.layouts import split_model
    from researcher.comparison import assess, score

    with _planned(study, sites) as plan:
        _, model = asyncio.run(_run(plan, plan.folder.parent / "model", screen))
        found, weights = split_model(study, read_weights(model.folder, study))
    encoded = {site: found.encode(study, data.test) for site, data in tested.items()}
    return assess(study, score(study, encoded, lambda _site: weights)).pooled


def check_sites(study: Study, sites: Sequence[Site]) -> None:
    """Refuse sites that cannot run the study, before anything is built.

    Raises:
        ConfigError: NOT_SUPPORTED, DUPLICATE_KEY or BAD_VALUE.
    """
    if study.kind != "training" or study.model.kind == "vector":
        raise ConfigError("NOT_SUPPORTED", "sim runs studies of kind training with a model")
    names = [site.id for site in sites]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError("DUPLICATE_KEY", f"site id '{name}' is given twice")
    if len(names) < study.federation.min_sites:
        raise ConfigError(
            "BAD_VALUE",
            f"study {study.id} needs at least {study.federation.min_sites} sites, "
            f"{len(names)} given",
            fix="Give more --site manifests, or lower federation.min_sites.",
        )


def _plan(study: Study, site: Site) -> SitePlan:
    table = site.table(study.dataset)
    patient = {"patient": table.patient} if table.patient_stated else {}
    return SitePlan(
        site.id, Path(table.path), in_place=True, columns=table.columns, patient=patient
    )


def _load(study: Study, site: Site) -> SiteData:
    from hospital_node.data.load import load_table

    return load_table(study, site.table(study.dataset))


async def _run(
    plan: FederationPlan, model_folder: Path, screen: Display
) -> tuple[RunView, VerifiedModel]:
    words = io.StringIO()
    async with _federation(plan, words) as (service, nodes):
        serving = [asyncio.create_task(node.run()) for node in nodes]
        screen.step(f"{len(nodes)} hospitals agree on keys and train")
        run = await service.submit(_submission(plan), "sim")
        follower = asyncio.create_task(_follow(service, run.run_id, screen))
        try:
            # A node or the coordinator ending by itself is as final as the run's end.
            guard = asyncio.create_task(service.watch_over())
            await asyncio.wait([follower, guard, *serving], return_when=asyncio.FIRST_COMPLETED)
            if not follower.done():
                follower.cancel()
                _raise_first(guard, *serving)
            view = _finished(await follower, words)
            ca = plan.researcher_folder / "ca.crt"
            model = await pull(MemorySource(service), run.run_id, model_folder, ca)
        finally:
            for node in nodes:
                node.stop()
            await asyncio.gather(*serving, return_exceptions=True)
            guard.cancel()
    return view, model


def _submission(plan: FederationPlan) -> Submission:
    """Return the study as its owner signs it."""
    owner = load_identity(plan.researcher_folder, now_unix=SystemClock().unix())
    signature = sign_study(owner, config_hash(plan.study))
    return Submission(canonical_json(plan.study), "sim", signature, owner.chain)


def _raise_first(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        if task.done() and not task.cancelled():
            task.result()
    raise RoundError("RUN_FAILED", "a node of the simulation ended by itself")


@asynccontextmanager
async def _federation(
    plan: FederationPlan, words: io.StringIO
) -> AsyncIterator[tuple[CoordinatorService, list[Node]]]:
    clock = SystemClock()
    log = make_log(words, form="console", level="warning", clock=clock)
    config = CoordinatorConfig.read(plan.coordinator_folder / "coordinator.yaml")
    identity = load_identity(plan.coordinator_folder, now_unix=clock.unix())
    lock = lock_state(config.path(config.state_dir))
    service = build_service(config, identity, clock, log)
    service.recover()
    nodes = []
    for site in plan.sites:
        setup = load_setup(NodeConfig.read(plan.site_folder(site.name) / "node.yaml"), clock)
        dialler = MemoryDialler(service, hospital_id(plan.federation, site.name))
        nodes.append(build_node(setup, dialler, log=log.bind(site=site.name), clock=clock))
    try:
        yield service, nodes
    finally:
        await service.close()
        lock.close()


async def _follow(service: CoordinatorService, run_id: RunId, screen: Display) -> RunView:
    view = service.run(run_id)
    async for view in service.watch(run_id):
        screen.show(view)
        refused = [site for site in view.sites if site.objection and site.state == "refused"]
        if refused:
            raise RoundError("RUN_FAILED", f"{refused[0].site} refused: {refused[0].objection}")
    return view


def _finished(view: RunView, words: io.StringIO) -> RunView:
    if view.state is not RunPhase.FINISHED:
        lines = words.getvalue().strip().splitlines()
        last = lines[-1][-_REASON:] if lines else "no reason was given"
        raise RoundError("RUN_FAILED", f"the run ended without a model: {view.reason or last}")
    return view


def _compare(model: VerifiedModel, sites: Mapping[str, SiteData]) -> Comparison:
    from common.layouts import split_model
    from researcher.comparison import compare

    preprocessing, weights = split_model(model.study, read_weights(model.folder, model.study))
    return compare(model.study, preprocessing, weights, sites)


def _data(
    study: Study, view: RunView, model: VerifiedModel, comparison: Comparison, began: float
) -> dict[str, object]:
    return {
        "study_id": study.id,
        "seed": study.seed,
        "sites": list(comparison.scores),
        "rounds": study.federation.rounds,
        "model_sha256": model.manifest.model_sha256,
        "metrics": comparison.metrics(),
        "baselines": comparison.baselines(),
        "over_the_wire": dict(view.pooled),
        "privacy": model.manifest.privacy.model_dump(mode="json"),
        "seconds": round(time.monotonic() - began, 3),
    }
