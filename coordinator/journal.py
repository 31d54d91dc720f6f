"""Which of a run's stored facts are still needed.

When a round ends its seeds have done their work: released seeds and recovered shares
are blanked in the very transaction that records the end. What else the round left is
kept one round longer, for hospitals that missed how it ended, and then blanked as well;
its record stays for good, and so does signed evidence of
two commits (`Witnessed`). So a store holds no old secrets, and a restart replays what
is open and not what is past.
"""

from __future__ import annotations

from collections.abc import Iterable

from common.secagg.coordinator_facts import (
    ReleaseAccepted,
    SeedsComplete,
    SharesAccepted,
)
from coordinator.run_state import Ended, HistoryLost, RoundEnded, RoundStep, RunFact, decode_fact
from coordinator.store import StoredFact


class Journal:
    """Keeps count of a run's facts and says which ones to blank."""

    def __init__(self) -> None:
        self.length = 0
        """Facts stored so far, blanked ones included."""
        self._secrets: list[int] = []
        self._current: list[int] = []
        self._last: list[int] = []

    def add(self, facts: Iterable[RunFact]) -> list[int]:
        """Take note of facts about to be stored; return which old ones to blank."""
        blank: list[int] = []
        for fact in facts:
            blank += self._note(self.length, fact)
            self.length += 1
        return blank

    def read(self, stored: Iterable[StoredFact]) -> list[RunFact]:
        """Take note of what the store holds, and return the facts that are left.

        Raises:
            StateError: STATE_DAMAGED.
        """
        facts = []
        for row in stored:
            self.length = row.seq + 1
            if row.body:
                fact = decode_fact(row.body)
                self._note(row.seq, fact)
                facts.append(fact)
        return facts

    def _note(self, seq: int, fact: RunFact) -> list[int]:
        match fact:
            case RoundStep(fact=ReleaseAccepted() | SharesAccepted() | SeedsComplete()):
                self._secrets.append(seq)
            case RoundStep():
                self._current.append(seq)
            case RoundEnded():
                blank = [*self._secrets, *self._last]
                self._secrets, self._last, self._current = [], self._current, []
                return blank
            case Ended() | HistoryLost():
                blank = [*self._secrets, *self._current, *self._last]
                self._secrets, self._current, self._last = [], [], []
                return blank
            case _:
                pass
        return []
