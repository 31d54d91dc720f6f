"""The coordinator without its transport: what nodes and people may ask of it.

gRPC (`coordinator.servicer`) and the in-memory transport of `sim` both call this and
nothing below it. It finds the run that a message is about and hands it over; every
decision is the run's (`coordinator.run`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Final

from common.certificates import verify_study
from common.clock import CLOCK_THEN, ClockWatch
from common.errors import (
    ConfigError,
    FedError,
    IdentityError,
    InternalError,
    NoRoom,
    Refusal,
    RoundError,
    StateError,
)
from common.events import Event
from common.failpoints import failpoint
from common.ids import ConfigHash, NodeId, RunId, Sha256, StudyId, hospital_id, site_name
from common.layouts import is_exact, result_schema, round_kinds, round_layout
from common.messages import (
    CHUNK_BYTES,
    PROTOCOL_VERSION,
    DownloadChunk,
    Heartbeat,
    Hello,
    ReleaseNotice,
    ReleaseReceipt,
    RunEnded,
    StudyDecision,
    UploadAck,
    UploadChunk,
    UploadStart,
    Welcome,
)
from common.secagg.header import RoundKind
from common.secagg.messages import Refused, Resume, UploadEnd
from common.study import Study, config_hash, study_from_canonical
from common.version import VERSION
from common.views import RunPhase, RunView, SiteView, StatusView, StudyView
from common.wire import NodeStep, UploadPart
from common.wire_checks import MAX_MANIFEST_BYTES
from common.wire_operations import Submission
from coordinator.admission import Turnstile, at_most, patiently
from coordinator.driver import KEPT_MODELS, RunDriver, Workshop, to_pem
from coordinator.history import unknown, witness
from coordinator.hub import Outbox
from coordinator.journal import Journal
from coordinator.progress import Progress
from coordinator.run_state import (
    Begin,
    Cancel,
    FromNode,
    NodeConnected,
    NodeLost,
    RunState,
    Shown,
)
from coordinator.run_step import fewest
from coordinator.shelf import Shelf, Shelved, shelve
from coordinator.start_check import check_files
from coordinator.store import StoredRun, StoredStudy
from coordinator.stored_runs import KnownRun, first_state, read_runs
from coordinator.witness import noised_sums

ALIVE_BEATS: Final = 1.5
"""A stream that was heard of within so many heartbeats was alive when another came."""

MOST_NOTED: Final = 16
"""Ended runs that are read again at once, to be noted for the next start."""

DRAIN_LOOK_S: Final = 0.1
ROOM_LOOK_S: Final = 1.0
"""How often whoever waits for a run's end looks whether it waits for room on the disk."""


class _Behind:
    """One piece of work on another thread: a chunk is written while the next one comes in."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._work: asyncio.Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin; the last piece was waited for."""
        self._work = asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def wait(self) -> None:
        """Return when the last piece is done; raise what it raised, once."""
        work, self._work = self._work, None
        if work is not None:
            await work


ROUND_RECORD_BYTES: Final = 700
"""More than a round takes in a manifest, but for its hospitals' names."""

SITE_RECORD_BYTES: Final = 320
"""More than a hospital's rounds and withdrawal take in it."""


@dataclass(slots=True)
class Traffic:
    """Bytes of bulk data since the start, those of broken streams included."""

    up: int = 0
    """Of masked vectors received."""
    down: int = 0
    """Of models sent."""


MOST_PARAMETERS: Final = 1 << 30
"""Parameters of a model, 4 GiB: the first model of a run is made in memory."""

MOST_WORDS_KEPT: Final = 1 << 26
"""Words of a sum that is kept whole, 512 MiB: of every round but those that train a model."""


def _check_sums_fit(study: Study) -> None:
    """Refuse a study whose opened sums would not fit into memory, whatever its model's size.

    Raises:
        ConfigError: BAD_VALUE.
    """
    for kind in dict.fromkeys(round_kinds(study)):
        words = round_layout(study, kind).schema.words
        streamed = kind is RoundKind.TRAIN and not is_exact(study)
        if not streamed and words > MOST_WORDS_KEPT:
            raise ConfigError(
                "BAD_VALUE",
                f"a {kind.value} round adds up {words} numbers; the most is {MOST_WORDS_KEPT}",
                fix="Ask for fewer features, levels, groups or subgroups.",
            )


