"""Strategies with memory, over real rounds: crashes, voided and missed rounds leave it right.

The coordinator's moments (fedadam) and each hospital's own tensors (scaffold, fedbn, ditto)
must be what an undisturbed run has, or what the round's end says.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common import layouts
from common.ids import HeaderDigest, RunId
from common.layouts import control_of, model_schema
from common.secagg.messages import Commit, Ready, RoundResult, UploadEnd
from coordinator.journal import Journal
from coordinator.run_facts import models_of
from coordinator.run_state import ModelRef, RunState
from hospital_node.personal_state import CONTROL, DITTO, FEDBN, OwnTensors
from hospital_node.receive import read_model
from researcher.local import SitePlan
from tests.federation import OWNER, SITES, Federation, names
from tests.small_study import write_table

STUDY = """\
schema: fedcare.study/v1
id: memory
purpose: research
dataset: heart
owner: {name: A, organisation: OWNER}
features: [{name: age, type: float, centre: 60, scale: 10}]
target: {type: binary, name: sick}
split: {test: 0.3, seed: 1}
normalise: fixed
model: MODEL
train: {lr: 0.1, batch: 16, local_steps: 3}
federation: {strategy: STRATEGY, weights: equal, rounds: 2, min_sites: 3, round_deadline: 60s}
privacy: {secure_aggregation: {colluders: 1, suite: classical}}
seed: 1
"""
LOGISTIC, NORMED = "{kind: logistic}", "{kind: mlp, hidden: [3], norm: batch}"
MODELS = {"fedadam": LOGISTIC, "scaffold": LOGISTIC, "fedbn": NORMED, "ditto": LOGISTIC}
KEPT = {"fedbn": FEDBN, "ditto": DITTO}


def federation(root: Path, strategy: str, gather: str = "10s", deadline: str = "60s") -> Federation:
    root.mkdir(exist_ok=True)
    clinics = [
        SitePlan(site, write_table(root / f"{site}.csv", seed)) for seed, site in enumerate(SITES)
    ]
    text = STUDY.replace("OWNER", OWNER).replace("MODEL", MODELS[strategy])
    text = text.replace("60s", deadline).replace("STRATEGY", f"{{name: {strategy}}}")
    return Federation(root / "f", gather=gather, clinics=clinics, study=text)


def own_of(fed: Federation, site: str, run_id: RunId) -> OwnTensors:
    return OwnTensors(fed.plan.site_folder(site) / "state" / "own", run_id)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, bytes]]:
    """By strategy: the final model's digest, and one hospital's own tensors."""

    async def run(strategy: str) -> tuple[bytes, bytes]:
        async with federation(tmp_path_factory.mktemp(strategy), strategy) as fed:
            return await outcome(fed, await fed.run(), strategy)

    return {strategy: asyncio.run(run(strategy)) for strategy in MODELS}


async def outcome(fed: Federation, run: RunState, strategy: str) -> tuple[bytes, bytes]:
    assert run.model is not None
    await fed.until(lambda: fed.ended("va"))
    kept = own_of(fed, "va", run.run_id).all()
    assert kept.keys() == ({KEPT[strategy]} if strategy in KEPT else set())
    return run.model.model_sha256, b"".join(values.tobytes() for values in kept.values())


@pytest.mark.parametrize("append", [9, 12, 15, 18])
@pytest.mark.parametrize("strategy", ["fedadam", "scaffold"])
async def test_a_coordinator_that_dies_between_rounds_goes_on_to_the_same_model(
    tmp_path: Path, strategy: str, append: int, undisturbed: dict[str, tuple[bytes, bytes]]
) -> None:
    async with federation(tmp_path, strategy) as fed:
        fed.kill_coordinator_at = append
        run = await fed.run()
        assert await outcome(fed, run, strategy) == undisturbed[strategy]
        assert fed.crashes == 1


@pytest.mark.parametrize("kind", [UploadEnd, Commit, RoundResult, Ready], ids=lambda k: k.__name__)
@pytest.mark.parametrize("strategy", ["scaffold", "fedbn", "ditto"])
async def test_a_node_that_dies_in_a_round_has_the_same_own_tensors_in_the_end(
    tmp_path: Path, strategy: str, kind: type, undisturbed: dict[str, tuple[bytes, bytes]]
) -> None:
    async with federation(tmp_path, strategy) as fed:
        fed.on_send("va", kind, fed.crash, skip=1 if kind is Ready else 0)
        run = await fed.run()
        assert all(names(record.survivors) == set(SITES) for record in run.history)
        assert await outcome(fed, run, strategy) == undisturbed[strategy]
        assert fed.crashes == 1


@pytest.mark.parametrize("strategy", list(MODELS))
async def test_a_round_that_is_voided_and_opened_again_leaves_no_trace_in_the_result(
    tmp_path: Path, strategy: str, undisturbed: dict[str, tuple[bytes, bytes]]
) -> None:
    """Batches come in the same order, and what the voided round left at a hospital is dropped."""
    async with federation(tmp_path, strategy, gather="20s", deadline="3s") as fed:
        for site in ("cleveland", "hungarian"):
            fed.on_send(site, UploadEnd, fed.kill)
        await fed.submit()
        await fed.until(lambda: bool(fed.state.history))
        assert fed.state.history[0].reason == "NOT_ENOUGH"
        for site in ("cleveland", "hungarian"):
            fed.start(site)
        run = await fed.finish()
        assert [record.opened for record in run.history] == [False, True, True, True]
        assert await outcome(fed, run, strategy) == undisturbed[strategy]


async def test_a_missed_round_leaves_a_hospitals_control_variate_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server moves c by |S|/N of the mean change, so that it stays the mean of all c_i."""
    kept: dict[str, NDArray[np.float32] | None] = {}
    settle = OwnTensors.settle

    def settled(own: OwnTensors, hd: HeaderDigest, *, counted: bool) -> None:
        settle(own, hd, counted=counted)
        kept[own._folder.parent.parent.name] = own.get(CONTROL)

    monkeypatch.setattr(OwnTensors, "settle", settled)
    async with federation(tmp_path, "scaffold", gather="300ms", deadline="2s") as fed:
        fed.on_send("va", UploadEnd, fed.kill)  # it has trained and staged, and is gone
        run = await fed.run()
        assert [names(record.survivors) for record in run.history][:2] == [set(SITES) - {"va"}] * 2
        assert own_of(fed, "va", run.run_id).get(CONTROL) is None
        three = [one for site in SITES if site != "va" and (one := kept[site]) is not None]
        assert len(three) == len(SITES) - 1
        assert all(control.any() for control in three)
        server = control_of(fed.study, model_of(fed, run))
        assert np.allclose(server, np.sum(three, axis=0) / len(SITES), atol=1e-5)


