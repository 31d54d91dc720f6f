"""Where a simulation's hospitals run: beside the coordinator, or over Ray.

An engine starts every hospital's node and yields a task that ends only if a hospital ends
by itself; leaving the block stops them all. Which engine it is changes nothing that can be
computed: what a node trains follows from the study, the site and the round, and integer
sums know no order, so a seed gives the same model over both (but for words of 16 bits,
which are rounded at random: docs/protocol.md, section 7.4).

* `local`: every node on this process' event loop, without a network (`memory_link`).
* `ray`: nodes in Ray actors, one for each core that Ray has, each with its share of the
  hospitals. They dial the coordinator over mutual TLS like any node, and read and write
  their own folders, which on a cluster lie on a file system that all machines see.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from common.clock import Clock
from common.errors import ConfigError, RoundError
from common.ids import hospital_id
from common.logs import EventLog, make_log
from hospital_node.app import build_node, load_setup
from hospital_node.config import NodeConfig
from hospital_node.driver import Node
from researcher.local import FederationPlan
from researcher.memory_link import MemoryDialler

if TYPE_CHECKING:
    from common.identity import Identity
    from coordinator.config import CoordinatorConfig
    from coordinator.service import CoordinatorService

ENGINES: Final = ("local", "ray")


@dataclass(frozen=True, slots=True)
class Around:
    """What an engine's hospitals need: their folders, and who sums up."""

    plan: FederationPlan
    config: CoordinatorConfig
    identity: Identity
    service: CoordinatorService
    clock: Clock
    log: EventLog


Watch: TypeAlias = "asyncio.Task[None]"
Engine: TypeAlias = Callable[[Around], AbstractAsyncContextManager[Watch]]


def engine_of(name: str) -> Engine:
    """Return the engine of that name.

    Raises:
        ConfigError: BAD_ARGUMENT; NOT_INSTALLED, Ray is missing.
    """
    if name == "local":
        return local_engine
    if name != "ray":
        raise ConfigError("BAD_ARGUMENT", f"--engine is local or ray, not {name}")
    if find_spec("ray") is None:
        raise ConfigError(
            "NOT_INSTALLED",
            "--engine ray needs Ray, which is not installed",
            fix="Install it: pip install 'fedcare[ray]'.",
        )
    return ray_engine


@asynccontextmanager
async def local_engine(around: Around) -> AsyncIterator[Watch]:
    """Run every hospital on this event loop."""
    nodes = []
    for site in around.plan.sites:
        setup = load_setup(_config(around.plan.site_folder(site.name)), around.clock)
        dialler = MemoryDialler(around.service, hospital_id(around.plan.federation, site.name))
        log = around.log.bind(site=site.name)
        nodes.append(build_node(setup, dialler, log=log, clock=around.clock))
    serving = [asyncio.create_task(node.run()) for node in nodes]
    watch = asyncio.create_task(_first_to_end(serving))
    try:
        yield watch
    finally:
        watch.cancel()
        for node in nodes:
            node.stop()
        await asyncio.gather(*serving, return_exceptions=True)


def _config(folder: Path) -> NodeConfig:
    return NodeConfig.read(folder / "node.yaml")


async def _first_to_end(serving: Sequence[asyncio.Task[None]]) -> None:
    """Wait until a node ends; raise what ended it."""
    done, _ = await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    raise RoundError("RUN_FAILED", "a node of the simulation ended by itself")


class HospitalGroup:
    """Some of the hospitals, in a process of their own: the class of the Ray actors."""

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = folders
        self._nodes: list[Node] = []

    async def serve(self) -> str:
        """Run the nodes until `stop`; return why one ended by itself, empty if none did."""
        import io

        from common.clock import SystemClock
        from hospital_node.grpc_link import GrpcDialler

        clock = SystemClock()
        log = make_log(io.StringIO(), form="console", level="warning", clock=clock)
        for folder in self._folders:
            setup = load_setup(_config(Path(folder)), clock)
            where = setup.policy.value.coordinator
            dialler = GrpcDialler(where.address, setup.identity, where.proxy, clock)
            own_log = log.bind(site=setup.policy.value.site)
            self._nodes.append(build_node(setup, dialler, log=own_log, clock=clock))
        serving = [asyncio.create_task(node.run()) for node in self._nodes]
        done, _ = await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
        why = next((str(task.exception()) for task in done if task.exception()), "")
        self.stop()
        await asyncio.gather(*serving, return_exceptions=True)
        return why

    def stop(self) -> None:
        """Have every node end."""
        for node in self._nodes:
            node.stop()


@asynccontextmanager
async def ray_engine(around: Around) -> AsyncIterator[Watch]:
    """Run the hospitals in Ray actors, on the cluster that RAY_ADDRESS names or on this machine."""
    from coordinator.app import listening

    ray: Any = import_module("ray")  # its types do not know that an actor's methods are remote
    started_here = not ray.is_initialized()
    if started_here:
        await asyncio.to_thread(
            lambda: ray.init(
                include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
            )
        )
    folders = [str(around.plan.site_folder(site.name)) for site in around.plan.sites]
    cores = max(1, min(len(folders), int(ray.cluster_resources().get("CPU", 1))))
    actor = ray.remote(HospitalGroup).options(num_cpus=1, max_concurrency=2)
    groups = [actor.remote(folders[first::cores]) for first in range(cores)]
    async with listening(around.config, around.service, around.identity, around.clock, around.log):
        serving = [asyncio.ensure_future(_answer(group.serve.remote())) for group in groups]
        watch = asyncio.create_task(_first_group_to_end(serving))
        try:
            yield watch
        finally:
            watch.cancel()
            await asyncio.gather(*(_answer(group.stop.remote()) for group in groups))
            await asyncio.gather(*serving, return_exceptions=True)
            if started_here:
                await asyncio.to_thread(ray.shutdown)


async def _answer(reference: object) -> object:
    return await reference  # type: ignore[misc]  # Ray's references can be awaited


async def _first_group_to_end(serving: Sequence[asyncio.Future[object]]) -> None:
    done, _ = await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
    why = "; ".join(str(task.result()) for task in done)
    raise RoundError("RUN_FAILED", f"hospitals of the simulation ended by themselves: {why}")
