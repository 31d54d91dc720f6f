"""A federation of real processes at work for a day: nothing is lost, and nothing piles up.

    make soak HOURS=24                  python -m tests.faults.soak --hours 24 [--store postgresql]

Run after run of the indicator task goes on, each compared by `tests.faults.checker`; now and
then one process is killed and started again. Every half a minute the memory, open files and
threads of each process are looked at, so that a leak shows as growth between the first and the
last part of its life. Disagreement, a leak, or a run that does not end fail the soak.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.faults.catalogue import SOAK
from tests.faults.checker import COORDINATOR
from tests.faults.processes import Campaign, federation_on
from tests.faults.record import record
from tests.faults.running import Disagreement, Federation

SAMPLE_S: Final = 30.0
SETTLED: Final = 8
"""Looks at a process before its growth counts: caches fill, the allocator takes its arenas."""
MOST_FILES: Final = 16
"""Open files, and threads, by which a process may have more at the end than once it settled."""
MOST_GROWTH_MIB: Final = 64.0
MOST_GROWTH_SHARE: Final = 0.25
"""Memory by which a process may have grown: the larger of the two."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a process held at a moment."""

    resident_mib: float
    files: int
    threads: int


@dataclass(slots=True)
class Lives:
    """The looks at each life of a process, by its name and process number."""

    looks: dict[tuple[str, int], list[Look]] = field(default_factory=lambda: defaultdict(list))

    def look(self, federation: Federation) -> None:
        """Look at every process that lives."""
        for one in federation.processes.values():
            if one.child is not None:
                with contextlib.suppress(OSError):  # it dies meanwhile
                    self.looks[one.name, one.child.pid].append(look_at(one.child.pid))

    def growth(self) -> dict[str, Look]:
        """Return by how much each process grew in that life in which it grew most."""
        found: dict[str, Look] = {}
        for (name, _), looks in self.looks.items():
            if len(looks) >= 2 * SETTLED:
                one, most = grown(looks), found.get(name, Look(0.0, 0, 0))
                found[name] = Look(
                    max(one.resident_mib, most.resident_mib),
                    max(one.files, most.files),
                    max(one.threads, most.threads),
                )
        return found

    def leaks(self) -> list[str]:
        """Return what grew by more than it may, in words."""
        said = []
        for (name, pid), looks in self.looks.items():
            if len(looks) < 2 * SETTLED:
                continue
            more = grown(looks)
            most = max(MOST_GROWTH_MIB, MOST_GROWTH_SHARE * looks[SETTLED].resident_mib)
            for what, by, may in (
                ("MiB", more.resident_mib, most),
                ("open files", more.files, MOST_FILES),
                ("threads", more.threads, MOST_FILES),
            ):
                if by > may:
                    said.append(f"{name} ({pid}) grew by {by:.0f} {what} in {len(looks)} looks")
        return said


def grown(looks: Sequence[Look]) -> Look:
    """Return the medians of the last looks less those of the first after it settled."""
    early, late = looks[SETTLED:][:SETTLED], looks[-SETTLED:]

    def more(name: str) -> float:
        before, after = ([float(getattr(one, name)) for one in some] for some in (early, late))
        return statistics.median(after) - statistics.median(before)

    return Look(more("resident_mib"), round(more("files")), round(more("threads")))


def look_at(pid: int) -> Look:
    """Return what a process holds now.

    Raises:
        OSError: it is gone.
    """
    process = Path("/proc") / str(pid)
    pages = int((process / "statm").read_text().split()[1])
    return Look(
        pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        len(list((process / "fd").iterdir())),
        len(list((process / "task").iterdir())),
    )


async def soak(federation: Federation, hours: float, kill_every_s: float) -> tuple[Campaign, Lives]:
    """Let runs go on for `hours`, and kill a process about every `kill_every_s` seconds.

    Raises:
        Disagreement: the witnesses of a run disagree, or one does not end.
    """
    campaign, lives = Campaign(federation, seed=1), Lives()
    rng = random.Random("soak")  # noqa: S311 - a schedule, no secret
    async with campaign.running():
        ends = time.monotonic() + 3600 * hours
        kill = time.monotonic() + kill_every_s
        while (now := time.monotonic()) < ends:
            await asyncio.sleep(min(SAMPLE_S, max(0.0, ends - now)))
            campaign.check()
            lives.look(federation)
            if time.monotonic() >= kill:
                await campaign.chain(rng.choice([*federation.processes]), [])
                kill = time.monotonic() + rng.uniform(0.5, 1.5) * kill_every_s
            _say(f"{len(campaign.runs.compared)} runs, {len(campaign.trials)} kills, "
                 f"{max(0.0, ends - time.monotonic()) / 3600:.2f} h to go")  # fmt: skip
    return campaign, lives


def figures_of(hours: float, campaign: Campaign, lives: Lives) -> Mapping[str, float]:
    """Return the row's figures."""
    grew = lives.growth()
    hub = grew.pop(COORDINATOR, Look(0.0, 0, 0))
    nodes = [one.resident_mib for one in grew.values()]
    return {
        "soaked_hours": round(hours, 2),
        "kills": len(campaign.trials),
        "coordinator_grew_by_mib": round(hub.resident_mib, 1),
        "hospital_grew_by_mib": round(max(nodes, default=0.0), 1),
        "open_files_more": max([hub.files, *(one.files for one in grew.values())]),
    }


def main(arguments: list[str]) -> int:
    """Soak; 1 if a run went wrong or something leaks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--kill-every", type=float, default=1200.0, help="seconds, about")
    parser.add_argument("--store", default="", help="postgresql, or a database's URL")
    given = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="fedcare-soak-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # ends what it started
    with federation_on(folder, given.store) as federation:
        try:
            campaign, lives = asyncio.run(soak(federation, given.hours, given.kill_every))
        except Disagreement as found:
            _say(f"DISAGREEMENT, kept in {folder}:\n{found}")
            return 1
    shutil.rmtree(folder)
    leaks = lives.leaks()
    for leak in leaks:
        _say(f"LEAK: {leak}")
    record(SOAK, trials=len(campaign.runs.compared), failures=len(leaks),
           **figures_of(given.hours, campaign, lives))  # fmt: skip
    return int(bool(leaks))


def _say(words: str) -> None:
    print(words, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
