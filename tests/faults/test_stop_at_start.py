"""One signal ends a service in order: SIGTERM from the line `service.started` on, SIGUSR1 ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from researcher.local import FederationPlan, SitePlan, build, free_address
from researcher.processes import environment
from tests.faults.budget import trials
from tests.faults.record import record
from tests.small_study import TIMING, small_study

PROGRAM = """
import atexit, gc, importlib, os, signal, sys
from pathlib import Path

for name in ("common.cli", "coordinator.cli", "coordinator.app", "hospital_node.cli",
             "hospital_node.app", "hospital_node.grpc_link", "alembic.command", "sqlite3",
             "sqlalchemy.dialects.sqlite"):
    importlib.import_module(name)
from common import cli
from common.cli import main
from common.events import Event
from common.logs import EventLog

say, number, since = EventLog.info, signal.Signals[sys.argv[5]], sys.argv[6]

def count_down(left):
    def step(_frame, what, _argument):
        nonlocal left
        left -= 1
        if left < 0:
            sys.setprofile(None)
            os.kill(os.getpid(), number)

    sys.setprofile(step)

def guarded(args, **how):
    atexit.register(os.kill, os.getpid(), number)  # and once more, when all is over
    count_down(at)
    return run(args, **how)

def info(self, event, **said):
    say(self, event, **said)
    if event is Event.SERVICE_STARTED and since == "started":
        count_down(at)
    elif event is Event.SERVICE_STARTED and sys.getprofile() is not None:
        sys.setprofile(None)  # it came that far in fewer steps
        os.kill(os.getpid(), number)

EventLog.info, run = info, cli._guarded
if since == "called":
    cli._guarded = guarded
gc.freeze()
for at in map(int, sys.argv[7:]):
    child = os.fork()
    if child == 0:
        out = os.open(f"{at}.words", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.exit(main(sys.argv[1:5]))
    print(at, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""The command itself, again and again, with a signal at another of its steps each time: a step
is a call of a function or the return from one, since the line `service.started` or the call."""

MOST = 1200
"""Steps until calls are taken, and the first connection was tried."""

AT_THE_LINE = 10**9
"""More steps than a start has: then the signal comes with the line `service.started`."""


@pytest.mark.fault("F16")
@pytest.mark.timeout(trials(change=120, nightly=1200, release=1200))
@pytest.mark.parametrize("service", ["coordinator", "node"])
def test_a_signal_at_any_step_after_the_start_ends_in_order(tmp_path: Path, service: str) -> None:
    few = {0, 2, 5, 12, 30, 80, 250, MOST}
    steps = few | set(range(0, trials(change=0, nightly=MOST, release=MOST), 7))
    _ends(tmp_path, service, "SIGTERM", "started", steps)


@pytest.mark.fault("F16")
@pytest.mark.timeout(trials(change=120, nightly=1200, release=1200))
@pytest.mark.parametrize("service", ["coordinator", "node"])
def test_an_order_to_drain_at_any_step_of_the_start_is_neither_lost_nor_deadly(
    tmp_path: Path, service: str
) -> None:
    few = {0, 1000, 30_000, AT_THE_LINE}
    steps = few | set(range(0, trials(change=0, nightly=300_000, release=300_000), 7000))
    for said in _ends(tmp_path, service, "SIGUSR1", "called", steps):
        assert said.count("service.draining") == 1, said
        assert said.count("service.started") == 1, said


def _ends(
    tmp_path: Path, service: str, number: str, since: str, steps: set[int]
) -> list[list[str]]:
    """Have the service end in order each time; return which events it told."""
    study, sites = small_study(), [SitePlan(site) for site in ("east", "north")]
    plan = FederationPlan(tmp_path / "fed", "heart", study, sites, TIMING)
    build(plan, free_address())
    folder = plan.coordinator_folder if service == "coordinator" else plan.site_folder("east")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, service, "serve", "--config", f"{service}.yaml",
         number, since, *map(str, sorted(steps))],
        cwd=folder, env={**os.environ, **environment(), "LOG_FORMAT": "json"},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    ended = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [step for step, _ in ended] == sorted(steps)
    told = []
    for step, code in ended:
        words = (folder / f"{step}.words").read_text()
        assert code == 0, f"step {step}: {code}\n{words}"
        said = [json.loads(line)["event"] for line in words.splitlines()]
        assert said.count("service.stopping") == 1, (step, said)
        assert said[-1] == "service.stopped", (step, said)
        told.append(said)
    record("F16", trials=len(ended), failures=0)
    return told
