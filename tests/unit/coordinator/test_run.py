"""The run's machine: who takes part, which round is next, when it is over; and crashes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.errors import StateError
from common.events import Event
from common.ids import HeaderDigest, NodeId, Sha256, site_name
from common.messages import Objection, ReleaseReceipt, RunEnded, StudyDecision, StudyOffer, Verdict
from common.secagg import node as nd
from common.secagg.coordinator_session import SetupPhase
from common.secagg.coordinator_state import DoubleCommit, RoundPhase
from common.secagg.messages import (
    Commit,
    Confirm,
    KeyAdvert,
    Ready,
    Refused,
    Release,
    RoundResult,
    RoundStart,
)
from common.study import config_hash, parse_study
from common.views import RunPhase
from coordinator import run_state as rs
from coordinator.journal import Journal
from coordinator.run_facts import apply
from coordinator.run_rounds import MAX_VOIDED_IN_A_ROW, worth_another_header
from coordinator.run_step import RunContext, Step, Timing, fewest, taken_epoch
from coordinator.waits import wait_of
from tests.private_study import private_study
from tests.run_world import RUN, VECTOR, RunWorld, stored
from tests.simulation.secagg_harness import Uploaded, digest
from tests.study_texts import HEART, altered

NO = (Objection("PURPOSE", "policy.yaml:9: allow.purposes has no research"),)


def finished(world: RunWorld) -> None:
    assert (world.phase, world.state.reason) == (RunPhase.FINISHED, "")
    assert [record.position for record in world.state.history if record.opened] == [1, 2]


def undisturbed() -> RunWorld:
    world = RunWorld()
    world.begin()
    finished(world)
    return world


# --- the whole of it -----------------------------------------------------------------------------


def test_four_hospitals_go_from_offer_to_release() -> None:
    world = undisturbed()
    assert [survivors for _, survivors, _ in world.sums] == [world.ids, world.ids]
    assert world.state.released == digest("manifest")
    assert world.state.receipts == set(world.ids)
    for node in world.ids:
        ended = [(step.state, step.reason) for step in world.told(node, RunEnded)]
        assert ended == [("finished", "")]


def test_a_study_with_data_has_its_statistics_first_and_its_metrics_last() -> None:
    text = altered(HEART, "rounds: 15", "rounds: 2").replace("hungarian", "h")
    text = altered(text, "{colluders: 1}", "{colluders: 1, suite: classical}")
    world = RunWorld(text)
    world.begin()
    kinds = [record.kind for record in world.state.history]
    assert kinds == ["statistics", "train", "train", "evaluate"]
    assert world.done(rs.MakeFirstModel) == []
    assert world.phase is RunPhase.FINISHED
    assert world.state.pooled == (("auroc", 0.5),)
    assert world.state.model is not None
    assert world.state.model.model_sha256 == digest("model train 3")
    starts = world.told(world.at(0), RoundStart)
    streams = [start.model_stream_id for start in starts]
    assert streams == [
        b"",
        *(digest(f"object {n}") for n in ("statistics 1", "train 2", "train 3")),
    ]


def test_the_hybrid_suite_sets_up_as_well() -> None:
    world = RunWorld(VECTOR.replace("classical", "hybrid"))
    world.begin()
    finished(world)


@pytest.mark.parametrize(
    ("n", "colluders", "min_sites", "expected"),
    [(4, 1, 3, 3), (3, 1, 3, 3), (4, 1, 4, 4), (5, 2, 4, 4), (2, 0, 2, 2), (3, 1, 4, 4)],
)
def test_the_fewest_hospitals_follow_from_the_rules(
    n: int, colluders: int, min_sites: int, expected: int
) -> None:
    text = VECTOR.replace("colluders: 1", f"colluders: {colluders}")
    study = parse_study(text.replace("min_sites: 3", f"min_sites: {min_sites}"))
    roster = tuple(NodeId(f"spiffe://sim/hospital/h{place}") for place in range(n))
    assert fewest(rs.RunState(RUN, study, config_hash(study), "sim", roster)) == expected


# --- enrolment -----------------------------------------------------------------------------------


def test_too_many_refusals_end_the_run_and_say_who_and_why() -> None:
    world = RunWorld()
    world.says[world.at(1)] = world.says[world.at(3)] = NO
    world.begin()
    assert world.phase is RunPhase.FAILED
    reason = world.state.reason
    assert reason.startswith("ENROLMENT: 3 hospitals are needed")
    assert "h0001: PURPOSE: policy.yaml:9: allow.purposes has no research" in reason
    assert "h0003: " in reason
    assert "h0000" not in reason
    assert world.told(world.at(0), RunEnded)[0].state == "failed"


def test_one_refusal_of_four_is_gone_without() -> None:
    world = RunWorld()
    world.says[world.at(2)] = NO
    world.begin()
    finished(world)
    assert world.at(2) not in world.sums[0][1]
    assert world.told(world.at(2), RoundStart) == []
    assert [type(step) for step in world.told(world.at(2), object)] == [StudyOffer, RunEnded]


def test_a_hospital_that_says_nothing_is_waited_for_and_then_gone_without() -> None:
    world = RunWorld()
    world.says[world.at(2)] = None
    world.begin()
    assert world.phase is RunPhase.ENROLLING
    assert world.timers["enrolment"] == 20.0
    world.fire("enrolment")
    finished(world)


def test_the_last_decision_ends_the_waiting() -> None:
    world = RunWorld()
    world.says[world.at(2)] = None
    world.begin()
    world.decide(2)
    finished(world)
    assert world.sums[0][1] == world.ids


def test_below_the_fewest_nobody_is_rushed() -> None:
    world = RunWorld()
    world.begin(connected=(0, 1))
    assert world.phase is RunPhase.ENROLLING
    assert set(world.timers) == {"waiting"}
    world.connect(2)
    assert set(world.timers) == {"waiting", "enrolment"}
    world.lose(2)
    world.fire("enrolment")
    assert world.phase is RunPhase.ENROLLING
    world.connect(2)
    world.fire("enrolment")
    finished(world)


def test_a_decision_on_another_study_is_refused() -> None:
    world = RunWorld()
    world.says[world.at(0)] = None
    world.begin()
    other = config_hash(parse_study(altered(VECTOR, "size: 5", "size: 6")))
    wrong = StudyDecision(RUN, other, Verdict.ACCEPTED)
    world.hear(world.at(0), wrong)
    assert [refusal.name for refusal in world.refused] == ["CONFIG_HASH"]
    assert world.at(0) not in world.state.accepted


def test_the_same_decision_again_stores_nothing() -> None:
    world = RunWorld()
    world.says[world.at(3)] = None
    world.begin()
    before = len(world.facts)
    world.decide(0)
    assert len(world.facts) == before


def test_a_hospital_may_change_its_mind_while_it_can() -> None:
    world = RunWorld()
    world.says[world.at(2)] = None
    world.says[world.at(3)] = NO
    world.begin()
    world.decide(3)
    assert world.at(3) in world.state.accepted
    world.decide(2)
    finished(world)


# --- epochs --------------------------------------------------------------------------------------


def test_a_hospital_that_accepts_late_joins_at_the_next_round_through_a_new_epoch() -> None:
    world = RunWorld()
    world.says[world.at(2)] = None
    world.hold = {rs.OpenSum}
    world.begin()
    world.fire("enrolment")
    assert world.state.session is not None
    first = world.state.session.terms.epoch
    world.decide(2)  # in the middle of round 1
    assert world.state.session.terms.epoch == first
    world.release_held()
    finished(world)
    assert [len(survivors) for _, survivors, _ in world.sums] == [3, 4]
    assert world.state.session.terms.epoch > first


def test_a_hospital_that_lost_its_keys_is_given_new_ones() -> None:
    world = RunWorld()
    world.hold = {rs.OpenSum}
    world.begin()
    world.lose(1)
    world.nodes[world.at(1)].state = nd.NodeState()  # its disk was restored from before
    world.connect(1)
    world.release_held()
    finished(world)
    assert [len(survivors) for _, survivors, _ in world.sums] == [4, 4]


def test_a_hospital_that_never_sends_keys_holds_nobody_up() -> None:
    """The epoch's deadline leaves it out, and it is not asked for again and again."""
    world = RunWorld()
    world.mute = {(world.at(3), KeyAdvert)}
    world.begin()
    assert world.phase is RunPhase.SETTING_UP
    world.fire("session:adverts")
    finished(world)
    assert [len(survivors) for _, survivors, _ in world.sums] == [3, 3]
    assert len(world.done(rs.ReserveEpoch)) == 1


