"""A hospital that keeps coming back without keys costs rounds a little time, never all of it."""

from __future__ import annotations

import pytest

from common.secagg.messages import KeyAdvert, Ready, Refused
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


def _needed() -> RunWorld:
    """Return a run that cannot do without any of three, and whose round never gets ready."""
    world = RunWorld(n=3)
    world.mute = {(world.at(1), Ready)}
    world.begin()
    return world


@pytest.mark.parametrize("reconnects", [False, True])
def test_a_hospital_that_confirms_and_disowns_its_keys_again_and_again_costs_little(
    *, reconnects: bool
) -> None:
    """Minutes of it, as fast as it can: the pauses grow to a set-up's own time."""
    world = _needed()
    first, liar = world.epoch, world.at(2)
    while world.now < 240.0:
        for _ in range(50):
            if reconnects:
                world.tell(rs.NodeLost(liar), rs.NodeConnected(liar, has_keys=False))
            else:
                world.hear(liar, Refused(b"", "OWN_ADVERT", "another process has them"))
        world.fire("rejoin")
    # 0.5, 1, 2, ... 16 s, and then every 30 s.
    assert world.epoch - first <= 7 + 240 / 30
    world.hear(liar, Refused(b"", "OWN_ADVERT", "another process has them"))
    writes = len(world.facts)
    world.hear(liar, Refused(b"", "OWN_ADVERT", "another process has them"))
    assert len(world.facts) == writes
    world.mute.clear()
    world.fire("rejoin")
    assert world.sums, "and who stops it takes part again"


def test_a_hospital_that_loses_its_keys_twice_waits_for_half_a_second_at_most() -> None:
    world = _needed()
    first = world.epoch
    for lost in (1, 2):
        world.hear(world.at(2), Refused(b"", "OWN_ADVERT", "another process has them"))
        if lost == 2:
            assert world.epoch == first + 1
            assert world.timers["rejoin"] <= 0.5
            world.fire("rejoin")
        assert world.epoch == first + lost
    world.mute.clear()
    world.lose(1)
    world.connect(1)
    assert len(world.sums) == 2
    assert world.state.rejoin_at == 0.0, "an opened round ends the pauses"


def test_two_hospitals_that_come_and_go_in_turn_have_no_epoch_each_time() -> None:
    world = RunWorld()
    world.mute = {(world.at(0), Ready), (world.at(1), Ready)}
    world.begin()
    first = world.epoch
    for place in (2, 3) * 20:
        world.lose(place)
        other = world.at(5 - place)
        world.tell(rs.NodeLost(other), rs.NodeConnected(other, has_keys=False))
    assert world.epoch <= first + 1


def test_while_too_few_are_there_or_make_keys_a_hospital_that_flaps_costs_no_epoch() -> None:
    world = RunWorld(n=3)
    world.mute = {(world.at(0), KeyAdvert)}
    world.begin()
    world.lose(1)
    world.fire("session:adverts")  # two of three are too few: it is tried again
    assert world.state.paused
    before = len(world.done(rs.ReserveEpoch))
    for _ in range(20):
        _come_back(world, 2)
    assert len(world.done(rs.ReserveEpoch)) == before
    for _ in range(20):
        world.connect(1)  # now they are enough, and the first one still makes its keys
        _come_back(world, 0)
        _come_back(world, 2)
    assert len(world.done(rs.ReserveEpoch)) == before + 1
    world.mute.clear()
    _come_back(world, 0)
    world.connect(0)
    assert len(world.sums) == 2


def _come_back(world: RunWorld, place: int) -> None:
    world.lose(place)
    world.connect(place)


def test_the_first_model_is_made_once_however_often_a_hospital_disowns_its_keys() -> None:
    world = RunWorld()
    world.hold = {rs.MakeFirstModel}
    world.begin()
    for _ in range(20):
        world.hear(world.at(3), Refused(b"", "OWN_ADVERT", "another process has them"))
        world.lose(3)
        world.connect(3)
    assert len(world.held) == 1
    world.restart()
    world.tell()
    assert len(world.held) == 1, "a new process asks once more: the former's work is lost"
    world.release_held()
    assert len(world.sums) == 2


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
