"""Real processes over real mTLS, killed and started again while run after run goes on.

    python -m tests.faults.processes --trials 1000 --seed 7 [--store postgresql] [--folder DIR]

One coordinator and four hospitals live on the same folders for the whole campaign. Runs of the
indicator task follow one another; meanwhile one process at a time is killed, at a failpoint
that it was armed with when it started or at a random time, and is started again at once, armed
with the next one. `tests.faults.checker` compares what every run left behind; a disagreement
ends the campaign and keeps the folder. The same command on a folder that is there goes on; at
its end it records the figures of all kills on that folder. A recovery that takes too long is
found as well.
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
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np

from tests.faults.checker import COORDINATOR
from tests.faults.kills import ALL_PHASES, Strike, Trial, draw, fault_of, node_phase
from tests.faults.postgres import Postgres, why_not
from tests.faults.record import record
from tests.faults.running import START_S, Disagreement, Federation, Process, Runs, federation_at
from tests.federation import SITES

MOST_RECOVERY_S: Final = 5.0
"""What is promised of a coordinator, at the 99th percentile."""
PATIENCE_S: Final = 6.0
"""A point that was not reached in this time gives way to another."""
POSTGRESQL: Final = "postgresql"
MOST_CHAINS: Final = 25
"""Of kills, until there was one in every phase."""
_TURN_S: Final = 0.01


# --- the campaign --------------------------------------------------------------------------------


class Campaign:
    """Kills one process after the other; `trials` are the kills that happened."""

    def __init__(self, federation: Federation, seed: int) -> None:
        self.federation = federation
        self.runs = Runs(federation)
        self.trials: list[Trial] = []
        self.unreached: Counter[str] = Counter()
        self.left_bytes = -1
        """Found at the end in files that nobody will ask for."""
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
            left = self.federation.checker.leftovers()
            sizes = [(self.federation.folder / name).stat().st_size for name in left]
            self.left_bytes = sum(sizes)
            if left:
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

    async def undisturbed(self) -> None:
        """Wait for a run that nobody dies in: what its model is, all others' has to be."""
        while not self.runs.compared:
            self.check()
            await asyncio.sleep(_TURN_S)

    async def every_phase(self, site: str) -> None:
        """Kill the coordinator, and a hospital, until they died in every phase."""
        commits = [Strike(COORDINATOR, "coordinator.facts.after_commit", 1)] * 3
        models = [Strike(site, "node.model.before_rename", at) for at in (1, 2, 3)]
        for _ in range(MOST_CHAINS):
            missing = ALL_PHASES - {one.phase for one in self.trials}
            if not missing:
                return
            hub = any(phase.startswith("C") for phase in missing)
            await self.chain(*((COORDINATOR, commits) if hub else (site, models)), START_S)

    async def at_connecting(self, site: str) -> None:
        """F08: a node dies as soon as it is connected again."""
        one = self.federation.processes[site]
        self.federation.kill(one)
        for _ in range(2):
            await self._again(one, "", fault="F08")
            self.federation.kill(one)
        await self._again(one, "", fault="F08")

    async def broken_uploads(self, site: str, times: int) -> float:
        """F11: a hospital dies after a chunk; return the MB that the coordinator has grown by."""
        self.runs.big, hub = True, self.federation.processes[COORDINATOR]
        await self._runs_end(2)  # one that was open may be a small one
        before = _resident_mb(hub)
        await self.chain(site, [Strike(site, "node.upload", 2)] * times, START_S)
        await self._runs_end(1)
        self.runs.big = False
        return _resident_mb(hub) - before

    async def _runs_end(self, count: int) -> None:
        done = self.runs.done
        while self.runs.done < done + count:
            self.check()
            await asyncio.sleep(_TURN_S)

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
        phase = one.phase if one.name == COORDINATOR else node_phase(point, one.last, one.phase)
        back = await self.federation.back(self.federation.start(one.name, armed))
        # A process that dies at its next point while it starts is timed from there on.
        back_s = time.monotonic() - died if back else 0.0
        self.trials.append(Trial(one.name, point, fault, back_s, phase))
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
        began = time.monotonic()
        await self._runs_end(1)
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


