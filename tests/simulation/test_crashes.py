"""Processes die at every durable write, and the federation ends with the same model.

Faults F01 to F14: right after a write (what follows it was not done) and right before
(nobody may have been told of it yet). The disk is all that a new process finds.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import NoRoom, StateError
from common.messages import DownloadChunk, UploadChunk
from common.secagg.messages import Certificate, Commit, Ready, Release, RoundStart, UploadEnd
from coordinator import room
from coordinator.failures import recorded
from coordinator.run_facts import replay
from coordinator.run_state import RunState, decode_fact
from coordinator.store import SqlStore
from hospital_node.store import SessionRecord
from tests.federation import SITES, Federation, names
from tests.run_world import stored

NODE_WRITES = 22
"""At least as many as a node makes in two rounds; later ones never come."""

APPENDS = 26
"""At least as many groups of facts as a coordinator stores in two rounds."""


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The final model's digest when nobody dies."""

    async def run() -> bytes:
        async with Federation(tmp_path_factory.mktemp("fed") / "f") as fed:
            return model_of(await fed.run())

    return asyncio.run(run())


def model_of(run: RunState) -> bytes:
    assert run.model is not None
    return run.model.model_sha256


def check_all_took_part(fed: Federation, run: RunState, undisturbed: bytes) -> None:
    fed.check(run)
    assert [names(record.survivors) for record in run.history] == [set(SITES)] * 2
    assert model_of(run) == undisturbed


def raising(failure: Exception) -> Callable[..., None]:
    """Return a function that fails."""

    def fail(*_: object) -> None:
        raise failure

    return fail


async def check_kept_everywhere(fed: Federation, run: RunState) -> None:
    """Every hospital ends with the very model that the manifest names."""
    assert run.model is not None
    for site in SITES:
        kept = fed.plan.site_folder(site) / "state" / "releases" / run.run_id
        await fed.until((kept / "model.safetensors").is_file)
        file = (kept / "model.safetensors").read_bytes()
        assert hashlib.sha256(file).digest() == run.model.object_sha256


# --- a node -----------------------------------------------------------------------------------


@pytest.mark.parametrize("write", range(1, NODE_WRITES + 1))
async def test_a_node_that_dies_after_any_write_is_back_before_anybody_misses_it(
    tmp_path: Path, write: int, undisturbed: bytes
) -> None:
    async with Federation(tmp_path / "f", gather="10s") as fed:
        await fed.until(lambda: "hungarian" in fed.nodes)
        await fed.stop("hungarian")
        fed.start("hungarian", kill_at_write=write)
        run = await fed.run()
        check_all_took_part(fed, run, undisturbed)
        await check_kept_everywhere(fed, run)


async def test_the_writes_of_a_node_are_all_tried(tmp_path: Path) -> None:
    async with Federation(tmp_path / "f") as fed:
        await fed.stop("hungarian")
        fed.start("hungarian", kill_at_write=10_000)
        await fed.run()
        await fed.until(lambda: fed.ended("hungarian"))
        assert 10 <= fed.writes["hungarian"] <= NODE_WRITES


@pytest.mark.parametrize(
    "kind",
    [Ready, UploadChunk, UploadEnd, Commit, Certificate, Release],
    ids=lambda kind: kind.__name__,
)
async def test_a_node_that_dies_at_a_message_does_not_train_twice_once_its_input_is_final(
    tmp_path: Path, kind: type, undisturbed: bytes
) -> None:
    async with Federation(tmp_path / "f", suite="hybrid", gather="10s") as fed:
        fed.on_send("va", kind, fed.crash)
        run = await fed.run()
        check_all_took_part(fed, run, undisturbed)
        assert fed.crashes == 1
        assert fed.count("round.training", site="va") == 2


@pytest.mark.fault("F08")
@pytest.mark.parametrize("kind", [RoundStart, DownloadChunk], ids=lambda kind: kind.__name__)
async def test_a_nonce_dies_with_its_process_and_the_round_begins_anew_for_its_node(
    tmp_path: Path, kind: type
) -> None:
    """Nonces are never stored: a node refuses the header that carries one it lost.

    (The pattern of these hospitals differs from try to try; that of the killed processes does
    not, and there the model is that of an undisturbed run.)
    """
    async with Federation(tmp_path / "f", gather="10s") as fed:
        fed.on_send("va", kind, fed.crash)
        run = await fed.run()
        fed.check(run)
        assert [(record.position, record.reason) for record in run.history] == [
            (1, "HEADER_NONCE"), (1, ""), (2, ""),
        ]  # fmt: skip
        assert all(names(one.survivors) == set(SITES) for one in run.history if one.opened)
        refused = [line for line in fed.words.getvalue().splitlines() if "FC-3012" in line]
        assert refused
        assert all('"site": "va"' in line for line in refused)


