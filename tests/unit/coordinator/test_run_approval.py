"""A run waits for people, goes on without who withdraws, and says so to everybody who asks."""

from __future__ import annotations

import pytest

from common.errors import Refusal
from common.events import Event
from common.ids import NodeId, SiteName, site_name
from common.messages import Objection, RunEnded, StudyDecision, Verdict
from common.secagg.messages import Ready, RoundStart
from common.study import config_hash
from common.views import RunPhase, RunView, SiteView, StatusView
from coordinator import run_state as rs
from coordinator.run_facts import replay
from coordinator.run_members import MOST_DECISIONS
from coordinator.status import data_of, screen
from coordinator.views import view_of
from coordinator.waits import wait_of
from tests.run_world import RUN, VECTOR, RunWorld

PEOPLE = ("dr-weber", "dr-ito")
MISSING = Objection("APPROVAL_MISSING", "0 of 1 needed have approved it; it waits for dr-weber")
WITHDRAWN = (Objection("APPROVAL_WITHDRAWN", "withdrawn by dr-weber on 2027-01-15 08:00 UTC"),)
FOUR_ROUNDS = VECTOR.replace("rounds: 2", "rounds: 4")


def waits(world: RunWorld, place: int, *people: str, why: Objection = MISSING) -> None:
    """A hospital says that it waits for its people."""
    digest = config_hash(world.study)
    decision = StudyDecision(RUN, digest, Verdict.WAITING, (why,), people or PEOPLE)
    world.says[world.at(place)] = None
    world.hear(world.at(place), decision)


def phase(world: RunWorld) -> RunPhase:
    """A function, so that the type checker takes no phase for the last one."""
    return world.phase


def view(world: RunWorld) -> RunView:
    return view_of(world.state, 0.0, world.now, world.now)


def site(world: RunWorld, place: int) -> SiteView:
    found = {one.site: one for one in view(world).sites}
    return found[SiteName(site_name(world.at(place)))]


def told(world: RunWorld, event: Event) -> list[dict[str, object]]:
    return [dict(line.fields) for line in world.lines if line.event is event]


def survivors(world: RunWorld) -> list[tuple[NodeId, ...]]:
    return [who for _, who, _ in world.sums]


# --- waiting -------------------------------------------------------------------------------------


def test_a_run_that_only_people_can_let_begin_waits_for_them_and_names_them() -> None:
    world = RunWorld()
    world.says.update(dict.fromkeys((world.at(2), world.at(3))))
    world.begin()
    waits(world, 2)
    wait = wait_of(world.state)
    assert wait is not None
    assert wait.what == "decision"  # the fourth hospital may still decide by itself
    waits(world, 3, "dr-rossi")
    assert phase(world) is RunPhase.ENROLLING
    shown = view(world)
    assert shown.wait is not None
    assert (shown.wait.what, shown.wait.for_people) == ("approval", True)
    assert shown.wait.sites == ("h0002", "h0003")
    assert (site(world, 2).state, site(world, 2).people) == ("waiting", PEOPLE)
    assert site(world, 2).waiting_for == "approval by dr-weber, dr-ito"
    assert site(world, 2).objection == ""
    world.fire("waiting")
    assert told(world, Event.ROUND_WAITING)[-1]["people"] == (
        "h0002/dr-weber",
        "h0002/dr-ito",
        "h0003/dr-rossi",
    )
    world.decide(2)
    world.decide(3)
    assert phase(world) is RunPhase.FINISHED
    assert site(world, 2).people == ()


def test_who_waits_is_gone_without_once_enough_accepted_and_joins_when_its_people_agree() -> None:
    world = RunWorld(FOUR_ROUNDS)
    world.says[world.at(3)] = None
    world.begin()
    waits(world, 3)
    wait = wait_of(world.state)
    assert wait is not None
    assert (wait.what, wait.until) == ("approval", 20.0)
    shown = view(world).wait
    assert shown is not None
    assert not shown.for_people  # the timer ends it
    world.hold = {rs.OpenSum}
    world.fire("enrolment")
    world.decide(3)
    world.release_held()
    assert phase(world) is RunPhase.FINISHED
    assert [world.at(3) in who for who in survivors(world)] == [False, True, True, True]


def test_waiting_is_told_as_often_as_it_changes_and_exhausts_nothing() -> None:
    world = RunWorld()
    world.says[world.at(3)] = None
    world.begin()
    before = len(world.facts)
    for count in range(3 * MOST_DECISIONS):
        waits(world, 3, f"dr-{count}")
        waits(world, 3, f"dr-{count}")  # the same again is nothing new
    assert len(world.facts) == before
    assert len(told(world, Event.STUDY_WAITING)) == 3 * MOST_DECISIONS
    assert world.refused == []
    world.decide(3)
    assert phase(world) is RunPhase.FINISHED


def test_the_reason_that_is_not_the_usual_one_is_shown() -> None:
    world = RunWorld()
    world.says[world.at(3)] = None
    world.begin()
    waits(world, 3, "dr-weber", why=Objection("APPROVAL_EXPIRED", "the approval has expired"))
    assert site(world, 3).waiting_for == "approval by dr-weber (APPROVAL_EXPIRED)"


def test_a_coordinator_that_starts_again_waits_and_hears_for_whom() -> None:
    world = RunWorld()
    world.says[world.at(3)] = world.says[world.at(2)] = None
    world.begin()
    waits(world, 2)
    world.restart()
    world.tell()
    assert phase(world) is RunPhase.ENROLLING
    assert site(world, 2).state == "offered"
    waits(world, 2)
    assert site(world, 2).people == PEOPLE


