"""A researcher's day on the command line, against a real federation of three hospitals."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from common.study import parse_study
from researcher.local import FederationPlan, LocalFederation, SitePlan, build, free_address
from tests.small_study import small_text, write_table

pytestmark = pytest.mark.slow

STUDY = small_text()


async def fedcare(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "common.cli", *arguments, "--json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def data(*arguments: str) -> dict[str, Any]:
    code, out = await fedcare(*arguments)
    assert code == 0, out
    found: dict[str, Any] = json.loads(out)["data"]
    return found


async def failure(*arguments: str) -> tuple[int, str]:
    code, out = await fedcare(*arguments)
    error = json.loads(out)["error"]
    assert set(error) == {"code", "message", "fix"}
    return code, error["code"]


async def test_submit_watch_show_pull_verify_cancel(tmp_path: Path) -> None:
    sites = [
        SitePlan(name, write_table(tmp_path / f"{name}.csv", seed))
        for seed, name in enumerate(("north", "east", "west"))
    ]
    plan = FederationPlan(tmp_path / "fed", "heart", parse_study(STUDY), sites)
    address = free_address()
    build(plan, address)
    study, model = str(tmp_path / "study.yaml"), str(tmp_path / "model")
    await asyncio.to_thread((tmp_path / "study.yaml").write_text, STUDY)
    to = ("--coordinator", address, "--tls", str(plan.researcher_folder))

    assert await failure("study", "list", *to) == (2, "FC-2001")
    async with LocalFederation(plan, address) as federation:
        await federation.start()
        async with federation.children.guard():
            await _a_day(study, model, to, plan)
    ca = str(tmp_path / "fed" / "pki" / "ca.crt")
    assert (await data("model", "verify", model, "--ca", ca))["verified"] is True
    assert (await data("model", "show", model))["rounds"] == 4


async def _a_day(study: str, model: str, to: tuple[str, ...], plan: FederationPlan) -> None:
    submitted = await data("study", "submit", study, "--seed", "3", *to)
    run = submitted["run_id"]
    watched = await data("run", "watch", run, *to)
    assert watched["state"] == "finished"
    assert [entry["kind"] for entry in watched["history"]] == [
        "statistics", "train", "train", "evaluate",
    ]  # fmt: skip
    shown = await data("run", "show", run, *to)
    assert shown["model_sha256"] == watched["model_sha256"]
    assert shown["metrics"]["pooled"]["accuracy"] is not None
    listed = await data("study", "list", *to)
    assert [entry["runs"] for entry in listed["studies"]] == [[run]]
    described = await data("study", "show", "small-study", *to)
    assert described["hash"] == submitted["hash"]
    assert described["study"]["seed"] == 3

    pulled = await data("model", "pull", run, "--out", model, *to)
    assert pulled["model_sha256"] == watched["model_sha256"]
    assert await failure("model", "pull", run, "--out", model, *to) == (4, "FC-1007")
    assert await failure("run", "show", "nothing", *to) == (1, "FC-6004")

    hospital = (*to[:3], str(plan.site_folder("north")))
    assert await failure("study", "list", *hospital) == (1, "FC-2007")

    again = (await data("study", "submit", study, "--seed", "4", *to))["run_id"]
    cancelled = await data("run", "cancel", again, "--reason", "enough", *to)
    if cancelled["state"] == "cancelled":  # it may have finished before
        assert "enough" in cancelled["reason"]
        assert await failure("run", "watch", again, *to) == (1, "FC-6003")
