"""Real processes over mutual TLS whose disks lose what was not flushed, or are full.

Every run of the study has to end with one and the same model, whatever happened to it: the last
one of each federation is one to which nothing does. See `tests.faults.machines`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from common.errors import StateError
from common.ids import Sha256, site_name
from common.manifest import Manifest
from common.state_folder import Owner
from coordinator.backup import roster_of
from coordinator.config import CoordinatorConfig
from coordinator.doctor import examine
from coordinator.failures import recorded
from coordinator.snapshot import snapshot
from coordinator.stored_runs import read_runs
from tests import forked
from tests.faults import lostwrites
from tests.faults.budget import trials
from tests.faults.lostwrites import Cut
from tests.faults.machines import COORDINATOR, SITES, Run, full, running, state_of, until
from tests.faults.record import record
from tests.zygote import Zygote

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not lostwrites.can_build(), reason="needs gcc"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lostwrites.build(tmp_path_factory.mktemp("lostwrites"))


@pytest.fixture(scope="module", autouse=True)
def _zygote(library: Path) -> Iterator[None]:
    zygote = Zygote(*forked.WORKING)
    with pytest.MonkeyPatch.context() as patch:
        forked.services_of(zygote, patch)
        patch.setenv("LD_PRELOAD", str(library))  # of the zygote, and so of all it forks
        patch.setenv("LOG_FORMAT", "json")
        yield
    zygote.close()


CUTS: Final = (
    ("F14", COORDINATOR, "coordinator.receipt=kill@7", (COORDINATOR, *SITES)),
    ("F13", "north", "node.vector.after=kill@3", ("north",)),
    ("F06", COORDINATOR, "coordinator.facts.after_commit=kill@25", (COORDINATOR,)),
    ("F06", COORDINATOR, "coordinator.object.after=kill@3", (COORDINATOR,)),
    ("F14", COORDINATOR, "coordinator.sum.before=kill@2", (COORDINATOR, *SITES)),
    ("F14", "west", "node.receipt=kill@2", (COORDINATOR, *SITES)),
)


@pytest.mark.fault("F14")
async def test_power_cuts_of_real_machines_change_nothing_in_the_result(
    tmp_path: Path, library: Path
) -> None:
    cases = CUTS[: trials(change=2, nightly=6, release=6)]
    async with running(tmp_path, watched=library) as run:
        assert run.disk is not None
        for fault, who, arm, dark in cases:
            run.supervised = False
            await run.restart(who, arm)
            await run.submit()
            await run.ended(who)
            assert any(path.endswith("coordinator.db-wal") for _, path in run.disk.flushed())
            await run.kill(*dark)
            for name in dark:
                run.disk.power_cut(Cut.ALL, folder=state_of(run.plan, name).parent)
            run.ends, began, run.supervised = 0, time.monotonic(), True
            await run.finish()
            assert run.ends == len(dark)
            took = time.monotonic() - began
            record(fault, trials=1, failures=0, power_cuts=len(dark), to_finish_s=round(took, 2))
        await run.submit()
        assert len(set(await run.finish())) == 1
        assert run.lines(COORDINATOR, "round.voided") == []


# --- full disks -------------------------------------------------------------------------------

FULL: Final = ("coordinator.spool.before_write=pause@6", "coordinator.sum.before=pause@2",
               "coordinator.object.after=pause@3")  # fmt: skip
"""Where the coordinator stops, and finds its disk full when it goes on: C2, C4 and C5."""


@pytest.mark.fault("F36")
async def test_a_coordinator_whose_disk_is_full_waits_answers_and_goes_on_by_itself(
    tmp_path: Path,
) -> None:
    """While uploads come, a sum is opened and a round is closed; no receipt is false."""
    async with running(tmp_path, small=COORDINATOR, arms={COORDINATOR: ",".join(FULL)}) as run:
        state = state_of(run.plan, COORDINATOR)
        await run.submit()
        for _ in FULL:
            async with _full_when_stopped(run):
                await until(run.not_ready)
                assert "the disk is full" in run.not_ready()
                await _answers(run)
                assert recorded(state)[-1].what == "full"
            await until(lambda: recorded(state)[-1].what == "room")
        began = time.monotonic()
        await run.finish()
        await until(lambda: not run.not_ready())
        took = time.monotonic() - began
        await run.until(COORDINATOR, "run.finished", len(run.runs))
        with full(state):
            await _only_reads(run)
        await run.submit()
        assert len(set(await run.finish())) == 1
        assert run.ends == 0, "it had to be started again"
        assert run.lines(COORDINATOR, "internal.error") == []
        kinds = [one.what for one in recorded(state)]
        assert kinds == ["full", "room"] * (len(kinds) // 2)
        record("F36", trials=len(FULL) + 1, failures=0, restarts=run.ends, false_receipts=0,
               to_finish_s=round(took, 2))  # fmt: skip


@pytest.mark.fault("F36")
async def test_a_coordinator_that_is_started_on_a_full_disk_waits_and_begins_by_itself(
    tmp_path: Path,
) -> None:
    """After `kill -9`, after an orderly end, and with SIGTERM as the way out of the wait."""
    async with running(tmp_path, small=COORDINATOR) as run:
        run.supervised = False
        state = state_of(run.plan, COORDINATOR)
        await run.submit()
        for number, end in enumerate((signal.SIGKILL, signal.SIGTERM), 1):
            run.signal(COORDINATOR, end)
            await run.ended(COORDINATOR)
            with full(state):
                await run.start(COORDINATOR)
                await run.until(COORDINATOR, "state.failed", 2 * number - 1)
                line = run.lines(COORDINATOR, "state.failed")[-1]
                assert line["name"] == "DISK"
                assert "are free in state" in line["detail"]
                run.signal(COORDINATOR, signal.SIGTERM)
                await run.ended(COORDINATOR)
                assert run.federation.children[COORDINATOR].ended.result() == 0
                await run.start(COORDINATOR)
                await run.until(COORDINATOR, "state.failed", 2 * number)
            await run.until(COORDINATOR, "service.started", number + 1)
            await until(lambda: recorded(state)[-1].what == "room")
            assert len(run.lines(COORDINATOR, "state.failed")) == 2 * number, "one line a start"
            assert len(run.lines(COORDINATOR, "state.room")) == number
        assert len(set(await run.finish())) == 1
        assert run.lines(COORDINATOR, "service.failed") == []
        record("F36", trials=4, failures=0, restarts=run.ends, false_receipts=0)


@asynccontextmanager
async def _full_when_stopped(run: Run) -> AsyncIterator[None]:
    await run.stopped(COORDINATOR)
    with full(state_of(run.plan, COORDINATOR)):
        run.signal(COORDINATOR, signal.SIGCONT)
        yield


async def _answers(run: Run) -> None:
    """What only reads is answered, from the coordinator and beside it; all receipts are true."""
    async with run.client() as client:
        status = await client.status()
        assert {site.site for site in status.sites} == set(SITES)
        assert [view.run_id for view in await client.runs()] == run.runs
    config = CoordinatorConfig.read(run.plan.coordinator_folder / "coordinator.yaml")
    owner = Owner("coordinator", config.federation, COORDINATOR)
    (found,) = examine(config, owner, None)
    assert found.full
    assert any("Free space" in line for line in found.advice)
    assert not found.damaged
    with snapshot(config) as store:
        (known,) = read_runs(store, config.federation, roster_of(config))
    current = known.state.round
    stored = {site_name(upload.sender) for upload in current.uploads} if current else set()
    told = {site for site in SITES for line in run.lines(site, "upload.finished")
            if current is not None and line["round"] == current.r}  # fmt: skip
    assert told <= stored, "a receipt for what is not stored"


async def _only_reads(run: Run) -> None:
    """Without room a released model is still read, and nothing new begins."""
    async with run.client() as client:
        with pytest.raises(StateError, match="Writing to disk failed"):
            await run.submit()
        manifest = Manifest.from_json((await client.release(run.runs[0])).manifest)
        address = Sha256(bytes.fromhex(manifest.files[0].sha256))
        size = sum([len(piece.data) async for piece in client.download(address)])
        assert size == manifest.files[0].size
        assert len(await client.runs()) == len(run.runs)


AT_A_NODE: Final = {
    "N2, training": "",
    "N3, sealing": "node.vector.before_write=pause@2",
    "N6, a new model": "node.model.before_write=pause@2",
}
"""When a hospital's disk is full: as soon as it trains, or where it stops."""


