"""A federation of real processes over mutual TLS, each hospital's road through its own proxy.

    async with Network(tmp_path, rounds=2, size=3 * CHUNK_WORDS) as net:
        run = await net.submit()
        net.proxies["va"].hold()                      # a partition
        lost = await net.log.until("link.lost", site="va")
        net.proxies["va"].go_on()
        view = await net.finish(run)                  # and every sum was exact

Hospitals contribute the pattern of `common.models.vector`, so the exact integer sum of any set
of them is known: `finish` compares it with what the signed manifest says was opened.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from common.certificates import Role
from common.clock import ManualClock, SystemClock
from common.identity import Identity, load_identity
from common.ids import RunId
from common.manifest import Manifest
from common.pki import issue
from common.study import Study, canonical_json, parse_study
from common.views import RunPhase, RunView
from researcher.bench import expected_sum
from researcher.client import Client
from researcher.local import FederationPlan, LocalFederation, SitePlan, build, free_address
from tests.faults.proxy import Proxy
from tests.federation import NAME, OWNER, SITES, pattern_study

CHUNK: Final = 1 << 20
CHUNK_WORDS: Final = CHUNK // 4
PATIENCE_S: Final = 60.0
_TURN_S: Final = 0.02

BEAT_S: Final = 1.0
"""Heartbeats of the scaled tests: a peer is silent after three."""

TIMING: Final = {
    "enrolment_grace": "20s", "setup": "5s", "gather": "10s", "release": "10s", "heartbeat": "1s",
}  # fmt: skip
"""A coordinator that waits for all: who is cut off for a moment is still in the next round."""

Line = dict[str, Any]


def study_of(*, size: int, rounds: int, deadline: str) -> Study:
    """Return a study whose hospitals add a pattern of `size` numbers."""
    text = pattern_study(size=size, rounds=rounds, deadline=deadline)
    return parse_study(text.replace(OWNER, "uni-x"))


def at(line: Line) -> float:
    """Return the Unix time of a line."""
    return datetime.fromisoformat(line["time"]).timestamp()


class Log:
    """One process's log as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._passed = 0

    def _all(self) -> list[Line]:
        text = self.path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def forget(self) -> None:
        """Look only at what is written from now on."""
        self._passed = len(self._all())

    def lines(self, event: str, **fields: object) -> list[Line]:
        """Return the lines of an event with these fields."""
        found = [line for line in self._all()[self._passed :] if line["event"] == event]
        return [line for line in found if all(line.get(k) == v for k, v in fields.items())]

    async def until(self, event: str, patience_s: float = PATIENCE_S, **fields: object) -> Line:
        """Return the first such line, waiting for it."""
        try:
            async with asyncio.timeout(patience_s):
                while not (found := self.lines(event, **fields)):  # noqa: ASYNC110 - a file
                    await asyncio.sleep(_TURN_S)
        except TimeoutError:
            words = self.path.read_text(encoding="utf-8")[-3000:]
            raise AssertionError(f"no {event} {fields} in {self.path.name}:\n{words}") from None
        return found[0]


