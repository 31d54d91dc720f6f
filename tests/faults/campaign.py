"""Many seeds of the simulation, over all cores; a failing plan is made as small as it gets.

results = run_seeds(range(0, 200), workers=2)
smaller = shrink(plan)
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from tests.faults import virtual
from tests.faults.cheap import cheap, settle
from tests.faults.plan import BIG, DEADLINE_S, NONE, Plan, draw
from tests.faults.simulation import Outcome, simulate
from tests.faults.study import study_text
from tests.federation import Federation

FAST_FOLDERS: Final = ("/dev/shm", tempfile.gettempdir())  # noqa: S108 - whichever is there
_AT_ONCE: Final = 10
_MOST_ROUNDS: Final = 3
"""Of a plan; the hospitals' policies allow as many."""


@dataclass(frozen=True, slots=True)
class Found:
    """A seed, how its run ended, and what happened in it."""

    seed: int
    problem: str | None
    virtual_s: float
    deaths: int
    voided: int


@contextmanager
def scratch() -> Iterator[Path]:
    """Return a folder of memory, where there is such a place; gone afterwards."""
    where = next(folder for folder in FAST_FOLDERS if os.access(folder, os.W_OK))
    with tempfile.TemporaryDirectory(dir=where, prefix="fedcare-sim-") as folder:
        yield Path(folder)


@cache
def _template(root: Path, dp: str) -> Path:
    """Return a federation whose coordinator has started once: its store is migrated."""
    folder = root / f"template-{dp}"
    fed = Federation(
        folder, size=BIG, rounds=_MOST_ROUNDS, deadline=f"{DEADLINE_S:g}s", gather="2s",
        study=study_text(BIG, dp, _MOST_ROUNDS),
    )  # fmt: skip
    virtual.run(_started(fed))
    return folder


async def _started(fed: Federation) -> None:
    fed.start_coordinator()
    await fed.kill_coordinator()


def run_plan(root: Path, plan: Plan) -> Outcome:
    """Run one plan under `root`, and clear up after it."""
    folder = root / "run"
    with cheap():
        template = _template(root, plan.dp)
        gc.collect()  # what an earlier run left behind must not end in the middle of this one
        gc.disable()
        try:
            return simulate(folder, plan, template)
        finally:
            gc.enable()
            shutil.rmtree(folder, ignore_errors=True)
            settle()


def _run_some(root: Path, seeds: tuple[int, ...]) -> list[Found]:
    """Run several seeds in this process, which keeps what it needs for all of them."""
    folder = root / str(os.getpid())
    folder.mkdir(exist_ok=True)
    return [_found(seed, run_plan(folder, draw(seed))) for seed in seeds]


def _found(seed: int, outcome: Outcome) -> Found:
    return Found(seed, outcome.problem, outcome.virtual_s, outcome.deaths, outcome.voided)


def run_seeds(seeds: Iterable[int], workers: int) -> Iterator[Found]:
    """Yield how every seed ended, over `workers` processes, in order."""
    order = list(seeds)
    parts = [tuple(order[at : at + _AT_ONCE]) for at in range(0, len(order), _AT_ONCE)]
    os.environ["PYTHONHASHSEED"] = "0"  # of the workers: sets of names in the same order, always
    with scratch() as root, ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for part in pool.map(partial(_run_some, root), parts):
            yield from part


def shrink(plan: Plan) -> Plan:
    """Return a smaller plan that fails too: without faults, delays and copies it can do without."""
    with scratch() as root:
        smaller = True
        while smaller:
            smaller = False
            for candidate in _smaller(plan):
                if run_plan(root, candidate).problem is not None:
                    plan, smaller = candidate, True
                    break
    return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    for place in range(len(plan.faults)):
        yield replace(plan, faults=plan.faults[:place] + plan.faults[place + 1 :])
    if plan.cancel_s:
        yield replace(plan, cancel_s=0.0)
    if plan.copies > 1:
        yield replace(plan, copies=1)
    if plan.dp != NONE:
        yield replace(plan, dp=NONE)
    if plan.slowest_s > 0:
        yield replace(plan, slowest_s=0.0)
