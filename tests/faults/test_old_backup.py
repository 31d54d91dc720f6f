"""An old backup that was put back is noticed by the other side, and nothing goes on silently."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from common.cli import main
from common.clock import SystemClock
from common.entropy import OsEntropy
from common.errors import ExitCode, Refusal, RoundError, StateError
from common.ids import Epoch, RunId, hospital_id
from common.logs import make_log
from common.messages import MAX_SEEN, PROTOCOL_VERSION, Hello, Seen, Welcome
from common.secagg.messages import Commit, Ready, UploadEnd
from common.secagg.node_state import decode_state
from common.views import RunPhase
from coordinator.history import History, Loss, Told
from coordinator.operator import Orders, orders
from coordinator.restore import restore
from hospital_node import orders as node_orders
from hospital_node.store import NodeStore
from researcher.memory_link import MemoryLink
from tests.faults.record import record
from tests.faults.test_backup import back_up, nothing, settings
from tests.federation import NAME, SITES, Federation


def put_back(fed: Federation, backup: Path) -> None:
    """Put a backup in the place of the (stopped) coordinator's state."""
    config = settings(fed)
    state = config.path(config.state_dir)
    state.rename(state.with_name("newer"))
    restore(config, backup, state, nothing)


@asynccontextmanager
async def given_orders(fed: Federation) -> AsyncIterator[Orders]:
    log = make_log(io.StringIO(), form="json", clock=SystemClock())
    with orders(settings(fed), SystemClock(), log) as held:
        yield held


def given(fed: Federation, *words: str, site: str | None = None) -> tuple[int, str]:
    """Give an order on the command line, and return its exit code and all that it said."""
    who = "coordinator" if site is None else "node"
    folder = fed.plan.coordinator_folder if site is None else fed.plan.site_folder(site)
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main([who, *words, "--reason", "a disk is gone",
                     "--config", str(folder / f"{who}.yaml")])  # fmt: skip
    return code, said.getvalue()


async def refused_again(fed: Federation) -> None:
    """Wait until each hospital has come once more, and was refused."""

    def times(site: str) -> int:
        return fed.count("link.lost", name="HISTORY_BACK", site=site)

    before = {site: times(site) for site in SITES}
    await fed.until(lambda: all(times(site) > count for site, count in before.items()))


@pytest.mark.fault("F40a")
@pytest.mark.parametrize(("kind", "skip"), [(Commit, 0), (UploadEnd, 2)])
async def test_an_old_backup_of_the_coordinator_stops_until_a_person_accepts_the_loss(
    tmp_path: Path, kind: type, skip: int
) -> None:
    copy = tmp_path / "copy"
    async with Federation(tmp_path / "fed", rounds=4) as fed:

        async def take(_: str) -> None:
            back_up(fed, copy)

        async def leave(_: str) -> None:
            fed.later(fed.kill_coordinator())

        fed.on_send("va", kind, take, skip=skip)
        fed.on_send("cleveland", UploadEnd, leave, skip=3, late=True)
        job = asyncio.create_task(fed.run())
        await fed.until(lambda: fed.service is None)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        put_back(fed, copy)
        fed.start_coordinator()
        await fed.until(lambda: fed.count("history.back") > 0)
        before = fed.state.history
        await refused_again(fed)
        assert fed.service is not None
        assert fed.state.history == before
        assert not fed.service._tasks_with_keys  # nobody was welcomed
        assert fed.count("history.back", name="HISTORY_BACK") > 0
        # A restart forgets nothing.
        await fed.restart_coordinator()
        await refused_again(fed)
        assert not fed.service._tasks_with_keys  # nobody was welcomed
        await fed.kill_coordinator()
        assert fed.run_id is not None
        code, text = given(fed, "accept-loss")
        assert code == 0
        assert "Start the coordinator: open runs go on in a new epoch." in text
        for line in text.splitlines()[:-1]:
            assert "the store knows" in line or "the store has not ended" in line
        code, text = given(fed, "accept-loss")
        assert code == ExitCode.REFUSED
        assert "no hospital has seen more" in text
        assert "start the coordinator" in text
        fed.start_coordinator()
        assert fed.run_id is not None
        await fed.until(lambda: fed.state.phase.final)
        assert fed.state.phase is RunPhase.FINISHED
        fed.check(fed.state)
    record("F40a", trials=1, failures=0)


