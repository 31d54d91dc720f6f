"""A member whose keys are of no use costs itself the epoch, and nobody else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from common.secagg.messages import KeyAdvert
from common.secagg.session import body_of
from tests.run_world import VECTOR, RunWorld
from tests.simulation.secagg_harness import NOW

SMALL_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


def _world(suite: str, **fields: bytes | int) -> RunWorld:
    """A run in which the first hospital signs an advert with other public keys."""
    world = RunWorld(VECTOR.replace("classical", suite))
    liar = world.nodes[world.at(0)]
    hear = liar.hear

    def lie(event: Any) -> list[Any]:  # noqa: ANN401 - any event
        said = []
        for one in hear(event):
            if isinstance(one, KeyAdvert):
                bad = replace(one, **fields)  # type: ignore[arg-type]
                one = replace(bad, sig=liar.signer.sign(body_of(bad)))  # noqa: PLW2901
            said.append(one)
        return said

    liar.hear = lie  # type: ignore[method-assign]
    return world


def _roster_is_due(world: RunWorld) -> None:
    world.fire(next(name for name in world.timers if name.endswith("adverts")))


@pytest.mark.parametrize("point", SMALL_ORDER, ids=lambda p: p.hex()[:8])
def test_a_point_of_small_order_costs_its_sender_the_epoch_only(point: bytes) -> None:
    world = _world("classical", x25519_pub=point)
    world.begin()
    assert [refusal.name for refusal in world.refused] == ["ZERO_DH"]
    _roster_is_due(world)
    assert world.sums
    assert all(world.at(0) not in survivors for _, survivors, _ in world.sums)


def test_bytes_that_are_no_mlkem_key_cost_their_sender_the_epoch_only() -> None:
    world = _world("hybrid", mlkem_pub=b"\xff" * 1184)
    world.begin()
    assert [refusal.name for refusal in world.refused] == ["KEM"]
    _roster_is_due(world)
    assert world.sums
    assert all(world.at(0) not in survivors for _, survivors, _ in world.sums)


def test_a_key_that_runs_out_at_once_costs_its_sender_the_epoch_only() -> None:
    world = _world("classical", not_after=NOW + 5)
    world.begin()
    assert [refusal.name for refusal in world.refused] == ["EPOCH_OLD"]
    _roster_is_due(world)
    world.now += 10
    assert world.sums
    assert world.epoch == 101
    assert all(world.at(0) not in survivors for _, survivors, _ in world.sums)
