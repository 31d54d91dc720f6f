"""A federation of real processes on real mTLS, and run after run of the indicator task on it.

    with federation_at(folder) as federation:
        await federation.begin()
        runs = Runs(federation)
        await runs.one(study_of("indicator-1", SMALL, private=False))
        await runs.compare(all_of_them=True)

Processes are forks of `tests.zygote`, each start with a log file of its own. What was logged is
read as it grows; `tests.faults.checker` compares what a run left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from common.clock import SystemClock
from common.errors import FedError
from common.failpoints import VARIABLE
from common.identity import Identity, load_identity
from common.study import Study, canonical_json, parse_study
from coordinator.store import default_url
from researcher.client import Client
from researcher.local import (
    FederationPlan,
    SitePlan,
    build,
    coordinator_file,
    free_address,
    policy_file,
    write,
)
from researcher.processes import environment
from tests.faults.checker import COORDINATOR, Checker
from tests.faults.kills import NODE_PHASES, PHASES, coordinator_phase
from tests.federation import NAME, OWNER, SITES
from tests.zygote import Child, Zygote

PRELOADED: Final = ("hospital_node.grpc_link", "alembic.command", "sqlite3", "numpy",
                    "sqlalchemy.dialects.sqlite", "sqlalchemy.dialects.postgresql.psycopg",
                    "common.privacy.accountant", "hospital_node.private.source",
                    "dp_accounting")  # fmt: skip

SMALL: Final = 2_000
BIG: Final = 300_000
"""Two chunks of an upload, two pieces of a download."""

ROUNDS: Final = 3
STUDY: Final = """\
schema: fedcare.study/v1
id: ID
purpose: research
dataset: none
owner: {name: A, organisation: OWNER}
features: [{name: x, type: float}]
target: {type: binary, name: y}
model: {kind: vector, size: SIZE, pattern: indicator}
normalise: none
federation: {weights: equal, rounds: ROUNDS, min_sites: 3, round_deadline: 20s}
privacy:
  secure_aggregation: {colluders: 1, suite: classical}
  dp: DP
"""
PRIVATE: Final = "{mode: hospital, epsilon: 2.0, delta: 1.0e-5, clip: 1.0, spare_rounds: 60}"
TIMING: Final = {"enrolment_grace": "1s", "setup": "5s", "gather": "300ms", "release": "2s",
                 "heartbeat": "1s"}  # fmt: skip

MOST_RUN_S: Final = 300.0
"""A run that takes longer than this, whatever is killed meanwhile, is stuck."""
MOST_TOLD_S: Final = 120.0
"""So long after its end every hospital of a run has its release."""
START_S: Final = 60.0
_TURN_S: Final = 0.01


# --- the processes -----------------------------------------------------------------------------


@dataclass(slots=True)
class Process:
    """A service: its present child, and how often it was started."""

    name: str
    child: Child | None = None
    starts: int = 0
    died: float = 0.0
    """Monotonic seconds of its last death."""
    last: str = ""
    """The last event of its log that tells how far it is."""
    phase: str = ""
    """In which the run was when it died, by the coordinator's store."""
    up: bool = False
    """Its log says that it serves, or is connected."""


class Disagreement(Exception):
    """The witnesses disagree, or nothing goes on any more."""


