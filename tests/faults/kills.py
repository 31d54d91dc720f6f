"""Which kills there are: of whom, at which point, and which fault of the table each is."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from common.secagg.coordinator_state import RoundPhase
from coordinator.run_state import RunState
from coordinator.run_step import current_kind
from tests.faults.checker import COORDINATOR

MOST_REACHES: Final[dict[str, int]] = {
    "coordinator.run": 1, "coordinator.facts": 24, "coordinator.epoch": 1,
    "coordinator.release": 1, "coordinator.end": 1, "coordinator.spool": 8,
    "coordinator.object": 4, "coordinator.sum": 3, "coordinator.send": 60,
    "coordinator.receipt": 8, "coordinator.download": 8, "node.file": 12, "node.vector": 3,
    "node.ledger": 3, "node.model": 3, "node.send": 12, "node.upload": 3, "node.receipt": 3,
}  # fmt: skip
"""How often a point of each kind is reached in about one run."""

POINTS: Final[dict[str, tuple[str, ...]]] = {
    "coordinator.run": ("before_commit", "after_commit"),
    "coordinator.facts": ("before_commit", "after_commit"),
    "coordinator.epoch": ("before_commit", "after_commit"),
    "coordinator.release": ("before_commit", "after_commit"),
    "coordinator.end": ("before_commit", "after_commit"),
    "coordinator.spool": ("before_write", "after_write", "before_fsync", "after_fsync"),
    "coordinator.object": ("before_write", "before_fsync", "before_rename", "after"),
    "coordinator.sum": ("before",),
    "coordinator.send": (),
    "coordinator.receipt": (),
    "coordinator.download": (),
    "node.file": ("before_write", "before_fsync", "before_rename", "after"),
    "node.vector": ("before_write", "before_fsync", "before_rename", "after"),
    "node.ledger": ("before_write", "before_fsync", "after"),
    "node.model": ("before_write", "before_rename", "after"),
    "node.send": (),
    "node.upload": (),
    "node.receipt": (),
}
"""Every point that a run without other failures passes."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One kill: of `who`, at its reach `at` of a point, or (no point) after `at` seconds."""

    who: str
    point: str = ""
    at: float = 0.0

    @property
    def armed(self) -> str:
        """What the process has to be started with."""
        return f"{self.point}=kill@{self.at:g}" if self.point else ""


@dataclass(slots=True)
class Trial:
    """A kill that happened, and what followed."""

    who: str
    point: str
    fault: str
    back_s: float
    """Seconds from the death until it served, or was connected, again."""
    phase: str = ""
    """C0 to C6 or N0 to N6, in which it died."""


def draw(rng: random.Random, who: str) -> Strike:
    """Return a kill at one of the process' points."""
    side = "coordinator" if who == COORDINATOR else "node"
    kind = rng.choice([kind for kind in POINTS if kind.startswith(f"{side}.")])
    steps = POINTS[kind]
    point = f"{kind}.{rng.choice(steps)}" if steps else kind
    return Strike(who, point, rng.randint(1, MOST_REACHES[kind]))


PHASES: Final = {
    "study.submitted": "F01", "run.started": "F02", "session.opened": "F02",
    "round.opened": "F03", "upload.finished": "F04", "round.proposed": "F05",
    "round.certified": "F05", "round.recovering": "F05", "round.summed": "F06",
    "round.closed": "F06", "model.published": "F07", "run.finished": "F01",
}  # fmt: skip
NODE_PHASES: Final = {
    "link.connected": "F08", "session.ready": "F08", "download.finished": "F08",
    "round.training": "F09", "upload.started": "F11", "upload.resumed": "F11",
    "upload.finished": "F12", "round.closed": "F12", "model.accepted": "F13",
    "run.finished": "F13",
}  # fmt: skip
_POINT_FAULTS: Final = {
    "coordinator.spool": "F03", "coordinator.receipt": "F03", "coordinator.epoch": "F02",
    "coordinator.sum": "F05", "coordinator.release": "F07", "coordinator.end": "F07",
    "coordinator.download": "F07", "coordinator.run": "F01", "coordinator.object": "F06",
    "node.vector.before_write": "F09", "node.vector.before_fsync": "F09",
    "node.vector.before_rename": "F10", "node.vector.after": "F10", "node.ledger": "F09",
    "node.upload": "F11", "node.receipt": "F12", "node.model": "F13",
}  # fmt: skip


FAULT_IN: Final = {
    "C0": "F01", "C1": "F02", "C2": "F03", "C3": "F05", "C4": "F05", "C5": "F06", "C6": "F07",
    "N0": "F08", "N1": "F08", "N2": "F09", "N3": "F10", "N4": "F11", "N5": "F12", "N6": "F13",
}  # fmt: skip
"""Phases of a coordinator: idle, round opened, collecting, set fixed, adding up, model committed,
publishing. Of a node: connecting, model there, training, sealed, sending, sent, model applied."""
ALL_PHASES: Final = frozenset(FAULT_IN)

_NODE_PHASE_OF: Final = {
    "link.connected": "N0", "session.ready": "N0", "download.finished": "N1",
    "round.training": "N2", "upload.started": "N4", "upload.resumed": "N4",
    "upload.finished": "N5", "round.closed": "N0", "model.accepted": "N6", "run.finished": "N0",
}  # fmt: skip
_NODE_PHASE_AT: Final = {"node.vector.after": "N3", "node.upload": "N4", "node.receipt": "N5"}


def node_phase(point: str, last: str, phase: str) -> str:
    """Return in which phase a node died: by its point, else by what was logged last.

    `phase` is the coordinator's: it tells a released model from that of a round.
    """
    if point.startswith("node.model"):
        return "N6" if phase in ("C0", "C6") else "N1"
    return _NODE_PHASE_AT.get(point, _NODE_PHASE_OF.get(last, "N0"))


def coordinator_phase(state: RunState | None) -> str:
    """Return in which phase a coordinator died, by what is stored of its youngest run."""
    if state is None or state.phase.final:
        return "C0"
    if current_kind(state) is None:
        return "C6"
    current = state.round
    if current is None or current.header is None:
        return "C5" if state.history else "C0"
    match current.phase:
        case RoundPhase.COLLECTING | RoundPhase.RUNNING:
            return "C2" if current.uploads else "C1"
        case RoundPhase.PROPOSED:
            return "C3"
        case _:
            return "C4"


def fault_of(who: str, point: str, last: str) -> str:
    """Return which fault of the table a kill was: by its point, else by what was logged last."""
    for kind, fault in _POINT_FAULTS.items():
        if point.startswith(kind):
            return fault
    phases, usual = (PHASES, "F01") if who == COORDINATOR else (NODE_PHASES, "F08")
    return phases.get(last, usual)
