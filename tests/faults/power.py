"""The simulated federation on disks that lose what was never flushed.

    with started(library) as run:
        run(Trial(draw(seed), cut=None)).problem       # None: by chance, from the plan's seed
        run(trial, spoil="...")                        # lines of Python first, that plant a defect

As `simulation`, and whenever a process dies its machine may lose its power: with it goes all
that was not flushed (`lostwrites`), at once, or a random part of it. The library must be
loaded before a process starts, so `started` starts one; nothing of the product knows.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from tests.faults import simulation
from tests.faults.campaign import _template, scratch
from tests.faults.lostwrites import Cut, Disk, Image
from tests.faults.plan import COORDINATOR, Plan
from tests.faults.simulation import Outcome, simulate
from tests.faults.world import World

_KINDS: Final = (None, Cut.ALL, Cut.ALL, Cut.SOME)
"""What goes with a process: nothing (it was killed), or its machine's power."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A plan, and what each death in it takes along; None: drawn from the plan's seed."""

    plan: Plan
    cut: Cut | None = Cut.ALL


@dataclass(frozen=True, slots=True)
class Found:
    """How a trial ended, how often a machine lost its power, and the model that came of it."""

    problem: str | None
    deaths: int
    cuts: int
    voided: int
    model: str


class PowerWorld(World):
    """A `World` whose machines lose their power; `cuts` counts how often."""

    excused = ("MODEL_INVALID",)
    """A received model is not flushed: it may be found damaged, and is fetched again."""

    def __init__(self, root: Path, trial: Trial, template: Path) -> None:
        plan = trial.plan
        super().__init__(root, plan, template)
        self.cuts = 0
        self._cut = trial.cut
        self.held: list[sqlite3.Connection] = []
        self._dark: set[str] = set()
        self._rng = random.Random(f"power {plan.seed}")  # noqa: S311 - a schedule, no secret
        log = root.with_name("log")
        shutil.rmtree(log, ignore_errors=True)
        self.disk = Disk(root, log, Path())

    def _machine(self, who: str) -> Path:
        if who == COORDINATOR:
            return self.plan.coordinator_folder
        return self.plan.site_folder(who)

    def _die(self, who: str, down_s: float) -> Coroutine[Any, Any, None]:
        """What is left of the disk is settled at once: what the dead still do adds nothing."""
        cut = self._rng.choice(_KINDS) if self._cut is None else self._cut
        folder = self._machine(who)
        image = None if cut is None else self.disk.image(folder, cut, self._rng.getrandbits(32))
        self._dark.add(who)
        return self._go_dark(who, down_s, folder, image)

    async def _go_dark(self, who: str, down_s: float, folder: Path, image: Image | None) -> None:
        self.crashes += 1
        self.processes[who].dead = True
        if who == COORDINATOR:
            await self.kill_coordinator()
        elif (gone := self._kill(who)) is not None:
            await gone
        if image is not None:
            self.cuts += 1
            self.disk.restore(folder, image)
        await asyncio.sleep(down_s)
        self._dark.discard(who)
        self._up(who)

    def _up(self, who: str) -> None:
        if who not in self._dark:
            super()._up(who)

    async def kill_coordinator(self) -> None:
        """See `Federation`; a killed process does not close its database.

        The last connection that closes moves the log into the database and flushes both, so
        another one stays open.
        """
        if self.service is not None:
            path = self.plan.coordinator_folder / "state" / "coordinator.db"
            held = sqlite3.connect(path, check_same_thread=False)
            held.execute("select count(*) from sqlite_master").fetchone()
            self.held.append(held)
        await super().kill_coordinator()


def run_trial(root: Path, trial: Trial) -> Found:
    """Run one trial under `root` and clear up after it."""
    worlds: list[PowerWorld] = []

    def make(folder: Path, plan: Plan, template: Path) -> PowerWorld:
        del plan
        world = PowerWorld(folder, trial, template)
        os.environ.update(world.disk.environment())
        worlds.append(world)
        return world

    template = _template(root, trial.plan.dp)
    setattr(simulation, "World", make)  # noqa: B010
    gc.collect()
    gc.disable()
    try:
        outcome = simulate(root / "run", trial.plan, template)
        return _found(outcome, worlds[0])
    finally:
        os.environ.pop("LOSTWRITES_ROOT", None)
        setattr(simulation, "World", World)  # noqa: B010
        gc.enable()
        shutil.rmtree(root / "run", ignore_errors=True)
        for held in (held for world in worlds for held in world.held):
            held.close()


def _found(outcome: Outcome, world: PowerWorld) -> Found:
    kept = world.plan.folder.glob("sites/*/state/releases/*/model.safetensors")
    models = {hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
    model = models.pop() if len(models) == 1 else ""
    return Found(outcome.problem, outcome.deaths, world.cuts, outcome.voided, model)


# --- a process of its own ---------------------------------------------------------------------


class Run(Protocol):
    """Runs a trial; `spoil` is Python that is run before it, and gone after it."""

    def __call__(self, trial: Trial, spoil: str = "") -> Found: ...


@contextmanager
def started(library: Path) -> Iterator[Run]:
    """Start a process under the library that runs trials."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "LD_PRELOAD": str(library), "PYTHONHASHSEED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what the dead say
        text=True,
    )

    def run(trial: Trial, spoil: str = "") -> Found:
        assert process.stdin is not None
        assert process.stdout is not None
        order = {"plan": trial.plan.as_json(), "cut": trial.cut, "spoil": spoil}
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        return Found(**json.loads(process.stdout.readline()))

    try:
        yield run
    finally:
        process.communicate()


def _main() -> None:
    with scratch() as root:
        for line in sys.stdin:
            order = json.loads(line)
            if order["spoil"] and (child := os.fork()):
                os.waitpid(child, 0)
                continue
            exec(order["spoil"], {})  # noqa: S102 - a test's own lines
            cut = None if order["cut"] is None else Cut(order["cut"])
            found = run_trial(root, Trial(Plan.of_json(order["plan"]), cut))
            sys.stdout.write(json.dumps(asdict(found)) + "\n")
            sys.stdout.flush()
            if order["spoil"]:
                os._exit(0)


if __name__ == "__main__":
    _main()
