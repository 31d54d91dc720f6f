"""What an operator and a researcher see when things go otherwise: real processes, mutual TLS.

A hospital refuses; too few are left; a run is cancelled; a node is killed in the middle of a
round and started again without any command; a node is stopped, asked, started twice.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.clock import SystemClock
from common.identity import load_identity
from common.study import canonical_json
from common.views import RunView
from researcher.client import Client
from researcher.local import FederationPlan, LocalFederation, SitePlan, build, free_address
from researcher.processes import Child
from tests.small_study import TIMING, small_study, write_table

pytestmark = pytest.mark.slow

SITES = ("east", "north", "south", "west")


async def fedcare(*arguments: object) -> tuple[int, str, str]:
    """Run a command; return its exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "common.cli", *map(str, arguments),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def data(*arguments: object) -> dict[str, Any]:
    code, out, err = await fedcare(*arguments, "--json")
    assert code == 0, out + err
    found: dict[str, Any] = json.loads(out)["data"]
    return found


@dataclass
class Town:
    """A running federation, and the researcher's connection to it."""

    plan: FederationPlan
    federation: LocalFederation
    client: Client

    @property
    def to(self) -> tuple[object, ...]:
        return "--coordinator", self.federation.address, "--tls", self.plan.researcher_folder

    async def submit(self, rounds: int, min_sites: int) -> str:
        submitted = await self.client.submit(canonical_json(small_study(rounds, min_sites)))
        return str(submitted.run_id)

    async def until(self, run: str, true: Callable[[RunView], bool]) -> RunView:
        """Follow a run until something holds; it must not end before."""
        async with asyncio.timeout(40):
            async for view in self.client.watch(run):
                if true(view):
                    return view
        raise AssertionError(f"the run ended first: {view}")

    async def node_status(self, site: str) -> dict[str, Any]:
        return await data("node", "status", "--config", self.plan.site_folder(site) / "node.yaml")


@asynccontextmanager
async def town(
    folder: Path, sites: tuple[str, ...], refuser: str | None = None
) -> AsyncIterator[Town]:
    """Start a federation; `refuser` is a hospital whose policy lets no research in."""
    tables = [
        SitePlan(name, write_table(folder / f"{name}.csv", seed)) for seed, name in enumerate(sites)
    ]
    plan = FederationPlan(folder / "fed", "heart", small_study(1, 3), tables, TIMING)
    address = free_address()
    build(plan, address)
    if refuser is not None:
        path = plan.site_folder(refuser) / "policy.yaml"
        policy = yaml.safe_load(path.read_text())
        policy["allow"]["purposes"] = ["quality"]
        path.write_text(yaml.safe_dump(policy, sort_keys=False))
    async with LocalFederation(plan, address) as federation:
        await federation.start()
        me = load_identity(plan.researcher_folder, now_unix=SystemClock().unix())
        async with Client(address, me) as client:
            yield Town(plan, federation, client)


def lines_of(path: Path, word: str) -> int:
    """Return the number, from 1, of the first line that holds a word."""
    return next(n for n, line in enumerate(path.read_text().splitlines(), 1) if word in line)


@pytest.mark.timeout(90)
async def test_a_refusal_is_told_with_its_policy_line_and_ends_the_run_only_below_min_sites(
    tmp_path: Path,
) -> None:
    async with town(tmp_path, SITES, refuser="south") as place:
        line = lines_of(place.plan.site_folder("south") / "policy.yaml", "purposes")
        run = await place.submit(1, 3)
        code, out, err = await fedcare("run", "watch", run, *place.to)
        assert code == 0, err
        refusal = next(row for row in out.splitlines() if row.startswith("south"))
        assert "POLICY_PURPOSE" in refusal
        assert f"policy.yaml:{line}" in refusal
        assert str(tmp_path) not in out + err  # a folder of the hospital's is nobody's business
        code, out, _ = await fedcare("run", "show", run, *place.to)
        assert code == 0
        assert refusal in out
        everybody = {
            site for entry in (await place.client.run(run)).history for site in entry.survivors
        }
        assert everybody == {"east", "north", "west"}

        run = await place.submit(1, 4)
        code, out, err = await fedcare("run", "watch", run, *place.to)
        assert (code, err.count("error FC-6002 RUN_FAILED")) == (1, 1), out + err
        reason = next(row for row in err.splitlines() if row.startswith("error"))
        for part in ("south", "POLICY_PURPOSE", f"policy.yaml:{line}", "4"):
            assert part in reason
        shown = await data("run", "show", run, *place.to)
        assert shown["state"] == "failed"
        assert "south" in shown["reason"]
        status = await place.node_status("south")
        assert (status["running"], status["connected"]) == (True, True)
        refused = [entry for entry in status["decisions"] if not entry["accepted"]]
        assert len(refused) == 2


