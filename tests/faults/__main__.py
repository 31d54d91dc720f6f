"""Every campaign and every named test of a fault; writes the report after each.

    python -m tests.faults --budget nightly [--only PART] [--seeds N] [--first SEED] [--trials N]

The parts: `simulation` (many seeds; goes on where it was stopped, `--again` begins anew), `kills`
(of real processes), `postgresql` (the same on the other store), `tests` (those named after a
fault), and only if it is asked for `soak` (`--hours`). Budgets: `change`, `nightly`, `release`
(`tests.faults.budget`); `--seeds` and `--trials` are those of the simulation and of the kills.
`--table` only makes report and table anew, of the parts that are there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.faults import parts, report
from tests.faults.budget import VARIABLE, Budget, trials
from tests.faults.campaign import Found, run_seeds
from tests.faults.catalogue import KILLS, POSTGRESQL, SOAK, TESTS
from tests.faults.postgres import why_not
from tests.faults.record import WHERE

_STEP: Final = 50
_TELL: Final = 200
_SEED: Final = 7
"""Of the kills."""


def main(arguments: list[str]) -> int:
    """Run them all; 0 if everything held."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--budget", choices=[*Budget], default=os.environ.get(VARIABLE) or "change")
    parser.add_argument("--only", choices=[*_RUN], action="append", help="may be given again")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--hours", type=float, default=24.0, help="of a soak")
    parser.add_argument("--folder", type=Path, help="of a campaign of kills that is to go on")
    parser.add_argument("--workers", "--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--again", action="store_true", help="forget the seeds that are done")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.table:
        report.write(report.report_of(report.read()["parts"]))
        return 0
    os.environ[VARIABLE] = asked.budget
    origin, codes = parts.Origin.here(), []
    for name in asked.only or _CAMPAIGNS:
        _say(f"== {name}")
        code, made = _RUN[name](asked, origin)
        codes.append(code)
        if made:
            report.write(report.merged(report.read(), made))
    found = report.read()
    failed = [entry["fault"] for entry in found["faults"] if entry["failures"]]
    _say(f"{parts.REPORT}: {len(found['faults'])} faults, failed: {failed or 'none'}")
    return 1 if failed or any(codes) else 0


def _say(words: str) -> None:
    print(words, flush=True)  # noqa: T201


# --- the parts ------------------------------------------------------------------------------------


def _simulate(asked: argparse.Namespace, origin: parts.Origin) -> tuple[int, list[parts.Part]]:
    """Run the seeds that are left; print those that fail as they are found."""
    if asked.again:
        parts.SEEDS.unlink(missing_ok=True)
    count = trials(change=200, nightly=10_000, release=20_000)
    count = count if asked.seeds is None else asked.seeds
    left = parts.left(range(asked.first, asked.first + count))
    _say(f"{count - len(left)} of {count} seeds are done")
    began = kept = time.monotonic()
    some: list[Found] = []
    failed = 0
    for number, one in enumerate(run_seeds(left, asked.workers), 1):
        some.append(one)
        if one.problem is not None:
            failed += 1
            _say(f"seed {one.seed}: {one.problem}")
        if number % _STEP == 0 or number == len(left):
            now = time.monotonic()
            parts.keep(some, origin, now - kept)
            some, kept = [], now
        if number % _TELL == 0:
            _say(
                f"{number} of {len(left)} seeds, {failed} failed, {time.monotonic() - began:.0f} s"
            )
    return int(failed > 0), parts.seed_parts(asked.budget)


def _kill(asked: argparse.Namespace, origin: parts.Origin) -> tuple[int, list[parts.Part]]:
    """Kill real processes whose coordinator has SQLite."""
    return _campaign(KILLS, asked, origin)


def _kill_on_postgresql(
    asked: argparse.Namespace, origin: parts.Origin
) -> tuple[int, list[parts.Part]]:
    """Kill real processes whose coordinator has PostgreSQL, where there is one."""
    if why := why_not():
        _say(f"left out: {why}")
        return 0, []
    return _campaign(POSTGRESQL, asked, origin, "--store", "postgresql")


def _campaign(
    name: str, asked: argparse.Namespace, origin: parts.Origin, *store: str
) -> tuple[int, list[parts.Part]]:
    """Run a campaign of kills; one that was stopped goes on, on the same code."""
    wanted = asked.trials or trials(change=20, nightly=500, release=1_000)
    own = Path(tempfile.gettempdir()) / f"fedcare-{_word(name)}-{origin.commit or os.getpid()}"
    folder = asked.folder or own
    code, made = _in_part(
        name, asked, origin, "tests.faults.processes", "--trials", str(wanted),
        "--seed", str(_SEED), "--folder", str(folder), *store,
    )  # fmt: skip
    if code == 0 and asked.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return code, made


def _word(name: str) -> str:
    return name.replace(" ", "-").lower()


def _test(asked: argparse.Namespace, origin: parts.Origin) -> tuple[int, list[parts.Part]]:
    """Run every test that is about a fault."""
    return _in_part(
        TESTS, asked, origin,
        "pytest", "-v", "-p", "tests.faults.outcomes", "-n", str(asked.workers),
        "--dist", "worksteal", "-m", "fault and not containers", "--timeout", "1800",
        *parts.marked(),
    )  # fmt: skip


def _soak(asked: argparse.Namespace, origin: parts.Origin) -> tuple[int, list[parts.Part]]:
    """Have a federation at work for hours."""
    hours = str(asked.hours)
    code, made = _in_part(SOAK, asked, origin, "tests.faults.soak", "--hours", hours)
    return code, [part | {"budget": f"{hours} h"} for part in made]


_RUN: Final[
    Mapping[str, Callable[[argparse.Namespace, parts.Origin], tuple[int, list[parts.Part]]]]
] = {
    "simulation": _simulate,
    "kills": _kill,
    "postgresql": _kill_on_postgresql,
    "tests": _test,
    "soak": _soak,
}
_CAMPAIGNS: Final = ("simulation", "kills", "postgresql", "tests")
"""What runs if nothing is asked for; a soak takes a day."""


def _in_part(
    name: str, asked: argparse.Namespace, origin: parts.Origin, module: str, *arguments: str
) -> tuple[int, list[parts.Part]]:
    """Run a module whose figures are the part's; return its code and the part."""
    folder = parts.BUILD / _word(name)
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    code = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=parts.ROOT, env=_environment(folder), check=False,
    ).returncode  # fmt: skip
    part = parts.part_of(name, origin, asked.budget, folder, time.monotonic() - began)
    return code, [part] if part["results"] or part["outcomes"] else []


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", WHERE: str(folder / "results.jsonl")}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
