"""The coordinator's round: what it accepts, when it goes on, what a crash may not change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from common.errors import InternalError, Refusal, StateError
from common.ids import HeaderDigest, NodeId, RoundNo, SessionId, Sha256
from common.secagg import coordinator as co
from common.secagg import coordinator_session as cs
from common.secagg import node
from common.secagg.coordinator_facts import (
    RoundAborted,
    RoundClosed,
    SetProposed,
    UploadAccepted,
)
from common.secagg.coordinator_round import ready as accept_ready
from common.secagg.coordinator_step import LEAST_WAIT_S, wait_s
from common.secagg.cover import EdgeRecord, edge
from common.secagg.header import RoundKind
from common.secagg.keys import EdgeTag, SelfCommit
from common.secagg.masking import MaskPlan
from common.secagg.messages import (
    Certificate,
    Commit,
    Confirm,
    Propose,
    Ready,
    RecoverRequest,
    RecoverShares,
    Refused,
    Release,
    RoundResult,
    RoundStart,
    RoundStatus,
    SealedShares,
    UploadEnd,
)
from common.secagg.transcript import tags_hash, upload_statement
from common.secret import Secret
from tests.simulation.secagg_harness import (
    Envelope,
    Setting,
    Simulation,
    Uploaded,
    changed,
    digest,
    node_id,
)

SETTING = Setting(n=5, colluders=1)


def in_session(setting: Setting = SETTING) -> Simulation:
    sim = Simulation(setting)
    sim.open_session()
    sim.run()
    return sim


def in_round(setting: Setting = SETTING) -> Simulation:
    """Return a federation whose headers are in flight."""
    sim = in_session(setting)
    sim.open_round()
    return sim


def without(sim: Simulation, kind: type, *places: int) -> None:
    """Lose every message of a kind from these nodes."""
    lost = {node_id(place) for place in places}
    sim.on_send = lambda envelope: (
        [] if envelope.node in lost and isinstance(envelope.from_node, kind) else [envelope]
    )


def phase(sim: Simulation) -> co.RoundPhase:
    return sim.round.phase


def codes(sim: Simulation) -> list[tuple[NodeId, str]]:
    return [(sender, refusal.name) for sender, refusal in sim.coordinator.refusals]


def reports(sim: Simulation) -> list[tuple[tuple[NodeId, ...], str]]:
    return [(c.nodes, c.code) for c in sim.coordinator.commands if isinstance(c, co.Report)]


def closes(sim: Simulation) -> list[co.Close]:
    return [c for c in sim.coordinator.commands if isinstance(c, co.Close)]


def proposed(sim: Simulation) -> list[SetProposed]:
    facts = [co.decode_fact(data) for data in sim.coordinator.round_log]
    return [fact for fact in facts if isinstance(fact, SetProposed)]


def exact(sim: Simulation, *places: int) -> bool:
    """Return whether exactly one sum was opened, over these nodes, and is right."""
    (opened,) = sim.coordinator.opened
    chosen = places or tuple(range(sim.setting.n))
    return opened.exact and opened.survivors == tuple(node_id(place) for place in chosen)


# --- the normal round -----------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        Setting(n=2, colluders=0, allow_two_party=True),
        Setting(n=3, colluders=0),
        Setting(n=3, colluders=1),
        Setting(n=4, colluders=1),
        Setting(n=8, colluders=2, w=64),
        Setting(n=5, colluders=1, w=16),
        Setting(n=70, colluders=17, d=3),
    ],
    ids=lambda s: f"n{s.n}c{s.colluders}w{s.w}",
)
def test_a_round_opens_the_exact_sum_of_everybody(setting: Setting) -> None:
    sim = in_round(setting)
    sim.run()
    assert phase(sim) is co.RoundPhase.CLOSED
    assert exact(sim)
    assert codes(sim) == []
    for one in sim.nodes.values():
        assert one.refusals == []
        assert one.closed == [(sim.round.hd, "opened")]


def test_round_follows_round_with_fresh_keys() -> None:
    sim = in_session()
    for place in range(3):
        sim.open_round(model=digest(f"model {place}"))
        sim.run()
    assert [opened.exact for opened in sim.coordinator.opened] == [True] * 3
    assert [opened.header.r for opened in sim.coordinator.opened] == [1, 2, 3]
    uploads = [said for said in sim.at(0).said if isinstance(said, Uploaded)]
    assert len({tag for said in uploads for _, tag in said.end.tags}) == 12


def test_a_statistics_round_may_follow_with_counts_at_scale_one() -> None:
    sim = in_session()
    sim.begin_round()
    sim.run()
    terms = replace(sim.setting.round_terms(), kind=RoundKind.EVALUATE, ranges=("count", 1.0))
    event = co.OpenRound(terms, sim.setting.ids)
    state, commands = co.handle(sim.round, event)
    assert state.header is not None
    assert state.header.ranges == (float(state.header.bound), 1.0)
    assert [type(c) for c in commands[:2]] == [co.Record, co.ArmTimer]


def test_the_header_is_recorded_before_anybody_hears_of_it_and_so_is_the_set() -> None:
    sim = in_round()
    sim.run()
    order = [
        type(c.fact).__name__ if isinstance(c, co.Record) else type(c.message).__name__
        for c in sim.coordinator.commands
        if isinstance(c, co.Record | co.SendTo)
    ]
    for fact, message in (
        ("RoundOpened", "RoundStart"),
        ("SetProposed", "Propose"),
        ("Certified", "Certificate"),
        ("RoundClosed", "RoundResult"),
    ):
        assert order.index(fact) < order.index(message)


def test_once_closed_the_state_holds_no_released_seed() -> None:
    sim = in_round()
    without(sim, Release, 4)
    sim.run()
    assert len(sim.round.releases) == 4
    sim.fire("release")
    sim.run()
    assert phase(sim) is co.RoundPhase.CLOSED
    after = sim.round
    assert not after.releases
    assert not after.shares
    assert not after.recovered


# --- ready ----------------------------------------------------------------------------


def test_the_last_nonce_counts_and_late_or_foreign_ones_are_refused() -> None:
    sim = in_session()
    sim.begin_round()
    sim.run()
    state = sim.round
    one, nonce = state.ready[0]
    message = Ready(state.session.session_id, state.r, b"n" * 32)
    assert dict(accept_ready(state, one, message))[one] == b"n" * 32 != nonce
    wrong = [
        (node_id(9), message),
        (one, replace(message, r=RoundNo(2))),
        (one, replace(message, nonce=b"short")),
        (one, replace(message, session_id=SessionId(bytes(32)))),
    ]
    for sender, bad in wrong:
        with pytest.raises(Refusal, match="OUT_OF_TURN"):
            co.handle(state, co.From(sender, bad))
    opened, _ = co.handle(state, co.OpenRound(sim.setting.round_terms(), sim.setting.ids))
    with pytest.raises(Refusal, match="OUT_OF_TURN"):
        co.handle(opened, co.From(one, message))


def test_a_round_opens_once_with_ready_members_and_never_too_small() -> None:
    sim = in_session()
    sim.begin_round()
    sim.run()
    terms = sim.setting.round_terms()
    with pytest.raises(InternalError, match="ready"):
        co.handle(sim.round, co.OpenRound(terms, (*sim.setting.ids, node_id(9))))
    with pytest.raises(Refusal, match="COHORT_SMALL"):
        co.handle(sim.round, co.OpenRound(terms, sim.setting.ids[:2]))
    state, _ = co.handle(sim.round, co.OpenRound(terms, sim.setting.ids))
    with pytest.raises(InternalError, match="once"):
        co.handle(state, co.OpenRound(terms, sim.setting.ids))


# --- uploads --------------------------------------------------------------------------


def altered_upload(sim: Simulation, place: int, alter: Callable[[UploadEnd], UploadEnd]) -> None:
    def send(envelope: Envelope) -> list[Envelope]:
        if envelope.node == node_id(place) and isinstance(envelope.from_node, Uploaded):
            return [changed(envelope, end=alter(envelope.from_node.end))]
        return [envelope]

    sim.on_send = send


@pytest.mark.parametrize(
    ("code", "alter"),
    [
        ("UPLOAD_SIG", lambda end: replace(end, sig=bytes(64))),
        ("UPLOAD_SIG", lambda end: replace(end, self_commit=digest("x"))),
        ("UPLOAD_SIG", lambda end: replace(end, tags=end.tags[1:])),
        ("UPLOAD_SIG", lambda end: replace(end, tags=end.tags[::-1])),
        ("UPLOAD_SIG", lambda end: replace(end, tags=(end.tags[0], *end.tags[:3]))),
        ("UPLOAD_SIG", lambda end: replace(end, sealed=end.sealed[1:])),
        ("UPLOAD_SIG", lambda end: replace(end, sealed=(end.sealed[0], *end.sealed[:3]))),
        ("UPLOAD_SIG", lambda end: replace(end, sealed=(short(end), *end.sealed[1:]))),
        ("UPLOAD_DIGEST", lambda end: replace(end, ydig=digest("x"))),
        ("OUT_OF_TURN", lambda end: replace(end, hd=HeaderDigest(bytes(32)))),
    ],
)
def test_a_faulty_end_record_is_refused_and_the_round_goes_on_without_it(
    code: str, alter: Callable[[UploadEnd], UploadEnd]
) -> None:
    sim = in_round()
    altered_upload(sim, 2, alter)
    sim.run()
    assert codes(sim) == [(node_id(2), code)]
    sim.fire("round")
    sim.run()
    assert exact(sim, 0, 1, 3, 4)


def short(end: UploadEnd) -> SealedShares:
    return replace(end.sealed[0], ct=end.sealed[0].ct[:-1])


def test_an_upload_of_the_wrong_size_is_refused() -> None:
    sim = in_round()
    sim.on_send = lambda envelope: (
        [changed(envelope, body=envelope.from_node.body[:-4])]
        if isinstance(envelope.from_node, Uploaded) and envelope.node == node_id(0)
        else [envelope]
    )
    sim.run()
    assert codes(sim) == [(node_id(0), "UPLOAD_SIZE")]


def test_an_upload_is_acknowledged_again_but_never_replaced() -> None:
    sim = in_round()
    without(sim, Uploaded, 4)
    sim.run()
    end = sim.round.uploads[0].end
    sender = sim.round.uploads[0].sender
    again = co.UploadReceived(sender, end, end.ydig, 32)
    state, commands = co.handle(sim.round, again)
    assert commands == [co.AckUpload(sender, sim.round.hd)]
    assert state == sim.round
    other = replace(again, end=replace(end, sig=bytes(64)))
    with pytest.raises(Refusal, match="UPLOAD_DIGEST"):
        co.handle(sim.round, other)


def test_an_upload_after_the_set_was_fixed_is_late() -> None:
    sim = in_round()
    held: list[Envelope] = []

    def hold(envelope: Envelope) -> list[Envelope]:
        if isinstance(envelope.from_node, Uploaded) and envelope.node == node_id(4):
            held.append(envelope)
            return []
        return [envelope]

    sim.on_send = hold
    sim.run()
    sim.fire("round")
    sim.deliver(held[0])
    assert codes(sim) == [(node_id(4), "UPLOAD_LATE")]
    sim.run()
    assert exact(sim, 0, 1, 2, 3)
    sim.deliver(held[0])
    assert codes(sim)[1:] == [(node_id(4), "UPLOAD_LATE")]


def test_an_upload_of_a_stranger_is_refused() -> None:
    sim = in_session()
    sim.open_round(SETTING.ids[:4])
    sim.run()
    end = sim.round.uploads[0].end
    with pytest.raises(Refusal, match="OUT_OF_TURN"):
        co.handle(sim.round, co.UploadReceived(node_id(4), end, end.ydig, 32))


# --- tags, disputes, the cover --------------------------------------------------------


def resigned_tags(sim: Simulation, liar: int, *victims: int) -> Callable[[UploadEnd], UploadEnd]:
    """Return an end record with wrong tags towards `victims`, properly signed."""
    wrong = {node_id(victim) for victim in victims}

    def alter(end: UploadEnd) -> UploadEnd:
        tags = tuple((one, bytes(16) if one in wrong else tag) for one, tag in end.tags)
        session = sim.at(liar).state.session
        assert session is not None
        table = {one: EdgeTag(tag) for one, tag in tags}
        data = upload_statement(
            end.hd, node_id(liar), end.ydig, SelfCommit(end.self_commit), tags_hash(table)
        )
        return replace(end, tags=tags, sig=session.key.sign(data))

    return alter


def test_a_liar_with_more_than_c_bad_edges_is_left_out_and_honest_nodes_stay() -> None:
    sim = in_round()
    altered_upload(sim, 0, resigned_tags(sim, 0, 1, 2))
    sim.run()
    assert exact(sim, 1, 2, 3, 4)
    pairs = [nodes for nodes, code in reports(sim) if code == "TAG_MISMATCH"]
    assert pairs == [edge(node_id(0), node_id(1)), edge(node_id(0), node_id(2)), (node_id(0),)]


def test_one_bad_edge_costs_the_later_id_and_is_remembered_for_the_epoch() -> None:
    sim = in_round()
    altered_upload(sim, 1, resigned_tags(sim, 1, 3))
    sim.run()
    assert exact(sim, 0, 1, 2, 4)
    assert sim.round.edges.bad == {edge(node_id(1), node_id(3))}
    sim.on_send = None
    sim.open_round(model=digest("next"))
    sim.run()
    assert sim.coordinator.opened[-1].survivors == sim.coordinator.opened[0].survivors


def test_disputes_of_the_epoch_decide_the_tie() -> None:
    sim = in_session()
    earlier = EdgeRecord().noted([edge(node_id(0), node_id(9))])
    sim.begin_round()
    sim.run()
    sim.coordinator.round = replace(sim.round, edges=earlier)
    sim.post(sim.coordinator.tell_round(co.OpenRound(sim.setting.round_terms(), sim.setting.ids)))
    altered_upload(sim, 0, resigned_tags(sim, 0, 3))
    sim.run()
    # c = 1: two bad edges in the epoch prove node 0 a liar, although 3 is the later id.
    assert exact(sim, 1, 2, 3, 4)


def test_disputes_that_leave_too_few_end_the_round() -> None:
    sim = in_round(Setting(n=4, colluders=1))
    altered_upload(sim, 0, resigned_tags(sim, 0, 1))
    lies = sim.on_send
    assert lies is not None
    second = resigned_tags(sim, 2, 3)

    def both(envelope: Envelope) -> list[Envelope]:
        (one,) = lies(envelope)
        if one.node == node_id(2) and isinstance(one.from_node, Uploaded):
            return [changed(one, end=second(one.from_node.end))]
        return [one]

    sim.on_send = both
    sim.run()
    assert closes(sim) == [co.Close(RoundStatus.ABORTED, "TAG_MISMATCH", ())]
    assert proposed(sim) == []


def test_a_node_with_another_header_shares_no_tag_with_anybody() -> None:
    sim = in_session()
    sim.begin_round()
    sim.run()
    event = co.OpenRound(sim.setting.round_terms(), sim.setting.ids)
    envelopes = sim.coordinator.tell_round(event)
    for envelope in envelopes:
        message = envelope.to_node
        if envelope.node == node_id(0) and isinstance(message, RoundStart):
            other = replace(message.header, ranges=(0.25, 1.0))
            sim.deliver(changed(envelope, header=other))
        else:
            sim.deliver(envelope)
    sim.run()
    assert codes(sim) == [(node_id(0), "OUT_OF_TURN")]  # another hd
    ends = {
        one.id: s.end for one in sim.nodes.values() for s in one.said if isinstance(s, Uploaded)
    }
    mine = dict(ends[node_id(0)].tags)
    for other_id, end in ends.items():
        if other_id != node_id(0):
            assert dict(end.tags)[node_id(0)] != mine[other_id]


# --- when the set is fixed ------------------------------------------------------------


def test_the_set_is_fixed_at_once_when_the_missing_are_known_to_be_gone() -> None:
    sim = in_round()
    sim.lose(4)
    sim.run()
    assert exact(sim, 0, 1, 2, 3)


def test_a_lost_member_that_returns_in_time_is_counted() -> None:
    sim = in_round()
    without(sim, Uploaded, 3)
    sim.lose(4)
    sim.run()
    assert phase(sim) is co.RoundPhase.RUNNING
    sim.on_send = None
    sim.back(4)
    sim.run()
    sim.back(3)
    sim.run()
    assert exact(sim)


def test_at_the_deadline_the_set_is_proposed_if_enough_came() -> None:
    sim = in_round()
    without(sim, Uploaded, 0)
    sim.run()
    assert phase(sim) is co.RoundPhase.RUNNING
    assert sim.coordinator.timers == ["adverts", "confirms", "round"]
    sim.fire("round")
    sim.run()
    assert exact(sim, 1, 2, 3, 4)


def test_at_the_deadline_too_few_uploads_abort_the_round() -> None:
    sim = in_round()
    without(sim, Uploaded, 0, 1)
    sim.run()
    sim.fire("round")
    sim.run()
    assert closes(sim) == [co.Close(RoundStatus.ABORTED, "NOT_ENOUGH", ())]
    assert proposed(sim) == []
    for one in sim.nodes.values():
        assert one.closed == [(sim.round.hd, "aborted")]


def test_too_many_gone_wait_for_the_deadline_but_too_many_refusals_do_not() -> None:
    sim = in_round()
    sim.lose(3)
    sim.lose(4)
    sim.run()
    assert phase(sim) is co.RoundPhase.RUNNING
    for place in (0, 1):
        sim.post(
            sim.coordinator.tell_round(
                co.From(node_id(place), Refused(sim.round.hd, "INPUT_NAN", "x"))
            )
        )
    assert phase(sim) is co.RoundPhase.RUNNING  # both had uploaded before
    sim = in_round()
    for place in (0, 1):
        refused = Refused(sim.round.hd, "INPUT_NAN", "x")
        sim.post(sim.coordinator.tell_round(co.From(node_id(place), refused)))
    assert closes(sim) == [co.Close(RoundStatus.ABORTED, "NOT_ENOUGH", ())]
    assert [code for _, code in reports(sim)] == ["INPUT_NAN", "INPUT_NAN"]


def test_a_refusal_about_another_round_changes_nothing() -> None:
    sim = in_round()
    event = co.From(node_id(0), Refused(b"", "EPOCH_OLD", "x"))
    assert co.handle(sim.round, event) == (sim.round, [])


# --- commits --------------------------------------------------------------------------


def held_commits(sim: Simulation) -> list[Envelope]:
    held: list[Envelope] = []

    def hold(envelope: Envelope) -> list[Envelope]:
        if isinstance(envelope.from_node, Commit):
            held.append(envelope)
            return []
        return [envelope]

    sim.on_send = hold
    sim.run()
    sim.on_send = None
    return held


def test_the_certificate_goes_out_with_the_q_th_commit_and_later_ones_still_count() -> None:
    sim = in_round()
    held = held_commits(sim)
    assert len(held) == 5
    for envelope in held[:3]:
        sim.deliver(envelope)
    assert phase(sim) is co.RoundPhase.PROPOSED
    sim.deliver(held[3])
    assert phase(sim) is co.RoundPhase.CERTIFIED
    assert sim.round.certificate is not None
    assert len(sim.round.certificate.sigs) == 4
    sim.deliver(held[4])
    assert len(sim.round.commits) == 5
    assert len(sim.round.certificate.sigs) == 4
    sim.run()
    assert exact(sim)


@pytest.mark.parametrize(
    ("code", "alter"),
    [
        ("COMMIT_SIG", lambda commit: replace(commit, sig=bytes(64))),
        ("COMMIT_SIG", lambda commit: replace(commit, set_hash=digest("x"))),
        ("OUT_OF_TURN", lambda commit: replace(commit, hd=HeaderDigest(bytes(32)))),
    ],
)
def test_a_wrong_commit_is_refused(code: str, alter: Callable[[Commit], Commit]) -> None:
    sim = in_round()
    held = held_commits(sim)
    commit = held[0].from_node
    assert isinstance(commit, Commit)
    with pytest.raises(Refusal, match=code):
        co.handle(sim.round, co.From(held[0].node, alter(commit)))


def test_a_commit_of_a_node_outside_the_set_is_refused() -> None:
    sim = in_round()
    sim.lose(4)
    held = held_commits(sim)
    commit = held[0].from_node
    assert isinstance(commit, Commit)
    with pytest.raises(Refusal, match="OUT_OF_TURN"):
        co.handle(sim.round, co.From(node_id(4), commit))


def test_two_different_commits_of_one_node_are_kept_as_evidence_once() -> None:
    sim = in_round()
    sim.run()
    first = dict(sim.round.commits)[node_id(0)]
    second = replace(first, set_hash=digest("another set"))
    state, commands = co.handle(sim.round, co.From(node_id(0), second))
    (evidence,) = [c.evidence for c in commands if isinstance(c, co.Evidence)]
    assert (evidence.node, evidence.first, evidence.second) == (node_id(0), first, second)
    assert state.evidence == (evidence,)
    assert co.handle(state, co.From(node_id(0), replace(second, sig=bytes(64))))[1] == []
    assert co.handle(state, co.From(node_id(0), first))[1] == []


def test_too_few_commits_by_the_deadline_abort_the_round() -> None:
    sim = in_round()
    without(sim, Commit, 0, 1)
    sim.run()
    sim.fire("commit")
    sim.run()
    assert closes(sim) == [co.Close(RoundStatus.ABORTED, "NOT_ENOUGH", ())]
    assert sim.coordinator.opened == []


def test_a_quorum_that_refusals_make_impossible_is_not_waited_for() -> None:
    sim = in_round()
    without(sim, Commit, 0, 1)
    sim.run()
    for place in (0, 1):
        refused = Refused(sim.round.hd, "RERUN", "x")
        sim.post(sim.coordinator.tell_round(co.From(node_id(place), refused)))
    assert closes(sim) == [co.Close(RoundStatus.ABORTED, "NOT_ENOUGH", ())]


# --- releases and recovery ------------------------------------------------------------


def test_a_member_gone_after_its_commit_is_recovered_by_its_helpers() -> None:
    sim = in_round()
    sim.lose(4)  # dropped: the others' edges to it have to be released
    without(sim, Release, 1)
    sim.run()
    assert phase(sim) is co.RoundPhase.CERTIFIED
    sim.lose(1)
    sim.run()
    assert phase(sim) is co.RoundPhase.CLOSED
    assert exact(sim, 0, 1, 2, 3)


def test_a_silent_member_is_recovered_at_the_deadline() -> None:
    sim = in_round()
    without(sim, Release, 0)
    sim.run()
    sim.fire("release")
    sim.run()
    assert exact(sim)


@pytest.mark.parametrize("what", ["b", "edge", "edges missing", "length"])
def test_a_bad_release_is_refused_and_the_seeds_come_from_helpers(what: str) -> None:
    sim = in_round()
    sim.lose(4)

    def spoil(envelope: Envelope) -> list[Envelope]:
        release = envelope.from_node
        if envelope.node != node_id(2) or not isinstance(release, Release):
            return [envelope]
        match what:
            case "b":
                return [changed(envelope, b=Secret(bytes(32)))]
            case "edge":
                return [changed(envelope, edges=((node_id(4), Secret(bytes(32))),))]
            case "length":
                return [changed(envelope, b=Secret(b"short"))]
            case _:
                return [changed(envelope, edges=())]

    sim.on_send = spoil
    sim.run()
    assert codes(sim) == [(node_id(2), "RELEASE_BAD")]
    sim.fire("release")
    sim.run()
    assert exact(sim, 0, 1, 2, 3)


def corrupt_shares(sim: Simulation, *places: int) -> None:
    liars = {node_id(place) for place in places}

    def spoil(envelope: Envelope) -> list[Envelope]:
        answer = envelope.from_node
        if isinstance(answer, RecoverShares) and envelope.node in liars:
            items = tuple(replace(i, b_share=Secret(bytes(32) + b"\x05")) for i in answer.items)
            return [changed(envelope, items=items)]
        if isinstance(answer, Release) and envelope.node == node_id(4):
            return []
        return [envelope]

    sim.on_send = spoil


def test_a_lying_helper_is_found_and_named_and_the_round_still_opens() -> None:
    sim = in_round()
    corrupt_shares(sim, 0)
    sim.run()
    sim.fire("release")
    sim.run()
    assert exact(sim)
    assert ((node_id(0),), "SHARE_BAD") in reports(sim)


def test_if_no_shares_fit_the_round_is_void_and_the_silent_member_sits_out() -> None:
    sim = in_round()
    corrupt_shares(sim, 0, 1, 2, 3)
    sim.run()
    sim.fire("release")
    sim.run()
    assert phase(sim) is co.RoundPhase.RECOVERING
    sim.fire("recover")
    assert closes(sim) == [co.Close(RoundStatus.ABORTED, "SHARE_BAD", (node_id(4),))]
    assert sim.coordinator.opened == []


def test_too_few_helpers_wait_for_a_returner_and_its_late_release_opens_the_sum() -> None:
    sim = in_round()
    sim.on_send = lambda envelope: (
        []
        if isinstance(envelope.from_node, RecoverShares)
        or (isinstance(envelope.from_node, Release) and envelope.node == node_id(4))
        else [envelope]
    )
    sim.run()
    sim.fire("release")
    sim.run()
    assert phase(sim) is co.RoundPhase.RECOVERING
    sim.on_send = None
    sim.back(4)
    sim.run()
    assert exact(sim)


def test_too_few_helpers_by_the_deadline_abort_the_round() -> None:
    sim = in_round()
    sim.on_send = lambda envelope: (
        []
        if isinstance(envelope.from_node, RecoverShares)
        or (isinstance(envelope.from_node, Release) and envelope.node == node_id(4))
        else [envelope]
    )
    sim.run()
    sim.fire("release")
    sim.run()
    sim.fire("recover")
    assert closes(sim) == [co.Close(RoundStatus.ABORTED, "NOT_ENOUGH", (node_id(4),))]


@pytest.mark.parametrize("what", ["twice", "own", "outside", "edges", "length"])
def test_malformed_shares_are_refused(what: str) -> None:
    sim = in_round()
    answers: list[Envelope] = []

    def hold(envelope: Envelope) -> list[Envelope]:
        if isinstance(envelope.from_node, RecoverShares):
            answers.append(envelope)
            return []
        lost = isinstance(envelope.from_node, Release) and envelope.node == node_id(4)
        return [] if lost else [envelope]

    sim.on_send = hold
    sim.run()
    sim.fire("release")
    sim.run()
    answer = answers[0].from_node
    assert isinstance(answer, RecoverShares)
    (item,) = answer.items
    wrong = {
        "twice": (item, item),
        "own": (replace(item, sender=answers[0].node),),
        "outside": (replace(item, sender=node_id(9)),),
        "edges": (replace(item, edges=((node_id(0), Secret(bytes(33))),)),),
        "length": (replace(item, b_share=Secret(bytes(32))),),
    }[what]
    with pytest.raises(Refusal, match="SHARE_BAD"):
        co.handle(sim.round, co.From(answers[0].node, replace(answer, items=wrong)))


def test_releases_and_shares_out_of_turn_are_refused_or_ignored() -> None:
    sim = in_round()
    held = held_commits(sim)
    hd = sim.round.hd
    release = Release(hd, Secret(bytes(32)), ())
    shares = RecoverShares(hd, ())
    for message in (release, shares):
        with pytest.raises(Refusal, match="OUT_OF_TURN"):
            co.handle(sim.round, co.From(node_id(0), message))
    with pytest.raises(Refusal, match="OUT_OF_TURN"):
        co.handle(sim.round, co.From(node_id(0), Confirm(sim.round.session.session_id, b"")))
    for envelope in held:
        sim.deliver(envelope)
    assert co.handle(sim.round, co.From(node_id(0), shares))[1] == []
    sim.run()
    assert co.handle(sim.round, co.From(node_id(0), release))[1] == []


def test_only_helpers_of_the_silent_are_asked_and_only_for_the_silent() -> None:
    sim = in_round()
    without(sim, Release, 4)
    sim.run()
    before = len(sim.coordinator.commands)
    sim.fire("release")
    asked = [
        (c.to, [sealed.sender for sealed in c.message.sealed])
        for c in sim.coordinator.commands[before:]
        if isinstance(c, co.SendTo) and isinstance(c.message, RecoverRequest)
    ]
    assert asked == [(node_id(place), [node_id(4)]) for place in range(4)]


# --- opening --------------------------------------------------------------------------


def test_a_sum_out_of_range_is_not_published() -> None:
    sim = in_round()
    one = sim.at(0)
    honest = node.mask_plan

    def half_masked(state: node.NodeState, own: NodeId) -> MaskPlan:
        """A faulty node that forgets its edges: its masks cancel with nobody's."""
        return replace(honest(state, own), edges=())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node, "mask_plan", half_masked)
        header = sim.round.header
        assert header is not None
        sim.say(one.id, one.hear(node.HeaderReceived(header, header.model_sha256)))
    sim.run()
    assert closes(sim) == [co.Close(RoundStatus.ABORTED, "SUM_RANGE", ())]
    assert sim.coordinator.opened == []
    assert all(each.closed[-1][1] == "aborted" for each in sim.nodes.values())