@pytest.mark.timeout(90)
async def test_a_cancelled_run_ends_everywhere_with_its_reason(tmp_path: Path) -> None:
    async with town(tmp_path, SITES[:3]) as place:
        run = await place.submit(1000, 3)
        await place.until(run, lambda view: view.round >= 2)
        ended = await data("run", "cancel", run, "--reason", "wrong study", *place.to)
        assert ended["state"] == "cancelled"
        assert "wrong study" in ended["reason"]
        code, out, err = await fedcare("run", "watch", run, *place.to)
        assert code == 1, out
        assert "error FC-6003 RUN_CANCELLED" in err
        assert "wrong study" in err
        again = await data("run", "cancel", run, "--reason", "twice", *place.to)
        assert "wrong study" in again["reason"]
        for site in SITES[:3]:
            async with asyncio.timeout(20):
                while not (await place.node_status(site))["decisions"][0]["ended"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        code, out, _ = await fedcare(
            "coordinator", "status", "--config", place.plan.coordinator_folder / "coordinator.yaml"
        )
        assert (code, "no run is open" in out) == (0, True)
        # The hospitals are free for the next study.
        run = await place.submit(1, 3)
        await place.until(run, lambda view: view.state.value == "finished")


async def restart(place: Town, site: str) -> Child:
    serve = ["node", "serve", "--config", "node.yaml"]
    return await place.federation.children.start(site, serve, place.plan.site_folder(site))


@pytest.mark.timeout(90)
async def test_a_node_killed_in_a_round_and_started_again_takes_part_again_by_itself(
    tmp_path: Path,
) -> None:
    """All three are needed, so the run can only finish with the one that was killed."""
    async with town(tmp_path, SITES[:3]) as place:
        run = await place.submit(60, 3)
        await place.until(run, lambda view: view.round >= 3)
        victim = place.federation.children["north"]
        victim.process.send_signal(signal.SIGKILL)
        assert await victim.ended == -signal.SIGKILL
        await place.until(
            run,
            lambda view: any(s.site == "north" and not s.connected for s in view.sites),
        )
        status = await place.node_status("north")
        assert (status["running"], status["connected"]) == (False, False)
        at = (await place.client.run(run)).round
        assert at < 60
        await restart(place, "north")
        view = await place.until(run, lambda view: view.state.final)
        assert view.state.value == "finished", view.reason
        trained = [entry for entry in view.history if entry.kind == "train" and entry.survivors]
        assert len(trained) == 60
        assert all("north" in entry.survivors for entry in trained)


@pytest.mark.timeout(90)
async def test_a_node_is_asked_started_twice_and_stopped(tmp_path: Path) -> None:
    async with town(tmp_path, SITES[:3]) as place:
        folder = place.plan.site_folder("east")
        config = folder / "node.yaml"
        async with asyncio.timeout(20):
            while not all(s.connected for s in (await place.client.status()).sites):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert (await place.node_status("east"))["connected"] is True
        code, out, err = await fedcare("node", "serve", "--config", config)
        assert (code, out) == (4, "")
        assert err.count("\n") == 1
        assert "service.failed code=FC-7002 " in err
        assert "name=STATE_LOCKED" in err
        assert (await place.node_status("east"))["running"] is True

        child = place.federation.children["east"]
        child.process.terminate()
        assert await child.ended == 0
        words = child.words.read_text()
        assert words.index("service.stopping") < words.index("service.stopped")
        status = await place.node_status("east")
        assert (status["running"], status["connected"]) == (False, False)
        code, out, _ = await fedcare("node", "status", "--config", config)
        assert (code, "not running" in out) == (0, True)

        coordinator = place.federation.children["coordinator"]
        code, _, err = await fedcare(
            "coordinator", "serve", "--config", place.plan.coordinator_folder / "coordinator.yaml"
        )
        assert (code, "service.failed code=FC-7002 " in err) == (4, True)
        coordinator.process.terminate()
        assert await coordinator.ended == 0
        code, _, err = await fedcare(
            "coordinator", "status", "--config", place.plan.coordinator_folder / "coordinator.yaml"
        )
        assert (code, "error FC-2001 UNREACHABLE: " in err) == (2, True)
        code, _, err = await fedcare("run", "list", *place.to)
        assert (code, "error FC-2001 UNREACHABLE: " in err) == (2, True)
