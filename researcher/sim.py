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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from common.clock import SystemClock
from common.errors import ConfigError, RoundError
from common.identity import load_identity, sign_study
from common.ids import RunId
from common.logs import make_log
from common.messages import DownloadChunk, ReleaseNotice
from common.site import Site
from common.study import Study, canonical_json, config_hash
from common.views import RunPhase, RunView
from common.wire_operations import Submission
from coordinator.app import build_service, lock_state
from coordinator.config import CoordinatorConfig
from coordinator.service import CoordinatorService
from researcher.coefficients import read_coefficients
from researcher.engines import Around, Engine, Watch, local_engine
from researcher.evaluation_file import read_evaluation
from researcher.leave_one_out import LeftOut, check_enough, leave_one_out
from researcher.local import FederationPlan, SitePlan, build, free_address
from researcher.personal import collect, judged, made
from researcher.progress import Display
from researcher.release import VerifiedModel, pull, read_statistics, read_weights
from researcher.sim_privacy import privacy_data
from researcher.studies import require_agreed_epsilon
from researcher.traffic import communication

if TYPE_CHECKING:
    from common.ids import Sha256
    from common.statistics_file import StatisticsFile
    from hospital_node.data.load import SiteData
    from hospital_node.personal.artefact import Personal
    from researcher.comparison import Comparison, Figures

FEDERATION: Final = "simulation"
_REASON: Final = 300


@dataclass(frozen=True, slots=True)
class SimResult:
    """What the command prints; `evaluation` and `regression` stand in the release."""

    data: Mapping[str, object]
    comparison: Comparison
    evaluation: Mapping[str, Any] | None = None
    regression: Mapping[str, Any] | None = None
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
    engine: Engine = local_engine,
    *,
    leave_out: bool = False,
) -> SimResult:
    """Run the study over the sites and compare the result. Blocking.

    `leave_out` runs it once more without each hospital (`researcher.leave_one_out`).

    Raises:
        FedError: the study cannot run over these sites, or their data do not fit it.
    """
    check_sites(study, sites)
    if study.kind == "statistics":
        raise ConfigError("NOT_SUPPORTED", "a study of kind statistics has no model to compare")
    require_agreed_epsilon(study)
    if leave_out:
        check_enough(study, sites)
    screen.step("reading the hospitals' tables")
    # First of all, because here an error may say what a hospital would keep to itself.
    data_of = {site.id: _load(study, site) for site in sites}
    with _planned(study, sites) as plan:
        view, model = asyncio.run(_run(plan, plan.folder.parent / "model", screen, engine))
        screen.step("comparing with each hospital alone and with all rows in one place")
        comparison = _compare(model, data_of, collect(plan, view.run_id))
        regression, figures = read_coefficients(model.folder), read_evaluation(model.folder)
        charged = privacy_data(plan)

    def judge(others: Sequence[Site], site: Site) -> Figures:
        return _elsewhere(study, others, {site.id: data_of[site.id]}, screen, engine)

    out = leave_one_out(sites, comparison, judge, screen.step) if leave_out else ()
    data = _data(study, view, model, comparison, began)
    left_out = {"leave_one_out": [one.data() for one in out]} if leave_out else {}
    data = {**data, "dp": charged, "regression": regression, **left_out}
    return SimResult(data, comparison, figures, regression, out)


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
        build(plan, free_address())
        yield plan


def _elsewhere(
    study: Study,
    sites: Sequence[Site],
    tested: Mapping[str, SiteData],
    screen: Display,
    engine: Engine,
) -> Figures:
    """Return the figures of a run over `sites` on another hospital's test rows."""
    from common.layouts import split_model
    from researcher.comparison import assess, score

    with _planned(study, sites) as plan:
        _, model = asyncio.run(_run(plan, plan.folder.parent / "model", screen, engine))
        found, weights = split_model(study, read_weights(model.folder, study))
    encoded = {site: found.encode(study, data.test) for site, data in tested.items()}
    train = {site: found.encode(study, data.train) for site, data in tested.items()}
    return assess(study, score(study, encoded, lambda _site: weights, train)).pooled


@dataclass(frozen=True, slots=True)
class CountedResult:
    """What the command prints of a statistics study."""

    data: Mapping[str, object]
    found: StatisticsFile