class CoordinatorService:
    """All runs of one coordinator."""

    def __init__(
        self,
        shop: Workshop,
        *,
        members: tuple[str, ...],
        heartbeat_s: float = 10.0,
        bulk_streams: int = 2,
        shelf: Shelf | None = None,
    ) -> None:
        self._shop = shop
        self._shelf = shelf or Shelf()
        self._federation = shop.identity.federation
        self._roster = tuple(sorted(hospital_id(self._federation, site) for site in members))
        self._heartbeat_s = heartbeat_s
        self._bulk_up = Turnstile(bulk_streams)
        self._bulk_down = Turnstile(bulk_streams)
        self._uploads: dict[tuple[NodeId, str], asyncio.Task[UploadEnd]] = {}
        """One for each hospital and study: the newest, as with control streams."""
        self._runs: dict[RunId, StoredRun] = {}
        """Every run, oldest first."""
        self._drivers: dict[RunId, RunDriver] = {}
        """Of those that go on, have ended since the start, or were asked for."""
        self._ended: dict[RunId, Shelved] = {}
        """The others."""
        self._tasks: dict[RunId, asyncio.Task[None]] = {}
        self._run_died = asyncio.Event()
        self._broken: StateError | None = None
        """What the store failed with when a study was submitted."""
        self._tasks_with_keys: dict[NodeId, frozenset[str]] = {}
        self._last_seen: dict[NodeId, float] = {}
        self._noted: dict[RunId, int] = {}
        """The drivers' runs that are on the shelf for the next start: with so many receipts."""
        self._closing = False
        self._silent: dict[NodeId, str] = {}
        """Whose stream is being closed for its silence, in words."""
        self._calls_from: dict[NodeId, str] = {}
        """The network address of each hospital's newest stream."""
        self._replaced: dict[NodeId, tuple[float, str]] = {}
        """Of a stream that took another's place and has not said Hello: when the former was
        last heard of, and from where it called."""
        self._clock_watch = ClockWatch(shop.clock)
        self._link_changed_at: dict[NodeId, float] = {}
        """Monotonic seconds at which a hospital's stream came or went; none yet: not there."""
        self._began = shop.clock.monotonic()
        self.traffic = Traffic()

    # --- life -------------------------------------------------------------------------

    def recover(self) -> None:
        """Take up every stored run where its facts end.

        Raises:
            StateError: STATE_DAMAGED, the store cannot be read.
        """
        store, links = self._shop.store, self._shop.store.links()
        self._runs = {run.run_id: run for run in store.runs()}
        self._ended = self._shelf.current(links)
        rest = [run for run_id, run in self._runs.items() if run_id not in self._ended]
        known = read_runs(store, self._federation, self._roster, rest)
        check_files(known, self._shop)
        drivers = [self._start(run.state, run.journal, run.stored.created_unix) for run in known]
        self._shop.spool.drop_all_but(
            frozenset(run.open_header for run in known if run.open_header is not None)
        )
        for run, driver in zip(known, drivers, strict=True):
            driver.take_up(run.models[-KEPT_MODELS:])
        for digest in chain.from_iterable(one.models for one in self._ended.values()):
            self._shop.objects.hold(digest)
        for run in known:
            for model in run.models:
                for digest in model.addresses:
                    self._shop.objects.remove(digest)
        self._noted = self._note(known, links)

    def _first_state(self, run: StoredRun, study: Study) -> RunState:
        return first_state(run, study, self._federation, self._roster)

    def _start(self, state: RunState, journal: Journal, created_unix: float) -> RunDriver:
        driver = self._serve(state, journal, created_unix)
        driver.post(Begin())
        for node in sorted(self._tasks_with_keys):
            driver.post(NodeConnected(node, self._has_keys(node, state.study.id)))
        return driver

    def _serve(self, state: RunState, journal: Journal, created_unix: float) -> RunDriver:
        driver = RunDriver(state, journal, created_unix, self._shop)
        self._drivers[state.run_id] = driver
        task = asyncio.create_task(driver.run())
        task.add_done_callback(lambda _: self._run_died.set())
        self._tasks[state.run_id] = task
        return driver

    def _read_again(self, run_id: RunId) -> RunDriver:
        """Take an ended run from the shelf: somebody asks for all of it.

        Raises:
            StateError: STATE_DAMAGED; as at a start, the process has to stop.
        """
        stored = self._runs[run_id]
        try:
            (run,) = read_runs(self._shop.store, self._federation, self._roster, (stored,))
        except StateError as failure:
            self._stop_for(failure)
            raise
        del self._ended[run_id]
        self._noted[run_id] = len(run.state.receipts)  # its line stays what it is
        return self._serve(run.state, run.journal, stored.created_unix)

    def _progress(self) -> list[Progress]:
        """Return how far every run is, oldest first."""
        ended, drivers = self._ended, self._drivers
        return [
            ended[run].progress if run in ended else drivers[run].progress for run in self._runs
        ]

    async def watch_over(self) -> None:
        """Notice silent peers and dead runs, until cancelled.

        Raises:
            Exception: whatever ended a run's driver, or was not stored: the process has to
                stop, because a state that could not be stored must not be acted on.
        """
        shelving = asyncio.create_task(self._shelve())
        try:
            while True:
                if shelving.done():  # a disk that hangs must not keep this from looking after peers
                    shelving.result()
                    shelving = asyncio.create_task(self._shelve())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._heartbeat_s):
                        await self._run_died.wait()
                self._run_died.clear()
                self._look_round()
        finally:
            shelving.cancel()

    def _look_round(self) -> None:
        if jump := self._clock_watch.jumped():
            self._shop.log.warning(Event.CLOCK_SET, by_s=jump, then=CLOCK_THEN)
        self._check_store()
        late = self._shop.clock.monotonic() - 3 * self._heartbeat_s
        for node in [n for n, seen in self._last_seen.items() if seen < late]:
            self._last_seen.pop(node)
            self._silent[node] = f"silent for {3 * self._heartbeat_s:g} s"
            self._shop.hub.drop(node)
        self._shop.log.report_left_out()

    async def _shelve(self) -> None:
        """Note in short what has ended since, for the next start.

        Facts that cannot be read stop the process, as where they are asked for.
        """
        states = [driver.state for driver in self._drivers.values()]
        ended = (state for state in states if state.phase.final)
        new = [s.run_id for s in ended if self._noted.get(s.run_id) != len(s.receipts)]
        if not new or self._broken is not None:
            return
        runs = [self._runs[run] for run in new[:MOST_NOTED]]
        store = self._shop.store

        def note() -> dict[RunId, int]:
            known = read_runs(store, self._federation, self._roster, runs)
            return self._note(known, store.links())

        # On the store's own thread: nothing is written between the facts and their links.
        try:
            self._noted |= await asyncio.get_running_loop().run_in_executor(self._shop.disk, note)
        except StateError as failure:
            self._stop_for(failure)

    def _note(self, runs: Iterable[KnownRun], links: Mapping[RunId, bytes]) -> dict[RunId, int]:
        """Put on the shelf what of some runs has ended; return it, with the receipts of each."""
        ended = [run for run in runs if run.state.phase.final]
        self._shelf.keep([shelve(run, links[run.stored.run_id], KEPT_MODELS) for run in ended])
        return {run.stored.run_id: len(run.state.receipts) for run in ended}

    def _stop_for(self, failure: StateError) -> None:
        """Have the process stop: the store failed elsewhere than in a run's driver."""
        self._broken = failure
        self._run_died.set()

    def _check_store(self) -> None:
        """Raise what ended a run's driver, or what the store failed with."""
        try:
            if self._broken is not None:
                raise self._broken
            for task in self._tasks.values():
                if task.done() and not task.cancelled():
                    task.result()
        except StateError as failure:
            self._shop.room.stopped(failure)
            raise

    async def keep_store(self) -> None:
        """Ask the store now and then whether it is still this coordinator's, until cancelled.

        Raises:
            StateError: it is not, or does not answer: the process has to stop.
        """
        while True:
            await asyncio.sleep(self._heartbeat_s)
            await asyncio.to_thread(self._shop.store.ask)

    @property
    def connected(self) -> frozenset[NodeId]:
        """The hospitals with a live control stream."""
        return self._shop.hub.connected

    @property
    def states(self) -> tuple[RunState, ...]:
        """Every run that goes on or was looked at, as it is now; states are frozen."""
        return tuple(driver.state for driver in self._drivers.values())

    @property
    def ended_before(self) -> tuple[RunPhase, ...]:
        """How every other run has ended."""
        return tuple(one.progress.phase for one in self._ended.values())

    @property
    def failed(self) -> bool:
        """Whether the store failed, or a run's driver died: the process is about to stop."""
        return self._broken is not None or any(
            task.done() and not task.cancelled() and task.exception() is not None
            for task in self._tasks.values()
        )

    async def drain(self) -> None:
        """Open no further round; return once no round is open, and no release on its way."""
        self._shop.draining.set()
        while not all(driver.between_rounds for driver in self._drivers.values()):  # noqa: ASYNC110 - seldom, for a while
            await asyncio.sleep(DRAIN_LOOK_S)

    @property
    def short_of_room(self) -> str:
        """Why nothing is written for now, in one line; empty while the disk has room."""
        return self._shop.room.why_not

    async def close(self) -> None:
        """End all streams and drivers; what is stored stays."""
        self._closing = True
        self._shop.hub.close()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._shop.stopping.set()  # no driver is left that would take it for a failed sum

    # --- nodes -------------------------------------------------------------------------

    def check_member(self, node: NodeId) -> None:
        """Refuse a certificate of a hospital that is not (or no longer) a member.

        Raises:
            Refusal: NOT_MEMBER.
        """
        if node not in self._roster:
            raise Refusal("NOT_MEMBER", f"{node} is not among the coordinator's members")

    def connect(self, node: NodeId, address: str = "") -> Outbox:
        """Open a hospital's control stream, from a network address; it begins with Hello.

        Raises:
            Refusal: NOT_MEMBER.
        """
        self.check_member(node)
        now = self._shop.clock.monotonic()
        if node in self._tasks_with_keys:
            former = self._last_seen.get(node, now), self._calls_from.get(node, "")
            self._replaced.setdefault(node, former)
        self._last_seen[node] = now
        self._calls_from[node] = address
        return self._shop.hub.connect(node)

    def disconnect(self, outbox: Outbox) -> None:
        """A control stream ended."""
        if not self._shop.hub.disconnect(outbox):
            return
        self._last_seen.pop(outbox.node, None)
        self._replaced.pop(outbox.node, None)
        reason = "this coordinator stops" if self._closing else None
        reason = self._silent.pop(outbox.node, reason)  # of this stream, never of a later one
        if self._tasks_with_keys.pop(outbox.node, None) is not None:
            self._link_changed_at[outbox.node] = self._shop.clock.monotonic()
            self._tell_link(outbox.node, lost=True, reason=reason)
        for driver in self._drivers.values():
            driver.post(NodeLost(outbox.node))

    def _tell_link(self, node: NodeId, *, lost: bool, **fields: Shown) -> None:
        """Log a lost or new stream: once for each open round it matters to, else once."""
        drivers = () if self._closing else self._drivers.values()
        told = [driver.tell_link(node, lost=lost, **fields) for driver in drivers]
        if not any(told):
            event = Event.LINK_LOST if lost else Event.LINK_CONNECTED
            self._shop.log.info(event, site=site_name(node), **fields)

    async def receive(self, node: NodeId, task: str, step: NodeStep) -> None:
        """Take one message of a hospital's control stream.

        Raises:
            Refusal: OUT_OF_TURN, a message before Hello, or of another protocol.
        """
        self._last_seen[node] = self._shop.clock.monotonic()
        welcome = self._shop.hub.is_welcome(node)
        if isinstance(step, Hello):
            if not welcome:  # said again it would have everything told again
                await self._hello(node, step)
            return
        if not welcome:
            raise Refusal("OUT_OF_TURN", "a control stream begins with Hello")
        try:
            await self._take(node, task, step)
        except FedError as error:
            # One wrong message is no reason to cut a hospital off; this machine's own files
            # are none of its business.
            detail = error.kind.meaning if isinstance(error, StateError) else error.detail
            self._shop.hub.send(node, task, Refused(b"", error.name, detail))

    async def _take(self, node: NodeId, task: str, step: NodeStep) -> None:
        match step:
            case Heartbeat():
                self._shop.hub.send(node, "", step)
            case StudyDecision() | ReleaseReceipt():
                await self._driver(step.run_id).hear(FromNode(node, step))
            case Resume():
                self._resume(node, task, step)
            case _:
                await self._hand_over(node, task, step)

    async def _hello(self, node: NodeId, hello: Hello) -> None:
        if hello.protocol_version != PROTOCOL_VERSION:
            raise Refusal(
                "BAD_MESSAGE",
                f"protocol version {hello.protocol_version}; this coordinator speaks"
                f" {PROTOCOL_VERSION}",
            )
        stream = self._shop.hub.stream(node)
        await self._compare(node, hello)
        if stream is None or self._shop.hub.stream(node) is not stream:
            return  # it ended meanwhile, or a newer one took its place and says its own Hello
        known = node in self._tasks_with_keys
        self._tell_replaced(node)
        self._tasks_with_keys[node] = frozenset(hello.tasks)
        heartbeat_ms = round(self._heartbeat_s * 1000)
        runs, now_unix = self._progress(), int(self._shop.clock.unix())
        noised, seen = noised_sums(runs, node), witness(runs, node)
        welcome = Welcome(self._federation, heartbeat_ms, noised, seen, now_unix)
        self._shop.hub.welcome(node, welcome)
        for one in hello.seen:
            if one.run_id in self._shop.history.lost and one.run_id not in self._runs:
                ended = RunEnded(one.run_id, RunPhase.FAILED.value, "the coordinator has lost it")
                self._shop.hub.send(node, one.task, ended)
        now = self._shop.clock.monotonic()
        lost_at = None if known else self._link_changed_at.get(node)
        away_s = None if lost_at is None else now - lost_at
        self._link_changed_at[node] = now
        self._tell_link(node, lost=False, version=hello.software, away_s=away_s)
        named = {one.run_id for one in hello.seen}
        for run, driver in self._drivers.items():
            has_keys = self._has_keys(node, driver.state.study.id)
            driver.post(NodeConnected(node, has_keys, run in named))
        for run, short in self._ended.items():
            if run in named and node not in short.owed:
                self._shop.hub.send(node, short.progress.task, short.end)
        owing = [run for run, short in self._ended.items() if node in short.owed]
        for run in owing:  # hundreds of them may have to be read: others go on
            if self._shop.hub.stream(node) is not stream:
                return
            driver = self._driver(run)
            has_keys = self._has_keys(node, driver.state.study.id)
            driver.post(NodeConnected(node, has_keys, run in named))
            await asyncio.sleep(0)

    def _tell_replaced(self, node: NodeId) -> None:
        """Log that a hospital's newer stream stands; two processes may have its certificate."""
        found = self._replaced.pop(node, None)
        if found is None:
            return
        heard_at, was = found
        silent_s = self._shop.clock.monotonic() - heard_at
        alive = silent_s < ALIVE_BEATS * self._heartbeat_s
        write = self._shop.log.warning if alive else self._shop.log.info
        then = "the newer stream stands, the former is closed"
        if alive:
            then += "; again and again: its certificate is in two places"
        write(
            Event.LINK_REPLACED,
            site=site_name(node),
            at=self._calls_from.get(node) or None,
            was=was or None,
            heard_s=silent_s,
            then=then,
        )

    async def _compare(self, node: NodeId, hello: Hello) -> None:
        """Refuse everybody once a hospital has seen more than the store knows of.

        Raises:
            Refusal: HISTORY_BACK. It names no hospital and no run: those are others' affairs.
        """
        history, store = self._shop.history, self._shop.store
        on_disk = partial(asyncio.get_running_loop().run_in_executor, self._shop.disk)
        epochs = await on_disk(store.epochs) if hello.seen else {}
        told = unknown(node, hello.seen, self._progress(), epochs, history.losses)
        if told:
            self._drop_others(node)  # also where the disk does not take what was told
            try:
                new = await on_disk(history.tell, told)
            finally:
                self._drop_others(node)  # who came while it was written
            for one in new:
                failure = Refusal("HISTORY_BACK", f"{one.site}: {one.why}")
                log = self._shop.log.bind(study=one.seen.task, run=one.seen.run_id, site=one.site)
                log.failure(Event.HISTORY_BACK, failure)
        if history.told:
            raise Refusal(
                "HISTORY_BACK",
                "the coordinator may have been put back from an old copy; it waits for its"
                " operator",
            )

    def _drop_others(self, node: NodeId) -> None:
        for other in self._shop.hub.connected - {node}:
            self._shop.hub.drop(other)

    def _has_keys(self, node: NodeId, task: str) -> bool:
        return task in self._tasks_with_keys.get(node, frozenset())

    async def _hand_over(self, node: NodeId, task: str, step: NodeStep) -> None:
        driver = self._active(task)
        if driver is None:
            self._shop.hub.send(node, task, Refused(b"", "CLOSED", "no run of this task is open"))
        else:
            await driver.hear(FromNode(node, step))

    def _resume(self, node: NodeId, task: str, step: Resume) -> None:
        try:
            answer = self._open_run(task).resume_state(node, step)
        except Refusal as refusal:
            self._shop.hub.send(node, task, Refused(step.hd, refusal.name, refusal.detail))
        else:
            self._shop.hub.send(node, task, answer)

    def _active(self, task: str) -> RunDriver | None:
        for driver in self._drivers.values():
            if driver.state.study.id == task and not driver.state.phase.final:
                return driver
        return None

    def _open_run(self, task: str) -> RunDriver:
        driver = self._active(task)
        if driver is None:
            raise Refusal("CLOSED", "no run of this task is open")
        return driver

    async def upload(self, node: NodeId, parts: AsyncIterator[UploadPart]) -> UploadAck:
        """Receive a masked vector, or the rest of one, and acknowledge it once durable.

        Raises:
            Refusal: BUSY, a newer upload came; see `RunDriver.spool_file` and `finish_upload`.
        """
        self.check_member(node)
        start = await anext(parts, None)
        if not isinstance(start, UploadStart):
            raise Refusal("OUT_OF_TURN", "an upload begins with its start record")
        with self._shop.room.attempt((start.hd, node), partial(self._is_open, start)):
            return await self._take_upload(node, start, parts)

    def _is_open(self, start: UploadStart) -> bool:
        driver = self._active(start.task)
        return driver is not None and driver.header_is_open(start.hd)

    async def _take_upload(
        self, node: NodeId, start: UploadStart, parts: AsyncIterator[UploadPart]
    ) -> UploadAck:
        driver = self._open_run(start.task)
        # Strangers to the round are turned away here, before they wait for a turn.
        chunks = driver.spool_file(node, start.hd).chunks
        key = (node, start.task)
        previous = self._uploads.get(key)
        if previous is not None:
            previous.cancel()
        receiving = asyncio.create_task(
            self._receive_upload(driver, node, start, at_most(parts, chunks + 1))
        )
        self._uploads[key] = receiving
        try:
            end = await receiving
        except asyncio.CancelledError:
            if self._uploads.get(key) is receiving:
                raise
            raise Refusal("BUSY", "a newer upload of this hospital took its place") from None
        finally:
            receiving.cancel()
            if self._uploads.get(key) is receiving:
                del self._uploads[key]
        ack = await driver.finish_upload(node, end)
        failpoint("coordinator.receipt")
        return ack

    async def _receive_upload(
        self,
        driver: RunDriver,
        node: NodeId,
        start: UploadStart,
        parts: AsyncIterator[UploadPart],
    ) -> UploadEnd:
        async with self._bulk_up.turn(node) as turn:
            return await self._spool(driver, node, start, patiently(parts, turn))

    async def _spool(
        self,
        driver: RunDriver,
        node: NodeId,
        start: UploadStart,
        parts: AsyncIterator[UploadPart],
    ) -> UploadEnd:
        driver.spool_file(node, start.hd)
        behind = _Behind(self._shop.crunch)
        try:
            async for part in parts:
                await behind.wait()
                match part:
                    case UploadChunk(index=index, data=data):
                        self.traffic.up += len(data)
                        append = driver.spool_file(node, start.hd).append
                        behind.start(partial(append, index, data))
                    case UploadEnd():
                        if part.hd != start.hd:
                            raise Refusal("OUT_OF_TURN", "the end record is of another header")
                        return part
                    case UploadStart():
                        raise Refusal("OUT_OF_TURN", "an upload has one start record")
        finally:
            await behind.wait()
        raise Refusal("UPLOAD_SIZE", "the stream ended without an end record")

    async def download(
        self, sha256: Sha256, offset: int, caller: str
    ) -> AsyncIterator[DownloadChunk]:
        """Yield a stored object from `offset` on; one object at a time to a caller.

        Raises:
            RoundError: NOT_FOUND.
            Refusal: BAD_MESSAGE, the offset lies beyond the end.
        """
        async with self._bulk_down.turn(caller) as turn:
            with self._shop.objects.open_unchecked(sha256) as reader:
                if offset > reader.size:
                    raise Refusal("BAD_MESSAGE", "the offset lies beyond the object's end")
                if offset == reader.size:
                    yield DownloadChunk(offset, reader.size, b"")
                while offset < reader.size:
                    data = reader.read(offset, CHUNK_BYTES)
                    turn.waiting()
                    failpoint("coordinator.download")
                    self.traffic.down += len(data)
                    yield DownloadChunk(offset, reader.size, data)
                    await turn.going_on()
                    offset += len(data)

    # --- people -------------------------------------------------------------------------

    async def submit(self, submission: Submission, caller: str) -> StoredRun:
        """Accept a study and begin its run; the same request again gives the same run.

        Raises:
            ConfigError: the study is not valid, or cannot run in this federation.
            Refusal: OWNER_SIGNATURE, it is not signed by the owner it names.
            RoundError: BUSY, a run of a study of that id is going on.
            NoRoom: nothing was submitted.
        """
        study = study_from_canonical(submission.study)
        self._check_can_run(study)
        digest = config_hash(study)
        shop = self._shop
        verify_study(
            digest,
            study.owner.organisation,
            submission.signature,
            submission.cert_chain,
            ca_der=shop.identity.ca_der,
            federation=self._federation,
            now_unix=int(shop.clock.unix()),
        )
        request = f"{caller} {submission.request}"
        known = next((run for run in shop.store.runs() if run.request == request), None)
        if known is not None:
            return known
        if self._active(study.id) is not None:
            raise RoundError("BUSY", f"a run of study {study.id} is going on")
        run = StoredRun(
            run_id=RunId(f"{study.id[:48].rstrip('-')}-{secrets.token_hex(4)}"),
            study_id=StudyId(study.id),
            config_hash=digest,
            request=request,
            signature=submission.signature,
            chain=to_pem(submission.cert_chain),
            created_unix=shop.clock.unix(),
            ended=False,
        )
        run = self._store_run(StoredStudy(run.study_id, digest, submission.study), run)
        shop.log.info(Event.STUDY_SUBMITTED, study=study.id, run=run.run_id)
        self._runs[run.run_id] = run
        self._start(self._first_state(run, study), Journal(), run.created_unix)
        return run

    def _store_run(self, study: StoredStudy, run: StoredRun) -> StoredRun:
        try:
            return self._shop.store.add_run(study, run)
        except NoRoom:
            raise
        except StateError as failure:
            self._stop_for(failure)
            raise

    def _check_can_run(self, study: Study) -> None:
        parameters = result_schema(study).parameters
        if parameters > MOST_PARAMETERS:
            raise ConfigError(
                "BAD_VALUE", f"the model has {parameters} parameters; the most is {MOST_PARAMETERS}"
            )
        _check_sums_fit(study)
        probe = RunState(RunId("x"), study, ConfigHash(b""), self._federation, self._roster)
        if fewest(probe) > len(self._roster):
            raise ConfigError(
                "BAD_VALUE",
                f"the study needs more hospitals than the federation's {len(self._roster)}",
            )
        self._check_manifest_fits(study)

    def _check_manifest_fits(self, study: Study) -> None:
        """Refuse a run whose record of rounds would outgrow what a hospital reads."""
        names = sum(len(site_name(node)) + 6 for node in self._roster)
        room = MAX_MANIFEST_BYTES - (64 << 10) - SITE_RECORD_BYTES * len(self._roster)
        most = room // (ROUND_RECORD_BYTES + names)
        if len(round_kinds(study)) > most:
            raise ConfigError(
                "BAD_VALUE",
                f"{study.federation.rounds} rounds; with {len(self._roster)} hospitals a run"
                f" has at most {most} in all",
            )

    def studies(self) -> list[StudyView]:
        """Return every study with its runs."""
        runs = self._shop.store.runs()
        return [
            _study_view(stored, [r.run_id for r in runs if r.config_hash == stored.config_hash])
            for stored in self._shop.store.studies()
        ]

    def study(self, study_id: str) -> tuple[StudyView, bytes]:
        """Return the study of that id whose run is the latest, with its content.

        Raises:
            RoundError: NOT_FOUND.
        """
        runs = [run for run in self._shop.store.runs() if run.study_id == study_id]
        if not runs:
            raise RoundError("NOT_FOUND", f"no study {study_id}")
        stored = self._shop.store.study(runs[-1].config_hash)
        same = [run.run_id for run in runs if run.config_hash == stored.config_hash]
        return _study_view(stored, same), stored.content

    async def runs(self) -> list[RunView]:
        """Return every run, oldest first."""
        found = []
        for run in list(self._runs):
            found.append(self._driver(run).view())
            await asyncio.sleep(0)  # hundreds of them may have to be read: others go on
        return found

    def run(self, run_id: RunId) -> RunView:
        """Return one run.

        Raises:
            RoundError: NOT_FOUND.
        """
        return self._driver(run_id).view()

    def watch(self, run_id: RunId) -> AsyncIterator[RunView]:
        """Yield a run's view at once and after each change, until it is final.

        Raises:
            RoundError: NOT_FOUND.
        """
        return self._driver(run_id).watch()

    def check_owner(self, run_id: RunId, researcher: str) -> None:
        """Return if a run's study is this researcher's own.

        Raises:
            IdentityError: ROLE_DENIED, it is another's.
            RoundError: NOT_FOUND.
        """
        if self._driver(run_id).state.study.owner.organisation != researcher:
            raise IdentityError("ROLE_DENIED", f"{run_id} is not a run of a study of {researcher}")

    async def cancel(self, run_id: RunId, reason: str) -> RunView:
        """End a run. Ending an ended one changes nothing.

        Raises:
            RoundError: NOT_FOUND.
            NoRoom: it ends once there is room, or is to be ended again after a restart.
        """
        driver = self._driver(run_id)
        driver.post(Cancel(reason))
        ended = asyncio.create_task(_last(driver.watch()))
        try:
            while not (await asyncio.wait((ended,), timeout=ROOM_LOOK_S))[0]:
                if self.short_of_room:
                    raise NoRoom(self.short_of_room)
            return ended.result()
        finally:
            ended.cancel()

    def release(self, run_id: RunId) -> ReleaseNotice:
        """Return a run's signed release.

        Raises:
            RoundError: NOT_FOUND.
        """
        return self._driver(run_id).release_notice()

    def status(self) -> StatusView:
        """Return who is connected and what every open run waits for."""
        sites = tuple(self._site_view(node) for node in self._roster)
        going_on = (one for one in self._drivers.values() if not one.state.phase.final)
        open_runs = tuple(driver.view() for driver in going_on)
        uptime = self._shop.clock.monotonic() - self._began
        return StatusView(self._federation, VERSION, sites, open_runs, uptime)

    def _site_view(self, node: NodeId) -> SiteView:
        here = node in self._shop.hub.connected
        changed_at = self._link_changed_at.get(node)
        return SiteView(
            site=site_name(node),
            connected=here,
            state="connected" if here else "away",
            waiting_for="" if here else "its connection",
            objection="",
            since_s=None if changed_at is None else self._shop.clock.monotonic() - changed_at,
        )

    def _driver(self, run_id: RunId) -> RunDriver:
        if run_id in self._ended:
            return self._read_again(run_id)
        if run_id not in self._drivers:
            raise RoundError("NOT_FOUND", f"no run {run_id}")
        return self._drivers[run_id]


async def _last(views: AsyncIterator[RunView]) -> RunView:
    """Return the last of the views, which is final."""
    async for view in views:
        if view.state.final:
            return view
    raise InternalError("a run is watched until it is over")


def _study_view(stored: StoredStudy, run_ids: list[RunId]) -> StudyView:
    study = study_from_canonical(stored.content)
    owner = study.owner.organisation
    return StudyView(stored.study_id, stored.config_hash, study.title, owner, tuple(run_ids))
