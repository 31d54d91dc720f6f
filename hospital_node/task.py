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
  6. result, next Ready  the round's secrets are gone (one write for both)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, TypeVar

from common import messages as wire
from common.clock import Clock
from common.errors import (
    ConfigError,
    ConnectError,
    DataError,
    FedError,
    IdentityError,
    InternalError,
    Refusal,
    StateError,
)
from common.events import Event
from common.ids import HeaderDigest, NodeId, RunId, Sha256, site_name
from common.logs import EventLog
from common.secagg.header import RoundKind
from common.secagg.messages import (
    Certificate,
    Confirm,
    FromCoordinator,
    FromNode,
    KemForward,
    Propose,
    RecoverRequest,
    Refused,
    Resume,
    ResumeState,
    Roster,
    RoundResult,
    RoundStart,
    UploadEnd,
)
from common.secagg.node import mask_plan
from common.secagg.node_state import (
    BeginEpoch,
    HeaderReceived,
    InputFailed,
    InputFinal,
    LocalTimeout,
    NodeCommand,
    NodeContext,
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
    UploadAcked,
    encode_state,
)
from common.secagg.session import EpochTerms
from common.vectors import EMPTY_MODEL
from hospital_node import transfer
from hospital_node.contribution import digest_of, write_masked
from hospital_node.link import Link
from hospital_node.receive import ModelReceiver, digest_of_file
from hospital_node.round import Handle, advance, open_digest, opened, without_session
from hospital_node.shelf import ModelShelf
from hospital_node.store import DecisionRecord, NodeStore, SessionRecord
from hospital_node.work import Desk, Work
from hospital_node.worker import Worker

LOCAL_LIMIT_S: Final = 3600.0
"""A round that lasts longer than this, and than three deadlines, is closed here."""

_DEADLINES: Final = 3
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