def test_a_hospital_that_was_left_out_is_asked_again_when_it_comes_back() -> None:
    world = RunWorld()
    world.mute = {(world.at(3), KeyAdvert)}
    world.hold = {rs.OpenSum}
    world.begin()
    world.fire("session:adverts")
    world.mute = set()
    world.lose(3)
    world.connect(3)
    world.release_held()
    finished(world)
    assert [len(survivors) for _, survivors, _ in world.sums] == [3, 4]


def test_a_hospital_that_never_confirms_holds_nobody_up() -> None:
    world = RunWorld()
    world.mute = {(world.at(3), Confirm)}
    world.begin()
    world.fire("session:confirms")
    finished(world)
    assert [len(survivors) for _, survivors, _ in world.sums] == [3, 3]


def test_a_late_confirmation_counts() -> None:
    world = RunWorld()
    world.mute = {(world.at(3), Confirm)}
    world.hold = {rs.OpenSum}
    world.begin()
    world.fire("session:confirms")
    world.mute = set()
    world.lose(3)
    world.connect(3)  # it holds all keys, and confirms now
    world.release_held()
    if world.phase is not RunPhase.FINISHED:
        world.fire("gather")
    finished(world)
    assert [len(survivors) for _, survivors, _ in world.sums] == [3, 4]
    assert len(world.done(rs.ReserveEpoch)) == 1