def test_a_denial_refuses_and_its_reason_is_the_runs() -> None:
    world = RunWorld()
    denied = (Objection("APPROVAL_DENIED", "denied by dr-weber on 2027-01-15: no vote"),)
    world.says[world.at(1)] = world.says[world.at(2)] = denied
    world.begin()
    assert phase(world) is RunPhase.FAILED
    assert "APPROVAL_DENIED: denied by dr-weber on 2027-01-15: no vote" in world.state.reason
    assert told(world, Event.STUDY_DENIED)
    assert not told(world, Event.STUDY_REFUSED)


# --- withdrawal ----------------------------------------------------------------------------------


def withdrawn_after_one(world: RunWorld, place: int = 3) -> None:
    """Run one round; then a hospital's people take their consent back."""
    world.hold = {rs.OpenSum}
    world.begin()
    world.decide(place, WITHDRAWN)
    world.release_held()


def test_who_withdraws_is_in_no_further_round_and_the_others_go_on() -> None:
    world = RunWorld(FOUR_ROUNDS)
    withdrawn_after_one(world)
    assert phase(world) is RunPhase.FINISHED
    assert [world.at(3) in who for who in survivors(world)] == [True, False, False, False]
    assert len(world.told(world.at(3), RoundStart)) == 1  # though it said that it was ready
    assert world.state.withdrawn == (rs.Withdrew(world.at(3), 0, world.state.withdrawn[0].unix),)
    (line,) = told(world, Event.STUDY_WITHDRAWN)
    assert (line["site"], line["round"]) == ("h0003", 1)
    assert site(world, 3).state == "withdrawn"
    assert world.told(world.at(3), RunEnded) != []


def test_a_run_that_too_few_are_left_for_fails_once_its_round_is_over_and_says_why() -> None:
    world = RunWorld(FOUR_ROUNDS)
    world.hold = {rs.OpenSum}
    world.begin()
    world.decide(3, WITHDRAWN)
    world.decide(2, WITHDRAWN)
    assert phase(world) is RunPhase.RUNNING  # the open round is not torn down
    world.release_held()
    assert phase(world) is RunPhase.FAILED
    assert world.state.reason.startswith("ENROLMENT: 3 hospitals are needed; refused by h000")
    assert len(survivors(world)) == 1


def test_an_approval_that_ran_out_pauses_the_run_until_it_is_given_again() -> None:
    world = RunWorld(FOUR_ROUNDS)
    world.hold = {rs.OpenSum}
    world.begin()
    for place in (2, 3):
        waits(world, place, why=Objection("APPROVAL_EXPIRED", "the approval has expired"))
    world.release_held()
    assert phase(world) is RunPhase.RUNNING
    shown = view(world)
    assert shown.wait is not None
    assert (shown.wait.what, shown.wait.for_people) == ("approval", True)
    assert shown.wait.sites == ("h0002", "h0003")
    assert world.state.withdrawn == ()
    world.restart()
    world.tell()
    assert phase(world) is RunPhase.RUNNING
    world.decide(2)
    assert phase(world) is RunPhase.FINISHED
    assert [len(who) for who in survivors(world)] == [4, 3, 3, 3]


def test_who_comes_back_is_in_the_rounds_again() -> None:
    world = RunWorld(FOUR_ROUNDS)
    world.hold = {rs.OpenSum}
    world.begin()
    world.decide(3, WITHDRAWN)
    held, world.held = world.held, []
    for command in held:
        world._work(command)  # round 2 opens without it, and is held back
    world.decide(3)
    world.release_held()
    assert phase(world) is RunPhase.FINISHED
    assert [world.at(3) in who for who in survivors(world)] == [True, False, True, True]


def test_a_withdrawal_survives_the_coordinator() -> None:
    world = RunWorld(FOUR_ROUNDS)
    world.hold = {rs.OpenSum}
    world.begin()
    world.decide(3, WITHDRAWN)
    again = replay(world.first, [rs.decode_fact(body) for body in world.facts])
    assert world.at(3) in again.refused
    assert again.withdrawn == world.state.withdrawn


def test_a_hospital_cannot_change_its_mind_without_end() -> None:
    world = RunWorld(FOUR_ROUNDS)
    world.mute = {(node, Ready) for node in world.ids}
    world.begin()
    for _ in range(MOST_DECISIONS):
        waits(world, 3)
        world.decide(3)
    assert [refusal.name for refusal in world.refused][:1] == ["OUT_OF_TURN"]
    assert isinstance(world.refused[0], Refusal)
    assert world.state.decided.count(world.at(3)) == MOST_DECISIONS


# --- for people ----------------------------------------------------------------------------------


def test_the_operators_screen_names_the_people() -> None:
    world = RunWorld()
    world.says.update(dict.fromkeys((world.at(2), world.at(3))))
    world.begin()
    waits(world, 2)
    waits(world, 3, "dr-rossi")
    sites = tuple(SiteView(SiteName(site_name(n)), True, "connected", "", "") for n in world.ids)  # noqa: FBT003
    status = StatusView("sim", "1.0", sites, (view(world),), 12.0)
    page = screen(status, 1_800_000_000.0)
    assert "waits for h0002, h0003" in page
    assert "approval by dr-weber, dr-ito" in page
    (run,) = data_of(status)["runs"]
    assert run["wait"]["what"] == "approval"
    assert [one["people"] for one in run["sites"]] == [[], [], list(PEOPLE), ["dr-rossi"]]


@pytest.mark.parametrize("place", [0, 3])
def test_a_run_that_is_over_waits_for_nobody(place: int) -> None:
    world = RunWorld()
    world.says[world.at(3)] = None
    world.begin()
    waits(world, 3)
    world.tell(rs.Cancel("enough"))
    assert phase(world) is RunPhase.CANCELLED
    assert site(world, place).people == ()
    waits(world, 3)  # it may still say so; nothing follows
    assert phase(world) is RunPhase.CANCELLED