@pytest.mark.fault("F40a")
async def test_a_backup_from_the_middle_of_the_last_round_is_an_old_one_too(
    tmp_path: Path,
) -> None:
    copy = tmp_path / "copy"
    async with Federation(tmp_path / "fed", rounds=2, gather="60s") as fed:

        async def take(_: str) -> None:
            back_up(fed, copy)

        def told() -> bool:
            sessions = [node._tasks["pattern"].state.session for node in fed.nodes.values()]
            return all(one is not None and one.next_r == 2 for one in sessions)

        async def leave(_: str) -> None:
            await fed.until(told)  # and no header of the next round was sent: it waits for va
            fed.later(fed.kill_coordinator())
            await fed.until(lambda: fed.service is None)

        fed.on_send("va", Commit, take)
        fed.on_send("va", Ready, leave, skip=1)
        job = asyncio.create_task(fed.run())
        await fed.until(lambda: fed.service is None)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        put_back(fed, copy)
        fed.start_coordinator()
        await fed.until(lambda: fed.count("history.back", name="HISTORY_BACK") > 0)
        assert any("round 1 of epoch" in line["detail"] for line in fed.told("history.back"))
        assert not fed.state.history
        # A coordinator that does not compare is refused by the hospitals themselves.
        node = fed.nodes["cleveland"]
        session = fed.state.session
        assert session is not None
        behind = Seen(fed.state.run_id, "pattern", session.terms.epoch, 1, False, 1)  # noqa: FBT003
        with pytest.raises(StateError) as refused:
            node._check_age(Welcome(NAME, 1000, (), (behind,)))
        assert refused.value.name == "HISTORY_BACK"
        assert "accept-loss" in refused.value.fix
        for good in (
            replace(behind, next_r=2),
            replace(behind, next_r=0),
            replace(behind, epoch=9),
        ):
            node._check_age(Welcome(NAME, 1000, (), (good,)))
    record("F40a", trials=1, failures=0)


@pytest.mark.fault("F40a")
async def test_a_release_that_hospitals_hold_is_never_made_again_from_an_old_backup(
    tmp_path: Path,
) -> None:
    copy = tmp_path / "copy"
    async with Federation(tmp_path / "fed", rounds=1) as fed:

        async def take(_: str) -> None:
            back_up(fed, copy)

        fed.on_send("va", Commit, take)
        run = await fed.run()
        assert run.phase is RunPhase.FINISHED
        await fed.until(lambda: fed.ended("va"))
        await fed.kill_coordinator()
        put_back(fed, copy)
        fed.start_coordinator()
        for site in fed.nodes:
            await fed.cut(site)
        await fed.until(lambda: fed.count("history.back") > 0)
        await fed.kill_coordinator()
        async with given_orders(fed) as held:
            held.accept_loss("no newer one")
        fed.start_coordinator()
        assert fed.state.phase is RunPhase.FAILED
        assert fed.state.reason.startswith("HISTORY_BACK")
        await fed.until(lambda: fed.service is not None and len(fed.service.connected) == 4)


@pytest.mark.fault("F40a")
async def test_a_run_that_goes_back_a_second_time_is_noticed_again(tmp_path: Path) -> None:
    copies = [tmp_path / "first", tmp_path / "second"]
    async with Federation(tmp_path / "fed", rounds=6) as fed:
        for turn, copy in enumerate(copies):

            async def take(_: str, copy: Path = copy) -> None:
                back_up(fed, copy)

            async def leave(_: str) -> None:
                fed.later(fed.kill_coordinator())

            fed.on_send("va", Commit, take)
            fed.on_send("cleveland", UploadEnd, leave, skip=2, late=True)
            if not turn:
                await fed.submit()
            else:
                fed.start_coordinator()
            await fed.until(lambda: fed.service is None)
            await asyncio.gather(*fed._later)
            put_back(fed, copy)
            (fed.plan.coordinator_folder / "newer").rename(tmp_path / f"newer-{turn}")
            noticed = fed.count("history.back")
            fed.start_coordinator()
            await fed.until(lambda noticed=noticed: fed.count("history.back") > noticed)  # type: ignore[misc]
            await fed.kill_coordinator()
            assert given(fed, "accept-loss")[0] == 0
        fed.start_coordinator()
        await fed.until(lambda: fed.driver is not None and fed.state.phase.final)
        fed.check(fed.state)


