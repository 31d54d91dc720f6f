"""Real processes over mutual TLS whose disks lose what was not flushed, or are full.

A coordinator and four hospitals run a study; where the case says, a process kills itself, and
its machine, or every machine, loses its power (F06, F13, F14). Or a state directory is a small
tmpfs that is filled while a round is open, and has room again later (F36, F37). A supervisor,
as systemd would be, starts what has ended. The run finishes with the undisturbed model.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from common.clock import SystemClock
from common.identity import load_identity
from common.study import canonical_json
from researcher.client import Client
from researcher.local import FederationPlan, LocalFederation, SitePlan, build, free_address
from tests import forked
from tests.faults import lostwrites
from tests.faults.budget import trials
from tests.faults.lostwrites import Cut, Disk
from tests.faults.record import record
from tests.small_study import small_study, write_table
from tests.zygote import Zygote

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not lostwrites.can_build(), reason="needs gcc"),
]

COORDINATOR: Final = "coordinator"
SITES: Final = ("east", "north", "south", "west")
TIMING: Final = {"enrolment_grace": "5s", "setup": "10s", "heartbeat": "2s"}
PATIENCE_S: Final = 60.0
ROOM: Final = 8 << 20


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


@dataclass
class Run:
    """A federation of real processes with a study that runs in it."""

    federation: LocalFederation
    plan: FederationPlan
    address: str
    disk: Disk | None = None
    ends: int = 0
    """Processes that ended by themselves and were started again."""
    supervised: bool = True
    arms: dict[str, str] = field(default_factory=dict)

    async def start(self, name: str) -> None:
        arm = self.arms.pop(name, "")
        with pytest.MonkeyPatch.context() as patch:
            if arm:
                patch.setenv("FEDCARE_FAILPOINTS", arm)
            if self.disk is not None:
                for variable, value in self.disk.environment().items():
                    patch.setenv(variable, value)
            if name == COORDINATOR:
                arguments = ["coordinator", "serve", "--config", "coordinator.yaml"]
                folder = self.plan.coordinator_folder
            else:
                arguments = ["node", "serve", "--config", "node.yaml"]
                folder = self.plan.site_folder(name)
            await self.federation.children.start(name, arguments, folder)

    async def kill(self, *names: str) -> None:
        for name in names:
            self.federation.children[name].process.send_signal(signal.SIGKILL)
        for name in names:
            await self.federation.children[name].ended

    async def supervise(self) -> None:
        """Start again what has ended, as long as this is wanted."""
        while True:
            await asyncio.sleep(0.3)
            for name in (COORDINATOR, *SITES):
                if self.supervised and self.federation.children[name].ended.done():
                    self.ends += 1
                    await self.start(name)

    def lines(self, name: str, event: str) -> list[dict[str, Any]]:
        text = self.federation.children[name].words.read_text("utf-8")
        found = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        return [line for line in found if line["event"] == event]

    async def until(self, name: str, event: str, count: int = 1) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.lines(name, event)) < count:  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.05)

    async def finish(self) -> str:
        """Wait for the release at every hospital; return the digest of its model."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self._released()) < len(SITES):  # noqa: ASYNC110 - files
                await asyncio.sleep(0.05)
        digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in self._released()}
        assert len(digests) == 1, "hospitals hold different models"
        return digests.pop()

    def _released(self) -> list[Path]:
        return list(self.plan.folder.glob("sites/*/state/releases/small-*/model.safetensors"))


@asynccontextmanager
async def running(
    folder: Path,
    *,
    watched: Path | None = None,
    arms: dict[str, str] | None = None,
    small: str | None = None,
    gather: str = "20s",
) -> AsyncIterator[Run]:
    """Start a federation and submit a study.

    `watched` is the lost-write library; `small` names whose state is on a small disk. A
    hospital that is on its way back is waited for as long as `gather` says.
    """
    study = small_study(3, 3, deadline="20s", local_steps=20)
    tables = [SitePlan(site, write_table(folder / f"{site}.csv", at))
              for at, site in enumerate(SITES)]  # fmt: skip
    plan = FederationPlan(folder / "fed", "heart", study, tables, {**TIMING, "gather": gather})
    address = free_address()
    build(plan, address)
    disk = None if watched is None else Disk(plan.folder, folder / "log", watched)
    state = contextlib.nullcontext() if small is None else small_disk(state_of(plan, small))
    with state:
        async with LocalFederation(plan, address) as federation:
            run = Run(federation, plan, address, disk, arms=arms or {})
            for name in (COORDINATOR, *SITES):
                await run.start(name)
            await run.until(COORDINATOR, "service.started")
            await _submit(run)
            watch = asyncio.create_task(run.supervise())
            try:
                yield run
            finally:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)


def state_of(plan: FederationPlan, name: str) -> Path:
    """Return where a process' state is."""
    folder = plan.coordinator_folder if name == COORDINATOR else plan.site_folder(name)
    return folder / "state"


