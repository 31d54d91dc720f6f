"""One event's work in a coordinator's round: facts and commands, in order; and the end.

The decisions that cannot be taken back (the header, S, the certificate, the end) are
each one fact, recorded before any node hears of them.
"""

from __future__ import annotations

from typing import Final, TypeVar

from common.errors import InternalError
from common.ids import NodeId, RoundNo
from common.secagg.coordinator_facts import (
    Close,
    Record,
    Report,
    RoundAborted,
    RoundClosed,
    RoundCommand,
    RoundFact,
    apply,
)
from common.secagg.coordinator_state import RoundPhase, RoundState, SumOpened
from common.secagg.header import Header
from common.secagg.messages import FromCoordinator, RoundResult, RoundStatus, UploadEnd
from common.secagg.setup_state import ArmTimer, SendTo

LEAST_WAIT_S: Final = 2.0
WAIT_SHARE: Final = 0.1
"""Commits, releases and shares are each awaited for this share of the round's deadline."""

T = TypeVar("T")
_ENDED: Final = (RoundPhase.CLOSED, RoundPhase.ABORTED)


class Step:
    """One event's work: the state as it grows, and the commands so far."""

    def __init__(self, state: RoundState) -> None:
        self.state = state
        self.commands: list[RoundCommand] = []

    def record(self, fact: RoundFact) -> None:
        """Apply a fact and have it stored."""
        self.state = apply(self.state, fact)
        self.commands.append(Record(fact))

    def send(self, to: NodeId, message: FromCoordinator) -> None:
        """Have a message sent."""
        self.commands.append(SendTo(to, message))

    def arm(self, name: str) -> None:
        """Arm the timer of the phase just entered."""
        self.commands.append(ArmTimer(name, wait_s(self.header, name)))

    def report(self, nodes: tuple[NodeId, ...], code: str, detail: str) -> None:
        """Have a fault logged."""
        self.commands.append(Report(nodes, code, detail))

    @property
    def header(self) -> Header:
        """The round's header; it exists from RUNNING on."""
        if self.state.header is None:
            raise InternalError("the round has no header yet")
        return self.state.header


def wait_s(header: Header, name: str) -> float:
    """Return how long a timer runs, in seconds; one deadline governs all of them."""
    deadline_s = header.deadline_ms / 1000
    return deadline_s if name == "round" else max(LEAST_WAIT_S, WAIT_SHARE * deadline_s)


def find(table: tuple[tuple[NodeId, T], ...], node: NodeId) -> T | None:
    """Return a node's entry in a list of (node, value), None if there is none."""
    return next((value for known, value in table if known == node), None)


def ends(state: RoundState) -> dict[NodeId, UploadEnd]:
    """Return every stored end record."""
    return {upload.sender: upload.end for upload in state.uploads}


def result(state: RoundState) -> RoundResult:
    """Return what all members are told once the round has ended."""
    opened = state.phase is RoundPhase.CLOSED
    return RoundResult(
        hd=state.hd,
        status=RoundStatus.OPENED if opened else RoundStatus.ABORTED,
        digests=state.digests if state.certificate is not None else (),
        sum_sha256=state.sum_sha256,
        model_sha256=state.model_sha256,
        next_r=RoundNo(state.r + 1),
        reason=state.reason,
    )


def sum_opened(step: Step, event: SumOpened) -> None:
    """Close the round; the driver has used the sum.

    Raises:
        InternalError: no sum is open.
    """
    if step.state.phase is RoundPhase.CLOSED:
        return
    if step.state.phase is not RoundPhase.OPENED:
        raise InternalError("no sum is open in this round")
    step.record(RoundClosed(event.sum_sha256, event.model_sha256))
    _finish(step, RoundStatus.OPENED, ())


def abort(step: Step, reason: str, sit_out: tuple[NodeId, ...] = ()) -> None:
    """End the round without a sum and say why; nothing more of it is ever opened."""
    if step.state.phase in _ENDED:
        return
    step.record(RoundAborted(reason))
    _finish(step, RoundStatus.ABORTED, sit_out)


def _finish(step: Step, status: RoundStatus, sit_out: tuple[NodeId, ...]) -> None:
    message = result(step.state)
    for node, _ in step.state.session.keys:
        step.send(node, message)
    step.commands.append(Close(status, step.state.reason, sit_out))
