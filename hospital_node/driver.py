"""The node's main loop: dial, say hello, serve, and dial again with jittered back-off.

It never needs a command to come back (promise P5): whatever ended a connection or the
process, the next start reads the state directory, dials, and every task repeats what the
coordinator may have missed. The node listens on no network.

    connect -> Hello -> Welcome -> each task: Restarted -> messages ... -> lost -> wait -> connect

Offers, releases and run ends concern a whole run and are handled here; the protocol's
steps go to the `Task` of their study.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from common.clock import CLOCK_THEN, Clock, ClockWatch, SystemClock
from common.entropy import Entropy, OsEntropy
from common.errors import FedError, IdentityError, InternalError, PolicyRefusal, StateError
from common.events import Event
from common.ids import NodeId, RunId, site_name
from common.logs import EventLog
from common.messages import (
    MAX_SEEN,
    PROTOCOL_VERSION,
    BeginEpoch,
    Heartbeat,
    Hello,
    ReleaseNotice,
    RunEnded,
    Seen,
    StudyDecision,
    StudyOffer,
    Welcome,
)
from common.secagg import node as machine
from common.secagg.messages import Refused, ResumeState
from common.secagg.node_state import NodeContext, NodeState, Restarted, decode_state
from common.secagg.rules import NodeRules
from common.secagg.session import Signer, Trust
from hospital_node.approval.gate import Gate
from hospital_node.backoff import Backoff, os_jitter
from hospital_node.conduct import Conduct
from hospital_node.jobs import Surroundings
from hospital_node.last_contact import Off, doubt, explained, keep, known_off, off_by
from hospital_node.link import Connect, CoordinatorOut
from hospital_node.offers import OfferBook
from hospital_node.orders import found_back, found_older, keep_older, orders, seen_of
from hospital_node.personal.keeper import PersonalKeeper
from hospital_node.picture import Picture
from hospital_node.releases import ReleaseKeeper, ReleaseTrust
from hospital_node.round import Handle, opened
from hospital_node.session import Connection, Ears, LinkSlot, Sleep
from hospital_node.shelf import ModelShelf
from hospital_node.store import DecisionRecord, NodeStore
from hospital_node.task import ConsentLost, RunOver, Task
from hospital_node.transfer import Road
from hospital_node.work import Desk, Work
from hospital_node.worker import Worker

STATUS_EVERY_S: Final = 1.0
"""The status file is rewritten at most this often."""

_DRAIN_LOOK_S: Final = 0.1

_PASSING: Final = frozenset({"UNREACHABLE", "BUSY"})
"""Why a dial may fail that nobody has to hear of each time."""

MOST_ERRANDS: Final = 32
"""Offers and releases worked on at a time."""


@dataclass(frozen=True, slots=True)
class NodeParts:
    """Everything a node is made of; `hospital_node.app` builds the real ones."""

    federation: str
    signer: Signer
    trust: Trust
    rules: NodeRules
    release_trust: ReleaseTrust
    gate: Gate
    """Whether the people of the policy agree."""
    store: NodeStore
    desk: Desk
    witnessed: Callable[[Mapping[str, int]], None]
    """Hears how many noised sums the coordinator knows of, by data set."""
    connect: Connect
    log: EventLog
    conduct: Conduct = field(default_factory=Conduct)
    software: str = "fedcare"
    clock: Clock = field(default_factory=SystemClock)
    entropy: Entropy = field(default_factory=OsEntropy)
    sleep: Sleep = asyncio.sleep
    jitter: Callable[[], float] = os_jitter
    handle: Handle = machine.handle

    @property
    def own(self) -> NodeId:
        """This node's id."""
        return self.signer.node_id


