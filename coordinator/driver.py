"""Drives one run's machine: waits, persists, then acts.

One task per run takes events in the order in which they came. All that wait are handled
together; their facts go into the store in one transaction, and only then is anything
sent, answered or started. While the store has no room all of that waits (`coordinator.room`); if it
fails in any other way nothing is sent: the run stops and says so.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar, assert_never

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from common.certificates import ChainTrust
from common.clock import Clock
from common.errors import ConnectError, FedError, InternalError, Refusal, StateError
from common.events import Event
from common.failpoints import failpoint
from common.identity import Identity
from common.ids import HeaderDigest, NodeId, Sha256, site_name
from common.logs import EventLog, utc_stamp
from common.messages import ReleaseNotice, UploadAck
from common.secagg.coordinator_state import RoundPhase
from common.secagg.messages import Ready, Refused, Resume, ResumeState, UploadEnd
from common.secagg.ring import word_bytes
from common.views import RunPhase, RunView
from common.wire import CoordinatorStep
from coordinator.history import History
from coordinator.hub import Hub
from coordinator.journal import Journal
from coordinator.objects import ObjectStore
from coordinator.progress import Progress, progress_of
from coordinator.publish import make_release
from coordinator.room import RETRY_FIRST_S, RETRY_LONGEST_S, Room
from coordinator.run import handle
from coordinator.run_state import (
    AckUpload,
    At,
    DropSpool,
    EpochReserved,
    Finish,
    FirstModelMade,
    FromNode,
    MakeFirstModel,
    MakeRelease,
    ModelRef,
    OpenSum,
    Record,
    ReleaseMade,
    ReserveEpoch,
    RunCommand,
    RunEvent,
    RunFact,
    RunState,
    Send,
    SendRelease,
    Shown,
    StartTimer,
    SumRefused,
    SumUsed,
    Tell,
    TimerFired,
    UploadComplete,
    encode_fact,
)
from coordinator.run_step import RunContext, Timing, round_is_open, taken_epoch
from coordinator.spool import Spool, SpoolFile
from coordinator.store import Store, StoredRelease
from coordinator.use_sum import make_first_model, use_sum
from coordinator.views import view_of
from coordinator.waits import link_back, link_lost

MOST_AT_ONCE: Final = 64
"""Events handled in one transaction at the most."""

MOST_UNHANDLED: Final = 64
"""Messages of one hospital that may wait here."""

KEPT_MODELS: Final = 3
"""Models of a run that stay on disk: a hospital may still be fetching the previous one."""

WATCH_PAUSE_S: Final = 0.05

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all runs of one coordinator share; made by `coordinator.app`."""

    identity: Identity
    trust: ChainTrust
    store: Store
    objects: ObjectStore
    spool: Spool
    hub: Hub
    clock: Clock
    log: EventLog
    timing: Timing
    history: History
    """What hospitals have seen that the store does not know."""
    disk: Executor
    """One thread: the store's, and that of everything that waits for the disk."""
    crunch: Executor
    """Threads that open sums."""
    room: Room
    """What waits for room on the disk."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the process stops: a sum that is being opened would keep it for minutes."""
    draining: threading.Event = field(default_factory=threading.Event)
    """Set when the process shall stop between two rounds: no further one opens."""


