"""A real Prometheus, with the shipped configuration, on a real coordinator and a real node.

Debian's package `prometheus` brings `prometheus` and `promtool`; without them these tests are
skipped and say so. tests/unit/test_monitoring_files.py needs neither. Coordinator and nodes are
forks of `tests.zygote`.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.clock import SystemClock
from common.errors import FedError
from common.identity import load_identity
from common.study import canonical_json
from researcher.client import Client
from researcher.local import FederationPlan, LocalFederation, SitePlan, build, free_address, write
from researcher.processes import Child
from tests import forked, monitoring
from tests.small_study import TIMING, small_study, write_table
from tests.zygote import Zygote

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("promtool") is None,
        reason="prometheus and promtool are not installed: apt-get install prometheus",
    ),
]

SITES = ("east", "north", "south")
PATIENCE_S = 40.0
ZYGOTE = Zygote(*forked.WORKING)


@pytest.fixture(scope="module", autouse=True)
def _zygote() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        forked.services_of(ZYGOTE, patch)
        yield
    ZYGOTE.close()


EMPTY_IN_A_GOOD_RUN = {
    "Share of the round's time left": "no round is open",
    "Protocol refusals by code": "no step was refused",
    "Alerts firing": "nothing is wrong",
}


def promtool(*arguments: object, given: str | None = None) -> str:
    """Run promtool; return what it says. Its warnings fail the test like its errors."""
    done = subprocess.run(
        ["promtool", *map(str, arguments)],  # noqa: S607 - where it lies is the package's business
        input=given, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    said = promtool("check", "config", monitoring.HERE / "prometheus.yml")
    assert f"SUCCESS: {len(list(monitoring.rules()))} rules found" in said


@pytest.mark.parametrize("cases", monitoring.RULE_TESTS, ids=lambda path: path.stem)
def test_every_alert_fires_and_is_silent_when_its_case_says_so(cases: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", cases)


# --- a federation that is watched ---------------------------------------------------------------


@dataclass
class Prometheus:
    """The running server, and what it is asked."""

    url: str
    child: Child

    async def ask(self, path: str, **query: str) -> Any:  # noqa: ANN401 - JSON of Prometheus
        """Return `data` of an answer of the HTTP API."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            answer = json.loads(await asyncio.to_thread(get, url))
        except urllib.error.HTTPError as error:
            pytest.fail(f"{path} {query}: {error.read().decode()}")
        return answer["data"]

    async def query(self, expr: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.ask("query", query=expr))["result"]
        return found

    async def until(self, expr: str, true: Callable[[list[dict[str, Any]]], bool]) -> None:
        """Ask again and again until the answer is as expected."""
        found: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not true(found):
                    await asyncio.sleep(0.2)
                    found = await self.query(expr)
        except TimeoutError:
            pytest.fail(f"{expr} stayed {found}")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - loopback http
        text: str = answer.read().decode()
    return text


def hurried(folder: Path, coordinator: str, node: str) -> Path:
    """Copy the shipped files: other targets, a second between scrapes, `for` of a second."""
    shutil.copytree(monitoring.HERE, folder)
    config = folder / "prometheus.yml"
    text = config.read_text(encoding="utf-8")
    text, times = re.subn(
        r"(scrape_interval|scrape_timeout|evaluation_interval): \w+", r"\1: 1s", text
    )
    assert times == 3
    config.write_text(text, encoding="utf-8")
    rules = folder / "rules" / "fedcare.rules.yml"
    rules.write_text(re.sub(r"for: \w+", "for: 1s", rules.read_text(encoding="utf-8")), "utf-8")
    for name, target in (("coordinator", coordinator), ("node", node)):
        path = folder / "targets" / f"{name}.yml"
        path.write_text(yaml.safe_dump([{"targets": [target]}]), encoding="utf-8")
    return config


async def start_prometheus(folder: Path, config: Path) -> Prometheus:
    """Start the server on a free loopback port; it ends with this test's process, or before."""
    address = free_address()
    words = folder / "prometheus.log"
    with words.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={address}", "--log.level=warn",
            stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out,
        )  # fmt: skip
    server = Prometheus(f"http://{address}", Child("prometheus", process, words))
    async with asyncio.timeout(PATIENCE_S):
        while True:
            assert process.returncode is None, words.read_text()
            try:
                await asyncio.to_thread(get, f"{server.url}/-/ready")
            except OSError:
                await asyncio.sleep(0.1)
            else:
                return server


