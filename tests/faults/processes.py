"""Real processes over real mTLS, killed and started again while run after run goes on.

    python -m tests.faults.processes --trials 1000 --seed 7 [--store postgresql] [--folder DIR]

One coordinator and four hospitals live on the same folders for the whole campaign. Runs of the
indicator task follow one another; meanwhile one process at a time is killed, at a failpoint
that it was armed with when it started or at a random time, and is started again at once, armed
with the next one. `tests.faults.checker` compares what every run left behind; a disagreement
ends the campaign and keeps the folder. The same command on a folder that is there goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

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
from tests.faults.postgres import Postgres, why_not
from tests.faults.record import record
from tests.federation import NAME, OWNER, SITES
from tests.zygote import Child, Zygote

PRELOADED: Final = ("hospital_node.grpc_link", "alembic.command", "sqlite3", "numpy",
                    "sqlalchemy.dialects.sqlite", "sqlalchemy.dialects.postgresql.psycopg",
                    "common.privacy.accountant", "hospital_node.private.source")  # fmt: skip

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
MOST_TOLD_S: Final = 45.0
"""So long after its end every hospital of a run has its release."""
START_S: Final = 20.0
PATIENCE_S: Final = 6.0
"""A point that was not reached in this time gives way to another."""
_TURN_S: Final = 0.01

MOST_REACHES: Final[dict[str, int]] = {
    "coordinator.run": 1, "coordinator.facts": 24, "coordinator.epoch": 1,
    "coordinator.release": 1, "coordinator.end": 1, "coordinator.spool": 8,
    "coordinator.object": 4, "coordinator.sum": 3, "coordinator.send": 60,
    "coordinator.receipt": 8, "coordinator.download": 8, "node.file": 12, "node.vector": 3,
    "node.ledger": 3, "node.model": 3, "node.send": 12, "node.upload": 3, "node.receipt": 3,
}  # fmt: skip
"""How often a point of each kind is reached in about one run."""

POINTS: Final[dict[str, tuple[str, ...]]] = {
    "coordinator.run": ("before_commit", "after_commit"),
    "coordinator.facts": ("before_commit", "after_commit"),
    "coordinator.epoch": ("before_commit", "after_commit"),
    "coordinator.release": ("before_commit", "after_commit"),
    "coordinator.end": ("before_commit", "after_commit"),
    "coordinator.spool": ("before_write", "after_write", "before_fsync", "after_fsync"),
    "coordinator.object": ("before_write", "before_fsync", "before_rename", "after"),
    "coordinator.sum": ("before",),
    "coordinator.send": (),
    "coordinator.receipt": (),
    "coordinator.download": (),
    "node.file": ("before_write", "before_fsync", "before_rename", "after"),
    "node.vector": ("before_write", "before_fsync", "before_rename", "after"),
    "node.ledger": ("before_write", "before_fsync", "after"),
    "node.model": ("before_write", "before_rename", "after"),
    "node.send": (),
    "node.upload": (),
    "node.receipt": (),
}
"""Every point that a run without other failures passes."""


# --- what is done ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Strike:
    """One kill: of `who`, at its reach `at` of a point, or (no point) after `at` seconds."""

    who: str
    point: str = ""
    at: float = 0.0

    @property
    def armed(self) -> str:
        """What the process has to be started with."""
        return f"{self.point}=kill@{self.at:g}" if self.point else ""


@dataclass(slots=True)
class Trial:
    """A kill that happened, and what followed."""

    who: str
    point: str
    fault: str
    back_s: float
    """Seconds from the death until it served, or was connected, again."""


def draw(rng: random.Random, who: str) -> Strike:
    """Return a kill at one of the process' points."""
    side = "coordinator" if who == COORDINATOR else "node"
    kind = rng.choice([kind for kind in POINTS if kind.startswith(f"{side}.")])
    steps = POINTS[kind]
    point = f"{kind}.{rng.choice(steps)}" if steps else kind
    return Strike(who, point, rng.randint(1, MOST_REACHES[kind]))


