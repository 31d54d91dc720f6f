"""From the line `service.started` on, one signal ends a service in order, whenever it comes."""

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
import gc, importlib, os, signal, sys
from pathlib import Path

for name in ("common.cli", "coordinator.cli", "coordinator.app", "hospital_node.cli",
             "hospital_node.app", "hospital_node.grpc_link", "alembic.command", "sqlite3",
             "sqlalchemy.dialects.sqlite"):
    importlib.import_module(name)
from common.cli import main
from common.events import Event
from common.logs import EventLog

say = EventLog.info

def info(self, event, **said):
    say(self, event, **said)
    if event is Event.SERVICE_STARTED:
        left = [at]

        def step(_frame, what, _argument):
            left[0] -= 1
            if left[0] < 0:
                sys.setprofile(None)
                os.kill(os.getpid(), signal.SIGTERM)

        sys.setprofile(step)

EventLog.info = info
gc.freeze()
for at in map(int, sys.argv[5:]):
    child = os.fork()
    if child == 0:
        out = os.open(f"{at}.words", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.exit(main(sys.argv[1:5]))
    print(at, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""The command itself, again and again, with a SIGTERM at another of its steps each time: a step
is a call of a function or the return from one."""

MOST = 1200
"""Steps until calls are taken, and the first connection was tried."""


@pytest.mark.fault("F16")
@pytest.mark.timeout(trials(change=120, nightly=1200, release=1200))
@pytest.mark.parametrize("service", ["coordinator", "node"])
def test_a_signal_at_any_step_after_the_start_ends_in_order(tmp_path: Path, service: str) -> None:
    study, sites = small_study(), [SitePlan(site) for site in ("east", "north")]
    plan = FederationPlan(tmp_path / "fed", "heart", study, sites, TIMING)
    build(plan, free_address())
    folder = plan.coordinator_folder if service == "coordinator" else plan.site_folder("east")
    few = {0, 2, 5, 12, 30, 80, 250, MOST}
    steps = sorted(few | set(range(0, trials(change=0, nightly=MOST, release=MOST), 7)))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, service, "serve", "--config", f"{service}.yaml",
         *map(str, steps)],
        cwd=folder, env={**os.environ, **environment(), "LOG_FORMAT": "json"},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    ended = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [step for step, _ in ended] == steps
    for step, code in ended:
        words = (folder / f"{step}.words").read_text()
        assert code == 0, f"step {step}: {code}\n{words}"
        said = [json.loads(line)["event"] for line in words.splitlines()]
        assert said.count("service.stopping") == 1, (step, said)
        assert said[-1] == "service.stopped", (step, said)
    record("F16", trials=len(ended), failures=0)