async def until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait for something that a test sees from outside."""
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(_TURN_S)


async def start_fresh(
    arguments: list[str], folder: Path, env: Mapping[str, str], words: Path, *before: str
) -> asyncio.subprocess.Process:
    """Start `fedcare ARGUMENTS` in an interpreter of its own, behind the words `before`."""
    words.parent.mkdir(parents=True, exist_ok=True)
    program = "import sys; from common.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [*before, sys.executable, "-P", "-c", program, *arguments]
    with words.open("ab") as out:
        return await asyncio.create_subprocess_exec(
            *command, cwd=folder, env=dict(env), stdin=asyncio.subprocess.DEVNULL, stdout=out,
            stderr=out,
        )  # fmt: skip


async def end(process: asyncio.subprocess.Process) -> None:
    """Ask a process to end, and wait for it; kill it if it does not."""
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 8.0)
        except TimeoutError:
            process.kill()
            await process.wait()


class Network:
    """See the module. Start it with `LOG_FORMAT=json` in the environment."""

    def __init__(
        self,
        root: Path,
        *,
        size: int = 300,
        rounds: int = 1,
        deadline: str = "60s",
        timing: Mapping[str, str] = TIMING,
        stay_away: frozenset[str] = frozenset(),
        coordinator: Mapping[str, str] | None = None,
        old_s: float = 0.0,
    ) -> None:
        """`coordinator`: the environment of its process, which is then a fresh one.

        `old_s`: so long ago every certificate was issued.
        """
        self.study = study_of(size=size, rounds=rounds, deadline=deadline)
        sites = [SitePlan(site) for site in SITES]
        self.plan = FederationPlan(root, NAME, self.study, sites, timing)
        self.address = free_address()
        build(self.plan, self.address, ManualClock(epoch=SystemClock().unix() - old_s))
        self.proxies = {site: Proxy(self.address, seed=n) for n, site in enumerate(SITES)}
        for site, proxy in self.proxies.items():
            self.lead(site, proxy.address)
        here = [site for site in sites if site.name not in stay_away]
        started = FederationPlan(root, NAME, self.study, here, timing)
        self.federation = LocalFederation(started, self.address)
        self._coordinator = coordinator
        self.log = Log(root / "logs" / "coordinator.log")
        self.client: Client
        self._stack = AsyncExitStack()

    def lead(self, site: str, address: str, former: str | None = None) -> None:
        """Write another address of the coordinator into a hospital's policy."""
        path = self.plan.site_folder(site) / "policy.yaml"
        text = path.read_text("utf-8")
        assert (former or self.address) in text
        path.write_text(text.replace(former or self.address, address), "utf-8")

    async def __aenter__(self) -> Self:
        for proxy in self.proxies.values():
            await self._stack.enter_async_context(proxy)
        await self._stack.enter_async_context(self.federation)
        if self._coordinator is None:
            await self.federation.start()
        else:
            await self._start_apart(self._coordinator)
        owner = load_identity(self.plan.researcher_folder, now_unix=SystemClock().unix())
        self.client = await self._stack.enter_async_context(Client(self.address, owner))
        return self

    async def _start_apart(self, env: Mapping[str, str]) -> None:
        """Start the coordinator in a fresh process with its own environment, then the nodes."""
        folder = self.plan.coordinator_folder
        serve = ["coordinator", "serve", "--config", "coordinator.yaml"]
        process = await start_fresh(serve, folder, env, self.log.path)
        self._stack.push_async_callback(end, process)
        await until((folder / "state" / "address").exists)
        for site in self.federation.plan.sites:
            node = ["node", "serve", "--config", "node.yaml"]
            await self.federation.children.start(site.name, node, self.plan.site_folder(site.name))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    # --- who is there ------------------------------------------------------------------------

    def log_of(self, site: str) -> Log:
        """Return a hospital's log."""
        return Log(self.plan.folder / "logs" / f"{site}.log")

    def identity(self, site: str) -> Identity:
        """Return a hospital's own identity."""
        return load_identity(self.plan.site_folder(site), now_unix=SystemClock().unix())

    def pid(self, name: str) -> int:
        """Return the process id of a hospital or of `coordinator`."""
        return self.federation.children[name].pid

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a process."""
        self.federation.children[name].process.send_signal(number)

    def issue(self, role: Role, name: str, out: Path, *hosts: str) -> None:
        """Write another certificate of the same consortium."""
        now = SystemClock().unix()
        issue(self.plan.folder / "pki", role, name, now_unix=now, hosts=hosts, days=2, out=out)

    def copy(self, site: str, name: str) -> Path:
        """Return a copy of a hospital's folder: the same certificate and state, elsewhere."""
        folder = self.plan.folder / name
        live = shutil.ignore_patterns("*.sock")
        shutil.copytree(self.plan.site_folder(site), folder, ignore=live)
        return folder

    async def models(self) -> list[str]:
        """Return the objects that the coordinator holds: the model of the moment, no other."""
        folder = self.plan.coordinator_folder / "state" / "objects"
        return sorted(path.name for path in folder.rglob("*") if path.is_file())

    def spooled(self, site: str = "va") -> int:
        """Return how much of a hospital's upload is on the coordinator's disk."""
        folder = self.plan.coordinator_folder / "state" / "spool"
        return _bytes(folder, f"*/{site}")

    def received(self, site: str = "va") -> int:
        """Return how much of a model that is on its way is on a hospital's disk."""
        return _bytes(self.plan.site_folder(site) / "state" / "models", "*.part")

    # --- a run -------------------------------------------------------------------------------

    async def submit(self) -> RunId:
        """Submit the study."""
        return (await self.client.submit(canonical_json(self.study))).run_id

    async def uploading(self, site: str, more_than: int = 0) -> None:
        """Return once that many bytes of this hospital's upload have passed."""
        await self.log.until("round.opened")
        start = self.proxies[site].up.bytes
        await until(lambda: self.proxies[site].up.bytes - start > more_than)

    async def finish(self, run_id: RunId, *, rounds: int | None = None) -> RunView:
        """Wait for the end; demand that every opened sum is its survivors', to the last word."""
        view = await self.client.run(run_id)
        async with asyncio.timeout(2 * PATIENCE_S):
            async for seen in self.client.watch(run_id):
                view = seen
        assert view.state is RunPhase.FINISHED, view.reason
        manifest = Manifest.from_json((await self.client.release(run_id)).manifest)
        assert len(manifest.rounds) == (self.study.federation.rounds if rounds is None else rounds)
        for entry in manifest.rounds:
            assert entry.sum_sha256 == expected_sum(self.study, entry), f"round {entry.r}"
        return view


def _bytes(folder: Path, pattern: str) -> int:
    """Return how many bytes the files hold; one that is gone meanwhile holds none."""
    total = 0
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def everybody(view: RunView) -> bool:
    """Say whether all hospitals are in every round's sum."""
    return all(sorted(entry.survivors) == sorted(SITES) for entry in view.history)