def test_a_sum_is_closed_once_and_only_when_it_is_open() -> None:
    sim = in_round()
    with pytest.raises(InternalError):
        co.handle(sim.round, co.SumOpened(digest("s"), b""))
    sim.run()
    assert co.handle(sim.round, co.SumOpened(digest("s"), b"")) == (sim.round, [])


def test_the_result_tells_members_and_bystanders_the_next_round() -> None:
    sim = in_session()
    sim.open_round(SETTING.ids[:4])
    sim.run()
    results = {
        c.to: c.message
        for c in sim.coordinator.commands
        if isinstance(c, co.SendTo) and isinstance(c.message, RoundResult)
    }
    assert set(results) == set(SETTING.ids)
    assert {message.next_r for message in results.values()} == {2}
    bystander = sim.at(4).state.session
    assert bystander is not None
    assert bystander.next_r == 2


def test_waits_follow_from_the_one_deadline() -> None:
    sim = in_round()
    header = sim.round.header
    assert header is not None
    assert wait_s(header, "round") == 60.0
    assert wait_s(header, "commit") == wait_s(header, "release") == 6.0
    assert wait_s(replace(header, deadline_ms=1000), "recover") == LEAST_WAIT_S


def test_a_stale_timer_is_ignored() -> None:
    sim = in_round()
    for name in ("commit", "release", "recover", "adverts"):
        assert co.handle(sim.round, co.Deadline(name)) == (sim.round, [])
    sim.run()
    assert co.handle(sim.round, co.Deadline("round")) == (sim.round, [])


