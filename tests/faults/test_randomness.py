"""Randomness that repeats (F75): copied machines, clones with one state, forked processes."""

from __future__ import annotations

import os
from itertools import combinations

import pytest

from common.entropy import CountingEntropy, OsEntropy
from common.ids import RoundNo
from common.secagg import node
from common.secagg.messages import Roster
from tests.faults.record import record
from tests.faults.test_hostile_coordinator import adverts_of
from tests.simulation.secagg_harness import Setting, Simulation
from tests.unit.common.secagg.test_node import Scripted, opened, refused


@pytest.mark.fault("F75")
def test_two_nodes_with_one_stream_of_randomness_are_found_at_the_roster() -> None:
    sim = Simulation(Setting(n=4, colluders=1))
    for place in (1, 2):
        sim.at(place).entropy = CountingEntropy(b"a virtual machine that was copied")
    adverts = adverts_of(sim)
    for one in sim.nodes.values():
        assert refused(one, Roster(adverts, RoundNo(1))) == "ADVERT_DUP"
        assert one.state.session is None


@pytest.mark.fault("F75")
def test_equal_randomness_after_the_set_up_repeats_no_pair_mask_and_no_share() -> None:
    """Self and coefficient seeds are then equal; what two nodes send has nothing in common."""
    play = Scripted()
    for one in play.sim.nodes.values():
        one.entropy = CountingEntropy(b"all hospitals are one image")
    play.start()
    nodes = list(play.sim.nodes.values())
    assert len({opened(one).b.reveal() for one in nodes}) == 1, "that is the fault"
    masks = [seed.reveal() for one in nodes for seed, _ in node.mask_plan(one.state, one.id).edges]
    assert len(set(masks)) == len(masks) // 2, "each pair has its own, known to both ends"
    seals = [pair.seal_to.reveal() for one in nodes for pair in opened(one).pairs]
    assert len(set(seals)) == len(seals)
    bodies = [bytes(end.body) for end in play.ends.values()]
    for body, other in combinations(bodies, 2):
        assert body != other
        equal = sum(a == b for a, b in zip(body, other, strict=True))
        assert equal < len(body) / 4


@pytest.mark.fault("F75")
def test_a_clone_with_the_same_state_makes_other_masks_or_the_same_bytes() -> None:
    """With randomness of its own it says another nonce: one of the two is in no header."""
    play = Scripted()
    one = play.at(0)
    copied = node.encode_state(one.state)
    header = play.header()
    one.hear(node.HeaderReceived(header, header.model_sha256))
    original = opened(one)
    one.state = node.decode_state(copied)
    one.entropy = CountingEntropy(b"what the copy's system gives it")
    one.hear(node.MakeReady())
    assert refused(one, node.HeaderReceived(header, header.model_sha256)) == "HEADER_NONCE"
    later = play.header()
    one.hear(node.HeaderReceived(later, later.model_sha256))
    seeds = {pair.edge.reveal() for pair in original.pairs} | {original.b.reveal()}
    assert not seeds & (
        {pair.edge.reveal() for pair in opened(one).pairs} | {opened(one).b.reveal()}
    )


@pytest.mark.fault("F75")
def test_processes_that_were_forked_draw_different_bytes() -> None:
    entropy = OsEntropy()
    entropy.take(32)
    drawn = {entropy.take(32)}
    for _ in range(8):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, entropy.take(32))
            os._exit(0)
        os.waitpid(child, 0)
        drawn.add(os.read(reader, 32))
        os.close(reader)
        os.close(writer)
    assert len(drawn) == 9
    record("F75", trials=9, failures=0)
