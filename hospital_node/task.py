"""One task of the node: its protocol state, and the jobs its rounds need.

Everything that changes the state passes through one inbox and is handled one by one:
messages, finished jobs, time limits. So there is one writer, and the order in which
things became durable is the order in which they were acted on.

    inbox -> round.advance (pure) -> Persist? store : -> Send, jobs

A round has at most one job running: fetching the model, then making and masking the
input (in a worker thread), then uploading. Jobs end by putting an event in the inbox.

Durable steps of a round, each before what it protects:
  1. header accepted     the ratchet moved on: no second use of a round's keys
  2. y written           the bytes that are promised next can be sent again
  3. input final         one input per header: before the first byte leaves
  4. set signed          one set per round: before the commit leaves
  5. certificate         bound to the set: before the seeds leave
  6. own tensors         the round's count, or are forgotten: before what tells it is gone
  7. result, next Ready  the round's secrets are gone (one write for both)

Before a Ready, an epoch, a header, training and an upload the task asks whether the people
whom the policy names still agree (section 10.8). Once they do not, nothing new begins: a
round in training is left, an upload is broken off. A vector that had left before belongs
to its round, which is finished: signing and seeds are then owed to the other hospitals.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, TypeVar

from common import messages as wire
from common.errors import (
    ConnectError,
    FedError,
    InternalError,
    PolicyRefusal,
    Refusal,
)
from common.events import Event
from common.ids import RunId, site_name
from common.logs import EventLog
from common.secagg.header import Header, RoundKind
from common.secagg.messages import (
    Certificate,
    Confirm,
    FromCoordinator,
    FromNode,
    KemForward,
    Propose,
    RecoverRequest,
    Refused,
    ResumeState,
    Roster,
    RoundResult,
    RoundStart,
    RoundStatus,
    UploadEnd,
)
from common.secagg.node import mask_plan
from common.secagg.node_state import (
    BeginEpoch,
    HeaderReceived,
    InputFailed,
    LocalTimeout,
    NodeCommand,
    NodeEvent,
    NodeState,
    Persist,
    Phase,
    PrepareInput,
    Report,
    Restarted,
    RoundClosed,
    Send,
    StartUpload,
    encode_state,
)
from common.secagg.session import EpochTerms
from common.vectors import EMPTY_MODEL
from hospital_node.disclosure import public_detail
from hospital_node.jobs import Input, RoundJobs, Surroundings
from hospital_node.personal_state import CONTROL, NAMES
from hospital_node.round import advance, open_digest, opened, without_session
from hospital_node.store import DecisionRecord, SessionRecord
from hospital_node.work import Work

LOCAL_LIMIT_S: Final = 3600.0
"""A round that lasts longer than this, and than three deadlines, is closed here."""

MOST_UNREAD: Final = 256
"""Messages of the coordinator that may wait here; beyond that nothing more is read."""

_DEADLINES: Final = 3
_HOURS: Final = "POLICY_HOURS"
_RESUME_S: Final = 30.0
"""How long an answer to `Resume` may take."""

_RUN_EVENTS: Final = {"finished": Event.RUN_FINISHED, "cancelled": Event.RUN_CANCELLED}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunOver:
    """A run of this task ended; its keys are erased."""

    run_id: RunId
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class ConsentLost:
    """The people of the policy agree no more: drop what has not left yet."""

    refusal: PolicyRefusal


Item: TypeAlias = NodeEvent | FromCoordinator | wire.BeginEpoch | RunOver | ConsentLost


class Task:
    """See the module."""

    def __init__(
        self, name: str, run: DecisionRecord, state: NodeState, around: Surroundings
    ) -> None:
        self.name = name
        self.run = run
        self._runs = {run.run_id: run}
        self._state = state
        self._around = around
        self._inbox: asyncio.Queue[Item] = asyncio.Queue()
        self._read = asyncio.Event()
        self._work: Work | None = None
        self._opening = asyncio.Lock()
        self._jobs = RoundJobs(name, around, self.open_work, self.put, self._logger)
        self._outside_hours = False
        """Whether the hospital's hours kept this task from the next round."""
        self._last: Header | None = None
        """The header of the round before the latest step."""
        self._opened_at = around.clock.monotonic()
        self._phase_since = around.clock.unix()

    # --- from outside ---------------------------------------------------------------------

    @property
    def state(self) -> NodeState:
        """The protocol's state; frozen."""
        return self._state

    @property
    def confirmed(self) -> bool:
        """Whether a session is live and its run goes on."""
        return self._state.session is not None and not self.run.ended

    @property
    def between_rounds(self) -> bool:
        """Whether no round is open for this hospital."""
        return opened(self._state) is None

    def put(self, item: Item) -> None:
        """Hand in a message or event; it is handled in turn."""
        self._inbox.put_nowait(item)

    async def hear(self, item: Item) -> None:
        """Hand in what the coordinator said; waits while too much of it is unread."""
        while self._inbox.qsize() >= MOST_UNREAD:
            self._read.clear()
            await self._read.wait()
        self.put(item)

    def resumed(self, answer: ResumeState) -> None:
        """Hand in the answer to a `Resume`; does not wait its turn."""
        self._jobs.resumed(answer)

    def disconnected(self) -> None:
        """The link is gone; whoever waits for an answer on it stops waiting."""
        self._jobs.resume_failed(ConnectError("UNREACHABLE", "the connection was lost"))

    def admit(self, run: DecisionRecord) -> None:
        """Note an accepted run of this task; its epoch has yet to begin."""
        known = self._runs.setdefault(run.run_id, run)
        if not known.ended and (self.run.ended or self._state.session is None):
            self._switch(known)

    def run_of(self, run_id: RunId) -> DecisionRecord | None:
        """Return this task's record of a run, if it is one of its runs."""
        return self._runs.get(run_id)

    async def open_work(self) -> Work:
        """Return the study's work; its data is loaded once per run, not per round.

        Raises:
            FedError: the data no longer loads, or the policy no longer allows the study.
        """
        async with self._opening:
            if self._work is None:
                self._work = await asyncio.to_thread(self._around.desk.open, self.run.study)
            return self._work

    def tick(self) -> None:
        """Close a round that has lasted too long; take up work when the hours begin."""
        self._look_at_hours()
        found = opened(self._state)
        if found is None:
            return
        limit_s = max(LOCAL_LIMIT_S, _DEADLINES * found.header.deadline_ms / 1000)
        if self._around.clock.monotonic() - self._opened_at > limit_s:
            self._opened_at = self._around.clock.monotonic()
            self.put(LocalTimeout(found.hd))

    def _look_at_hours(self) -> None:
        """Say Ready as soon as the window opens that was waited for."""
        ctx = self._around.context()
        hours = ctx.rules.hours
        if self._outside_hours and (hours is None or hours.closed(ctx.now_unix) is None):
            self._outside_hours = False
            self.put(Restarted())

    def status(self) -> dict[str, object]:
        """Return what this task does and waits for, for `fedcare node status`."""
        found = opened(self._state)
        doing, waiting = self._describe()
        return {
            "task": self.name,
            "run": self.run.run_id,
            "round": None if found is None else found.header.r,
            "state": doing,
            "waiting_for": waiting,
            "since": self._phase_since,
        }

    def _describe(self) -> tuple[str, str]:
        if self.run.ended:
            return f"run {self.run.ended}", "nothing"
        found = opened(self._state)
        if found is None:
            if self._state.setup is not None:
                return "setting up keys", "the other hospitals' keys"
            if self._state.session is None:
                return "accepted", "the coordinator to begin an epoch"
            if self._outside_hours:
                return "outside the policy's hours", "the next window"
            return "ready", "the coordinator to start the next round"
        match found.phase:
            case Phase.STARTED:
                return "training", "nothing: this hospital is working"
            case Phase.UPLOADING:
                return "uploading", "the upload to arrive at the coordinator"
            case Phase.UPLOADED:
                return "uploaded", "the other hospitals' uploads"
            case Phase.COMMITTED:
                return "committed", "the other hospitals' signatures"
            case Phase.RELEASED:
                return "released", "the coordinator to open the sum"

    # --- the loop -------------------------------------------------------------------------

    async def serve(self) -> None:
        """Handle the inbox until cancelled."""
        try:
            while True:
                item = await self._inbox.get()
                self._read.set()
                try:
                    await self._take(item)
                except FedError as failure:
                    # Nothing was adopted: memory and disk still agree.
                    self._fail(Event.STATE_FAILED, failure)
                    await self._not_able(item, failure)
                    self._around.trouble(failure)
                except Exception as failure:  # noqa: BLE001 - a task that died would hang for ever
                    bug = InternalError(type(failure).__name__)
                    self._fail(Event.INTERNAL_ERROR, bug)
                    self._around.trouble(bug)
        finally:
            await self._jobs.stop()

    async def _take(self, item: Item) -> None:
        match item:
            case wire.BeginEpoch():
                await self._begin_epoch(item)
            case RoundStart():
                await self._round_start(item)
            case Refused():
                self._heard_refusal(item)
            case RunOver():
                await self._end_run(item)
            case ConsentLost():
                await self._stop_short(item.refusal)
            case HeaderReceived() if (refusal := self._objection()) is not None:
                await self._refuse(item, refusal)
            case RoundResult():
                self._jobs.cancel(item.hd)
                await self._step(item)
            case _:
                await self._step(item)

    async def _step(self, event: NodeEvent) -> None:
        """Let the machine decide; make its state durable; do what it says.

        Raises:
            StateError: DISK; the former state stands, in memory as on disk.
        """
        around = self._around
        try:
            new, commands = advance(
                around.handle, self._state, event, around.context(), willing=self._willing()
            )
        except Refusal as refusal:
            await self._refuse(event, refusal)
            return
        if commands and isinstance(commands[0], Persist):
            self._settle(commands)
            record = SessionRecord(self.run.run_id, encode_state(new))
            around.store.save_session(self.name, record)
        self._adopt(new)
        for command in commands:
            await self._do(command)

    def _settle(self, commands: list[NodeCommand]) -> None:
        """Let what a closed round staged count if its sum was opened with this hospital in it.

        That is so where this hospital signed the set: it signs one per round, and none without
        itself. Where the end is not known (it was away for longer than the round is
        remembered), the former values stay.

        Raises:
            StateError: DISK; it is done again when the result comes again.
        """
        found = opened(self._state)
        for command in commands:
            if isinstance(command, RoundClosed):
                signed = found is not None and found.hd == command.hd and found.accepted
                counted = bool(signed) and command.status == RoundStatus.OPENED.value
                self._around.store.own(self.run.run_id).settle(command.hd, counted=counted)

    def _objection(self) -> PolicyRefusal | None:
        return self._around.objection(self.run)

    def _willing(self) -> bool:
        """Whether this node takes further rounds of the run."""
        leaving = self.run.ended or self._around.leaving()
        return not leaving and self._objection() is None

    def _adopt(self, new: NodeState) -> None:
        before, after = opened(self._state), opened(new)
        if (before and (before.hd, before.phase)) != (after and (after.hd, after.phase)):
            self._phase_since = self._around.clock.unix()
        self._last = None if before is None else before.header
        self._state = new

    async def _do(self, command: NodeCommand) -> None:
        match command:
            case Persist():
                pass
            case Send():
                await self._send(command.message)
            case PrepareInput() | StartUpload() if (refusal := self._objection()) is not None:
                await self._stop_short(refusal)
            case PrepareInput():
                self._prepare(command)
            case StartUpload():
                self._jobs.upload(command.end)
            case RoundClosed():
                self._round_closed(command)
            case Report():
                self._outside_hours |= command.code == _HOURS
                self._fail(Event.PROTOCOL_REFUSED, Refusal(command.code, command.detail))
                await self._tell_refusal(b"", command.code, command.detail)

    async def _send(self, message: FromNode) -> None:
        if isinstance(message, UploadEnd):
            raise InternalError("an end record goes with its upload")
        if isinstance(message, Confirm):
            self._confirmed()
        await self._around.road.slot.send(self.name, message)

    def _confirmed(self) -> None:
        session = self._state.session
        if session is None:
            return
        others = tuple(site_name(peer.id) for peer in session.peers)
        self._log(Event.SESSION_READY, epoch=session.terms.epoch, others=others)
        if len(others) == 1:
            self._logger().warning(
                Event.SESSION_READY,
                two_party=True,
                meaning=f"{others[0]} and this hospital can each compute the other's update",
            )

    async def _stop_short(self, refusal: PolicyRefusal) -> None:
        """Let nothing more of the open round leave; what has left already is not taken back.

        An upload that is broken off leaves the round open: if it arrived after all and the
        set was fixed with it, the others' sum cannot do without this hospital's signature.
        """
        found = opened(self._state)
        if found is None:
            return
        match found.phase:
            case Phase.STARTED:
                self._jobs.cancel(found.hd)
                self._fail(Event.MEMBER_GONE, refusal)
                await self._step(InputFailed(found.hd, refusal.name, refusal.detail))
            case Phase.UPLOADING:
                self._jobs.stop_upload(found.hd)
                self._fail(Event.MEMBER_GONE, refusal)
                await self._tell_refusal(found.hd, refusal.name, refusal.detail)
            case Phase.UPLOADED | Phase.COMMITTED | Phase.RELEASED:
                pass

    # --- refusals -----------------------------------------------------------------------

    async def _refuse(self, event: NodeEvent, refusal: Refusal | PolicyRefusal) -> None:
        """Log a refusal, and tell the coordinator if it was its message."""
        self._outside_hours |= refusal.name == _HOURS
        kind = event.header.kind.value if isinstance(event, HeaderReceived) else None
        self._logger().failure(Event.PROTOCOL_REFUSED, refusal, kind=kind)
        match event:
            case HeaderReceived():
                await self._tell_refusal(event.header.digest(), refusal.name, refusal.detail)
            case Propose() | Certificate() | RoundResult():
                await self._tell_refusal(event.hd, refusal.name, refusal.detail)
            case RecoverRequest():
                await self._tell_refusal(event.certificate.hd, refusal.name, refusal.detail)
            case Roster() | KemForward() | BeginEpoch():
                await self._tell_refusal(b"", refusal.name, refusal.detail)
            case _:
                pass  # a job that finished after its round was over

    async def _not_able(self, item: Item, failure: FedError) -> None:
        """Tell the coordinator not to wait for this hospital, which cannot even write that it left.

        That binds nobody: if there is room while the round is open, the round goes on here, and
        an upload that comes in time counts.
        """
        match item:
            case HeaderReceived():
                hd = item.header.digest()
            case InputFailed():
                hd = item.hd
            case _:
                return
        await self._tell_refusal(hd, failure.name, public_detail(failure))

    async def _tell_refusal(self, hd: bytes, code: str, detail: str) -> None:
        await self._around.road.slot.send(self.name, Refused(hd, code, detail))

    def _heard_refusal(self, refused: Refused) -> None:
        refusal = Refusal(refused.code, refused.detail)
        self._fail(Event.CALL_REFUSED, refusal)
        self._jobs.resume_failed(refusal, refused.hd)

    # --- epochs and runs ------------------------------------------------------------------

    async def _begin_epoch(self, message: wire.BeginEpoch) -> None:
        run = self._runs.get(message.run_id)
        if run is None or run.ended:
            detail = f"this hospital has no open consent to run {message.run_id}"
            await self._tell_refusal(b"", "CONFIG_HASH", detail)
            return
        if run.run_id != self.run.run_id:
            self._switch(run)
        refusal = self._objection()
        if refusal is not None:
            self._fail(Event.PROTOCOL_REFUSED, refusal)
            await self._tell_refusal(b"", refusal.name, refusal.detail)
            return
        try:
            terms = (await self.open_work()).terms
        except FedError as failure:
            self._fail(Event.STUDY_REFUSED, failure)
            await self._tell_refusal(b"", failure.name, public_detail(failure))
            return
        epoch = EpochTerms(
            self._around.federation, self.name, message.epoch, run.config_hash, terms.suite
        )
        begin = BeginEpoch(epoch, terms.expect, message.not_before, message.not_after)
        await self._step(begin)

    def _switch(self, run: DecisionRecord) -> None:
        """Serve another run of the same task; equal studies share the loaded data."""
        if run.config_hash != self.run.config_hash:
            self._work = None
        self._jobs.accepted(None)
        self.run = run

    async def _end_run(self, over: RunOver) -> None:
        run = self._runs.get(over.run_id)
        if run is None or run.ended:
            return
        ended = replace(run, ended=over.state)
        if over.run_id != self.run.run_id:
            self._around.store.save_decision(ended)
            self._runs[over.run_id] = ended
            self._around.ended(ended)
            return
        hd = open_digest(self._state)
        state = without_session(self._state)
        # A finished model goes with the hospital's own layers and its personal variant.
        kept = over.state == "finished"
        self._around.store.own(run.run_id).drop((CONTROL,) if kept else NAMES)
        self._around.store.save_session(self.name, SessionRecord(run.run_id, encode_state(state)))
        self._around.store.save_decision(ended)
        self._runs[over.run_id] = self.run = ended
        self._around.ended(ended)
        self._adopt(state)
        self._work = None
        await self._jobs.stop()
        if hd is not None:
            self._round_closed(RoundClosed(hd, over.state))
        self._log(_RUN_EVENTS.get(over.state, Event.RUN_FAILED), reason=over.reason)

    # --- a round's beginning and end --------------------------------------------------------

    async def _round_start(self, start: RoundStart) -> None:
        """Have the model, then let the machine judge the header."""
        header = start.header
        hd = header.digest()
        shelf = self._around.shelf
        if open_digest(self._state) == hd:
            self._jobs.told(start, hd)
            return  # its jobs are running; after a restart `Restarted` started them
        refusal = self._objection()
        if refusal is not None:  # nothing is fetched either
            await self._refuse(HeaderReceived(header, header.model_sha256), refusal)
            return
        self._jobs.told(start, hd)
        if header.kind is RoundKind.STATISTICS:
            await self._step(HeaderReceived(header, EMPTY_MODEL))
        elif shelf.holds(header.model_sha256, by=self.name):
            shelf.keep(self.name, header.model_sha256)
            await self._step(HeaderReceived(header, header.model_sha256))
        else:
            self._jobs.fetch(start, hd)

    def _prepare(self, prepare: PrepareInput) -> None:
        found = opened(self._state)
        if found is not None and found.hd == prepare.hd:
            self._opened_at = self._around.clock.monotonic()
            if prepare.header.kind is not RoundKind.STATISTICS:
                self._jobs.accepted(prepare.header.model_sha256)
            plan = mask_plan(self._state, self._around.own)
            self._jobs.make(Input(prepare.hd, prepare.header, plan, found.a, self.run.run_id))

    def _round_closed(self, closed: RoundClosed) -> None:
        self._jobs.cancel(closed.hd)
        last = self._last
        kind = last.kind.value if last is not None and last.digest() == closed.hd else None
        self._log(Event.ROUND_CLOSED, status=closed.status, kind=kind)

    def _logger(self) -> EventLog:
        found = opened(self._state)
        header = self._last if found is None else found.header
        r = None if header is None else header.r
        return self._around.log.bind(study=self.name, run=self.run.run_id, round=r)

    def _log(self, event: Event, **fields: object) -> None:
        self._logger().info(event, **fields)

    def _fail(self, event: Event, failure: FedError) -> None:
        self._logger().failure(event, failure)


__all__ = ["ConsentLost", "Item", "Restarted", "RunOver", "Task"]