@pytest.mark.fault("F40a", "F90")
async def test_who_tells_what_nobody_has_seen_is_named_to_people_only_and_can_be_removed(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "fed", rounds=2) as fed:
        await fed.kill("va")
        invented = replace(SEEN, run_id=RunId("oncology-77"), task="oncology", next_r=0)
        assert fed.service is not None
        liar = MemoryLink(fed.service, hospital_id(NAME, "va"))
        with pytest.raises(Refusal, match="HISTORY_BACK") as refused:
            await liar.send("", Hello("0", PROTOCOL_VERSION, (), (invented,)))
        await liar.close()
        await fed.until(lambda: fed.count("link.lost", name="HISTORY_BACK", site="cleveland") > 0)
        texts = [refused.value.detail]
        texts += [json.dumps(line) for line in others(fed) if line["event"] == "link.lost"]
        assert len(texts) > 1
        for text in texts:
            assert not [word for word in ("va", "oncology") if re.search(rf"\b{word}\b", text)]
        (line,) = fed.told("history.back")
        assert (line["site"], line["run"]) == ("va", "oncology-77")
        # Its operators take it out of `members`, and start again.
        await fed.kill_coordinator()
        path = fed.plan.coordinator_folder / "coordinator.yaml"
        tree = yaml.safe_load(path.read_text())
        tree["members"].remove("va")
        path.write_text(yaml.safe_dump(tree))
        fed.start_coordinator()
        await fed.until(lambda: fed.service is not None and len(fed.service._tasks_with_keys) == 3)
        assert len(fed.told("history.back")) == 1
        assert (await fed.run()).phase is RunPhase.FINISHED  # their policies name it still


async def test_a_hello_is_compared_off_the_event_loop_and_welcomes_no_other_stream(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "fed", rounds=2) as fed:
        await fed.kill("va")
        await fed.submit()
        service, run = fed.service, fed.run_id
        assert service is not None
        await fed.until(lambda: len(service._tasks_with_keys) == 3)
        assert run is not None
        threads: list[threading.Thread] = []
        gate, epochs = threading.Event(), service._shop.store.epochs

        def slow() -> dict[str, Epoch]:
            threads.append(threading.current_thread())
            gate.wait(60)
            return epochs()

        service._shop.store.epochs = slow  # type: ignore[method-assign]
        node = hospital_id(NAME, "va")
        hello = Hello("0", PROTOCOL_VERSION, (), (Seen(run, "pattern", 0, 0, released=False),))
        service.connect(node)
        saying = asyncio.create_task(service.receive(node, "", hello))
        await fed.until(lambda: bool(threads))
        newer = service.connect(node)
        gate.set()
        await saying
        assert threads[0] is not threading.main_thread()
        assert not newer.welcomed
        await service.receive(node, "", hello)
        assert newer.welcomed
        service.disconnect(newer)


def others(fed: Federation) -> list[dict[str, object]]:
    """Return the lines that hospitals wrote."""
    mine = fed.own_words.getvalue().splitlines()
    return [json.loads(line) for line in fed.words.getvalue().splitlines() if line not in mine]


@pytest.mark.fault("F40a")
async def test_the_newest_state_is_never_taken_for_an_old_one(tmp_path: Path) -> None:
    async with Federation(tmp_path / "fed", rounds=2) as fed:
        fed.kill_coordinator_every = 3
        run = await fed.run()
        assert run.phase is RunPhase.FINISHED
        assert fed.crashes >= 3
        assert fed.count("history.back") == 0
        config = settings(fed)
        with pytest.raises(StateError) as locked:
            _hold_twice(config)
        assert locked.value.name == "STATE_LOCKED"
        async with given_orders(fed) as held:
            with pytest.raises(RoundError):
                held.accept_loss("nothing was told")


def _hold_twice(config: object) -> None:
    log = make_log(io.StringIO(), clock=SystemClock())
    with orders(config, SystemClock(), log), orders(config, SystemClock(), log):  # type: ignore[arg-type]
        raise AssertionError


