"""The faults that happen at a time, and not at a place in the code."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Final

from tests.faults.plan import COORDINATOR, SITES, Act, Fault, twin_of

if TYPE_CHECKING:
    from tests.faults.world import World

LEAP_S: Final = 20 * 366 * 86_400.0
"""Beyond the validity of every certificate that the federation has."""
JUMP_LASTS_S: Final = 90.0


async def happen(world: World, fault: Fault) -> None:
    """Wait until the fault's time, and do it."""
    await asyncio.sleep(fault.at)
    match fault.act:
        case Act.CUT:
            await world.cut(fault.who)
        case Act.SILENCE:
            now = asyncio.get_running_loop().time()
            world.silent_until[fault.who] = now + fault.seconds
        case Act.JUMP:
            await _jump(world, fault.who, fault.seconds, JUMP_LASTS_S)
        case Act.STOP:
            await world.stopped(fault.who, fault.seconds)
        case Act.POWER:
            for who in (COORDINATOR, *SITES):
                world.strike(who, fault.seconds)
        case Act.REPLAY:
            road = world.road_of.get(fault.who)
            if road is not None:
                await road.replay()
        case Act.FORGET:
            await _forget(world, fault)
        case Act.TWIN:
            await _twin(world, fault)
        case Act.LEAP:
            await _jump(world, fault.who, LEAP_S, fault.seconds)
        case _:
            raise AssertionError(fault)


async def _forget(world: World, fault: Fault) -> None:
    """Every key of the hospital's sessions is gone; what it agreed to remains."""
    if world.processes[fault.who].dead:
        return
    world.strike(fault.who, fault.seconds)
    sessions = world.plan.site_folder(fault.who) / "state" / "sessions"
    for path in sessions.glob("*.sealed"):
        path.unlink()


async def _twin(world: World, fault: Fault) -> None:
    """The same certificate on a second machine, which knows nothing of the first."""
    folder = world.plan.site_folder(fault.who)
    twin = folder.with_name(twin_of(fault.who))
    shutil.copytree(folder, twin, ignore=shutil.ignore_patterns("state"))
    name = world.start_twin(fault.who, twin)
    await asyncio.sleep(fault.seconds)
    await world.end_twin(name)


async def _jump(world: World, who: str, by_s: float, lasts_s: float) -> None:
    """The process' clock of the day is wrong, until somebody sets it right."""
    world.clocks[who].ahead_s += by_s
    await asyncio.sleep(lasts_s)
    world.clocks[who].ahead_s -= by_s
