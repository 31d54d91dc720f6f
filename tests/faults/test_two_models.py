"""A coordinator that shows some hospitals another model (F66): every split of small federations."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from common.ids import HeaderDigest, NodeId
from common.secagg import node
from common.secagg.messages import Certificate, Propose
from common.secagg.params import SecAggParams
from common.secagg.transcript import commit_statement
from tests.faults.record import record
from tests.faults.test_hostile_coordinator import FIRST, PLACES, SECOND
from tests.properties.adversary import World, cast
from tests.unit.common.secagg.test_node import Scripted, live, refused


@pytest.mark.fault("F66")
@pytest.mark.parametrize(("n", "c"), [(3, 0), (4, 1), (5, 1), (6, 1)])
def test_of_two_models_in_a_round_one_at_most_is_opened_and_over_a_quorum(n: int, c: int) -> None:
    """Whoever is shown which: the coordinator plays every split, and asks everybody everything."""
    players, both = cast(n, c), 0
    q = SecAggParams.derive(n, c).q
    for shown in range(2**n):
        world = World(players)
        for one in players.ids:
            world.deliver(one, node.MakeReady())
        hds = [world.header(players.ids, r=1, model=model) for model in (0, 1)]
        groups = [
            [one for place, one in enumerate(players.ids) if (shown >> place) % 2 == model]
            for model in (0, 1)
        ]
        for hd, group in zip(hds, groups, strict=True):
            header = world.seen[hd].header
            for one in group:
                world.deliver(one, node.HeaderReceived(header, header.model_sha256))
                world.deliver(one, node.InputFinal(hd, world.ydig(hd, one)))
        for hd, group in zip(hds, groups, strict=True):
            _ask_everything(world, hd, group)
        world.check()
        sums = [part for hd in hds for part in world.open_parts(world.seen[hd])]
        assert len(sums) <= 1
        assert all(len(part) >= q for part in sums)
        assert len(sums) == any(len(group) >= q for group in groups)
        both += all(groups)
        _no_edge_between(world, hds)
    assert both == 2**n - 2
    record("F66", trials=2**n, failures=0)


def _ask_everything(world: World, hd: HeaderDigest, group: list[NodeId]) -> None:
    """Propose, certify and recover the group and each set that leaves one of it out, to all."""
    for chosen in (group, *(list(some) for some in combinations(group, max(0, len(group) - 1)))):
        if not chosen:
            continue
        digests = world.digests(hd, chosen)
        for one in world.cast.ids:
            world.deliver(one, Propose(hd, digests))
        for one in world.cast.ids:
            world.deliver(one, world.certificate(hd, digests))
        for one in world.cast.ids:
            silent = [other for other in chosen if other != one]
            world.deliver(one, world.recover_request(hd, digests, one, silent))


def _no_edge_between(world: World, hds: list[HeaderDigest]) -> None:
    """Hospitals that were shown different models hold no mask in common: the tags say so."""
    ours, theirs = (world.seen[hd].uploads for hd in hds)
    for one, end in ours.items():
        for other, their_end in theirs.items():
            assert dict(end.tags)[other] != dict(their_end.tags)[one]


@pytest.mark.fault("F66")
def test_a_commit_for_one_model_signs_nothing_about_the_other() -> None:
    play = Scripted()
    header = play.header(1, FIRST)
    other = replace(header, model_sha256=SECOND)
    play.start(header)
    digests = play.digests()
    forged = tuple(
        (one.id, live(one).key.sign(commit_statement(header.digest(), dict(digests))))
        for one in play.sim.nodes.values()
    )
    for place in PLACES:
        certificate = Certificate(other.digest(), digests, forged)
        assert refused(play.at(place), certificate) == "CLOSED"
