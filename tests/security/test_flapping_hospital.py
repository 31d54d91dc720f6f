"""A hospital that keeps coming back without keys costs rounds a little time, never all of it."""

from __future__ import annotations

from common.secagg.messages import KeyAdvert, Ready
from coordinator import run_state as rs
from tests.run_world import RunWorld


def _flap(world: RunWorld, place: int) -> None:
    node = world.at(place)
    world.tell(rs.NodeLost(node), rs.NodeConnected(node, has_keys=False))
    for name in [name for name in world.timers if name.endswith("adverts")]:
        world.fire(name)


def test_a_hospital_that_flaps_cannot_keep_the_others_from_their_round() -> None:
    world = RunWorld()
    world.mute = {(world.at(3), KeyAdvert), (world.at(1), Ready)}
    world.begin()
    world.fire(next(name for name in world.timers if name.endswith("adverts")))
    first = world.epoch
    for _ in range(20):
        _flap(world, 3)
    assert world.epoch == first
    world.mute.discard((world.at(1), Ready))
    world.lose(1)
    world.connect(1)
    assert world.sums


def test_a_hospital_that_is_needed_is_given_new_keys_at_once() -> None:
    world = RunWorld(n=3)
    world.mute = {(world.at(1), Ready)}
    world.begin()
    first = world.epoch
    world.lose(2)
    world.nodes[world.at(2)].state = type(world.nodes[world.at(2)].state)()
    world.mute.clear()
    world.connect(2)
    assert world.epoch == first + 1
    assert world.sums
