"""A node in a round: what it refuses, what it repeats, what it never gives away."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace

import pytest

from common.errors import Refusal, StateError
from common.ids import ConfigHash, HeaderDigest, NodeId, RoundNo, SessionId, Sha256
from common.secagg import node
from common.secagg.dp import DpMode, DpTerms
from common.secagg.header import Header, Rounding, RoundKind
from common.secagg.keys import ratchet
from common.secagg.messages import (
    Certificate,
    Commit,
    Digests,
    Propose,
    Ready,
    RecoverRequest,
    RecoverShares,
    Refused,
    Release,
    RoundResult,
    RoundStatus,
    SealedFrom,
)
from common.secagg.node_state import LiveSession, OpenRound
from common.secagg.params import SecAggParams
from common.secagg.transcript import commit_statement, set_hash
from tests.simulation.secagg_harness import (
    CONFIG,
    LAYOUT,
    MODEL,
    W_MAX,
    Setting,
    SimNode,
    Simulation,
    Uploaded,
    digest,
    node_id,
)

SETTING = Setting(n=5, colluders=1)


class Scripted:
    """Nodes with a session; the test plays the coordinator, honest or not."""

    def __init__(self, setting: Setting = SETTING) -> None:
        self.sim = Simulation(setting)
        self.sim.open_session()
        self.sim.run()
        self.setting = setting
        self.ends: dict[NodeId, Uploaded] = {}

    def at(self, place: int) -> SimNode:
        return self.sim.at(place)

    def nonces(self) -> dict[NodeId, bytes]:
        found = {}
        for one in self.sim.nodes.values():
            (ready,) = one.hear(node.MakeReady())
            assert isinstance(ready, Ready)
            found[one.id] = ready.nonce
        return found

    def header(self, r: int = 1, model: Sha256 = MODEL) -> Header:
        """Return a header that every node accepts."""
        nonces = self.nonces()
        params = SecAggParams.derive(self.setting.n, self.setting.colluders)
        session = live(self.at(0))
        return Header(
            session_id=session.session_id,
            r=RoundNo(r),
            kind=RoundKind.TRAIN,
            model_sha256=model,
            layout_sha256=LAYOUT,
            config_hash=CONFIG,
            members=tuple((one, nonces[one]) for one in self.setting.ids),
            d=self.setting.d,
            w=self.setting.w,
            c=params.c,
            q=params.q,
            s_min=params.s_min,
            t_h=params.t_h,
            kappa=params.kappa,
            ranges=self.setting.ranges,
            w_max=W_MAX,
            rounding=Rounding.EVEN,
            deadline_ms=60_000,
        )

    def start(self, header: Header | None = None) -> HeaderDigest:
        """Start a round at all nodes; their uploads are in `ends`."""
        header = header or self.header()
        for one in self.sim.nodes.values():
            for said in one.hear(node.HeaderReceived(header, header.model_sha256)):
                if isinstance(said, Uploaded):
                    self.ends[one.id] = said
        return header.digest()

    def digests(self, *places: int) -> Digests:
        chosen = places or tuple(range(self.setting.n))
        return tuple((node_id(p), self.ends[node_id(p)].end.ydig) for p in chosen)

    def propose(self, hd: HeaderDigest, *places: int) -> Propose:
        return Propose(hd, self.digests(*places))

    def certificate(self, hd: HeaderDigest, *places: int, signers: int = 4) -> Certificate:
        """Return signatures made with the nodes' own keys, as colluders could."""
        digests = self.digests(*places)
        data = commit_statement(hd, dict(digests))
        sigs = tuple(
            (one, live(self.sim.nodes[one]).key.sign(data)) for one, _ in digests[:signers]
        )
        return Certificate(hd, digests, sigs)


def live(one: SimNode) -> LiveSession:
    assert one.state.session is not None
    return one.state.session


def opened(one: SimNode) -> OpenRound:
    found = live(one).open
    assert found is not None
    return found


def refused(one: SimNode, event: node.NodeEvent) -> str:
    """Return the refusal's name; the state is unchanged and nothing was said."""
    before = node.encode_state(one.state)
    with pytest.raises(Refusal) as caught:
        node.handle(one.state, event, one.ctx)
    assert node.encode_state(one.state) == before
    return caught.value.name


