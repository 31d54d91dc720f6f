"""A study that a hospital's clock alone speaks against is neither refused nor accepted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from common.errors import IdentityError, Refusal
from common.ids import RunId
from common.messages import RunEnded, StudyOffer, Welcome
from hospital_node.driver import MOST_ERRANDS, Node, NodeParts
from hospital_node.releases import ReleaseTrust
from hospital_node.status import describe
from tests.node_world import FEDERATION, RUN, SimReleaseTrust, World

HOUR = 3600.0
VALID_S = 1.5 * HOUR
"""The owner's certificate is valid for so long before and after the true time at the start."""


class Dated(SimReleaseTrust):
    """The owner's certificate has dates."""

    def verify_owner(self, offer: StudyOffer, now_unix: int) -> None:
        super().verify_owner(offer, now_unix)
        if abs(now_unix - World(Path()).clock.unix()) > VALID_S:
            raise Refusal("OWNER_SIGNATURE", "the certificate is not valid")


def dated(parts: NodeParts) -> NodeParts:
    trust: ReleaseTrust = Dated((), FEDERATION)
    return dataclasses.replace(parts, release_trust=trust)


def world_at(root: Path, *, here_s: float, there_s: float) -> World:
    """Return a world whose hospital and coordinator are so far ahead of the true time."""
    world = World(root)
    world.clock.now = 5 * HOUR  # the machine has been up for a while
    true = world.clock.epoch
    world.clock.epoch = true + here_s - 5 * HOUR
    world.told = lambda: int(true + there_s + world.clock.monotonic() - 5 * HOUR)
    return world


async def waiting(world: World) -> Node:
    """Start a hospital, and wait until it has put its offer off."""
    node = world.start("h1", dated)
    await world.until(lambda: node._later or world.coordinator.decisions)
    assert world.coordinator.decisions == []
    return node


@pytest.mark.parametrize(
    ("off_s", "words"),
    [(2 * HOUR, "about 2 h ahead"), (-2 * HOUR, "about 2 h behind")],
    ids=["ahead", "behind"],
)
async def test_a_study_waits_while_the_hospitals_clock_is_wrong_and_is_taken_once_it_is_right(
    tmp_path: Path, off_s: float, words: str
) -> None:
    world = world_at(tmp_path, here_s=off_s, there_s=0.0)
    node = await waiting(world)
    said = [line for line in world.log.getvalue().splitlines() if '"CLOCK_OFF"' in line]
    assert len(said) == 1
    assert words in said[0]
    assert f"run {RUN} is decided on once" in said[0]
    assert words in describe({**node.status(), "running": True}, 0.0)
    assert not list((world.state_dir("h1") / "decisions").iterdir())

    node._tick()
    await world.settle()
    assert world.coordinator.decisions == [], "the clock is as wrong as before"
    assert world.log.getvalue().count('"CLOCK_OFF"') == 1, "it is said once"

    world.clock.epoch -= off_s
    node._tick()
    await world.until(lambda: world.coordinator.decisions)
    assert world.coordinator.decisions[0].accepted
    assert words not in describe({**node.status(), "running": True}, 0.0)
    await world.stop()


async def test_a_clock_that_is_set_wrong_while_connected_refuses_nothing_either(
    tmp_path: Path,
) -> None:
    world = world_at(tmp_path, here_s=0.0, there_s=0.0)
    node = world.start("h1", dated)
    await world.until(lambda: world.coordinator.decisions)
    world.clock.advance(VALID_S / 2)  # what the coordinator told grows with the durations
    world.clock.epoch += 2 * HOUR
    with pytest.raises(IdentityError, match="about 2 h ahead") as said:
        await node._offers.consider(dataclasses.replace(world.offer, run_id=RunId("another")))
    assert said.value.name == "CLOCK_OFF"
    await world.stop()


