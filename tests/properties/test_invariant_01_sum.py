"""Invariant 1: for every n, c, w and tolerated dropout pattern the opened sum is exact.

A node may vanish at any step. Up to `n - max(q, s_min)` of them may, whatever the
step, as long as q members of S still sign and t_h helpers remain; then the round has
to open, over exactly the integer vectors of S. The federation is real: machines,
masks, shares; only the wire is simulated.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.errors import Refusal
from common.ids import NodeId
from common.secagg.coordinator_state import RoundPhase
from common.secagg.header import quant_bound
from common.secagg.keys import Suite
from common.secagg.messages import Commit, RecoverShares, Release
from common.secagg.params import SecAggParams, quorum, smallest_set
from tests.properties.profile import bounded
from tests.simulation.secagg_harness import Envelope, Setting, Simulation, Uploaded, node_id

STEPS = (Uploaded, Commit, Release)
"""The message that a vanishing node never gets out."""


@dataclass(frozen=True, slots=True)
class Case:
    """A federation and who vanishes before saying what."""

    setting: Setting
    lost: tuple[tuple[int, type], ...]

    @property
    def tolerable(self) -> bool:
        """Return whether the round has to open all the same (section 1, liveness)."""
        n, c = self.setting.n, self.setting.colluders
        before = sum(step is Uploaded for _, step in self.lost)
        unsigned = sum(step is not Release for _, step in self.lost)
        helpers = n - len(self.lost)
        silent = len(self.lost) > before
        return (
            n - before >= smallest_set(n, c)
            and n - unsigned >= quorum(n, c)
            and (not silent or helpers >= c + 1)
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n = draw(st.integers(3, 9))
    colluders = [c for c in range(n) if smallest_set(n, c) <= n and c + 1 <= n - 1]
    c = draw(st.sampled_from(colluders))
    places = draw(st.lists(st.integers(0, n - 1), unique=True, max_size=n - quorum(n, c) + 1))
    lost = tuple((place, draw(st.sampled_from(STEPS))) for place in places)
    setting = Setting(
        n=n,
        colluders=c,
        d=draw(st.integers(1, 40)),
        w=draw(st.sampled_from([16, 32, 64])),
        suite=draw(st.sampled_from([Suite.CLASSICAL, Suite.CLASSICAL, Suite.HYBRID])),
        seed=draw(st.integers(0, 2**32)),
    )
    return Case(setting, lost)


def play(case: Case) -> Simulation:
    """Run a round in which the lost nodes fall silent, each before its step."""
    sim = Simulation(case.setting)
    sim.open_session()
    sim.run()
    mute: set[NodeId] = set()
    doom = {node_id(place): step for place, step in case.lost}

    def on_send(envelope: Envelope) -> list[Envelope]:
        said = envelope.from_node
        step = doom.get(envelope.node)
        if step is not None and isinstance(said, step | RecoverShares):
            mute.add(envelope.node)
        return [] if envelope.node in mute else [envelope]

    sim.on_send = on_send
    sim.open_round()
    for _ in range(4):
        sim.run()
        for place, _ in case.lost:
            if node_id(place) in mute and node_id(place) not in sim.away:
                sim.lose(place)
                sim.run()
    for name in ("round", "commit", "release", "recover"):
        sim.fire(name)
        sim.run()
    return sim


@given(cases())
@example(Case(Setting(n=3, colluders=0), ((1, Uploaded),)))
@example(Case(Setting(n=5, colluders=1), ((2, Uploaded), (4, Release))))
@example(Case(Setting(n=3, colluders=1), ((0, Uploaded),)))
@bounded(150)
def test_the_opened_sum_is_the_integer_sum_of_the_survivors(case: Case) -> None:
    sim = play(case)
    opened = sim.coordinator.opened
    if not case.tolerable:
        assert all(one.exact for one in opened)
        return
    assert len(opened) == 1
    assert opened[0].exact
    assert sim.round.phase is RoundPhase.CLOSED
    before = {node_id(place) for place, step in case.lost if step is Uploaded}
    assert set(opened[0].survivors) == set(case.setting.ids) - before


@pytest.mark.slow
@pytest.mark.parametrize(("n", "c"), [(16, 4), (32, 8), (64, 16), (66, 16)])
def test_larger_cohorts_with_all_tolerated_dropouts_are_exact(n: int, c: int) -> None:
    gone = n - quorum(n, c)
    late = gone // 2
    lost = tuple((3 * k % n, Uploaded if k < late else Release) for k in range(gone))
    case = Case(Setting(n=n, colluders=c, d=5), lost)
    assert case.tolerable
    sim = play(case)
    assert [one.exact for one in sim.coordinator.opened] == [True]


def test_a_cohort_too_large_for_the_ring_is_refused() -> None:
    with pytest.raises(Refusal) as refused:
        SecAggParams.derive(65, 16, ring_bits=16)
    assert refused.value.name == "OVERFLOW_BOUND"
    with pytest.raises(Refusal) as refused:
        quant_bound(10**9, 32)
    assert refused.value.name == "OVERFLOW_BOUND"
