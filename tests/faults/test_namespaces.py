"""Faults of the network where the kernel really drops packets: one node in a namespace (I4)."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from common.certificates import Role
from researcher.local import LOOPBACK
from researcher.processes import environment
from tests import forked
from tests.faults.budget import trials
from tests.faults.namespaces import Namespace, lacks, missing
from tests.faults.network import (
    BEAT_S,
    CHUNK,
    CHUNK_WORDS,
    TIMING,
    Network,
    at,
    end,
    everybody,
    start_fresh,
    until,
)
from tests.faults.record import record
from tests.zygote import Zygote

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"needs network namespaces: {missing()}"),
]

ZYGOTE = Zygote(*forked.SERVING)
COORDINATOR = "coordinator.test"


@asynccontextmanager
async def apart(
    root: Path,
    host: Namespace,
    *,
    name: str | None = None,
    **settings: Any,  # noqa: ANN401
) -> AsyncIterator[Network]:
    """Run a federation whose hospital `va` is on `host`; it dials the address, or a name."""
    net = Network(root, stay_away=frozenset({"va"}), **settings)
    port = net.address.rpartition(":")[2]
    folder = net.plan.coordinator_folder
    listen = folder / "coordinator.yaml"
    listen.write_text(listen.read_text("utf-8").replace(net.address, f"0.0.0.0:{port}"), "utf-8")
    net.issue(
        Role.COORDINATOR, "coordinator", root / "issued", LOOPBACK, "localhost", host.outside,
        COORDINATOR,
    )  # fmt: skip
    for kept in ("tls.crt", "tls.key"):
        shutil.copy2(root / "issued" / kept, folder / kept)
    net.lead("va", f"{name or host.outside}:{port}", net.proxies["va"].address)
    env = {k: v for k, v in environment().items() if not k.lower().endswith("_proxy")}
    async with net:
        serve = ["node", "serve", "--config", "node.yaml"]
        site = net.plan.site_folder("va")
        process = await start_fresh(serve, site, env, net.log_of("va").path, *host.inside)
        try:
            yield net
        finally:
            await end(process)


CHAINS: Final = [("F19", ("OUTPUT",)), ("F19", ("INPUT",)), ("F17", ("INPUT", "OUTPUT"))][
    : trials(change=2, nightly=3, release=3)
]
"""Nothing goes up, nothing comes down, neither; `test_network.py` has all three each time."""


@pytest.mark.fault("F17")
@pytest.mark.fault("F19")
async def test_dropped_packets_are_noticed_and_the_hospital_still_counts(tmp_path: Path) -> None:
    """Another way in each round."""
    with Namespace() as host:
        if lacks("tbf"):
            pytest.skip(lacks("tbf"))
        async with apart(tmp_path / "f", host, size=3 * CHUNK_WORDS, rounds=len(CHAINS)) as net:
            await net.log.until("link.connected", site="va")
            host.rate("4mbit")
            run = await net.submit()
            own = net.log_of("va")
            for r, (fault, chains) in enumerate(CHAINS, 1):
                await net.log.until("round.opened", round=r)
                await until(lambda: net.spooled() >= CHUNK)
                for log in (net.log, own):
                    log.forget()
                began = time.time()
                host.drop(*chains)
                lost = [await net.log.until("link.lost", site="va"), await own.until("link.lost")]
                healed = time.time()
                host.clear()
                back = await net.log.until("link.connected", site="va")
                record(
                    fault, trials=1, failures=0, drop_detection_s=max(map(at, lost)) - began,
                    drop_rejoin_s=max(0.0, at(back) - healed),
                )  # fmt: skip
                host.full_rate()
                await own.until("upload.finished")
                host.rate("4mbit")
            assert everybody(await net.finish(run))


@pytest.mark.nightly
@pytest.mark.fault("F22")
async def test_a_line_of_256_kbit_carries_an_upload_and_its_heartbeats(tmp_path: Path) -> None:
    with Namespace() as host:
        if lacks("tbf"):
            pytest.skip(lacks("tbf"))
        size = CHUNK_WORDS // 2
        async with apart(tmp_path / "f", host, size=size, timing=TIMING | {"gather": "60s"}) as net:
            await net.log.until("link.connected", site="va")
            host.rate("256kbit")
            view = await net.finish(await net.submit())
            assert everybody(view)
            deaths = len(net.log.lines("link.lost")) + len(net.log_of("va").lines("link.lost"))
            assert deaths == 0
            assert view.history[0].seconds > 3 * BEAT_S
            record("F22", trials=1, failures=0, tbf_round_s=view.history[0].seconds, false_deaths=0)


@pytest.mark.fault("F23")
async def test_packets_that_are_lost_cost_time_and_nothing_else(tmp_path: Path) -> None:
    """5 % of the packets of either direction, in the second of two rounds."""
    with Namespace() as host:
        async with apart(tmp_path / "f", host, size=2 * CHUNK_WORDS, rounds=2) as net:
            await net.log.until("link.connected", site="va")
            run = await net.submit()
            await net.log.until("round.closed", round=1)
            host.drop("INPUT", "OUTPUT", share=0.05)
            view = await net.finish(run)
            assert everybody(view)
            clean, lossy = view.history
            record("F23", trials=1, failures=0, round_time_ratio=lossy.seconds / clean.seconds)


@pytest.mark.fault("F23")
async def test_packets_that_are_reordered_and_doubled_cost_time_and_nothing_else(
    tmp_path: Path,
) -> None:
    if lacks("netem"):
        pytest.skip(lacks("netem"))
    with Namespace() as host:
        async with apart(tmp_path / "f", host, size=2 * CHUNK_WORDS) as net:
            host.netem("delay", "20ms", "reorder", "25%", "duplicate", "5%", "loss", "1%")
            assert everybody(await net.finish(await net.submit()))
            record("F23", trials=1, failures=0)


@pytest.mark.fault("F28")
async def test_a_name_that_is_not_found_or_leads_elsewhere_is_tried_until_it_is_right(
    tmp_path: Path,
) -> None:
    with Namespace() as host:
        host.hosts("")
        async with apart(tmp_path / "f", host, name=COORDINATOR) as net:
            log = net.log_of("va")
            tried = await log.until("link.retrying")
            assert re.search("the name cannot be resolved", tried["detail"])
            host.hosts(f"127.0.0.1 {COORDINATOR}")  # where nobody listens, in there
            await log.until("link.retrying", attempts=5)
            mended = time.time()
            host.hosts(f"{host.outside} {COORDINATOR}")
            back = await net.log.until("link.connected", site="va")
            assert everybody(await net.finish(await net.submit()))
            record("F28", trials=2, failures=0, name_rejoin_s=at(back) - mended)
