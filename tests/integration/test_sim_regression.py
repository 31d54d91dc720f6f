"""Exact regression through a whole federation (keys, masks, release) is the fit of all rows."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import StateError
from common.regression.table import FILE
from common.site import Site, load_site
from common.study import Study, canonical_json, parse_study
from common.views import RunPhase
from hospital_node.data.load import load_table
from researcher import sim
from researcher.client import Client
from researcher.coefficients import coefficients_text
from researcher.local import SitePlan
from researcher.progress import LineDisplay
from researcher.release import verify
from tests.federation import OWNER, SITES
from tests.integration.test_federation_mtls import OverTls

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import statsmodels.api as sm

pytestmark = pytest.mark.filterwarnings("ignore")  # of the library that is the oracle

STUDY = """
schema: fedcare.study/v1
id: exact
purpose: research
dataset: t
owner: {{name: A, organisation: b}}
features:
  - {{name: a, type: float}}
  - {{name: b, type: float}}
  - {{name: c, type: float}}
target: {target}
split: {{test: 0.2, seed: 1, stratify: false}}
model: {{kind: {kind}}}
federation: {{rounds: {rounds}, min_sites: 3, strategy: {{name: newton}}}}
seed: 1
"""
TARGETS = {
    "logistic": "{type: binary, name: y}",
    "linear": "{type: continuous, name: y}",
    "poisson": "{type: continuous, name: y}",
    "cox": "{type: survival, time: t, event: e}",
}


def study_of(kind: str, rounds: int = 12) -> Study:
    return parse_study(STUDY.format(kind=kind, target=TARGETS[kind], rounds=rounds))


def targets(kind: str, rng: np.random.Generator, eta: NDArray[np.float64]) -> list[NDArray[Any]]:
    count = len(eta)
    match kind:
        case "logistic":
            return [(rng.random(count) < 1 / (1 + np.exp(-eta))).astype(int)]
        case "linear":
            return [120 + 15 * eta + rng.normal(0, 8, count)]
        case "poisson":
            return [rng.poisson(np.exp(1 + eta))]
        case _:  # whole months, so that there are ties
            time_ = np.ceil(rng.exponential(np.exp(-eta)) * 12)
            return [time_, (rng.random(count) < 0.7).astype(int)]


def write_site(folder: Path, kind: str, seed: int) -> Site:
    """Columns of unlike units; another mix of patients at every hospital."""
    rng, name, count = np.random.default_rng([seed, len(kind)]), f"site-{seed}", 70 + 15 * seed
    x = [
        rng.normal(60 + seed, 10, count),
        rng.normal(0, 1e-3, count),
        1.0 * (rng.random(count) < 0.5),
    ]
    eta = 0.03 * (x[0] - 60) + 300 * x[1] - 0.7 * x[2] + 0.2
    names = ["a", "b", "c", *(["t", "e"] if kind == "cox" else ["y"])]
    lines = [",".join(names)]
    lines += [
        ",".join(repr(value.item()) for value in row)
        for row in zip(*x, *targets(kind, rng, np.asarray(eta, np.float64)), strict=True)
    ]
    (folder / f"{name}.csv").write_text("\n".join([*lines, ""]), encoding="utf-8")
    manifest = folder / f"{name}.yaml"
    manifest.write_text(
        f"schema: fedcare.site/v1\nid: {name}\ndata: [{{name: t, kind: csv, path: {name}.csv}}]\n"
    )
    return load_site(manifest)


def pooled(study: Study, sites: list[Site]) -> Any:  # noqa: ANN401 - statsmodels has no types
    """The oracle over all training rows, in the features' own units."""
    trains = [load_table(study, site.table("t")).train for site in sites]
    x = np.concatenate([np.asarray(train.values, np.float64) for train in trains])
    y = np.concatenate([train.target for train in trains])
    if study.model.kind == "cox":
        strata = np.repeat(np.arange(len(trains)), [len(train.target) for train in trains])
        fitted = sm.PHReg(y[:, 0], x, status=y[:, 1], strata=strata, ties="efron")
        return len(y), fitted.fit(method="newton", tol=1e-14, maxiter=100, disp=False)
    wide = np.column_stack([x, np.ones(len(x))])
    match study.model.kind:
        case "linear":
            return len(y), sm.OLS(y, wide).fit()
        case "logistic":
            return len(y), sm.GLM(y, wide, family=sm.families.Binomial()).fit(tol=1e-14)
        case _:
            return len(y), sm.GLM(y, wide, family=sm.families.Poisson()).fit(tol=1e-14)


