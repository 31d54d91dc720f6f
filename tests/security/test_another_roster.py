"""A roster of another session changes nothing at a node that is in one."""

from __future__ import annotations

import dataclasses

import pytest

from common.errors import Refusal
from common.ids import RoundNo
from common.secagg import node as nd
from common.secagg.messages import Confirm, Roster
from tests.run_world import VECTOR, RunWorld


@pytest.mark.parametrize("suite", ["classical", "hybrid"])
def test_a_roster_of_another_session_is_refused_by_a_node_that_is_in_one(suite: str) -> None:
    world = RunWorld(VECTOR.replace("classical", suite))
    world.mute = {(world.at(3), Confirm)}
    world.begin()
    roster = next(step for to, step in world.sent if isinstance(step, Roster))
    node = world.nodes[world.at(0)]
    assert node.state.session is not None
    assert node.state.setup is None
    other = dataclasses.replace(roster, adverts=roster.adverts[:3], next_r=RoundNo(200))
    with pytest.raises(Refusal) as found:
        nd.handle(node.state, other, node.ctx)
    assert found.value.name == "EPOCH_OLD"
    again, _ = nd.handle(node.state, dataclasses.replace(roster, next_r=RoundNo(7)), node.ctx)
    assert again.session is not None
    assert again.session.next_r == 7