# --- crash, loss, order ---------------------------------------------------------------


def reconnect(sim: Simulation) -> None:
    """Streams come back: both sides say again what was said last."""
    for one in sim.nodes.values():
        sim.say(one.id, one.hear(node.Restarted()))
        sim.post(sim.coordinator.tell_round(co.MemberBack(one.id)))
    sim.run()


def test_a_coordinator_killed_at_any_write_opens_the_same_set_and_never_another() -> None:
    calm = in_round()
    started = calm.coordinator.writes
    calm.run()
    for write in range(started, calm.coordinator.writes + 1):
        sim = in_session()
        sim.coordinator.crash_at = write
        sim.open_round()
        sim.run()
        reconnect(sim)
        assert phase(sim) is co.RoundPhase.CLOSED, write
        assert len({fact.digests for fact in proposed(sim)}) == 1
        assert all(opened.exact for opened in sim.coordinator.opened)
        assert len({opened.total for opened in sim.coordinator.opened}) == 1


def test_a_coordinator_killed_during_a_recovery_goes_on_with_it() -> None:
    def script(crash_at: int | None) -> Simulation:
        sim = in_session()
        sim.coordinator.crash_at = crash_at
        sim.open_round()
        without(sim, Release, 4)
        sim.run()
        sim.fire("release")
        sim.run()
        if crash_at is not None:
            for one in sim.nodes.values():
                sim.post(sim.coordinator.tell_round(co.MemberBack(one.id)))
            sim.run()
            sim.fire("release")
            sim.run()
        return sim

    calm = script(None)
    assert exact(calm)
    first = calm.coordinator.writes - 8
    for write in range(first, calm.coordinator.writes + 1):
        sim = script(write)
        assert phase(sim) is co.RoundPhase.CLOSED, write
        assert sim.coordinator.opened[-1].exact


