"""Health and metrics of real processes: what they say while they serve, stop, hang and die.

The processes are forks of `tests.zygote`, but for the first question for each service's health,
which is a command started afresh, as a container's health check does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from common.certificates import Role
from common.clock import SystemClock
from common.errors import BY_CODE
from common.exposition import ROUND_KINDS, SECONDS, Metric
from common.identity import Identity, load_identity
from common.pki import issue
from common.study import canonical_json
from common.transport.interceptors import CALLS_OF_ONE_PEER
from common.transport.status import from_rpc
from common.transport.tls import channel
from common.version import VERSION
from coordinator import metrics as coordinator_metrics
from fedcare.v1 import operations_pb2 as ops
from fedcare.v1.operations_pb2_grpc import OperationsStub
from hospital_node import metrics as node_metrics
from researcher.client import Client
from researcher.local import FederationPlan, LocalFederation, SitePlan, build, free_address, write
from tests import forked
from tests.small_study import TIMING, small_study, write_table
from tests.zygote import Zygote

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

STUDY = small_study()
SITES = ("east", "north", "south")
WATCHED = "east"
PATIENCE_S = 40.0
ZYGOTE = Zygote()


@pytest.fixture(scope="module", autouse=True)
def _zygote() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        forked.services_of(ZYGOTE, patch)
        yield
    ZYGOTE.close()


class Place:
    """A federation with an HTTP port at its coordinator and at one of its nodes."""

    def __init__(self, folder: Path) -> None:
        tables = [
            SitePlan(name, write_table(folder / f"{name}.csv", seed))
            for seed, name in enumerate(SITES)
        ]
        self.plan = FederationPlan(folder / "fed", "heart", STUDY, tables, TIMING)
        self.address = free_address()
        build(self.plan, self.address)
        self.federation = LocalFederation(self.plan, self.address)
        self.coordinator_file = self.plan.coordinator_folder / "coordinator.yaml"
        self.node_file = self.plan.site_folder(WATCHED) / "node.yaml"
        for path in (self.coordinator_file, self.node_file):
            write(path, {**yaml.safe_load(path.read_text()), "http": "127.0.0.1:0"})

    def identity(self, role: Role) -> Identity:
        now = SystemClock().unix()
        folder = self.plan.folder / f"as-{role.value}"
        if not folder.exists():
            hosts = ("localhost",) if role is Role.COORDINATOR else ()
            name = WATCHED if role is Role.HOSPITAL else "somebody"
            issue(self.plan.folder / "pki", role, name, now_unix=now, hosts=hosts, out=folder)
        return load_identity(folder, now_unix=now)

    async def start(self) -> None:
        """Start the coordinator and the one node with a port, as hospitals do: in any order."""
        children = self.federation.children
        folder = self.plan.coordinator_folder
        await children.start("coordinator", ["coordinator", "serve"], folder)
        await self.start_node()
        await until(await self.http("coordinator"), "/readyz", 200)

    async def start_node(self) -> None:
        folder = self.plan.site_folder(WATCHED)
        await self.federation.children.start(WATCHED, ["node", "serve"], folder)

    async def http(self, name: str) -> str:
        """Return where a process serves HTTP, as its log says."""
        words = self.federation.children[name].words
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for word in words.read_text().split():
                    if word.startswith("http="):
                        return word.removeprefix("http=")
                await asyncio.sleep(0.05)

    async def health(self, *arguments: object) -> tuple[int, dict[str, Any]]:
        """Run a health command; return its exit code and its envelope."""
        code, out, err = await forked.run(ZYGOTE, [*map(str, arguments), "--json"])
        assert err == ""
        found: dict[str, Any] = json.loads(out)
        return code, found

    async def fresh_health(self, *arguments: object) -> tuple[int, dict[str, Any]]:
        """Run a health command in a new interpreter."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "common.cli", *map(str, arguments), "--json",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert err == b""
        found: dict[str, Any] = json.loads(out)
        return process.returncode or 0, found

    async def coordinator(self) -> tuple[int, dict[str, Any]]:
        return await self.health("coordinator", "health", "--config", self.coordinator_file)

    async def node(self, *more: str) -> tuple[int, dict[str, Any]]:
        return await self.health("node", "health", "--config", self.node_file, *more)


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