_PHASES: Final = {
    "study.submitted": "F01", "run.started": "F02", "session.opened": "F02",
    "round.opened": "F03", "upload.finished": "F04", "round.proposed": "F05",
    "round.certified": "F05", "round.recovering": "F05", "round.summed": "F06",
    "round.closed": "F06", "model.published": "F07", "run.finished": "F01",
}  # fmt: skip
_NODE_PHASES: Final = {
    "link.connected": "F08", "session.ready": "F08", "download.finished": "F08",
    "round.training": "F09", "upload.started": "F11", "upload.resumed": "F11",
    "upload.finished": "F12", "round.closed": "F12", "model.accepted": "F13",
    "run.finished": "F13",
}  # fmt: skip
_POINT_FAULTS: Final = {
    "coordinator.spool": "F03", "coordinator.receipt": "F03", "coordinator.epoch": "F02",
    "coordinator.sum": "F05", "coordinator.release": "F07", "coordinator.end": "F07",
    "coordinator.download": "F07", "coordinator.run": "F01", "coordinator.object": "F06",
    "node.vector.before_write": "F09", "node.vector.before_fsync": "F09",
    "node.vector.before_rename": "F10", "node.vector.after": "F10", "node.ledger": "F09",
    "node.upload": "F11", "node.receipt": "F12", "node.model": "F13",
}  # fmt: skip


def fault_of(who: str, point: str, last: str) -> str:
    """Return which fault of the table a kill was: by its point, else by what was logged last."""
    for kind, fault in _POINT_FAULTS.items():
        if point.startswith(kind):
            return fault
    phases, usual = (_PHASES, "F01") if who == COORDINATOR else (_NODE_PHASES, "F08")
    return phases.get(last, usual)


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
        alone = one.name == COORDINATOR and self._checker is not None
        if alone and (problems := self.checker.unbacked()):
            raise Disagreement("\n".join(problems))

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
            if event in _PHASES or event in _NODE_PHASES:
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


# --- runs that go on meanwhile -------------------------------------------------------------------


@dataclass(slots=True)
class Runs:
    """Run after run of the indicator task, each compared once all hospitals have its release."""

    federation: Federation
    done: int = 0
    checked: int = 0
    acknowledged: list[str] = field(default_factory=list)
    _waiting: dict[str, float] = field(default_factory=dict)
    """Runs that ended and are not compared yet, and when they ended."""
    _stop: bool = False

    async def go_on(self) -> None:
        """Submit, wait, compare, until `stop`."""
        while not self._stop:
            number = sum(1 for _ in self.federation.checker.runs()) + 1
            size = BIG if number % 5 == 0 else SMALL
            await self.one(study_of(f"indicator-{number}", size, private=number % 3 == 0))
            await self.compare()

    def stop(self) -> None:
        """End after the run that is open."""
        self._stop = True

    async def one(self, study: Study) -> str:
        """Run one study to its end, whoever dies meanwhile; return the run's id."""
        request, patience = f"{study.id}-1", time.monotonic() + MOST_RUN_S
        content, run_id, ended = canonical_json(study), "", False
        while not ended:
            async with Client(self.federation.address, self.federation.identity,
                              attempts=1) as client:  # fmt: skip
                with _coordinator_may_be_gone():
                    if not run_id:
                        run_id = (await client.submit(content, request)).run_id
                        self.acknowledged.append(run_id)
                    while not (await client.run(run_id)).state.final:
                        await self._pause(patience, study.id)
                    ended = True
            await self._pause(patience, study.id)
        self.done += 1
        self._waiting[run_id] = time.monotonic()
        return run_id

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
                self.checked += 1
            if not all_of_them:
                return
            await asyncio.sleep(0.1)

    def lost(self) -> list[str]:
        """Return the acknowledged submissions that the store does not have."""
        stored = {run.run_id for run in self.federation.checker.runs()}
        return [run_id for run_id in self.acknowledged if run_id not in stored]


# --- the campaign --------------------------------------------------------------------------------


