"""Invariant 11: a coordinator killed at each durable write proposes no second S.

Restarted from its facts it ends with the same sum over the same S, or ABORTED; never
with a second set, whatever else is lost on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ids import NodeId
from common.secagg.coordinator_state import RoundPhase
from common.secagg.messages import Certificate, Digests, Propose, Release, RoundStart
from tests.properties.profile import bounded
from tests.simulation.secagg_harness import Envelope, Setting, Simulation, Uploaded, node_id

SETTING = Setting(n=5, colluders=1, d=6)


@dataclass
class Watch:
    """Sees every set and header that leaves the coordinator."""

    mute: dict[NodeId, type]
    sets: set[Digests] = field(default_factory=set)
    headers: set[bytes] = field(default_factory=set)
    silent: set[NodeId] = field(default_factory=set)

    def __call__(self, envelope: Envelope) -> list[Envelope]:
        match envelope.to_node:
            case Propose() | Certificate() as message:
                self.sets.add(message.digests)
            case RoundStart(header):
                self.headers.add(header.digest())
            case _:
                pass
        step = self.mute.get(envelope.node)
        if step is not None and isinstance(envelope.from_node, step):
            self.silent.add(envelope.node)
        return [] if envelope.node in self.silent else [envelope]


def play(
    kill: int | None, mute: dict[NodeId, type], picks: list[int] | None = None
) -> tuple[Simulation, Watch]:
    """Run a round whose coordinator dies at durable write number `kill`."""
    sim = Simulation(SETTING)
    watch = Watch(mute)
    sim.open_session()
    sim.run()
    sim.on_send = watch
    if kill is not None:
        sim.coordinator.crash_at = sim.coordinator.writes + kill
    order = iter(picks or [])
    sim.open_round()
    for _ in range(3):
        sim.run(lambda flying: next(order, 0) % len(flying))
        for i in watch.silent - sim.away:
            sim.lose(SETTING.ids.index(i))
    for name in ("round", "commit", "release", "recover"):
        for _ in range(2):
            sim.fire(name)
            sim.run()
            for i in watch.silent - sim.away:
                sim.lose(SETTING.ids.index(i))
    return sim, watch


def check(sim: Simulation, watch: Watch) -> None:
    assert len(watch.sets) <= 1
    assert len(watch.headers) <= 1
    assert len({one.survivors for one in sim.coordinator.opened}) <= 1
    assert len({one.total for one in sim.coordinator.opened}) <= 1
    assert all(one.exact for one in sim.coordinator.opened)


MUTES: tuple[dict[NodeId, type], ...] = (
    {},
    {node_id(1): Uploaded},
    {node_id(4): Release},
    {node_id(0): Uploaded, node_id(3): Release},
)


@pytest.mark.parametrize("mute", MUTES, ids=["none", "dropout", "silent", "both"])
def test_killed_at_each_write_it_ends_with_the_same_set_and_sum(mute: dict[NodeId, type]) -> None:
    calm, watch = play(None, mute)
    check(calm, watch)
    assert calm.round.phase is RoundPhase.CLOSED
    writes = len(calm.coordinator.round_log)
    survivors = set(calm.coordinator.opened[0].survivors)
    assert survivors == set(SETTING.ids) - {i for i, step in mute.items() if step is Uploaded}
    ended = []
    for kill in range(1, writes + 1):
        sim, watch = play(kill, mute)
        check(sim, watch)
        ended.append(sim.round.phase)
        if sim.round.phase is RoundPhase.CLOSED:
            assert set(sim.coordinator.opened[-1].survivors) == survivors
    assert set(ended) <= {RoundPhase.CLOSED, RoundPhase.ABORTED}
    assert ended.count(RoundPhase.CLOSED) >= len(ended) - 2


@given(
    st.sampled_from(MUTES),
    st.integers(1, 30),
    st.lists(st.integers(0, 50), max_size=60),
)
@bounded(60)
def test_killed_anywhere_under_any_order_of_delivery(
    mute: dict[NodeId, type], kill: int, picks: list[int]
) -> None:
    sim, watch = play(kill, mute, picks)
    check(sim, watch)