def secrets_of(one: SimNode) -> list[bytes]:
    """Return every secret of the open round."""
    round_ = opened(one)
    found = [round_.b.reveal(), round_.a.reveal()]
    for pair in round_.pairs:
        found += [pair.edge.reveal(), pair.seal_to.reveal(), pair.open_from.reveal()]
    return found


def on_disk(one: SimNode, secret: bytes) -> bool:
    return b64encode(secret) in one.disk


# --- ready and header -----------------------------------------------------------------


def test_no_session_means_no_ready() -> None:
    sim = Simulation(SETTING)
    assert refused(sim.at(0), node.MakeReady()) == "CLOSED"


def test_each_ready_has_a_fresh_nonce_and_only_the_last_one_counts() -> None:
    play = Scripted()
    first = play.header()
    second = play.header()
    assert first.members != second.members
    one = play.at(0)
    stale = node.HeaderReceived(first, first.model_sha256)
    assert refused(one, stale) == "HEADER_NONCE"
    one.hear(node.HeaderReceived(second, second.model_sha256))
    assert opened(one).hd == second.digest()


def test_a_nonce_is_never_written_to_disk() -> None:
    play = Scripted()
    (ready,) = play.at(0).hear(node.MakeReady())
    assert isinstance(ready, Ready)
    stored = node.encode_state(play.at(0).state)
    assert b64encode(ready.nonce) not in stored
    restored = node.decode_state(stored).session
    assert restored is not None
    assert restored.nonce == b""


@pytest.mark.fault("F64")
def test_a_node_restored_from_a_backup_cannot_be_replayed_an_old_header() -> None:
    play = Scripted()
    header = play.header()
    one = play.at(0)
    backup = node.encode_state(one.state)
    play.start(header)
    one.state = node.decode_state(backup)
    replayed = node.HeaderReceived(header, header.model_sha256)
    assert refused(one, replayed) == "HEADER_NONCE"


DP = DpTerms(DpMode.HOSPITAL, 1.0, 1.0, 100, 4.0, 52, 0.0, 0)

HEADER_RULES: list[tuple[str, str, Callable[[Header], Header]]] = [
    ("version", "HEADER_FORM", lambda h: replace(h, version=2)),
    ("session", "EPOCH_OLD", lambda h: replace(h, session_id=SessionId(bytes(32)))),
    ("study", "CONFIG_HASH", lambda h: replace(h, config_hash=ConfigHash(bytes(32)))),
    ("group", "HEADER_FORM", lambda h: replace(h, group=1)),
    ("round zero", "HEADER_FORM", lambda h: replace(h, r=RoundNo(0))),
    ("round beyond the epoch", "ROUND_OLD", lambda h: replace(h, r=RoundNo(257))),
    ("round nobody was ready for", "HEADER_NONCE", lambda h: replace(h, r=RoundNo(2))),
    ("unsorted", "HEADER_FORM", lambda h: replace(h, members=h.members[::-1])),
    ("twice", "HEADER_FORM", lambda h: replace(h, members=(*h.members[:4], h.members[3]))),
    (
        "stranger",
        "HEADER_FORM",
        lambda h: replace(h, members=(*h.members[:4], (node_id(9), bytes(32)))),
    ),
    ("own nonce", "HEADER_NONCE", lambda h: replace(h, members=own_nonce(h, bytes(32)))),
    ("c", "QUORUM_RULE", lambda h: rederived(h, c=0)),
    ("q low", "QUORUM_RULE", lambda h: replace(h, q=h.q - 1)),
    ("q high", "QUORUM_RULE", lambda h: replace(h, q=h.q + 1)),
    ("s_min low", "SMIN_RULE", lambda h: replace(h, s_min=h.s_min - 1)),
    ("s_min above n", "SMIN_RULE", lambda h: replace(h, s_min=6)),
    ("t_h one", "HELPER_RULE", lambda h: replace(h, t_h=1)),
    ("t_h high", "HELPER_RULE", lambda h: replace(h, t_h=h.t_h + 1)),
    ("kappa", "HELPER_RULE", lambda h: replace(h, kappa=h.kappa - 1)),
    ("cohort", "COHORT_SMALL", lambda h: rederived(h, c=0, members=h.members[:2])),
    ("w unknown", "HEADER_FORM", lambda h: replace(h, w=24)),
    ("w not the study's", "HEADER_FORM", lambda h: replace(h, w=64)),
    ("d", "LAYOUT", lambda h: replace(h, d=h.d + 1)),
    ("L", "LAYOUT", lambda h: replace(h, ranges=(*h.ranges, 1.0))),
    ("layout", "LAYOUT", lambda h: replace(h, layout_sha256=Sha256(bytes(32)))),
    ("kind", "LAYOUT", lambda h: replace(h, kind=RoundKind.VOTE)),
    ("range zero", "HEADER_FORM", lambda h: replace(h, ranges=(0.0, 1.0))),
    ("range infinite", "HEADER_FORM", lambda h: replace(h, ranges=(float("inf"), 1.0))),
    ("fixed range", "HEADER_FORM", lambda h: replace(h, ranges=(0.5, 2.0))),
    ("W_max", "HEADER_FORM", lambda h: replace(h, w_max=W_MAX + 1)),
    ("rounding", "HEADER_FORM", lambda h: replace(h, rounding=Rounding.STOCHASTIC)),
    ("deadline none", "HEADER_FORM", lambda h: replace(h, deadline_ms=0)),
    ("deadline long", "HEADER_FORM", lambda h: replace(h, deadline_ms=600_001)),
    ("DP terms unasked", "DP_WEAK", lambda h: replace(h, dp=DP)),
    ("DP terms without mode", "HEADER_FORM", lambda h: replace(h, dp=DpTerms(z=1.0))),
    ("short digest", "HEADER_FORM", lambda h: replace(h, model_sha256=Sha256(b"x"))),
]


