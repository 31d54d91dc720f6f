"""The end of a run: its release is sent to every hospital, which says that it keeps it."""

from __future__ import annotations

from common.errors import Refusal
from common.events import Event
from common.ids import NodeId
from common.messages import ReleaseReceipt
from common.views import RunPhase
from coordinator.run_state import (
    Received,
    Released,
    ReleaseMade,
    SendRelease,
)
from coordinator.run_step import RELEASE, Step, end


def release_made(step: Step, event: ReleaseMade) -> None:
    """The release is in the store: send it to every hospital that is here."""
    step.record(Released(event.manifest_sha256))
    step.tell(Event.MODEL_PUBLISHED, manifest=event.manifest_sha256.hex()[:16])
    state = step.state
    due = (state.accepted & state.connected) - state.receipts
    step.do(*(SendRelease(node) for node in sorted(due)))
    step.timer(RELEASE, step.ctx.timing.release)
    _finish_when_received(step)


def receipt(step: Step, node: NodeId, message: ReleaseReceipt) -> None:
    """A hospital keeps the release; the run ends when all that are here do.

    Raises:
        Refusal: OUT_OF_TURN, it is another release's.
    """
    state = step.state
    if message.manifest_sha256 != state.released:
        raise Refusal("OUT_OF_TURN", "the receipt is for another release")
    if node not in state.receipts:
        step.record(Received(node))
    _finish_when_received(step)


def _finish_when_received(step: Step) -> None:
    state = step.state
    if (
        state.phase is RunPhase.RELEASING
        and not (state.accepted & state.connected) - state.receipts
    ):
        end(step, RunPhase.FINISHED, "")