Item: TypeAlias = NodeEvent | FromCoordinator | wire.BeginEpoch | RunOver


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all tasks of a node share."""

    own: NodeId
    federation: str
    store: NodeStore
    shelf: ModelShelf
    desk: Desk
    road: transfer.Road
    clock: Clock
    log: EventLog
    context: Callable[[], NodeContext]
    handle: Handle
    worker: Worker
    """Training jobs of all tasks take turns."""
    ended: Callable[[DecisionRecord], None]
    """Told when a run ended here."""
    trouble: Callable[[FedError], None]
    """Told when state could not be written: the connection is dropped, and dialled anew."""


def public_detail(failure: FedError) -> str:
    """Return the line about a failure that may leave the hospital.

    Data, files and our own bugs are described by their kind only.
    """
    private = isinstance(failure, DataError | ConfigError | StateError | IdentityError)
    return failure.kind.meaning if private else failure.detail


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
        self._work: Work | None = None
        self._opening = asyncio.Lock()
        self._jobs: dict[str, tuple[HeaderDigest, asyncio.Task[None]]] = {}
        self._abandoned = threading.Event()
        self._resuming: asyncio.Future[ResumeState] | None = None
        self._spooled: HeaderDigest | None = None
        """The round whose masked vector this process wrote or checked."""
        self._unsent: HeaderDigest | None = None
        """The round of which not one byte was sent yet."""
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

    def put(self, item: Item) -> None:
        """Hand in a message or event; it is handled in turn."""
        self._inbox.put_nowait(item)

    def resumed(self, answer: ResumeState) -> None:
        """Hand in the answer to a `Resume`; does not wait its turn."""
        waiting = self._resuming
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def disconnected(self) -> None:
        """The link is gone; whoever waits for an answer on it stops waiting."""
        waiting = self._resuming
        if waiting is not None and not waiting.done():
            waiting.set_exception(ConnectError("UNREACHABLE", "the connection was lost"))

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
        """Close a round that has lasted too long."""
        found = opened(self._state)
        if found is None:
            return
        limit_s = max(LOCAL_LIMIT_S, _DEADLINES * found.header.deadline_ms / 1000)
        if self._around.clock.monotonic() - self._opened_at > limit_s:
            self._opened_at = self._around.clock.monotonic()
            self.put(LocalTimeout(found.hd))

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
                try:
                    await self._take(item)
                except FedError as failure:
                    # Nothing was adopted: memory and disk still agree.
                    self._fail(Event.STATE_FAILED, failure)
                    self._around.trouble(failure)
        finally:
            self._abandoned.set()
            for _, job in self._jobs.values():
                job.cancel()
            await asyncio.gather(*(job for _, job in self._jobs.values()), return_exceptions=True)

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
                around.handle, self._state, event, around.context(), willing=not self.run.ended
            )
        except Refusal as refusal:
            await self._refuse(event, refusal)
            return
        if commands and isinstance(commands[0], Persist):
            record = SessionRecord(self.run.run_id, encode_state(new))
            around.store.save_session(self.name, record)
        self._adopt(new)
        for command in commands:
            await self._do(command)

    def _adopt(self, new: NodeState) -> None:
        before, after = opened(self._state), opened(new)
        if (before and (before.hd, before.phase)) != (after and (after.hd, after.phase)):
            self._phase_since = self._around.clock.unix()
        self._state = new

    async def _do(self, command: NodeCommand) -> None:
        match command:
            case Persist():
                pass
            case Send():
                await self._send(command.message)
            case PrepareInput():
                self._opened_at = self._around.clock.monotonic()
                self._job("input", command.hd, self._make_input(command))
            case StartUpload():
                self._job("upload", command.end.hd, self._send_input(command.end))
            case RoundClosed():
                self._round_closed(command)
            case Report():
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

    # --- refusals -----------------------------------------------------------------------

    async def _refuse(self, event: NodeEvent, refusal: Refusal) -> None:
        """Log a refusal, and tell the coordinator if it was its message."""
        self._fail(Event.PROTOCOL_REFUSED, refusal)
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

    async def _tell_refusal(self, hd: bytes, code: str, detail: str) -> None:
        await self._around.road.slot.send(self.name, Refused(hd, code, detail))

    def _heard_refusal(self, refused: Refused) -> None:
        self._fail(Event.CALL_REFUSED, Refusal(refused.code, refused.detail))
        waiting = self._resuming
        if waiting is not None and not waiting.done() and refused.hd == open_digest(self._state):
            waiting.set_exception(Refusal(refused.code, refused.detail))

    # --- epochs and runs ------------------------------------------------------------------

    async def _begin_epoch(self, message: wire.BeginEpoch) -> None:
        run = self._runs.get(message.run_id)
        if run is None or run.ended:
            detail = f"this hospital has no open consent to run {message.run_id}"
            await self._tell_refusal(b"", "CONFIG_HASH", detail)
            return
        if run.run_id != self.run.run_id:
            self._switch(run)
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
        self._around.store.save_session(self.name, SessionRecord(run.run_id, encode_state(state)))
        self._around.store.save_decision(ended)
        self._runs[over.run_id] = self.run = ended
        self._around.ended(ended)
        self._adopt(state)
        self._work = None
        if hd is not None:
            self._round_closed(RoundClosed(hd, over.state))
        self._log(_RUN_EVENTS.get(over.state, Event.RUN_FAILED), reason=over.reason)

    # --- a round's jobs ---------------------------------------------------------------------

    def _job(self, kind: str, hd: HeaderDigest, job: Coroutine[Any, Any, None]) -> None:
        """Start a job unless the same one is running; another round's is cancelled."""
        known = self._jobs.get(kind)
        if known is not None and not known[1].done():
            if known[0] == hd:
                job.close()
                return
            known[1].cancel()
        self._jobs[kind] = (hd, asyncio.create_task(job, name=f"{self.name}.{kind}"))

    def _round_closed(self, closed: RoundClosed) -> None:
        for kind in ("input", "upload"):
            known = self._jobs.get(kind)
            if known is not None and known[0] == closed.hd:
                del self._jobs[kind]
                known[1].cancel()
        self._abandoned.set()
        self._abandoned = threading.Event()
        self._around.store.drop_spool(closed.hd)
        self._log(Event.ROUND_CLOSED, status=closed.status)

    async def _round_start(self, start: RoundStart) -> None:
        """Have the model, then let the machine judge the header."""
        header = start.header
        hd = header.digest()
        if open_digest(self._state) == hd:
            return  # its jobs are running; after a restart `Restarted` started them
        if header.kind is RoundKind.STATISTICS:
            await self._step(HeaderReceived(header, EMPTY_MODEL))
        elif self._around.shelf.holds(header.model_sha256):
            self._around.shelf.keep(self.name, header.model_sha256)
            await self._step(HeaderReceived(header, header.model_sha256))
        else:
            self._job("fetch", hd, self._fetch(start))

    async def _fetch(self, start: RoundStart) -> None:
        header = start.header
        try:
            received = await self._receive_model(start)
        except FedError as failure:
            self._fail(Event.MODEL_REFUSED, failure)
            await self._tell_refusal(header.digest(), failure.name, public_detail(failure))
            return
        self.put(HeaderReceived(header, received))

    async def _receive_model(self, start: RoundStart) -> Sha256:
        """Return the `model_sha256` of what this node now holds for the header."""
        around = self._around
        wanted = start.header.model_sha256
        schema = (await self.open_work()).model_schema()
        path = around.store.model_path(wanted)
        left = around.shelf.candidate(wanted)
        if left and await asyncio.to_thread(digest_of_file, path, schema) == wanted:
            around.shelf.keep(self.name, wanted)
            return wanted
        with ModelReceiver(path, schema) as receiver:
            found = await transfer.download(around.road, Sha256(start.model_stream_id), receiver)
            if found != wanted:
                around.store.drop_models((wanted,))
                raise Refusal("MODEL_HASH", "the model that came is not the one of the header")
        around.shelf.keep(self.name, wanted)
        self._log(Event.DOWNLOAD_FINISHED, bytes=receiver.total)
        return wanted

    async def _make_input(self, prepare: PrepareInput) -> None:
        """Train, quantise, mask and write `y`; then the input is final."""
        header = prepare.header
        abandoned = self._abandoned
        found = opened(self._state)
        if found is None or found.hd != prepare.hd:
            return
        plan, seed = mask_plan(self._state, self._around.own), found.a
        try:
            work = await self.open_work()
            has_model = header.kind is not RoundKind.STATISTICS
            model = self._around.store.model_path(header.model_sha256) if has_model else None
            path = self._around.store.spool_path(prepare.hd)

            def make() -> Sha256:
                source = work.make(header, model, seed, abandoned.is_set)
                return write_masked(path, source, plan, abandoned.is_set)

            self._log(Event.ROUND_TRAINING, kind=header.kind.value, members=header.n)
            ydig = make() if work.is_quick(header.kind) else await self._around.worker.run(make)
        except FedError as failure:
            if not abandoned.is_set():
                self._fail(Event.MEMBER_GONE, failure)
                self.put(InputFailed(prepare.hd, failure.name, public_detail(failure)))
            return
        except Exception as failure:  # noqa: BLE001 - learning code of any kind; the round goes on
            self._fail(Event.INTERNAL_ERROR, InternalError(f"training: {type(failure).__name__}"))
            self.put(InputFailed(prepare.hd, "INTERNAL", "training failed at this hospital"))
            return
        self._spooled = self._unsent = prepare.hd
        self.put(InputFinal(prepare.hd, ydig))

    async def _send_input(self, end: UploadEnd) -> None:
        around = self._around
        path = around.store.spool_path(end.hd)
        fresh = self._unsent == end.hd
        self._unsent = None
        try:
            # What an earlier process wrote is read again before it is promised again.
            if self._spooled != end.hd and await asyncio.to_thread(digest_of, path) != end.ydig:
                raise StateError("STATE_DAMAGED", "the masked vector of the open round is lost")
            self._spooled = end.hd
            self._log(Event.UPLOAD_STARTED if fresh else Event.UPLOAD_RESUMED)
            start = wire.UploadStart(self.name, end.hd, 0)
            resume = self._ask_resume
            await transfer.upload(around.road, start, path, end, resume, fresh=fresh)
        except Refusal as refusal:
            # The round goes on without this upload; its result will close it here too.
            self._fail(Event.CALL_REFUSED, refusal)
            return
        except FedError as failure:
            self._fail(Event.MEMBER_GONE, failure)
            self.put(InputFailed(end.hd, failure.name, public_detail(failure)))
            return
        self._log(Event.UPLOAD_FINISHED)
        self.put(UploadAcked(end.hd))

    async def _ask_resume(self, link: Link) -> ResumeState:
        hd = open_digest(self._state)
        if hd is None:
            raise Refusal("CLOSED", "the round is over")
        self._resuming = asyncio.get_running_loop().create_future()
        try:
            await link.send(self.name, Resume(hd))
            return await asyncio.wait_for(self._resuming, _RESUME_S)
        except TimeoutError:
            raise ConnectError("UNREACHABLE", "no answer to Resume") from None
        finally:
            self._resuming = None

    def _logger(self) -> EventLog:
        found = opened(self._state)
        r = None if found is None else found.header.r
        return self._around.log.bind(study=self.name, run=self.run.run_id, round=r)

    def _log(self, event: Event, **fields: object) -> None:
        self._logger().info(event, **fields)

    def _fail(self, event: Event, failure: FedError) -> None:
        self._logger().failure(event, failure)


__all__ = ["Item", "Restarted", "RunOver", "Surroundings", "Task", "public_detail"]