async def until(address: str, path: str, status: int, words: str = "") -> str:
    """Ask until a page answers so."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found, text = await asyncio.to_thread(get, address, path)
            if found == status and words in text:
                return text
            await asyncio.sleep(0.1)


SERVING = (0, {"status": "SERVING", "serving": True})


async def test_health_of_processes_that_serve_hang_stop_and_die(tmp_path: Path) -> None:
    place = Place(tmp_path)
    config = ("health", "--config")
    assert (await place.fresh_health("coordinator", *config, place.coordinator_file))[0] == 2
    code, said = await place.fresh_health("node", *config, place.node_file)
    assert code == 2
    assert "no node is running in" in said["error"]["message"]
    assert "fedcare node serve" in said["error"]["fix"]

    async with place.federation as federation:
        await place.start()
        children = federation.children
        node_http = await place.http(WATCHED)
        coordinator_http = await place.http("coordinator")
        assert await until(node_http, "/readyz", 200) == "ready\n"
        assert await until(coordinator_http, "/readyz", 200) == "ready\n"
        code, said = await place.coordinator()
        assert (code, said["data"]) == SERVING
        for more in ((), ("--link",)):
            code, said = await place.node(*more)
            assert (code, said["data"]) == SERVING

        # A process that does not move: it listens, and nobody answers.
        for name, ask in (("coordinator", place.coordinator), (WATCHED, place.node)):
            os.kill(children[name].pid, signal.SIGSTOP)
            try:
                code, said = await ask()
            finally:
                os.kill(children[name].pid, signal.SIGCONT)
            assert (code, said["data"]) == (1, {"status": "NO_ANSWER", "serving": False})

        # Without its coordinator a node is well, and its link is not.
        await children.stop("coordinator")
        assert (await place.coordinator())[0] == 2
        await until(node_http, "/readyz", 503, "not connected, ")
        assert await until(node_http, "/healthz", 200) == "ok\n"
        assert (await place.node())[0] == 0
        code, said = await place.node("--link")
        assert (code, said["data"]["status"]) == (1, "NOT_SERVING")

        # kill -9 leaves the socket; the next process takes its place.
        folder = place.plan.site_folder(WATCHED)
        children[WATCHED].stopping = True
        children[WATCHED].process.kill()
        await children[WATCHED].ended
        assert (folder / "state" / "health.sock").is_socket()
        assert (await place.node())[0] == 2
        await place.start_node()
        async with asyncio.timeout(PATIENCE_S):
            while (await place.node())[0] != 0:
                pass
        await children.stop(WATCHED)
        assert not (folder / "state" / "health.sock").exists()


async def test_every_role_may_ask_and_watch_and_nobody_holds_more_than_its_calls(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path)
    async with place.federation:
        await place.start()
        for role in Role:
            async with channel(place.address, place.identity(role)) as lane:
                stub = health_pb2_grpc.HealthStub(lane)
                for name in ("", "fedcare.v1.Aggregation", "fedcare.v1.Operations"):
                    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
                    assert answer.status == health_pb2.HealthCheckResponse.SERVING

        request = health_pb2.HealthCheckRequest()
        mine, other = place.identity(Role.RESEARCHER), place.identity(Role.OPERATOR)
        async with channel(place.address, mine) as lane, channel(place.address, mine) as second:
            watches = [
                health_pb2_grpc.HealthStub(lane).Watch(request) for _ in range(CALLS_OF_ONE_PEER)
            ]
            for watch in watches:
                await watch.read()
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await health_pb2_grpc.HealthStub(second).Check(request)
            assert from_rpc(failed.value, address="x").name == "BUSY"
            async with channel(place.address, other) as third:
                await health_pb2_grpc.HealthStub(third).Check(request)
            # Asked to stop, the coordinator tells each watcher and does not wait for it.
            before = asyncio.get_running_loop().time()
            await place.federation.children.stop("coordinator")
            assert asyncio.get_running_loop().time() - before < 4
            assert (await watches[0].read()).status == (health_pb2.HealthCheckResponse.NOT_SERVING)


# --- metrics -------------------------------------------------------------------------------

PROCESS = {
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_cpu_seconds",
    "process_open_fds",
    "process_max_fds",
    "python_info",
}
BOUNDS = {*(f"{float(bound)}" for bound in SECONDS), "+Inf"}
LABELS = {
    "fedcare_build_info": {"version": {VERSION}},
    "fedcare_hospital_connected": {"site": set(SITES)},
    "fedcare_runs": {"state": set(coordinator_metrics.RUN_STATES)},
    "fedcare_rounds": {"kind": set(ROUND_KINDS), "outcome": {"closed", "voided"}},
    "fedcare_round_duration_seconds": {"kind": set(ROUND_KINDS), "le": BOUNDS},
    "fedcare_round_dropouts": {"site": set(SITES)},
    "fedcare_node_rounds": {"kind": set(ROUND_KINDS), "outcome": {"opened", "voided", "refused"}},
    "fedcare_node_training_duration_seconds": {"kind": set(ROUND_KINDS), "le": BOUNDS},
    "fedcare_node_studies": {"decision": {"accepted", "refused"}},
}
"""Every label of every metric, and all values it may have in this federation.

