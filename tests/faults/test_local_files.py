"""What an earlier process left at a hospital counts only if it is what its name says (F40).

A node dies while it trains, and its copy of the open round's model, or a beginning of it, is
cut, altered or another file when it comes back. It says so, fetches the model again and
takes part as if nothing had been: no byte is used that was not verified.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from common import failpoints
from tests.faults.record import record
from tests.node_world import Killed, World, node_id

SIZE: Final = 2_000

DAMAGE: Final[dict[str, Callable[[bytes], bytes]]] = {
    "empty": lambda _: b"",
    "cut": lambda data: data[: len(data) // 2],
    "a byte altered in its middle": lambda data: _flip(data, len(data) // 2),
    "its last byte altered": lambda data: _flip(data, len(data) - 1),
    "its header altered": lambda data: _flip(data, 3),
    "longer": lambda data: data + b"\0" * 4096,
    "zeros": lambda data: bytes(len(data)),
    "foreign": lambda data: os.urandom(len(data)),
    "not numbers": lambda data: data[:-400] + b"\xff" * 400,
}
GOOD_BEGINNINGS: Final = ("empty", "cut")
"""What may well be a beginning of the model, and is gone on with."""


def _flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _victim(world: World) -> str | None:
    """The hospital whose training was killed."""
    for site, node in world.nodes.items():
        for task in node._tasks.values():
            for _, job in task._jobs._jobs.values():
                if job.done() and isinstance(job.exception(), Killed):
                    return site
    return None


@pytest.mark.fault("F40")
@pytest.mark.parametrize("part", [False, True], ids=["model", "beginning"])
@pytest.mark.parametrize("how", DAMAGE)
async def test_a_damaged_or_foreign_model_of_an_earlier_process_is_fetched_again(
    tmp_path: Path, *, how: str, part: bool
) -> None:
    world = World(tmp_path, rounds=1, size=SIZE)
    armed = [True]

    def die(point: str) -> bool:
        if point == "node.vector.before_fsync" and armed:
            armed.clear()
            raise Killed
        return True

    failpoints.install(die)
    try:
        world.start_all()
        await world.until(lambda: _victim(world) is not None)
    finally:
        failpoints.install(None)
    victim = _victim(world)
    assert victim is not None
    await world.kill(victim)
    (model,) = (world.state_dir(victim) / "models").iterdir()
    damaged = DAMAGE[how](model.read_bytes())
    if part:
        model.rename(model.with_name(f"{model.name}.part")).write_bytes(damaged)
    else:
        model.write_bytes(damaged)
    world.start(victim)
    await world.finish()
    world.check()
    ((_, survivors, _),) = world.coordinator.opened
    assert node_id(victim) in survivors
    said = [line for line in map(json.loads, world.log.getvalue().splitlines())
            if line["event"] == "model.refused"]  # fmt: skip
    expected = 0 if part and how in GOOD_BEGINNINGS else 1
    assert [line["name"] for line in said] == ["MODEL_INVALID"] * expected
    record("F40", trials=1, failures=0, unverified_bytes_used=0)


@pytest.mark.fault("F39")
async def test_a_model_that_changes_on_the_disk_before_it_is_trained_on_is_fetched_again(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, rounds=1, size=SIZE)
    armed = [True]

    def flip(point: str) -> bool:
        if point == "node.model.after" and armed:
            armed.clear()
            (path,) = [
                path
                for site in world.nodes
                for path in (world.state_dir(site) / "models").glob("*.safetensors")
            ]
            path.write_bytes(DAMAGE["its last byte altered"](path.read_bytes()))
        return True

    failpoints.install(flip)
    try:
        world.start_all()
        await world.finish()
    finally:
        failpoints.install(None)
    assert not armed
    world.check()
    ((_, survivors, _),) = world.coordinator.opened
    assert len(survivors) == len(world.nodes)
    said = [line for line in map(json.loads, world.log.getvalue().splitlines())
            if line["event"] == "model.refused"]  # fmt: skip
    assert [line["name"] for line in said] == ["MODEL_INVALID"]