def test_an_epoch_without_enough_hospitals_pauses_and_goes_on_when_they_return() -> None:
    world = RunWorld()
    world.mute = {(world.at(2), KeyAdvert), (world.at(3), KeyAdvert)}
    world.begin()
    world.fire("session:adverts")
    assert world.phase is RunPhase.SETTING_UP
    assert "retry" in world.timers
    world.mute = set()
    world.fire("retry")
    finished(world)
    assert len(world.sums[0][1]) == 4


def test_a_hospital_may_be_ready_before_the_others_have_confirmed() -> None:
    world = RunWorld()
    world.mute = {(world.at(3), Confirm)}
    world.begin()
    assert {node for node, _ in world.state.early} == set(world.ids)
    world.mute = set()
    world.lose(3)
    world.connect(3)
    finished(world)


# --- rounds --------------------------------------------------------------------------------------


def test_a_hospital_that_is_not_ready_is_waited_for_a_little() -> None:
    world = RunWorld()
    world.mute = {(world.at(3), Ready)}
    world.begin()
    assert world.timers["gather"] == 2.0
    assert world.sums == []
    world.fire("gather")
    assert [len(survivors) for _, survivors, _ in world.sums] == [3]
    assert world.told(world.at(3), RoundStart) == []


def test_the_gather_wait_that_ends_while_an_epoch_is_asked_for_opens_nothing() -> None:
    world = RunWorld(VECTOR.replace("rounds: 2", "rounds: 1"), n=5)
    world.says[world.at(4)] = None
    world.mute = {(world.at(3), Ready)}
    world.begin()
    world.fire("enrolment")
    assert "gather" in world.timers
    world.hold = {rs.ReserveEpoch}
    world.decide(4)
    assert len(world.held) == 1
    world.fire("gather")
    assert world.done(rs.OpenSum) == []
    assert world.state.history == ()
    world.mute = set()
    world.release_held()
    assert [len(survivors) for _, survivors, _ in world.sums] == [5]


def test_readiness_that_comes_while_an_epoch_is_asked_for_opens_nothing() -> None:
    world = RunWorld(VECTOR.replace("rounds: 2", "rounds: 1"), n=5)
    world.says[world.at(4)] = None
    world.mute = {(world.at(2), Ready), (world.at(3), Ready)}
    world.begin()
    world.fire("enrolment")
    world.hold = {rs.ReserveEpoch}
    world.decide(4)
    world.mute = set()
    for place in (2, 3):
        world.lose(place)
        world.connect(place)
    assert world.done(rs.OpenSum) == []
    world.release_held()
    assert [len(survivors) for _, survivors, _ in world.sums] == [5]


def test_a_hospital_that_missed_how_a_round_ended_is_told_when_it_is_back() -> None:
    world = RunWorld()
    world.hold = {rs.OpenSum}
    world.begin()
    world.lose(3)
    world.release_held()
    assert len(world.sums) == 1
    assert world.told(world.at(3), RoundResult) == []
    world.connect(3)
    assert world.told(world.at(3), RoundResult)[0].sum_sha256 == world.state.history[0].sum_sha256
    finished(world)
    assert world.sums[1][1] == world.ids


@pytest.mark.parametrize("kind", [Uploaded, Commit, Release])
def test_one_hospital_may_vanish_at_any_step_and_the_round_still_closes(kind: type) -> None:
    world = RunWorld()
    world.mute = {(world.at(1), kind)}
    world.begin()
    name = {Uploaded: "round:round", Release: "round:release"}.get(kind)
    if name is not None:
        world.fire(name)
    assert world.state.history[0].opened
    survivors = world.state.history[0].survivors
    assert (world.at(1) in survivors) == (kind is not Uploaded)
    assert world.state.history[0].dropped == ((world.at(1),) if kind is Uploaded else ())