def simulated(study: Study, sites: list[Site]) -> Any:  # noqa: ANN401 - an envelope
    return sim.simulate(study, sites, LineDisplay(), time.monotonic()).data["regression"]


@pytest.mark.parametrize("kind", list(TARGETS))
def test_the_released_table_is_the_fit_of_all_rows(tmp_path: Path, kind: str) -> None:
    study = study_of(kind)
    sites = [write_site(tmp_path, kind, seed) for seed in range(4)]
    found, (rows, expected) = simulated(study, sites), pooled(study, sites)
    assert found["converged"]
    assert found["rows"] == rows
    for name, theirs in (
        ("coefficient", expected.params),
        ("standard_error", expected.bse),
        ("p_value", expected.pvalues),
    ):
        own = np.array([line[name] for line in found["coefficients"]])
        assert np.max(np.abs(own - theirs) / np.maximum(1.0, np.abs(theirs))) < 1e-6, name


def test_a_fit_that_ran_out_of_rounds_says_so(tmp_path: Path) -> None:
    sites = [write_site(tmp_path, "logistic", seed) for seed in range(3)]
    found = simulated(study_of("logistic", rounds=2), sites)
    assert not found["converged"]
    assert any("did not converge" in note for note in found["notes"])


def test_a_table_that_was_altered_or_slipped_in_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = [write_site(tmp_path, "linear", seed) for seed in range(3)]
    refused: list[str] = []

    def attack(folder: Path) -> None:
        ca = next(folder.parent.rglob("ca.crt"))
        table, genuine = folder / FILE, (folder / FILE).read_bytes()
        for forged in (genuine.replace(b'"a"', b'"z"'), genuine + b" "):
            table.write_bytes(forged)
            with pytest.raises(StateError) as caught:
                verify(folder, ca)
            refused.append(caught.value.name)
        table.write_bytes(genuine)
        verify(folder, ca)

    monkeypatch.setattr(sim, "read_coefficients", attack)
    simulated(study_of("linear"), sites)
    assert refused == ["MODEL_INVALID"] * 2


async def printed(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "common.cli", *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_run_show_and_model_tables_print_the_verified_table(tmp_path: Path) -> None:
    for seed in range(len(SITES)):
        write_site(tmp_path, "cox", seed)
    clinics = [
        SitePlan(site, tmp_path / f"site-{seed}.csv", in_place=True)
        for seed, site in enumerate(SITES)
    ]
    text = STUDY.format(kind="cox", target=TARGETS["cox"], rounds=12)
    text = text.replace("organisation: b", f"organisation: {OWNER}")
    async with (
        OverTls(tmp_path / "f", clinics=clinics, study=text) as fed,
        Client(fed.address, fed.owner) as client,
    ):
        run = (await client.submit(canonical_json(fed.study), "request-1")).run_id
        fed.run_id = run
        views = [view async for view in client.watch(run)]
        assert views[-1].state is RunPhase.FINISHED, views[-1].reason
        to = ("--coordinator", fed.address, "--tls", str(fed.plan.researcher_folder))
        words, body = (
            await printed("run", "show", run, *to),
            await printed("run", "show", run, *to, "--json"),
        )
        await printed("model", "pull", run, "--out", str(tmp_path / "model"), *to)
    ca, page = str(fed.plan.researcher_folder / "ca.crt"), tmp_path / "page"
    shown = await printed(
        "model", "tables", str(tmp_path / "model"), "--ca", ca, "--out", str(page)
    )
    regression = json.loads(body)["data"]["regression"]
    assert [line["name"] for line in regression["coefficients"]] == ["a", "b", "c"]
    assert "hazard ratio" in words
    assert coefficients_text(regression) in words
    assert coefficients_text(regression) in shown
    assert (page / "result.html").read_text().count("<svg") == 1
