"""Every campaign and every named test of a fault; writes the report.

    python -m tests.faults --budget nightly [--seeds N] [--first SEED] [--trials N]

Budgets: `change`, `nightly`, `release` (`tests.faults.budget`); `--seeds` and `--trials` are
those of the simulation and of the killed processes. `--table` only writes the page's table anew.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from tests.faults import outcomes, record, report
from tests.faults.budget import VARIABLE, Budget, trials
from tests.faults.campaign import run_seeds
from tests.faults.catalogue import SIMULATION

PROCESSES: Final = "tests.faults.processes"
_STEP: Final = 500


def main(arguments: list[str]) -> int:
    """Run them all; 0 if everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--budget", choices=[*Budget], default=os.environ.get(VARIABLE) or "change")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.table:
        report.write(json.loads(report.REPORT.read_text()))
        return 0
    os.environ[VARIABLE] = asked.budget
    for file in (record.RESULTS, outcomes.OUTCOMES):
        file.unlink(missing_ok=True)
    count = trials(change=200, nightly=10_000, release=20_000)
    seeds = _simulate(asked.first, count if asked.seeds is None else asked.seeds, asked.workers)
    codes = [_kill_processes(asked.trials), _test(asked.workers)]
    found = report.report_of(
        report.lines_of(record.RESULTS),
        report.lines_of(outcomes.OUTCOMES),
        budget=asked.budget,
        seeds=seeds,
    )
    report.write(found)
    failed = [entry["fault"] for entry in found["faults"] if entry["failures"]]
    print(f"{report.REPORT}: {len(found['faults'])} faults, failed: {failed or 'none'}")  # noqa: T201
    return 1 if failed or any(codes) else 0


def _simulate(first: int, count: int, workers: int) -> Mapping[str, Any]:
    """Run the simulation's seeds; print those that fail as they are found."""
    record.begin()
    total, failed = Counter[str](), []
    began = time.monotonic()
    for number, one in enumerate(run_seeds(range(first, first + count), workers), 1):
        total.update(deaths=one.deaths, voided_rounds=one.voided)
        total["virtual_hours"] += one.virtual_s  # type: ignore[assignment]
        if one.problem is not None:
            failed.append(one.seed)
            print(f"seed {one.seed}: {one.problem}", flush=True)  # noqa: T201
        if number % _STEP == 0:
            print(f"{number} seeds, {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201
    record.record(
        SIMULATION,
        trials=count,
        failures=len(failed),
        processes_killed=total["deaths"],
        voided_rounds=total["voided_rounds"],
        virtual_hours=round(total["virtual_hours"] / 3600),
    )
    return {"first": first, "count": count, "failed": failed}


def _kill_processes(count: int | None) -> int:
    """Run the campaign of real processes that are killed."""
    if importlib.util.find_spec(PROCESSES) is None:
        return 0
    wanted = trials(change=20, nightly=500, release=1_000) if count is None else count
    return _run(PROCESSES, "--trials", str(wanted), "--seed", "1")


def _test(workers: int) -> int:
    """Run every test that is about a fault."""
    return _run(
        "pytest", "-q", "-p", "tests.faults.outcomes", "-n", str(workers), "--dist", "worksteal",
        "-m", "fault and not containers", "--timeout", "3600", "tests",
    )  # fmt: skip


def _run(module: str, *arguments: str) -> int:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=report.ROOT, env=environment, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
