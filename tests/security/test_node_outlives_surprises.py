"""Whatever a coordinator provokes inside a node, the node dials again and goes on (P5)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from common.secagg import node as machine
from common.secagg.node_state import NodeContext, NodeEvent, NodeState, Outcome
from hospital_node.driver import NodeParts
from hospital_node.link import Link
from tests.node_world import MemoryLink, World, node_id


async def test_a_link_that_fails_in_an_unknown_way_is_dialled_again(tmp_path: Path) -> None:
    world = World(tmp_path, rounds=1)

    def wrap(parts: NodeParts) -> NodeParts:
        async def connect() -> Link:
            link = await world.connect("h1")
            if world.dials.count("h1") == 1:
                raise ValueError("/srv/somebody/rows.csv")
            return link

        return dataclasses.replace(parts, connect=connect)

    world.start("h1", wrap)
    for site in ("h2", "h3", "h4"):
        world.start(site)
    await world.finish()
    world.check()
    assert "FC-9001" in world.log.getvalue()
    assert "rows.csv" not in world.log.getvalue()


@pytest.mark.parametrize("kind", ["Roster", "HeaderReceived", "Propose", "Certificate"])
async def test_a_step_that_fails_in_an_unknown_way_does_not_end_its_task(
    tmp_path: Path, kind: str
) -> None:
    world = World(tmp_path, rounds=1)
    failed: list[str] = []

    def once(state: NodeState, event: NodeEvent, ctx: NodeContext) -> Outcome:
        if type(event).__name__ == kind and not failed:
            failed.append(kind)
            raise KeyError(kind)
        return machine.handle(state, event, ctx)

    world.start("h1", lambda parts: dataclasses.replace(parts, handle=once))
    for site in ("h2", "h3", "h4"):
        world.start(site)
    await world.finish()
    world.check()
    assert failed


async def test_an_errand_that_fails_in_an_unknown_way_is_logged(tmp_path: Path) -> None:
    world = World(tmp_path, rounds=1)

    def wrap(parts: NodeParts) -> NodeParts:
        def broken(*_: object) -> None:
            raise RecursionError

        parts.store.save_decision = broken  # type: ignore[method-assign, assignment]
        return parts

    node = world.start("h1", wrap)
    await world.until(lambda: "RecursionError" in world.log.getvalue())
    assert node.connected
    assert isinstance(world.links[node_id("h1")], MemoryLink)
    await world.stop()
