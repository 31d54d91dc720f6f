"""A coordinator that lies, round by round and exhaustively, against real node machines.

Small federations and every choice that the lie leaves open. Random attacks, with colluding
hospitals and crashes, are in tests/properties/test_malicious_coordinator.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import pytest

from common.ids import Epoch, HeaderDigest, NodeId, RoundNo
from common.secagg import node
from common.secagg.dp import NO_DP, DpMode, DpPlan
from common.secagg.messages import (
    Commit,
    KeyAdvert,
    RecoverRequest,
    RecoverShares,
    Release,
    Roster,
)
from tests.faults.record import record
from tests.simulation.secagg_harness import Setting, Simulation, digest, node_id
from tests.unit.common.secagg.test_node import (
    Scripted,
    next_round,
    rederived,
    refused,
    result,
    sealed_to,
)

FIRST, SECOND = digest("the first model"), digest("the second model")
PLACES = range(5)
PLAN = DpPlan(DpMode.HOSPITAL, z=2.0, clip=1.0, delta_int=4096, p=0.0, m_max=0)


def smaller_than(size: int) -> Iterator[tuple[int, ...]]:
    for some in range(1, size):
        yield from combinations(PLACES, some)


def header_of(play: Scripted, r: int, *places: int, model: bytes = FIRST) -> node.HeaderReceived:
    """A header by the rules over some of the members."""
    header = play.header(r, digest("unused"))
    members = tuple(header.members[place] for place in places)
    header = rederived(replace(header, model_sha256=model), 1, members)  # type: ignore[arg-type]
    return node.HeaderReceived(header, header.model_sha256)


def taken(play: Scripted, place: int, event: node.NodeEvent) -> str:
    """Return the name of the refusal, empty if the node took the event."""
    one = play.at(place)
    before = len(one.refusals)
    one.hear(event)
    return "".join(refusal.name for refusal in one.refusals[before:])


# --- F64: back to what was ------------------------------------------------------------------------


@pytest.mark.fault("F64")
def test_an_older_round_or_epoch_is_refused_by_every_node_also_after_a_crash() -> None:
    play, tried = Scripted(), 0
    first = play.header(1, FIRST)
    hd = play.start(first)
    second = play.header(2, SECOND)
    for one in play.sim.nodes.values():
        one.hear(result(hd))
        one.hear(node.HeaderReceived(second, SECOND))
    for one in play.sim.nodes.values():
        for crashed in (False, True):
            if crashed:
                one.crash()
            again = replace(first, model_sha256=SECOND)
            older = replace(second, r=RoundNo(1), model_sha256=FIRST)
            for header in (first, again, older):
                event = node.HeaderReceived(header, header.model_sha256)
                assert refused(one, event) in {"ROUND_OLD", "CLOSED", "ROUND_OPEN"}
                tried += 1
            for epoch in (0, 1):
                terms = replace(play.setting.terms, epoch=Epoch(epoch))
                begin = node.BeginEpoch(
                    terms, play.setting.expect, one.now_unix, one.now_unix + 3600
                )
                assert refused(one, begin) == "EPOCH_OLD"
                tried += 1
    record("F64", trials=tried, failures=0)


@pytest.mark.fault("F64")
def test_an_older_model_under_a_new_header_can_show_no_sum_that_was_not_shown() -> None:
    play, tried = Scripted(), 0
    hd = play.start(play.header(1, FIRST))
    for one in play.sim.nodes.values():
        one.hear(play.propose(hd))
    hd = next_round(play, hd, 2, SECOND)
    hd = next_round(play, hd, 3, FIRST)
    for place in PLACES:
        for members in combinations(PLACES, 4):
            if place in members:
                assert refused(play.at(place), play.propose(hd, *members)) == "RERUN"
                assert refused(play.at(place), play.certificate(hd, *members)) == "RERUN"
                tried += 2
        assert [type(said) for said in play.at(place).hear(play.propose(hd))] == [Commit]
    record("F64", trials=tried, failures=0)


# --- F67: the plan of one, the model of another ---------------------------------------------------


@pytest.mark.fault("F67")
def test_one_digest_binds_everything_of_a_round_and_no_mixture_of_two_is_taken() -> None:
    """Two studies' headers, mixed item by item, with either one's model, at every node."""
    play, tried = Scripted(), 0
    one = play.header(1, FIRST)
    foreign = {
        "model_sha256": SECOND,
        "config_hash": digest("another study"),
        "layout_sha256": digest("another layout"),
        "session_id": digest("another session"),
        "ranges": (0.25, 1.0),
        "d": one.d + 1,
        "deadline_ms": 50_000,
    }
    known = {one.digest()}
    for place in PLACES:  # before any round: the other one's model, under either header
        for header in (one, replace(one, model_sha256=SECOND)):
            wrong = FIRST if header.model_sha256 == SECOND else SECOND
            assert refused(play.at(place), node.HeaderReceived(header, wrong)) == "MODEL_HASH"
            tried += 1
    fixed = ("config_hash", "layout_sha256", "session_id", "d")
    for size in range(1, len(foreign) + 1):
        for items in combinations(foreign, size):
            mixed = replace(one, **{name: foreign[name] for name in items})  # type: ignore[arg-type]
            assert mixed.digest() not in known
            known.add(mixed.digest())
            for place in PLACES if set(items) & set(fixed) else ():
                event = node.HeaderReceived(mixed, mixed.model_sha256)
                assert refused(play.at(place), event) in {"CONFIG_HASH", "LAYOUT", "EPOCH_OLD"}
                tried += 1
    play.start(one)
    for items in ("model_sha256",), ("ranges",), ("deadline_ms",), ("model_sha256", "ranges"):
        mixed = replace(one, **{name: foreign[name] for name in items})  # type: ignore[arg-type]
        for place in PLACES:  # once one of them is open, no other of its round
            event = node.HeaderReceived(mixed, mixed.model_sha256)
            assert refused(play.at(place), event) == "ROUND_OPEN"
            tried += 1
    record("F67", trials=tried, failures=0)


# --- F69: a crowd that shrinks --------------------------------------------------------------------


@pytest.mark.fault("F69")
def test_no_set_below_the_floor_is_signed_certified_or_helped() -> None:
    """All 25 sets of fewer than four of five, with every signature a colluder could add."""
    play, tried = Scripted(), 0
    hd = play.start()
    for members in smaller_than(4):
        for place in PLACES:
            proposed = play.propose(hd, *members)
            signed = play.certificate(hd, *members, signers=5)
            asked = RecoverRequest(signed, sealed_to(play, place, *(p for p in members)))
            for event in (proposed, signed, asked):
                name = refused(play.at(place), event)
                assert name in {"SET_SMALL", "RELEASE_OUTSIDE", "NOT_IN_SET"}, name
                tried += 1
    record("F69", trials=tried, failures=0)


@pytest.mark.fault("F69")
@pytest.mark.parametrize("floor", [{"min_cohort": 5}, {"s_min": 5}, {"colluders": 2}])
def test_a_hospitals_own_floor_holds_against_a_header_that_is_right_for_all_others(
    floor: dict[str, int],
) -> None:
    play = Scripted()
    one = play.at(2)
    one.rules = replace(one.rules, **floor)  # type: ignore[arg-type]
    members = (0, 1, 2, 3) if "min_cohort" in floor else PLACES
    event = header_of(play, 1, *members)
    assert refused(one, event) in {"COHORT_SMALL", "SMIN_RULE", "QUORUM_RULE"}
    assert taken(play, 1, event) == ""


# --- F70: two crowds that differ by one -----------------------------------------------------------


@pytest.mark.fault("F70")
def test_no_second_crowd_on_one_model_whoever_it_leaves_out() -> None:
    """After one set was signed: each cohort of one fewer, at all of its nodes."""
    tried = 0
    for left_out in PLACES:
        play = Scripted()
        hd = play.start(play.header(1, FIRST))
        for one in play.sim.nodes.values():
            one.hear(play.propose(hd))
            one.hear(result(hd))
        play.ends.clear()
        rest = [place for place in PLACES if place != left_out]
        event = header_of(play, 2, *rest)
        for place in rest:
            said = play.at(place).hear(event)
            ends = [one for one in said if hasattr(one, "end")]
            play.ends |= {node_id(place): end for end in ends}  # type: ignore[misc]
        hd = event.header.digest()
        for place in rest:
            assert refused(play.at(place), play.propose(hd, *rest)) == "RERUN"
            assert refused(play.at(place), play.certificate(hd, *rest)) == "RERUN"
            tried += 2
    record("F70", trials=tried, failures=0)


# --- F71: both kinds of shares --------------------------------------------------------------------


@pytest.mark.fault("F71")
@pytest.mark.parametrize("noise", [False, True])
def test_no_helper_answers_for_one_peer_with_both_kinds_of_shares(*, noise: bool) -> None:
    """Every ordered pair of sets, asked for one after the other from every helper, with crashes.

    With noise rule 10.4 is off: the rule of one set a round stands alone.
    """
    sets = [tuple(PLACES), *combinations(PLACES, 4)]
    tried = double = 0
    for first in sets:
        for second in sets:
            play = Scripted(Setting(n=5, colluders=1, dp=PLAN if noise else None))
            header = play.header()
            terms = PLAN.terms(header.honest) if noise else NO_DP
            hd = play.start(replace(header, dp=terms))
            for helper in PLACES:
                shares: dict[NodeId, set[str]] = {}
                for members in (first, second, first):
                    _ask(play, hd, helper, members, shares)
                    play.at(helper).crash()
                double += sum(kinds == {"self", "edge"} for kinds in shares.values())
                tried += 1
    assert double == 0
    record("F71", trials=tried, failures=double)


def _ask(
    play: Scripted,
    hd: HeaderDigest,
    helper: int,
    members: tuple[int, ...],
    shares: dict[NodeId, set[str]],
) -> None:
    """Ask a helper for all that a set allows; note of whom it gave which kind."""
    others = [place for place in members if place != helper]
    request = RecoverRequest(play.certificate(hd, *members), sealed_to(play, helper, *others))
    own = play.at(helper).id
    for message in play.at(helper).hear(request):
        if isinstance(message, Release):
            shares.setdefault(own, set()).add("self")
            for peer, _ in message.edges:
                shares.setdefault(peer, set()).add("edge")
        if isinstance(message, RecoverShares):
            for item in message.items:
                shares.setdefault(item.sender, set()).add("self")
                for peer, _ in item.edges:
                    shares.setdefault(peer, set()).add("edge")


# --- F72: hospitals that are none -----------------------------------------------------------------


def adverts_of(sim: Simulation) -> tuple[KeyAdvert, ...]:
    """Let every node begin the epoch; return the keys that each says."""
    said = [message for one in sim.nodes.values() for message in one.begin_epoch()]
    return tuple(message for message in said if isinstance(message, KeyAdvert))


@pytest.mark.fault("F72")
@pytest.mark.parametrize("invented", [1, 2, 3])
def test_hospitals_outside_the_pinned_list_make_no_crowd(invented: int) -> None:
    """They have certificates, keys and nonces like any other; two nodes know only themselves."""
    setting = Setting(n=2 + invented, colluders=0)
    sim = Simulation(setting)
    adverts = adverts_of(sim)
    known = {node_id(0), node_id(1)}
    for place in (0, 1):
        one = sim.at(place)
        pinned = type(one.trust)(
            {key: value for key, value in one.trust.keys.items() if key in known}
        )
        one.trust = pinned
        assert refused(one, Roster(adverts, RoundNo(1))) == "NOT_MEMBER"
        assert one.state.session is None
    record("F72", trials=2, failures=0, hospitals_invented=invented)


# --- F73: privacy terms that get weaker -----------------------------------------------------------

WEAKER = {
    "no noise at all": None,
    "half the noise": replace(PLAN, z=1.0),
    "a hair less noise": replace(PLAN, z=2.0 - 2**-50),
    "ten times the clip": replace(PLAN, clip=10.0),
    "another sensitivity": replace(PLAN, delta_int=8192),
    "another mode": replace(PLAN, mode=DpMode.PATIENT_DISTRIBUTED, p=0.5, m_max=10),
}


@pytest.mark.fault("F73")
def test_a_header_with_weaker_privacy_than_the_study_is_refused_by_every_node() -> None:
    """Terms that are right by themselves, in the first round and in a later one."""
    play, tried = Scripted(Setting(n=5, colluders=1, dp=PLAN)), 0
    for r in (1, 2):
        header = play.header(r, FIRST)
        agreed = replace(header, dp=PLAN.terms(header.honest))
        for plan in WEAKER.values():
            terms = NO_DP if plan is None else plan.terms(header.honest)
            event = node.HeaderReceived(replace(header, dp=terms), FIRST)
            for place in PLACES:
                assert refused(play.at(place), event) == "DP_WEAK"
                tried += 1
        wanting = play.at(3)
        wanting.rules = replace(wanting.rules, min_z=3.0)
        assert refused(wanting, node.HeaderReceived(agreed, FIRST)) == "DP_WEAK", "its own limit"
        wanting.rules = replace(wanting.rules, min_z=0.0)
        hd = play.start(agreed)
        assert len(play.ends) == 5, "and the study's own terms are taken"
        for one in play.sim.nodes.values():
            one.hear(result(hd, next_r=r + 1))
    record("F73", trials=tried, failures=0)