class Campaign:
    """Kills one process after the other; `trials` are the kills that happened."""

    def __init__(self, federation: Federation, seed: int) -> None:
        self.federation = federation
        self.runs = Runs(federation)
        self.trials: list[Trial] = []
        self.unreached: Counter[str] = Counter()
        self.chains = 0
        """How many of the seed's chains of kills are done."""
        self._seed = seed
        self._job: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the federation and have runs go on inside the block; compare all at its end."""
        await self.federation.begin()
        self._job = asyncio.create_task(self.runs.go_on())
        try:
            yield
            self.runs.stop()
            await self._job
            await self.runs.compare(all_of_them=True)
            if lost := self.runs.lost():
                raise Disagreement(f"acknowledged and not stored: {lost}")
            self.federation.kill(self.federation.processes[COORDINATOR])
            await self.federation.back(self.federation.start(COORDINATOR))
            if left := self.federation.checker.leftovers():
                raise Disagreement(f"left behind: {left}")
        finally:
            self._job.cancel()
            await asyncio.gather(self._job, return_exceptions=True)

    def check(self) -> None:
        """Raise what the runs came upon."""
        if self._job is not None and self._job.done():
            self._job.result()

    async def rounds(self, trials: int, report: Callable[[Campaign], None]) -> None:
        """Kill as the seed says until `trials` kills have happened."""
        while len(self.trials) < trials:
            rng = random.Random(f"{self._seed} {self.chains}")  # noqa: S311 - a schedule, no secret
            self.chains += 1
            who = rng.choice((COORDINATOR, COORDINATOR, *SITES))
            if rng.random() < 0.06:
                await self.power_cut()
            await asyncio.sleep(rng.uniform(0.0, 1.0))
            await self.chain(who, [draw(rng, who) for _ in range(rng.randint(3, 8))])
            report(self)

    async def chain(
        self, who: str, strikes: list[Strike], patience_s: float = PATIENCE_S
    ) -> list[Strike]:
        """Kill a process at once, then at each point in turn; return those it did not reach."""
        one, missed = self.federation.processes[who], []
        self.federation.kill(one)
        point = ""
        for strike in strikes:
            await self._again(one, point, strike.armed)
            point = strike.point
            if not await self._dies(one, patience_s):
                missed.append(strike)
                self.unreached[strike.point] += 1
                self.federation.kill(one)
                point = ""
        await self._again(one, point)
        return missed

    async def at_connecting(self, site: str) -> None:
        """F08: a node dies as soon as it is connected again."""
        one = self.federation.processes[site]
        self.federation.kill(one)
        for _ in range(2):
            await self._again(one, "", fault="F08")
            self.federation.kill(one)
        await self._again(one, "", fault="F08")

    async def after_a_receipt(self) -> None:
        """F04: the coordinator, whose every commit takes long, dies when a receipt is held."""
        federation = self.federation
        one = federation.processes[COORDINATOR]
        federation.kill(one)
        slow = "coordinator.facts.before_commit=delay:150@1+"
        await federation.back(federation.start(COORDINATOR, slow))
        await self._until_told("upload.finished", SITES)
        federation.kill(one)
        await self._again(one, "upload.finished", fault="F04")

    async def _until_told(self, event: str, by: Iterable[str]) -> None:
        names = [f"{name} {event}" for name in by]
        self.federation.look()
        before = sum(self.federation.told[name] for name in names)
        while sum(self.federation.told[name] for name in names) == before:
            self.check()
            await asyncio.sleep(_TURN_S / 5)
            self.federation.look()

    async def _again(self, one: Process, point: str, armed: str = "", fault: str = "") -> None:
        """Start a process that died, and note the trial once it is back, or dead again."""
        fault, died = fault or fault_of(one.name, point, one.last), one.died
        back = await self.federation.back(self.federation.start(one.name, armed))
        # A process that dies at its next point while it starts is timed from there on.
        back_s = time.monotonic() - died if back else 0.0
        self.trials.append(Trial(one.name, point, fault, back_s))
        self.check()

    async def _dies(self, one: Process, patience_s: float) -> bool:
        """Wait for an armed process to die; False if it does not come to its point."""
        patience = time.monotonic() + patience_s
        while one.child is not None and not self.federation.dead(one):
            if time.monotonic() > patience:
                return False
            self.check()
            await asyncio.sleep(_TURN_S)
        return True

    async def power_cut(self) -> None:
        """F14: every process dies at once, and all start again."""
        everyone = list(self.federation.processes.values())
        for one in everyone:
            if one.child is not None:
                one.child.kill()
        for one in everyone:
            self.federation.kill(one)
        died = time.monotonic()
        for one in everyone:
            self.federation.start(one.name)
        for one in everyone:
            await self.federation.back(one)
            self.trials.append(Trial(one.name, "", "F14", time.monotonic() - died))
        self.check()

    async def crash_loop(self, seconds: float, every_s: float = 2.0) -> float:
        """F15: the coordinator dies again and again; return how long the open run then took."""
        one, until = self.federation.processes[COORDINATOR], time.monotonic() + seconds
        rng = random.Random(f"{self._seed} loop")  # noqa: S311 - a schedule, no secret
        while time.monotonic() < until:
            await asyncio.sleep(rng.uniform(0.5, 1.5) * every_s)
            self.federation.kill(one)
            await self._again(one, "", fault="F15")
        began, done = time.monotonic(), self.runs.done
        while self.runs.done == done:
            self.check()
            await asyncio.sleep(_TURN_S)
        return time.monotonic() - began

    async def half_told(self) -> int:
        """F07: the coordinator dies when some hospitals have the model; return how many."""
        federation = self.federation
        held = [federation.processes[site] for site in SITES[2:]]
        await self._until_told("model.published", [COORDINATOR])
        for other in held:
            _signal(other, signal.SIGSTOP)
        before, patience = _accepted(federation), time.monotonic() + 1.0
        while _accepted(federation) == before and time.monotonic() < patience:
            await asyncio.sleep(_TURN_S / 5)
            federation.look()
        told = _accepted(federation) - before
        one = federation.processes[COORDINATOR]
        federation.kill(one)
        for other in held:
            _signal(other, signal.SIGCONT)
        await self._again(one, "model.published", fault="F07")
        return told


def figures_of(trials: Iterable[Trial], fault: str | None = None) -> dict[str, float]:
    """Return the seconds until the coordinator served, and hospitals were connected, again."""
    of = [one for one in trials if fault in (None, one.fault) and one.back_s > 0]
    found: dict[str, float] = {}
    for name, took in (
        ("recovery", [one.back_s for one in of if one.who == COORDINATOR]),
        ("rejoin", [one.back_s for one in of if one.who != COORDINATOR]),
    ):
        if took:
            for word, at in (("p50", 50), ("p99", 99), ("max", 100)):
                found[f"{name}_{word}_s"] = round(float(np.percentile(took, at)), 3)
    return found


@contextmanager
def _coordinator_may_be_gone() -> Iterator[None]:
    """Forgive that it could not be asked; whoever asks does so again."""
    try:
        yield
    except FedError as failure:
        if failure.name not in ("UNREACHABLE", "DEADLINE", "TLS_REFUSED"):  # it died in a handshake
            raise


def _accepted(federation: Federation) -> int:
    return sum(federation.told[f"{site} model.accepted"] for site in SITES)


def _signal(one: Process, number: signal.Signals) -> None:
    if one.child is not None:
        os.kill(one.child.pid, number)


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


# --- the command ---------------------------------------------------------------------------------


def _resume(campaign: Campaign, file: Path) -> None:
    """Take up what an earlier command on the same folder has done."""
    if file.exists():
        tree = json.loads(file.read_text())
        campaign.trials = [Trial(**one) for one in tree["trials"]]
        campaign.chains, campaign.runs.checked = tree["chains"], tree["runs"]
        campaign.runs.acknowledged = tree["acknowledged"]
        campaign.unreached = Counter(tree["unreached"])


def _keep(campaign: Campaign, file: Path) -> None:
    runs = campaign.runs
    tree = {"trials": [asdict(one) for one in campaign.trials], "chains": campaign.chains,
            "runs": runs.checked, "acknowledged": runs.acknowledged,
            "unreached": campaign.unreached}  # fmt: skip
    file.write_text(json.dumps(tree))
    _report(campaign)


def _report(campaign: Campaign) -> None:
    runs, found = campaign.runs, figures_of(campaign.trials)
    print(f"{len(campaign.trials)} kills, {runs.checked} runs compared, "  # noqa: T201
          f"{found}", flush=True)  # fmt: skip


async def _campaign(federation: Federation, trials: int, seed: int) -> Campaign:
    campaign, file = Campaign(federation, seed), federation.folder / "progress.json"
    _resume(campaign, file)
    async with campaign.running():
        await campaign.rounds(trials, lambda one: _keep(one, file))
    return campaign


def main(arguments: list[str]) -> int:
    """Run a campaign; 1 if the witnesses disagree."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", default="", help="postgresql, or a database's URL")
    parser.add_argument("--folder", type=Path, help="kept if there is a failure, or if given")
    given = parser.parse_args(arguments)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="fedcare-kills-"))
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        store = given.store or None
        if store == "postgresql":
            if why := why_not():
                parser.error(why)
            store = stack.enter_context(Postgres()).url
        federation = stack.enter_context(federation_at(folder / "federation", store))
        try:
            campaign = asyncio.run(_campaign(federation, given.trials, given.seed))
        except Disagreement as found:
            print(f"DISAGREEMENT, kept in {folder}:\n{found}", file=sys.stderr)  # noqa: T201
            return 1
    for fault, count in sorted(Counter(one.fault for one in campaign.trials).items()):
        record(fault, trials=count, failures=0, lost=0, double_counted=0,
               runs=campaign.runs.checked, **figures_of(campaign.trials, fault))  # fmt: skip
    _report(campaign)
    print(f"{time.monotonic() - began:.0f} s; never reached: "  # noqa: T201
          f"{dict(campaign.unreached)}")  # fmt: skip
    if given.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
