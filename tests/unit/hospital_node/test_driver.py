"""Whole rounds with real nodes, over connections and processes that break."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.entropy import OsEntropy
from common.errors import StateError
from common.ids import RunId, Sha256
from common.messages import CHUNK_BYTES, StudyOffer, Welcome
from common.secagg import node as machine
from common.secagg.keys import Suite
from common.secagg.masking import MaskPlan
from common.secagg.messages import Commit, Confirm, Ready, Refused, Release
from common.secagg.node_state import (
    NodeContext,
    NodeEvent,
    NodeState,
    Outcome,
    Persist,
    RoundClosed,
    decode_state,
)
from common.secret import Secret
from common.wire import NodeStep
from hospital_node import jobs
from hospital_node.contribution import WordSource, write_masked
from hospital_node.driver import MOST_ERRANDS, NodeParts
from hospital_node.last_contact import keep, known_off
from hospital_node.personal.keeper import PersonalKeeper
from hospital_node.store import NodeStore, SessionRecord
from tests.node_world import FEDERATION, SITES, TASK, Killed, World, node_id

CHUNKS_3 = 3 * CHUNK_BYTES // 4 - 100  # a vector of three chunks, the last one shorter


@pytest.mark.parametrize("suite", list(Suite))
async def test_nodes_complete_rounds_whose_opened_sum_is_the_exact_integer_sum(
    tmp_path: Path, suite: Suite
) -> None:
    world = World(tmp_path, suite=suite)
    world.start_all()
    await world.finish()
    world.check()
    assert all(len(survivors) == len(SITES) for _, survivors, _ in world.coordinator.opened)


async def test_every_message_delivered_twice_changes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, copies=2)
    world.start_all()
    await world.finish()
    world.check()
    assert all(len(survivors) == len(SITES) for _, survivors, _ in world.coordinator.opened)


async def test_a_broken_upload_goes_on_at_the_coordinators_next_chunk(tmp_path: Path) -> None:
    world = World(tmp_path, size=CHUNKS_3, rounds=1)
    world.cut_upload_after[node_id("h2")] = 2
    world.start_all()
    await world.finish()
    world.check()
    assert [first for node, first in world.uploads if node == node_id("h2")] == [0, 2]


async def test_a_broken_download_goes_on_at_the_byte_it_had(tmp_path: Path) -> None:
    world = World(tmp_path, size=CHUNKS_3, rounds=1)
    world.cut_download_after[node_id("h3")] = 1
    world.start_all()
    await world.finish()
    world.check()
    offsets = [offset for node, offset in world.downloads if node == node_id("h3")]
    assert offsets == [0, CHUNK_BYTES]


@pytest.mark.parametrize("kind", [Confirm, Ready, Commit, Release])
async def test_a_message_lost_with_its_connection_is_said_again_after_the_reconnect(
    tmp_path: Path, kind: type[NodeStep]
) -> None:
    world = World(tmp_path)
    lost: list[NodeStep] = []

    def lose(node: object, message: NodeStep) -> bool:
        if node != node_id("h1") or not isinstance(message, kind) or lost:
            return False
        lost.append(message)
        world.links[node_id("h1")].sever()
        return True

    world.lose = lose
    world.start_all()
    await world.finish()
    world.check()
    assert lost
    assert world.dials.count("h1") == 2


async def test_a_clock_that_jumped_ahead_is_measured_anew_before_it_is_called_off(
    tmp_path: Path,
) -> None:
    """As that of a virtual machine which was suspended, and whose clock was set right then."""
    world = World(tmp_path)
    node = world.start("h1")
    await world.until(lambda: node.connected)
    root, before = world.state_dir("h1"), int(world.clock.unix())
    keep(root, before, world.clock)
    world.clock.epoch += 7200.0
    node._compare_clocks(Welcome(FEDERATION, 10_000, unix=before))  # said before the jump
    assert known_off(root, world.clock) is None
    assert "clock.set" in world.log.getvalue()
    assert "clock.off" not in world.log.getvalue()
    node._compare_clocks(Welcome(FEDERATION, 10_000, unix=before))  # now it is measured
    assert "clock.off" in world.log.getvalue()
    assert "about 2 h ahead" in str(known_off(root, world.clock))
    await world.kill("h1")


# --- kill -9 ---------------------------------------------------------------------------


class MortalStore(NodeStore):
    """Dies like a killed process at the k-th durable session write, before or after it."""

    def arm(self, write: int, *, after: bool) -> None:
        self.left, self.after = write, after

    def save_session(self, task: str, record: SessionRecord) -> None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        super().save_session(task, record)
        if self.left == 0:
            raise Killed


async def _died(world: World, site: str) -> None:
    """Wait until the node's task was killed."""
    await world.until(lambda: any(job.done() for job in world.nodes[site]._serving.values()))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("write", range(1, 15))
