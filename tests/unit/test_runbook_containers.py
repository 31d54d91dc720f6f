"""Each command of the runbook's "In containers" names a service, a command and files there are."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from common.cli import _find

ROOT: Final = Path(__file__).parents[2]
COMPOSE: Final = (ROOT / "docker-compose.yml", ROOT / "deploy" / "site" / "docker-compose.yml")
VALUES: Final = frozenset({"--volume", "--entrypoint", "--signal"})


def commands() -> list[str]:
    text = (ROOT / "deploy" / "RUNBOOK.md").read_text(encoding="utf-8")
    section = text.partition("### In containers")[2].partition("\n### ")[0]
    lines = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    return [line for line in lines if line.startswith("docker compose ")]


def services() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in COMPOSE:
        found |= yaml.safe_load(path.read_text(encoding="utf-8"))["services"]
    return found


def split(line: str) -> tuple[str, str, list[str]]:
    """Return what compose does, to which service, and the words after it."""
    _, _, act, *words = shlex.split(line, comments=True)
    while words[0].startswith("--"):
        del words[: 2 if words[0] in VALUES else 1]
    return act, words[0], words[1:]


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_runbook_is_one_that_the_container_has(line: str) -> None:
    act, service, words = split(line)
    volumes = services()[service]["volumes"]
    if act in {"stop", "start", "kill"} or "--entrypoint" in line:
        return
    assert words[-2] == "--config"
    config = Path(words[-1])
    assert any(f":{config.parent}" in volume for volume in volumes)
    assert config.name == ("coordinator.yaml" if service == "coordinator" else "node.yaml")
    if act == "exec":
        assert words.pop(0) == "fedcare", "run has it as the entry point; exec has not"
    command: Any = _find(words[0])
    rest = words[1:]
    if hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    command.make_context("fedcare", rest)  # refuses what it does not know


def test_every_order_is_there_in_its_container_form() -> None:
    said = " ".join(commands())
    for order in ("accept-loss", "unlock", "verify", "backup", "restore", "doctor", "SIGUSR1"):
        assert f" {order} " in said, order