def own_nonce(header: Header, nonce: bytes) -> tuple[tuple[NodeId, bytes], ...]:
    return ((header.members[0][0], nonce), *header.members[1:])


def rederived(
    header: Header, c: int, members: tuple[tuple[NodeId, bytes], ...] | None = None
) -> Header:
    """Return a header that is right by section 1, but weaker than this hospital's policy."""
    members = members or header.members
    params = SecAggParams.derive(len(members), c)
    return replace(
        header,
        members=members,
        c=c,
        q=params.q,
        s_min=params.s_min,
        t_h=params.t_h,
        kappa=params.kappa,
    )


@pytest.mark.parametrize(("what", "code", "alter"), HEADER_RULES, ids=[r[0] for r in HEADER_RULES])
@pytest.mark.fault("F67")
def test_a_header_with_one_wrong_item_is_refused_by_its_name(
    what: str, code: str, alter: Callable[[Header], Header]
) -> None:
    play = Scripted()
    header = alter(play.header())
    event = node.HeaderReceived(header, header.model_sha256)
    assert refused(play.at(0), event) == code


def test_a_header_that_leaves_this_node_out_is_refused() -> None:
    play = Scripted()
    header = play.header()
    without = rederived(header, c=1, members=header.members[:4])
    event = node.HeaderReceived(without, without.model_sha256)
    assert refused(play.at(4), event) == "HEADER_FORM"


@pytest.mark.fault("F67")
def test_a_model_with_other_bytes_than_the_header_names_is_refused() -> None:
    play = Scripted()
    header = play.header()
    assert refused(play.at(0), node.HeaderReceived(header, digest("other"))) == "MODEL_HASH"


def test_a_ring_too_narrow_for_the_cohort_is_refused_as_overflow() -> None:
    play = Scripted()
    many = tuple((node_id(place), bytes(32)) for place in range(70))
    header = replace(rederived(play.header(), c=17, members=many), w=16)
    event = node.HeaderReceived(header, header.model_sha256)
    assert refused(play.at(0), event) == "OVERFLOW_BOUND"


