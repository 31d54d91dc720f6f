"""A coordinator's start reads the facts of the runs that go on, and a line for each ended one.

Whatever of an ended run is asked for later is there as before; a line that is not of the store's
facts counts for nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import StateError
from common.ids import NodeId, RunId, hospital_id
from common.messages import ReleaseReceipt, StudyDecision
from common.secagg.messages import Commit, Confirm, KeyAdvert, Ready, Release
from common.views import RunPhase
from coordinator import driver as driver_module
from coordinator import shelf
from coordinator.failures import recorded
from coordinator.history import unknown, witness
from coordinator.metrics import take_picture
from coordinator.progress import progress_of
from coordinator.run_state import Cancel, SumUsed
from coordinator.service import CoordinatorService
from coordinator.shelf import NAME as ENDED
from coordinator.shelf import Shelf
from coordinator.store import SqlStore, StoredFact
from coordinator.use_sum import use_sum
from tests.federation import NAME, SITES, Federation

A = hospital_id(NAME, SITES[0])


@contextmanager
def facts_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RunId]]:
    """Give the runs whose facts are read inside the block."""
    found: list[RunId] = []
    real = SqlStore.facts

    def facts(self: SqlStore, run_id: RunId) -> list[StoredFact]:
        found.append(run_id)
        return real(self, run_id)

    with monkeypatch.context() as patch:
        patch.setattr(SqlStore, "facts", facts)
        yield found


def state_dir(fed: Federation) -> Path:
    return fed.plan.coordinator_folder / "state"


def service_of(fed: Federation) -> CoordinatorService:
    assert fed.service is not None
    return fed.service


def run_of(fed: Federation) -> RunId:
    assert fed.run_id is not None
    return fed.run_id


async def ended(fed: Federation) -> None:
    """Have a run end, and a second start find it ended."""
    fed.check(await fed.run())
    await fed.until(lambda: len(fed.state.receipts) == len(SITES))
    await fed.restart_coordinator()


async def test_a_start_reads_no_fact_of_an_ended_run_and_has_all_of_it_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Federation(tmp_path / "fed") as fed:
        fed.check(await fed.run())
        await fed.until(lambda: len(fed.state.receipts) == len(SITES))
        view, release = service_of(fed).run(run_of(fed)), service_of(fed).release(run_of(fed))
        await fed.restart_coordinator()
        with facts_read(monkeypatch) as read:
            await fed.restart_coordinator()
            await fed.until(lambda: len(service_of(fed).connected) == len(SITES))
            picture = take_picture(service_of(fed), "", 0.0)
        assert read == []
        assert picture.runs[RunPhase.FINISHED.value] == 1
        assert service_of(fed).status().runs == ()
        (again,) = await service_of(fed).runs()
        assert (again.history, again.state, again.seconds) == (
            view.history,
            view.state,
            view.seconds,
        )
        assert again.model_sha256 == view.model_sha256
        assert service_of(fed).release(run_of(fed)) == release


async def test_the_next_run_goes_on_beside_an_ended_one_and_both_are_told_in_order(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "fed") as fed:
        await ended(fed)
        await fed.restart_coordinator()
        first = run_of(fed)
        await fed.submit("request-2")
        assert run_of(fed) != first
        fed.check(await fed.finish())
        assert [view.run_id for view in await service_of(fed).runs()] == [first, run_of(fed)]


async def test_a_run_that_ends_is_noted_before_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Federation(tmp_path / "fed") as fed:
        fed.check(await fed.run())
        await fed.until(lambda: len(fed.state.receipts) == len(SITES))
        watching = asyncio.create_task(service_of(fed).watch_over())
        await fed.until(lambda: run_of(fed) in service_of(fed)._noted)  # after the file is there
        watching.cancel()
        with facts_read(monkeypatch) as read:
            await service_of(fed)._shelve()  # once is enough
            await fed.restart_coordinator()
        assert read == []


async def test_an_ended_run_that_somebody_looks_at_is_not_read_once_more_to_be_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Federation(tmp_path / "fed") as fed:
        await ended(fed)
        await fed.restart_coordinator()
        with facts_read(monkeypatch) as read:
            await service_of(fed).runs()
            await service_of(fed)._shelve()
        assert read == [run_of(fed)]


async def test_an_order_to_drain_is_followed_after_a_run_ended_within_a_round(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "fed", rounds=50) as fed:
        fed.on_send(SITES[-1], Commit, fed.kill)
        await fed.submit()
        await fed.until(lambda: SITES[-1] not in fed.nodes)
        await service_of(fed).cancel(run_of(fed), "enough of it")
        assert fed.state.round is not None
        async with asyncio.timeout(10):
            await service_of(fed).drain()


async def test_how_far_an_ended_run_is_is_found_out_once_however_often_hospitals_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Federation(tmp_path / "fed") as fed:
        fed.check(await fed.run())
        await fed.until(lambda: len(fed.state.receipts) == len(SITES))
        found = service_of(fed)._progress()
        assert found == [progress_of(fed.state)]
        with monkeypatch.context() as patch:
            patch.delattr("coordinator.driver.progress_of")
            assert service_of(fed)._progress() == found


async def test_a_hospital_that_was_away_at_the_end_is_given_the_model_after_many_starts(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "fed") as fed:
        away = SITES[-1]
        fed.on_send(away, ReleaseReceipt, fed.kill)
        run = await fed.run()
        assert run.phase is RunPhase.FINISHED
        assert hospital_id(NAME, away) not in run.receipts
        for _ in range(2):
            await fed.restart_coordinator()
        (short,), drivers = service_of(fed)._ended.values(), service_of(fed)._drivers
        assert short.owed == (hospital_id(NAME, away),)
        assert not drivers
        fed.start(away)  # nobody but it asks for the run
        await fed.until(
            lambda: any(hospital_id(NAME, away) in one.state.receipts for one in drivers.values())
        )
        await fed.restart_coordinator()  # its receipt made a line that no longer holds
        assert hospital_id(NAME, away) in fed.state.receipts


async def test_others_go_on_while_the_many_models_are_read_that_a_hospital_is_owed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Federation(tmp_path / "fed") as fed:
        away, went_on = SITES[-1], asyncio.Event()
        fed.on_send(away, ReleaseReceipt, fed.kill)
        await fed.run()
        store = service_of(fed)._shop.store
        (run,) = store.runs()
        for number in range(3):
            copy = RunId(f"copy-{number}")
            store.add_run(
                store.study(run.config_hash), replace(run, run_id=copy, request=f"copy {number}")
            )
            store.append(copy, 0, [fact.body for fact in store.facts(run.run_id)])
            store.put_release(copy, store.release(run.run_id))
        for _ in range(2):
            await fed.restart_coordinator()
        real, held = SqlStore.facts, []

        def facts(self: SqlStore, run_id: RunId) -> list[StoredFact]:
            held.append(not went_on.is_set())
            went_on.clear()
            asyncio.get_running_loop().call_soon(went_on.set)
            return real(self, run_id)

        monkeypatch.setattr(SqlStore, "facts", facts)
        fed.start(away)
        await fed.until(lambda: len(held) == 4)
        assert held == [True, False, False, False]


async def test_a_hospital_that_names_an_ended_run_is_told_of_its_end_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Federation(tmp_path / "fed", rounds=50) as fed:
        away = SITES[-1]
        fed.on_send(away, Commit, fed.kill)
        await fed.submit()
        await fed.until(lambda: away not in fed.nodes)
        await service_of(fed).cancel(run_of(fed), "enough of it")
        await fed.restart_coordinator()
        with facts_read(monkeypatch) as read:
            await fed.restart_coordinator()
            fed.start(away)
            told = "run.cancelled"
            await fed.until(lambda: fed.count(told, site=away, reason="enough of it") > 0)
        assert read == []


STEPS = (StudyDecision, KeyAdvert, Confirm, Ready, Commit, Release)
"""What a hospital sends, from its decision to the opening of a round."""


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_run_cancelled_at_any_step_of_a_hospital_that_is_gone_hinders_no_later_one(
    tmp_path: Path, step: type, *, late: bool
) -> None:
    async with Federation(tmp_path / "fed", rounds=50) as fed:
        away = SITES[-1]
        killed = asyncio.Event()

        async def kill(site: str) -> None:
            fed.later(fed.kill(site))
            killed.set()

        fed.on_send(away, step, kill, late=late)
        await fed.submit()
        async with asyncio.timeout(60):
            await killed.wait()
        await fed.until(lambda: away not in fed.nodes)
        await service_of(fed).cancel(run_of(fed), "enough of it")
        await fed.restart_coordinator()
        fed.start(away)
        await fed.submit("request-2")
        await fed.until(lambda: len(fed.state.history) > 1)
        assert all(len(one.survivors) == len(SITES) for one in fed.state.history[1:])


async def test_a_run_that_is_cancelled_while_its_sum_is_opened_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[SumUsed] = []
    real, loop = use_sum, asyncio.get_running_loop()
    async with Federation(tmp_path / "fed") as fed:

        def slow(*arguments: Any) -> SumUsed:  # noqa: ANN401
            made.append(real(*arguments))
            driver = fed.driver
            assert driver is not None
            loop.call_soon_threadsafe(driver.post, Cancel("enough of it"))
            end = time.monotonic() + 60
            while not driver.state.phase.final and time.monotonic() < end:
                time.sleep(0.01)
            return made[0]

        monkeypatch.setattr(driver_module, "use_sum", slow)
        assert (await fed.run()).phase is RunPhase.CANCELLED
        await fed.until(lambda: bool(made) and not (fed.driver and fed.driver._work))
        objects, spool = service_of(fed)._shop.objects, state_dir(fed) / "spool"
        assert made[0].model is not None
        assert [objects.path(one).exists() for one in made[0].model.addresses] == [False]
        assert list(spool.iterdir()) == []


async def test_the_models_of_an_ended_run_stay_although_nobody_has_asked_for_it(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "fed") as fed:
        await ended(fed)
        await fed.restart_coordinator()
        objects = service_of(fed)._shop.objects
        (short,) = service_of(fed)._ended.values()
        assert short.models
        for digest in short.models:
            objects.remove(digest)  # another run that made the same one lets go of it
            assert objects.path(digest).exists()


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(b'"next_r":') + len(b'"next_r":')
    content[place] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _of_another_version(path: Path) -> None:
    body = path.read_bytes()[64:].replace(shelf.SCHEMA.encode(), b"fedcare.coordinator-ended/0")
    path.write_bytes(hashlib.sha256(body).hexdigest().encode() + body)


@pytest.mark.parametrize("damage", [_flip, _cut, _of_another_version, Path.unlink])
async def test_lines_that_are_not_what_was_written_are_made_again_from_the_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    async with Federation(tmp_path / "fed") as fed:
        await ended(fed)
        path = state_dir(fed) / ENDED
        before = path.read_bytes()
        await fed.kill_coordinator()
        damage(path)
        with facts_read(monkeypatch) as read:
            fed.start_coordinator()
        assert read == [run_of(fed)]
        assert path.read_bytes() == before


async def test_a_line_of_other_facts_than_the_stores_counts_for_nothing(tmp_path: Path) -> None:
    """As after a restored backup, or after a person's order on an ended run."""
    async with Federation(tmp_path / "fed") as fed:
        await ended(fed)
        links = service_of(fed)._shop.store.links()
        run = run_of(fed)
    folder = state_dir(fed)
    assert set(Shelf(folder).current(links)) == {run}
    assert Shelf(folder).current({run: bytes(32)}) == {}
    assert Shelf(folder).current({}) == {}