@pytest.mark.parametrize(
    ("here_s", "there_s"),
    [
        (2 * HOUR, 2 * HOUR),
        (2 * HOUR, 2 * HOUR - 200.0),
        (2 * HOUR, 4 * HOUR),
        (2 * HOUR, -2 * HOUR),
    ],
    ids=["the same time", "within what is tolerated", "both after it", "one after, one before"],
)
async def test_a_certificate_that_is_not_valid_by_either_clock_is_refused_for_good(
    tmp_path: Path, here_s: float, there_s: float
) -> None:
    world = world_at(tmp_path, here_s=here_s, there_s=there_s)
    node = world.start("h1", dated)
    await world.until(lambda: node._later or world.coordinator.decisions)
    (objection,) = world.coordinator.decisions[0].objections
    assert objection.code == "OWNER_SIGNATURE"
    await world.stop()


async def test_clocks_that_just_disagree_about_the_end_are_agreed_within_what_is_tolerated(
    tmp_path: Path,
) -> None:
    world = world_at(tmp_path, here_s=VALID_S + 100.0, there_s=VALID_S - 100.0)
    world.start("h1", dated)
    await world.until(lambda: world.coordinator.decisions)
    assert not world.coordinator.decisions[0].accepted
    await world.stop()


async def test_a_coordinator_that_tells_another_time_gets_no_study_accepted_by_it(
    tmp_path: Path,
) -> None:
    """The hospital's clock is right, and the certificate expired: there is no answer, ever."""
    world = world_at(tmp_path, here_s=2 * HOUR, there_s=0.0)
    node = await waiting(world)
    for ahead_s in (-HOUR, 0.0, HOUR):
        world.told = lambda ahead_s=ahead_s: int(world.clock.unix() - 2 * HOUR + ahead_s)  # type: ignore[misc]
        node._compare_clocks(Welcome(FEDERATION, 10_000, unix=world.told()))
        node._tick()
        await world.settle()
    assert world.coordinator.decisions == []
    node._compare_clocks(Welcome(FEDERATION, 10_000, unix=int(world.clock.unix())))
    node._tick()
    await world.until(lambda: world.coordinator.decisions)
    assert not world.coordinator.decisions[0].accepted, "it told the truth: refused for good"
    await world.stop()


@pytest.mark.parametrize(
    ("here_s", "there_s"),
    [(0.0, 2 * HOUR), (HOUR, 0.0)],
    ids=["by the hospital's alone", "by both, which differ"],
)
async def test_a_study_that_is_good_by_the_hospitals_clock_is_taken_whatever_the_other_says(
    tmp_path: Path, here_s: float, there_s: float
) -> None:
    world = world_at(tmp_path, here_s=here_s, there_s=there_s)
    world.start("h1", dated)
    await world.until(lambda: world.coordinator.decisions)
    assert world.coordinator.decisions[0].accepted
    await world.stop()


async def test_a_forged_signature_is_refused_whatever_the_clocks_say(tmp_path: Path) -> None:
    world = world_at(tmp_path, here_s=2 * HOUR, there_s=0.0)
    world.offer = dataclasses.replace(world.offer, signature=b"forged")
    world.start("h1", dated)
    await world.until(lambda: world.coordinator.decisions)
    assert not world.coordinator.decisions[0].accepted
    await world.stop()


async def test_a_run_that_ended_or_is_offered_anew_is_not_taken_up_by_the_old_offer(
    tmp_path: Path,
) -> None:
    world = world_at(tmp_path, here_s=2 * HOUR, there_s=0.0)
    node = await waiting(world)
    node._ended(RunEnded(RUN, "failed", ""))
    assert node._later == {}
    await node._logged(
        node._consider("pattern", dataclasses.replace(world.offer, run_id=RunId("gone")))
    )
    assert list(node._later) == ["gone"]
    world.links[next(iter(world.links))].sever()
    await world.until(lambda: list(node._later) == [RUN])  # by the new offer
    await world.stop()


async def test_a_coordinator_cannot_fill_the_memory_with_offers_that_wait(tmp_path: Path) -> None:
    world = world_at(tmp_path, here_s=2 * HOUR, there_s=0.0)
    node = await waiting(world)
    for number in range(MOST_ERRANDS + 3):
        offer = dataclasses.replace(world.offer, run_id=RunId(f"more-{number}"))
        await node._logged(node._consider("pattern", offer))
    assert len(node._later) == MOST_ERRANDS
    assert list(node._later)[-1] == f"more-{MOST_ERRANDS + 2}"
    await world.stop()