@pytest.mark.fault("F69")
def test_the_hospitals_own_floors_hold_whatever_the_study_says() -> None:
    play = Scripted()
    header = play.header()
    event = node.HeaderReceived(header, header.model_sha256)
    one = play.at(0)
    rules = one.rules
    for stricter, code in (
        (replace(rules, min_cohort=6), "COHORT_SMALL"),
        (replace(rules, colluders=2), "QUORUM_RULE"),
        (replace(rules, s_min=5), "SMIN_RULE"),
        (replace(rules, ring_bits=frozenset((64,))), "HEADER_FORM"),
    ):
        one.rules = stricter
        assert refused(one, event) == code


def test_a_study_that_asks_more_survivors_is_held_to_it() -> None:
    play = Scripted(replace(SETTING, s_min=5))
    header = play.header()  # s_min of the rule alone: 4
    event = node.HeaderReceived(header, header.model_sha256)
    assert refused(play.at(0), event) == "SMIN_RULE"


def test_a_count_range_is_exactly_the_bound_of_the_cohort() -> None:
    play = Scripted()
    one = play.at(0)
    session = live(one)
    (train, evaluate) = session.expect.rounds
    counted = replace(train, ranges=("count", 1.0))
    expect = replace(session.expect, rounds=(counted, evaluate))
    header = play.header()
    one.state = replace(one.state, session=replace(live(one), expect=expect))
    wrong = node.HeaderReceived(header, header.model_sha256)
    assert refused(one, wrong) == "HEADER_FORM"
    right = replace(header, ranges=(float(header.bound), 1.0))
    one.hear(node.HeaderReceived(right, right.model_sha256))
    assert opened(one).hd == right.digest()


def test_a_session_past_its_validity_starts_no_round() -> None:
    play = Scripted()
    header = play.header()
    one = play.at(0)
    one.now_unix = live(one).not_after + 1
    assert refused(one, node.HeaderReceived(header, header.model_sha256)) == "EPOCH_OLD"
    assert refused(one, node.MakeReady()) == "EPOCH_OLD"


@pytest.mark.fault("F64")
def test_round_numbers_only_grow() -> None:
    play = Scripted()
    hd = play.start(play.header())
    one = play.at(0)
    header = opened(one).header
    other = replace(header, w_max=W_MAX, ranges=(0.25, 1.0))
    assert refused(one, node.HeaderReceived(other, other.model_sha256)) == "ROUND_OPEN"
    one.hear(result(hd))
    assert refused(one, node.HeaderReceived(other, other.model_sha256)) == "ROUND_OLD"
    assert refused(one, node.HeaderReceived(header, header.model_sha256)) == "CLOSED"


def test_a_larger_round_number_closes_the_open_round_and_may_skip_some() -> None:
    play = Scripted()
    first = play.start()
    one = play.at(0)
    for each in play.sim.nodes.values():
        each.state = replace(each.state, session=replace(live(each), next_r=RoundNo(9)))
    play.start(play.header(r=9))
    assert (first, "superseded") in one.closed
    assert opened(one).header.r == 9
    assert live(one).chain_r == 10


def test_the_epochs_rounds_run_out() -> None:
    play = Scripted()
    one = play.at(0)
    one.hear(RoundResult(HeaderDigest(b""), RoundStatus.OPENED, (), b"", b"", RoundNo(257)))
    assert refused(one, node.MakeReady()) == "ROUND_OLD"


def test_starting_a_round_moves_every_chain_past_it() -> None:
    play = Scripted()
    one = play.at(0)
    before = live(one).peers
    play.start()
    after = live(one).peers
    for old, new in zip(before, after, strict=True):
        assert new.chain == ratchet(old.chain)
        assert not on_disk(one, old.chain.reveal())


def test_both_ends_derive_the_same_seed_and_opposite_share_keys() -> None:
    play = Scripted()
    play.start()
    mine = next(p for p in opened(play.at(0)).pairs if p.peer == node_id(1))
    theirs = next(p for p in opened(play.at(1)).pairs if p.peer == node_id(0))
    assert mine.edge == theirs.edge
    assert mine.seal_to == theirs.open_from
    assert mine.open_from == theirs.seal_to
    assert mine.seal_to != mine.open_from


# --- upload ---------------------------------------------------------------------------


