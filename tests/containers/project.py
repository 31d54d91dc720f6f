"""A compose project as the tests drive it: by the commands that an operator types.

Works with `docker compose` and with `docker-compose` 1.29, whichever is there (`COMPOSE`
names another one). Every wait has an end, and says what it saw when it gives up.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

FIGURES: list[str] = []
"""What the tests measured; the session prints it at its end."""

ROOT = Path(__file__).resolve().parents[2]
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
SERVERS = ("coordinator", *HOSPITALS)


def run(
    command: list[str],
    *,
    timeout: float = 60,
    check: bool = True,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command in the root of the tree; its output is part of the failure, if it fails."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "DOCKER_BUILDKIT": "0", **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode != 0:
        said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        pytest.fail(f"{shlex.join(command)} ended with {done.returncode}:\n{said}")
    return done


def docker(*arguments: str, timeout: float = 60, check: bool = True) -> str:
    """Run `docker ...` and return what it printed."""
    return run(["docker", *arguments], timeout=timeout, check=check).stdout.strip()


def until(condition: Callable[[], Any], what: str, timeout: float, pause: float = 0.2) -> Any:  # noqa: ANN401
    """Wait for a condition to be true and return it."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"not within {timeout:g} s: {what}")
        time.sleep(pause)
    return value


def compose_command() -> list[str]:
    """Return the compose program that is installed."""
    if named := os.environ.get("COMPOSE"):
        return shlex.split(named)
    if run(["docker", "compose", "version"], check=False).returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    pytest.skip("no docker compose: apt-get install docker-compose, or name one in COMPOSE")


@dataclass
class Project:
    """One project of the shipped compose file; its volumes are its own."""

    name: str
    env: dict[str, str] = field(default_factory=dict)

    def compose(self, *arguments: str, timeout: float = 120, check: bool = True) -> str:
        """Run compose with this project's name and return standard output."""
        command = [*compose_command(), "-p", self.name, *arguments]
        return run(command, timeout=timeout, check=check, env=self.env).stdout

    def container(self, service: str) -> str:
        """Return the container's id; compose 1.29 and 2 label it alike."""
        labels = [
            f"label=com.docker.compose.project={self.name}",
            f"label=com.docker.compose.service={service}",
            "label=com.docker.compose.oneoff=False",
        ]
        filters = [part for label in labels for part in ("--filter", label)]
        return docker("ps", "-aq", "--no-trunc", *filters).splitlines()[0]

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine knows of the container."""
        found: dict[str, Any] = json.loads(docker("inspect", self.container(service)))[0]
        return found

    def logs(self, service: str) -> list[str]:
        """Return everything the container said so far."""
        done = run(["docker", "logs", self.container(service)])
        return [*done.stdout.splitlines(), *done.stderr.splitlines()]

    def python(self, service: str, code: str) -> str:
        """Run a Python program inside the running container."""
        return docker("exec", self.container(service), "python3", "-c", code)

    def event(self, pattern: str, *, after: int = 0, timeout: float = 60) -> tuple[int, str]:
        """Wait for a line of the coordinator; return the number of lines up to it, and it."""
        expression = re.compile(pattern)

        def find() -> tuple[int, str] | None:
            for number, line in enumerate(self.logs("coordinator"), start=1):
                if number > after and expression.search(line):
                    return number, line
            return None

        found: tuple[int, str] = until(find, f"a line of the coordinator like {pattern}", timeout)
        return found

    def wait_exit(self, service: str, timeout: float) -> int:
        """Wait for a one-shot container to end; return its exit code."""

        def ended() -> dict[str, Any] | None:
            state = self.inspect(service)["State"]
            return state if state["Status"] == "exited" else None

        state = until(ended, f"{service} ends", timeout)
        return int(state["ExitCode"])

    def wait_healthy(self, *services: str, timeout: float = 60) -> None:
        """Wait until the health checks of these containers pass."""
        for service in services:
            until(partial(self.is_healthy, service), f"{service} is healthy", timeout, pause=1)

    def is_healthy(self, service: str) -> bool:
        """Whether the container's last health check passed."""
        return bool(self.inspect(service)["State"]["Health"]["Status"] == "healthy")

    def researcher(self, *arguments: str, timeout: float = 120, mount: Path | None = None) -> str:
        """Run a command of the researcher's in a container of its own."""
        volume = ["-v", f"{mount}:/study.yaml:ro"] if mount else []
        person = ["--coordinator", "coordinator:8443", "--tls", "/etc/fedcare-tls"]
        return self.compose(
            "run", "--rm", "-T", *volume, "researcher", *arguments, *person, timeout=timeout
        )

    def forget(self) -> None:
        """Remove containers, networks and volumes."""
        self.compose("down", "--volumes", "--remove-orphans", "-t", "5", check=False)