def simulate_statistics(
    study: Study,
    sites: Sequence[Site],
    screen: Display,
    began: float,
    engine: Engine = local_engine,
) -> CountedResult:
    """Run a statistics study over the sites. Blocking.

    Raises:
        FedError: the study cannot run over these sites, or their data do not fit it.
    """
    check_sites(study, sites)
    screen.step("reading the hospitals' tables")
    for site in sites:
        _load(study, site)  # here an error may say what a hospital would keep to itself
    with tempfile.TemporaryDirectory(prefix="fedcare-sim-") as folder:
        root, plans = Path(folder) / "federation", [_plan(study, site) for site in sites]
        plan = FederationPlan(root, FEDERATION, study, plans, min_cell=1)
        build(plan, free_address())
        view, release = asyncio.run(_run(plan, Path(folder) / "model", screen, engine))
        found = read_statistics(release.folder)
    data = {
        "study_id": study.id,
        "sites": [site.id for site in sites],
        "rounds": len(view.history),
        "statistics": found.model_dump(mode="json", by_alias=True),
        "statistics_sha256": release.manifest.model_sha256,
        "privacy": release.manifest.privacy.model_dump(mode="json"),
        "seconds": round(time.monotonic() - began, 3),
    }
    return CountedResult(data, found)


def check_sites(study: Study, sites: Sequence[Site]) -> None:
    """Refuse sites that cannot run the study, before anything is built.

    Raises:
        ConfigError: NOT_SUPPORTED, DUPLICATE_KEY or BAD_VALUE.
    """
    if study.model.kind == "vector":
        raise ConfigError("NOT_SUPPORTED", "sim runs studies with data, not a vector's pattern")
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
    """Return a hospital whose manifest has the given one's table, with all of its mapping."""
    table = site.table(study.dataset)
    # Only what was stated: `patient: null` says something else than no `patient`.
    return SitePlan(site.id, section=table.model_dump(mode="json", exclude_unset=True))


def _load(study: Study, site: Site) -> SiteData:
    from hospital_node.data.load import load_table

    return load_table(study, site.table(study.dataset))


async def _run(
    plan: FederationPlan, model_folder: Path, screen: Display, engine: Engine
) -> tuple[RunView, VerifiedModel]:
    words = io.StringIO()
    async with _federation(plan, words, engine) as (service, hospitals):
        work = "count" if plan.study.kind == "statistics" else "train"
        screen.step(f"{len(plan.sites)} hospitals agree on keys and {work}")
        run = await service.submit(_submission(plan), "sim")
        follower = asyncio.create_task(_follow(service, run.run_id, screen))
        # A node or the coordinator ending by itself is as final as the run's end.
        guard = asyncio.create_task(service.watch_over())
        try:
            await asyncio.wait([follower, guard, hospitals], return_when=asyncio.FIRST_COMPLETED)
            if not follower.done():
                follower.cancel()
                _raise_first(guard, hospitals)
            view = _finished(await follower, words)
            ca = plan.researcher_folder / "ca.crt"
            await made(plan, run.run_id)
            model = await pull(MemorySource(service), run.run_id, model_folder, ca)
        finally:
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
    plan: FederationPlan, words: io.StringIO, engine: Engine
) -> AsyncIterator[tuple[CoordinatorService, Watch]]:
    clock = SystemClock()
    log = make_log(words, form="console", level="warning", clock=clock)
    config = CoordinatorConfig.read(plan.coordinator_folder / "coordinator.yaml")
    identity = load_identity(plan.coordinator_folder, now_unix=clock.unix())
    lock = lock_state(config.path(config.state_dir))
    service = build_service(config, identity, clock, log)
    service.recover()
    try:
        async with engine(Around(plan, config, identity, service, clock, log)) as hospitals:
            yield service, hospitals
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
        raise RoundError("RUN_FAILED", f"the run ended without a result: {view.reason or last}")
    return view


def _compare(
    model: VerifiedModel, sites: Mapping[str, SiteData], own: Mapping[str, Personal]
) -> Comparison:
    from common.layouts import split_model
    from researcher.comparison import compare

    preprocessing, weights = split_model(model.study, read_weights(model.folder, model.study))
    found = compare(model.study, preprocessing, weights, sites)
    return replace(found, personal=judged(model.study, preprocessing, own, sites))


def _data(
    study: Study, view: RunView, model: VerifiedModel, comparison: Comparison, began: float
) -> dict[str, object]:
    return {
        "study_id": study.id,
        "seed": study.seed,
        "sites": list(comparison.scores),
        "rounds": study.federation.rounds,
        "round_seconds": [round(one.seconds, 3) for one in view.history if one.kind == "train"],
        "model_sha256": model.manifest.model_sha256,
        "metrics": comparison.metrics(),
        "baselines": comparison.baselines(),
        "personal": None if comparison.personal is None else comparison.personal.data(),
        "over_the_wire": dict(view.pooled),
        "communication": communication(study),
        "privacy": model.manifest.privacy.model_dump(mode="json"),
        "seconds": round(time.monotonic() - began, 3),
    }
