"""The simulation's jobs and services as containers run them, with folders for volumes.

They are forks of `tests.zygote`, but for the first job, which is started afresh.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hospital_node.data.heart import SITES
from researcher.local import free_address
from researcher.processes import Children, environment
from tests import forked
from tests.zygote import Zygote

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SHORT = """
schema: fedcare.study/v1
id: short-heart
purpose: research
dataset: heart
owner: {name: FedCare demonstration, organisation: fedcare-demo}
features:
  - {name: age, type: float, impute: mean}
  - {name: sex, type: category, levels: ["0", "1"], impute: most-frequent}
target: {type: binary, name: num, positive: "> 0"}
split: {test: 0.34, seed: 43}
normalise: federated
model: {kind: logistic}
train: {local_steps: 5}
federation: {rounds: 3, min_sites: 3}
seed: 1
"""


Run = Callable[..., Awaitable[tuple[int, dict[str, Any], str]]]
ZYGOTE = Zygote(
    *forked.WORKING,
    "researcher.studies",
    "researcher.simulation_cli",
    "researcher.simulation",
    "researcher.study_cli",
    "researcher.study_run",
    "researcher.client",
)


@pytest.fixture(scope="module", autouse=True)
def _zygote() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        forked.services_of(ZYGOTE, patch)
        yield
    ZYGOTE.close()


async def fedcare(*arguments: str) -> tuple[int, dict[str, Any], str]:
    code, out, progress = await forked.run(ZYGOTE, [*arguments, "--json"])
    return code, json.loads(out), progress


async def fresh(*arguments: str) -> tuple[int, dict[str, Any], str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "common.cli", *arguments, "--json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment(),
    )  # fmt: skip
    out, progress = await process.communicate()
    return process.returncode or 0, json.loads(out), progress.decode()


async def done(*arguments: str, run: Run = fedcare) -> dict[str, Any]:
    code, envelope, progress = await run(*arguments)
    assert code == 0, (envelope, progress)
    data: dict[str, Any] = envelope["data"]
    return data


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class World:
    """The volumes, and the jobs' command lines."""

    def __init__(self, root: Path, address: str) -> None:
        self.root = root
        self.address = address
        for site in ("coordinator", "researcher", *SITES):
            (root / "identity" / site).mkdir(parents=True, mode=0o700)
        for site in SITES:
            (root / "hospitals" / site).mkdir(parents=True, mode=0o700)
        for name in ("ca", "consortium", "results"):
            (root / name).mkdir(mode=0o700)
        self.inside = (
            "--tls-at", f"{root}/identity/{{site}}",
            "--state-at", f"{root}/state/{{site}}",
            "--confinement", "report",
        )  # fmt: skip

    def consortium(self) -> tuple[str, ...]:
        root = self.root
        return (
            "simulation", "consortium", "--ca", f"{root}/ca", "--identities", f"{root}/identity",
            "--out", f"{root}/consortium", "--listen", self.address, "--http", "none", *self.inside,
        )  # fmt: skip

    def hospitals(self) -> tuple[str, ...]:
        root = self.root
        return (
            "simulation", "hospitals", "--identities", f"{root}/identity",
            "--out", f"{root}/hospitals", "--coordinator", self.address, *self.inside,
        )  # fmt: skip

    def study(self, *more: str) -> tuple[str, ...]:
        return (
            "study", "run", f"{self.root}/short.yaml", "--coordinator", self.address,
            "--tls", f"{self.root}/identity/researcher", "--out", f"{self.root}/results", *more,
        )  # fmt: skip

    async def serve(self, children: Children) -> None:
        folder = self.root / "consortium"
        config = ["--config", "coordinator.yaml"]
        await children.start("coordinator", ["coordinator", "serve", *config], folder)
        for site in SITES:
            folder = self.root / "hospitals" / site
            await children.start(site, ["node", "serve", "--config", "node.yaml"], folder)


async def test_from_empty_volumes_to_a_verified_model_and_again(tmp_path: Path) -> None:
    world = World(tmp_path, free_address())
    await asyncio.to_thread((tmp_path / "short.yaml").write_text, SHORT)
    made = await done(*world.consortium(), run=fresh)
    assert [entry["action"] for entry in made["identities"]] == ["issued"] * 6
    await done(*world.hospitals())
    before = snapshot(tmp_path)
    assert {entry["action"] for entry in (await done(*world.consortium()))["files"]} == {"kept"}
    assert {entry["action"] for entry in (await done(*world.hospitals()))["files"]} == {"kept"}
    assert snapshot(tmp_path) == before

    # The researcher is first; the services come up under its eyes.
    first = asyncio.create_task(done(*world.study()))
    second = asyncio.create_task(done(*world.study()))
    await asyncio.sleep(1)
    async with Children(tmp_path / "logs") as children:
        await world.serve(children)
        async with children.guard():
            ran, twin = await asyncio.gather(first, second)
            again_code, again, progress = await fedcare(*world.study())
    assert (ran["state"], ran["verified"]) == ("finished", True)
    assert ran["rounds"] == 5
    # Two calls at the same time were one run, and one of them fetched its model.
    assert twin["run_id"] == ran["run_id"]
    assert sorted([ran["pulled"], twin["pulled"]]) == [False, True]
    assert again_code == 0
    assert (again["data"]["begin"], again["data"]["pulled"]) == ("finished-before", False)
    assert again["data"]["run_id"] == ran["run_id"]
    assert again["data"]["model_sha256"] == ran["model_sha256"]
    assert "round " not in progress