@pytest.mark.parametrize("place", [0, 4])
def test_a_node_killed_at_any_write_repeats_itself_and_the_round_opens(place: int) -> None:
    calm = in_round()
    calm.run()
    started = in_session().at(place).writes
    for write in range(started + 1, calm.at(place).writes + 1):
        sim = in_session()
        sim.at(place).crash_at = write
        sim.open_round()
        sim.run()
        sim.fire("round")
        sim.run()
        sim.fire("release")
        sim.run()
        assert phase(sim) is co.RoundPhase.CLOSED, write
        assert sim.coordinator.opened[0].exact
        uploads = [said for said in sim.at(place).said if isinstance(said, Uploaded)]
        commits = [said for said in sim.at(place).said if isinstance(said, Commit)]
        assert len({said.body for said in uploads}) == 1
        assert len(set(commits)) == 1


@pytest.mark.fault("F31")
@pytest.mark.fault("F34")
@pytest.mark.parametrize("seed", range(8))
def test_reordered_and_duplicated_messages_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sim = in_session(replace(SETTING, seed=seed))
    sim.on_send = lambda envelope: [envelope] * int(rng.integers(1, 3))
    sim.open_round()
    sim.run(pick=lambda flying: int(rng.integers(len(flying))))
    sim.fire("release")  # a reordered certificate may have found a node not yet bound
    sim.run(pick=lambda flying: int(rng.integers(len(flying))))
    assert phase(sim) is co.RoundPhase.CLOSED
    assert exact(sim)
    for one in sim.nodes.values():
        assert len({said for said in one.said if isinstance(said, Commit)}) == 1


