"""One federation in containers for the whole session, started as a new user would."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.containers.project import FIGURES, ROOT, Project, docker, run

IMAGES = ("fedcare/coordinator:0.1.0", "fedcare/simulation:0.1.0", "fedcare/node:0.1.0")
BUILD_S = 240.0
UP_S = 90.0


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """Skip by name where no engine answers; `engine.sh start` says what is missing."""
    if run(["docker", "info"], check=False).returncode != 0:
        pytest.skip("no Docker engine answers; tests/containers/engine.sh start makes one as root")


@dataclass(frozen=True)
class Built:
    """How long the images took to build, in seconds."""

    seconds: float


@pytest.fixture(scope="session")
def built() -> Built:
    """Build the three images with the network off, from the wheel house alone."""
    if not list((ROOT / "deploy" / "wheelhouse").glob("*.whl")):
        pytest.fail("deploy/wheelhouse is empty: `make test-containers` fills it first")
    began = time.monotonic()
    project = Project("fedcare-build", {"BUILD_NETWORK": "none"})
    project.compose("build", "coordinator", "pki", "cleveland", timeout=900)
    return Built(time.monotonic() - began)


@dataclass
class Federation:
    """A running project, and how long its first `up` took."""

    project: Project
    seconds: float


@pytest.fixture(scope="session")
def federation(built: Built) -> Iterator[Federation]:
    """`up` from nothing, until the researcher holds a verified model."""
    del built
    project = Project(f"fedcare-test-{os.getpid()}")
    began = time.monotonic()
    try:
        project.compose("up", "-d", timeout=180)
        code = project.wait_exit("researcher", timeout=180)
        seconds = time.monotonic() - began
        assert code == 0, "\n".join(project.logs("researcher")[-20:])
        yield Federation(project, seconds)
    finally:
        keep_logs(project)
        project.forget()


def keep_logs(project: Project) -> None:
    """Leave what every container said where CI's reader finds it."""
    folder = ROOT / "build" / "containers"
    folder.mkdir(parents=True, exist_ok=True)
    for line in docker(
        "ps", "-a", "--filter", f"label=com.docker.compose.project={project.name}",
        "--format", "{{.ID}} {{.Names}}", check=False,
    ).splitlines():  # fmt: skip
        identifier, name = line.split()
        done = run(["docker", "logs", identifier], check=False)
        (folder / f"{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")


@pytest.fixture(scope="session")
def slow_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration's study with rounds of some seconds, so that there is a middle to hit."""
    return _slow_study(tmp_path_factory, "25s")


@pytest.fixture(scope="session")
def patient_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with time for a hospital to start and train anew, on a loaded machine too.

    Runs of it end in equal models. One that went on without a hospital would not: the others
    signed the whole set for that very model in the run they are compared with (RERUN).
    """
    return _slow_study(tmp_path_factory, "150s")


def _slow_study(tmp_path_factory: pytest.TempPathFactory, deadline: str) -> Path:
    study = yaml.safe_load((ROOT / "studies" / "heart-disease.yaml").read_text(encoding="utf-8"))
    study["id"] = "heart-slow"
    study["train"]["local_steps"] = 2500
    study["federation"]["rounds"] = 6
    study["federation"]["round_deadline"] = deadline
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    path.chmod(0o644)
    path.parent.chmod(0o755)
    return path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was measured."""
    if FIGURES:
        terminalreporter.section("figures")
    for line in FIGURES:
        terminalreporter.write_line(line)
