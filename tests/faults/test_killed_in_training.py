"""`kill -9` of a real node in training: the model is that of an undisturbed run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml

from common.failpoints import VARIABLE
from researcher.local import FederationPlan
from tests import forked
from tests.faults.record import record
from tests.faults.stopped import running
from tests.small_study import small_study
from tests.zygote import Zygote

pytestmark = pytest.mark.slow

SITES = ("east", "north", "south")
STUDY = small_study(1, 3, deadline="120s", local_steps=2_000)  # a second or more

ZYGOTE = Zygote(*forked.WORKING)


def often(plan: FederationPlan) -> None:
    """The hospital that kills itself writes checkpoints many times a round, the others none."""
    path = plan.site_folder("north") / "node.yaml"
    node = yaml.safe_load(path.read_text("utf-8"))
    path.write_text(yaml.safe_dump({**node, "training": {"checkpoint_s": 0.05}}))


@pytest.mark.fault("F09")
@pytest.mark.timeout(500)
async def test_a_node_killed_in_training_goes_on_and_the_model_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "alone", STUDY, SITES) as federation:
        alone = await federation.model()
    monkeypatch.setenv(VARIABLE, "node.checkpoint.after=kill@1")
    async with running(tmp_path / "killed", STUDY, SITES, often) as federation:
        checkpoints = tmp_path / "killed" / "fed" / "sites" / "north" / "state" / "checkpoints"
        await federation.dies("north")
        monkeypatch.delenv(VARIABLE)
        await federation.start("north")
        await federation.until("north", "training.resumed")
        assert await federation.model() == alone
        left = await asyncio.to_thread(lambda: list(checkpoints.iterdir()))
        assert left == [], "no checkpoint outlives its round"
    record("F09", trials=1, failures=0)