@pytest.mark.parametrize(("kind", "timer"), [(Uploaded, "round:round"), (Commit, "round:commit")])
def test_two_that_vanish_void_the_round_and_it_is_tried_again_with_the_same_model(
    kind: type, timer: str
) -> None:
    world = RunWorld()
    world.mute = {(world.at(1), kind), (world.at(2), kind)}
    world.begin()
    model = world.state.model
    world.mute = set()
    world.fire(timer)
    voided, *others = world.state.history
    assert (voided.opened, voided.position, voided.reason) == (False, 1, "NOT_ENOUGH")
    assert (voided.survivors, voided.sum_sha256) == ((), b"")
    assert [record.position for record in others] == [1, 2]
    first = world.told(world.at(0), RoundResult)[0]
    assert (first.status.value, first.reason) == ("aborted", "NOT_ENOUGH")
    one, two = [start.header for start in world.told(world.at(0), RoundStart)][:2]
    assert model is not None
    assert (one.model_sha256, two.model_sha256) == (model.model_sha256, model.model_sha256)
    assert one.members != two.members  # fresh nonces
    finished(world)


def a_signed_set() -> RunWorld:
    """Return a run whose first round lost `at(3)` at its upload, and two of three signatures."""
    world = RunWorld()
    world.mute = {(world.at(3), Uploaded), (world.at(1), Commit), (world.at(2), Commit)}
    world.begin()
    world.lose(2)
    world.mute = set()
    world.fire("round:round")
    assert world.state.round is not None
    assert world.state.round.phase is RoundPhase.PROPOSED
    world.fire("round:commit")
    return world


def test_a_set_that_was_signed_is_the_next_cohort_and_is_waited_for() -> None:
    """Any other one would be refused for ever by those who signed (protocol, section 10.4)."""
    world = a_signed_set()
    signed = (world.at(0), world.at(1), world.at(2))
    assert world.state.agreed == signed
    assert world.state.round is not None
    assert world.state.round.header is None  # three others are ready, and it does not open
    assert "gather" not in world.timers
    wait = wait_of(world.state)
    assert wait is not None
    assert (wait.nodes, wait.what, wait.until) == (frozenset({world.at(2)}), "connection", None)
    assert "exactly the hospitals whose set was signed" in wait.then
    world.connect(2)
    headers = [start.header for start in world.told(world.at(0), RoundStart)]
    assert (headers[1].ids, headers[1].s_min) == (signed, 3)
    assert not world.state.agreed
    finished(world)
    records = [record for record in world.state.history if record.opened]
    assert records[0].survivors == signed
    assert set(records[1].survivors) == set(world.ids)  # and the next model has everybody again
    assert not [refusal for refusal in world.refused if refusal.name == "RERUN"]


def test_a_restart_remembers_the_set_that_was_signed() -> None:
    world = a_signed_set()
    world.restart()
    world.tell()
    assert world.state.agreed == (world.at(0), world.at(1), world.at(2))
    world.connect(2)
    finished(world)


def test_the_set_that_was_signed_is_remembered_when_its_round_is_forgotten() -> None:
    """Its facts are blanked when the next try ends; what ended the round states the set."""
    world = a_signed_set()
    signed = world.state.agreed
    world.mute = {(world.at(2), Uploaded)}
    world.connect(2)
    world.fire("round:round")
    assert [record.opened for record in world.state.history] == [False, False]
    world.restart()
    assert world.state.agreed == signed
    world.mute = set()
    world.tell()
    finished(world)
    assert next(record for record in world.state.history if record.opened).survivors == signed
    assert not [refusal for refusal in world.refused if refusal.name == "RERUN"]


def test_a_timer_of_an_ended_round_does_not_end_the_next() -> None:
    """It may have run out just before the next round armed its own of the same name."""
    world = RunWorld()
    world.mute = {(node, Commit) for node in world.ids}
    world.begin()
    first = world.state.round
    assert first is not None
    stale = world.full_names["round:commit"]
    world.fire("round:commit")
    second = world.state.round
    assert second is not None
    assert second.r == first.r + 1
    assert second.phase.value == "proposed"
    world.tell(rs.TimerFired(stale))
    assert world.state.round == second


def test_secrets_of_two_that_vanish_after_the_certificate_come_from_their_helpers() -> None:
    world = RunWorld()
    world.mute = {(world.at(1), Release), (world.at(2), Release)}
    world.begin()
    world.fire("round:release")
    assert world.state.history[0].survivors == world.ids
    assert world.sums[0][1] == world.ids


def test_a_sum_out_of_range_voids_the_round() -> None:
    world = RunWorld()
    world.hold = {rs.OpenSum}
    world.begin()
    (command,) = world.held
    assert isinstance(command, rs.OpenSum)
    world.held, world.hold = [], set()
    world.tell(rs.SumRefused(command.header.digest()))
    assert [record.reason for record in world.state.history] == ["SUM_RANGE", "", ""]
    finished(world)


