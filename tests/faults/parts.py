"""The parts of a report: each says on what code, when, where and how it was run.

`simulation`, `kills`, `kills on PostgreSQL` and `tests` are run one by one, perhaps on several
days: a report never tells of code that it was not run on. Seeds are the one part that goes on
where it was stopped; those of each commit are a part of their own.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tests.faults.campaign import Found
from tests.faults.catalogue import SIMULATION

ROOT: Final = Path(__file__).parents[2]
BUILD: Final = ROOT / "build" / "faults"
SEEDS: Final = BUILD / "seeds.jsonl"
REPORT: Final = ROOT / "reports" / "faults.json"
PAGE: Final = ROOT / "docs" / "reliability.md"
PICTURE: Final = ROOT / "docs" / "img" / "faults.svg"

Part = dict[str, Any]
"""`part`, `origin`, `budget`, `seconds`, `results`, `outcomes` (see `record` and `outcomes`);
that of seeds has also `seeds` (ranges) and `failed`."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What was run, when and where; `commit` ends with + if files were changed after it."""

    version: str
    commit: str
    date: str
    processors: int
    machine: str
    system: str
    python: str

    @classmethod
    def here(cls) -> Origin:
        """Return that of this checkout and machine."""
        return cls(
            version("fedcare"),
            _commit(),
            datetime.now(UTC).date().isoformat(),
            os.cpu_count() or 1,
            platform.machine(),
            platform.platform(),
            platform.python_version(),
        )


def _commit() -> str:
    """Return the commit that is checked out; empty where there is no git.

    What a report writes itself is no change.
    """
    written = (f":!{path.relative_to(ROOT)}" for path in (REPORT, PAGE, PICTURE))
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *written)
    return _git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],  # noqa: S607 - whichever is there
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def marked() -> list[str]:
    """Return the files of tests that are about a fault: pytest takes a minute to look into all."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "mark.fault(" in file.read_text()]


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of JSON lines; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def part_of(name: str, origin: Origin, budget: str, folder: Path, seconds: float) -> Part:
    """Return the part whose lines are in `folder`."""
    return {
        "part": name,
        "origin": asdict(origin),
        "budget": budget,
        "seconds": round(seconds),
        "results": lines_of(folder / "results.jsonl"),
        "outcomes": lines_of(folder / "outcomes.jsonl"),
    }


# --- seeds ----------------------------------------------------------------------------------------


def keep(found: Iterable[Found], origin: Origin, seconds: float, file: Path = SEEDS) -> None:
    """Append a line of some seeds that are done."""
    some = list(found)
    line = {
        "origin": asdict(origin),
        "seeds": sorted(one.seed for one in some),
        "failed": {str(one.seed): one.problem for one in some if one.problem is not None},
        "deaths": sum(one.deaths for one in some),
        "voided": sum(one.voided for one in some),
        "virtual_s": round(sum(one.virtual_s for one in some), 3),
        "seconds": round(seconds, 3),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as out:
        out.write(json.dumps(line) + "\n")


def left(seeds: Iterable[int], file: Path = SEEDS) -> list[int]:
    """Return the seeds that are still to be run, in order: those that failed are run again."""
    done = set[int]()
    for line in lines_of(file):
        done = (done | set(line["seeds"])) - set(map(int, line["failed"]))
    return [seed for seed in seeds if seed not in done]


def seed_parts(budget: str, file: Path = SEEDS) -> list[Part]:
    """Return a part for each code that seeds were run on; a seed counts where it was run last."""
    lines = lines_of(file)
    last = {seed: number for number, line in enumerate(lines) for seed in line["seeds"]}
    by_origin: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for number, line in enumerate(lines):
        by_origin[tuple(line["origin"].items())].append(number)
    parts = []
    for origin, numbers in by_origin.items():
        some = [lines[number] for number in numbers]
        seeds = sorted(seed for seed, number in last.items() if number in numbers)
        failed = {
            int(seed): problem
            for number in numbers
            for seed, problem in lines[number]["failed"].items()
            if last[int(seed)] == number
        }
        seconds = sum(line["seconds"] for line in some)
        parts.append({
            "part": SIMULATION, "origin": dict(origin), "budget": budget,
            "seconds": round(seconds), "seeds": ranges(seeds), "failed": failed,
            "results": [_simulated(len(seeds), len(failed), some, seconds)], "outcomes": [],
        })  # fmt: skip
    return [part for part in parts if part["seeds"]]


def _simulated(
    trials: int, failures: int, lines: Iterable[Mapping[str, Any]], seconds: float
) -> dict[str, Any]:
    total = {name: sum(line[name] for line in lines) for name in ("deaths", "voided", "virtual_s")}
    figures = {
        "processes_killed": total["deaths"],
        "voided_rounds": total["voided"],
        "simulated_hours": round(total["virtual_s"] / 3600),
    }
    return {"fault": SIMULATION, "trials": trials, "failures": failures, "figures": figures,
            "seconds": round(seconds, 1), "test": ""}  # fmt: skip


def ranges(seeds: Iterable[int]) -> list[tuple[int, int]]:
    """Return sorted numbers as (first, last) of those that follow one another."""
    found: list[tuple[int, int]] = []
    for seed in seeds:
        if found and found[-1][1] == seed - 1:
            found[-1] = (found[-1][0], seed)
        else:
            found.append((seed, seed))
    return found
