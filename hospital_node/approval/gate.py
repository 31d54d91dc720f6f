"""The running node's view of its approvals: read anew whenever something is about to begin.

There is nothing to restore and nothing to tell a node that serves: the folder is the
record, and a statement counts from the moment its file is there.
"""

from __future__ import annotations

from typing import Protocol

from common.clock import Clock
from common.errors import PolicyRefusal
from common.events import Event
from common.ids import ConfigHash
from common.logs import EventLog
from common.messages import Objection
from common.policy import Approval
from hospital_node.approval.records import ApprovalFolder, Records
from hospital_node.approval.standing import FREE, Standing, blocked, ever_approved, standing


class Gate(Protocol):
    """Says whether the people of the policy let a study run. Blocks for a moment at most."""

    def standing(self, config_hash: ConfigHash) -> Standing:
        """Return how a study stands now; never raises."""
        ...

    def ever_approved(self, config_hash: ConfigHash) -> bool:
        """Whether a quorum once granted the study of that hash."""
        ...


class OpenGate:
    """The gate of a policy that names no approvers."""

    def standing(self, config_hash: ConfigHash) -> Standing:
        """See `Gate`."""
        del config_hash
        return FREE

    def ever_approved(self, config_hash: ConfigHash) -> bool:
        """See `Gate`."""
        del config_hash
        return False


class ApprovalGate:
    """See `Gate`; each record that does not count is logged once."""

    def __init__(
        self, folder: ApprovalFolder, approval: Approval, clock: Clock, log: EventLog
    ) -> None:
        self._folder = folder
        self._approval = approval
        self._clock = clock
        self._log = log
        self._told: frozenset[tuple[str, str]] = frozenset()

    def standing(self, config_hash: ConfigHash) -> Standing:
        """See `Gate`."""
        try:
            records = self._read()
        except PolicyRefusal as refusal:
            self._tell((refusal,))
            return blocked(self._approval, Objection(refusal.name, refusal.kind.meaning))
        return standing(self._approval, records, config_hash, int(self._clock.unix()))

    def ever_approved(self, config_hash: ConfigHash) -> bool:
        """See `Gate`."""
        try:
            return ever_approved(self._approval, self._read(), config_hash) > 0
        except PolicyRefusal:
            return False

    def _read(self) -> Records:
        records = self._folder.read()
        self._tell(tuple(one.refusal for one in records.rejected))
        return records

    def _tell(self, refusals: tuple[PolicyRefusal, ...]) -> None:
        found = {(refusal.name, refusal.detail): refusal for refusal in refusals}
        for key, refusal in found.items():
            if key not in self._told:
                self._log.failure(Event.APPROVAL_REFUSED, refusal)
        self._told = frozenset(found)


def gate_of(folder: ApprovalFolder, approval: Approval, clock: Clock, log: EventLog) -> Gate:
    """Return the gate that a policy asks for."""
    return ApprovalGate(folder, approval, clock, log) if approval.approvers else OpenGate()
