"""The running node's view of its approvals: read anew whenever something is about to begin.

There is nothing to restore and nothing to tell a node that serves: the folder is the
record, and a statement counts from the moment its file is there.
"""

from __future__ import annotations

from collections.abc import Collection
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
    """Says whether the people of the policy let studies run. Blocks for a moment, never raises."""

    def standing(self, config_hash: ConfigHash) -> Standing:
        """Return how a study stands now."""
        ...

    def standings(self, hashes: Collection[ConfigHash]) -> dict[ConfigHash, Standing]:
        """Return how several studies stand at one moment; the folder is read once."""
        ...

    def approved_last(self, hashes: Collection[ConfigHash]) -> ConfigHash | None:
        """Return which of the studies a quorum granted last, whatever was said since."""
        ...


class OpenGate:
    """The gate of a policy that names no approvers."""

    def standing(self, config_hash: ConfigHash) -> Standing:
        """See `Gate`."""
        del config_hash
        return FREE

    def standings(self, hashes: Collection[ConfigHash]) -> dict[ConfigHash, Standing]:
        """See `Gate`."""
        return dict.fromkeys(hashes, FREE)

    def approved_last(self, hashes: Collection[ConfigHash]) -> ConfigHash | None:
        """See `Gate`."""
        del hashes
        return None


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
        return self.standings((config_hash,))[config_hash]

    def standings(self, hashes: Collection[ConfigHash]) -> dict[ConfigHash, Standing]:
        """See `Gate`."""
        try:
            records = self._read()
        except PolicyRefusal as refusal:
            self._tell((refusal,))
            why = Objection(refusal.name, refusal.kind.meaning)
            return dict.fromkeys(hashes, blocked(self._approval, why))
        now = int(self._clock.unix())
        return {digest: standing(self._approval, records, digest, now) for digest in hashes}

    def approved_last(self, hashes: Collection[ConfigHash]) -> ConfigHash | None:
        """See `Gate`."""
        try:
            records = self._read()
        except PolicyRefusal:
            return None
        dated = {digest: ever_approved(self._approval, records, digest) for digest in hashes}
        return max((one for one in dated if dated[one]), key=lambda one: dated[one], default=None)

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
