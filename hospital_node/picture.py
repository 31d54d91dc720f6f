"""What the node's event loop shows to health checks and metrics: a frozen copy, once a second."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Picture:
    """What the event loop saw at its last beat."""

    connected: bool
    stopping: bool
    writes: bool
    """Whether the last write of the status went well."""
    attempts: int
    """Dials since the start."""
    accepted: int
    refused: int


def not_ready(seen: Picture) -> str:
    """Return why the node takes no part in rounds now, in one line; empty if it does."""
    if seen.stopping:
        return "stopping"
    if not seen.writes:
        return "the state directory takes no writes"
    return "" if seen.connected else f"not connected, {seen.attempts} attempts"