The only one with a hospital's name are its connection and its dropouts: neither is a count of
records, a loss or a figure (F87).
"""

CODES = {"fedcare_calls_refused", "fedcare_protocol_refusals"}
"""Metrics whose one label is a code of the catalogue; a series begins with its first refusal."""


def check_closed(text: str, table: tuple[Metric, ...]) -> dict[str, float]:
    """Hold an exposition against the closed lists; return its samples."""
    families = {family.name: family for family in text_string_to_metric_families(text)}
    declared = {metric.name.removesuffix("_total"): metric for metric in table}
    assert set(families) == set(declared) | PROCESS
    samples = {}
    for name, family in families.items():
        if name in PROCESS:
            continue
        assert family.type == declared[name].kind.value
        seen: dict[str, set[str]] = {}
        for sample in family.samples:
            for label, value in sample.labels.items():
                seen.setdefault(label, set()).add(value)
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            samples[f"{sample.name}[{labels}]"] = sample.value
        if name in CODES:
            assert not seen or (set(seen) == {"code"} and seen["code"] <= set(BY_CODE)), name
            continue
        assert seen == LABELS.get(name, {}), name
        assert set(seen) - {"le"} == set(declared[name].labels), name
    return samples


async def test_metrics_after_a_run_are_right_and_tell_nothing_of_one_hospitals_data(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path)
    async with place.federation as federation:
        await federation.start()
        coordinator, node = await place.http("coordinator"), await place.http(WATCHED)
        for text, table in (
            (await until(coordinator, "/metrics", 200), coordinator_metrics.TABLE),
            (await until(node, "/metrics", 200), node_metrics.TABLE),
        ):
            check_closed(text, table)
        owner = load_identity(place.plan.researcher_folder, now_unix=SystemClock().unix())
        async with Client(place.address, owner) as client, asyncio.timeout(2 * PATIENCE_S):
            run = await client.submit(canonical_json(STUDY))
            views = [view async for view in client.watch(run.run_id)]
        text = await until(coordinator, "/metrics", 200, 'fedcare_runs{state="finished"} 1.0')
        after = check_closed(text, coordinator_metrics.TABLE)
        ended = [(entry.kind, entry.state) for entry in views[-1].history]
        for kind in ROUND_KINDS:
            closed = sum(entry == (kind, "CLOSED") for entry in ended)
            assert closed > 0
            assert after[f"fedcare_rounds_total[kind={kind},outcome=closed]"] == closed
            assert after[f"fedcare_round_duration_seconds_count[kind={kind}]"] == closed
        assert after["fedcare_models_published_total[]"] == 1
        assert after["fedcare_upload_bytes_total[]"] > 0
        assert after["fedcare_download_bytes_total[]"] > 0
        assert after["fedcare_hospitals_waited_for[]"] == after["fedcare_round_open_seconds[]"] == 0
        async with channel(place.address, place.identity(Role.HOSPITAL)) as lane:
            with pytest.raises(grpc.aio.AioRpcError):
                await OperationsStub(lane).GetStatus(ops.GetStatusRequest())
        text = await until(coordinator, "/metrics", 200)
        assert 'fedcare_calls_refused_total{code="FC-2007"} 1.0' in text
        assert all(after[f"fedcare_hospital_connected[site={site}]"] == 1 for site in SITES)
        expiry = after["fedcare_certificate_expiry_timestamp_seconds[]"]
        assert 86400 < expiry - SystemClock().unix() <= 2 * 86400
        assert after["fedcare_state_free_bytes[]"] > 0

        text = await until(node, "/metrics", 200, 'fedcare_node_studies{decision="accepted"} 1.0')
        here = check_closed(text, node_metrics.TABLE)
        for kind in ROUND_KINDS:
            closed = sum(entry == (kind, "CLOSED") for entry in ended)
            assert here[f"fedcare_node_rounds_total[kind={kind},outcome=opened]"] == closed
            name = "fedcare_node_training_duration_seconds_count"
            assert here[f"{name}[kind={kind}]"] == closed
        assert here["fedcare_node_link_attempts_total[]"] >= 1
        assert here["fedcare_node_connected[]"] == 1