class Node:
    """One hospital's node. `run` serves until `stop`; build it inside the event loop."""

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts
        self._slot = LinkSlot()
        self._stopping = asyncio.Event()
        self._leaving: asyncio.Task[None] | None = None
        self._backoff = self._new_backoff()
        self._connection: Connection | None = None
        self._clock_watch = ClockWatch(parts.clock)
        self._worker = Worker()
        self._trouble: asyncio.Future[FedError] | None = None
        self._tasks: dict[str, Task] = {}
        self._serving: dict[str, asyncio.Task[None]] = {}
        self._errands: dict[str, asyncio.Task[None]] = {}
        self._later: dict[RunId, tuple[str, StudyOffer, IdentityError]] = {}
        """The latest offers on which nothing is decided while the clocks differ, and why."""
        self._making: dict[RunId, asyncio.Task[None]] = {}
        """Own models, which take long and are no errands: they never keep a message waiting."""
        self._last_failure: FedError | None = None
        self._status_at = float("-inf")
        self._witnessed: dict[str, int] = {}
        self._writes = True
        self._dials = 0
        self._answers = 0
        """Answers to offers that were given anew, because people changed their minds."""
        self._offers = OfferBook(
            parts.store,
            parts.desk,
            parts.release_trust.verify_owner,
            parts.gate,
            parts.clock,
            parts.log,
            parts.conduct,
        )
        road = Road(self._slot, parts.sleep, self._new_backoff, self._backoff.succeeded)
        self._around = Surroundings(
            own=parts.own,
            federation=parts.federation,
            store=parts.store,
            shelf=ModelShelf(parts.store),
            desk=parts.desk,
            road=road,
            clock=parts.clock,
            log=parts.log,
            context=self._context,
            handle=parts.handle,
            worker=self._worker,
            ended=self._offers.ended,
            objection=self._objection,
            conduct=parts.conduct,
            trouble=self._on_trouble,
            leaving=lambda: self._leaving is not None,
        )
        self._releases = ReleaseKeeper(
            parts.store, parts.release_trust, road, self._worker, parts.log
        )
        self._personal = PersonalKeeper(parts.store, self._worker, parts.log)

    # --- life ---------------------------------------------------------------------------

    async def run(
        self, http: str | None = None, before_end: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Serve until `stop` is called.

        `http`: where metrics are served, for the log. `before_end` is awaited while the
        state directory is still this process' own.

        Raises:
            StateError: STATE_DAMAGED, stored state cannot be read; nothing was changed.
        """
        parts = self._parts
        try:
            self._restore()
            self._tell_orders()
            where = {} if http is None else {"http": http}
            parts.log.info(Event.SERVICE_STARTED, software=parts.software, **where)
            off = known_off(parts.store.root, parts.clock)
            self._tell_off(None if off is None or off.guessed else off)
            while not self._stopping.is_set():
                await self._one_connection()
        finally:
            if before_end is not None:
                await before_end()
            await self._end()
        parts.log.info(Event.SERVICE_STOPPED)

    def stop(self) -> None:
        """Take no further round and end; safe to call from a signal handler of the loop."""
        if not self._stopping.is_set():
            self._parts.log.info(Event.SERVICE_STOPPING)
        self._stopping.set()

    def drain(self) -> None:
        """Take no further round, and stop once the open ones are over.

        What other hospitals wait for is then done: this one's signature, its part of the seeds.
        """
        if self._leaving is None:
            self._parts.log.info(Event.SERVICE_DRAINING)
            self._leaving = asyncio.create_task(self._leave())

    async def _leave(self) -> None:
        while not all(task.between_rounds for task in self._tasks.values()):
            await self._parts.sleep(_DRAIN_LOOK_S)
        self.stop()

    @property
    def connected(self) -> bool:
        """Whether the coordinator has welcomed this node."""
        return self._slot.connected

    @property
    def stopping(self) -> bool:
        """Whether the node was told to stop."""
        return self._stopping.is_set()

    def store_writes(self) -> bool:
        """Say whether the store takes writes, by what a write of the last second showed."""
        self._write_status()
        return self._writes

    def picture(self) -> Picture:
        """Return what metrics show."""
        accepted, refused = self._offers.tally()
        return Picture(
            connected=self.connected,
            stopping=self.stopping,
            writes=self._writes,
            attempts=self._dials,
            accepted=accepted,
            refused=refused,
        )

    def _restore(self) -> None:
        """Read decisions and sessions back and set up a task for each study accepted."""
        store = self._parts.store
        decided = self._offers.restore()
        open_rounds = []
        for name in store.tasks():
            record = store.load_session(name)
            if record is None:
                continue
            state = decode_state(record.state)
            run = decided.get(record.run_id)
            if run is None:
                raise StateError("STATE_DAMAGED", f"run {record.run_id} has state but no decision")
            task = self._add(name, run, state)
            if (found := opened(state)) is not None:
                open_rounds.append(found.hd)
                log = self._parts.log.bind(study=name, run=run.run_id, round=found.header.r)
                log.info(Event.STATE_RECOVERED, phase=found.phase.value)
                if self._around.shelf.candidate(found.header.model_sha256):
                    self._around.shelf.expect(name, found.header.model_sha256)
            task.tick()
        store.keep_spools(frozenset(open_rounds))
        store.checkpoints.keep(frozenset(open_rounds))
        for run in decided.values():
            if not run.ended and self._offers.agreed(run):
                self._accepted(run)
            if run.accepted:
                self._own_model(run, partial(self._open_again, run))

    def _tell_orders(self) -> None:
        """Log what people ordered here: a set that was forgotten is never forgotten silently."""
        for order in orders(self._parts.store.root):
            log = self._parts.log.bind(study=order.task)
            said = f"{order.what}: {order.reason}"
            log.warning(Event.LOSS_ACCEPTED, reason=said, people=[order.user])

    async def _open_again(self, run: DecisionRecord) -> Work:
        return await asyncio.to_thread(self._parts.desk.open, run.study)

    async def _end(self) -> None:
        jobs = [*self._serving.values(), *self._errands.values(), *self._making.values()]
        jobs += [] if self._leaving is None else [self._leaving]
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        if not all(await asyncio.gather(self._worker.close(), self._personal.close())):
            detail = "work is in a long step; it ends with the process"
            self._parts.log.warning(Event.SERVICE_STOPPING, detail=detail)
        self._write_status(final=True)
        self._parts.store.close()

    # --- one connection after another ---------------------------------------------------------

    async def _one_connection(self) -> None:
        parts = self._parts
        began = parts.clock.monotonic()
        try:
            await self._until_stopped(self._serve_link())
        except FedError as seen:
            self._look_at_clock()
            failure = explained(seen, parts.store.root, parts.clock)
            if self._slot.connected or failure.name not in _PASSING:
                parts.log.failure(Event.LINK_LOST, failure)
            elif self._backoff.failures in {0, 5} or self._backoff.failures % 20 == 0:
                parts.log.failure(Event.LINK_RETRYING, failure, attempts=self._backoff.failures)
            self._last_failure = failure
        except Exception as bug:  # noqa: BLE001 - whatever a peer provokes, the node dials again
            self._last_failure = self._bug(bug)
        beat_s = self._connection.beat_s if self._connection is not None else None
        self._lost_link()
        if beat_s is not None and parts.clock.monotonic() - began > beat_s:
            self._backoff.succeeded()
        if not self._stopping.is_set():
            await self._until_stopped(self._pause())

    async def _pause(self) -> None:
        self._look_at_clock()
        asked_s = self._last_failure.retry_s if self._last_failure is not None else 0.0
        await self._parts.sleep(self._backoff.failed(asked_s))

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, or as much of it as fits before `stop`."""
        job = asyncio.create_task(work)
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({job, stop}, return_when=asyncio.FIRST_COMPLETED)
            if job.done():
                job.result()
        finally:
            for each in (job, stop):
                each.cancel()
            await asyncio.gather(job, stop, return_exceptions=True)

    async def _serve_link(self) -> None:
        parts = self._parts
        self._dials += 1
        self._look_at_clock()
        link = await parts.connect()
        self._trouble = asyncio.get_running_loop().create_future()
        try:
            self._connection = Connection(link, parts.federation, parts.clock, parts.sleep)
            tasks = tuple(sorted(name for name, task in self._tasks.items() if task.confirmed))
            hello = Hello(parts.software, PROTOCOL_VERSION, tasks, self._seen())

            def welcomed(welcome: Welcome) -> None:
                self._check_age(welcome)
                self._compare_clocks(welcome)
                self._later.clear()  # what is still open is offered anew
                self._witnessed = dict(welcome.noised)
                parts.witnessed(self._witnessed)
                self._slot.fill(link)
                self._last_failure = None
                parts.log.info(Event.LINK_CONNECTED)
                for task in self._tasks.values():
                    task.put(Restarted())
                self._write_status(final=True)

            serve = asyncio.create_task(
                self._connection.serve(hello, Ears(welcomed, self._message, self._tick))
            )
            try:
                await asyncio.wait((serve, self._trouble), return_when=asyncio.FIRST_COMPLETED)
                if serve.done():
                    serve.result()
                else:
                    raise self._trouble.result()
            finally:
                serve.cancel()
                await asyncio.gather(serve, return_exceptions=True)
        finally:
            await link.close()

    def _seen(self) -> tuple[Seen, ...]:
        """Return how far the runs have come that were accepted here.

        If they are too many: those that go on as far as is known here, then the latest ones.
        """
        found = []
        open_last = sorted(self._offers.accepted(), key=lambda run: not run.ended)
        for run in open_last[-MAX_SEEN:]:
            name = self._offers.task_of(run)
            task = self._tasks.get(name)
            mine = task is not None and task.run.run_id == run.run_id
            epoch, r, next_r = seen_of(task.state) if task is not None and mine else (0, 0, 0)
            held = self._parts.store.release_directory(run.run_id).is_dir()
            found.append(Seen(run.run_id, name, epoch, r, held, next_r))
        return tuple(found)

    def _check_age(self, welcome: Welcome) -> None:
        """Refuse to go on where this state, or the coordinator's, is an old one put back.

        Raises:
            StateError: STATE_ROLLED_BACK, the coordinator has seen a newer one; HISTORY_BACK,
                this hospital was told of more than the coordinator knows.
        """
        states = [(name, task.state) for name, task in self._tasks.items()]
        older = found_older(states, welcome.seen)
        if older:
            keep_older(self._parts.store.root, older)
            first = older[0]
            raise StateError(
                "STATE_ROLLED_BACK",
                f"{first.task}: the coordinator has seen this hospital in round {first.r} of epoch"
                f" {first.epoch}, and its state knows of less",
            )
        for one in found_back(states, welcome.seen):
            raise StateError(
                "HISTORY_BACK",
                f"{one.task}: the coordinator told this hospital of more rounds of epoch"
                f" {one.epoch} than it knows of now; its next is round {one.next_r}",
            )

    def _lost_link(self) -> None:
        self._slot.empty()
        self._connection = None
        for task in self._tasks.values():
            task.disconnected()
        self._write_status(final=True)

    def _on_trouble(self, failure: FedError) -> None:
        """A task could not make its state durable: come back later, with the old state."""
        if self._trouble is not None and not self._trouble.done():
            self._trouble.set_result(failure)

    def _look_at_clock(self) -> float:
        """Return by how much the clock was set since the last look; 0 if it was not."""
        jump = self._clock_watch.jumped()
        if jump:
            self._parts.log.warning(Event.CLOCK_SET, by_s=jump, then=CLOCK_THEN)
        if jump > 0:  # or the machine was suspended: the next welcome tells
            self._remember(partial(doubt, self._parts.store.root))
        return jump

    def _compare_clocks(self, welcome: Welcome) -> None:
        """Say so if the coordinator's clock shows another time; remember its time."""
        if not welcome.unix:
            return
        self._offers.told(welcome.unix)
        if self._look_at_clock():
            return  # it may have been said before the jump: the next welcome tells
        store, clock = self._parts.store, self._parts.clock
        self._tell_off(off_by(clock.unix() - welcome.unix, clock))
        self._remember(partial(keep, store.root, welcome.unix, clock))

    def _remember(self, write: Callable[[], None]) -> None:
        """Write what only words follow from: if the disk does not take it, say so and go on."""
        try:
            write()
        except StateError as failure:
            self._parts.log.failure(Event.STATE_FAILED, failure)

    def _tell_off(self, off: Off | None) -> None:
        if off is not None:
            self._parts.log.warning(Event.CLOCK_OFF, by_s=off.ahead_s, detail=str(off))

    def _tick(self) -> None:
        self._look_at_clock()
        for task in self._tasks.values():
            task.tick()
        self._review()
        self._decide_now()
        self._write_status()

    def _decide_now(self) -> None:
        """Take up the offers that waited for a clock which is right now."""
        for run, (name, offer, _) in self._later.items():
            if self._offers.clock_off(offer) is None:
                job = self._logged(self._consider(name, offer))
                self._errands[f"again {run}"] = asyncio.create_task(job)

    def _objection(self, run: DecisionRecord) -> PolicyRefusal | None:
        """See `Surroundings`; what a task comes upon first, the coordinator is told at once."""
        found = self._offers.objection(run)
        if found is not None:
            asyncio.get_running_loop().call_soon(self._review)
        return found

    def _review(self) -> None:
        """See whether people changed their minds: say so, and take work up or drop it."""
        for record, decision in self._offers.changed():
            name = self._offers.task_of(record)
            if decision.accepted:
                self._accepted(record)
                self._tasks[name].put(Restarted())
            elif name in self._tasks and self._tasks[name].run.run_id == record.run_id:
                found = decision.objections[0]
                self._tasks[name].put(ConsentLost(PolicyRefusal(found.code, found.detail)))
            self._answers += 1
            key = f"answer {self._answers}"
            self._errands[key] = asyncio.create_task(self._logged(self._tell(name, decision)))

    async def _tell(self, name: str, decision: StudyDecision) -> None:
        self._write_status(final=True)
        await self._slot.send(name, decision)

    # --- messages -----------------------------------------------------------------------------

    async def _message(self, name: str, message: CoordinatorOut) -> None:
        match message:
            case Welcome() | Heartbeat():
                pass
            case StudyOffer():
                await self._errand(f"offer {message.run_id}", self._consider(name, message))
            case ReleaseNotice():
                await self._errand(f"release {message.run_id}", self._release(name, message))
            case RunEnded():
                self._ended(message)
            case _:
                await self._for_task(name, message)
        self._write_status()

    async def _for_task(
        self,
        name: str,
        message: Any,  # noqa: ANN401 - the protocol's steps, whatever is left of the union
    ) -> None:
        task = self._tasks.get(name)
        match message:
            case _ if task is None:
                detail = f"this hospital has not accepted a study {name}"
                if not isinstance(message, Refused):
                    await self._slot.send(name, Refused(b"", "CONFIG_HASH", detail))
            case ResumeState():
                task.resumed(message)
            case BeginEpoch() if message.task != name:
                await self._slot.send(name, Refused(b"", "BAD_MESSAGE", "an epoch of another task"))
            case _:
                await task.hear(message)

    async def _errand(self, key: str, work: Coroutine[Any, Any, None]) -> None:
        """Start something that may take long; the same thing is not run twice at once.

        Waits while too much is under way: then nothing more is read from the coordinator.
        """
        known = self._errands.get(key)
        if known is not None and not known.done():
            work.close()
            return
        while len(self._errands) >= MOST_ERRANDS:
            await asyncio.wait(self._errands.values(), return_when=asyncio.FIRST_COMPLETED)
            self._errands = {name: job for name, job in self._errands.items() if not job.done()}
        self._errands[key] = asyncio.create_task(self._logged(work), name=key)

    async def _logged(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except FedError as failure:
            self._parts.log.failure(Event.CALL_FAILED, failure)
            if failure.name == "DISK":
                self._on_trouble(failure)
        except Exception as bug:  # noqa: BLE001 - one errand failed; the node goes on
            self._bug(bug)

    def _bug(self, failure: Exception) -> InternalError:
        """Log what should not be possible by its type alone: its words may hold anything."""
        found = InternalError(type(failure).__name__)
        self._parts.log.failure(Event.INTERNAL_ERROR, found)
        return found

    # --- runs ----------------------------------------------------------------------------------

    async def _consider(self, name: str, offer: StudyOffer) -> None:
        self._later.pop(offer.run_id, None)
        try:
            decision, record = await self._offers.consider(offer)
        except IdentityError as off:
            self._later[offer.run_id] = name, offer, off
            if len(self._later) > MOST_ERRANDS:
                del self._later[next(iter(self._later))]
            self._write_status(final=True)
            raise
        if record is not None and decision.accepted and not record.ended:
            self._accepted(record)
        self._write_status(final=True)
        await self._slot.send(name, decision)

    def _accepted(self, run: DecisionRecord) -> None:
        name = self._offers.task_of(run)
        if name not in self._tasks:
            self._add(name, run, NodeState())
        else:
            self._tasks[name].admit(run)

    def _add(self, name: str, run: DecisionRecord, state: NodeState) -> Task:
        task = Task(name, run, state, self._around)
        self._tasks[name] = task
        self._serving[name] = asyncio.create_task(task.serve(), name=f"task {name}")
        return task

    def _own_model(self, run: DecisionRecord, open_work: Callable[[], Awaitable[Work]]) -> None:
        """Begin the hospital's own model of a release, if it has none; rounds go on meanwhile."""
        if self._personal.wanting(run.run_id) and run.run_id not in self._making:
            job = self._personal.make(run.run_id, open_work)
            self._making[run.run_id] = asyncio.create_task(self._logged(job))

    async def _release(self, name: str, notice: ReleaseNotice) -> None:
        """A release of a run this hospital took part in; others are none of its business."""
        for task in tuple(self._tasks.values()):  # an offer may add one meanwhile
            run = task.run_of(notice.run_id)
            if run is not None:
                receipt = await self._releases.accept(notice, run.config_hash, task.open_work)
                await self._slot.send(name, receipt)
                self._own_model(run, task.open_work)

    def _ended(self, message: RunEnded) -> None:
        self._later.pop(message.run_id, None)
        found = [task for task in self._tasks.values() if task.run_of(message.run_id) is not None]
        for task in found:
            task.put(RunOver(message.run_id, message.state, message.reason))
        if not found:
            self._offers.over(message.run_id, message.state)

    # --- what the machine and the screen see ------------------------------------------------------

    def _context(self) -> NodeContext:
        parts = self._parts
        return NodeContext(
            entropy=parts.entropy,
            now_unix=int(parts.clock.unix()),
            signer=parts.signer,
            trust=parts.trust,
            rules=parts.rules,
        )

    def _new_backoff(self) -> Backoff:
        return Backoff(self._parts.jitter, self._parts.clock.monotonic)

    def status(self) -> dict[str, object]:
        """Return what `fedcare node status` shows."""
        failure = self._last_failure
        return {
            "schema": "fedcare.node-status/1",
            "site": site_name(self._parts.own),
            "federation": self._parts.federation,
            "software": self._parts.software,
            "connected": self._slot.connected,
            "attempts": self._backoff.failures,
            "problem": None if failure is None else str(failure),
            "written_at": self._parts.clock.unix(),
            "tasks": [task.status() for _, task in sorted(self._tasks.items())],
            "decisions": self._offers.summary(),
            "undecided": [str(off) for _, _, off in self._later.values()],
            "noised_sums": self._witnessed,
        }

    def _write_status(self, *, final: bool = False) -> None:
        now = self._parts.clock.monotonic()
        if not final and now - self._status_at < STATUS_EVERY_S:
            return
        self._status_at = now
        try:
            self._parts.store.write_status(self.status())
            self._writes = True
        except StateError as failure:
            self._writes = False
            self._parts.log.failure(Event.STATE_FAILED, failure)