@pytest.mark.fault("F08")
async def test_a_node_that_loses_every_nonce_is_left_out_after_one_more_try(tmp_path: Path) -> None:
    async with Federation(tmp_path / "f", gather="10s") as fed:
        fed.on_send("va", RoundStart, fed.crash)
        fed.on_send("va", RoundStart, fed.crash, skip=2)  # the second is the first one, told again
        run = await fed.run()
        fed.check(run)
        assert [(record.opened, record.reason) for record in run.history] == [
            (False, "HEADER_NONCE"), (True, ""), (True, ""),
        ]  # fmt: skip
        assert [names(record.survivors) for record in run.history[1:]] == [
            set(SITES) - {"va"}, set(SITES),
        ]  # fmt: skip


# --- the coordinator ---------------------------------------------------------------------------


@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("append", range(1, APPENDS + 1))
async def test_a_coordinator_that_dies_at_any_write_goes_on_to_the_same_model(
    tmp_path: Path, append: int, before: bool, undisturbed: bytes
) -> None:
    async with Federation(tmp_path / "f", gather="10s") as fed:
        fed.kill_coordinator_at = append
        fed.kill_before_writing = before
        run = await fed.run()
        check_all_took_part(fed, run, undisturbed)
        await check_kept_everywhere(fed, run)


async def test_the_writes_of_a_coordinator_are_all_tried(tmp_path: Path) -> None:
    async with Federation(tmp_path / "f") as fed:
        await fed.run()
        assert 12 <= fed.appended <= APPENDS


async def test_a_coordinator_that_dies_again_and_again_gets_there(
    tmp_path: Path, undisturbed: bytes
) -> None:
    """A crash loop (F15): every second write kills it."""
    async with Federation(tmp_path / "f", gather="10s") as fed:
        fed.kill_coordinator_every = 2
        run = await fed.run()
        check_all_took_part(fed, run, undisturbed)
        assert fed.crashes >= 6