class RunDriver:
    """One run in progress (or ended, while hospitals still fetch its release)."""

    def __init__(
        self, state: RunState, journal: Journal, created_unix: float, shop: Workshop
    ) -> None:
        self.state = state
        self._journal = journal
        self._created_unix = created_unix
        self._shop = shop
        self._log = shop.log.bind(study=state.study.id, run=state.run_id)
        self._events: asyncio.Queue[RunEvent] = asyncio.Queue()
        self._room: dict[NodeId, asyncio.Semaphore] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._acks: dict[tuple[NodeId, HeaderDigest], asyncio.Future[None]] = {}
        self._models: list[ModelRef] = []
        self._changed = asyncio.Condition()
        self._version = 0
        self._over = False
        self._end: Progress | None = None
        """How far the run was as it ended."""
        self._task: asyncio.Task[None] | None = None
        self._broken: StateError | None = None
        """What the store failed with while something else than facts was written."""

    # --- what others ask ---------------------------------------------------------------------

    def post(self, event: RunEvent) -> None:
        """Hand an event to the machine."""
        self._events.put_nowait(event)

    async def hear(self, event: FromNode) -> None:
        """Hand in what a hospital sent; waits while too much of it is not handled yet.

        Its stream is then read no further, and nobody else's events queue behind a flood.
        """
        room = self._room.setdefault(event.node, asyncio.Semaphore(MOST_UNHANDLED))
        await room.acquire()
        self.post(event)

    @property
    def between_rounds(self) -> bool:
        """Whether nobody waits for a round or a release of this run."""
        if self.state.phase.final:
            return True  # also one that ended in the middle of a round
        return not round_is_open(self.state) and self.state.phase is not RunPhase.RELEASING

    @property
    def progress(self) -> Progress:
        """How far the run is; of one that has ended this changes no more."""
        found = self._end or progress_of(self.state)
        self._end = found if self.state.phase.final else None
        return found

    def view(self) -> RunView:
        """Return the run as people see it."""
        clock = self._shop.clock
        return view_of(self.state, self._created_unix, clock.unix(), clock.monotonic())

    async def watch(self) -> AsyncIterator[RunView]:
        """Yield the view at once and after changes, until it is final.

        Changes within `WATCH_PAUSE_S` come together: watching must not slow the run.

        Raises:
            ConnectError: UNREACHABLE, the coordinator stops; ask again when it is back.
        """
        seen = -1
        while True:
            async with self._changed:
                while self._version == seen and not self._over:
                    await self._changed.wait()
                if self._version == seen:
                    raise ConnectError("UNREACHABLE", "the coordinator is stopping")
                seen = self._version
            view = self.view()
            yield view
            if view.state.final:
                return
            await asyncio.sleep(WATCH_PAUSE_S)

    def header_is_open(self, hd: HeaderDigest) -> bool:
        """Whether a header is that of the open round."""
        current = self.state.round
        return current is not None and current.header is not None and current.hd == hd

    def spool_file(self, node: NodeId, hd: HeaderDigest) -> SpoolFile:
        """Return where a member's upload goes.

        Raises:
            Refusal: CLOSED, the run has ended; UPLOAD_LATE, the round takes no more uploads;
                OUT_OF_TURN, the header is another or the node is not a member.
        """
        if self.state.phase.final:
            raise Refusal("CLOSED", "the run has ended")
        current = self.state.round
        if current is None or current.header is None or current.hd != hd:
            raise Refusal("OUT_OF_TURN", "no such round is open")
        if node not in current.header.ids:
            raise Refusal("OUT_OF_TURN", "the hospital is not a member of this round")
        known = any(upload.sender == node for upload in current.uploads)
        if current.phase is not RoundPhase.RUNNING and not known:
            raise Refusal("UPLOAD_LATE", "the round's set was fixed without this upload")
        header = current.header
        return self._shop.spool.file(hd, node, header.d * word_bytes(header.w))

    def resume_state(self, node: NodeId, message: Resume) -> ResumeState:
        """Return where a broken upload goes on.

        Raises:
            Refusal: as `spool_file`.
        """
        file = self.spool_file(node, message.hd)
        current = self.state.round
        done = current is not None and any(upload.sender == node for upload in current.uploads)
        return ResumeState(message.hd, file.next_chunk, done)

    async def finish_upload(self, node: NodeId, end: UploadEnd) -> UploadAck:
        """Make a complete upload durable, let the machine count it, and acknowledge it.

        Raises:
            Refusal: UPLOAD_DIGEST, UPLOAD_SIZE, UPLOAD_SIG, UPLOAD_LATE or OUT_OF_TURN.
        """
        file = self.spool_file(node, end.hd)
        if self._is_counted(node, end):
            return UploadAck(end.hd, end.ydig)
        ydig = await self._on_disk(lambda: self._settle(file, end))
        loop = asyncio.get_running_loop()
        ack = self._acks.setdefault((node, end.hd), loop.create_future())
        self.post(UploadComplete(node, end, ydig, file.expected_bytes))
        await asyncio.shield(ack)
        return UploadAck(end.hd, ydig)

    def _is_counted(self, node: NodeId, end: UploadEnd) -> bool:
        """Whether this very upload is one of the round's; its bytes are touched no more.

        Raises:
            Refusal: UPLOAD_DIGEST, another one is.
        """
        current = self.state.round
        for known in () if current is None else current.uploads:
            if known.sender == node:
                if known.end != end:
                    raise Refusal("UPLOAD_DIGEST", "another upload of the hospital was counted")
                return True
        return False

    def _settle(self, file: SpoolFile, end: UploadEnd) -> Sha256:
        digest = file.finish(end.ydig)
        self._shop.spool.sync_round(end.hd)
        return digest

    def release_notice(self) -> ReleaseNotice:
        """Return the run's signed release.

        Raises:
            RoundError: NOT_FOUND, there is none (yet).
        """
        return notice_of(self.state, self._shop.store.release(self.state.run_id))

    # --- the loop -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Handle events until cancelled.

        Raises:
            FedError: the store failed, or a bug; nothing was sent after it.
        """
        self._task = asyncio.current_task()
        try:
            while True:
                events = [await self._events.get()]
                while not self._events.empty() and len(events) < MOST_AT_ONCE:
                    events.append(self._events.get_nowait())
                await self._handle(events)
                for event in events:
                    if isinstance(event, FromNode) and event.node in self._room:
                        self._room[event.node].release()
        except asyncio.CancelledError:
            if self._broken is not None:
                raise self._broken from None
            raise
        finally:
            for timer in self._timers.values():
                timer.cancel()
            for task in self._work:
                task.cancel()
            self._over = True
            async with self._changed:
                self._changed.notify_all()

    async def _handle(self, events: list[RunEvent]) -> None:
        state = self.state
        commands: list[RunCommand] = []
        refusals: list[tuple[RunEvent, Refusal]] = []
        for event in events:
            try:
                state, more = handle(state, event, self._context())
            except Refusal as refusal:
                refusals.append((event, refusal))
            except Exception as bug:
                if not isinstance(event, FromNode | UploadComplete):
                    raise
                # The machine changed nothing, and one message must not stop all runs.
                self._log.failure(Event.INTERNAL_ERROR, InternalError(type(bug).__name__))
                unusable = Refusal("BAD_MESSAGE", "the message cannot be handled")
                refusals.append((event, unusable))
            else:
                commands += more
        await self._persist([c.fact for c in commands if isinstance(c, Record)])
        self.state = state  # only now: nobody is shown, or told, what could still be lost
        for refused, reason in refusals:
            self._refuse(refused, reason)
        for command in commands:
            self._act(command)
        async with self._changed:
            self._version += 1
            self._changed.notify_all()

    def _context(self) -> RunContext:
        clock = self._shop.clock
        shop = self._shop
        return RunContext(
            clock.monotonic(), clock.unix(), shop.trust, shop.timing, shop.draining.is_set()
        )

    async def _persist(self, facts: list[RunFact]) -> None:
        if not facts:
            return
        first, run_id = self._journal.length, self.state.run_id
        blank = self._journal.add(facts)
        bodies = [encode_fact(fact) for fact in facts]
        now = self._shop.clock.unix()
        append = partial(self._shop.store.append, run_id, first, bodies, blank, now)
        await self._patiently("facts", append)

    async def _patiently(
        self, what: str, write: Callable[[], T], threads: Executor | None = None
    ) -> T:
        """Write on another thread; while there is no room, wait and do it again."""
        loop, threads = asyncio.get_running_loop(), threads or self._shop.disk
        attempt = partial(loop.run_in_executor, threads, write)
        return await self._shop.room.patiently((self.state.run_id, what), attempt)

    async def _stored(self, what: str, write: Callable[[], T]) -> T:
        """Write something else than facts to the store, as `_patiently`.

        Raises:
            StateError: the run stops, as where facts cannot be stored.
        """
        try:
            return await self._patiently(what, write)
        except StateError as failure:
            self._broken = failure
            if self._task is not None:
                self._task.cancel()
            raise

    async def _on_disk(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._shop.disk, work)

    def _refuse(self, event: RunEvent, refusal: Refusal) -> None:
        """Tell whoever sent what was refused; state is as it was."""
        match event:
            case FromNode(node=node, step=step):
                hd = getattr(step, "hd", b"")
                self._send(node, Refused(hd, refusal.name, refusal.detail))
                about = {"code": refusal.code, "name": refusal.name, "detail": refusal.detail}
                # Who was away or a little late is ready again soon: not for people.
                write = self._log.debug if isinstance(step, Ready) else self._log.warning
                write(Event.PROTOCOL_REFUSED, site=site_name(node), **about)
            case UploadComplete(node=node, end=end):
                self._answer(node, end.hd, refusal)
            case _:
                self._log.failure(Event.INTERNAL_ERROR, refusal)

    def _send(self, node: NodeId, step: CoordinatorStep) -> None:
        self._shop.hub.send(node, self.state.study.id, step)

    def _answer(self, node: NodeId, hd: HeaderDigest, refusal: Refusal | None) -> None:
        ack = self._acks.pop((node, hd), None)
        if ack is None or ack.done():
            return
        if refusal is None:
            ack.set_result(None)
        else:
            ack.set_exception(refusal)

    def _act(self, command: RunCommand) -> None:
        match command:
            case Record():
                return
            case Send():
                self._send(command.to, command.step)
            case StartTimer():
                self._start_timer(command)
            case AckUpload():
                self._answer(command.to, command.hd, None)
            case ReserveEpoch():
                self._start(self._reserve_epoch)
            case MakeFirstModel():
                self._start(self._make_first_model)
            case OpenSum():
                self._start(lambda: self._open_sum(command))
            case DropSpool():
                self._drop_round(command.hd)
            case MakeRelease():
                self._start(self._make_release)
            case SendRelease():
                self._send(command.to, self.release_notice())
            case Tell():
                self._tell(command)
            case Finish():
                self._start(self._finish)
            case _:
                assert_never(command)

    def _tell(self, line: Tell) -> None:
        clock = self._shop.clock
        ahead = clock.unix() - clock.monotonic()
        fields = {
            name: utc_stamp(ahead + shown.moment) if isinstance(shown, At) else shown
            for name, shown in line.fields
        }
        write = self._log.warning if line.warning else self._log.info
        write(line.event, **fields)

    def tell_link(self, node: NodeId, *, lost: bool, **fields: Shown) -> bool:
        """Log a hospital's lost or new stream if it means something for the open round."""
        news = (
            link_lost(self.state, node, self._shop.hub.connected)
            if lost
            else link_back(self.state, node)
        )
        if news is None:
            return False
        shown = {
            "round": news.round,
            "site": site_name(node),
            "what": news.what or None,
            "until": None if news.until is None else At(news.until),
            "then": news.then,
            **fields,
        }
        event = Event.LINK_LOST if lost else Event.LINK_CONNECTED
        self._tell(Tell(event, tuple(shown.items()), warning=news.matters))
        return True

    def _start_timer(self, command: StartTimer) -> None:
        previous = self._timers.pop(command.name, None)
        if previous is not None:
            previous.cancel()
        loop = asyncio.get_running_loop()
        self._timers[command.name] = loop.call_later(
            command.seconds, self.post, TimerFired(command.name)
        )

    def _start(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        task = asyncio.create_task(self._guarded(work))
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _guarded(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do a piece of work, again and again if need be: the run cannot go on without it."""
        pause = RETRY_FIRST_S
        while True:
            try:
                await work()
            except FedError as error:
                self._log.failure(Event.STATE_FAILED, error)
            except Exception as error:  # noqa: BLE001 - the outermost place of a piece of work
                self._log.failure(Event.INTERNAL_ERROR, InternalError(type(error).__name__))
            else:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_LONGEST_S)
            if self.state.phase.final and work != self._finish:
                return

    # --- work that takes time ---------------------------------------------------------------------

    async def _reserve_epoch(self) -> None:
        task, now = self.state.study.id, int(self._shop.clock.unix())
        least = max(now, taken_epoch(self.state) + 1)
        reserve = partial(self._shop.store.next_epoch, task, least)
        self.post(EpochReserved(await self._stored("epoch", reserve)))

    async def _make_first_model(self) -> None:
        make = partial(make_first_model, self.state.study, self._shop.objects)
        model = await self._patiently("model", make)
        self._keep(model)
        self.post(FirstModelMade(model))

    async def _open_sum(self, command: OpenSum) -> None:
        shop, study = self._shop, self.state.study
        try:
            failpoint("coordinator.sum.before")
            use = partial(use_sum, study, command, shop.spool, shop.objects, shop.stopping.is_set)
            used: SumUsed = await self._patiently("sum", use, shop.crunch)
        except Exception as error:  # noqa: BLE001 - hostile sums are numbers of any kind
            if self._nobody_waits_for_sum(command.header.digest()):
                return
            self._log_failed_sum(error)
            self.post(SumRefused(command.header.digest()))
            return
        if self._nobody_waits_for_sum(command.header.digest(), used.model):
            return
        if used.model is not None:
            self._keep(used.model)
        self.post(used)

    def _nobody_waits_for_sum(self, hd: HeaderDigest, model: ModelRef | None = None) -> bool:
        """Whether the run was cancelled meanwhile, and its uploads went; remove what was made."""
        if not self.state.phase.final:
            return False
        self._shop.spool.drop(hd)
        for address in () if model is None else model.addresses:
            self._shop.objects.remove(address)
        return True

    def _log_failed_sum(self, error: Exception) -> None:
        """Whatever went wrong, the round is voided: it must not stay open for ever."""
        match error:
            case Refusal():
                self._log.failure(Event.PROTOCOL_REFUSED, error)
            case FedError():
                self._log.failure(Event.STATE_FAILED, error)
            case _:
                self._log.failure(Event.INTERNAL_ERROR, InternalError(type(error).__name__))

    def take_up(self, models: list[ModelRef]) -> None:
        """Hold what a run that was stored before has on disk; `models` in their order."""
        for model in models:
            self._keep(model)

    def _keep(self, model: ModelRef) -> None:
        """Hold a model, and let go of the oldest one: nobody can still be fetching it.

        The last ones stay when the run is over; the very last is what is released.
        """
        for address in model.addresses:
            self._shop.objects.hold(address)
        self._models.append(model)
        if len(self._models) > KEPT_MODELS:
            for address in self._models.pop(0).addresses:
                self._shop.objects.let_go(address)

    def _drop_round(self, hd: HeaderDigest) -> None:
        # The round's own timers are named after it and would be passed over; stop them anyway.
        for name in [name for name in self._timers if name.startswith("round:")]:
            self._timers.pop(name).cancel()
        for node, open_hd in [key for key in self._acks if key[1] == hd]:
            self._answer(node, open_hd, Refusal("CLOSED", "the round ended"))
        self._shop.spool.drop(hd)
        self._shop.room.drop(hd)

    async def _make_release(self) -> None:
        state, shop = self.state, self._shop
        model = state.model
        if model is None:
            raise InternalError("a run without a model was to be released")

        now = int(shop.clock.unix())
        shop.identity.check_dates(now)  # a model of another date would be taken by nobody, ever
        make = partial(make_release, state, model, shop.objects, shop.identity, now)
        release = await self._patiently("release", make)

        def keep() -> StoredRelease:
            shop.store.put_release(state.run_id, release)
            return shop.store.release(state.run_id)

        self.post(ReleaseMade(manifest_digest(await self._stored("release", keep))))

    async def _finish(self) -> None:
        await self._stored("end", partial(self._shop.store.end_run, self.state.run_id))


def manifest_digest(release: StoredRelease) -> Sha256:
    """Return the SHA-256 of a release's manifest."""
    return Sha256(hashlib.sha256(release.manifest).digest())


def notice_of(state: RunState, release: StoredRelease) -> ReleaseNotice:
    """Return a stored release as it is sent to hospitals and researchers."""
    chain = chain_of(release.chain)
    return ReleaseNotice(state.run_id, release.manifest, release.signature, chain)


def chain_of(pem: bytes) -> tuple[bytes, ...]:
    """Return stored certificates as they travel: DER, leaf first."""
    return tuple(cert.public_bytes(Encoding.DER) for cert in x509.load_pem_x509_certificates(pem))


def to_pem(chain: tuple[bytes, ...]) -> bytes:
    """Return certificates as they are stored: PEM, leaf first."""
    certificates = [x509.load_der_x509_certificate(der) for der in chain]
    return b"".join(cert.public_bytes(Encoding.PEM) for cert in certificates)
