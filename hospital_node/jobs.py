"""A round's long work, beside the inbox: fetch the model, make the input, upload it.

At most one job of each kind runs per task. A job never touches the protocol's state: it
gets what it needs when it starts, and ends by putting one event in the task's inbox.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from common.clock import Clock
from common.errors import (
    ConnectError,
    FedError,
    InternalError,
    PolicyRefusal,
    Refusal,
    StateError,
)
from common.events import Event
from common.failpoints import failpoint
from common.ids import HeaderDigest, NodeId, RunId, Sha256
from common.logs import EventLog
from common.messages import UploadStart
from common.secagg.header import Header, RoundKind
from common.secagg.keys import CoefficientSeed
from common.secagg.masking import MaskPlan
from common.secagg.messages import Refused, Resume, ResumeState, RoundStart, UploadEnd
from common.secagg.node_state import (
    HeaderReceived,
    InputFailed,
    InputFinal,
    NodeContext,
    NodeEvent,
    UploadAcked,
)
from common.vectors import ParameterSchema
from hospital_node import transfer
from hospital_node.conduct import Conduct
from hospital_node.contribution import digest_of, write_masked
from hospital_node.disclosure import public_detail
from hospital_node.link import Link
from hospital_node.receive import ModelReceiver, digest_of_file, distance
from hospital_node.round import Handle
from hospital_node.shelf import ModelShelf
from hospital_node.store import DecisionRecord, NodeStore
from hospital_node.work import Desk, Work
from hospital_node.worker import Worker

_RESUME_S: Final = 30.0
"""How long an answer to `Resume` may take."""


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
    objection: Callable[[DecisionRecord], PolicyRefusal | None]
    """Says what speaks against a run's next step: whether the people of the policy agree *now*."""
    conduct: Conduct
    """What the hospital's policy asks of a round's model and of its timing."""
    trouble: Callable[[FedError], None]
    """Told when state could not be written: the connection is dropped, and dialled anew."""
    leaving: Callable[[], bool]
    """Whether the node takes no further round: it stops when the open ones are over."""


@dataclass(frozen=True, slots=True)
class Input:
    """What an input is made from: the accepted header, its masks, whose own tensors it uses."""

    hd: HeaderDigest
    header: Header
    plan: MaskPlan
    seed: CoefficientSeed
    run_id: RunId


