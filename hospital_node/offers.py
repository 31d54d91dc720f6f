"""Offers and the hospital's word on them, durable before it is given.

The same offer always gets the same answer, also after a restart: a consent is a
promise, and a changed policy applies to new offers. An offer whose text does not match
its hash, a run id that comes back with another study, and a study that its owner has not
signed are refused without a record: whoever offers cannot fill this hospital's disk.

That is the policy's word. What the people say whom the policy names may change at any
time, so it is no part of the record: it is read anew for every answer, and an answer that
has changed is given again (`changed`).

Where the owner's certificate is valid by the coordinator's time and not by this machine's, one of
the two clocks is wrong. A refusal is for good, so there is no answer yet; only by this machine's
clock is a study ever accepted, so a coordinator that lies about its time gains nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from common.clock import Clock
from common.errors import IdentityError, PolicyRefusal, Refusal
from common.events import Event
from common.ids import ConfigHash, RunId
from common.logs import EventLog
from common.messages import Objection, StudyDecision, StudyOffer, Verdict
from hospital_node.approval.gate import Gate
from hospital_node.approval.standing import Stand, Standing, stamp
from hospital_node.conduct import Conduct
from hospital_node.last_contact import Off, off_by
from hospital_node.store import DecisionRecord, NodeStore
from hospital_node.work import Desk

SHOWN: Final = 20
"""Decisions shown by `fedcare node status`, the latest."""

MOST_DECISIONS: Final = 5000
"""Decisions kept; a signed study can be offered again and again under new run ids."""


class OfferBook:
    """Every decision of this hospital, in memory as on disk."""

    def __init__(
        self,
        store: NodeStore,
        desk: Desk,
        verify_owner: Callable[[StudyOffer, int], None],
        gate: Gate,
        clock: Clock,
        log: EventLog,
        conduct: Conduct,
    ) -> None:
        self._conduct = conduct
        self._store = store
        self._desk = desk
        self._verify_owner = verify_owner
        self._gate = gate
        self._clock = clock
        self._log = log
        self._said: dict[RunId, tuple[Standing, StudyDecision]] = {}
        """The last answer to each offer of this process' life, and what it follows from."""
        self._ids: dict[ConfigHash, str] = {}
        self._known: dict[RunId, DecisionRecord] = {}
        self._turned_away: deque[DecisionRecord] = deque(maxlen=SHOWN)
        self._turn = asyncio.Lock()
        self._told: float | None = None
        """The coordinator's time of day, less this machine's count of durations."""

    def restore(self) -> dict[RunId, DecisionRecord]:
        """Read the decisions back and return them.

        Raises:
            StateError: STATE_DAMAGED, naming the file.
        """
        self._known = {record.run_id: record for record in self._store.decisions()}
        return dict(self._known)

    def task_of(self, record: DecisionRecord) -> str:
        """Return the task an accepted run belongs to: its study's id."""
        if record.config_hash not in self._ids:
            self._ids[record.config_hash] = _study_id(record.study)
        return self._ids[record.config_hash]

    async def consider(self, offer: StudyOffer) -> tuple[StudyDecision, DecisionRecord | None]:
        """Return the answer to an offer, and its record unless it was malformed.

        Raises:
            IdentityError: CLOCK_OFF, see `clock_off`; then no answer may be given yet.
            StateError: DISK; then no answer may be given.
        """
        async with self._turn:  # judging loads the data: one table at a time
            return await self._consider(offer)

    async def _consider(self, offer: StudyOffer) -> tuple[StudyDecision, DecisionRecord | None]:
        known = self._known.get(offer.run_id)
        if known is not None and known.config_hash == offer.config_hash:
            return self._say_again(known), known
        wrong = _mismatch(offer, known)
        if not wrong and (off := self.clock_off(offer)) is not None:
            later = f"run {offer.run_id} is decided on once the wrong one of the two is set"
            raise IdentityError("CLOCK_OFF", f"{off}: {later}")
        wrong = wrong or self._owner_objections(offer, self._clock.unix()) or self._no_room()
        if wrong:
            record = replace(self._record(offer, wrong), study=b"")
            self._turned_away.append(record)
            self._say(record)
            return _refusal(record), None
        objections = await asyncio.to_thread(self._desk.judge, offer.study, offer.config_hash)
        record = self._record(offer, objections)
        self._store.save_decision(record)
        self._known[record.run_id] = record
        self._say(record)
        return self._say_again(record), record

    # --- clocks that differ ---------------------------------------------------------------

    def told(self, coordinator_unix: int) -> None:
        """Take note of the coordinator's time of day, as it is told."""
        self._told = coordinator_unix - self._clock.monotonic()

    def clock_off(self, offer: StudyOffer) -> Off | None:
        """Return how far the clocks are apart, if only that is against the owner's signature."""
        if self._told is None:
            return None
        here, there = self._clock.unix(), self._told + self._clock.monotonic()
        off = off_by(here - there, self._clock)
        if off is None or not self._owner_objections(offer, here):
            return None
        return None if self._owner_objections(offer, there) else off

    # --- the people's word ---------------------------------------------------------------

    def agreed(self, record: DecisionRecord) -> bool:
        """Whether policy and people allow a study now."""
        return record.accepted and self._gate.standing(record.config_hash).open

    def objection(self, record: DecisionRecord) -> PolicyRefusal | None:
        """Return what speaks against a next step of an accepted study, at this very moment."""
        found = self._gate.standing(record.config_hash).objection
        return None if found is None else PolicyRefusal(found.code, found.detail)

    def changed(self) -> list[tuple[DecisionRecord, StudyDecision]]:
        """Return the open studies whose answer is not the one last given, with the new one.

        Each change is returned, and logged, once.
        """
        known = (self._known.get(run) for run in self._said)
        open_runs = [run for run in known if run is not None and not run.ended]
        standings = self._gate.standings({run.config_hash for run in open_runs})
        found = []
        for record in open_runs:
            _, before = self._said[record.run_id]
            now = self._answer_of(record, standings[record.config_hash])
            if now != before:
                found.append((record, now))
        return found

    def _say_again(self, record: DecisionRecord) -> StudyDecision:
        """Return the answer of now: the policy's word, then the people's."""
        if not record.accepted:
            return _refusal(record)
        return self._answer_of(record, self._gate.standing(record.config_hash))

    def _answer_of(self, record: DecisionRecord, standing: Standing) -> StudyDecision:
        """Return the answer that follows from a standing, and log it if it is not the last one."""
        last = self._said.get(record.run_id)
        if last is not None and last[0] == standing:
            return last[1]
        answer = self._answer(record, standing)
        self._said[record.run_id] = standing, answer
        if last is None or last[1] != answer:
            self._say_standing(record, answer, standing, None if last is None else last[1])
        return answer

    def _answer(self, record: DecisionRecord, standing: Standing) -> StudyDecision:
        run, digest = record.run_id, record.config_hash
        if standing.objection is None:
            return StudyDecision(run, digest, Verdict.ACCEPTED)
        objections: tuple[Objection, ...] = (standing.objection,)
        if not standing.undecided:
            return StudyDecision(run, digest, Verdict.REFUSED, objections)
        former = self._former(record) if standing.stand is Stand.WAITING else None
        if former is not None:
            detail = f"sha256:{former.hex()} of this study was approved, not this version"
            objections = (Objection("APPROVAL_CHANGED", detail), *objections)
        return StudyDecision(run, digest, Verdict.WAITING, objections, standing.waiting_for)

    def _former(self, record: DecisionRecord) -> ConfigHash | None:
        """Return the hash of another version of the study that was once approved."""
        name = self.task_of(record)
        others = {
            other.config_hash
            for other in self._known.values()
            if other.accepted and self.task_of(other) == name
        }
        return self._gate.approved_last(others - {record.config_hash})

    def _record(self, offer: StudyOffer, objections: tuple[Objection, ...]) -> DecisionRecord:
        return DecisionRecord(
            run_id=offer.run_id,
            config_hash=offer.config_hash,
            study=offer.study,
            accepted=not objections,
            objections=objections,
            decided_at=int(self._clock.unix()),
        )

    def _owner_objections(self, offer: StudyOffer, now_unix: float) -> tuple[Objection, ...]:
        """The coordinator cannot make a study in somebody's name: its owner signed it."""
        try:
            self._verify_owner(offer, int(now_unix))
        except Refusal as refusal:
            return (Objection(refusal.name, refusal.detail[:1000]),)
        except (ValueError, KeyError, TypeError, RecursionError):
            return (Objection("OWNER_SIGNATURE", "the study names no owner"),)
        return ()

    def _no_room(self) -> tuple[Objection, ...]:
        """Too much is going on, or too much is kept; the same offer may pass later."""
        running = sum(record.accepted and not record.ended for record in self._known.values())
        full = self._conduct.no_room(running)
        if full is not None:
            return (Objection("POLICY_LIMITS", full),)
        if len(self._known) < MOST_DECISIONS:
            return ()
        detail = f"this hospital keeps {MOST_DECISIONS} decisions; its operator has to clear some"
        return (Objection("BUSY", detail),)

    def ended(self, record: DecisionRecord) -> None:
        """Take note of a record whose run ended."""
        self._known[record.run_id] = record

    def over(self, run_id: RunId, how: str) -> None:
        """Take note of the end of a run that no task is about: its people never agreed.

        Raises:
            StateError: DISK.
        """
        record = self._known.get(run_id)
        if record is not None and record.accepted and not record.ended:
            record = replace(record, ended=how)
            self._store.save_decision(record)
            self.ended(record)

    def accepted(self) -> list[DecisionRecord]:
        """Return every run that the policy accepted, in the order of the decisions."""
        found = (record for record in self._known.values() if record.accepted)
        return sorted(found, key=lambda record: (record.decided_at, record.run_id))

    def summary(self) -> list[dict[str, object]]:
        """Return the latest decisions for the status screen."""
        shown = {record.run_id: record for record in self._turned_away} | self._known
        latest = sorted(shown.values(), key=lambda record: record.decided_at)[-SHOWN:]
        return [
            {
                "run": record.run_id,
                "accepted": record.accepted,
                "objections": [f"{o.code}: {o.detail}" for o in record.objections],
                "approval": self._approval(record),
                "ended": record.ended,
                "decided_at": record.decided_at,
            }
            for record in latest
        ]

    def _approval(self, record: DecisionRecord) -> dict[str, object] | None:
        """Return how a study stands with the people, None where nobody is asked any more."""
        said = self._said.get(record.run_id)
        if said is None or record.ended:
            return None
        answer = said[1]
        return {
            "verdict": answer.verdict.value,
            "waiting_for": list(answer.waiting_for),
            "reasons": [str(objection) for objection in answer.objections],
        }

    def tally(self) -> tuple[int, int]:
        """Return how many studies were accepted and how many refused, malformed offers aside.

        By the policy: one that waits for people, or that they denied, it has accepted.
        """
        accepted = sum(record.accepted for record in self._known.values())
        return accepted, len(self._known) - accepted

    def _say_standing(
        self,
        record: DecisionRecord,
        answer: StudyDecision,
        standing: Standing,
        before: StudyDecision | None,
    ) -> None:
        """Log the people's word if it is another one than `before` in this process' life."""
        if standing.stand is Stand.FREE:
            return
        log = self._log.bind(study=self.task_of(record), run=record.run_id)
        digest = record.config_hash.hex()
        why = "; ".join(map(str, answer.objections))
        if standing.open:
            people, until = standing.granted_by, stamp(standing.until)
            log.info(Event.STUDY_APPROVED, config_hash=digest, people=people, until=until)
        elif before is not None and before.accepted:
            log.warning(Event.STUDY_WITHDRAWN, detail=why)
        elif standing.undecided:
            log.info(Event.STUDY_WAITING, people=answer.waiting_for, detail=why)
        else:
            log.warning(Event.STUDY_DENIED, detail=why)

    def _say(self, record: DecisionRecord) -> None:
        log = self._log.bind(run=record.run_id)
        if record.accepted:
            log.info(Event.STUDY_ACCEPTED, config_hash=record.config_hash.hex())
        for objection in record.objections:
            log.warning(Event.STUDY_REFUSED, code=objection.code, detail=objection.detail)


def _refusal(record: DecisionRecord) -> StudyDecision:
    return StudyDecision(record.run_id, record.config_hash, Verdict.REFUSED, record.objections)


def _mismatch(offer: StudyOffer, known: DecisionRecord | None) -> tuple[Objection, ...]:
    if known is not None:
        detail = f"run {offer.run_id} was decided on with another study"
    elif ConfigHash(hashlib.sha256(offer.study).digest()) != offer.config_hash:
        detail = "the study's SHA-256 is not the hash it was offered with"
    elif not offer.study.isascii():
        detail = "the study is not in canonical form: it holds a byte that is not ASCII"
    else:
        return ()
    return (Objection("CONFIG_HASH", detail),)


def _study_id(study: bytes) -> str:
    """Return the id of a study that was judged and accepted."""
    return str(json.loads(study)["id"])