class Federation:
    """The processes of one folder; a context manager that ends them all."""

    def __init__(self, folder: Path, zygote: Zygote, store: str | None = None) -> None:
        """`store`: the URL of the coordinator's database, its own by default."""
        self.folder = folder
        self._zygote = zygote
        self.processes = {name: Process(name) for name in (COORDINATOR, *SITES)}
        if not (folder / "pki").exists():
            _build(folder, store)
        self.address = json.loads((folder / "harness.json").read_text())["address"]
        state = folder / COORDINATOR / "state"
        self.url = store or default_url(state)
        self._checker: Checker | None = None
        self.told: Counter[str] = Counter()
        """Events of all logs so far."""
        self.identity: Identity = load_identity(
            folder / "researcher", now_unix=SystemClock().unix()
        )

    @property
    def checker(self) -> Checker:
        """What compares; made when the store is there."""
        if self._checker is None:
            self._checker = Checker(self.folder, self.url, NAME, SITES)
        return self._checker

    def close(self) -> None:
        """Kill what still runs."""
        for one in self.processes.values():
            with contextlib.suppress(Disagreement):  # the first one was told
                self.kill(one)
        if self._checker is not None:
            self._checker.close()

    def start(self, name: str, armed: str = "") -> Process:
        """Start a process; `armed` is what `FEDCARE_FAILPOINTS` says."""
        one = self.processes[name]
        known = [int(path.name.split(".")[1]) for path in self._logs().glob(f"{name}.*.log")]
        one.starts = max([one.starts, *known]) + 1
        folder = self.folder / (COORDINATOR if name == COORDINATOR else f"sites/{name}")
        role, config = ("coordinator", "coordinator.yaml") if name == COORDINATOR else (
            "node", "node.yaml")  # fmt: skip
        words = self._logs() / f"{name}.{one.starts}.log"
        env = {**environment(), "LOG_FORMAT": "json"} | ({VARIABLE: armed} if armed else {})
        one.up, one.last = False, ""
        one.child = self._zygote.start(
            [role, "serve", "--config", config], folder, env, words, words
        )
        return one

    def _logs(self) -> Path:
        return self.folder / "logs"

    def kill(self, one: Process) -> None:
        """`kill -9`; what it logged last is read."""
        if one.child is not None:
            one.child.kill()
            one.child.wait(START_S)
            self._gone(one)

    def _gone(self, one: Process) -> None:
        one.died = time.monotonic()
        one.child = None
        self.look()
        if self._checker is None:
            return
        if one.name == COORDINATOR and (problems := self.checker.unbacked()):
            raise Disagreement("\n".join(problems))
        runs = self.checker.runs()
        stored = self.checker.stored(runs[-1].run_id) if runs else None
        one.phase = coordinator_phase(None if stored is None else stored.state)

    def dead(self, one: Process) -> bool:
        """Whether a process has ended by itself, as ordered; anything but SIGKILL is an error."""
        code = None if one.child is None else one.child.poll()
        if code is None:
            return False
        self._gone(one)
        if code != -signal.SIGKILL:
            raise Disagreement(f"{one.name} ended by itself ({code}); see its log {one.starts}")
        return True

    def look(self) -> None:
        """Read what was logged."""
        for name, line in self.checker.read():
            event, one = line["event"], self.processes[name]
            self.told[f"{name} {event}"] += 1
            if event in PHASES or event in NODE_PHASES:
                one.last = event
            one.up |= event == ("service.started" if name == COORDINATOR else "link.connected")
        if self.checker.bugs:
            raise Disagreement(self.checker.bugs[0])

    async def back(self, one: Process) -> bool:
        """Wait until a process serves, or is connected, again; False: it died before.

        A coordinator serves when it has answered a call over mTLS.
        """
        patience = time.monotonic() + START_S
        while not one.up:
            await asyncio.sleep(_TURN_S)
            self.look()
            if self.dead(one):
                return False
            if time.monotonic() > patience:
                raise Disagreement(f"{one.name} is not back after {START_S:g} s")
        if one.name != COORDINATOR:
            return True
        while not await self._answers():
            if self.dead(one):
                return False
            if time.monotonic() > patience:
                raise Disagreement(f"{one.name} does not answer after {START_S:g} s")
        return True

    async def _answers(self) -> bool:
        async with Client(self.address, self.identity, attempts=1) as client:
            with _coordinator_may_be_gone():
                await client.status()
                return True
        return False

    async def begin(self) -> None:
        """Start all of them, and wait until they are there."""
        await self.back(self.start(COORDINATOR))
        for site in SITES:
            self.start(site)
        for site in SITES:
            await self.back(self.processes[site])


def _build(folder: Path, store: str | None) -> None:
    plan = FederationPlan(folder, NAME, study_of("none", SMALL, private=False),
                          [SitePlan(site) for site in SITES], TIMING)  # fmt: skip
    address = free_address()
    build(plan, address)
    write(folder / COORDINATOR / "coordinator.yaml",
          {**coordinator_file(plan, address), "store": store})  # fmt: skip
    for site in SITES:
        path = plan.site_folder(site) / "policy.yaml"
        ca = _pinned(path.read_text())
        rules = policy_file(plan, site, ca, address)
        rules["require"]["dp"] = {
            "modes": ["none", "hospital"], "epsilon_per_study": 3.0, "epsilon_total": 1000.0,
            "delta": 1e-5, "max_clip": 1.0,
        }  # fmt: skip
        write(path, rules)
    (folder / "logs").mkdir()
    (folder / "harness.json").write_text(json.dumps({"address": address}))


