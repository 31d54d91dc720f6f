"""A federation of real processes whose disks lose what was not flushed, or are full.

    async with running(folder, small="north") as run:
        await run.submit()
        ... await run.finish()

A coordinator and four hospitals run one study, again and again as it is asked for. A process may
be armed to kill or to stop itself at a failpoint; its state directory may be a small tmpfs. A
supervisor, as systemd would be, starts what has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from common.clock import SystemClock
from common.identity import load_identity
from common.study import canonical_json
from researcher.client import Client
from researcher.local import FederationPlan, LocalFederation, SitePlan, build, free_address, write
from tests.faults.lostwrites import Disk
from tests.small_study import small_study, write_table

COORDINATOR: Final = "coordinator"
SITES: Final = ("east", "north", "south", "west")
PATIENCE_S: Final = 120.0
ROOM: Final = 8 << 20
_TIMING: Final = {"enrolment_grace": "5s", "setup": "10s", "heartbeat": "2s"}
_TURN_S: Final = 0.05


async def until(holds: Callable[[], object]) -> None:
    """Return as soon as something holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - files, and other processes
            await asyncio.sleep(_TURN_S)


@dataclass
class Run:
    """The federation, and the runs of its study."""

    federation: LocalFederation
    plan: FederationPlan
    address: str
    disk: Disk | None = None
    ends: int = 0
    """Processes that ended by themselves and were started again."""
    supervised: bool = True
    runs: list[str] = field(default_factory=list)

    async def start(self, name: str, arm: str = "") -> None:
        """Start a process; `arm`: its failpoints."""
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

    def signal(self, name: str, number: int) -> None:
        """Send a process a signal."""
        self.federation.children[name].process.send_signal(number)

    async def kill(self, *names: str) -> None:
        """End processes as `kill -9` does."""
        for name in names:
            self.signal(name, signal.SIGKILL)
        for name in names:
            await self.ended(name)

    async def ended(self, name: str) -> None:
        """Return when a process has ended."""
        async with asyncio.timeout(PATIENCE_S):
            await self.federation.children[name].ended

    async def stopped(self, name: str) -> None:
        """Return when a process has stopped itself at the failpoint it is armed with."""
        stat = Path(f"/proc/{self.federation.children[name].process.pid}/stat")
        await until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    async def supervise(self) -> None:
        """Start again what has ended, as long as this is wanted."""
        while True:
            await asyncio.sleep(0.3)
            for name in (COORDINATOR, *SITES):
                if self.supervised and self.federation.children[name].ended.done():
                    self.ends += 1
                    await self.start(name)

    def lines(self, name: str, event: str) -> list[dict[str, Any]]:
        """Return the lines of an event that a process has logged so far."""
        text = self.federation.children[name].words.read_text("utf-8")
        found = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        return [line for line in found if line["event"] == event]

    async def until(self, name: str, event: str, count: int = 1) -> None:
        """Return when a process has logged an event so often."""
        await until(lambda: len(self.lines(name, event)) >= count)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Yield the researcher's connection."""
        me = load_identity(self.plan.researcher_folder, now_unix=SystemClock().unix())
        async with Client(self.address, me) as client:
            yield client

    async def restart(self, name: str, arm: str) -> None:
        """Kill a process and start it with failpoints; return when it is back."""
        event = "service.started" if name == COORDINATOR else "link.connected"
        before, supervised = len(self.lines(name, event)), self.supervised
        self.supervised = False
        await self.kill(name)
        await self.start(name, arm)
        self.supervised = supervised
        await self.until(name, event, before + 1)

    async def all_here(self) -> None:
        """Return when the coordinator sees every hospital."""
        async with self.client() as client, asyncio.timeout(PATIENCE_S):
            while not all(site.connected for site in (await client.status()).sites):  # noqa: ASYNC110
                await asyncio.sleep(_TURN_S)

    async def submit(self, name: str | None = None) -> None:
        """Begin another run of the study, or of one that has another name alone.

        All hospitals are there: one that came late would have no part in the first rounds.
        """
        await self.all_here()
        study = self.plan.study
        if name is not None:
            study = study.model_copy(update={"id": name})
        async with self.client() as client:
            self.runs.append((await client.submit(canonical_json(study))).run_id)

    async def finish(self) -> list[str]:
        """Wait for the release of every run at every hospital; return the models' digests."""
        await until(lambda: all(len(self._released(one)) == len(SITES) for one in self.runs))
        digests = [
            {hashlib.sha256(path.read_bytes()).hexdigest() for path in self._released(one)}
            for one in self.runs
        ]
        assert all(len(found) == 1 for found in digests), "hospitals hold different models"
        return [found.pop() for found in digests]

    def _released(self, run: str) -> list[Path]:
        return list(self.plan.folder.glob(f"sites/*/state/releases/{run}/model.safetensors"))

    def not_ready(self) -> str:
        """Return why the coordinator says that it is not ready; nothing if it is."""
        address = self.lines(COORDINATOR, "service.started")[-1]["http"]
        try:
            with urllib.request.urlopen(f"http://{address}/readyz", timeout=PATIENCE_S):
                return ""
        except urllib.error.HTTPError as error:
            return str(error.read().decode())


@asynccontextmanager
async def running(
    folder: Path,
    *,
    watched: Path | None = None,
    small: str | None = None,
    arms: dict[str, str] | None = None,
    gather: str = "20s",
) -> AsyncIterator[Run]:
    """Start a federation.

    `watched` is the lost-write library; `small` names whose state is on a small disk. A
    hospital that is on its way back is waited for as long as `gather` says.
    """
    study = small_study(2, 3, deadline="20s", local_steps=20)
    tables = [SitePlan(site, write_table(folder / f"{site}.csv", at))
              for at, site in enumerate(SITES)]  # fmt: skip
    plan = FederationPlan(folder / "fed", "heart", study, tables, {**_TIMING, "gather": gather})
    address = free_address()
    build(plan, address)
    config = plan.coordinator_folder / "coordinator.yaml"
    write(config, {**yaml.safe_load(config.read_text()), "http": "127.0.0.1:0"})
    disk = None if watched is None else Disk(plan.folder, folder / "log", watched)
    state = contextlib.nullcontext() if small is None else small_disk(state_of(plan, small))
    with state:
        async with LocalFederation(plan, address) as federation:
            run = Run(federation, plan, address, disk)
            for name in (COORDINATOR, *SITES):
                await run.start(name, (arms or {}).get(name, ""))
            await run.until(COORDINATOR, "service.started")
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


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Leave no room on the disk of `folder` inside the block."""
    filler = folder / "lost+found"
    for size, flags in ((4096, os.O_CREAT), (1, 0)):
        handle = os.open(filler, os.O_WRONLY | os.O_APPEND | flags)
        with contextlib.suppress(OSError):
            while True:
                os.write(handle, bytes(size))
        os.close(handle)
    try:
        yield
    finally:
        filler.unlink()
