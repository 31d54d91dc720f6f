"""An epoch's set-up (section 3.3), from both ends: each rule of the roster has its test."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import InternalError, Refusal
from common.ids import ConfigHash, Epoch, NodeId, RoundNo, SessionId
from common.secagg import coordinator_session as cs
from common.secagg import node
from common.secagg.keys import MLKEM_CIPHERTEXT_BYTES, Suite
from common.secagg.messages import (
    Confirm,
    Kem,
    KemForward,
    KemFrom,
    KemItem,
    KeyAdvert,
    Ready,
    Roster,
)
from common.secagg.node_state import Advertised, Encapsulated
from common.secagg.session import (
    CLOCK_SKEW_S,
    body_of,
    check_advert,
    check_confirm,
    check_distinct,
    check_kem,
    larger_ids,
    session_of,
    smaller_ids,
)
from tests.simulation.secagg_harness import (
    NOW,
    Envelope,
    Setting,
    SimNode,
    Simulation,
    changed,
    node_id,
)

CLASSICAL = Setting(n=4, suite=Suite.CLASSICAL)
HYBRID = Setting(n=4, suite=Suite.HYBRID)
SUITES = pytest.mark.parametrize("setting", [CLASSICAL, HYBRID], ids=["classical", "hybrid"])


def advertised(setting: Setting) -> tuple[Simulation, Roster]:
    """Return nodes that advertised, and the roster an honest coordinator would send."""
    sim = Simulation(setting)
    adverts = []
    for one in sim.nodes.values():
        (advert,) = one.begin_epoch()
        assert isinstance(advert, KeyAdvert)
        adverts.append(advert)
    return sim, Roster(tuple(adverts), RoundNo(1))


def refused(one: SimNode, event: node.NodeEvent) -> str:
    """Return the name of the refusal that `event` meets, checking that nothing changed."""
    before = one.state
    with pytest.raises(Refusal) as caught:
        node.handle(one.state, event, one.ctx)
    assert one.state == before
    return caught.value.name


def resigned(advert: KeyAdvert, sim: Simulation) -> KeyAdvert:
    return replace(advert, sig=sim.nodes[advert.id].signer.sign(body_of(advert)))


def session(sim: Simulation) -> cs.SessionState:
    assert sim.coordinator.session is not None
    return sim.coordinator.session


def phase(sim: Simulation) -> cs.SetupPhase:
    return session(sim).phase


# --- the whole way --------------------------------------------------------------------


@SUITES
def test_all_members_reach_one_session_and_erase_their_agreement_keys(setting: Setting) -> None:
    sim = Simulation(setting)
    sim.open_session()
    begun = sim.at(0).state.setup
    assert isinstance(begun, Advertised)
    secrets = [begun.agreement.x25519.reveal()]
    if begun.agreement.mlkem is not None:
        secrets.append(begun.agreement.mlkem.reveal())
    sim.run()
    assert phase(sim) is cs.SetupPhase.READY
    for one in sim.nodes.values():
        assert one.state.setup is None
        assert one.state.session is not None
        assert one.state.session.session_id == session(sim).session_id
    disk = sim.at(0).disk
    assert all(encoded(secret) not in disk for secret in secrets)


def encoded(secret: bytes) -> bytes:
    return b64encode(secret)


@SUITES
def test_both_ends_of_a_pair_hold_the_same_chain_and_no_two_pairs_do(setting: Setting) -> None:
    sim = Simulation(setting)
    sim.open_session()
    sim.run()
    chains = {}
    for one in sim.nodes.values():
        assert one.state.session is not None
        for peer in one.state.session.peers:
            chains[(one.id, peer.id)] = peer.chain.reveal()
    for (i, j), chain in chains.items():
        assert chains[(j, i)] == chain
    assert len(set(chains.values())) == len(chains) // 2


def test_the_classical_suite_needs_no_ciphertexts_and_only_if_the_study_says_so() -> None:
    sim, roster = advertised(CLASSICAL)
    assert all(advert.mlkem_pub == b"" for advert in roster.adverts)
    said = sim.at(0).hear(roster)
    assert [type(one) for one in said] == [Confirm]
    hybrid, _ = advertised(HYBRID)
    setup = hybrid.at(0).state.setup
    assert isinstance(setup, Advertised)
    assert len(setup.advert.mlkem_pub) == 1184
    # A classical advert inside a hybrid epoch is refused: nobody can lower the suite.
    assert refused(hybrid.at(0), lowered(hybrid)) == "KEY_ADVERT"


def lowered(sim: Simulation) -> Roster:
    adverts = []
    for one in sim.nodes.values():
        assert isinstance(one.state.setup, Advertised)
        adverts.append(one.state.setup.advert)
    adverts[1] = resigned(replace(adverts[1], mlkem_pub=b""), sim)
    return Roster(tuple(adverts), RoundNo(1))


# --- the node's checks of a roster ----------------------------------------------------


def _other_epoch(advert: KeyAdvert) -> KeyAdvert:
    return replace(advert, epoch=Epoch(2))


ROSTER_RULES: list[tuple[str, str, Callable[[KeyAdvert], KeyAdvert]]] = [
    ("another study", "CONFIG_HASH", lambda a: replace(a, config_hash=ConfigHash(b"x" * 32))),
    ("another federation", "EPOCH_OLD", lambda a: replace(a, federation="other")),
    ("another task", "EPOCH_OLD", lambda a: replace(a, task="other")),
    ("another epoch", "EPOCH_OLD", _other_epoch),
    ("not valid yet", "EPOCH_OLD", lambda a: replace(a, not_before=NOW + CLOCK_SKEW_S + 1)),
    ("not valid any more", "EPOCH_OLD", lambda a: replace(a, not_after=NOW - 1)),
    ("valid for too long", "EPOCH_OLD", lambda a: replace(a, not_after=NOW + 8 * 86_400)),
    ("short X25519 key", "KEY_ADVERT", lambda a: replace(a, x25519_pub=b"x" * 31)),
    ("short session key", "KEY_ADVERT", lambda a: replace(a, ed25519_pub=b"x" * 31)),
    ("ML-KEM key in a classical epoch", "KEY_ADVERT", lambda a: replace(a, mlkem_pub=b"x" * 1184)),
]


@pytest.mark.parametrize(("what", "code", "alter"), ROSTER_RULES, ids=[r[0] for r in ROSTER_RULES])
def test_a_member_whose_well_signed_advert_breaks_a_rule_is_refused(
    what: str, code: str, alter: Callable[[KeyAdvert], KeyAdvert]
) -> None:
    sim, roster = advertised(CLASSICAL)
    adverts = list(roster.adverts)
    adverts[2] = resigned(alter(adverts[2]), sim)
    assert refused(sim.at(0), Roster(tuple(adverts), RoundNo(1))) == code


@pytest.mark.parametrize(
    "alter",
    [
        lambda a: replace(a, x25519_pub=b"\x09" * 32),
        lambda a: replace(a, ed25519_pub=b"\x09" * 32),
        lambda a: replace(a, not_after=a.not_after - 1),
        lambda a: replace(a, sig=bytes(64)),
    ],
    ids=["x25519", "session key", "validity", "signature"],
)
def test_an_advert_altered_after_signing_is_refused(
    alter: Callable[[KeyAdvert], KeyAdvert],
) -> None:
    sim, roster = advertised(CLASSICAL)
    adverts = list(roster.adverts)
    adverts[3] = alter(adverts[3])
    assert refused(sim.at(0), Roster(tuple(adverts), RoundNo(1))) == "ADVERT_SIG"


def test_the_own_advert_has_to_come_back_byte_for_byte() -> None:
    sim, roster = advertised(CLASSICAL)
    one = sim.at(1)
    missing = tuple(a for a in roster.adverts if a.id != one.id)
    assert refused(one, Roster(missing, RoundNo(1))) == "OWN_ADVERT"
    adverts = list(roster.adverts)
    adverts[1] = resigned(replace(adverts[1], x25519_pub=b"\x09" * 32), sim)
    assert refused(one, Roster(tuple(adverts), RoundNo(1))) == "OWN_ADVERT"


@pytest.mark.parametrize("column", ["id", "x25519_pub", "ed25519_pub"])
@pytest.mark.fault("F75")
def test_no_id_and_no_public_key_may_stand_twice(column: str) -> None:
    sim, roster = advertised(CLASSICAL)
    adverts = list(roster.adverts)
    adverts[2] = resigned(replace(adverts[2], **{column: getattr(adverts[3], column)}), sim)
    assert refused(sim.at(0), Roster(tuple(adverts), RoundNo(1))) == "ADVERT_DUP"


def test_an_mlkem_key_may_not_stand_twice() -> None:
    sim, roster = advertised(HYBRID)
    adverts = list(roster.adverts)
    adverts[2] = replace(adverts[2], mlkem_pub=adverts[3].mlkem_pub)
    with pytest.raises(Refusal, match="ADVERT_DUP"):
        check_distinct(adverts)
    assert refused(sim.at(0), Roster(tuple(adverts), RoundNo(1))) == "ADVERT_DUP"


def test_a_chain_of_another_authority_is_refused() -> None:
    sim, roster = advertised(CLASSICAL)
    adverts = list(roster.adverts)
    stranger = Ed25519PrivateKey.from_private_bytes(b"\x05" * 32)
    chain = (stranger.public_key().public_bytes_raw(),)
    forged = replace(adverts[2], cert_chain=chain)
    adverts[2] = replace(forged, sig=stranger.sign(body_of(forged)))
    assert refused(sim.at(0), Roster(tuple(adverts), RoundNo(1))) == "CERT_CHAIN"


@pytest.mark.fault("F72")
def test_a_hospital_outside_the_pinned_list_is_refused_though_its_chain_verifies() -> None:
    sim, roster = advertised(CLASSICAL)
    one = sim.at(0)
    keys = {key: value for key, value in one.trust.keys.items() if key != node_id(3)}
    one.trust = replace(one.trust, keys=keys)
    assert refused(one, roster) == "NOT_MEMBER"


@pytest.mark.fault("F69")
def test_a_roster_below_the_hospitals_own_cohort_is_refused() -> None:
    sim, roster = advertised(CLASSICAL)
    one = sim.at(0)
    one.rules = replace(one.rules, min_cohort=5)
    assert refused(one, roster) == "COHORT_SMALL"


@pytest.mark.fault("F69")
def test_two_members_need_the_local_switch() -> None:
    sim, roster = advertised(Setting(n=2, colluders=0, allow_two_party=True))
    one = sim.at(0)
    one.rules = replace(one.rules, allow_two_party=False)
    assert refused(one, roster) == "COHORT_SMALL"
    one.rules = replace(one.rules, allow_two_party=True)
    assert [type(said) for said in one.hear(roster)] == [Confirm]


@pytest.mark.fault("F64")
def test_an_epoch_is_never_used_twice() -> None:
    sim, _ = advertised(CLASSICAL)
    one = sim.at(0)
    other = replace(CLASSICAL.terms, config_hash=ConfigHash(b"y" * 32))
    for terms in (other, replace(CLASSICAL.terms, epoch=Epoch(0))):
        begin = node.BeginEpoch(terms, CLASSICAL.expect, NOW, NOW + 60)
        assert refused(one, begin) == "EPOCH_OLD"


def test_the_same_epoch_asked_for_again_gets_the_identical_advert() -> None:
    sim = Simulation(CLASSICAL)
    first = sim.at(0).begin_epoch()
    assert sim.at(0).begin_epoch() == first
    assert sim.at(0).crash() == first


@pytest.mark.fault("F64")
def test_a_spent_epoch_stays_spent_after_a_crash() -> None:
    sim = Simulation(CLASSICAL)
    sim.open_session()
    sim.run()
    one = sim.at(0)
    one.crash()
    begin = node.BeginEpoch(CLASSICAL.terms, CLASSICAL.expect, NOW, NOW + 60)
    assert refused(one, begin) == "EPOCH_OLD"


def test_a_second_roster_of_one_epoch_is_refused_and_the_first_is_answered_again() -> None:
    sim, roster = advertised(HYBRID)
    one = sim.at(1)
    kem = one.hear(roster)
    assert [type(said) for said in kem] == [Kem]
    assert one.hear(roster) == kem
    assert one.crash() == kem
    other = Roster(roster.adverts[:3], RoundNo(1))
    assert refused(one, other) == "EPOCH_OLD"


def test_rosters_that_differ_in_one_byte_make_different_sessions() -> None:
    _, roster = advertised(CLASSICAL)
    made = session_of(roster.adverts, CLASSICAL.terms)
    altered = (*roster.adverts[:3], replace(roster.adverts[3], not_after=NOW))
    assert session_of(altered, CLASSICAL.terms) != made
    assert session_of(roster.adverts[::-1], CLASSICAL.terms) == made


def test_a_member_shown_another_roster_shares_no_chain_with_anybody() -> None:
    sim, roster = advertised(CLASSICAL)
    sim.at(0).hear(roster)
    sim.at(1).hear(Roster(roster.adverts[:3], RoundNo(1)))
    first, second = sim.at(0).state.session, sim.at(1).state.session
    assert first is not None
    assert second is not None
    one = next(peer.chain for peer in first.peers if peer.id == node_id(1))
    other = next(peer.chain for peer in second.peers if peer.id == node_id(0))
    assert one != other


def test_a_known_roster_tells_a_confirmed_node_the_next_round_number() -> None:
    sim, roster = advertised(CLASSICAL)
    one = sim.at(0)
    confirm = one.hear(roster)
    assert one.hear(replace(roster, next_r=RoundNo(7))) == confirm
    (ready,) = one.hear(node.MakeReady())
    assert isinstance(ready, Ready)
    assert ready.r == 7


# --- ciphertexts ----------------------------------------------------------------------


def encapsulated(place: int) -> tuple[Simulation, SimNode, KemForward]:
    """Return a node that awaits ciphertexts, and the honest message with them."""
    sim, roster = advertised(HYBRID)
    kems = {}
    for one in sim.nodes.values():
        kems[one.id] = next(said for said in one.hear(roster) if isinstance(said, Kem))
    target = sim.at(place)
    items = tuple(
        KemFrom(sender, item.ct, item.sig)
        for sender, kem in kems.items()
        for item in kem.items
        if item.to == target.id
    )
    assert isinstance(target.state.setup, Encapsulated)
    return sim, target, KemForward(target.state.setup.session_id, items)


def test_ciphertexts_complete_the_session_and_the_same_ones_again_are_confirmed_again() -> None:
    _, one, forward = encapsulated(2)
    confirm = one.hear(forward)
    assert [type(said) for said in confirm] == [Confirm]
    assert one.hear(forward) == confirm


@pytest.mark.parametrize(
    "alter",
    [
        lambda items: items[:1],
        lambda items: (*items, replace(items[0], sender=node_id(3))),
        lambda items: (items[0], items[0]),
        lambda items: (replace(items[0], ct=bytes(MLKEM_CIPHERTEXT_BYTES)), items[1]),
        lambda items: (replace(items[0], ct=items[0].ct[:-1]), items[1]),
        lambda items: (replace(items[0], sig=bytes(64)), items[1]),
        lambda items: (
            replace(items[0], ct=items[1].ct, sig=items[1].sig),
            replace(items[1], ct=items[0].ct, sig=items[0].sig),
        ),
    ],
    ids=["missing", "surplus", "twice", "altered", "short", "unsigned", "swapped"],
)
def test_wrong_ciphertexts_are_refused_as_kem(
    alter: Callable[[tuple[KemFrom, ...]], tuple[KemFrom, ...]],
) -> None:
    _, one, forward = encapsulated(2)
    assert refused(one, replace(forward, items=alter(forward.items))) == "KEM"


def test_ciphertexts_of_another_session_are_refused() -> None:
    _, one, forward = encapsulated(2)
    assert refused(one, replace(forward, session_id=SessionId(bytes(32)))) == "EPOCH_OLD"


def test_an_all_zero_key_agreement_is_refused() -> None:
    sim, roster = advertised(CLASSICAL)
    adverts = list(roster.adverts)
    adverts[2] = resigned(replace(adverts[2], x25519_pub=bytes(32)), sim)
    assert refused(sim.at(0), Roster(tuple(adverts), RoundNo(1))) == "ZERO_DH"


def test_who_encapsulates_to_whom() -> None:
    members = (NodeId("b"), NodeId("a"), NodeId("c"))
    assert larger_ids(NodeId("b"), members) == ("c",)
    assert smaller_ids(NodeId("b"), members) == ("a",)
    assert smaller_ids(NodeId("a"), members) == ()


def test_confirming_closes_the_open_round_of_an_earlier_session_and_erases_its_keys() -> None:
    sim = Simulation(CLASSICAL)
    sim.open_session()
    sim.run()
    one = sim.at(0)
    one.trains = False
    sim.open_round()
    sim.run()
    assert one.state.session is not None
    opened = one.state.session.open
    assert opened is not None
    secrets = [opened.b, opened.a, *(pair.edge for pair in opened.pairs)]
    second = replace(CLASSICAL.terms, epoch=Epoch(2))
    sim.open_session(second)
    sim.run()
    assert (opened.hd, "superseded") in one.closed
    assert one.state.session.open is None
    assert all(encoded(secret.reveal()) not in one.disk for secret in secrets)


# --- helpers both ends share ----------------------------------------------------------


def test_a_p256_certificate_key_signs_adverts_too() -> None:
    _, roster = advertised(CLASSICAL)
    key = ec.generate_private_key(ec.SECP256R1())

    class Trust:
        def verify_chain(self, chain_der: object, node_id: object, now_unix: int) -> object:
            return key.public_key()

    advert = roster.adverts[0]
    signed = replace(advert, sig=key.sign(body_of(advert), ec.ECDSA(hashes.SHA256())))
    check_advert(signed, CLASSICAL.terms, Trust(), NOW)  # type: ignore[arg-type]
    with pytest.raises(Refusal, match="ADVERT_SIG"):
        check_advert(advert, CLASSICAL.terms, Trust(), NOW)  # type: ignore[arg-type]


def test_a_kem_has_one_ciphertext_for_each_larger_id_and_no_other() -> None:
    sim, roster = advertised(HYBRID)
    (kem,) = (said for said in sim.at(1).hear(roster) if isinstance(said, Kem))
    keys = {advert.id: advert.ed25519_pub for advert in roster.adverts}
    made = session_of(roster.adverts, HYBRID.terms)
    check_kem(kem, made, keys)
    wrong = (
        replace(kem, items=kem.items[:1]),
        replace(kem, items=(*kem.items, kem.items[0])),
        replace(kem, items=(*kem.items, KemItem(node_id(0), bytes(1088), bytes(64)))),
        replace(kem, sender=node_id(0)),
    )
    for one in wrong:
        with pytest.raises(Refusal, match="KEM"):
            check_kem(one, made, keys)


def test_a_confirmation_is_of_one_session_by_one_key() -> None:
    sim, roster = advertised(CLASSICAL)
    (confirm,) = (said for said in sim.at(0).hear(roster) if isinstance(said, Confirm))
    own = confirm.session_id
    keys = {advert.id: advert.ed25519_pub for advert in roster.adverts}
    check_confirm(confirm, own, node_id(0), keys[node_id(0)])
    for wrong, key in (
        (replace(confirm, session_id=SessionId(bytes(32))), keys[node_id(0)]),
        (replace(confirm, sig=bytes(64)), keys[node_id(0)]),
        (confirm, keys[node_id(1)]),
    ):
        with pytest.raises(Refusal, match="KEY_ADVERT"):
            check_confirm(wrong, own, node_id(0), key)


# --- the coordinator's set-up ---------------------------------------------------------


def codes(sim: Simulation) -> list[tuple[NodeId, str]]:
    return [(sender, refusal.name) for sender, refusal in sim.coordinator.refusals]


def failed(sim: Simulation) -> list[cs.SessionFailed]:
    return [c for c in sim.coordinator.commands if isinstance(c, cs.SessionFailed)]


def test_a_faulty_advert_is_refused_with_its_code_and_leaves_its_sender_out() -> None:
    sim = Simulation(CLASSICAL)

    def spoil(envelope: Envelope) -> list[Envelope]:
        if envelope.node == node_id(3) and isinstance(envelope.from_node, KeyAdvert):
            return [changed(envelope, sig=bytes(64))]
        return [envelope]

    sim.on_send = spoil
    sim.open_session()
    sim.run()
    assert codes(sim) == [(node_id(3), "ADVERT_SIG")]
    sim.fire("adverts")
    sim.run()
    assert phase(sim) is cs.SetupPhase.READY
    assert session(sim).members == CLASSICAL.ids[:3]


def test_too_few_adverts_at_the_deadline_fail_the_epoch_and_name_who_is_missing() -> None:
    sim = Simulation(CLASSICAL)
    sim.away = {node_id(1), node_id(2)}
    sim.open_session()
    sim.run()
    sim.fire("adverts")
    assert failed(sim) == [cs.SessionFailed("NOT_ENOUGH", (node_id(1), node_id(2)))]


def test_a_missing_ciphertext_at_the_deadline_fails_the_epoch_and_names_its_owner() -> None:
    sim = Simulation(HYBRID)
    sim.on_send = lambda envelope: (
        [] if isinstance(envelope.from_node, Kem) and envelope.node == node_id(2) else [envelope]
    )
    sim.open_session()
    sim.run()
    sim.fire("kems")
    assert failed(sim) == [cs.SessionFailed("KEM", (node_id(2),))]
    # The next epoch without that hospital is the driver's decision, and it works.
    sim.on_send = None
    sim.away = {node_id(2)}
    sim.open_session(replace(HYBRID.terms, epoch=Epoch(2)))
    sim.run()
    sim.fire("adverts")
    sim.run()
    assert phase(sim) is cs.SetupPhase.READY


def test_an_unsigned_ciphertext_is_refused_at_the_coordinator() -> None:
    sim = Simulation(HYBRID)

    def spoil(envelope: Envelope) -> list[Envelope]:
        kem = envelope.from_node
        if isinstance(kem, Kem) and envelope.node == node_id(1):
            items = (replace(kem.items[0], sig=bytes(64)), *kem.items[1:])
            return [changed(envelope, items=items)]
        return [envelope]

    sim.on_send = spoil
    sim.open_session()
    sim.run()
    assert codes(sim) == [(node_id(1), "KEM")]


def test_rounds_start_with_those_who_confirmed_and_a_late_confirmation_counts_later() -> None:
    sim = Simulation(CLASSICAL)
    held: list[Envelope] = []

    def hold(envelope: Envelope) -> list[Envelope]:
        if isinstance(envelope.from_node, Confirm) and envelope.node == node_id(0):
            held.append(envelope)
            return []
        return [envelope]

    sim.on_send = hold
    sim.open_session()
    sim.run()
    assert phase(sim) is cs.SetupPhase.CONFIRMS
    sim.fire("confirms")
    assert phase(sim) is cs.SetupPhase.READY
    assert session(sim).confirmed == CLASSICAL.ids[1:]
    sim.deliver(held[0])
    assert session(sim).confirmed == CLASSICAL.ids


def test_too_few_confirmations_fail_the_epoch() -> None:
    sim = Simulation(CLASSICAL)
    sim.on_send = lambda envelope: (
        []
        if isinstance(envelope.from_node, Confirm) and envelope.node != node_id(0)
        else [envelope]
    )
    sim.open_session()
    sim.run()
    sim.fire("confirms")
    assert failed(sim) == [cs.SessionFailed("NOT_ENOUGH", CLASSICAL.ids[1:])]


def test_strangers_and_impostors_are_refused() -> None:
    sim, roster = advertised(HYBRID)
    sim.coordinator.tell_session(cs.OpenSession(HYBRID.terms, HYBRID.ids[:3], 1.0))
    advert = roster.adverts[0]
    for event in (
        cs.From(node_id(3), roster.adverts[3]),  # not invited
        cs.From(node_id(1), advert),  # another's advert
        cs.From(node_id(0), Confirm(SessionId(bytes(32)), bytes(64))),  # before the roster
        cs.From(node_id(0), Kem(node_id(0), ())),
        cs.From(node_id(0), Ready(SessionId(bytes(32)), RoundNo(1), bytes(32))),
    ):
        with pytest.raises(Refusal):
            cs.handle(sim.coordinator.session, event, sim.coordinator.ctx)


def test_a_second_different_advert_of_a_member_is_refused() -> None:
    sim, roster = advertised(CLASSICAL)
    sim.coordinator.tell_session(cs.OpenSession(CLASSICAL.terms, CLASSICAL.ids, 1.0))
    first = roster.adverts[0]
    second = resigned(replace(first, x25519_pub=b"\x09" * 32), sim)
    assert sim.coordinator.tell_session(cs.From(first.id, first)) == []
    assert sim.coordinator.tell_session(cs.From(first.id, first)) == []
    sim.coordinator.tell_session(cs.From(first.id, second))
    assert codes(sim) == [(first.id, "OUT_OF_TURN")]


def test_a_session_is_opened_once_and_first() -> None:
    sim = Simulation(CLASSICAL)
    with pytest.raises(InternalError):
        cs.handle(None, cs.Deadline("adverts"), sim.coordinator.ctx)
    opening = cs.OpenSession(CLASSICAL.terms, CLASSICAL.ids, 1.0)
    state, _ = cs.handle(None, opening, sim.coordinator.ctx)
    with pytest.raises(InternalError):
        cs.handle(state, opening, sim.coordinator.ctx)
    with pytest.raises(InternalError):
        cs.apply(None, cs.RosterFixed(SessionId(bytes(32))))


def test_a_stale_timer_changes_nothing() -> None:
    sim = Simulation(CLASSICAL)
    sim.open_session()
    sim.run()
    before = sim.coordinator.session
    for name in ("adverts", "kems", "confirms", "ready"):
        sim.fire(name)
    assert sim.coordinator.session == before


@SUITES
def test_a_coordinator_that_crashes_at_any_write_of_the_set_up_still_completes_it(
    setting: Setting,
) -> None:
    calm = Simulation(setting)
    calm.open_session()
    calm.run()
    for write in range(1, calm.coordinator.writes + 1):
        sim = Simulation(setting)
        sim.coordinator.crash_at = write
        sim.open_session()
        sim.run()
        for one in sim.nodes.values():  # streams come back: everybody says it again
            sim.say(one.id, one.hear(node.Restarted()))
            sim.post(sim.coordinator.tell_session(cs.MemberBack(one.id)))
        sim.run()
        assert phase(sim) is cs.SetupPhase.READY, write


@SUITES
def test_a_node_that_crashes_at_any_write_of_the_set_up_still_joins(setting: Setting) -> None:
    for place in (0, 3):
        calm = Simulation(setting)
        calm.open_session()
        calm.run()
        for write in range(1, calm.at(place).writes + 1):
            sim = Simulation(setting)
            sim.at(place).crash_at = write
            sim.open_session()
            sim.run()
            assert phase(sim) is cs.SetupPhase.READY, (place, write)


def test_facts_survive_their_encoding_and_replay_to_the_same_state() -> None:
    sim = Simulation(HYBRID)
    sim.open_session()
    sim.run()
    facts = [cs.decode_fact(data) for data in sim.coordinator.session_log]
    assert [cs.encode_fact(fact) for fact in facts] == sim.coordinator.session_log
    assert cs.replay(facts) == sim.coordinator.session
    assert cs.replay([]) is None


def test_a_reconnecting_member_is_told_the_roster_and_its_ciphertexts() -> None:
    sim = Simulation(HYBRID)
    sim.on_send = lambda envelope: [] if isinstance(envelope.to_node, KemForward) else [envelope]
    sim.open_session()
    sim.run()
    sim.on_send = None
    told = sim.coordinator.tell_session(cs.MemberBack(node_id(3), RoundNo(5)))
    assert [type(envelope.to_node) for envelope in told] == [Roster, KemForward]
    roster = told[0].to_node
    assert isinstance(roster, Roster)
    assert roster.next_r == 5
    sim.post(told)
    sim.run()
    assert node_id(3) in session(sim).confirmed