def test_ten_voided_rounds_in_a_row_end_the_run_and_keep_the_model() -> None:
    world = RunWorld()
    world.hold = {rs.OpenSum}
    world.begin()
    world.held.clear()
    for turn in range(MAX_VOIDED_IN_A_ROW):
        assert world.phase is RunPhase.RUNNING, turn
        current = world.state.round
        assert current is not None
        world.tell(rs.SumRefused(current.hd))
    assert world.phase is RunPhase.FAILED
    assert world.state.reason == "ROUND_VOID: 10 rounds in a row failed"
    assert world.state.model == rs.ModelRef(digest("object 0"), digest("model 0"))
    assert len(world.state.history) == MAX_VOIDED_IN_A_ROW


def test_a_run_that_a_hospital_keeps_from_its_rounds_ends_with_what_the_hospital_said() -> None:
    world = RunWorld()
    world.hold = {rs.OpenSum}
    world.begin()
    for _ in range(MAX_VOIDED_IN_A_ROW):
        current = world.state.round
        assert current is not None
        world.hear(world.at(2), Refused(current.hd, "BUDGET", "together 9; the limit is 8"))
        if world.phase is RunPhase.RUNNING:
            world.tell(rs.SumRefused(current.hd))
    assert world.phase is RunPhase.FAILED
    assert world.state.reason == (
        "ROUND_VOID: 10 rounds in a row failed; h0002: BUDGET: together 9; the limit is 8"
    )


def test_nine_voided_rounds_and_one_that_opens_are_no_reason_to_end() -> None:
    world = RunWorld()
    world.hold = {rs.OpenSum}
    world.begin()
    for _ in range(MAX_VOIDED_IN_A_ROW - 1):
        current = world.state.round
        assert current is not None
        world.tell(rs.SumRefused(current.hd))
    world.held = world.held[-1:]
    world.release_held()
    finished(world)


def test_a_first_model_that_comes_late_takes_no_others_place() -> None:
    world = RunWorld()
    world.hold = {rs.OpenSum}
    world.begin()
    first = world.state.model
    assert first is not None
    (opening,) = world.held
    world.held = []
    world._work(opening)  # round 1 is over, round 2 waits to be opened
    world.tell(rs.FirstModelMade(first))
    assert world.state.model == rs.ModelRef(digest("object train 1"), digest("model train 1"))
    world.release_held()
    finished(world)


def test_an_answer_of_work_for_another_round_changes_nothing() -> None:
    world = RunWorld()
    world.hold = {rs.OpenSum}
    world.begin()
    before, facts = world.state, len(world.facts)
    old = type(world.held[0].header.digest())(b"\x00" * 32)  # type: ignore[union-attr]
    world.tell(rs.SumUsed(old, digest("x"), None, ()), rs.SumRefused(old))
    assert (world.state, len(world.facts)) == (before, facts)
    world.release_held()
    finished(world)


def test_a_refusal_of_a_member_is_shown_and_not_waited_for() -> None:
    world = RunWorld()
    world.mute = {(world.at(2), Uploaded)}
    world.begin()
    current = world.state.round
    assert current is not None
    world.hear(world.at(2), Refused(current.hd, "INPUT_NAN", "a value is not a number"))
    finished_with = world.state.history[0]
    assert finished_with.dropped == (world.at(2),)
    assert dict(world.state.trouble)[world.at(2)] == "INPUT_NAN: a value is not a number"


def _nonce_lost(*, after_s: float = 0.0, hd: HeaderDigest | None = None) -> RunWorld:
    """Return a run in whose first round, with two uploads, a hospital lost its nonce."""
    world = RunWorld()
    world.mute = {(world.at(2), Uploaded), (world.at(3), Uploaded)}
    world.begin()
    current = world.state.round
    assert current is not None
    assert len(current.uploads) == len(world.nodes) - 2
    world.now += after_s
    world.mute = set()
    world.hear(world.at(2), Refused(current.hd if hd is None else hd, "HEADER_NONCE", "its last"))
    return world


def test_a_round_begins_anew_for_a_hospital_that_lost_its_nonce() -> None:
    world = _nonce_lost()
    first, second, *_ = world.state.history
    assert (first.opened, first.reason) == (False, "HEADER_NONCE")
    assert second.opened
    assert set(second.survivors) == set(world.nodes)


def test_late_in_a_round_nobody_trains_again_for_a_lost_nonce() -> None:
    for after_s in (51.0, 99.0):
        world = _nonce_lost(after_s=after_s)
        assert not any(record.reason for record in world.state.history)
        current = world.state.round
        assert current is not None
        assert current.left == {world.at(2)}