def _pinned(text: str) -> str:
    return next(line.split(":")[1].strip() for line in text.splitlines() if "ca_sha256" in line)


def study_of(name: str, size: int, *, private: bool) -> Study:
    """Return one study of the indicator task; `name` is its id."""
    values = {"ID": name, "SIZE": str(size), "ROUNDS": str(ROUNDS), "OWNER": OWNER,
              "DP": PRIVATE if private else "{mode: none}"}  # fmt: skip
    text = STUDY
    for key, value in values.items():
        text = text.replace(key, value)
    return parse_study(text)


@contextmanager
def _coordinator_may_be_gone() -> Iterator[None]:
    """Forgive that it could not be asked; whoever asks does so again."""
    try:
        yield
    except FedError as failure:
        if failure.name not in ("UNREACHABLE", "DEADLINE", "TLS_REFUSED"):  # it died in a handshake
            raise


@contextmanager
def federation_at(folder: Path, store: str | None = None) -> Iterator[Federation]:
    """Yield a federation on `folder`, whose processes end with the block."""
    zygote = Zygote(*PRELOADED)
    federation = Federation(folder, zygote, store)
    try:
        yield federation
    finally:
        federation.close()
        zygote.close()


# --- runs that go on meanwhile -------------------------------------------------------------------


@dataclass(slots=True)
class Runs:
    """Run after run of the indicator task, each compared once all hospitals have its release."""

    federation: Federation
    big: bool = False
    """Every run is a big one, not only every fifth."""
    done: int = 0
    compared: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    _waiting: dict[str, float] = field(default_factory=dict)
    """Runs that ended and are not compared yet, and when they ended."""
    _stop: bool = False

    async def go_on(self) -> None:
        """Submit, wait, compare, until `stop`; first wait for what an earlier command began."""
        for run in self.federation.checker.runs():
            if run.run_id not in self.compared:
                await self._end(run.run_id, time.monotonic() + MOST_RUN_S)
        while not self._stop:
            number = sum(1 for _ in self.federation.checker.runs()) + 1
            size = BIG if self.big or number % 5 == 0 else SMALL
            await self.one(study_of(f"indicator-{number}", size, private=number % 6 == 0))
            await self.compare()

    def stop(self) -> None:
        """End after the run that is open."""
        self._stop = True

    async def one(self, study: Study) -> str:
        """Run one study to its end, whoever dies meanwhile; return the run's id."""
        content, run_id, patience = canonical_json(study), "", time.monotonic() + MOST_RUN_S
        while not run_id:
            async with self._asking() as client:
                with _coordinator_may_be_gone():
                    run_id = (await client.submit(content, f"{study.id}-1")).run_id
            await self._pause(patience, study.id)
        self.acknowledged.append(run_id)
        await self._end(run_id, patience)
        return run_id

    async def _end(self, run_id: str, patience: float) -> None:
        ended = False
        while not ended:
            async with self._asking() as client:
                with _coordinator_may_be_gone():
                    while not (await client.run(run_id)).state.final:
                        await self._pause(patience, run_id)
                    ended = True
            await self._pause(patience, run_id)
        self.done += 1
        self._waiting[run_id] = time.monotonic()

    def _asking(self) -> Client:
        return Client(self.federation.address, self.federation.identity, attempts=1)

    async def _pause(self, patience: float, name: str) -> None:
        if time.monotonic() > patience:
            raise Disagreement(f"the run of {name} did not end in {MOST_RUN_S:g} s")
        await asyncio.sleep(0.1)

    async def compare(self, *, all_of_them: bool = False) -> None:
        """Compare the runs whose release every hospital has; wait for `all_of_them`."""
        checker = self.federation.checker
        while self._waiting:
            for run_id, ended in list(self._waiting.items()):
                members = checker.members(run_id)
                missing = [site for site in members if not checker.told(run_id, site)]
                if missing and time.monotonic() - ended < MOST_TOLD_S:
                    continue
                del self._waiting[run_id]
                if problems := checker.problems(run_id):
                    raise Disagreement("\n".join(problems))
                self.compared.append(run_id)
            if not all_of_them:
                return
            await asyncio.sleep(0.1)

    def lost(self) -> list[str]:
        """Return the acknowledged submissions that the store does not have."""
        stored = {run.run_id for run in self.federation.checker.runs()}
        return [run_id for run_id in self.acknowledged if run_id not in stored]