async def _submit(run: Run) -> None:
    me = load_identity(run.plan.researcher_folder, now_unix=SystemClock().unix())
    async with Client(run.address, me) as client:
        await client.submit(canonical_json(run.plan.study))


_UNDISTURBED: list[str] = []


async def undisturbed(folder: Path) -> str:
    """Return the digest of the model of a run to which nothing happens."""
    if not _UNDISTURBED:
        (folder / "undisturbed").mkdir()
        async with running(folder / "undisturbed") as run:
            _UNDISTURBED.append(await run.finish())
    return _UNDISTURBED[0]


CUTS: Final = (
    ("F14", COORDINATOR, "coordinator.receipt=kill@7", (COORDINATOR, *SITES)),
    ("F13", "north", "node.vector.after=kill@3", ("north",)),
    ("F06", COORDINATOR, "coordinator.facts.after_commit=kill@25", (COORDINATOR,)),
    ("F06", COORDINATOR, "coordinator.object.after=kill@3", (COORDINATOR,)),
    ("F14", COORDINATOR, "coordinator.send=kill@60", (COORDINATOR, *SITES)),
    ("F14", "west", "node.receipt=kill@2", (COORDINATOR, *SITES)),
)


@pytest.mark.fault("F14")
@pytest.mark.parametrize("case", CUTS[: trials(change=2, nightly=6, release=6)], ids=str)
async def test_a_power_cut_of_real_machines_changes_nothing_in_the_result(
    tmp_path: Path, library: Path, case: tuple[str, str, str, tuple[str, ...]]
) -> None:
    fault, who, arm, dark = case
    expected = await undisturbed(tmp_path)
    async with running(tmp_path, watched=library, arms={who: arm}) as run:
        assert run.disk is not None
        run.supervised = False
        async with asyncio.timeout(PATIENCE_S):
            await run.federation.children[who].ended
        assert any(path.endswith("coordinator.db-wal") for _, path in run.disk.flushed())
        await run.kill(*dark)
        for name in dark:
            run.disk.power_cut(Cut.ALL, folder=state_of(run.plan, name).parent)
        began = time.monotonic()
        run.supervised = True
        assert await run.finish() == expected
        took = time.monotonic() - began
        assert run.ends == len(dark)
        assert run.lines(COORDINATOR, "round.voided") == []
        record(fault, trials=1, failures=0, power_cuts=len(dark), to_finish_s=round(took, 2))


# --- small disks ------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a tmpfs of a few MiB at `folder`; skip the test where that is not allowed."""
    folder.mkdir(parents=True, mode=0o700)
    options = f"size={ROOM},mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "fedcare-small-disk", str(folder)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


def fill(folder: Path) -> Path:
    """Leave no room on the disk of `folder`."""
    filler = folder / "lost+found"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0")
    return filler


FULL_S: Final = 2.0
"""How long there is no room after the process has met it."""


def _has_met_it(run: Run) -> bool:
    """Whether the coordinator has come to the end of its room, and says so."""
    words = run.federation.children[COORDINATOR].words.read_text("utf-8")
    return "No space left" in words or "database or disk is full" in words


@pytest.mark.fault("F36")
async def test_a_coordinator_without_room_acknowledges_nothing_and_goes_on_when_there_is_some(
    tmp_path: Path,
) -> None:
    """The run waits, and ends with the undisturbed model: no receipt was false."""
    expected = await undisturbed(tmp_path)
    async with running(tmp_path, small=COORDINATOR) as run:
        await run.until(COORDINATOR, "round.closed")
        filler = fill(state_of(run.plan, COORDINATOR))
        async with asyncio.timeout(PATIENCE_S):
            while not _has_met_it(run):  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.1)
        closed = len(run.lines(COORDINATOR, "round.closed"))
        await asyncio.sleep(FULL_S)
        assert len(run.lines(COORDINATOR, "round.closed")) == closed, "it wrote without room"
        filler.unlink()
        began = time.monotonic()
        assert await run.finish() == expected
        took = time.monotonic() - began
        assert run.lines(COORDINATOR, "internal.error") == []
        record("F36", trials=1, failures=0, restarts=run.ends, to_finish_s=round(took, 2))


@pytest.mark.fault("F37")
async def test_a_node_without_room_sends_nothing_and_comes_back_when_there_is_some(
    tmp_path: Path,
) -> None:
    """The others' rounds go on; no truncated update is sent; nobody has to restart it by hand."""
    async with running(tmp_path, small="north", gather="1s") as run:
        await run.until("north", "round.training")
        filler = fill(state_of(run.plan, "north"))
        await run.until(COORDINATOR, "round.closed", 2)
        filler.unlink()
        await run.finish()
        closed = run.lines(COORDINATOR, "round.closed")
        assert run.lines(COORDINATOR, "call.refused") == [], "something truncated was sent"
        said = [line["name"] for line in run.lines("north", "state.failed")]
        assert "DISK" in said
        assert run.lines("north", "internal.error") == []
        missing = [line["round"] for line in closed if "north" in line.get("dropped", ())]
        record("F37", trials=1, failures=0, rounds_without_it=len(missing), restarts=run.ends)
