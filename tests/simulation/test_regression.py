"""Exact regression over real rounds: crashes and a hospital that leaves in the middle.

What is fitted in the end is the regression of the hospitals of the last rounds, and nothing
of the way there shows in it.
"""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path

import numpy as np
import pytest

from common.regression.fit import Fit, from_json
from common.secagg.messages import UploadEnd
from common.site import load_site
from coordinator.run_state import RunState
from hospital_node.data.load import load_table
from researcher.local import SitePlan
from tests.federation import OWNER, SITES, Federation, names
from tests.small_study import write_table

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import statsmodels.api as sm

STUDY = """\
schema: fedcare.study/v1
id: exact
purpose: research
dataset: heart
owner: {name: A, organisation: OWNER}
features: [{name: age, type: float, centre: 60, scale: 10}]
target: {type: binary, name: sick}
split: {test: 0.3, seed: 1}
normalise: fixed
model: {kind: logistic}
federation: {strategy: {name: newton}, rounds: 12, min_sites: 3, round_deadline: 60s}
privacy: {secure_aggregation: {colluders: 1, suite: classical}}
seed: 1
"""


def federation(root: Path, gather: str = "10s", deadline: str = "60s") -> Federation:
    root.mkdir(exist_ok=True)
    clinics = [
        SitePlan(site, write_table(root / f"{site}.csv", seed, noise=12))
        for seed, site in enumerate(SITES)
    ]
    text = STUDY.replace("OWNER", OWNER).replace("60s", deadline)
    return Federation(root / "f", gather=gather, clinics=clinics, study=text)


def fit_of(fed: Federation, run: RunState) -> Fit:
    assert run.model is not None
    assert run.model.kept_sha256 is not None
    folder = fed.plan.coordinator_folder / "state" / "objects"
    return from_json((folder / run.model.kept_sha256.hex()).read_bytes())


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    async def run() -> Fit:
        async with federation(tmp_path_factory.mktemp("exact")) as fed:
            return fit_of(fed, await fed.run())

    return asyncio.run(run())


@pytest.mark.parametrize("append", [9, 13, 17])
async def test_a_coordinator_that_dies_between_rounds_ends_at_the_same_coefficients(
    tmp_path: Path, append: int, undisturbed: Fit
) -> None:
    async with federation(tmp_path) as fed:
        fed.kill_coordinator_at = append
        found = fit_of(fed, await fed.run())
        assert fed.crashes == 1
    assert found.converged
    assert found.rounds == undisturbed.rounds
    np.testing.assert_array_equal(found.exact, undisturbed.exact)


@pytest.mark.filterwarnings("ignore")  # of the library that is the oracle
async def test_a_hospital_that_leaves_in_the_middle_leaves_the_fit_of_the_others(
    tmp_path: Path,
) -> None:
    async with federation(tmp_path, gather="300ms", deadline="2s") as fed:
        fed.on_send("va", UploadEnd, fed.kill, skip=2)
        run = await fed.run()
        found = fit_of(fed, run)
    sets = [names(record.survivors) for record in run.history]
    assert sets[:3] == [set(SITES), set(SITES), set(SITES) - {"va"}]
    parts = []
    for site in sorted(set(SITES) - {"va"}):
        manifest = load_site(fed.plan.site_folder(site) / "site.yaml")
        parts.append(load_table(fed.study, manifest.table("heart")).train)
    x = np.concatenate([np.asarray(part.values, np.float64) for part in parts])
    y = np.concatenate([part.target for part in parts])
    wide = sm.add_constant((x - 60) / 10, prepend=False)
    pooled = sm.GLM(y, wide, family=sm.families.Binomial()).fit(tol=1e-14)
    assert found.converged
    assert found.sums is not None
    assert found.sums.rows == len(y)
    np.testing.assert_allclose(found.exact, pooled.params, rtol=1e-6, atol=1e-6)
