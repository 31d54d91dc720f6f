"""Rounds played by the real machines are, message for message, the reference's.

The machines run on counted entropy. What they drew (keys, seeds, nonces) is read from
their states, given to the slow reference, and every message on the wire is compared
with what the reference makes of it; ML-KEM ciphertexts are the one thing the library
draws by itself, so the reference decapsulates those it saw.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from common.ids import HeaderDigest, NodeId
from common.secagg.header import Header
from common.secagg.keys import AgreementKeys, Suite
from common.secagg.messages import Commit, Confirm, Kem, RecoverShares, Release, RoundResult
from common.secagg.node_state import Encapsulated, OpenRound
from tests.reference import plain
from tests.reference.rounds import Input, Member, Round, Session, Terms, run_round, run_session
from tests.simulation.secagg_harness import (
    CONFIG,
    FEDERATION,
    NOW,
    TASK,
    Envelope,
    Setting,
    Simulation,
    Uploaded,
    digest,
    node_id,
)


@dataclass
class Tape:
    """Everything said, and the secrets that the machines held on the way."""

    mute: dict[NodeId, type]
    silent: set[NodeId] = field(default_factory=set)
    said: dict[NodeId, list[object]] = field(default_factory=dict)
    results: list[RoundResult] = field(default_factory=list)
    agreement: dict[NodeId, AgreementKeys] = field(default_factory=dict)
    opened: dict[HeaderDigest, dict[NodeId, OpenRound]] = field(default_factory=dict)

    def __call__(self, envelope: Envelope) -> list[Envelope]:
        said = envelope.from_node
        if isinstance(envelope.to_node, RoundResult):
            self.results.append(envelope.to_node)
        if said is not None and isinstance(said, self.mute.get(envelope.node, ())):
            self.silent.add(envelope.node)
        if envelope.node in self.silent:
            return []
        if said is not None:
            self.said.setdefault(envelope.node, []).append(said)
        return [envelope]

    def of(self, node: NodeId, kind: type) -> list[object]:
        return [one for one in self.said[node] if isinstance(one, kind)]

    def note(self, sim: Simulation) -> None:
        for i, one in sim.nodes.items():
            setup = one.state.setup
            begun = setup.begun if isinstance(setup, Encapsulated) else setup
            if begun is not None:
                self.agreement[i] = begun.agreement
            session = one.state.session
            if session is not None and session.open is not None:
                self.opened.setdefault(session.open.hd, {})[i] = session.open


def drain(sim: Simulation, tape: Tape) -> None:
    tape.note(sim)
    while sim.flying:
        sim.deliver(sim.flying.pop(0))
        tape.note(sim)


def play(setting: Setting, mute: dict[int, type], rounds: int) -> tuple[Simulation, Tape]:
    """Play calm rounds and a last one in which some nodes fall silent."""
    sim = Simulation(setting)
    tape = Tape({})
    sim.on_send = tape
    sim.open_session()
    drain(sim, tape)
    for r in range(1, rounds + 1):
        if r == rounds:
            tape.mute = {node_id(place): kind for place, kind in mute.items()}
        sim.open_round(model=digest(f"model {r}"))  # rule 10.4: another S, another model
        drain(sim, tape)
    for place in mute:
        sim.lose(place)
        drain(sim, tape)
    return sim, tape


def reference_session(setting: Setting, sim: Simulation, tape: Tape) -> Session:
    members = []
    for i, one in sim.nodes.items():
        assert one.state.session is not None
        keys = tape.agreement[i]
        kem = keys.mlkem.reveal() if keys.mlkem is not None else b""
        members.append(Member(i, keys.x25519.reveal(), kem, one.state.session.key.seed.reveal()))
    terms = Terms(FEDERATION, TASK, 1, CONFIG, NOW - 60, NOW + 86_400)
    taken = {
        (str(kem.sender), str(item.to)): item.ct
        for i in sim.nodes
        for kem in tape.of(i, Kem)
        if isinstance(kem, Kem)
        for item in kem.items
    }
    return run_session(members, terms, taken=taken if setting.suite is Suite.HYBRID else None)


def header_tree(header: Header) -> dict[str, object]:
    """Return a header as the reference takes it, field by field."""
    dp = header.dp
    return {
        "version": header.version,
        "session_id": header.session_id,
        "r": int(header.r),
        "kind": header.kind.value,
        "group": header.group,
        "model_sha256": header.model_sha256,
        "layout_sha256": header.layout_sha256,
        "config_hash": header.config_hash,
        "n": header.n,
        "members": [(str(i), nonce) for i, nonce in header.members],
        **{name: getattr(header, name) for name in ("d", "w", "c", "q", "s_min", "t_h", "kappa")},
        "ranges": header.ranges,
        "W_max": header.w_max,
        "rounding": header.rounding.value,
        "dp_mode": dp.mode.value,
        "z": dp.z,
        "C": dp.clip,
        "Delta_int": dp.delta_int,
        "sigma_loc": dp.sigma_loc,
        "T": dp.noise_cap,
        "p": dp.p,
        "m_max": dp.m_max,
        "deadline_ms": header.deadline_ms,
    }


def reference_round(sim: Simulation, tape: Tape, session: Session) -> Round:
    made = sim.coordinator.opened[-1]
    header, hd = made.header, made.header.digest()
    inputs = {}
    for i, opened in tape.opened[hd].items():
        upload = opened.upload
        assert upload is not None
        inputs[str(i)] = Input(
            header.nonce_of(i) or b"",
            opened.b.reveal(),
            opened.a.reveal(),
            [int(x) for x in sim.nodes[i].inputs[hd]],
            dict(zip(upload.helpers, upload.seal_nonces, strict=True)),
        )
    gone = [str(i) for i, kind in tape.mute.items() if kind is Uploaded]
    silent = [str(i) for i, kind in tape.mute.items() if kind is Release]
    return run_round(session, header_tree(header), inputs, gone, silent)


def check_session(sim: Simulation, tape: Tape, session: Session) -> None:
    for i, one in sim.nodes.items():
        live = one.state.session
        assert live is not None
        assert live.session_id == session.session_id
        for peer in live.peers:
            low, high = sorted((str(i), str(peer.id)))
            at = plain.chain_at(session.chains[low, high], int(live.chain_r))
            assert peer.chain.reveal() == at
        confirms = [m.sig for m in tape.of(i, Confirm) if isinstance(m, Confirm)]
        assert set(confirms) == {session.confirms[i]}
        for kem in tape.of(i, Kem):
            assert isinstance(kem, Kem)
            assert {str(item.to): item.sig for item in kem.items} == {
                to: made.sig for (sender, to), made in session.kems.items() if sender == i
            }


def check_round(sim: Simulation, tape: Tape, played: Round) -> None:
    made = sim.coordinator.opened[-1]
    hd = made.header.digest()
    assert hd == played.hd
    assert list(made.survivors) == list(played.survivors)
    assert list(made.total) == list(played.opened)
    assert tape.results[-1].sum_sha256 == played.sum_sha256
    for i in sim.nodes:
        if str(i) not in played.uploads:
            continue
        expected = played.uploads[str(i)]
        (uploaded,) = [u for u in tape.of(i, Uploaded) if getattr(u, "end").hd == hd]  # noqa: B009
        assert isinstance(uploaded, Uploaded)
        end = uploaded.end
        assert uploaded.body == plain.words_to_bytes(expected.y, made.header.w)
        assert (end.ydig, end.self_commit) == (expected.ydig, expected.self_commit)
        assert {str(j): tag for j, tag in end.tags} == dict(expected.tags)
        assert {str(s.helper): (s.nonce, s.ct) for s in end.sealed} == {
            h: (s.nonce, s.ct) for h, s in expected.sealed.items()
        }
        assert end.sig == expected.sig
        commits = [m for m in tape.of(i, Commit) if isinstance(m, Commit) and m.hd == hd]
        assert {m.sig for m in commits} == {played.commits[str(i)]}
        assert {bytes(m.set_hash) for m in commits} == {plain.set_hash(played.survivors)}
        releases = [m for m in tape.of(i, Release) if isinstance(m, Release) and m.hd == hd]
        said = {(m.b.reveal(), tuple((str(j), e.reveal()) for j, e in m.edges)) for m in releases}
        wanted = played.releases.get(str(i))
        assert said == ({(wanted[0], tuple(wanted[1].items()))} if wanted else set())
    recovered: dict[str, dict[str, tuple[bytes, dict[str, bytes]]]] = {}
    for i in sim.nodes:
        for message in tape.of(i, RecoverShares):
            assert isinstance(message, RecoverShares)
            for item in message.items:
                edges = {str(j): share.reveal() for j, share in item.edges}
                recovered.setdefault(str(item.sender), {})[str(i)] = (
                    item.b_share.reveal(),
                    edges,
                )
    for silent, by_helper in recovered.items():
        assert by_helper.items() <= dict(played.recovered[silent]).items()
        assert len(by_helper) >= made.header.t_h
    assert recovered.keys() == played.recovered.keys()


@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("w", [16, 32, 64])
@pytest.mark.parametrize(
    ("n", "c", "mute", "rounds"),
    [
        (3, 0, {1: Uploaded}, 1),
        (5, 1, {2: Uploaded, 3: Release}, 1),
        (5, 1, {0: Uploaded, 4: Release}, 3),
        (4, 1, {}, 2),
        (8, 2, {1: Uploaded, 6: Uploaded, 0: Release}, 1),
    ],
)
def test_the_machines_and_the_reference_say_the_same(
    n: int, c: int, mute: dict[int, type], rounds: int, suite: Suite, w: int
) -> None:
    setting = Setting(n=n, colluders=c, d=8, w=w, suite=suite)
    sim, tape = play(setting, mute, rounds)
    assert [one.exact for one in sim.coordinator.opened] == [True] * rounds
    session = reference_session(setting, sim, tape)
    check_session(sim, tape, session)
    check_round(sim, tape, reference_round(sim, tape, session))
