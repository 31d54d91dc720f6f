"""`fedcare node status`: reads what the serving process last wrote, beside it or after it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import ConfigError, StateError
from hospital_node.store import is_locked

_KEYS = frozenset({"site", "federation", "connected", "attempts", "tasks", "decisions"})


def read_status(state_dir: Path) -> dict[str, Any]:
    """Return the node's status; `running` says whether a process holds the directory now.

    Raises:
        ConfigError: FILE_MISSING, no node has run there.
        StateError: STATE_DAMAGED, the status file is no JSON object.
    """
    path = state_dir / "status.json"
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        if is_locked(state_dir):
            raise ConfigError(
                "FILE_MISSING",
                f"the node of {state_dir} is just starting",
                fix="Ask again in a second.",
            ) from None
        raise ConfigError(
            "FILE_MISSING",
            f"{state_dir} holds no status: no node has run there yet",
            fix="Start it with `fedcare node serve`, or name another --config.",
        ) from None
    except (OSError, ValueError) as failure:
        raise StateError(
            "STATE_DAMAGED", f"{path}: {failure}", fix="Start the node: it writes the file anew."
        ) from None
    if not isinstance(found, dict) or not found.keys() >= _KEYS:
        raise StateError(
            "STATE_DAMAGED",
            f"{path} is not a status file of this version",
            fix="Start the node: it writes the file anew.",
        )
    running = is_locked(state_dir)
    return {**found, "running": running, "connected": running and found.get("connected") is True}


def noised_sums(state_dir: Path) -> dict[str, int]:
    """Return what the coordinator said last of opened noised sums, by data set; {} if nothing.

    For those who read beside the node or after it; the node itself asks anew.
    """
    try:
        found = json.loads((state_dir / "status.json").read_bytes())["noised_sums"]
        return {str(name): int(count) for name, count in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def describe(status: Mapping[str, Any], now_unix: float) -> str:
    """Return the one screen for people."""
    lines = [f"{status['site']} in federation {status['federation']}: {_link(status)}"]
    if status.get("problem"):
        lines.append(f"  last problem: {status['problem']}")
    for task in status["tasks"]:
        r = "" if task["round"] is None else f", round {task['round']}"
        lines.append(
            f"  {task['task']} (run {task['run']}{r}): {task['state']}, waiting for"
            f" {task['waiting_for']}, since {_since(task['since'], now_unix)}"
        )
    lines.extend(
        f"  run {decision['run']} refused: {'; '.join(decision['objections'])}"
        for decision in status["decisions"]
        if not decision["accepted"]
    )
    lines.extend(f"  {why}" for why in status.get("undecided", ()))
    for decision in status["decisions"]:
        lines += _people(decision)
    if not status["tasks"]:
        lines.append("  no accepted study; waiting for offers")
    return "\n".join(lines)


def _people(decision: Mapping[str, Any]) -> list[str]:
    """Say where the people of the policy have yet to approve, or said no."""
    approval = decision.get("approval")
    if approval is None or approval["verdict"] == "accepted":
        return []
    if approval["verdict"] == "waiting":
        names = ", ".join(approval["waiting_for"])
        return [f"  run {decision['run']} waits for approval by {names}"]
    return [f"  run {decision['run']} stopped: {'; '.join(approval['reasons'])}"]


def _link(status: Mapping[str, Any]) -> str:
    if not status["running"]:
        return "not running"
    if status["connected"]:
        return "connected"
    return f"not connected, {status['attempts']} attempts"


def _since(unix: float, now_unix: float) -> str:
    moment = datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{moment} ({max(0, round(now_unix - unix))} s ago)"
