"""What a policy asks of the node itself: hours, how far a model moves, hidden time, room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import Refusal, StateError
from common.ids import RunId
from common.model_file import model_header
from common.policy import parse_policy
from common.secagg import node as machine
from common.secagg.messages import Commit, Ready, Refused
from common.secagg.node_state import Report, Restarted, Send
from common.study import parse_study
from common.vectors import ParameterSchema, TensorSpec, TensorType
from common.wire import NodeStep
from hospital_node.conduct import Conduct
from hospital_node.driver import NodeParts
from hospital_node.receive import distance
from hospital_node.round import advance
from tests.node_world import SITES, World, node_id
from tests.policy_texts import POLICY
from tests.security.refusals import OPEN, accepted, changed, context_of
from tests.security.refusals import POLICY as RULES
from tests.study_texts import altered

H4 = node_id("h4")


class Switch:
    """Hours that the test opens and closes."""

    def __init__(self, *, is_open: bool) -> None:
        self.is_open = is_open

    def closed(self, unix: float) -> str | None:
        del unix
        return None if self.is_open else "rounds begin here only at night"


def during(hours: Switch) -> Callable[[NodeParts], NodeParts]:
    return lambda parts: replace(parts, rules=replace(parts.rules, hours=hours))


def said(world: World, kind: type[NodeStep]) -> list[NodeStep]:
    return [message for node, message in world.sent if node == H4 and isinstance(message, kind)]


def refusals(world: World) -> list[str]:
    return [message.code for message in said(world, Refused) if isinstance(message, Refused)]


def start(world: World, wrap: Callable[[NodeParts], NodeParts]) -> None:
    """Start every node, the last one with another conduct."""
    for site in SITES[:3]:
        world.start(site)
    world.start("h4", wrap)


# --- hours ------------------------------------------------------------------------------------


async def test_a_node_outside_its_hours_says_so_and_joins_when_the_window_opens(
    tmp_path: Path,
) -> None:
    world, hours = World(tmp_path, rounds=2), Switch(is_open=False)
    start(world, during(hours))
    await world.until(lambda: refusals(world))
    assert refusals(world) == ["POLICY_HOURS"]
    await world.settle()
    assert not said(world, Ready)
    assert "the next window" in str(world.nodes["h4"].status()["tasks"])
    hours.is_open = True
    world.nodes["h4"]._tick()
    await world.finish()
    world.check()
    assert refusals(world) == ["POLICY_HOURS"]


def test_a_ready_that_was_said_is_not_said_again_outside_the_hours() -> None:
    """After a lost connection the same nonce would invite a round that is refused."""
    state, handle = accepted(parse_study(OPEN)), machine.handle
    closed = changed(RULES, ("hours: {}", 'hours: {from: "20:00", to: "06:00"}'))
    for policy, invited, told in ((RULES, 1, []), (closed, 0, ["POLICY_HOURS"])):
        _, done = advance(handle, state, Restarted(), context_of(policy), willing=True)
        sent = [command.message for command in done if isinstance(command, Send)]
        assert sum(isinstance(message, Ready) for message in sent) == invited
        assert [command.code for command in done if isinstance(command, Report)] == told


async def test_a_round_that_has_begun_is_not_broken_when_the_window_closes(tmp_path: Path) -> None:
    world, hours = World(tmp_path, rounds=2), Switch(is_open=True)

    def close_in_the_round(node: object, message: NodeStep) -> bool:
        if node == H4 and isinstance(message, Commit):
            hours.is_open = False
        return False

    world.lose = close_in_the_round
    start(world, during(hours))
    await world.until(lambda: refusals(world))
    assert [len(survivors) for _, survivors, _ in world.coordinator.opened] == [4]
    assert len(said(world, Ready)) == 1
    hours.is_open = True
    world.lose = lambda _node, _message: False
    world.nodes["h4"]._tick()
    await world.finish()
    world.check()


async def test_a_header_that_comes_after_the_window_closed_is_refused(tmp_path: Path) -> None:
    world, hours = World(tmp_path, rounds=1), Switch(is_open=True)

    def close_before_the_round(node: object, message: NodeStep) -> bool:
        if node == H4 and isinstance(message, Ready):
            hours.is_open = False
        return False

    world.lose = close_before_the_round
    start(world, during(hours))
    await world.finish()
    world.check()
    assert refusals(world)[0] == "POLICY_HOURS"
    assert H4 not in world.coordinator.opened[0][1]


# --- the model --------------------------------------------------------------------------------

SCHEMA = ParameterSchema(
    (TensorSpec("a", TensorType.FLOAT32, (3,)), TensorSpec("b", TensorType.BFLOAT16, (2,)))
)


def model(path: Path, a: list[float], b: list[float]) -> Path:
    upper = (np.array(b, "<f4").view("<u4") >> 16).astype("<u2")
    path.write_bytes(model_header(SCHEMA) + np.array(a, "<f4").tobytes() + upper.tobytes())
    return path


def test_the_distance_is_the_l2_norm_over_all_tensors(tmp_path: Path) -> None:
    one = model(tmp_path / "one", [1, 2, 3], [1, 0])
    two = model(tmp_path / "two", [1, 2, 0], [1, 4])
    assert distance(one, two, SCHEMA) == 5.0
    assert distance(one, one, SCHEMA) == 0.0
    two.write_bytes(two.read_bytes()[:-1])
    with pytest.raises(StateError, match="MODEL_INVALID"):
        distance(one, two, SCHEMA)


async def test_a_model_that_moved_further_than_the_policy_allows_is_refused(
    tmp_path: Path,
) -> None:
    """The world's models move by sqrt(1000) = 31.6 a round."""
    world = World(tmp_path, rounds=2)
    start(world, lambda parts: replace(parts, conduct=Conduct(model_step=31.0)))
    await world.finish()
    world.check()
    assert [len(survivors) for _, survivors, _ in world.coordinator.opened] == [4, 3]
    assert refusals(world) == ["MODEL_RANGE"]