async def test_a_node_killed_at_any_durable_write_comes_back_and_never_makes_two_inputs(
    tmp_path: Path, write: int, after: bool
) -> None:
    world = World(tmp_path, suite=Suite.HYBRID, rounds=2)

    def mortal(parts: NodeParts) -> NodeParts:
        store = parts.store
        store.__class__ = MortalStore
        assert isinstance(store, MortalStore)
        store.arm(write, after=after)
        return parts

    for site in SITES[1:]:
        world.start(site)
    world.start("h1", mortal)
    await _died(world, "h1")
    await world.kill("h1")
    world.start("h1")
    await world.finish()
    world.check()


def _victim(world: World) -> str | None:
    """The site one of whose jobs was killed."""
    for site, node in world.nodes.items():
        for one in node._tasks.values():
            for _, job in one._jobs._jobs.values():
                if job.done() and isinstance(job.exception(), Killed):
                    return site
    return None


@pytest.mark.parametrize("altered", [False, True])
async def test_a_node_killed_while_it_writes_its_input_trains_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, altered: bool
) -> None:
    """With the model it has; if that file changed meanwhile, it fetches the model again."""
    world = World(tmp_path, rounds=1, size=CHUNKS_3)
    armed = [True]

    def die(
        path: Path, source: WordSource, plan: MaskPlan, abandoned: Callable[[], bool]
    ) -> Sha256:
        if armed:
            armed.clear()
            path.with_name(f"{path.name}.part").write_bytes(b"half")
            raise Killed
        return write_masked(path, source, plan, abandoned)

    monkeypatch.setattr(jobs, "write_masked", die)
    world.start_all()
    await world.until(lambda: _victim(world))
    victim = _victim(world)
    assert victim is not None
    await world.kill(victim)
    if altered:
        (model,) = (world.state_dir(victim) / "models").iterdir()
        data = model.read_bytes()
        model.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    world.start(victim)
    await world.finish()
    world.check()
    ((_, survivors, _),) = world.coordinator.opened
    refused = [m.code for node, m in world.sent if isinstance(m, Refused)]
    assert len(survivors) == len(SITES)
    assert not refused
    assert world.downloads.count((node_id(victim), 0)) == 1 + altered


async def test_a_killed_node_resumes_its_upload_with_the_same_bytes(tmp_path: Path) -> None:
    world = World(tmp_path, size=CHUNKS_3, rounds=1, vary=True)
    world.cut_upload_after[node_id("h4")] = 1
    held: list[bool] = []

    async def stuck(seconds: float) -> None:
        held.append(True)
        await asyncio.Event().wait()

    world.start_all()
    road = world.nodes["h4"]._around.road
    object.__setattr__(road, "sleep", stuck)
    await world.until(lambda: held)
    await world.kill("h4")
    world.start("h4")
    await world.finish()
    world.check()
    assert [first for node, first in world.uploads if node == node_id("h4")] == [0, 1]
    assert len(world.coordinator.opened[0][1]) == len(SITES)