def test_facts_replay_to_the_state_at_every_step() -> None:
    sim = in_round()
    sim.lose(4)
    without(sim, Release, 1)
    sim.run()
    sim.lose(1)
    facts: list[co.RoundFact] = []
    while sim.flying:
        sim.deliver(sim.flying.pop(0))
        facts = [co.decode_fact(data) for data in sim.coordinator.round_log]
        assert co.replay(facts) == sim.round
    assert [co.encode_fact(fact) for fact in facts] == sim.coordinator.round_log
    assert phase(sim) is co.RoundPhase.CLOSED


def test_a_damaged_or_headless_fact_log_is_refused() -> None:
    sim = in_round()
    sim.run()
    log = sim.coordinator.round_log
    with pytest.raises(StateError):
        co.decode_fact(log[0][:-2])
    with pytest.raises(InternalError):
        co.replay([co.decode_fact(data) for data in log[1:]])
    assert co.replay([]) is None


def test_after_a_restart_everybody_is_told_what_they_have_not_answered() -> None:
    expected = {
        co.RoundPhase.RUNNING: (RoundStart, Uploaded),
        co.RoundPhase.PROPOSED: (Propose, Commit),
        co.RoundPhase.CERTIFIED: (Certificate, Release),
        co.RoundPhase.CLOSED: (RoundResult, Ready),
    }
    for stage, (question, answer) in expected.items():
        sim = in_round()
        without(sim, answer, 2, 3)
        sim.run()
        assert phase(sim) is stage
        told = sim.coordinator.crash()
        assert {type(envelope.to_node) for envelope in told} == {question}
        if stage is not co.RoundPhase.CLOSED:
            assert [envelope.node for envelope in told] == [node_id(2), node_id(3)]
            assert len(sim.coordinator.timers) == 1


