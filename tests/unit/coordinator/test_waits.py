"""Whatever a run waits for, it says for whom, for what, until when, and what happens then."""

from __future__ import annotations

import pytest

from common.events import Event
from common.ids import site_name
from common.secagg.messages import Commit, KeyAdvert, Ready, RecoverShares, Refused, Release
from common.views import RunPhase
from coordinator import run_state as rs
from coordinator.waits import Wait, link_back, link_lost, wait_of
from tests.run_world import RunWorld
from tests.simulation.secagg_harness import Uploaded


def waits(world: RunWorld) -> tuple[list[int], str, float | None, str]:
    """Return (places, what, until, then)."""
    wait = wait_of(world.state)
    assert isinstance(wait, Wait)
    places = [place for place in range(len(world.ids)) if world.at(place) in wait.nodes]
    return places, wait.what, wait.until, wait.then


def lines(world: RunWorld, event: Event) -> list[dict[str, rs.Shown]]:
    return [dict(one.fields) for one in world.lines if one.event is event]


def muted(kind: type, *places: int) -> RunWorld:
    world = RunWorld()
    world.mute = {(world.at(place), kind) for place in places}
    world.begin()
    return world


# --- before and between rounds -------------------------------------------------------------------


def test_an_offer_nobody_can_answer_waits_for_connections() -> None:
    world = RunWorld()
    world.begin(connected=())
    expected = ([0, 1, 2, 3], "connection", None, "the run begins once 3 hospitals have accepted")
    assert waits(world) == expected


def test_too_few_decisions_are_waited_for_without_an_end() -> None:
    world = RunWorld()
    world.says[world.at(2)] = world.says[world.at(3)] = None
    world.begin()
    assert waits(world)[:3] == ([2, 3], "decision", None)


def test_the_last_decision_is_waited_for_until_the_grace_ends() -> None:
    world = RunWorld()
    world.says[world.at(2)] = None
    world.begin()
    assert waits(world) == ([2], "decision", 20.0, "the run begins without them")


def test_keys_are_waited_for_for_as_long_as_an_epoch_may_take() -> None:
    world = muted(KeyAdvert, 1)
    assert waits(world) == ([1], "keys", 30.0, "goes on without them if 3 remain")


def test_a_nonce_is_waited_for_a_little_and_a_lost_hospital_by_its_connection() -> None:
    world = muted(Ready, 3)
    assert waits(world) == ([3], "readiness", 2.0, "the round opens without them")
    world.lose(3)
    assert waits(world)[:2] == ([3], "connection")
    world = muted(Ready, 2, 3)
    assert waits(world) == ([2, 3], "readiness", None, "the round opens once 3 are ready")


def test_a_pause_is_told_once_and_then_ever_more_rarely() -> None:
    world = muted(KeyAdvert, 2, 3)
    world.fire("session:adverts")
    assert world.phase is RunPhase.SETTING_UP
    (told,) = lines(world, Event.RUN_PAUSED)
    assert told["waiting_for"] == tuple(site_name(world.at(place)) for place in (2, 3))
    assert (told["need"], len(told["present"])) == (3, 2)  # type: ignore[arg-type]
    assert told["then"] == "it is tried again; 3 hospitals are needed"
    assert told["until"] == rs.At(60.0)
    world.lose(2)
    world.lose(3)
    began = world.now
    while world.now < began + 24 * 3600:
        ends = world.state.timers
        first = min(("retry", "waiting"), key=lambda name: ends[name].until)
        world.now = max(world.now, ends[first].until)
        world.timers.pop(first)
        world.tell(rs.TimerFired(first))
    told_in_a_day = len(lines(world, Event.RUN_PAUSED))
    assert 10 < told_in_a_day < 150
    assert world.timers["waiting"] <= 900.0
    assert not lines(world, Event.ROUND_WAITING)


# --- in rounds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "places", "expected"),
    [
        (Uploaded, (1,), ([1], "upload", 100.0, "goes on without them")),
        (Uploaded, (1, 2), ([1, 2], "upload", 100.0, "voided unless 1 more of them upload")),
        (Commit, (1, 2), ([1, 2], "commit", 10.0, "voided unless 1 more of them sign")),
        (Release, (1,), ([1], "release", 10.0, "their seeds are recovered from the others")),
    ],
    ids=["one upload", "two uploads", "commits", "release"],
)
def test_each_phase_of_a_round_says_what_is_owed(
    kind: type, places: tuple[int, ...], expected: object
) -> None:
    assert waits(muted(kind, *places)) == expected


