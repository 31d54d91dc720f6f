"""Invariant 6: one header, one upload, byte for byte; two headers, no common AES key."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.encoding import Label, expand
from common.ids import Epoch, HeaderDigest, NodeId
from common.secagg import node
from common.secagg.keys import Suite
from tests.properties.adversary import World, cast
from tests.properties.profile import bounded
from tests.properties.test_malicious_coordinator import SCRIPTS, Attack, Script
from tests.simulation.secagg_harness import Setting, SimNode, Simulation, Uploaded, node_id

KEY = tuple[NodeId, HeaderDigest]


@given(st.integers(1, 40), st.integers(0, 3), st.sampled_from(Suite))
@bounded(40)
def test_an_upload_is_the_same_bytes_after_a_crash_at_any_write(
    write: int, place: int, suite: Suite
) -> None:
    sim = Simulation(Setting(n=4, suite=suite, d=9))
    sim.open_session()
    sim.run()
    one = sim.nodes[node_id(place)]
    one.crash_at = one.writes + write % 6
    sim.open_round()
    sim.run()
    for again in range(3):
        sim.crash_node((place + again) % 4)
        sim.run()
    uploads: dict[KEY, set[bytes]] = defaultdict(set)
    for each in sim.nodes.values():
        for said in each.said:
            if isinstance(said, Uploaded):
                record = repr(said.end).encode() + said.body
                uploads[each.id, said.end.hd].add(record)
    assert uploads
    assert all(len(records) == 1 for records in uploads.values())


def aes_keys(one: SimNode) -> set[bytes]:
    plan = node.mask_plan(one.state, one.id)
    seeds = [plan.self_seed.reveal(), *(seed.reveal() for seed, _ in plan.edges)]
    return {expand(seed, Label.MASK, plan.ring_bits) for seed in seeds}


@pytest.mark.fault("F75")
def test_no_two_headers_share_a_mask_key_not_even_after_an_old_backup() -> None:
    sim = Simulation(Setting(n=3, colluders=0))
    sim.open_session()
    sim.run()
    used: dict[HeaderDigest, set[bytes]] = defaultdict(set)

    def note() -> None:
        for one in sim.nodes.values():
            session = one.state.session
            if session is not None and session.open is not None:
                used[session.open.hd] |= aes_keys(one)

    backup = [one.state for one in sim.nodes.values()]
    for restored in (False, True):
        if restored:  # every node is set back to before the first round, and agrees on keys anew
            for one, old in zip(sim.nodes.values(), backup, strict=True):
                one.state, _ = node.handle(old, node.BackupRestored(), one.ctx)
            sim.coordinator.round = None
            sim.open_session(replace(sim.setting.terms, epoch=Epoch(sim.setting.terms.epoch + 1)))
            sim.run()
        for _ in range(3):
            sim.open_round()
            while sim.flying:
                note()
                sim.deliver(sim.flying.pop(0))
    assert len(used) == 6
    keys = [key for each in used.values() for key in each]
    assert len(keys) == len(set(keys)) == 6 * (3 + 3)


@given(SCRIPTS)
@bounded(60)
@pytest.mark.fault("F75")
def test_no_script_makes_two_headers_share_a_seed(script: Script) -> None:
    world = Attack(script).play()
    owners: dict[bytes, set[tuple[HeaderDigest, frozenset[NodeId]]]] = defaultdict(set)
    for hd, known in world.seen.items():
        for i, opened in known.truth.items():
            owners[opened.b.reveal()].add((hd, frozenset((i,))))
            for pair in opened.pairs:
                owners[pair.edge.reveal()].add((hd, frozenset((i, pair.peer))))
    assert all(len(owner) == 1 for owner in owners.values())


def test_a_second_input_for_one_header_is_refused() -> None:
    world = World(cast(4, 1))
    for i in world.cast.ids:
        world.deliver(i, node.MakeReady())
    hd = world.header(world.cast.ids, r=1)
    header = world.seen[hd].header
    first = world.cast.ids[0]
    world.deliver(first, node.HeaderReceived(header, header.model_sha256))
    ydig = world.ydig(hd, first)
    world.deliver(first, node.InputFinal(hd, ydig))
    world.deliver(first, node.InputFinal(hd, world.ydig(hd, world.cast.ids[1])), 1)
    assert world.refusals == {"DIGEST": 1}
    assert world.seen[hd].uploads[first].ydig == ydig
