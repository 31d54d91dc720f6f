"""Invariant 17, as far as the machines go: nothing they print holds a secret.

Every state, message, command, refusal and report of a round with a dropout and a
silent survivor, and of refused attacks, is printed in every way that a log line
could: `repr`, `str`, format, and the details of refusals.
"""

from __future__ import annotations

import pickle
import traceback
from collections import defaultdict

import pytest
from hypothesis import given

from common.errors import Refusal
from common.ids import NodeId
from common.secagg import node as machine
from common.secagg.keys import Suite
from common.secagg.messages import Release
from common.secret import Secret
from tests.properties.adversary import World
from tests.properties.profile import bounded
from tests.properties.secrets_of import found, round_secrets
from tests.properties.test_malicious_coordinator import SCRIPTS, Attack, Script
from tests.simulation.secagg_harness import Envelope, Setting, Simulation, Uploaded, node_id


def printed(*values: object) -> bytes:
    return "\n".join(f"{value!r} {value!s} {value}" for value in values).encode()


def played() -> tuple[Simulation, dict[NodeId, dict[str, bytes]], list[object]]:
    """Return a round with every message, and each node's secrets in it."""
    sim = Simulation(Setting(n=5, colluders=1, suite=Suite.HYBRID))
    sim.open_session()
    hidden: dict[NodeId, dict[str, bytes]] = defaultdict(dict)
    seen: list[object] = []
    silent: set[NodeId] = set()

    def on_send(envelope: Envelope) -> list[Envelope]:
        seen.append(envelope)
        gone = {node_id(1): Uploaded, node_id(3): Release}.get(envelope.node)
        if gone is not None and isinstance(envelope.from_node, gone):
            silent.add(envelope.node)
        return [] if envelope.node in silent else [envelope]

    sim.on_send = on_send

    def note() -> None:
        for i, one in sim.nodes.items():
            seen.append(one.state)
            session = one.state.session
            if session is None:
                continue
            hidden[i]["session key"] = session.key.seed.reveal()
            for peer in session.peers:
                hidden[i][f"chain {session.chain_r} {peer.id}"] = peer.chain.reveal()
            if session.open is not None:
                hidden[i] |= round_secrets(session.open)

    def drain() -> None:
        while sim.flying:
            sim.deliver(sim.flying.pop(0))
            note()
            seen.append(sim.coordinator.round)

    drain()
    sim.open_round()
    drain()
    for place in (1, 3):
        sim.lose(place)
        drain()
    return sim, hidden, seen


def test_nothing_that_the_machines_print_holds_a_secret() -> None:
    sim, hidden, seen = played()
    assert [one.exact for one in sim.coordinator.opened] == [True]
    seen += sim.coordinator.commands
    for one in sim.nodes.values():
        seen += [*one.said, *one.refusals, *one.reports]
    text = printed(*seen)
    for i, secrets in hidden.items():
        assert len(secrets) > 10
        assert [name for name, secret in secrets.items() if found(secret, text)] == [], i


def test_a_planted_secret_would_be_found() -> None:
    _, hidden, _ = played()
    secret = next(iter(next(iter(hidden.values())).values()))
    assert found(secret, printed({"seed": secret}))
    assert found(secret, printed(int.from_bytes(secret, "big")))
    assert not found(secret, printed(Secret(secret)))


@given(SCRIPTS)
@bounded(40)
def test_no_refusal_of_an_attack_holds_a_secret(script: Script) -> None:
    texts: list[str] = []
    attack = Attack(script)
    deliver = attack.world.deliver

    def listening(node: NodeId, event: machine.NodeEvent, crash_at: int | None = None) -> None:
        world: World = attack.world
        try:
            machine.handle(world.states[node], event, world.cast.context(node, world.entropy))
        except Refusal as refusal:
            texts.append(f"{refusal} {refusal!r} {refusal.detail} {refusal.fix}")
            texts.append("".join(traceback.format_exception(refusal)))
        deliver(node, event, crash_at)

    attack.world.deliver = listening  # type: ignore[method-assign]
    world = attack.play()
    text = "\n".join(texts).encode()
    for known in world.seen.values():
        for opened in known.truth.values():
            for secret in round_secrets(opened).values():
                assert not found(secret, text)


def test_secrets_do_not_pickle_hash_or_format() -> None:
    secret = Secret(b"k" * 32)
    for use in (pickle.dumps, hash):
        with pytest.raises(TypeError):
            use(secret)
    assert "k" * 32 not in f"{secret}{secret!r}{secret!s}{[secret]}"