def test_with_noise_no_round_begins_anew() -> None:
    """Every hospital would be charged for its noise twice."""
    world = RunWorld()
    world.mute = {(world.at(2), Uploaded)}
    world.begin()
    current = world.state.round
    assert current is not None
    refused = Refused(current.hd, "HEADER_NONCE", "its last")
    ctx = RunContext(world.now, 0, world.trust, Timing())
    assert worth_another_header(Step(world.state, ctx), world.at(2), refused)
    noisy = world.state.study.model_copy(update={"privacy": private_study().privacy})
    step = Step(replace(world.state, study=noisy), ctx)
    assert not worth_another_header(step, world.at(2), refused)


def test_nothing_begins_anew_where_an_upload_would_be_lost_by_it() -> None:
    world = RunWorld()
    world.mute = {(world.at(2), Uploaded), (world.at(3), Uploaded)}
    world.begin()
    current = world.state.round
    assert current is not None
    refused = Refused(current.hd, "HEADER_NONCE", "its last")
    ctx = RunContext(world.now, 0, world.trust, Timing())
    assert worth_another_header(Step(world.state, ctx), world.at(2), refused)
    assert not worth_another_header(Step(world.state, ctx), world.at(0), refused), "it has sent one"
    draining = replace(ctx, draining=True)
    assert not worth_another_header(Step(world.state, draining), world.at(2), refused)
    world.lose(0)
    assert not worth_another_header(Step(world.state, ctx), world.at(2), refused)


def test_a_lost_nonce_of_another_header_begins_nothing_anew() -> None:
    world = _nonce_lost(hd=HeaderDigest(bytes(32)))
    assert not any(record.reason for record in world.state.history)


def test_a_hospital_can_have_a_round_begin_anew_once() -> None:
    world = RunWorld()
    world.mute = {(world.at(2), Uploaded)}
    world.begin()
    for _ in range(2):
        current = world.state.round
        assert current is not None
        world.hear(world.at(2), Refused(current.hd, "HEADER_NONCE", "its last"))
    reasons = [(record.opened, record.reason) for record in world.state.history[:2]]
    assert reasons == [(False, "HEADER_NONCE"), (True, "")]
    assert world.state.history[1].dropped == (world.at(2),)


def test_what_a_hospital_refused_once_is_not_held_against_it_when_it_takes_part() -> None:
    world = RunWorld()
    world.hold = {rs.OpenSum}
    world.begin()
    current = world.state.round
    assert current is not None
    world.hear(world.at(2), Refused(b"", "POLICY_HOURS", "the next window opens at 20:00"))
    assert world.at(2) in dict(world.state.trouble)
    (command,) = world.held
    assert isinstance(command, rs.OpenSum)
    world.held, world.hold = [], set()
    world.tell(rs.SumUsed(command.header.digest(), digest("sum"), None, ()))
    assert world.at(2) in world.state.history[0].survivors
    assert world.state.trouble == ()


# --- what a coordinator must not take ------------------------------------------------------------


def test_steps_out_of_turn_are_refused_and_change_nothing() -> None:
    world = RunWorld()
    world.says[world.at(0)] = None
    world.begin()
    before = stored(world.state)
    commit = Commit(b"\x00" * 32, digest("set"), b"\x00" * 64)  # type: ignore[arg-type]
    confirm = Confirm(b"\x00" * 32, b"\x00" * 64)  # type: ignore[arg-type]
    receipt = ReleaseReceipt(RUN, digest("another"))
    for message in (commit, confirm, receipt, RunEnded(RUN, "finished", "")):
        world.hear(world.at(1), message)
    assert [refusal.name for refusal in world.refused] == ["OUT_OF_TURN"] * 4
    assert stored(world.state) == before


# --- the end -------------------------------------------------------------------------------------


def test_the_run_waits_for_receipts_but_not_for_ever() -> None:
    world = RunWorld()
    world.hold = {rs.SendRelease}
    world.begin()
    assert world.state.phase is RunPhase.RELEASING
    world.hear(world.at(0), ReleaseReceipt(RUN, digest("manifest")))
    world.fire("release")
    assert world.state.phase.final
    assert world.state.reason == ""
    assert world.state.receipts == {world.at(0)}


def test_a_hospital_that_was_away_at_the_end_gets_the_model_it_helped_to_make() -> None:
    world = RunWorld()
    world.hold = {rs.MakeRelease}
    world.begin()
    world.lose(3)
    world.release_held()
    finished(world)
    assert world.state.receipts == set(world.ids[:3])
    world.connect(3)
    assert world.state.receipts == set(world.ids)
    assert world.told(world.at(3), RunEnded)[-1].state == "finished"
    sent = len(world.done(rs.SendRelease))
    world.lose(3)
    world.connect(3)
    assert len(world.done(rs.SendRelease)) == sent  # it has a receipt: once is enough


