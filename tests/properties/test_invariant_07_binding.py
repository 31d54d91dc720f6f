"""Invariant 7: one item changed at one node, and its tags fit nobody's.

First half: any header item, roster byte or model byte. Second half: any single item
against sections 1, 7 and 10 is refused by the node (`t_h = 1` above all); random
values here, hand-picked ones in `tests/vectors/bad_header.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from common.errors import Refusal
from common.ids import HeaderDigest, NodeId, Sha256
from common.secagg import keys
from common.secagg import node as nd
from common.secagg.coordinator_state import RoundPhase
from common.secagg.dp import DpMode, DpTerms
from common.secagg.header import Header, Rounding, RoundKind
from common.secagg.messages import Roster, RoundStart
from common.secagg.session import body_of, session_of
from common.secret import Secret
from common.vectors import ParameterSchema, TensorSpec, TensorType, model_digest
from tests.properties.profile import bounded
from tests.simulation.secagg_harness import Envelope, Setting, Simulation, Uploaded, node_id

SETTING = Setting(n=5, colluders=1)
JUDGE = node_id(2)
DIGESTS = st.binary(min_size=32, max_size=32)
COUNTS = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@cache
def waiting() -> tuple[Simulation, Header]:
    """Return a federation at the moment when the judge gets the header; not to be changed."""
    sim = Simulation(SETTING)
    sim.open_session()
    sim.run()
    sim.open_round()
    start = next(e.to_node for e in sim.flying if isinstance(e.to_node, RoundStart))
    assert isinstance(start, RoundStart)
    return sim, start.header


ITEMS: dict[str, st.SearchStrategy[Any]] = {
    "version": COUNTS,
    "session_id": DIGESTS,
    "r": COUNTS,
    "kind": st.sampled_from(RoundKind),
    "group": COUNTS,
    "model_sha256": DIGESTS,
    "layout_sha256": DIGESTS,
    "config_hash": DIGESTS,
    "d": COUNTS,
    "w": st.one_of(st.sampled_from([16, 64]), COUNTS),
    "c": COUNTS,
    "q": COUNTS,
    "s_min": COUNTS,
    "t_h": COUNTS,
    "kappa": COUNTS,
    "ranges": st.lists(FLOATS, max_size=4).map(tuple),
    "w_max": COUNTS,
    "rounding": st.sampled_from(Rounding),
    "deadline_ms": COUNTS,
    "dp": st.builds(
        DpTerms,
        mode=st.sampled_from(DpMode),
        z=FLOATS,
        clip=FLOATS,
        delta_int=COUNTS,
        sigma_loc=FLOATS,
        noise_cap=COUNTS,
        p=FLOATS,
        m_max=COUNTS,
        steps=COUNTS,
    ),
}


@st.composite
def changed_headers(draw: st.DrawFn) -> tuple[str, Header]:
    """Return the good header with exactly one item changed."""
    header = waiting()[1]
    name = draw(st.sampled_from([*ITEMS, "members"]))
    if name == "members":
        members = list(header.members)
        place = draw(st.integers(0, len(members) - 1))
        match draw(st.sampled_from(["nonce", "drop", "id"])):
            case "nonce":
                members[place] = (members[place][0], draw(DIGESTS))
            case "drop":
                del members[place]
            case _:
                members[place] = (NodeId(members[place][0] + "x"), members[place][1])
        value: Any = tuple(members)
    else:
        value = draw(ITEMS[name])
    assume(value != getattr(header, name))
    return name, replace(header, **{name: value})


def test_every_item_of_the_header_is_tried() -> None:
    names = {one.name for one in dataclasses.fields(Header)}
    assert names == {*ITEMS, "members"}


@given(changed_headers())
@bounded(400)
@pytest.mark.fault("F67")
def test_any_change_gives_another_digest_and_other_tags(changed: tuple[str, Header]) -> None:
    sim, good = waiting()
    _, header = changed
    # Steps is an item of one mode; elsewhere the form is refused, whatever the digest.
    assume(header.dp.mode is DpMode.PATIENT_LOCAL or not header.dp.steps)
    hd = header.digest()
    assert hd != good.digest()
    session = sim.nodes[JUDGE].state.session
    assert session is not None
    for peer in session.peers:
        tags = {
            keys.edge_tag(keys.edge_seed(peer.chain, HeaderDigest(one)))
            for one in (hd, good.digest())
        }
        assert len(tags) == 2


@given(changed_headers())
@bounded(500)
@pytest.mark.fault("F67")
def test_any_single_item_against_the_rules_is_refused(changed: tuple[str, Header]) -> None:
    """What a coordinator may choose is listed; everything else has one right value."""
    sim, good = waiting()
    name, header = changed
    one = sim.nodes[JUDGE]
    event = nd.HeaderReceived(header, good.model_sha256)
    allowed = (
        (name == "deadline_ms" and 1 <= header.deadline_ms <= SETTING.max_deadline_ms)
        or (name == "s_min" and 4 <= header.s_min <= 5)
        or (name == "kind" and header.kind is RoundKind.EVALUATE)
        or (
            name == "ranges"
            and len(header.ranges) == 2
            and header.ranges[0] > 0
            and header.ranges[1] == 1.0
        )
        or (
            name == "members"
            and len(header.members) == 5
            and header.ids == good.ids
            and header.nonce_of(JUDGE) == good.nonce_of(JUDGE)
        )
    )
    if allowed:
        state, _ = nd.handle(one.state, event, one.ctx)
        assert state.session is not None
        assert state.session.open is not None
        assert state.session.open.hd == header.digest()
    else:
        with pytest.raises(Refusal):
            nd.handle(one.state, event, one.ctx)


def altered_start(change: Callable[[Header], Header]) -> Simulation:
    """Play a round in which one node is sent another header than the rest."""
    sim = Simulation(SETTING)
    sim.open_session()
    sim.run()

    def on_send(envelope: Envelope) -> list[Envelope]:
        message = envelope.to_node
        if envelope.node == JUDGE and isinstance(message, RoundStart):
            return [replace(envelope, to_node=RoundStart(change(message.header)))]
        return [envelope]

    sim.on_send = on_send
    sim.open_round()
    sim.run()
    return sim


@pytest.mark.fault("F66")
def test_a_node_with_another_header_is_left_out_or_stops_the_round_but_never_spoils_it() -> None:
    sim = altered_start(lambda header: replace(header, deadline_ms=header.deadline_ms - 1))
    tags: dict[NodeId, set[bytes]] = {}
    for i, one in sim.nodes.items():
        for said in one.said:
            if isinstance(said, Uploaded):
                tags[i] = {tag for _, tag in said.end.tags}
    others = set().union(*(found for i, found in tags.items() if i != JUDGE))
    assert tags[JUDGE]
    assert not tags[JUDGE] & others
    sim.lose(2)
    sim.run()
    for name in ("round", "commit", "release"):
        sim.fire(name)
        sim.run()
    assert sim.round.phase in {RoundPhase.CLOSED, RoundPhase.ABORTED}
    assert all(opened.exact and JUDGE not in opened.survivors for opened in sim.coordinator.opened)


@given(st.integers(0, 4), st.sampled_from(["x25519_pub", "mlkem_pub", "ed25519_pub", "id"]))
@bounded(30)
def test_a_changed_roster_byte_gives_another_session_and_other_pair_keys(
    place: int, field: str
) -> None:
    sim = Simulation(SETTING)
    sim.open_session()
    while not any(isinstance(e.to_node, Roster) for e in sim.flying):
        sim.deliver(sim.flying.pop(0))
    roster = next(e.to_node for e in sim.flying if isinstance(e.to_node, Roster))
    assert isinstance(roster, Roster)
    advert = roster.adverts[place]
    old = getattr(advert, field)
    new = old + "x" if isinstance(old, str) else bytes([old[0] ^ 1, *old[1:]]) if old else b"m"
    adverts = list(roster.adverts)
    changed: dict[str, Any] = {field: new}
    adverts[place] = replace(advert, **changed)
    good = session_of(roster.adverts, SETTING.terms)
    bad = session_of(adverts, SETTING.terms)
    assert good != bad
    assert body_of(adverts[place]) != body_of(advert)
    secret = Secret(b"s" * 32)
    chains = {
        keys.chain0(keys.pair_prk(one, secret, None, b""), node_id(0), node_id(1)).reveal()
        for one in (good, bad)
    }
    assert len(chains) == 2


@given(st.binary(min_size=24, max_size=24), st.integers(0, 24 * 8 - 1))
@bounded(60)
@pytest.mark.fault("F67")
def test_a_changed_model_bit_is_refused_or_binds_to_other_masks(data: bytes, bit: int) -> None:
    layout = ParameterSchema((TensorSpec("w", TensorType.FLOAT32, (6,)),))
    number = int.from_bytes(data, "big") ^ 1 << bit
    other = number.to_bytes(24, "big")
    digests = [model_digest(layout, model) for model in (data, other)]
    assert digests[0] != digests[1]
    sim, good = waiting()
    one = sim.nodes[JUDGE]
    header = replace(good, model_sha256=digests[0])
    with pytest.raises(Refusal) as refused:
        nd.handle(one.state, nd.HeaderReceived(header, Sha256(digests[1])), one.ctx)
    assert refused.value.name == "MODEL_HASH"
    assert header.digest() != replace(good, model_sha256=digests[1]).digest()