async def test_a_node_whose_masked_vector_is_lost_leaves_the_round(tmp_path: Path) -> None:
    world = World(tmp_path, size=CHUNKS_3, rounds=1)
    world.cut_upload_after[node_id("h4")] = 1
    held: list[bool] = []

    async def stuck(seconds: float) -> None:
        held.append(True)
        await asyncio.Event().wait()

    world.start_all()
    object.__setattr__(world.nodes["h4"]._around.road, "sleep", stuck)
    await world.until(lambda: held)
    await world.kill("h4")
    (spool,) = (world.state_dir("h4") / "spool").iterdir()
    spool.unlink()
    world.start("h4")
    await world.finish()
    world.check()
    assert [node[-2:] for node in world.coordinator.opened[0][1]] == ["h1", "h2", "h3"]
    refused = [m for node, m in world.sent if isinstance(m, Refused) and node == node_id("h4")]
    assert [m.code for m in refused] == ["STATE_DAMAGED"]
    assert "spool" not in refused[0].detail, "no path leaves the hospital"


async def test_a_damaged_sealed_record_stops_the_node_and_is_not_replaced(tmp_path: Path) -> None:
    world = World(tmp_path, rounds=1)
    world.start_all()
    await world.finish()
    path = world.state_dir("h1") / "sessions" / f"{TASK}.sealed"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StateError, match=f"{TASK}.sealed") as caught:
        NodeStore.open(world.state_dir("h1"), OsEntropy())
    assert caught.value.name == "STATE_DAMAGED"
    assert path.read_bytes() == bytes(content)


# --- secrets at rest ------------------------------------------------------------------------


def _secrets(value: object) -> Iterator[bytes]:
    """Every Secret's bytes reachable from a frozen state."""
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _secrets(item)
    elif dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            yield from _secrets(getattr(value, item.name))


def _on_disk(directory: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


def _watch(seen: set[bytes], directory: Path, after_close: list[set[bytes]]) -> Callable[..., Any]:
    """A machine that notes the secrets of each state, and looks for them on the disk."""

    def handle(state: NodeState, event: NodeEvent, ctx: NodeContext) -> Outcome:
        disk = _on_disk(directory)
        for secret in seen:
            for form in (secret, secret.hex().encode(), base64.b64encode(secret)):
                assert form not in disk, "a secret lies open on the disk"
        new, commands = machine.handle(state, event, ctx)
        seen.update(_secrets(new))
        if any(isinstance(command, RoundClosed) for command in commands):
            assert isinstance(commands[0], Persist)
            session = state.session
            after_close.append(set(_secrets(session.open)) if session and session.open else set())
        return new, commands

    return handle


async def test_no_secret_is_ever_readable_on_disk_and_none_of_a_round_survives_its_end(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, suite=Suite.HYBRID)
    seen: set[bytes] = set()
    closed: list[set[bytes]] = []
    watch = _watch(seen, world.state_dir("h2"), closed)
    world.start("h2", lambda parts: dataclasses.replace(parts, handle=watch))
    for site in ("h1", "h3", "h4"):
        world.start(site)
    await world.finish()
    assert len(seen) > 30, "the watch saw the secrets of several rounds"
    assert len(closed) == world.rounds
    disk = _on_disk(world.state_dir("h2"))
    with NodeStore.open(world.state_dir("h2"), OsEntropy()) as store:
        record = store.load_session(TASK)
    assert record is not None
    left = set(_secrets(decode_state(record.state)))
    for secrets in closed:
        assert len(secrets) >= 8
        assert not secrets & left
        for secret in secrets:
            assert base64.b64encode(secret) not in record.state
            assert secret not in disk
    assert not list((world.state_dir("h2") / "spool").iterdir())


# --- offers, connection, stop ------------------------------------------------------------------


async def test_the_same_offer_gets_the_same_answer_after_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path, rounds=1)
    world.start_all()
    await world.finish()
    first = list(world.coordinator.decisions)
    world.start("h1")
    await world.until(lambda: len(world.coordinator.decisions) > len(first))
    assert world.coordinator.decisions[-1] == first[0]
    await world.stop()