@pytest.mark.parametrize("how", ["finished", "cancelled", "without the model"])
def test_who_names_an_ended_run_is_told_of_its_end_whenever_it_is_back(how: str) -> None:
    """It may have died before it heard of it; and it is told of no other."""
    world = RunWorld()
    world.hold = {rs.MakeRelease}
    world.begin()
    if how != "finished":
        world.lose(3)
    if how == "cancelled":
        world.tell(rs.Cancel("enough"))
    else:
        world.release_held()
        finished(world)
    world.lose(3)
    world.online.add(world.at(3))
    told = len(world.told(world.at(3), RunEnded))
    for has_keys in (False, True):
        world.tell(rs.NodeConnected(world.at(3), has_keys=has_keys, named=False))
        assert len(world.told(world.at(3), RunEnded)) == told
    world.tell(rs.NodeConnected(world.at(3), has_keys=False, named=True))
    assert len(world.told(world.at(3), RunEnded)) == told + 1


def test_a_hospital_that_refused_gets_no_model() -> None:
    world = RunWorld()
    world.says[world.at(3)] = NO
    world.begin()
    world.lose(3)
    world.connect(3)
    assert {command.to for command in world.done(rs.SendRelease)} == set(world.ids[:3])


@pytest.mark.parametrize("phase", ["enrolling", "setting up", "running", "opening", "releasing"])
def test_a_person_can_end_a_run_in_any_phase(phase: str) -> None:
    world = RunWorld()
    match phase:
        case "enrolling":
            world.says[world.at(0)] = None
        case "setting up":
            world.mute = {(world.at(0), KeyAdvert)}
        case "running":
            world.mute = {(world.at(0), Uploaded)}
        case "opening":
            world.hold = {rs.OpenSum}
        case _:
            world.hold = {rs.MakeRelease}
    world.begin()
    world.tell(rs.Cancel("operator ann: wrong data"))
    assert (world.phase, world.state.reason) == (RunPhase.CANCELLED, "operator ann: wrong data")
    for node in world.ids:
        assert world.told(node, RunEnded)[-1].state == "cancelled"
    assert world.spool == {}
    # Whatever was still under way comes to nothing.
    after = world.state
    facts = len(world.facts)
    world.release_held()
    world.mute = set()
    for name in sorted(world.timers):
        world.fire(name)
    assert (stored(world.state), len(world.facts)) == (stored(after), facts)
    assert world.phase is RunPhase.CANCELLED
    assert world.done(rs.SendRelease) == []
    assert world.state.released is None


def test_an_upload_that_comes_after_the_end_is_refused() -> None:
    world = RunWorld()
    world.mute = {(world.at(0), Uploaded)}
    world.begin()
    said = [one for one in world.nodes[world.at(0)].said if isinstance(one, Uploaded)]
    end = said[-1].end
    world.tell(rs.Cancel("enough"))
    facts = len(world.facts)
    world.tell(rs.UploadComplete(world.at(0), end, end.ydig, len(said[-1].body)))
    assert [refusal.name for refusal in world.refused] == ["CLOSED"]
    assert len(world.facts) == facts


def test_ending_a_run_twice_keeps_the_first_reason() -> None:
    world = undisturbed()
    facts = len(world.facts)
    world.tell(rs.Cancel("too late"))
    assert (world.phase, len(world.facts)) == (RunPhase.FINISHED, facts)


# --- crashes -------------------------------------------------------------------------------------


def _scenario(world: RunWorld) -> None:
    world.begin()
    for _ in range(30):  # whatever is waited for runs out, as it would
        if world.phase.final:
            return
        for name in ("gather", "enrolment", "retry", "round:round", "round:commit", "release"):
            if name in world.timers:
                world.fire(name)
                break


FACTS = len(undisturbed().facts)


@pytest.mark.parametrize("after", range(1, FACTS + 1))
def test_a_crash_after_any_fact_gives_the_same_run(after: int) -> None:
    """The facts of the step are stored, and nothing else of it happened."""
    world = RunWorld()
    world.crash_after = after
    _scenario(world)
    assert world.crashes == 1
    finished(world)
    opened = [record for record in world.state.history if record.opened]
    assert [len(record.survivors) for record in opened] == [4, 4]
    assert world.state.receipts == set(world.ids)
    # Not one input was summed twice, and no header had two survivor sets.
    assert [position for position, _, _ in world.sums] in ([1, 2], [1, 1, 2], [1, 2, 2])
    assert len({values for _, _, values in world.sums}) == 2


