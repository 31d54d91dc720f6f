"""What people see of a run: for every hospital what it does and what is waited for."""

from __future__ import annotations

import pytest

from common.messages import Objection
from common.secagg.messages import Commit, KeyAdvert, Ready, Release
from common.views import RunPhase, RunView
from coordinator import run_state as rs
from coordinator.views import view_of
from tests.certificate_factory import NOW
from tests.run_world import RunWorld
from tests.simulation.secagg_harness import Uploaded, digest

NO = (Objection("PURPOSE", "policy.yaml:9: not for research"),)


def seen(world: RunWorld) -> RunView:
    return view_of(world.state, NOW - 3.0, NOW + 9.0, world.now)


def doing(world: RunWorld, place: int) -> tuple[str, str]:
    site = seen(world).sites[place]
    assert site.site == f"h000{place}"
    return site.state, site.waiting_for


def test_before_anybody_decided_the_offers_are_out() -> None:
    world = RunWorld()
    world.begin(connected=())
    view = seen(world)
    assert (view.state, view.round, view.rounds) == (RunPhase.ENROLLING, 0, 2)
    assert doing(world, 0) == ("offered", "h0000's decision")
    assert [site.connected for site in view.sites] == [False] * 4


def test_a_refusal_is_shown_in_the_hospitals_own_words() -> None:
    world = RunWorld()
    world.says[world.at(1)] = NO
    world.says[world.at(2)] = None
    world.begin()
    assert doing(world, 1) == ("refused", "nobody: its policy decided")
    assert seen(world).sites[1].objection == "PURPOSE: policy.yaml:9: not for research"
    assert doing(world, 2) == ("offered", "h0002's decision")
    assert doing(world, 0)[0] == "accepted"


def test_a_hospital_that_is_away_is_waited_for() -> None:
    world = RunWorld()
    world.mute = {(world.at(0), Uploaded)}
    world.begin()
    world.lose(3)
    assert doing(world, 3) == ("away", "its connection")
    assert doing(world, 0)[0] == "training"


def test_keys_are_waited_for_by_name() -> None:
    world = RunWorld()
    world.mute = {(world.at(2), KeyAdvert)}
    world.begin()
    assert seen(world).state is RunPhase.SETTING_UP
    assert doing(world, 2) == ("keys", "its keys")


@pytest.mark.parametrize(
    ("kind", "silent", "others"),
    [
        (Ready, "between rounds", "ready"),
        (Uploaded, "training", "uploaded"),
        (Commit, "proposed", "signed"),
        (Release, "certified", "released"),
    ],
)
def test_in_a_round_the_silent_one_is_told_from_the_others(
    kind: type, silent: str, others: str
) -> None:
    world = RunWorld()
    world.mute = {(world.at(place), kind) for place in (1, 2)}
    world.begin()
    assert doing(world, 1)[0] == silent
    assert doing(world, 0)[0] == others
    assert doing(world, 0)[1] != doing(world, 1)[1]


def test_a_late_joiner_waits_for_the_next_epoch() -> None:
    world = RunWorld()
    world.says[world.at(3)] = None
    world.hold = {rs.OpenSum}
    world.begin()
    world.fire("enrolment")
    world.decide(3)
    assert doing(world, 3) == ("joining", "the next epoch")


def test_the_release_is_waited_for_by_name() -> None:
    world = RunWorld()
    world.hold = {rs.SendRelease}
    world.begin()
    assert doing(world, 0) == ("verifying", "its receipt")


def test_the_end_shows_every_round_and_the_released_model() -> None:
    world = RunWorld()
    world.hold = {rs.MakeRelease}
    world.begin()
    assert seen(world).model_sha256 == ""  # nothing is shown before it is released
    world.release_held()
    view = seen(world)
    assert (view.state, view.round, view.reason) == (RunPhase.FINISHED, 2, "")
    assert view.model_sha256 == digest("model train 2").hex()
    assert [(entry.number, entry.state) for entry in view.history] == [(1, "CLOSED"), (2, "CLOSED")]
    assert view.history[0].survivors == ("h0000", "h0001", "h0002", "h0003")
    assert {site.state for site in view.sites} == {"finished"}
    assert (view.seconds, view.seconds_to_first_round) == (3.0, 3.0)


def test_a_voided_round_says_why() -> None:
    world = RunWorld()
    world.mute = {(world.at(place), Uploaded) for place in (1, 2)}
    world.begin()
    world.mute = set()
    world.fire("round:round")
    voided, *others = seen(world).history
    assert (voided.number, voided.state, voided.reason) == (1, "ABORTED", "NOT_ENOUGH")
    assert voided.survivors == ()
    assert voided.sum_sha256 == b""
    assert [entry.number for entry in others] == [1, 2]