def test_an_opened_sum_is_opened_again_after_a_crash() -> None:
    sim = in_round()
    sim.run()
    facts = [co.decode_fact(data) for data in sim.coordinator.round_log]
    state = co.replay([fact for fact in facts if not isinstance(fact, RoundClosed)])
    assert state is not None
    assert state.phase is co.RoundPhase.OPENED
    _, commands = co.handle(state, co.Restarted())
    (again,) = [c for c in commands if isinstance(c, co.Open)]
    (first,) = [c for c in sim.coordinator.commands if isinstance(c, co.Open)]
    assert again == first


def test_an_aborted_round_stays_aborted() -> None:
    sim = in_round()
    sim.run()
    facts = [co.decode_fact(data) for data in sim.coordinator.round_log]
    uploads = [fact for fact in facts if isinstance(fact, UploadAccepted)]
    state = co.replay([facts[0], *uploads, RoundAborted("NOT_ENOUGH")])
    assert state is not None
    commit = Commit(state.hd, Sha256(bytes(32)), bytes(64))
    with pytest.raises(Refusal, match="OUT_OF_TURN"):
        co.handle(state, co.From(node_id(0), commit))
    for event in (co.Deadline("round"), co.MemberGone(node_id(0)), co.SumOutOfRange()):
        after, commands = co.handle(state, event)
        assert after.phase is co.RoundPhase.ABORTED
        assert commands == []


def test_rounds_begin_from_ready_sessions_only() -> None:
    state, _ = cs.handle(
        None,
        cs.OpenSession(SETTING.terms, SETTING.ids, 1.0),
        Simulation(SETTING).coordinator.ctx,
    )
    with pytest.raises(InternalError):
        co.SessionView.of(state)


def test_a_member_that_never_confirmed_is_not_ready() -> None:
    sim = in_session()
    assert sim.coordinator.session is not None
    view = co.SessionView.of(replace(sim.coordinator.session, confirmed=SETTING.ids[:4]))
    state = co.begin_round(view, RoundNo(1))
    message = Ready(view.session_id, RoundNo(1), bytes(32))
    with pytest.raises(Refusal, match="OUT_OF_TURN"):
        co.handle(state, co.From(node_id(4), message))