def test_a_recovery_waits_for_the_helpers_shares() -> None:
    world = RunWorld()
    world.mute = {
        (world.at(1), Release),
        (world.at(0), RecoverShares),
        (world.at(2), RecoverShares),
    }
    world.begin()
    world.fire("round:release")
    places, what, until, then = waits(world)
    assert (places, what) == ([0, 2], "shares")
    assert until == world.now + 10.0
    assert "cannot be recovered" in then
    (told,) = lines(world, Event.ROUND_RECOVERING)
    assert told["waiting_for"] == (site_name(world.at(1)),)


def test_a_finished_run_waits_for_nobody() -> None:
    world = RunWorld()
    world.begin()
    assert world.phase is RunPhase.FINISHED
    assert wait_of(world.state) is None


# --- links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mute", "lost", "what", "then"),
    [
        (Uploaded, (1,), 1, "upload", "goes on without it"),
        (Uploaded, (1, 2), 1, "upload", "goes on without it if 1 of the other 1 uploads come"),
        (Uploaded, (1, 2), 0, "", "its upload counts; its seeds can be recovered from the others"),
        (Commit, (1, 2), 1, "commit", "goes on without it if 1 of the other 1 commits come"),
        (Release, (1,), 1, "release", "its seeds are recovered from the others"),
        (Release, (1,), 0, "", "its part is done; the round goes on"),
    ],
)
def test_a_lost_link_says_what_the_round_does_without_the_hospital(
    kind: type, mute: tuple[int, ...], lost: int, what: str, then: str
) -> None:
    world = muted(kind, *mute)
    world.lose(lost)
    news = link_lost(world.state, world.at(lost), world.online)
    assert news is not None
    assert (news.round, news.what, news.then) == (1, what, then)
    assert news.matters == bool(what)
    assert (news.until is not None) == bool(what)


def test_the_last_one_that_can_be_missed_is_told_from_the_first() -> None:
    world = muted(Uploaded, 1, 2)
    world.lose(2)
    world.lose(1)
    news = link_lost(world.state, world.at(1), world.online)
    assert news is not None
    assert news.then == "voided unless it is back by then"


def test_a_hospital_that_is_back_hears_what_is_waited_for() -> None:
    world = muted(Uploaded, 1, 2)
    news = link_back(world.state, world.at(1))
    assert news is not None
    assert news.then == "it takes part again; its upload is waited for"
    news = link_back(world.state, world.at(0))
    assert news is not None
    assert news.then == "its part is done"


def test_a_stranger_to_the_round_means_nothing_to_it() -> None:
    world = muted(Ready, 3)
    world.mute.add((world.at(0), Uploaded))
    world.fire("gather")
    assert link_lost(world.state, world.at(3), world.online) is None
    news = link_back(world.state, world.at(3))
    assert news is not None
    assert news.then == "it takes part from the next round on"
    gone = lines(world, Event.MEMBER_GONE)
    assert gone[0]["sites"] == (site_name(world.at(3)),)


def test_a_hospital_that_refuses_a_round_is_told_of_once_and_is_gone_from_it() -> None:
    world = muted(Uploaded, 1, 2)
    assert world.state.round is not None
    world.hear(world.at(1), Refused(world.state.round.hd, "BUDGET", "spent"))
    (refused,) = lines(world, Event.PROTOCOL_REFUSED)
    assert (refused["site"], refused["code"]) == (site_name(world.at(1)), "BUDGET")
    (gone,) = lines(world, Event.MEMBER_GONE)
    assert gone["sites"] == (site_name(world.at(1)),)
    assert waits(world)[0] == [2]


def test_a_reminder_that_was_already_overtaken_says_nothing() -> None:
    world = muted(Uploaded, 1)
    world.tell(rs.TimerFired("waiting"))
    assert lines(world, Event.ROUND_WAITING) == []
