"""`study run`: which run is meant, patience with a coordinator, and a model that is checked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from common.clock import ManualClock
from common.errors import ConnectError, FedError, IdentityError, RoundError, StateError
from common.ids import ConfigHash, RunId, Sha256, SiteName, StudyId
from common.messages import DownloadChunk, ReleaseNotice
from common.pki import Role
from common.study import Study, canonical_json, config_hash
from common.views import RoundView, RunPhase, RunView, SiteView, StudyView, WaitView
from common.wire_operations import Submitted
from researcher.progress import LineDisplay
from researcher.show import waiting
from researcher.study_run import (
    Begin,
    Errand,
    OnlyPeople,
    Patience,
    Ran,
    ran_data,
    ran_text,
    rounds_text,
)
from tests.release_factory import SITES, Authority, MemorySource, Release, release, study

RUN = "small-study-1"  # the run that `release()` is of


def view(run: str = RUN, state: RunPhase = RunPhase.FINISHED, reason: str = "") -> RunView:
    sha256 = release().manifest.model_sha256
    return RunView(
        run_id=RunId(run),
        study_id=StudyId("small-study"),
        state=state,
        round=3,
        rounds=3,
        sites=tuple(SiteView(SiteName(site), True, "", "", "") for site in SITES),  # noqa: FBT003
        history=tuple(took_part(number, SITES) for number in (1, 2, 3)),
        pooled=(("auroc", 0.875),),
        model_sha256=sha256 if state is RunPhase.FINISHED else "",
        reason=reason,
        seconds=12.0,
        seconds_to_first_round=3.0,
    )


def took_part(number: int, sites: tuple[str, ...], *, closed: bool = True) -> RoundView:
    present = tuple(map(SiteName, sites))
    dropped = tuple(SiteName(site) for site in SITES if site not in sites)
    state = "CLOSED" if closed else "ABORTED"
    return RoundView(number, "train", state, present, dropped, 0.5, "too few", bytes(32), b"")


class Screen:
    """Remembers what was said."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.shown: list[RunPhase] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def show(self, view: RunView) -> None:
        self.shown.append(view.state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@dataclass
class Desk:
    """A coordinator in memory: runs by id, and `failures` raised by the next calls."""

    source: MemorySource
    past: list[RunView] = field(default_factory=list)
    failures: list[FedError] = field(default_factory=list)
    requests: list[str | None] = field(default_factory=list)
    before_submit: list[RunView] = field(default_factory=list)
    other: list[RunView] = field(default_factory=list)
    first: RunView | None = None
    final: RunView = field(default_factory=view)
    breaks: list[FedError] = field(default_factory=list)
    watched: int = 0

    def _maybe_fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    async def studies(self) -> tuple[StudyView, ...]:
        self._maybe_fail()
        mine, foreign = config_hash(study()), ConfigHash(bytes(32))
        return tuple(
            StudyView(StudyId("small-study"), digest, "", "uni-x", tuple(r.run_id for r in runs))
            for digest, runs in ((foreign, self.other), (mine, self.past))
            if runs
        )

    async def run(self, run_id: str) -> RunView:
        self._maybe_fail()
        return next(entry for entry in self.past if entry.run_id == run_id)

    async def submit(self, study: bytes, client_id: str | None = None) -> Submitted:
        self.requests.append(client_id)
        self._maybe_fail()
        if self.before_submit:
            self.past += self.before_submit
            raise RoundError("BUSY", "a run of study small-study is going on")
        return Submitted(StudyId("small-study"), RunId(RUN), ConfigHash(bytes(32)))

    async def watch(self, run_id: str) -> AsyncIterator[RunView]:
        self.watched += 1
        yield self.first or replace(self.final, state=RunPhase.RUNNING)
        if self.breaks:
            raise self.breaks.pop(0)
        yield self.final

    async def release(self, run_id: str) -> ReleaseNotice:
        self._maybe_fail()
        return await self.source.release(run_id)

    def download(self, sha256: Sha256, offset: int = 0) -> AsyncIterator[DownloadChunk]:
        return self.source.download(sha256, offset)


class World:
    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.out = folder / "results"
        self.clock = ManualClock()
        self.screen = Screen()
        self.desk = Desk(self.source(release()))

    def source(self, made: Release) -> MemorySource:
        signer = self.authority.issue(Role.COORDINATOR, "main")
        return MemorySource(made.signed(signer), made.files)

    async def _pause(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def run(self, *, wait_s: float = 300, of: Study | None = None) -> Ran:
        patience = Patience(wait_s, self.clock, self.screen, self._pause)
        errand = Errand(of or study(), self.out, self.authority.ca)
        found = await errand.run(self.desk, patience)
        assert isinstance(found, Ran)
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def away() -> FedError:
    return ConnectError("UNREACHABLE", "coordinator:8443: connection refused")


# --- which run ------------------------------------------------------------------------


async def test_a_new_study_is_submitted_watched_fetched_and_verified(world: World) -> None:
    ran = await world.run()
    assert (ran.begin, ran.pulled) == (Begin.SUBMITTED, True)
    assert ran.model.folder == world.out / RUN
    assert world.screen.shown == [RunPhase.RUNNING, RunPhase.FINISHED]
    assert ran_data(ran)["verified"] is True


async def test_the_second_call_submits_and_fetches_nothing(world: World) -> None:
    first = await world.run()
    world.desk.past = [first.view]
    again = await world.run()
    assert (again.begin, again.pulled) == (Begin.FINISHED, False)
    assert len(world.desk.requests) == world.desk.watched == 1
    summary = ran_text(again).splitlines()
    assert summary[0] == f"run {RUN} had finished; model verified"
    assert summary[1:] == ran_text(first).splitlines()[1:]


async def test_a_run_that_is_going_on_is_followed(world: World) -> None:
    world.desk.past = [view("old", RunPhase.FAILED), view(RUN, RunPhase.RUNNING)]
    ran = await world.run()
    assert ran.begin is Begin.GOING_ON
    assert world.desk.requests == []


async def test_the_newest_finished_run_goes_before_one_that_is_going_on(world: World) -> None:
    states = {"older": RunPhase.FINISHED, RUN: RunPhase.FINISHED, "now": RunPhase.RUNNING}
    world.desk.past = [view(run, state) for run, state in states.items()]
    ran = await world.run()
    assert (ran.begin, ran.view.run_id) == (Begin.FINISHED, RUN)


@pytest.mark.parametrize("state", [RunPhase.FAILED, RunPhase.CANCELLED])
async def test_a_run_without_a_model_does_not_count_and_is_told(
    world: World, state: RunPhase
) -> None:
    world.desk.past = [view("old", state, "too few")]
    ran = await world.run()
    assert ran.begin is Begin.SUBMITTED
    said = f"submitted study small-study as run {RUN}, anew: old was {state.value}: too few"
    assert said in world.screen.steps


async def test_a_run_of_another_hash_is_not_this_study(world: World) -> None:
    world.desk.other = [view("other")]
    assert (await world.run()).begin is Begin.SUBMITTED


async def test_equal_calls_send_equal_ids_and_a_further_attempt_another(world: World) -> None:
    await world.run()
    world.desk.past = []
    await world.run()
    world.desk.past = [view("old", RunPhase.FAILED)]
    await world.run()
    first, second, third = world.desk.requests
    assert first == second != third
    assert first is not None
    assert len(first) <= 63


async def test_a_race_that_was_lost_follows_the_winner(world: World) -> None:
    world.desk.before_submit = [view(RUN, RunPhase.RUNNING)]
    assert (await world.run()).begin is Begin.GOING_ON


async def test_another_study_of_the_id_that_is_being_run_is_the_coordinators_refusal(
    world: World,
) -> None:
    world.desk.before_submit = [view("now", RunPhase.FAILED)]
    with pytest.raises(RoundError) as caught:
        await world.run()
    assert caught.value.name == "BUSY"


# --- patience -------------------------------------------------------------------------


async def test_a_coordinator_that_comes_up_late_is_waited_for_and_told_once(world: World) -> None:
    world.desk.failures = [away() for _ in range(20)]
    await world.run()
    assert world.screen.steps[:2] == [
        "waiting up to 5m for the coordinator: coordinator:8443: connection refused",
        "the coordinator answers",
    ]
    assert sum("waiting" in step for step in world.screen.steps) == 1


async def test_waiting_is_bounded_by_the_time_without_contact(world: World) -> None:
    world.desk.failures = [away() for _ in range(1000)]
    with pytest.raises(ConnectError):
        await world.run(wait_s=10)
    assert world.clock.now == 10


async def test_each_contact_starts_the_wait_anew(world: World) -> None:
    patience = Patience(10, world.clock, world.screen, world._pause)
    for _ in range(3):
        world.desk.failures += [away() for _ in range(8)]
        await patience.ask(world.desk.studies)
    assert world.clock.now == 24


async def test_no_patience_means_one_attempt(world: World) -> None:
    world.desk.failures = [away()]
    with pytest.raises(ConnectError):
        await world.run(wait_s=0)


async def test_a_coordinator_that_goes_away_during_the_run_is_watched_again(world: World) -> None:
    world.desk.breaks = [away(), away()]
    ran = await world.run()
    assert world.desk.watched == 3
    assert ran.view.state is RunPhase.FINISHED


async def test_a_refused_certificate_is_not_waited_out(world: World) -> None:
    world.desk.failures = [IdentityError("TLS_REFUSED", "coordinator:8443: not trusted")]
    with pytest.raises(IdentityError):
        await world.run()
    assert world.clock.now == 0


async def test_a_handshake_that_breaks_off_after_a_contact_is(world: World) -> None:
    patience = Patience(10, world.clock, world.screen, world._pause)
    await patience.ask(world.desk.studies)
    world.desk.failures = [IdentityError("TLS_REFUSED", "it closed the connection at set-up")]
    await patience.ask(world.desk.studies)
    assert world.clock.now == 1


# --- how it ends ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "name"),
    [(RunPhase.FAILED, "RUN_FAILED"), (RunPhase.CANCELLED, "RUN_CANCELLED")],
)
async def test_a_run_that_ends_without_a_model_is_an_error_with_its_reason(
    world: World, state: RunPhase, name: str
) -> None:
    world.desk.final = view(RUN, state, "the hospitals left")
    with pytest.raises(RoundError, match="the hospitals left") as caught:
        await world.run()
    assert caught.value.name == name
    assert not world.out.exists()


async def test_a_model_that_was_altered_since_is_refused_with_the_way_out(world: World) -> None:
    first = await world.run()
    world.desk.past = [first.view]
    (world.out / RUN / "model.safetensors").write_bytes(b"x")
    with pytest.raises(StateError) as caught:
        await world.run()
    assert caught.value.name == "MODEL_INVALID"
    assert f"Move {world.out / RUN} away" in caught.value.fix


async def test_a_genuine_model_of_another_run_is_refused(world: World) -> None:
    world.desk.final = view("small-study-2")
    with pytest.raises(StateError, match="a model of run small-study-1, not small-study-2"):
        await world.run()


async def test_a_genuine_model_of_another_study_is_refused(world: World) -> None:
    other = study().model_copy(update={"title": "Another"})
    assert canonical_json(other) != canonical_json(study())
    with pytest.raises(StateError, match="a model of study"):
        await world.run(of=other)


async def test_a_model_of_another_ca_is_refused(world: World, tmp_path: Path) -> None:
    world.authority = Authority(tmp_path / "other")
    with pytest.raises(StateError) as caught:
        await world.run()
    assert caught.value.name == "MANIFEST_SIGNATURE"
    assert not (world.out / RUN).exists()


async def test_two_at_once_fetch_once(world: World) -> None:
    began = time.monotonic()
    both = await asyncio.gather(world.run(), world.run())
    assert sorted(ran.pulled for ran in both) == [False, True]
    assert time.monotonic() - began < 10


def test_rounds_that_are_alike_share_a_phrase() -> None:
    two = SITES[:2]
    history = [
        took_part(1, SITES),
        took_part(2, SITES),
        took_part(3, two),
        took_part(4, two, closed=False),
        took_part(5, SITES),
    ]
    assert rounds_text(history) == (
        "1 to 2: 3 hospitals; 3: 2 hospitals without va; 4: voided (too few); 5: 3 hospitals"
    )


# --- people --------------------------------------------------------------------------------------


def held_up(*, only_people: bool = True) -> RunView:
    """A run that waits for people at one hospital."""
    site = replace(
        view().sites[2],
        state="waiting",
        waiting_for="approval by dr-weber",
        people=("dr-weber",),
    )
    left_s = None if only_people else 3.0
    wait = WaitView((site.site,), "approval", 60.0, left_s, "the run begins")
    found = view(state=RunPhase.ENROLLING)
    return replace(found, sites=(*found.sites[:2], site), wait=wait)


async def test_a_run_that_only_waits_for_people_is_left_when_told_so(world: World) -> None:
    patience = Patience(300, world.clock, world.screen)
    world.desk.first = held_up()
    errand = Errand(study(), world.out, world.authority.ca, for_people=False)
    found = await errand.run(world.desk, patience)
    assert isinstance(found, OnlyPeople)
    outcome = waiting(found.view)
    assert int(outcome.exit_code) == 6
    assert outcome.text == f"run {RUN} waits for approval by dr-weber at va"
    assert outcome.data["waiting_for_people"] is True
    assert not world.out.exists()


@pytest.mark.parametrize("told", [True, False])
async def test_a_run_that_waits_otherwise_is_waited_for(world: World, told: bool) -> None:
    patience = Patience(300, world.clock, world.screen)
    world.desk.first = held_up(only_people=not told)
    errand = Errand(study(), world.out, world.authority.ca, for_people=not told)
    assert isinstance(await errand.run(world.desk, patience), Ran)


def test_a_line_is_said_of_each_hospital_that_waits_for_its_people(
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = LineDisplay()
    for _ in range(2):
        screen.show(held_up())
    assert capsys.readouterr().out.count("hospital va waits for approval by dr-weber\n") == 1
