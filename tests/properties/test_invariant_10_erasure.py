"""Invariant 10: after CLOSED no secret of r is in memory or in the state directory.

However a round ends, the node's state, its disk and its last context are searched,
byte by byte, for every seed, share key and chain key of that round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from common.ids import Epoch, RoundNo
from common.secagg import node as machine
from common.secagg.keys import Suite
from common.secagg.messages import RoundResult, RoundStatus
from common.secagg.node_state import Encapsulated, decode_state
from tests.properties.secrets_of import found, reachable_bytes, round_secrets
from tests.simulation.secagg_harness import Setting, Simulation, node_id

SETTING = Setting(n=4, colluders=1, suite=Suite.HYBRID)


def opened(setting: Setting = SETTING) -> Simulation:
    """Return a federation whose nodes have uploaded and committed."""
    sim = Simulation(setting)
    sim.open_session()
    sim.run()
    sim.on_send = lambda envelope: (
        [] if type(envelope.from_node).__name__ == "Release" else [envelope]
    )
    sim.open_round()
    sim.run()
    sim.on_send = None
    return sim


def by_result(sim: Simulation) -> None:
    for one in sim.nodes.values():
        assert one.state.session is not None
        assert one.state.session.open is not None
        hd = one.state.session.open.hd
        one.hear(RoundResult(hd, RoundStatus.OPENED, (), b"s" * 32, b"m" * 32, RoundNo(2)))


def by_timeout(sim: Simulation) -> None:
    for one in sim.nodes.values():
        assert one.state.session is not None
        assert one.state.session.open is not None
        one.hear(machine.LocalTimeout(one.state.session.open.hd))


def by_giving_up(sim: Simulation) -> None:
    for one in sim.nodes.values():
        assert one.state.session is not None
        assert one.state.session.open is not None
        one.hear(machine.InputFailed(one.state.session.open.hd, "INPUT_NAN", "no input"))


def by_the_next_round(sim: Simulation) -> None:
    sim.open_round()
    while not all(_r(one.state) == 2 for one in sim.nodes.values()):
        sim.deliver(sim.flying.pop(0))


def by_a_new_session(sim: Simulation) -> None:
    sim.flying.clear()
    sim.open_session(replace(SETTING.terms, epoch=Epoch(2)))
    sim.run()


def by_an_old_backup(sim: Simulation) -> None:
    for one in sim.nodes.values():
        one.hear(machine.BackupRestored())


def _r(state: machine.NodeState) -> int:
    session = state.session
    return 0 if session is None or session.open is None else int(session.open.header.r)


ENDINGS = (
    by_result,
    by_timeout,
    by_giving_up,
    by_the_next_round,
    by_a_new_session,
    by_an_old_backup,
)


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_secret_of_a_closed_round_is_left_anywhere(
    ending: Callable[[Simulation], None],
) -> None:
    sim = opened()
    hidden = {}
    for i, one in sim.nodes.items():
        assert one.state.session is not None
        assert one.state.session.open is not None
        hidden[i] = round_secrets(one.state.session.open)
        everything = reachable_bytes(one.state, decode_state(one.disk))
        assert all(found(secret, everything) for secret in hidden[i].values())
        assert all(found(secret, one.disk) for secret in hidden[i].values())
    ending(sim)
    for i, one in sim.nodes.items():
        everything = reachable_bytes(one.state, one.spool, decode_state(one.disk)) + one.disk
        left = [name for name, secret in hidden[i].items() if found(secret, everything)]
        assert left == []


def test_chain_keys_of_a_started_round_and_agreement_keys_are_gone() -> None:
    sim = Simulation(SETTING)
    sim.open_session()
    agreement: dict[str, list[bytes]] = {}
    while sim.flying:
        sim.deliver(sim.flying.pop(0))
        for i, one in sim.nodes.items():
            setup = one.state.setup
            begun = setup.begun if isinstance(setup, Encapsulated) else setup
            if begun is not None and begun.agreement.mlkem is not None:
                agreement[i] = [begun.agreement.x25519.reveal(), begun.agreement.mlkem.reveal()]
            if isinstance(setup, Encapsulated):
                agreement[i] += [sent.secret.reveal() for sent in setup.sent]
    first = {}
    for i, one in sim.nodes.items():
        assert one.state.session is not None
        first[i] = [peer.chain.reveal() for peer in one.state.session.peers]
        everything = reachable_bytes(one.state) + one.disk
        assert len(agreement[i]) >= 2
        assert not any(found(secret, everything) for secret in agreement[i])
    sim.open_round()
    while not all(_r(one.state) for one in sim.nodes.values()):
        sim.deliver(sim.flying.pop(0))
    for i, one in sim.nodes.items():
        everything = reachable_bytes(one.state) + one.disk
        assert not any(found(chain, everything) for chain in first[i])


def test_a_closed_round_answers_nothing_any_more() -> None:
    sim = opened()
    by_timeout(sim)
    one = sim.nodes[node_id(0)]
    assert sim.coordinator.round is not None
    assert sim.coordinator.round.certificate is not None
    before = len(one.said)
    one.hear(sim.coordinator.round.certificate)
    assert one.refusals[-1].name == "CLOSED"
    assert {type(said).__name__ for said in one.said[before:]} == {"Refused"}
