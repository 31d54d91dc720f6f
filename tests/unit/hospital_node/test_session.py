"""Heartbeats, the welcome, ready messages, time limits, the status screen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from common.clock import ManualClock, SystemClock
from common.entropy import OsEntropy
from common.errors import ConfigError, ConnectError, FedError, IdentityError, StateError
from common.messages import Heartbeat, Hello, Welcome
from common.secagg import node as machine
from common.secagg.messages import Ready, RoundResult, RoundStatus
from common.secagg.node_state import (
    LocalTimeout,
    NodeState,
    Persist,
    Restarted,
    RoundClosed,
    Send,
)
from common.wire import CoordinatorStep, NodeStep
from hospital_node.config import NodeConfig
from hospital_node.round import advance, without_session
from hospital_node.session import Connection, Ears
from hospital_node.status import describe, read_status
from hospital_node.store import NodeStore
from tests.node_world import SITES, World, node_id
from tests.simulation.secagg_harness import Setting, Simulation

HELLO: Final = Hello("test", 1, ())


class Script:
    """A link that says what it is told and then stays silent."""

    def __init__(self, *messages: CoordinatorStep, ends: bool = False) -> None:
        self.says = messages
        self.ends = ends
        self.sent: list[NodeStep] = []

    async def send(self, task: str, message: NodeStep) -> None:
        self.sent.append(message)

    async def messages(self) -> AsyncIterator[tuple[str, CoordinatorStep]]:
        for message in self.says:
            yield "", message
        if not self.ends:
            await asyncio.Event().wait()


async def _serve(script: Script, clock: ManualClock) -> tuple[FedError, list[float], int]:
    """Serve until the connection ends; every sleep moves the clock."""
    slept: list[float] = []
    ticks = [0]

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        slept.append(seconds)
        clock.advance(seconds)

    async def ignore(task: str, message: CoordinatorStep) -> None:
        return None

    def tick() -> None:
        ticks[0] += 1

    connection = Connection(script, "sim", clock, sleep)  # type: ignore[arg-type]
    with pytest.raises(FedError) as caught:
        await connection.serve(HELLO, Ears(lambda _: None, ignore, tick))
    return caught.value, slept, ticks[0]


async def test_a_coordinator_silent_for_three_heartbeats_counts_as_gone() -> None:
    script = Script(Welcome("sim", 2000))
    failure, slept, ticks = await _serve(script, ManualClock())
    assert isinstance(failure, ConnectError)
    assert "silent for 8.0 s" in failure.detail
    assert slept == [2.0] * 4
    assert ticks == 3
    assert script.sent == [HELLO, Heartbeat(1), Heartbeat(2), Heartbeat(3)]


async def test_a_connection_that_is_never_welcomed_is_given_up() -> None:
    failure, slept, _ = await _serve(Script(), ManualClock())
    assert isinstance(failure, ConnectError)
    assert sum(slept) == 40.0


class LateWelcome(Script):
    """Its coordinator takes a moment to answer Hello."""

    async def messages(self) -> AsyncIterator[tuple[str, CoordinatorStep]]:
        await asyncio.sleep(0.02)
        yield "", Welcome("sim", 50)
        await asyncio.Event().wait()


async def test_the_coordinators_heartbeats_begin_with_its_welcome() -> None:
    """Not ten seconds after Hello: a coordinator of short heartbeats would miss three."""
    script = LateWelcome()
    connection = Connection(script, "sim", SystemClock(), asyncio.sleep)  # type: ignore[arg-type]

    async def ignore(task: str, message: CoordinatorStep) -> None:
        return None

    with pytest.raises(ConnectError, match="silent"):
        async with asyncio.timeout(5):
            await connection.serve(HELLO, Ears(lambda _: None, ignore, lambda: None))
    assert script.sent[1] == Heartbeat(1)


async def test_a_coordinator_of_another_federation_is_refused() -> None:
    failure, *_ = await _serve(Script(Welcome("other", 2000)), ManualClock())
    assert isinstance(failure, IdentityError)
    assert "other" in failure.detail


async def test_nothing_is_believed_before_the_welcome() -> None:
    failure, *_ = await _serve(
        Script(RoundResult(b"\0" * 32, RoundStatus.ABORTED, (), b"", b"", 2)),  # type: ignore[arg-type]
        ManualClock(),
    )
    assert "before its welcome" in failure.detail


async def test_a_stream_that_ends_ends_the_connection() -> None:
    failure, *_ = await _serve(Script(Welcome("sim", 2000), ends=True), ManualClock())
    assert isinstance(failure, ConnectError)


@pytest.mark.parametrize(("asked", "used"), [(1, 0.05), (10_000_000, 300.0)])
async def test_a_heartbeat_interval_is_kept_within_bounds(asked: int, used: float) -> None:
    _, slept, _ = await _serve(Script(Welcome("sim", asked)), ManualClock())
    assert slept[0] == used


# --- what follows from one event ---------------------------------------------------------


def _idle() -> tuple[NodeState, machine.NodeContext]:
    """A node of a simulation whose session is live and which is ready for round 1."""
    sim = Simulation(Setting())
    sim.open_session()
    sim.run()
    node = sim.nodes[sim.setting.ids[0]]
    return node.state, node.ctx


def test_a_ready_said_before_is_said_again_with_the_same_nonce_after_a_reconnect() -> None:
    state, ctx = _idle()
    state, first = advance(machine.handle, state, Restarted(), ctx, willing=True)
    state, second = advance(machine.handle, state, Restarted(), ctx, willing=True)
    ready = [c.message for c in first if isinstance(c, Send) and isinstance(c.message, Ready)]
    again = [c.message for c in second if isinstance(c, Send) and isinstance(c.message, Ready)]
    assert ready
    assert ready == again


def test_an_unwilling_node_says_no_ready() -> None:
    state, ctx = _idle()
    _, commands = advance(machine.handle, state, Restarted(), ctx, willing=False)
    assert not any(isinstance(c, Send) and isinstance(c.message, Ready) for c in commands)


def test_a_node_that_lost_its_nonce_draws_another() -> None:
    state, ctx = _idle()
    assert state.session is not None
    state, first = advance(machine.handle, state, Restarted(), ctx, willing=True)
    assert state.session is not None
    forgot = replace(state, session=replace(state.session, nonce=b"", nonce_r=0))  # type: ignore[arg-type]
    _, second = advance(machine.handle, forgot, Restarted(), ctx, willing=True)
    nonces = {
        c.message.nonce
        for c in (*first, *second)
        if isinstance(c, Send) and isinstance(c.message, Ready)
    }
    assert len(nonces) == 2


def test_persist_comes_once_and_first() -> None:
    state, ctx = _idle()

    def noisy(state: NodeState, event: object, ctx: object) -> machine.handle:  # type: ignore[valid-type]
        return state, [RoundClosed(b"", "x"), Persist(), Persist()]  # type: ignore[arg-type]

    _, commands = advance(noisy, state, LocalTimeout(b""), ctx, willing=True)  # type: ignore[arg-type]
    assert [type(command) for command in commands] == [Persist, RoundClosed]


def test_what_stays_after_a_run_is_the_epoch_and_the_agreed_sets() -> None:
    state, _ = _idle()
    left = without_session(state)
    assert (left.session, left.setup) == (None, None)
    assert (left.last_epoch, left.rerun) == (state.last_epoch, state.rerun)


# --- a round that lasts too long ------------------------------------------------------------


async def test_a_round_without_a_result_is_closed_here_after_its_time(tmp_path: Path) -> None:
    world = World(tmp_path)
    deaf = [False]
    deliver = world.coordinator.send

    def send(node: object, task: str, message: CoordinatorStep) -> None:
        deaf[0] = deaf[0] or type(message).__name__ == "Propose"
        if not deaf[0]:
            deliver(node, task, message)  # type: ignore[arg-type]

    world.coordinator.send = send  # type: ignore[method-assign]
    world.start_all()
    tasks = world.nodes["h1"]._tasks
    await world.until(
        lambda: "pattern" in tasks and tasks["pattern"].status()["state"] == "uploaded"
    )
    task = tasks["pattern"]
    world.clock.advance(3599)
    task.tick()
    await world.settle()
    assert task.status()["state"] == "uploaded"
    world.clock.advance(2)
    task.tick()
    await world.settle()
    assert task.status()["state"] == "ready"
    assert not list((world.state_dir("h1") / "spool").iterdir())
    await world.stop()


# --- the screen -----------------------------------------------------------------------------


async def test_status_says_what_each_task_waits_for_and_whether_the_node_runs(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    for site in SITES[:2]:
        world.start(site)
    await world.until(lambda: len(world.coordinator.accepted) == 2)
    world.nodes["h1"]._write_status(final=True)
    found = read_status(world.state_dir("h1"))
    assert found["noised_sums"] == {}  # `node budget` reads it
    assert found["running"]
    assert found["connected"]
    screen = describe(found, world.clock.unix() + 5)
    assert "h1 in federation sim: connected" in screen
    assert "waiting for the coordinator to begin an epoch" in screen
    assert "(5 s ago)" in screen
    await world.stop()
    found = read_status(world.state_dir("h1"))
    assert not found["running"]
    assert "not running" in describe(found, world.clock.unix())


def test_status_of_a_directory_no_node_ran_in_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no node has run"):
        read_status(tmp_path)
    (tmp_path / "status.json").write_text("[")
    with pytest.raises(StateError):
        read_status(tmp_path)


async def test_a_refused_offer_stands_on_the_screen(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.offer = replace(world.offer, signature=b"forged")
    node = world.start("h1")
    await world.until(lambda: world.coordinator.decisions)
    status = {**node.status(), "running": True}
    assert "refused: OWNER_SIGNATURE" in describe(status, 0.0)
    json.dumps(status)
    await world.stop()


def test_a_node_file_states_paths_and_knows_no_other_key(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text("schema: fedcare.node/v1\nstate_dir: s\nsite: null\n")
    config = NodeConfig.read(path)
    assert config.path(config.state_dir) == tmp_path / "s"
    path.write_text("schema: fedcare.node/v1\nstate-dir: s\n")
    with pytest.raises(ConfigError, match="state_dir"):
        NodeConfig.read(path)


async def test_two_nodes_on_one_directory_are_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start("h1")
    with pytest.raises(StateError) as caught:
        NodeStore.open(world.state_dir("h1"), OsEntropy())
    assert caught.value.name == "STATE_LOCKED"
    assert node_id("h1").endswith("/h1")
    await world.stop()