@pytest.mark.parametrize("kind", [Uploaded, Commit, Release])
def test_a_crash_with_a_hospital_away_goes_on_where_it_was(kind: type) -> None:
    world = RunWorld()
    world.mute = {(world.at(1), kind), (world.at(2), kind)}
    world.begin()
    facts = list(world.facts)
    world.mute = set()
    world.restart()
    world.tell()
    _scenario_rest(world)
    assert world.facts[: len(facts)] == facts
    finished(world)
    assert world.state.history[0].opened


def _scenario_rest(world: RunWorld) -> None:
    for _ in range(30):
        if world.phase.final:
            return
        for name in ("gather", "retry", "round:release", "round:recover", "release"):
            if name in world.timers:
                world.fire(name)
                break


def test_a_restart_of_an_ended_run_does_nothing() -> None:
    world = undisturbed()
    facts = len(world.facts)
    commands = len(world.commands)
    world.online.clear()
    world.restart()
    world.tell()
    assert len(world.facts) == facts
    assert world.commands[commands:] == []


def test_facts_survive_their_encoding() -> None:
    for body in undisturbed().facts:
        fact = rs.decode_fact(body)
        assert rs.encode_fact(fact) == body


def test_a_damaged_fact_is_refused() -> None:
    body = undisturbed().facts[5]
    for bad in (b"", b"{}", body[:-1], body.replace(b"run-fact/1", b"run-fact/9")):
        with pytest.raises(StateError) as refused:
            rs.decode_fact(bad)
        assert refused.value.name == "STATE_DAMAGED"


def test_a_round_that_takes_long_says_for_whom_it_waits_and_what_follows() -> None:
    world = RunWorld()
    world.mute = {(world.at(1), Uploaded)}
    world.begin()
    assert world.timers["waiting"] == 25.0  # a quarter of the deadline
    world.fire("waiting")
    said = [one for one in world.lines if one.event is Event.ROUND_WAITING]
    assert [dict(one.fields) for one in said] == [
        {
            "round": 1,
            "what": "upload",
            "waiting_for": (site_name(world.at(1)),),
            "since": rs.At(0.0),
            "until": rs.At(100.0),
            "seconds": 25.0,
            "then": "goes on without them",
        }
    ]
    assert world.timers["waiting"] == 25.0
    world.fire("waiting")
    assert world.timers["waiting"] == 50.0  # ever more rarely


def test_a_round_that_is_about_to_be_voided_says_how_many_are_missing() -> None:
    world = RunWorld()
    world.mute = {(world.at(1), Uploaded), (world.at(2), Uploaded)}
    world.begin()
    world.fire("waiting")
    (said,) = [one for one in world.lines if one.event is Event.ROUND_WAITING]
    assert dict(said.fields)["then"] == "voided unless 1 more of them upload"


def test_evidence_of_two_commits_is_kept_when_the_round_is_forgotten() -> None:
    world = RunWorld()
    world.begin()
    finished(world)
    commit = Commit(HeaderDigest(b"h" * 32), Sha256(b"s" * 32), b"1" * 64)
    evidence = DoubleCommit(world.at(0), commit, replace(commit, sig=b"2" * 64))
    kept = apply(world.state, rs.Witnessed(evidence))
    assert kept.evidence == (evidence,)
    journal = Journal()
    first = journal.add([rs.Witnessed(evidence)])
    assert first == []
    bodies = [rs.encode_fact(rs.Witnessed(evidence))]
    assert rs.decode_fact(bodies[0]) == rs.Witnessed(evidence)
    assert 0 not in journal.add([rs.Ended(RunPhase.FINISHED, "")])


def test_an_epoch_is_taken_once_a_whole_set_has_confirmed_it() -> None:
    """Else one hospital could make a number stand that a clock far ahead had reserved."""
    world = RunWorld()
    assert taken_epoch(world.state) == 0
    world.begin()
    session = world.state.session
    assert session is not None
    assert session.phase is SetupPhase.READY
    assert taken_epoch(world.state) == session.terms.epoch
    before = replace(session, phase=SetupPhase.ADVERTS)
    assert taken_epoch(replace(world.state, session=before)) == 0


def test_a_hospital_that_says_it_has_no_keys_has_no_release_made_again() -> None:
    """It would keep the run from its end, and send everybody the release again and again."""
    world = RunWorld()
    world.hold = {rs.SendRelease}
    world.begin()
    assert world.phase is RunPhase.RELEASING
    facts, held = len(world.facts), len(world.held)
    for _ in range(3):
        world.hear(world.at(0), Refused(b"", "OWN_ADVERT", "another process has them"))
    assert (len(world.facts), len(world.held)) == (facts, held)
    world.fire("release")
    finished(world)
