"""Containers that are killed and paused in the middle of a round, and come back by themselves.

The study's rounds take some seconds, so that there is a middle. Runs that are compared are of
the same study and seed, without privacy noise, on the same tables. Runs that lose a hospital
have seeds of their own: hospitals that summed a model's updates in one set refuse to sum those
of the very same model in another (RERUN, docs/protocol.md, section 10.4).
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.containers.conftest import Federation
from tests.containers.project import FIGURES, HOSPITALS, Project, docker

pytestmark = [pytest.mark.containers, pytest.mark.timeout(420, func_only=True)]

INTO_THE_ROUND_S = 0.7
DEADLINE_S = 25


class Run:
    """One run of the slow study."""

    def __init__(self, project: Project, study: Path, seed: int = 1) -> None:
        self.project = project
        self.seen = len(project.logs("coordinator"))
        submit = ("study", "submit", "/study.yaml", "--seed", str(seed), "--json")
        answer = json.loads(project.researcher(*submit, mount=study))
        self.run_id: str = answer["data"]["run_id"]

    def line(self, event: str, *, round_no: int | None = None, timeout: float = 90) -> str:
        """Wait for an event of this run and return its line."""
        number = f"round={round_no}" if round_no is not None else ""
        pattern = rf" {event} .*{self.run_id}.*{number}\b"
        return self.project.event(pattern, after=self.seen, timeout=timeout)[1]

    def middle_of_round(self, number: int) -> None:
        """Return while hospitals are training in this round."""
        self.line("round.opened", round_no=number)
        time.sleep(INTO_THE_ROUND_S)
        closed = [
            line
            for line in self.project.logs("coordinator")
            if self.run_id in line and f"round={number} " in line and " round.closed " in line
        ]
        assert closed == [], "the round was over before its middle; the machine is too fast"

    def model_sha256(self, timeout: float = 240) -> str:
        """Wait for the run's end and return the hash of its model."""
        self.line("run.finished", timeout=timeout)
        said = self.project.compose(
            "run", "--rm", "-T", "--entrypoint", "sh", "researcher", "-c",
            f"fedcare model pull {self.run_id} --out /tmp/model --coordinator coordinator:8443"
            f" --tls /etc/fedcare-tls --json",
        )  # fmt: skip
        data: dict[str, Any] = json.loads(said)["data"]
        return str(data["model_sha256"])

    def dropped(self, number: int, timeout: float = 90) -> list[str]:
        """Return whom a closed round did without."""
        found = re.search(
            r" dropped=(\S+)", self.line("round.closed", round_no=number, timeout=timeout)
        )
        return [] if found is None or found[1] == "-" else found[1].split(",")


@pytest.fixture(scope="module")
def undisturbed(federation: Federation, patient_study: Path) -> str:
    """The model's hash when nothing happens."""
    federation.project.wait_healthy("coordinator", *HOSPITALS)
    return Run(federation.project, patient_study).model_sha256()


def restarts(project: Project, service: str) -> int:
    return int(project.inspect(service)["RestartCount"])


def crash(project: Project, service: str) -> None:
    """Kill the process as the kernel would for lack of memory; the engine then restarts it."""
    os.kill(project.inspect(service)["State"]["Pid"], signal.SIGKILL)


def test_a_coordinator_that_crashes_in_a_round_comes_back_to_the_same_model(
    federation: Federation, patient_study: Path, undisturbed: str
) -> None:
    project = federation.project
    before = restarts(project, "coordinator")
    run = Run(project, patient_study)
    run.middle_of_round(3)
    began = time.monotonic()
    crash(project, "coordinator")
    run.line("state.recovered", timeout=60)
    FIGURES.append(f"coordinator serves again {time.monotonic() - began:.1f} s after its crash")
    assert run.dropped(3) == []
    assert run.model_sha256() == undisturbed
    assert restarts(project, "coordinator") == before + 1


def test_a_coordinator_killed_by_the_engine_goes_on_when_it_is_started(
    federation: Federation, patient_study: Path, undisturbed: str
) -> None:
    project = federation.project
    run = Run(project, patient_study)
    run.middle_of_round(4)
    docker("kill", "-s", "KILL", project.container("coordinator"))
    docker("start", project.container("coordinator"))
    assert run.dropped(4) == []
    assert run.model_sha256() == undisturbed


def test_a_run_that_a_stop_of_everything_interrupts_goes_on_at_the_next_up(
    federation: Federation, patient_study: Path, undisturbed: str
) -> None:
    project = federation.project
    run = Run(project, patient_study)
    run.middle_of_round(3)
    project.compose("stop", "-t", "15", timeout=120)
    project.compose("up", "-d", timeout=180)
    assert run.dropped(3) == []
    assert run.model_sha256() == undisturbed
    project.wait_healthy("coordinator", *HOSPITALS)


def test_a_hospital_killed_in_a_round_is_named_and_the_round_closes(
    federation: Federation, slow_study: Path
) -> None:
    project = federation.project
    run = Run(project, slow_study, seed=2)
    run.middle_of_round(3)
    began = time.monotonic()
    docker("kill", "-s", "KILL", project.container("va"))
    lost = run.project.event(r" link\.lost .*site=va", after=run.seen, timeout=20)[1]
    assert "va" in lost
    assert run.dropped(3) == ["va"]
    FIGURES.append(f"round without the killed hospital closed {time.monotonic() - began:.1f} s on")
    # `docker kill` is a person's act: the engine restarts nothing until a person starts it.
    # Nothing else has to be said to the hospital, nor to anybody else.
    docker("start", project.container("va"))
    project.event(r" link\.connected .*site=va", after=run.seen, timeout=60)
    rounds = [run.dropped(number, timeout=120) for number in (4, 5, 6, 7)]
    assert rounds[-1] == []
    run.model_sha256()


def test_a_hospital_that_crashes_comes_back_without_a_command_and_still_counts(
    federation: Federation, patient_study: Path, undisturbed: str
) -> None:
    project = federation.project
    before = restarts(project, "cleveland")
    run = Run(project, patient_study)
    run.middle_of_round(3)
    crash(project, "cleveland")
    assert run.dropped(3) == []
    assert restarts(project, "cleveland") == before + 1
    assert run.model_sha256() == undisturbed


def test_a_paused_hospital_is_waited_for_until_the_deadline_and_named(
    federation: Federation, slow_study: Path
) -> None:
    project = federation.project
    run = Run(project, slow_study, seed=3)
    run.middle_of_round(3)
    began = time.monotonic()
    docker("pause", project.container("hungarian"))
    try:
        waiting = run.line("round.waiting", round_no=3, timeout=60)
        assert "hungarian" in waiting
        assert "until=" in waiting
        assert run.dropped(3) == ["hungarian"]
        assert time.monotonic() - began < DEADLINE_S + 15
        project.event(r" link\.lost .*site=hungarian", after=run.seen, timeout=60)
    finally:
        docker("unpause", project.container("hungarian"))
    project.wait_healthy("hungarian", timeout=90)
    project.event(r" link\.connected .*site=hungarian", after=run.seen, timeout=90)
    run.model_sha256()