@pytest.mark.parametrize("method", ["append", "next_epoch", "put_release", "end_run"])
async def test_what_finds_no_room_in_the_store_is_written_when_there_is_some(
    tmp_path: Path, method: str, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to start anything again, and the record of it is durable (F36)."""
    monkeypatch.setattr(room, "RETRY_FIRST_S", 0.01)
    failures = 0
    real = getattr(SqlStore, method)

    def full(*arguments: object) -> object:
        nonlocal failures
        failures += 1
        if failures <= 3:
            raise NoRoom("no space left")
        return real(*arguments)

    monkeypatch.setattr(SqlStore, method, full)
    async with Federation(tmp_path / "f") as fed:
        run = await fed.run()
        check_all_took_part(fed, run, undisturbed)
        state = fed.plan.coordinator_folder / "state"
        await fed.until(lambda: [one.what for one in recorded(state)] == ["full", "room"])
        assert fed.count("state.failed", name="DISK") == 1
        assert fed.count("state.room") == 1


async def test_a_hospital_that_cannot_write_says_so_and_is_not_waited_for(tmp_path: Path) -> None:
    """It cannot even write down that it leaves the round (F37); the deadline is a minute."""
    full = False
    async with Federation(tmp_path / "f") as fed:
        store = fed.nodes["va"]._parts.store
        save = store.save_session

        def save_if_there_is_room(task: str, record: SessionRecord) -> None:
            if full:
                raise NoRoom("no space left")
            save(task, record)

        async def fill(_: str) -> None:
            nonlocal full
            full = True

        store.save_session = save_if_there_is_room  # type: ignore[method-assign]
        fed.on_send("va", RoundStart, fill, skip=1)
        await fed.submit()
        await fed.until(lambda: len(fed.state.history) == 2)
        full = False
        run = await fed.finish()
        fed.check(run)
        assert names(run.history[1].dropped) == {"va"}
        assert run.history[1].seconds < 30
        assert fed.count("protocol.refused", site="va", code="DISK") > 0
        await check_kept_everywhere(fed, run)


@pytest.mark.parametrize("method", ["next_epoch", "put_release", "end_run"])
async def test_any_other_write_that_fails_stops_the_coordinator_too(
    tmp_path: Path, method: str, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush that failed is not tried again: the next start looks what is on the disk (F38)."""
    calls = 0

    def broken(*_: object) -> None:
        nonlocal calls
        calls += 1
        raise StateError("DISK", "disk I/O error")

    async with Federation(tmp_path / "f", gather="10s") as fed:
        with monkeypatch.context() as patch:
            patch.setattr(SqlStore, method, broken)
            await fed.submit()
            assert fed.service is not None
            with pytest.raises(StateError, match="I/O"):
                await fed.service.watch_over()
            assert calls == 1
        state = fed.plan.coordinator_folder / "state"
        assert recorded(state)[-1].what == "stopped"
        await fed.restart_coordinator()
        run = await fed.finish()
        check_all_took_part(fed, run, undisturbed)


async def test_a_submission_that_may_be_half_stored_stops_the_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same request, after the next start, finds the run; without room there is none."""
    async with Federation(tmp_path / "f", gather="10s") as fed:
        assert fed.service is not None
        for failure in (NoRoom("full"), StateError("DISK", "disk I/O error")):
            with monkeypatch.context() as patch:
                patch.setattr(SqlStore, "add_run", raising(failure))
                with pytest.raises(StateError, match=failure.detail):
                    await fed.submit()
            assert fed.service.failed is not isinstance(failure, NoRoom)
        with pytest.raises(StateError):
            await fed.service.watch_over()


async def test_facts_that_cannot_be_stored_stop_the_coordinator_and_nothing_is_said(
    tmp_path: Path, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Federation(tmp_path / "f", gather="10s") as fed:
        await fed.submit()
        await fed.until(lambda: fed.state.round is not None)
        assert fed.service is not None
        service = fed.service
        shop = service._shop

        def full(*_: object) -> None:
            raise StateError("DISK", "no space left")

        monkeypatch.setattr(shop.store, "append", full)
        assert fed.run_id is not None
        job = service._tasks[fed.run_id]
        await asyncio.wait({job})
        assert isinstance(job.exception(), StateError)
        # What was not stored is not shown either.
        (stored_run,) = shop.store.runs()
        facts = [decode_fact(fact.body) for fact in shop.store.facts(fed.run_id) if fact.body]
        known = replay(service._first_state(stored_run, fed.study), facts)
        assert stored(fed.state) == stored(known)
        with pytest.raises(StateError):
            await service.watch_over()  # `serve` ends with this
        await fed.restart_coordinator()
        run = await fed.finish()
        check_all_took_part(fed, run, undisturbed)


# --- all at once -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Ready, UploadEnd, Commit, Release])
async def test_a_power_cut_for_everybody_loses_nothing(
    tmp_path: Path, kind: type, undisturbed: bytes
) -> None:
    async with Federation(tmp_path / "f", gather="10s") as fed:

        async def cut(_site: str) -> None:
            fed.later(fed.power_cut())
            for site in SITES:
                await fed.cut(site)

        fed.on_send("switzerland", kind, cut)
        run = await fed.run()
        check_all_took_part(fed, run, undisturbed)
        await check_kept_everywhere(fed, run)


async def test_a_power_cut_that_takes_all_nonces_voids_the_round_and_says_so(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "f", gather="10s") as fed:

        async def cut(_site: str) -> None:
            fed.later(fed.power_cut())
            for site in SITES:
                await fed.cut(site)

        fed.on_send(SITES[0], RoundStart, cut)
        run = await fed.run()
        fed.check(run)
        states = [(record.position, record.opened) for record in run.history]
        assert states == [(1, False), (1, True), (2, True)]
        assert run.history[0].reason == "HEADER_NONCE"


async def test_after_the_end_a_coordinator_that_starts_again_still_has_the_release(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "f", deadline="1s") as fed:
        fed.on_send("va", Release, fed.kill, skip=1)
        run = await fed.run()
        assert names(run.receipts) == set(SITES) - {"va"}
        await fed.restart_coordinator()
        fed.start("va")
        await fed.until(lambda: len(fed.state.receipts) == len(SITES))
        await check_kept_everywhere(fed, fed.state)
        view = fed.driver.view() if fed.driver is not None else None
        assert view is not None
        assert run.model is not None
        assert view.model_sha256 == run.model.model_sha256.hex()
