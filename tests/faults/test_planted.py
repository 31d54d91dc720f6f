"""The simulation can fail: each of these defects, planted in the product, is found.

A campaign that finds nothing says something only if it would find something. The sixth
defect, a write that is not flushed, is planted where lost writes are tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import pytest

from common.ids import NodeId
from common.messages import UploadAck
from common.secagg.header import Header
from common.secagg.messages import Resume, ResumeState, UploadEnd
from common.secagg.node_state import Phase, decode_state
from common.secagg.rerun import RerunMemory
from common.study import Study
from coordinator import run_facts, run_rounds
from coordinator.driver import RunDriver
from coordinator.run_state import UploadComplete
from hospital_node.private.books import Books
from hospital_node.store import NodeStore, SessionRecord
from tests.faults.campaign import run_plan, scratch
from tests.faults.plan import DEADLINE_S, Act, Fault, Plan, draw

MOST_SEEDS: Final = 30

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

    for module in (run_facts, run_rounds):
        patch.setattr(module, "signed", lambda ended: ())
    patch.setattr(RerunMemory, "check_set", anything)


def refunded_budget(patch: pytest.MonkeyPatch) -> None:
    """What a round cost that failed pays for the next try from the same model."""
    charge, paid = Books.charge, set[tuple[str, bytes]]()

    def thrifty(self: Books, study: Study, header: Header) -> None:
        key = (self._node, bytes(header.model_sha256))
        if key not in paid:
            charge(self, study, header)
        paid.add(key)

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


def drawn() -> Iterator[Plan]:
    """Return the first seeds' plans."""
    return map(draw, range(MOST_SEEDS))


def drawn_later() -> Iterator[Plan]:
    """Return those from 50 on: of the first only one, 50, kills a hospital as it sends noise."""
    return map(draw, range(50, 50 + MOST_SEEDS))


def signed_in_part() -> Iterator[Plan]:
    """Return a plan that voids a round after two of its three had signed: few seeds do.

    One hospital is silent when it should sign; the fourth is back before it, and too late in the
    round for that to begin anew.
    """
    away = Fault(Act.CRASH, "va", 1, 0.55 * DEADLINE_S, "node.model.before_write")
    silent = Fault(Act.SILENCE, "hungarian", 0.14, 1.25 * DEADLINE_S)
    yield Plan(124, (away, silent), slowest_s=0.0)


def voiding() -> Iterator[Plan]:
    """Return a plan with noise, in which a round fails: two hospitals die as they upload."""
    down_s = 1.5 * DEADLINE_S
    gone = (Fault(Act.CRASH, site, 1, down_s, "node.upload") for site in ("hungarian", "va"))
    yield Plan(1, tuple(gone), dp="hospital")


@pytest.mark.parametrize(
    ("plant", "words", "plans"),
    [
        (receipt_before_write, "receipts for what was not stored", drawn),
        (second_survivor_set, "two sets signed for one model", signed_in_part),
        (refunded_budget, "noise that its ledger does not charge", voiding),
        (unsealed_update_trained_again, "two vectors for one header", drawn_later),
        (offset_off_by_one, "UPLOAD_SIZE", drawn),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_defect_is_found(
    plant: Plant, words: str, plans: Callable[[], Iterator[Plan]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with scratch() as root:
        problems = (run_plan(root, plan).problem or "" for plan in plans())
        assert any(words in problem for problem in problems)