async def test_an_offer_whose_hash_is_not_its_own_is_refused_without_a_record(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    node = world.start("h1")
    offer = StudyOffer(RunId("other"), b"{}", world.config_hash)
    decision, record = await node._offers.consider(offer)
    assert not decision.accepted
    assert decision.objections[0].code == "CONFIG_HASH"
    assert record is None
    assert not list((world.state_dir("h1") / "decisions").iterdir())
    await world.stop()


async def test_a_study_its_owner_has_not_signed_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.offer = dataclasses.replace(world.offer, signature=b"forged")
    world.start("h1")
    await world.until(lambda: world.coordinator.decisions)
    (objection,) = world.coordinator.decisions[0].objections
    assert objection.code == "OWNER_SIGNATURE"
    await world.stop()


async def test_a_policy_that_refuses_names_its_line_to_the_coordinator(tmp_path: Path) -> None:
    world = World(tmp_path)

    def strict(parts: NodeParts) -> NodeParts:
        policy = parts.desk._policy  # type: ignore[attr-defined]
        allow = policy.value.allow.model_copy(update={"purposes": ()})
        value = policy.value.model_copy(update={"allow": allow})
        parts.desk._policy = dataclasses.replace(policy, value=value)  # type: ignore[attr-defined]
        return parts

    world.start("h1", strict)
    await world.until(lambda: world.coordinator.decisions)
    (objection,) = world.coordinator.decisions[0].objections
    assert objection.code == "POLICY_PURPOSE"
    assert objection.detail.startswith("policy:6:")
    await world.stop()


async def test_an_unreachable_coordinator_is_dialled_with_growing_full_jitter_waits(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, rounds=1)
    world.unreachable["h1"] = 5
    for site in SITES:
        world.start(site)
    await world.finish()
    world.check()
    waits = [seconds for site, seconds in world.slept if site == "h1" and seconds < 10]
    assert waits[:5] == [0.1, 0.2, 0.4, 0.5, 0.5], "a second is the longest of a short outage"


async def test_stop_ends_a_node_in_order_and_frees_its_directory(tmp_path: Path) -> None:
    world = World(tmp_path)
    node = world.start("h1")
    await world.until(lambda: node.connected)
    node.stop()
    await world.running.pop("h1")
    assert "service.stopped" in world.log.getvalue()
    NodeStore.open(world.state_dir("h1"), OsEntropy()).close()


async def test_personal_models_that_take_long_keep_no_message_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(self: PersonalKeeper, run_id: RunId, open_work: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(PersonalKeeper, "make", endless)
    monkeypatch.setattr(PersonalKeeper, "wanting", lambda self, run_id: True)
    world = World(tmp_path)
    world.start_all()
    for node in world.nodes.values():
        for number in range(MOST_ERRANDS + 1):
            node._own_model(SimpleNamespace(run_id=f"old-{number}"), node._open_again)  # type: ignore[arg-type]
    await world.finish()
    world.check()


async def test_the_log_holds_no_value_of_the_vector_or_secret(tmp_path: Path) -> None:
    world = World(tmp_path)
    seen: set[bytes] = set()
    watch = _watch(seen, world.state_dir("h1"), [])
    for site in SITES:
        wrap = lambda parts: dataclasses.replace(parts, handle=watch)  # noqa: E731
        world.start(site, wrap if site == "h1" else None)
    await world.finish()
    text = world.log.getvalue()
    assert "round.closed" in text
    for secret in seen:
        assert secret.hex() not in text
        assert base64.b64encode(secret).decode() not in text
