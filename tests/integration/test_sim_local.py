"""A whole study of mode patient-local in one process: what is charged is what was done."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.ids import NodeId, site_name
from common.messages import UploadAck, UploadChunk, UploadStart
from common.privacy.accountant import NOTHING, add, epsilon, step_rdp
from common.privacy.noise import NoiseStream
from common.secagg.header import Header
from common.secagg.messages import UploadEnd
from common.study import parse_study
from common.study_privacy import charged
from hospital_node.ledger import Charge, Ledger
from hospital_node.private import local_steps
from hospital_node.private.local_steps import LocalTraining
from researcher.memory_link import MemoryLink
from researcher.progress import LineDisplay
from researcher.sim import simulate
from tests.integration.test_sim import write_site

SITES = ("north", "east", "west")
ROUNDS, STEPS = 3, 2
STUDY = f"""
schema: fedcare.study/v1
id: small-local-study
purpose: research
dataset: heart
owner: {{name: Somebody, organisation: uni-x}}
features:
  - {{name: age, type: float, impute: drop-row, centre: 60, scale: 10}}
  - {{name: sex, type: category, levels: ["0", "1"]}}
target: {{type: binary, name: sick}}
split: {{test: 0.3, seed: 1}}
normalise: fixed
model: {{kind: logistic}}
train: {{lr: 1.0, local_steps: {STEPS}}}
federation: {{weights: {{north: 160, east: 160, west: 80}}, rounds: {ROUNDS}, min_sites: 3}}
privacy:
  dp: {{mode: patient-local, epsilon: 3, delta: 1.0e-5, sampling: 0.7, spare_rounds: 0}}
"""


@dataclass
class Seen:
    """What the hospitals did, in order, and what they wrote into their ledgers."""

    story: dict[str, list[str]] = field(default_factory=dict)
    charges: dict[str, list[Charge]] = field(default_factory=dict)
    noised: list[int] = field(default_factory=list)
    """The size of each sum that noise was added to, over all hospitals."""

    def note(self, site: str, what: str) -> None:
        self.story.setdefault(site, []).append(what)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Seen:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    noted = Seen()
    append, summed, upload = Ledger.append, LocalTraining._sum, MemoryLink.upload

    def charge(self: Ledger, one: Charge) -> None:
        append(self, one)
        site = site_name(NodeId(self._node))
        noted.charges.setdefault(site, []).append(one)
        noted.note(site, "charge")

    def step(
        self: LocalTraining, weights: NDArray[np.float32], header: Header
    ) -> NDArray[np.int64]:
        noted.note(self.site, "step")
        return summed(self, weights, header)

    async def send(
        self: MemoryLink, start: UploadStart, chunks: AsyncIterator[UploadChunk], end: UploadEnd
    ) -> UploadAck:
        noted.note(site_name(self._node), "upload")
        return await upload(self, start, chunks, end)

    class Counted(NoiseStream):
        def add_to(self, out: NDArray[np.int64], word_offset: int) -> None:
            noted.noised.append(out.size)
            super().add_to(out, word_offset)

    monkeypatch.setattr(Ledger, "append", charge)
    monkeypatch.setattr(LocalTraining, "_sum", step)
    monkeypatch.setattr(MemoryLink, "upload", send)
    monkeypatch.setattr(local_steps, "NoiseStream", Counted)
    return noted


def test_a_local_study_charges_first_and_charges_exactly_the_steps_it_takes(
    seen: Seen, tmp_path: Path
) -> None:
    study = parse_study(STUDY)
    sites = [write_site(tmp_path, name, place, rows=240) for place, name in enumerate(SITES)]
    result = simulate(study, sites, LineDisplay(), time.monotonic())
    assert result.comparison.federated.pooled["auroc"] > 0.8  # type: ignore[operator]
    told = result.data["dp"]
    assert isinstance(told, dict)
    assert told == {**told, "mode": "patient-local", "stated_epsilon": 3.0, "delta": 1e-5}
    z = study.privacy.dp.noise_multiplier
    assert z is not None
    one_round = ["charge", *["step"] * STEPS, "upload"]
    for site in SITES:
        assert seen.story[site] == one_round * ROUNDS
        spent = brute = NOTHING
        for charge in seen.charges[site]:
            spent = add(spent, charge.rdp)
            assert (charge.steps, charge.h, charge.p, charge.z) == (STEPS, 1, 0.7, z)
            assert charge.sigma_loc == z * charge.delta_int
        for _ in range(seen.story[site].count("step")):
            brute = add(brute, step_rdp(1 / z, 0.7))
        assert epsilon(spent, 1e-5).epsilon == pytest.approx(epsilon(brute, 1e-5).epsilon, 1e-12)
        assert epsilon(spent, 1e-5).epsilon == pytest.approx(charged(study), 1e-12)
    assert charged(study) <= 3
    assert told["epsilon"] == pytest.approx(charged(study), 1e-12)
    weights = 3  # age, sex, the bias
    assert seen.noised == [weights] * (len(SITES) * ROUNDS * STEPS)
