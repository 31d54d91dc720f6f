"""A plan of faults happens to a whole federation in virtual time; and what must hold.

outcome = simulate(folder, draw(seed))
outcome.problem            # None, or what was found
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Final

from common import failpoints
from common.views import RunPhase
from hospital_node import worker
from tests.faults import virtual
from tests.faults.oracle import due, problem_of, release_of
from tests.faults.plan import COORDINATOR, SITES, Act, Plan
from tests.faults.world import World

MOST_S: Final = 1800.0
"""Virtual seconds after which a run counts as stuck; the longest silence is far shorter."""
_POLL_S: Final = 0.25
_INLINE: Final = SimpleNamespace(Thread=virtual.InlineThread, Event=threading.Event)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a simulated run ended; `problem` is None if everything held."""

    problem: str | None
    virtual_s: float
    deaths: int
    voided: int
    words: str
    dials: int
    """Connections that hospitals asked for, had or not."""
    disk_bytes: int
    """What the coordinator and the hospitals hold as it ends."""
    most_kept: int
    """Masked vectors that one hospital had on its disk as a coordinator came."""


def simulate(root: Path, plan: Plan, template: Path) -> Outcome:
    """Run the plan in `root`, which is not there yet; `template` holds the built federation."""
    world: list[World] = []

    async def go() -> tuple[str | None, float]:
        one = World(root, plan, template)
        world.append(one)
        failpoints.install(one.reach)
        setattr(worker, "threading", _INLINE)  # noqa: B010
        try:
            problem = await _story(one)
            return problem, asyncio.get_running_loop().time()
        finally:
            await _end(one)

    most_s = MOST_S + sum(fault.seconds for fault in plan.faults if fault.act is Act.CRASH)
    try:
        problem, took = virtual.run(go(), most_s)
    except virtual.StuckError as stuck:
        problem, took = str(stuck), most_s
    except Exception as failure:  # noqa: BLE001 - one seed's problem: the others go on
        problem, took = f"{type(failure).__name__}: {failure}", most_s
    finally:
        failpoints.install(None)
        setattr(worker, "threading", threading)  # noqa: B010
    one = world[0]
    voided = one.count("round.voided")
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    words = one.words.getvalue()
    return Outcome(problem, took, one.crashes, voided, words, one.dials, size, one.most_kept)


async def _story(world: World) -> str | None:
    world.start_coordinator()
    for site in SITES:
        world.start(site)
    await _submitted(world)
    world.disturb()
    if world.faults.cancel_s:
        await _begun_again(world)
    await _until(lambda: world.driver is not None and world.state.phase.final)
    if world.state.phase is RunPhase.FINISHED:
        await _until(lambda: world.driver is not None and _all_released(world))
    return problem_of(world)


def _all_released(world: World) -> bool:
    return all(release_of(world, site).is_file() for site in due(world))


async def _begun_again(world: World) -> None:
    """End the run as a person does, and submit its study once more."""
    await asyncio.sleep(world.faults.cancel_s)
    run_id = world.run_id
    assert run_id is not None
    while world.driver is None or not world.state.phase.final:
        if world.service is not None and not world.processes[COORDINATOR].dead:
            job = asyncio.get_running_loop().create_task(
                world.service.cancel(run_id, "begun again"),
                context=world.processes[COORDINATOR].context(),
            )
            await asyncio.wait((job,), timeout=_POLL_S)
        await asyncio.sleep(_POLL_S)
    world.run_id = None
    await _submitted(world, "request-2")


async def _submitted(world: World, request: str = "request-1") -> None:
    """Submit as a researcher does: with the same request, until it is taken."""
    while world.run_id is None:
        if world.service is not None and not world.processes[COORDINATOR].dead:
            job = asyncio.get_running_loop().create_task(
                world.submit(request), context=world.processes[COORDINATOR].context()
            )
            await asyncio.gather(job, return_exceptions=True)
            if world.run_id is not None:
                return
        await asyncio.sleep(_POLL_S)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - virtual time costs nothing
        await asyncio.sleep(_POLL_S)


async def _end(world: World) -> None:
    for process in world.processes.values():
        process.dead = True
    for site in SITES:
        world._kill(site)
    if world.service is not None:
        await world.kill_coordinator()
    for job in world._later:
        job.cancel()
    await asyncio.gather(*world._later, return_exceptions=True)