def test_an_upload_is_repeated_byte_for_byte_however_often_it_is_asked_for() -> None:
    play = Scripted()
    header = play.header()
    hd = play.start(header)
    one = play.at(2)
    first = play.ends[one.id]
    again = node.HeaderReceived(header, header.model_sha256)
    assert one.hear(again) == [first]
    assert first in one.hear(node.Restarted())
    assert first in one.crash()
    assert one.hear(node.InputFinal(hd, first.end.ydig)) == [first]


def test_a_second_input_for_one_header_is_refused() -> None:
    play = Scripted()
    hd = play.start()
    assert refused(play.at(0), node.InputFinal(hd, digest("another"))) == "DIGEST"


def test_a_duplicated_header_does_not_start_a_second_training() -> None:
    play = Scripted()
    one = play.at(0)
    one.trains = False
    header = play.header()
    event = node.HeaderReceived(header, header.model_sha256)
    state, commands = node.handle(one.state, event, one.ctx)
    assert node.PrepareInput(header.digest(), header) in commands
    assert node.handle(state, event, one.ctx) == (state, [])
    # After a crash it may be computed: nothing had left.
    _, commands = node.handle(state, node.Restarted(), one.ctx)
    assert commands[-1] == node.PrepareInput(header.digest(), header)


def test_persist_comes_before_everything_that_leaves() -> None:
    play = Scripted()
    hd = play.start()
    one = play.at(0)
    for event in (play.propose(hd), play.certificate(hd)):
        _, commands = node.handle(one.state, event, one.ctx)
        assert isinstance(commands[0], node.Persist)
        assert isinstance(commands[1], node.Send)
    fresh = Scripted()
    header = fresh.header()
    first = node.HeaderReceived(header, header.model_sha256)
    state, commands = node.handle(fresh.at(0).state, first, fresh.at(0).ctx)
    assert isinstance(commands[0], node.Persist)
    final = node.InputFinal(header.digest(), digest("y"))
    _, commands = node.handle(state, final, fresh.at(0).ctx)
    assert [type(command) for command in commands] == [node.Persist, node.StartUpload]


def test_a_failed_input_leaves_the_round_and_says_why() -> None:
    play = Scripted()
    one = play.at(0)
    one.trains = False
    hd = play.start()
    secrets = secrets_of(one)
    said = one.hear(node.InputFailed(hd, "INPUT_NAN", "the loss is not finite"))
    assert said == [Refused(hd, "INPUT_NAN", "the loss is not finite")]
    assert live(one).open is None
    assert not any(on_disk(one, secret) for secret in secrets)
    assert refused(one, node.InputFinal(hd, digest("y"))) == "CLOSED"


def test_a_lost_input_leaves_the_round_after_a_restart() -> None:
    play = Scripted()
    hd = play.start()
    one = play.at(0)
    one.spool.clear()
    said = one.crash()
    assert Refused(hd, "CLOSED", "input lost") in said
    assert live(one).open is None


# --- propose and commit ---------------------------------------------------------------


def test_a_commit_is_one_signature_over_set_and_digests() -> None:
    play = Scripted()
    hd = play.start()
    (commit,) = play.at(0).hear(play.propose(hd))
    digests = dict(play.digests())
    assert isinstance(commit, Commit)
    assert bytes(commit.set_hash) == set_hash(digests)
    assert commit.sig == live(play.at(0)).key.sign(commit_statement(hd, digests))
    assert play.at(0).hear(play.propose(hd)) == [commit]
    assert commit in play.at(0).crash()


@pytest.mark.fault("F69")
def test_a_proposal_is_refused_by_the_rule_it_breaks() -> None:
    play = Scripted()
    hd = play.start()
    one = play.at(0)
    full = play.digests()
    stranger = (node_id(7), digest("y"))
    cases = [
        (Propose(HeaderDigest(bytes(32)), full), "CLOSED"),
        (Propose(hd, full[1:]), "NOT_IN_SET"),
        (Propose(hd, full[:3]), "SET_SMALL"),
        (Propose(hd, (*full, stranger)), "DIGEST"),
        (Propose(hd, full[::-1]), "DIGEST"),
        (Propose(hd, (*full[:4], full[3])), "DIGEST"),
        (Propose(hd, ((full[0][0], digest("other")), *full[1:])), "DIGEST"),
        (Propose(hd, ()), "NOT_IN_SET"),
    ]
    for event, code in cases:
        assert refused(one, event) == code


