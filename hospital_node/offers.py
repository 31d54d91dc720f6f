"""Offers and the hospital's word on them, durable before it is given.

The same offer always gets the same answer, also after a restart: a consent is a
promise, and a changed policy applies to new offers. An offer whose text does not match
its hash, a run id that comes back with another study, and a study that its owner has not
signed are refused without a record: whoever offers cannot fill this hospital's disk.
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
from common.errors import Refusal
from common.events import Event
from common.ids import ConfigHash, RunId
from common.logs import EventLog
from common.messages import Objection, StudyDecision, StudyOffer
from hospital_node.conduct import Conduct
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
        clock: Clock,
        log: EventLog,
        conduct: Conduct,
    ) -> None:
        self._conduct = conduct
        self._store = store
        self._desk = desk
        self._verify_owner = verify_owner
        self._clock = clock
        self._log = log
        self._known: dict[RunId, DecisionRecord] = {}
        self._turned_away: deque[DecisionRecord] = deque(maxlen=SHOWN)
        self._turn = asyncio.Lock()

    def restore(self) -> dict[RunId, DecisionRecord]:
        """Read the decisions back and return them.

        Raises:
            StateError: STATE_DAMAGED, naming the file.
        """
        self._known = {record.run_id: record for record in self._store.decisions()}
        return dict(self._known)

    def task_of(self, record: DecisionRecord) -> str:
        """Return the task an accepted run belongs to: its study's id."""
        return _study_id(record.study)

    async def consider(self, offer: StudyOffer) -> tuple[StudyDecision, DecisionRecord | None]:
        """Return the answer to an offer, and its record unless it was malformed.

        Raises:
            StateError: DISK; then no answer may be given.
        """
        async with self._turn:  # judging loads the data: one table at a time
            return await self._consider(offer)

    async def _consider(self, offer: StudyOffer) -> tuple[StudyDecision, DecisionRecord | None]:
        known = self._known.get(offer.run_id)
        if known is not None and known.config_hash == offer.config_hash:
            return _answer(known), known
        wrong = _mismatch(offer, known)
        wrong = wrong or self._owner_objections(offer) or self._no_room()
        if wrong:
            record = replace(self._record(offer, wrong), study=b"")
            self._turned_away.append(record)
            self._say(record)
            return _answer(record), None
        objections = await asyncio.to_thread(self._desk.judge, offer.study, offer.config_hash)
        record = self._record(offer, objections)
        self._store.save_decision(record)
        self._known[record.run_id] = record
        self._say(record)
        return _answer(record), record

    def _record(self, offer: StudyOffer, objections: tuple[Objection, ...]) -> DecisionRecord:
        return DecisionRecord(
            run_id=offer.run_id,
            config_hash=offer.config_hash,
            study=offer.study,
            accepted=not objections,
            objections=objections,
            decided_at=int(self._clock.unix()),
        )

    def _owner_objections(self, offer: StudyOffer) -> tuple[Objection, ...]:
        """The coordinator cannot make a study in somebody's name: its owner signed it."""
        try:
            self._verify_owner(offer, int(self._clock.unix()))
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

    def summary(self) -> list[dict[str, object]]:
        """Return the latest decisions for the status screen."""
        shown = {record.run_id: record for record in self._turned_away} | self._known
        latest = sorted(shown.values(), key=lambda record: record.decided_at)[-SHOWN:]
        return [
            {
                "run": record.run_id,
                "accepted": record.accepted,
                "objections": [f"{o.code}: {o.detail}" for o in record.objections],
                "ended": record.ended,
                "decided_at": record.decided_at,
            }
            for record in latest
        ]

    def tally(self) -> tuple[int, int]:
        """Return how many studies were accepted and how many refused, malformed offers aside."""
        accepted = sum(record.accepted for record in self._known.values())
        return accepted, len(self._known) - accepted

    def _say(self, record: DecisionRecord) -> None:
        log = self._log.bind(run=record.run_id)
        if record.accepted:
            log.info(Event.STUDY_ACCEPTED, config_hash=record.config_hash.hex())
        for objection in record.objections:
            log.warning(Event.STUDY_REFUSED, code=objection.code, detail=objection.detail)


def _answer(record: DecisionRecord) -> StudyDecision:
    return StudyDecision(record.run_id, record.config_hash, record.accepted, record.objections)


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
