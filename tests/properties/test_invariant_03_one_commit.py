"""Invariant 3: never two commits for one (session, r), whatever comes and crashes.

`World.bind` raises if a node signs, or releases for, a second set. Random scripts run
in `test_malicious_coordinator`; here every crash point of a round with two rival sets
is taken in turn, and every order of the two proposals and certificates.
"""

from __future__ import annotations

from itertools import permutations, product

import pytest

from common.ids import NodeId
from common.secagg import node as machine
from common.secagg.messages import Certificate, Commit, Digests, Propose
from common.secagg.node_state import NodeEvent
from tests.properties.adversary import World, cast
from tests.reference import plain

RIVALS = (frozenset({4}), frozenset({3}))


def uploaded() -> tuple[World, NodeId, tuple[Digests, Digests]]:
    """Return a round of five in which all have uploaded, a node, and two rival sets."""
    world = World(cast(5, 1, (2,)))
    ids = world.cast.ids
    for i in world.cast.honest:
        world.deliver(i, machine.MakeReady())
    hd = world.header(ids, r=1)
    header = world.seen[hd].header
    for i in world.cast.honest:
        world.deliver(i, machine.HeaderReceived(header, header.model_sha256))
        world.deliver(i, machine.InputFinal(hd, world.ydig(hd, i)))
    first, second = (
        world.digests(hd, [i for k, i in enumerate(ids) if k not in left]) for left in RIVALS
    )
    return world, ids[0], (first, second)


def forged(world: World, digests: Digests) -> Certificate:
    """Return a certificate that the node cannot tell from a true one."""
    hd = next(iter(world.seen))
    for i, _ in digests:
        session = world.states[i].session if i in world.states else None
        if session is not None:
            statement = plain.commit_statement(hd, {str(j): bytes(y) for j, y in digests})
            world.seen[hd].sigs[digests][i] = session.key.sign(statement)
    return world.certificate(hd, digests)


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_no_order_of_rival_sets_gets_two_commits(order: tuple[int, ...]) -> None:
    for crashes in product((None, 0, 1, 2), repeat=2):
        world, node, (first, second) = uploaded()
        hd = next(iter(world.seen))
        events: list[NodeEvent] = [
            Propose(hd, first),
            Propose(hd, second),
            forged(world, first),
            forged(world, second),
        ]
        for place, which in enumerate(order):
            world.deliver(node, events[which], crashes[place] if place < 2 else None)
            world.deliver(node, machine.Restarted())
        for event in events:
            world.deliver(node, event)
        assert len(world.bound[node, world.cast.session_id, 1]) == 1
        assert world.refusals["SET_CONFLICT"] >= 2


def test_the_same_set_again_gets_the_same_signature_after_any_crash() -> None:
    for crash_at in (None, 0, 1, 2):
        world, node, (first, _) = uploaded()
        heard: list[Commit] = []
        listen = world.hear_commit

        def hear(i: NodeId, message: Commit, heard: list[Commit] = heard) -> None:
            heard.append(message)

        world.hear_commit = hear  # type: ignore[method-assign, assignment]
        hd = next(iter(world.seen))
        world.deliver(node, Propose(hd, first), crash_at)
        world.deliver(node, machine.Restarted())
        world.deliver(node, Propose(hd, first))
        assert heard
        assert set(heard) == {heard[0]}
        listen(node, heard[0])


def test_a_second_header_of_the_round_cannot_be_signed_either() -> None:
    world, node, (first, _) = uploaded()
    hd = next(iter(world.seen))
    world.deliver(node, Propose(hd, first))
    for crash in (False, True):
        if crash:
            world.crash(node)
        world.deliver(node, machine.MakeReady())
        other = world.header(world.cast.ids, r=1, variant=1)
        header = world.seen[other].header
        world.deliver(node, machine.HeaderReceived(header, header.model_sha256))
        world.deliver(node, machine.InputFinal(other, world.ydig(other, node)))
        world.deliver(node, Propose(other, world.digests(other, world.cast.ids)))
        session = world.states[node].session
        assert session is not None
        assert session.open is not None
        assert session.open.hd == hd
    assert len(world.bound[node, world.cast.session_id, 1]) == 1