def model_of(fed: Federation, run: RunState) -> NDArray[np.float32]:
    assert run.model is not None
    schema = model_schema(fed.study)
    file = fed.plan.coordinator_folder / "state" / "objects" / run.model.object_sha256.hex()
    return schema.flat(read_model(file, schema))


async def test_each_round_goes_on_from_the_moments_of_the_last(tmp_path: Path) -> None:
    """The second round's mean follows from m; then v must be what FedAdam makes of the first."""
    async with federation(tmp_path, "fedadam") as fed:
        run = await fed.run()
        assert fed.service is not None
        journal = Journal().read(fed.service._shop.store.facts(run.run_id))
        first, second = (
            moments_of(fed, model) for model in models_of(journal) if model.moments_sha256
        )
    beta1, beta2 = 0.9, 0.99
    mean = (second[:, 0] - beta1 * first[:, 0]) / (1 - beta1)
    weights = slice(layouts.constant_count(fed.study), None)
    assert np.abs(mean[weights]).min() > 0
    wanted = beta2 * first[:, 1] + (1 - beta2) * mean**2
    assert np.allclose(second[weights, 1], wanted[weights], rtol=1e-4)


def moments_of(fed: Federation, model: ModelRef) -> NDArray[np.float64]:
    assert model.moments_sha256 is not None
    file = fed.plan.coordinator_folder / "state" / "objects" / model.moments_sha256.hex()
    return np.frombuffer(file.read_bytes(), "<f4").reshape(-1, 2).astype(np.float64)