def test_nothing_is_signed_before_the_own_input_is_final() -> None:
    play = Scripted()
    play.at(0).trains = False
    hd = play.start()
    full = ((node_id(0), digest("guess")), *play.digests(1, 2, 3, 4))
    assert refused(play.at(0), Propose(hd, full)) == "DIGEST"


def test_a_second_set_in_one_round_is_refused_also_after_a_crash() -> None:
    play = Scripted()
    hd = play.start()
    one = play.at(0)
    one.hear(play.propose(hd))
    for _ in range(2):
        assert refused(one, play.propose(hd, 0, 1, 2, 3)) == "SET_CONFLICT"
        assert refused(one, play.certificate(hd, 0, 1, 2, 3)) == "SET_CONFLICT"
        one.crash()


def test_the_same_members_with_another_digest_are_another_set() -> None:
    play = Scripted()
    hd = play.start()
    play.at(0).hear(play.propose(hd))
    altered = (*play.digests()[:4], (node_id(4), digest("other")))
    assert refused(play.at(0), Propose(hd, altered)) == "SET_CONFLICT"


def test_accepting_a_certificate_binds_like_signing() -> None:
    play = Scripted()
    hd = play.start()
    one = play.at(0)
    one.hear(play.certificate(hd))
    assert refused(one, play.propose(hd, 0, 1, 2, 3)) == "SET_CONFLICT"
    commits = [said for said in one.said if isinstance(said, Commit)]
    assert commits == []


# --- rule 10.4 ------------------------------------------------------------------------


def next_round(play: Scripted, hd: HeaderDigest, r: int, model: Sha256 = MODEL) -> HeaderDigest:
    for one in play.sim.nodes.values():
        one.hear(result(hd, next_r=r))
    play.ends.clear()
    return play.start(play.header(r, model))


@pytest.mark.fault("F70")
def test_the_same_model_is_summed_over_the_same_set_only() -> None:
    play = Scripted()
    hd = play.start()
    one = play.at(0)
    one.hear(play.propose(hd))
    hd = next_round(play, hd, 2)
    assert refused(one, play.propose(hd, 0, 1, 2, 3)) == "RERUN"
    assert refused(one, play.certificate(hd, 0, 1, 2, 3)) == "RERUN"
    assert [type(said) for said in one.hear(play.propose(hd))] == [Commit]
    hd = next_round(play, hd, 3, digest("another model"))
    assert [type(said) for said in one.hear(play.propose(hd, 0, 1, 2, 3))] == [Commit]


@pytest.mark.fault("F70")
def test_an_accepted_certificate_is_remembered_too_and_across_crash_and_session() -> None:
    play = Scripted()
    hd = play.start()
    one = play.at(0)
    one.hear(play.certificate(hd, 0, 1, 2, 3))
    one.crash()
    later = replace(SETTING.terms, epoch=2)  # type: ignore[arg-type]
    play.sim.open_session(later)
    play.sim.run()
    play.ends.clear()
    hd = play.start()
    assert refused(one, play.propose(hd)) == "RERUN"


def test_the_same_model_with_other_ranges_is_refused_at_the_header() -> None:
    play = Scripted()
    hd = play.start()
    one = play.at(0)
    one.hear(play.propose(hd))
    one.hear(result(hd, next_r=2))
    header = replace(play.header(2), ranges=(0.25, 1.0))
    assert refused(one, node.HeaderReceived(header, header.model_sha256)) == "RERUN"


# --- certificate and release ----------------------------------------------------------


def test_a_release_holds_the_self_seed_and_the_edges_to_the_dropped_only() -> None:
    play = Scripted()
    hd = play.start()
    one = play.at(0)
    round_ = opened(one)
    (release,) = one.hear(play.certificate(hd, 0, 1, 2, 3))
    assert isinstance(release, Release)
    assert release.b == round_.b
    (edge,) = [pair for pair in round_.pairs if pair.peer == node_id(4)]
    assert release.edges == ((node_id(4), edge.edge),)
    assert one.hear(play.certificate(hd, 0, 1, 2, 3)) == [release]
    assert release in one.crash()


