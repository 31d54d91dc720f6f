"""The simulated federation on disks that lose what was never flushed.

    python -m tests.faults.power 0 200          # seeds; one line for each that found something

As `simulation`, and whenever a process dies its machine may lose its power: with it goes all
that was not flushed (`lostwrites`), at once, or a random part of it. The library must be
loaded before this process starts, so `run_seeds` starts one; nothing of the product knows.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tests.faults import simulation
from tests.faults.campaign import _template, scratch
from tests.faults.lostwrites import Cut, Disk, Image
from tests.faults.plan import COORDINATOR, Plan, draw
from tests.faults.simulation import Outcome, World, simulate

_SPOIL: Final = "LOSTWRITES_SPOIL"
_KINDS: Final = (None, Cut.ALL, Cut.ALL, Cut.SOME)
"""What goes with a process: nothing (it was killed), or its machine's power."""


class PowerWorld(World):
    """A `World` whose machines lose their power; `cuts` counts how often."""

    def __init__(self, root: Path, plan: Plan, template: Path) -> None:
        super().__init__(root, plan, template)
        self.cuts = 0
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
        cut = self._rng.choice(_KINDS)
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
        """See `Federation`; a killed process does not close its database, so that is not seen."""
        if self.service is not None:
            store = self.service._shop.store
            close = store.close

            def unseen() -> None:
                with _unseen():
                    close()

            store.close = unseen  # type: ignore[method-assign]
        await super().kill_coordinator()


@contextmanager
def _unseen() -> Iterator[None]:
    root = os.environ.pop("LOSTWRITES_ROOT", None)
    try:
        yield
    finally:
        if root is not None:
            os.environ["LOSTWRITES_ROOT"] = root


def run_plan(root: Path, plan: Plan) -> tuple[Outcome, int]:
    """Run one plan under `root` and clear up after it; return the outcome and the power cuts."""
    worlds: list[PowerWorld] = []

    def make(folder: Path, plan: Plan, template: Path) -> PowerWorld:
        world = PowerWorld(folder, plan, template)
        os.environ.update(world.disk.environment())
        worlds.append(world)
        return world

    template = _template(root)
    setattr(simulation, "World", make)  # noqa: B010
    gc.collect()
    gc.disable()
    try:
        return simulate(root / "run", plan, template), worlds[0].cuts
    finally:
        os.environ.pop("LOSTWRITES_ROOT", None)
        setattr(simulation, "World", World)  # noqa: B010
        gc.enable()
        shutil.rmtree(root / "run", ignore_errors=True)


# --- a process of its own ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """How a seed's run ended, and how often a machine lost its power in it."""

    seed: int
    problem: str | None
    deaths: int
    cuts: int


def run_seeds(library: Path, seeds: range, spoil: str = "") -> list[Found]:
    """Run seeds in a process under the library; `spoil` is Python that plants a defect first."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(seeds.start), str(seeds.stop)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "LD_PRELOAD": str(library), "PYTHONHASHSEED": "0", _SPOIL: spoil},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [Found(**json.loads(line)) for line in done.stdout.splitlines()]


def _main(first: int, end: int) -> None:
    exec(os.environ.get(_SPOIL, ""), {})  # noqa: S102 - a test's own lines
    with scratch() as root:
        for seed in range(first, end):
            outcome, cuts = run_plan(root, draw(seed))
            found = Found(seed, outcome.problem, outcome.deaths, cuts)
            print(json.dumps(asdict(found)), flush=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
