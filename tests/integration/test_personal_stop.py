"""A node that stops while it makes its personal model: at once, cleanly, and it is made later."""

from __future__ import annotations

import asyncio
import io
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.site import Site
from common.study import Study, parse_study
from hospital_node.going_on import go_on
from hospital_node.personal import artefact, make
from hospital_node.personal.choose import Choice, Rows, choose
from hospital_node.personal.fits import Weights
from hospital_node.personal_state import Own
from researcher import sim
from researcher.engines import local_engine
from researcher.local import FederationPlan
from researcher.personal import collect, made
from researcher.progress import LineDisplay
from tests.integration.test_sim import STUDY, write_site

NAMES = ("north", "east", "west")


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def study() -> Study:
    return parse_study(STUDY)


@pytest.fixture
def plan(tmp_path: Path, study: Study) -> Iterator[FederationPlan]:
    sites: list[Site] = [write_site(tmp_path, name, seed) for seed, name in enumerate(NAMES)]
    with sim._planned(study, sites) as found:
        yield found


class Endless:
    """A comparison of candidates that never comes to its end, until it is told to."""

    def __init__(self) -> None:
        self.sites: set[str] = set()
        self.patient = True

    def __call__(
        self, study: Study, site: str, rows: Rows, federated: Weights, own: Own | None
    ) -> Choice:
        self.sites.add(site)
        while self.patient:
            go_on()
            time.sleep(0.002)
        return choose(study, site, rows, federated, own)


async def run_until_all_make(plan: FederationPlan, endless: Endless) -> str:
    """Run the study; leave the federation while every hospital makes its model."""
    words = io.StringIO()
    async with sim._federation(plan, words, local_engine) as (service, _):
        run = await service.submit(sim._submission(plan), "test")
        view = await sim._follow(service, run.run_id, LineDisplay())
        assert view.state.value == "finished", words.getvalue()
        async with asyncio.timeout(20):
            while endless.sites != set(NAMES):  # noqa: ASYNC110 - threads' doing
                await asyncio.sleep(0.01)
        began = time.monotonic()
    assert time.monotonic() - began < 2
    return str(run.run_id)


async def come_back(plan: FederationPlan, run_id: str) -> None:
    async with sim._federation(plan, io.StringIO(), local_engine):
        async with asyncio.timeout(60):
            await made(plan, run_id)


def state_of(plan: FederationPlan, site: str) -> Path:
    return plan.site_folder(site) / "state" / "personal"


def working() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "work"]


def test_a_stop_gives_the_model_up_and_the_next_start_makes_the_same_one(
    plan: FederationPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Endless()
    monkeypatch.setattr(make, "choose", endless)
    run_id = asyncio.run(run_until_all_make(plan, endless))
    assert working() == []
    for site in NAMES:
        assert state_of(plan, site).is_dir()
        assert list(state_of(plan, site).iterdir()) == []  # no part, and no word of a failure
    endless.patient = False
    asyncio.run(come_back(plan, run_id))
    found = collect(plan, run_id)
    assert set(found) == set(NAMES)
    assert working() == []


def test_a_model_that_was_half_written_is_made_anew(
    plan: FederationPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Endless()
    endless.patient = False
    monkeypatch.setattr(make, "choose", endless)
    run_id = asyncio.run(run_until_all_make(plan, endless))
    asyncio.run(come_back(plan, run_id))
    before = {site: model.flat.tobytes() for site, model in collect(plan, run_id).items()}
    north = state_of(plan, "north") / run_id
    north.rename(north.with_name(f"{run_id}.part"))  # as a process leaves it that is killed
    (north.with_name(f"{run_id}.part") / artefact.CHOICE_FILE).unlink()
    asyncio.run(come_back(plan, run_id))
    after = {site: model.flat.tobytes() for site, model in collect(plan, run_id).items()}
    assert after == before
    assert [path.name for path in north.parent.iterdir()] == [run_id]