def _accepted(federation: Federation) -> int:
    return sum(federation.told[f"{site} model.accepted"] for site in SITES)


def _resident_mb(one: Process) -> float:
    assert one.child is not None
    pages = int(Path(f"/proc/{one.child.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _signal(one: Process, number: signal.Signals) -> None:
    if one.child is not None:
        os.kill(one.child.pid, number)


@contextlib.contextmanager
def federation_on(folder: Path, store: str) -> Iterator[Federation]:
    """Yield a federation on `folder`; `store`: its own, `POSTGRESQL` (started here), or a URL."""
    with contextlib.ExitStack() as stack:
        if store == POSTGRESQL:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o711)  # the server is another user
            store = stack.enter_context(Postgres(folder / "pg")).url
        yield stack.enter_context(federation_at(folder / "federation", store or None))


# --- the command ---------------------------------------------------------------------------------


def _resume(campaign: Campaign, file: Path) -> None:
    """Take up what an earlier command on the same folder has done."""
    if file.exists():
        tree = json.loads(file.read_text())
        campaign.trials = [Trial(**one) for one in tree["trials"]]
        campaign.chains, campaign.runs.compared = tree["chains"], tree["compared"]
        campaign.runs.acknowledged = tree["acknowledged"]
        campaign.unreached = Counter(tree["unreached"])


def _keep(campaign: Campaign, file: Path) -> None:
    runs = campaign.runs
    tree = {"trials": [asdict(one) for one in campaign.trials], "chains": campaign.chains,
            "compared": runs.compared, "acknowledged": runs.acknowledged,
            "unreached": campaign.unreached}  # fmt: skip
    file.write_text(json.dumps(tree))
    _report(campaign)


def _report(campaign: Campaign) -> None:
    runs, found = campaign.runs, figures_of(campaign.trials)
    print(f"{len(campaign.trials)} kills, {len(runs.compared)} runs compared, "  # noqa: T201
          f"{found}", flush=True)  # fmt: skip


async def _go(campaign: Campaign, trials: int) -> None:
    file = campaign.federation.folder / "progress.json"
    _resume(campaign, file)
    async with campaign.running():
        await campaign.rounds(trials, lambda one: _keep(one, file))
    took_s = figures_of(campaign.trials).get("recovery_p99_s", 0.0)
    if took_s > MOST_RECOVERY_S:
        raise Disagreement(f"recovery took {took_s:g} s (p99)")


def main(arguments: list[str]) -> int:
    """Run a campaign; 1 if the witnesses disagree."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", default="", help=f"{POSTGRESQL}, or a database's URL")
    parser.add_argument("--folder", type=Path, help="kept if there is a failure, or if given")
    given = parser.parse_args(arguments)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="fedcare-kills-"))
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # ends what it started
    if given.store == POSTGRESQL and (why := why_not()):
        parser.error(why)
    with federation_on(folder, given.store) as federation:
        campaign = Campaign(federation, given.seed)
        try:
            asyncio.run(_go(campaign, given.trials))
        except Disagreement as found:
            print(f"DISAGREEMENT, kept in {folder}:\n{found}", file=sys.stderr)  # noqa: T201
            last = campaign.trials[-1].fault if campaign.trials else "F01"
            record(last, trials=len(campaign.trials) or 1, failures=1)
            return 1
    for fault, count in sorted(Counter(one.fault for one in campaign.trials).items()):
        record(fault, trials=count, failures=0, lost=0, double_counted=0,
               runs=len(campaign.runs.compared), **figures_of(campaign.trials, fault))  # fmt: skip
    _report(campaign)
    print(f"{time.monotonic() - began:.0f} s; never reached: "  # noqa: T201
          f"{dict(campaign.unreached)}")  # fmt: skip
    if given.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