def test_a_certificate_needs_q_distinct_members_and_true_signatures() -> None:
    play = Scripted()
    hd = play.start()
    one = play.at(0)
    good = play.certificate(hd, 0, 1, 2, 3)
    first, second, third, fourth = good.sigs
    outsider = (node_id(4), live(play.at(4)).key.sign(commit_statement(hd, dict(good.digests))))
    assert refused(one, replace(good, sigs=good.sigs[:3])) == "CERT_QUORUM"
    assert refused(one, replace(good, sigs=(first, first, second, third))) == "CERT_QUORUM"
    assert refused(one, replace(good, sigs=(first, second, third, outsider))) == "CERT_QUORUM"
    forged = (fourth[0], first[1])
    assert refused(one, replace(good, sigs=(first, second, third, forged))) == "CERT_SIG"
    other = play.certificate(hd)
    assert refused(one, replace(good, sigs=other.sigs)) == "CERT_SIG"


def test_a_node_outside_the_certified_set_releases_nothing() -> None:
    play = Scripted()
    hd = play.start()
    certificate = play.certificate(hd, 0, 1, 2, 3)
    assert refused(play.at(4), certificate) == "RELEASE_OUTSIDE"
    request = RecoverRequest(certificate, sealed_to(play, 4, 0))
    assert refused(play.at(4), request) == "RELEASE_OUTSIDE"


@pytest.mark.fault("F69")
def test_a_certificate_repeats_every_check_of_the_proposal() -> None:
    play = Scripted()
    hd = play.start()
    one = play.at(0)
    assert refused(one, play.certificate(hd, 0, 1, 2)) == "SET_SMALL"
    good = play.certificate(hd)
    assert refused(one, replace(good, digests=good.digests[::-1])) == "DIGEST"
    assert refused(one, replace(good, hd=HeaderDigest(bytes(32)))) == "CLOSED"


# --- recover --------------------------------------------------------------------------


def sealed_to(play: Scripted, helper: int, *senders: int) -> tuple[SealedFrom, ...]:
    return tuple(
        SealedFrom(node_id(sender), one.nonce, one.ct)
        for sender in senders
        for one in play.ends[node_id(sender)].end.sealed
        if one.helper == node_id(helper)
    )


@pytest.mark.fault("F71")
def test_a_helper_returns_the_self_share_and_the_shares_of_dropped_edges_only() -> None:
    play = Scripted()
    hd = play.start()
    request = RecoverRequest(play.certificate(hd, 0, 1, 2, 3), sealed_to(play, 0, 1, 2))
    release, answer = play.at(0).hear(request)
    assert isinstance(release, Release)
    assert isinstance(answer, RecoverShares)
    assert [item.sender for item in answer.items] == [node_id(1), node_id(2)]
    for item in answer.items:
        assert [other for other, _ in item.edges] == [node_id(4)]
    assert play.at(0).hear(request) == [answer]  # the release was sent once


@pytest.mark.fault("F71")
def test_shares_outside_the_set_and_of_the_helper_itself_are_never_returned() -> None:
    play = Scripted()
    hd = play.start()
    certificate = play.certificate(hd, 0, 1, 2, 3)
    for sealed in (
        sealed_to(play, 0, 4),
        sealed_to(play, 0, 1, 4),
        sealed_to(play, 0, 1, 1),
        (SealedFrom(node_id(0), bytes(12), bytes(181)),),
    ):
        assert refused(play.at(0), RecoverRequest(certificate, sealed)) == "RECOVER_OUTSIDE"


def test_a_bundle_that_does_not_open_is_reported_and_the_others_are_returned() -> None:
    play = Scripted()
    hd = play.start()
    certificate = play.certificate(hd, 0, 1, 2, 3)
    good, bad = sealed_to(play, 0, 1, 2)
    broken = replace(bad, ct=bytes(len(bad.ct)))
    one = play.at(0)
    assert refused(one, RecoverRequest(certificate, (broken,))) == "SHARE_OPEN"
    answer = one.hear(RecoverRequest(certificate, (good, broken)))[-1]
    assert isinstance(answer, RecoverShares)
    assert [item.sender for item in answer.items] == [node_id(1)]
    assert [report.code for report in one.reports] == ["SHARE_OPEN"]


