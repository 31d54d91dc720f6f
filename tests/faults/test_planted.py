"""The simulation can fail: each of these defects, planted in the product, is found.

A campaign that finds nothing says something only if it would find something. The sixth
defect, a write that is not flushed, is planted where lost writes are tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import pytest

from common.ids import NodeId
from common.messages import UploadAck
from common.secagg.header import Header
from common.secagg.messages import Resume, ResumeState, UploadEnd
from common.secagg.node_state import Phase, decode_state
from common.secagg.rerun import RerunMemory
from common.study import Study
from coordinator import run_facts
from coordinator.driver import RunDriver
from coordinator.run_state import UploadComplete
from hospital_node.private.books import Books
from hospital_node.store import NodeStore, SessionRecord
from tests.faults.campaign import run_plan, scratch
from tests.faults.plan import draw

MOST_SEEDS: Final = 60

Plant = Callable[[pytest.MonkeyPatch], None]


def receipt_before_write(patch: pytest.MonkeyPatch) -> None:
    """The coordinator acknowledges an upload that its store does not hold yet."""

    async def hasty(self: RunDriver, node: NodeId, end: UploadEnd) -> UploadAck:
        file = self.spool_file(node, end.hd)
        if not self._is_counted(node, end):
            ydig = await self._on_disk(lambda: self._settle(file, end))
            self.post(UploadComplete(node, end, ydig, file.expected_bytes))
        return UploadAck(end.hd, end.ydig)

    patch.setattr(RunDriver, "finish_upload", hasty)


def second_survivor_set(patch: pytest.MonkeyPatch) -> None:
    """After a round that was signed and voided both sides take any other set for its model."""

    def anything(self: RerunMemory, header: Header, survivors: Iterable[NodeId]) -> None:
        del self, header, survivors

    patch.setattr(run_facts, "_signed", lambda ended: ())
    patch.setattr(RerunMemory, "check_set", anything)


def refunded_budget(patch: pytest.MonkeyPatch) -> None:
    """What a round cost that failed pays for the next try from the same model."""
    charge, paid = Books.charge, dict[tuple[int, bytes], None]()

    def thrifty(self: Books, study: Study, header: Header) -> None:
        key = (id(self), bytes(header.model_sha256))
        if key not in paid:
            charge(self, study, header)
        paid[key] = None

    patch.setattr(Books, "charge", thrifty)


def unsealed_update_trained_again(patch: pytest.MonkeyPatch) -> None:
    """An update leaves before the session says so durably: a restart trains another one."""
    save = NodeStore.save_session

    def late(self: NodeStore, task: str, record: SessionRecord) -> None:
        session = decode_state(record.state).session
        if session is None or session.open is None or session.open.phase is not Phase.UPLOADING:
            save(self, task, record)

    patch.setattr(NodeStore, "save_session", late)


def offset_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """A broken upload goes on one chunk too far."""
    right = RunDriver.resume_state

    def wrong(self: RunDriver, node: NodeId, message: Resume) -> ResumeState:
        found = right(self, node, message)
        return ResumeState(found.hd, found.next_chunk + 1, found.done)

    patch.setattr(RunDriver, "resume_state", wrong)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (receipt_before_write, "receipts for what was not stored"),
        (second_survivor_set, "two sets signed for one model"),
        (refunded_budget, "noise that its ledger does not charge"),
        (unsealed_update_trained_again, "two vectors for one header"),
        (offset_off_by_one, "UPLOAD_SIZE"),
    ],
)
def test_a_planted_defect_is_found(
    plant: Plant, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    found = []
    with scratch() as root:
        for seed in range(MOST_SEEDS):
            problem = run_plan(root, draw(seed)).problem
            found.append(problem)
            if problem is not None and words in problem:
                return
    pytest.fail(f"not found by {MOST_SEEDS} seeds: {[one for one in found if one]}")