async def test_a_model_within_the_limit_is_taken(tmp_path: Path) -> None:
    world = World(tmp_path, rounds=3)
    start(world, lambda parts: replace(parts, conduct=Conduct(model_step=32.0)))
    await world.finish()
    world.check()
    assert refusals(world) == []


def test_a_refused_step_cites_both_numbers_and_the_line() -> None:
    text = POLICY + "limits:\n  model_step: 2.5\n"
    loaded = parse_policy(text, "/etc/policy.yaml")
    conduct = Conduct.of(loaded.value, loaded.source)
    conduct.check_step(2.5)
    for moved in (2.6, float("nan"), float("inf")):
        with pytest.raises(Refusal) as caught:
            conduct.check_step(moved)
        assert f"moved by {moved:g} from the last one, at most 2.5" in caught.value.detail
        assert "(policy.yaml:22: limits.model_step)" in caught.value.detail


# --- time and room ----------------------------------------------------------------------------


async def test_a_padded_input_waits_for_half_of_the_deadline(tmp_path: Path) -> None:
    world, waited = World(tmp_path, rounds=1), []

    async def sleep(seconds: float) -> None:
        if seconds == 30.0:
            assert H4 not in [node for node, _ in world.uploads]
            waited.append(seconds)
        else:
            await world.sleep("h4", seconds)

    policy = parse_policy(altered(POLICY, "min_cell: 10", "min_cell: 10, pad_to_deadline: true"))
    conduct = Conduct.of(policy.value, policy.source)
    start(world, lambda parts: replace(parts, conduct=conduct, sleep=sleep))
    await world.finish()
    world.check()
    assert waited == [30.0], "the deadline is 60 s"
    assert conduct.held_back_s(60_000, 12.5) == 17.5
    assert conduct.held_back_s(60_000, 45.0) == 0.0


async def test_a_further_run_is_refused_while_too_many_are_not_over(tmp_path: Path) -> None:
    text = POLICY + "limits:\n  studies: 1\n"
    loaded = parse_policy(text, "policy.yaml")
    conduct = Conduct.of(loaded.value, loaded.source)
    world = World(tmp_path, rounds=1)
    node = world.start("h1", lambda parts: replace(parts, conduct=conduct))
    await world.until(lambda: world.coordinator.decisions)
    second = replace(world.offer, run_id=RunId("run-2"))
    decision, record = await node._offers.consider(second)
    (objection,) = decision.objections
    assert (objection.code, record) == ("POLICY_LIMITS", None)
    assert objection.detail.startswith("policy.yaml:22: limits.studies is at most 1")
    first = node._offers._known[world.offer.run_id]
    node._offers.ended(replace(first, ended="finished"))
    decision, _ = await node._offers.consider(second)
    assert decision.accepted
    await world.stop()