@dataclass
class Watched:
    """A running federation, its scraped addresses, and the Prometheus that watches it."""

    plan: FederationPlan
    federation: LocalFederation
    prometheus: Prometheus
    coordinator: str
    node: str


def set_http(config: Path) -> str:
    """State a free HTTP port in a service's file; return it."""
    address = free_address()
    write(config, {**yaml.safe_load(config.read_text(encoding="utf-8")), "http": address})
    return address


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Watched]:
    tables = [
        SitePlan(name, write_table(folder / f"{name}.csv", seed)) for seed, name in enumerate(SITES)
    ]
    plan = FederationPlan(folder / "fed", "heart", small_study(), tables, TIMING)
    address = free_address()
    build(plan, address)
    coordinator = set_http(plan.coordinator_folder / "coordinator.yaml")
    node = set_http(plan.site_folder("east") / "node.yaml")
    config = hurried(folder / "monitoring", coordinator, node)
    async with LocalFederation(plan, address) as federation:
        await federation.start()
        prometheus = await start_prometheus(folder, config)
        try:
            yield Watched(plan, federation, prometheus, coordinator, node)
        finally:
            await end(prometheus.child)


async def end(child: Child) -> None:
    if child.process.returncode is None:
        child.process.terminate()
    await child.ended


async def run_a_study(place: Watched) -> None:
    """Train a model; and have one call refused, for a run that does not exist."""
    me = load_identity(place.plan.researcher_folder, now_unix=SystemClock().unix())
    async with Client(place.federation.address, me) as client:
        run = (await client.submit(canonical_json(small_study()))).run_id
        async with asyncio.timeout(PATIENCE_S):
            states = [view.state.value async for view in client.watch(run)]
        assert states[-1] == "finished"
        with pytest.raises(FedError, match="NOT_FOUND"):
            await client.run("no-such-run")


@pytest.mark.timeout(120)
async def test_a_real_prometheus_sees_a_run_shows_every_panel_and_tells_of_a_dead_coordinator(
    tmp_path: Path,
) -> None:
    async with watched(tmp_path) as place:
        server = place.prometheus
        await server.until("sum(up)", lambda found: bool(found) and found[0]["value"][1] == "2")
        await run_a_study(place)
        await server.until('fedcare_runs{state="finished"} == 1', bool)
        # A rate needs two samples.
        refused = 'fedcare_calls_refused_total{code="FC-6004"}'
        await server.until(f"{refused} == 1 and count_over_time({refused}[1m]) > 2", bool)
        await check_expositions(place)
        await check_rules(server)
        await check_dashboard(server)
        await check_certificates(server)
        assert await server.query('ALERTS{alertstate="firing"}') == []

        coordinator = place.federation.children["coordinator"]
        coordinator.stopping = True
        coordinator.process.terminate()
        assert await coordinator.ended == 0
        for alert in ("FedcareCoordinatorDown", "FedcareNodeNotConnected"):
            await server.until(f'ALERTS{{alertname="{alert}", alertstate="firing"}}', bool)


async def check_expositions(place: Watched) -> None:
    """Names, units and help are as Prometheus' own linter wants them."""
    for address in (place.coordinator, place.node):
        text = await asyncio.to_thread(get, f"http://{address}/metrics")
        assert await asyncio.to_thread(promtool, "check", "metrics", given=text) == ""
        assert "_created" not in text


async def check_rules(server: Prometheus) -> None:
    groups = (await server.ask("rules"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(list(monitoring.rules()))
    assert [rule["name"] for rule in rules if rule.get("lastError")] == []
    assert {rule["health"] for rule in rules} == {"ok"}


async def check_dashboard(server: Prometheus) -> None:
    empty = []
    for query in monitoring.queries():
        found = await server.query(query.expr)
        if not any(entry["value"][1] != "NaN" for entry in found):
            empty.append(query.panel)
    assert set(empty) == set(EMPTY_IN_A_GOOD_RUN)


async def check_certificates(server: Prometheus) -> None:
    """The certificates' dates are those of the files: leaves of a test last two days."""
    for job in ("fedcare-coordinator", "fedcare-node"):
        left = await server.query(f'instance:fedcare_certificate_remaining:seconds{{job="{job}"}}')
        assert 86400 < float(left[0]["value"][1]) <= 2 * 86400