@pytest.mark.fault("F37")
async def test_a_node_whose_disk_is_full_sends_nothing_and_comes_back_when_there_is_room(
    tmp_path: Path,
) -> None:
    """It says so, the others' rounds go on, and nothing truncated is sent."""
    async with running(tmp_path, small="north", gather="1s") as run:
        for number, arm in enumerate(AT_A_NODE.values()):
            if arm:
                await run.restart("north", arm)
            trained, said = _trainings(run), _disk_lines(run)
            # Of one study no model may have two sets, in whatever run (protocol, 10.4).
            await run.submit(f"study-{number}")
            if arm:
                await run.stopped("north")
            else:
                await _more(_trainings, run, trained)
            with full(state_of(run.plan, "north")):
                run.signal("north", signal.SIGCONT)
                await _more(_disk_lines, run, said)
                await run.until(COORDINATOR, "model.published", len(run.runs))
            await run.finish()
        # An upload that comes after its round is late, which is something else.
        refused = [line for line in run.lines(COORDINATOR, "call.refused")
                   if line["method"] != "Session" and line["name"] != "OUT_OF_TURN"]  # fmt: skip
        assert refused == [], "something truncated was sent"
        assert run.lines("north", "internal.error") == []
        missing = [line for line in run.lines(COORDINATOR, "round.closed")
                   if "north" in line.get("dropped", ())]  # fmt: skip
        record("F37", trials=len(run.runs), failures=0, truncated_updates=0,
               rounds_without_it=len(missing), restarts=run.ends)  # fmt: skip


async def _more(count: Callable[[Run], int], run: Run, than: int) -> None:
    await until(lambda: count(run) > than)


def _trainings(run: Run) -> int:
    return sum(line["kind"] == "train" for line in run.lines("north", "round.training"))


def _disk_lines(run: Run) -> int:
    """Return how often the node said that it is not able, for want of room."""
    events = ("state.failed", "member.gone", "model.refused", "call.failed")
    return sum(line.get("name") == "DISK" for event in events for line in run.lines("north", event))