@pytest.mark.fault("F74")
async def test_an_old_copy_of_a_hospital_s_state_takes_part_in_nothing(tmp_path: Path) -> None:
    async with Federation(tmp_path / "fed", rounds=3) as fed:
        state = fed.plan.site_folder("va") / "state"
        old = tmp_path / "old"

        async def copy(_: str) -> None:
            shutil.copytree(state, old, ignore=shutil.ignore_patterns("health.sock"))

        async def swap(site: str) -> None:
            fed.later(_swap())

        async def _swap() -> None:
            gone = fed._kill("va")
            assert gone is not None
            await asyncio.gather(gone, return_exceptions=True)
            state.rename(tmp_path / "newer")
            old.rename(state)
            fed.start("va")

        fed.on_send("va", UploadEnd, copy)
        fed.on_send("va", UploadEnd, swap, skip=2, late=True)
        run = await fed.run()
        assert run.phase is RunPhase.FINISHED
        fed.check(run)
        await fed.until(lambda: fed.count("link.lost", site="va", name="STATE_ROLLED_BACK") > 0)
        fed.nodes["va"].stop()
        await fed.serving["va"]
        code, text = given(fed, "accept-loss", site="va")
        assert code == 0
        assert "accept-loss" in text
        assert "Start the node: it joins through a new epoch." in text
        assert given(fed, "accept-loss", site="va")[0] == ExitCode.REFUSED  # once is enough
        with NodeStore.open(state, OsEntropy()) as store:
            stored = store.load_session("pattern")
            assert stored is not None
            after = decode_state(stored.state)
        assert [order.what for order in node_orders.orders(state)] == ["accept-loss"]
        assert after.session is None
        fed.start("va")
        await fed.until(lambda: fed.count("loss.accepted", site="va") > 0)
        await fed.until(lambda: fed.ended("va"))
    record("F74", trials=1, failures=0)


def test_what_was_told_is_kept_and_a_flipped_byte_in_it_is_found(tmp_path: Path) -> None:
    history = History(tmp_path)
    told = Told("va", Seen(RunId("r-1"), "heart", 7, 2, released=False), "it began round 2")
    history.tell([told, told])
    assert History(tmp_path).told == (told,)
    history.accept(Loss(5.0, "gone", ("r-1",)))
    again = History(tmp_path)
    assert again.told == ()
    assert again.lost == {"r-1"}
    path = tmp_path / "history.json"
    path.write_text(path.read_text().replace("gone", "gene"))
    with pytest.raises(StateError, match=r"history\.json"):
        History(tmp_path)


SEEN = Seen(RunId("r-1"), "heart", 7, 2, released=False, next_r=2)


def test_a_loss_is_accepted_as_far_as_it_was_told_and_no_further(tmp_path: Path) -> None:
    """The same run that goes back a second time is noticed again."""
    history = History(tmp_path)
    history.accept(Loss(5.0, "gone", ("r-1",), (SEEN,)))
    (loss,) = History(tmp_path).losses
    for covered in (SEEN, replace(SEEN, r=1, next_r=1), replace(SEEN, epoch=6, r=40, next_r=41)):
        assert loss.covers(covered)
    for further in (
        replace(SEEN, r=3),
        replace(SEEN, next_r=3),
        replace(SEEN, epoch=8, r=0, next_r=0),
        replace(SEEN, released=True),
        replace(SEEN, run_id=RunId("r-2")),
    ):
        assert not loss.covers(further)


def test_what_a_former_member_told_stops_nobody(tmp_path: Path) -> None:
    told = Told("va", SEEN, "it began round 2")
    History(tmp_path).tell([told, replace(told, site="cleveland")])
    assert [one.site for one in History(tmp_path, ["cleveland", "hungarian"]).told] == ["cleveland"]
    assert not History(tmp_path, ["hungarian"]).told
    assert len(History(tmp_path, ["va", "cleveland"]).told) == 2, "one that is taken back counts"


def test_a_hospital_that_invents_runs_fills_neither_memory_nor_disk(tmp_path: Path) -> None:
    history = History(tmp_path)

    def tell(site: str, first: int) -> int:
        runs = (RunId(f"r-{number}") for number in range(first, first + MAX_SEEN))
        told = [Told(site, Seen(run, "heart", 7, 2, released=False), "none") for run in runs]
        return len(history.tell(told))

    assert [tell("va", first) for first in (0, 0, 1000, 2000)] == [MAX_SEEN, 0, 0, 0]
    assert tell("cleveland", 0) == MAX_SEEN, "the others are heard as before"
    assert len(History(tmp_path).told) == 2 * MAX_SEEN