async def test_an_ended_run_whose_facts_are_damaged_stops_the_process_once_it_is_asked_for(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "fed") as fed:
        await ended(fed)
        await fed.restart_coordinator()
        service = service_of(fed)
        with service._shop.store._engine.begin() as db:  # type: ignore[attr-defined]
            db.exec_driver_sql("UPDATE facts SET body = x'00' WHERE seq = 0")
        with pytest.raises(StateError, match=f"run {run_of(fed)}: fact 0"):
            service.run(run_of(fed))
        assert service.failed
        with pytest.raises(StateError, match="fact 0"):
            await service.watch_over()


async def test_facts_that_cannot_be_read_to_be_noted_stop_the_process_and_it_is_kept_why(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "fed") as fed:
        fed.check(await fed.run())
        await fed.until(lambda: len(fed.state.receipts) == len(SITES))
        service = service_of(fed)
        with service._shop.store._engine.begin() as db:  # type: ignore[attr-defined]
            db.exec_driver_sql("UPDATE facts SET body = x'00' WHERE seq = 0")
        with pytest.raises(StateError, match="fact 0"):
            await service.watch_over()
        assert service.failed
        (kept,) = recorded(state_dir(fed))
        assert kept.what == "stopped"


async def test_lines_bear_witness_as_the_states_do(tmp_path: Path) -> None:
    async with Federation(tmp_path / "fed") as fed:
        await ended(fed)
        await fed.restart_coordinator()
        (short,) = service_of(fed)._ended.values()
        state = fed.state
    assert short.progress == progress_of(state)
    (seen,) = witness([short.progress], A)
    assert state.session is not None
    assert (seen.epoch, seen.next_r) == (state.session.terms.epoch, state.next_r)
    assert seen.r == max(one.r for one in state.history if A in one.survivors)
    epochs = {seen.task: seen.epoch}
    assert unknown(A, [seen], [short.progress], epochs, ()) == []
    stranger = NodeId(f"{A}-x")
    assert witness([short.progress], stranger) == ()


async def test_a_start_on_a_folder_that_takes_no_line_serves(tmp_path: Path) -> None:
    async with Federation(tmp_path / "fed") as fed:
        fed.check(await fed.run())
        await fed.kill_coordinator()
        (state_dir(fed) / f".{ENDED}").mkdir()
        fed.start_coordinator()
        assert service_of(fed).run(run_of(fed)).state is RunPhase.FINISHED
        assert not (state_dir(fed) / ENDED).exists()


async def test_lines_that_find_no_room_take_none(tmp_path: Path) -> None:
    """What a failed write has taken of a full disk would be missing for the facts."""
    async with Federation(tmp_path / "fed") as fed:
        await ended(fed)
        await fed.restart_coordinator()
        lines = list(service_of(fed)._ended.values())
    folder = tmp_path / "full"
    folder.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))  # Python ignores SIGXFSZ
    try:
        Shelf(folder).keep(lines)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(folder.iterdir()) == []