class RoundJobs:
    """The jobs of one task."""

    def __init__(
        self,
        task: str,
        around: Surroundings,
        open_work: Callable[[], Awaitable[Work]],
        put: Callable[[NodeEvent], None],
        log: Callable[[], EventLog],
    ) -> None:
        self._task = task
        self._around = around
        self._open_work = open_work
        self._put = put
        self._log = log
        self._jobs: dict[str, tuple[HeaderDigest, asyncio.Task[None]]] = {}
        self._abandoned = threading.Event()
        self._resuming: asyncio.Future[ResumeState] | None = None
        self._resuming_hd: HeaderDigest | None = None
        self._spooled: HeaderDigest | None = None
        """The round whose masked vector this process wrote or checked."""
        self._final: InputFinal | None = None
        """The one that this process made, while its round is open."""
        self._unsent: HeaderDigest | None = None
        """The round of which not one byte was sent yet."""
        self._start: tuple[HeaderDigest, RoundStart] | None = None
        """The last one that this process was told of; after a restart it has to be told again."""
        self._start_came = asyncio.Event()
        self._accepted: Sha256 | None = None
        """The model of the last header that this process accepted in the run."""
        self._made: dict[str, object] = {}
        """Of that round: its kind, and how long its input took."""

    # --- starting and stopping ------------------------------------------------------------

    def fetch(self, start: RoundStart, hd: HeaderDigest) -> None:
        """Fetch the model that a header names; ends in `HeaderReceived`."""
        self._begin("fetch", hd, self._fetch(start, hd))

    def make(self, prepared: Input) -> None:
        """Train, quantise, mask and write `y`; ends in `InputFinal` or `InputFailed`.

        Once: a second vector under the same masks would give away how the two differ.
        """
        if self._final is not None and self._final.hd == prepared.hd:
            self._put(self._final)  # its word is under way, or was lost on a full disk
            return
        self._begin("input", prepared.hd, self._make(prepared))

    def upload(self, end: UploadEnd) -> None:
        """Upload the written `y`; ends in `UploadAcked` or `InputFailed`."""
        self._around.store.checkpoints.drop(end.hd)  # training is over, and durably so
        self._begin("upload", end.hd, self._upload(end))

    def cancel(self, hd: HeaderDigest) -> None:
        """Stop whatever works for a round that is over; its vector and its checkpoint go."""
        for kind, (known, job) in tuple(self._jobs.items()):
            if known == hd:
                del self._jobs[kind]
                job.cancel()
                if kind == "input":
                    self._abandon()
        if self._final is not None and self._final.hd == hd:
            self._final = None
        self._around.store.drop_spool(hd)
        self._around.store.checkpoints.drop(hd)

    def stop_upload(self, hd: HeaderDigest) -> None:
        """Send nothing more of a round's masked vector; the round itself stays open."""
        known = self._jobs.get("upload")
        if known is not None and known[0] == hd:
            del self._jobs["upload"]
            known[1].cancel()

    async def stop(self) -> None:
        """Stop everything."""
        self._abandon()
        jobs = [job for _, job in self._jobs.values()]
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    def _abandon(self) -> None:
        """Tell the thread that trains that its result is not wanted any more."""
        self._abandoned.set()
        self._abandoned = threading.Event()

    def _begin(self, kind: str, hd: HeaderDigest, job: Coroutine[Any, Any, None]) -> None:
        """Start a job unless the same one is running; another round's is cancelled."""
        known = self._jobs.get(kind)
        if known is not None and not known[1].done():
            if known[0] == hd:
                job.close()
                return
            known[1].cancel()
        self._jobs[kind] = (hd, asyncio.create_task(job, name=f"{self._task}.{kind}"))

    # --- the model --------------------------------------------------------------------------

    async def _fetch(self, start: RoundStart, hd: HeaderDigest) -> None:
        try:
            received = await self._receive(start)
        except FedError as failure:
            self._log().failure(Event.MODEL_REFUSED, failure)
            refused = Refused(hd, failure.name, public_detail(failure))
            await self._around.road.slot.send(self._task, refused)
            return
        self._put(HeaderReceived(start.header, received))

    async def _receive(self, start: RoundStart) -> Sha256:
        """Return the `model_sha256` of what this node now holds for the header."""
        around = self._around
        wanted = start.header.model_sha256
        schema = (await self._open_work()).model_schema()
        path = around.store.model_path(wanted)
        around.shelf.fetching(self._task, wanted)
        left = around.shelf.candidate(wanted)
        if left and await asyncio.to_thread(digest_of_file, path, schema) == wanted:
            await self._check_step(wanted, schema)
            around.shelf.keep(self._task, wanted)
            return wanted
        if left:
            self._ignore(path)
        total = await self._download(start, path, schema)
        await self._check_step(wanted, schema)
        around.shelf.keep(self._task, wanted)
        self._log().info(Event.DOWNLOAD_FINISHED, bytes=total)
        return wanted

    async def _download(self, start: RoundStart, path: Path, schema: ParameterSchema) -> int:
        """Fetch the model of a header to `path`; return its bytes.

        What an earlier process left of it counts only if the whole then has the right digest;
        else all of it is fetched.

        Raises:
            Refusal: MODEL_HASH, what the coordinator sent is not the header's model.
        """
        around, wanted = self._around, start.header.model_sha256
        while True:
            with ModelReceiver(path, schema) as receiver:
                taken_up = receiver.offset > 0
                if receiver.ignored:
                    self._ignore(receiver.part)
                address = Sha256(start.model_stream_id)
                found = await transfer.download(around.road, address, receiver)
            if found == wanted:
                return receiver.total
            around.store.drop_models((wanted,))
            if not taken_up:
                raise Refusal("MODEL_HASH", "the model that came is not the one of the header")
            self._ignore(receiver.part)

    def _ignore(self, path: Path) -> None:
        """Say that what an earlier process left is not what its name says."""
        detail = f"{path.name} is damaged or of another model; it is fetched again"
        self._log().failure(Event.MODEL_REFUSED, StateError("MODEL_INVALID", detail))

    async def _check_step(self, model: Sha256, schema: ParameterSchema) -> None:
        """Refuse a model that moved too far from the last one of this run (protocol, 10.2).

        Raises:
            Refusal: MODEL_RANGE.
            StateError: MODEL_INVALID, the last model is not there any more.
        """
        conduct, store, last = self._around.conduct, self._around.store, self._accepted
        if conduct.model_step is None or last in (None, model):
            return
        moved = await asyncio.to_thread(
            distance, store.model_path(last), store.model_path(model), schema
        )
        conduct.check_step(moved)

    def accepted(self, model: Sha256 | None) -> None:
        """Note the model of the last header that was accepted; None: another run begins."""
        self._accepted = model

    # --- the input --------------------------------------------------------------------------

    async def _make(self, prepared: Input) -> None:
        hd, abandoned = prepared.hd, self._abandoned
        began = self._around.clock.monotonic()
        try:
            ydig = await self._write(prepared, abandoned.is_set)
        except FedError as failure:
            self._log().failure(Event.MEMBER_GONE, failure)
            self._put(InputFailed(hd, failure.name, public_detail(failure)))
        except Exception as failure:  # noqa: BLE001 - learning code of any kind; the node goes on
            bug = InternalError(f"training ended with {type(failure).__name__}")
            self._log().failure(Event.INTERNAL_ERROR, bug)
            self._put(InputFailed(hd, bug.name, "training failed at this hospital"))
        else:
            self._spooled = self._unsent = hd
            took_s = self._around.clock.monotonic() - began
            self._made = {"kind": prepared.header.kind.value, "trained_s": round(took_s, 3)}
            wait_s = self._around.conduct.held_back_s(prepared.header.deadline_ms, took_s)
            if wait_s > 0:
                await self._around.road.sleep(wait_s)
            self._final = InputFinal(hd, ydig)
            self._put(self._final)

    async def _write(self, prepared: Input, abandoned: Callable[[], bool]) -> Sha256:
        header, store = prepared.header, self._around.store
        work = await self._open_work()
        has_model = header.kind is not RoundKind.STATISTICS
        model = store.model_path(header.model_sha256) if has_model else None
        path, own = store.spool_path(prepared.hd), store.own(prepared.run_id)
        if model is not None:
            await self._have(prepared, model, work)

        def make() -> Sha256:
            source = work.make(header, model, prepared.seed, abandoned, own)
            return write_masked(path, source, prepared.plan, abandoned)

        self._log().info(Event.ROUND_TRAINING, kind=header.kind.value, members=header.n)
        if work.is_quick(header.kind):
            return make()
        return await self._around.worker.run(make, abandoned)

    async def _have(self, prepared: Input, model: Path, work: Work) -> None:
        """Read the open round's model again, also after a while on this disk, or fetch it again.

        Raises:
            Refusal: MODEL_HASH or MODEL_RANGE; the round goes on without this hospital.
            StateError: DISK.
        """
        shelf, wanted = self._around.shelf, prepared.header.model_sha256
        if await asyncio.to_thread(digest_of_file, model, work.model_schema()) == wanted:
            shelf.keep(self._task, wanted)
            return
        while self._start is None or self._start[0] != prepared.hd:
            self._start_came.clear()
            await self._start_came.wait()
        await self._receive(self._start[1])

    def told(self, start: RoundStart, hd: HeaderDigest) -> None:
        """Hear of a round, or of the open one again, as a hospital does that comes back."""
        self._start = (hd, start)
        self._start_came.set()

    # --- the upload -------------------------------------------------------------------------

    async def _upload(self, end: UploadEnd) -> None:
        around = self._around
        path = around.store.spool_path(end.hd)
        fresh = self._unsent == end.hd
        self._unsent = None

        async def resume(link: Link) -> ResumeState:
            state = await self._ask(link, end.hd)
            self._log().info(Event.UPLOAD_RESUMED, chunk=state.next_chunk)
            return state

        try:
            # What an earlier process wrote is read again before it is promised again.
            if self._spooled != end.hd and await asyncio.to_thread(digest_of, path) != end.ydig:
                raise StateError("STATE_DAMAGED", "the masked vector of the open round is lost")
            self._spooled = end.hd
            if fresh:
                self._log().info(Event.UPLOAD_STARTED, **self._made)
            start = UploadStart(self._task, end.hd, 0)
            await transfer.upload(around.road, start, path, end, resume, fresh=fresh)
        except Refusal as refusal:
            # The round goes on without this upload; its result will close it here too.
            self._log().failure(Event.CALL_REFUSED, refusal)
        except FedError as failure:
            self._log().failure(Event.MEMBER_GONE, failure)
            self._put(InputFailed(end.hd, failure.name, public_detail(failure)))
        else:
            failpoint("node.receipt")
            self._log().info(Event.UPLOAD_FINISHED)
            self._put(UploadAcked(end.hd))

    async def _ask(self, link: Link, hd: HeaderDigest) -> ResumeState:
        """Ask how far the upload got, and wait for the answer on this connection."""
        waiting = asyncio.get_running_loop().create_future()
        self._resuming, self._resuming_hd = waiting, hd
        try:
            await link.send(self._task, Resume(hd))
            # Not `wait_for`: in Python 3.11 it forgets a cancellation that comes with the answer,
            # and a node that was told to stop just then would never end.
            async with asyncio.timeout(_RESUME_S):
                answer: ResumeState = await waiting
        except TimeoutError:
            raise ConnectError("UNREACHABLE", "no answer to Resume") from None
        else:
            return answer
        finally:
            self._resuming = None
            if waiting.done() and not waiting.cancelled():
                waiting.exception()  # seen, also where the question could not be sent at all

    def resumed(self, answer: ResumeState) -> None:
        """Hand in the answer to a `Resume`."""
        waiting = self._resuming
        if waiting is not None and not waiting.done() and answer.hd == self._resuming_hd:
            waiting.set_result(answer)

    def resume_failed(self, failure: FedError, hd: bytes | None = None) -> None:
        """No answer will come: the link is gone, or the coordinator refused (`hd`)."""
        waiting = self._resuming
        if waiting is not None and not waiting.done() and hd in {None, self._resuming_hd}:
            waiting.set_exception(failure)