def test_a_bundle_sealed_to_another_helper_does_not_open() -> None:
    play = Scripted()
    hd = play.start()
    request = RecoverRequest(play.certificate(hd, 0, 1, 2, 3), sealed_to(play, 3, 1))
    assert refused(play.at(0), request) == "SHARE_OPEN"


@pytest.mark.fault("F71")
def test_a_helper_is_bound_by_the_set_it_helped() -> None:
    play = Scripted()
    hd = play.start()
    play.at(0).hear(RecoverRequest(play.certificate(hd), sealed_to(play, 0, 1)))
    assert refused(play.at(0), play.propose(hd, 0, 1, 2, 3)) == "SET_CONFLICT"


# --- the end --------------------------------------------------------------------------


def result(hd: HeaderDigest, next_r: int = 2) -> RoundResult:
    return RoundResult(hd, RoundStatus.OPENED, (), b"", b"", RoundNo(next_r))


@pytest.mark.parametrize("how", ["result", "timeout", "failed", "restored", "next header"])
def test_after_closing_no_secret_of_the_round_is_left(how: str) -> None:
    play = Scripted()
    hd = play.start()
    one = play.at(0)
    one.hear(play.certificate(hd))
    secrets = secrets_of(one)
    assert all(on_disk(one, secret) for secret in secrets)  # the search itself works
    match how:
        case "result":
            one.hear(result(hd))
        case "timeout":
            one.hear(node.LocalTimeout(hd))
        case "failed":
            one.hear(node.InputFailed(hd, "INPUT_NAN", "x"))
        case "restored":
            one.hear(node.BackupRestored())
        case _:
            one.hear(result(HeaderDigest(b""), 2))
            for other in range(1, 5):
                play.at(other).hear(result(hd))
            play.start(play.header(2))
    assert not any(on_disk(one, secret) for secret in secrets)
    assert node.decode_state(one.disk) == without_nonce(one)
    assert hd not in one.spool
    for event in (play.propose(hd), node.UploadAcked(hd), node.LocalTimeout(hd)):
        assert refused(one, event) == "CLOSED"


def without_nonce(one: SimNode) -> node.NodeState:
    if one.state.session is None:  # a backup was put back
        return one.state
    session = replace(live(one), nonce=b"", nonce_r=RoundNo(0))
    return replace(one.state, session=session)


def test_a_result_of_a_round_missed_tells_the_next_number_and_closes_nothing() -> None:
    play = Scripted()
    hd = play.start()
    one = play.at(0)
    one.hear(result(HeaderDigest(bytes(32)), 5))
    assert opened(one).hd == hd
    assert live(one).next_r == 5
    assert refused(Simulation(SETTING).at(0), result(hd)) == "CLOSED"


def test_every_stage_survives_encoding_and_a_damaged_state_is_refused() -> None:
    play = Scripted()
    one = play.at(0)
    hd = play.start()
    for event in (node.UploadAcked(hd), play.propose(hd), play.certificate(hd), result(hd)):
        one.hear(event)
        stored = node.encode_state(one.state)
        assert node.decode_state(stored) == without_nonce(one)
        for damaged in (
            stored[:-1],
            stored.replace(b'"schema":"fedcare.node-state/1"', b'"schema":"other/1"'),
            stored.replace(b'"last_epoch":1', b'"last_epoch":"1"'),
            stored.replace(b'"last_epoch":1,', b""),
        ):
            with pytest.raises(StateError):
                node.decode_state(damaged)


def test_no_secret_shows_in_any_repr() -> None:
    play = Scripted()
    hd = play.start()
    one = play.at(0)
    (release,) = one.hear(play.certificate(hd, 0, 1, 2, 3))
    shown = repr(one.state) + repr(release) + repr(node.mask_plan(one.state, one.id))
    secrets = [*secrets_of(one), live(one).key.seed.reveal()]
    secrets += [peer.chain.reveal() for peer in live(one).peers]
    for secret in secrets:
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown


def test_no_round_means_no_masks() -> None:
    play = Scripted()
    with pytest.raises(Refusal, match="CLOSED"):
        node.mask_plan(play.at(0).state, node_id(0))
