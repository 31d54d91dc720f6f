"""A whole federation in virtual time, which a plan of faults disturbs.

The coordinator and the nodes are those of production, on real files; time, threads and
the road between them are simulated. A process dies at a failpoint: from then on whatever
it still tries to write or send dies too, and the next one finds its disk.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import random
import shutil
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy.exc import OperationalError

from common.errors import ConnectError, FedError
from common.ids import NodeId, RunId, hospital_id, site_name
from common.layouts import round_layout
from common.secagg.coordinator_facts import UploadAccepted
from common.secagg.header import Header, RoundKind
from common.secagg.messages import Propose, RoundStart, UploadEnd
from coordinator.run_state import RoundRecord, RoundStep, decode_fact
from hospital_node.app import build_node, load_setup
from hospital_node.config import NodeConfig
from hospital_node.driver import Node
from hospital_node.learning import HospitalDesk
from hospital_node.link import CoordinatorOut, Link
from hospital_node.work import Work
from researcher.bench_node import WrappingDesk
from researcher.memory_link import MemoryLink
from tests.faults.acts import happen
from tests.faults.copies import Copy, CopyingWork, copied_sum
from tests.faults.plan import COORDINATOR, DEADLINE_S, SITES, Act, Plan, twin_of
from tests.faults.road import Road, Tape
from tests.faults.study import study_text
from tests.federation import NAME, Federation, Killed

_AGE_S: Final = 6 * 3600.0
"""The certificates' age as the story begins: a clock may be behind a little."""

T = TypeVar("T")


@dataclass(slots=True)
class Process:
    """One process of the federation, from its start to its end."""

    name: str
    dead: bool = False

    def context(self) -> contextvars.Context:
        """Return a context whose tasks are this process'."""
        context = contextvars.copy_context()
        context.run(_process.set, self)
        return context


_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class _Clock:
    """A process' clocks: durations from the loop, the day's time with its own error."""

    def __init__(self, epoch: float) -> None:
        self.ahead_s = 0.0
        self._epoch = epoch

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def unix(self) -> float:
        return self._epoch + self.monotonic() + self.ahead_s


def no_room(point: str) -> Exception:
    """Return what a write meets on a full disk: the database says so in its own way."""
    if not point.endswith("before_commit"):
        return OSError(errno.ENOSPC, "No space left on device")
    words = sqlite3.OperationalError("database or disk is full")
    words.sqlite_errorname = "SQLITE_FULL"
    return OperationalError("COMMIT", {}, words)


class World(Federation):
    """A federation whose processes, clocks and roads a plan disturbs."""

    excused: Collection[str] = ()
    """Codes of `oracle._NEVER` that its own kind of fault brings about."""

    def __init__(self, root: Path, plan: Plan, template: Path) -> None:
        shutil.copytree(template, root)
        _set_up_in(plan.setup_s, root / "coordinator" / "coordinator.yaml")
        self.clocks = {name: _Clock(_real_unix() + _AGE_S) for name in (COORDINATOR, *SITES)}
        super().__init__(
            root, size=plan.size, rounds=plan.rounds, deadline=f"{DEADLINE_S:g}s", built=True,
            clock=self.clocks[COORDINATOR], study=study_text(plan.size, plan.dp, plan.rounds),
        )  # fmt: skip
        self.faults = plan
        self.roads = {site: random.Random(f"{plan.seed} {site}") for site in SITES}  # noqa: S311
        """How long messages take, by hospital: whose turn comes first at a time says nothing."""
        self.processes: dict[str, Process] = {}
        self.reached: Counter[tuple[str, str]] = Counter()
        self.silent_until: dict[str, float] = {}
        self.masked: dict[tuple[str, bytes], set[bytes]] = defaultdict(set)
        """By hospital and header: the digests it signed for its masked vector."""
        self.receipts: dict[tuple[str, bytes], None] = {}
        """Uploads whose acknowledgement reached the hospital."""
        self.copies = plan.copies
        self.sets: dict[bytes, set[tuple[NodeId, ...]]] = defaultdict(set)
        """By header: the survivor sets that were proposed to anybody."""
        self.signed: dict[bytes, set[str]] = defaultdict(set)
        """By header: who signed a set for it."""
        self.models: dict[bytes, bytes] = {}
        """By header: the model that it starts from."""
        self.stored: set[tuple[str, bytes]] = set()
        """Uploads that the coordinator's store holds: hospital, digest."""
        self.early: set[str] = set()
        """Hospitals that were told of a stored upload before it was stored."""
        self.begun: set[tuple[str, bytes]] = set()
        """Inputs that a hospital began to make: hospital, header."""
        self.drawn: dict[tuple[str, bytes], Copy] = {}
        """Inputs that came of it, the last one of each."""
        self.tapes: dict[str, Tape] = defaultdict(Tape)
        self.road_of: dict[str, Road] = {}
        self.most_kept = 0
        """Masked vectors that one hospital had on its disk as a coordinator came."""
        self.dials = 0
        self.refused = 0
        """Replayed messages that were refused."""

    # --- failing ----------------------------------------------------------------------------

    def reach(self, point: str) -> bool:
        """See `common.failpoints.Hook`."""
        process = _process.get()
        if process is None:
            return True
        if process.dead:
            raise Killed
        who = process.name
        self.reached[who, point] += 1
        number = self.reached[who, point]
        for fault in self.faults.faults:
            if (fault.who, fault.point) != (who, point):
                continue
            if not fault.at <= number < fault.at + fault.times:
                continue
            match fault.act:
                case Act.CRASH:
                    process.dead = True
                    self.later(self._die(who, fault.seconds))
                    raise Killed
                case Act.ERROR:
                    raise no_room(point)
                case Act.LOSE:  # a stream loses a message with all that follows, never one alone
                    self.later(self._broken(who))
                    return False
                case _:
                    raise AssertionError(fault)
        return True

    async def _broken(self, who: str) -> None:
        for site in SITES if who == COORDINATOR else (who,):
            await self.cut(site)

    async def _die(self, who: str, down_s: float) -> None:
        """The process is gone; its disk is found by the next one, `down_s` later."""
        self.crashes += 1
        if who == COORDINATOR:
            self.processes[who].dead = True
            await self.kill_coordinator()
        else:
            self.processes[who].dead = True
            gone = self._kill(who)
            if gone is not None:
                await gone
        await asyncio.sleep(down_s)
        self._up(who)

    def _up(self, who: str) -> None:
        if who == COORDINATOR:
            if self.service is None:
                self.start_coordinator()
        elif who not in self.nodes:
            self.start(who)

    def _died(self, task: asyncio.Task[None]) -> None:
        """A driver of the coordinator's ended: at a failpoint, or because its store failed."""
        if task.cancelled() or self.service is None or task not in self.service._tasks.values():
            return
        process = self.processes[COORDINATOR]
        if not process.dead and task.exception() is not None:
            process.dead = True  # the service stops, as `watch_over` has it; somebody restarts it
            self.later(self._die(COORDINATOR, 1.0))

    def disturb(self) -> None:
        """Do what the plan has at a time."""
        for fault in self.faults.faults:
            if not fault.point:
                self.later(happen(self, fault))

    def strike(self, who: str, down_s: float) -> None:
        """Kill a process that lives; it is started again `down_s` later."""
        if not self.processes[who].dead:
            self.processes[who].dead = True
            self.later(self._die(who, down_s))

    async def stopped(self, who: str, down_s: float) -> None:
        """Tell a process to stop in order; it is started again `down_s` later."""
        if who == COORDINATOR:
            service, self.service = self.service, None
            if service is not None:
                await service.close()
                self.service = service
                self.processes[who].dead = True
                await self.kill_coordinator()
        elif who in self.nodes:
            await self.stop(who)
        await asyncio.sleep(down_s)
        self._up(who)

    # --- processes --------------------------------------------------------------------------

    def start_coordinator(self) -> None:
        process = self.processes[COORDINATOR] = Process(COORDINATOR)
        for site in SITES:
            spool = self.plan.site_folder(site) / "state" / "spool"
            self.most_kept = max(self.most_kept, len(list(spool.glob("*.y"))))
        try:
            process.context().run(super().start_coordinator)
            self._watch_store()
        except (Killed, FedError):  # while it read its store, or it could not: started again
            process.dead = True
            self.later(self._die(COORDINATOR, 0.5))

    def _watch_store(self) -> None:
        assert self.service is not None
        store = self.service._shop.store
        append = store.append

        def watched(run_id: RunId, first: int, bodies: Sequence[bytes], *more: Any) -> None:  # noqa: ANN401
            append(run_id, first, bodies, *more)
            for fact in map(decode_fact, bodies):
                if isinstance(fact, RoundStep) and isinstance(fact.fact, UploadAccepted):
                    end = fact.fact.end
                    self.stored.add((site_name(fact.fact.sender), end.ydig))

        store.append = watched  # type: ignore[method-assign,assignment]

    def start(self, site: str, kill_at_write: int | None = None) -> None:
        del kill_at_write
        process = self.processes[site] = Process(site)
        folder = self.plan.site_folder(site)
        try:
            node = process.context().run(self._make_node, site, process, folder)
        except (Killed, FedError):
            process.dead = True
            self.later(self._die(site, 0.5))
            return
        self._serve(site, node, process)
        self.serving[site].add_done_callback(lambda job: self._node_ended(site, process, job))

    def _serve(self, name: str, node: Node, process: Process) -> None:
        self.nodes[name] = node
        self.serving[name] = asyncio.get_running_loop().create_task(
            node.run(), name=f"node {name}", context=process.context()
        )

    def start_twin(self, site: str, folder: Path) -> str:
        """Start a second process with the hospital's certificate; return what it is called."""
        name = folder.name
        process = self.processes[name] = Process(name)
        self._serve(name, process.context().run(self._make_node, site, process, folder), process)
        return name

    async def end_twin(self, name: str) -> None:
        """Kill it."""
        self.processes[name].dead = True
        gone = self._kill(name)
        if gone is not None:
            await gone

    def _make_node(self, site: str, process: Process, folder: Path) -> Node:
        clock = self.clocks[site]

        def desk(*parts: Any) -> WrappingDesk:  # noqa: ANN401
            return WrappingDesk(HospitalDesk(*parts), lambda work: self._copying(work, process))

        made = build_node(
            load_setup(NodeConfig.read(folder / "node.yaml"), clock),
            lambda: self._call(site, process),
            log=self.log.bind(site=site),
            clock=clock,
            desk=desk,
        )
        return Node(replace(made._parts, jitter=lambda: self.faults.jitter))

    def _copying(self, work: Work, process: Process) -> CopyingWork:
        def begin(header: Header) -> None:
            self.begun.add((process.name, header.digest()))

        def made(header: Header, copy: Copy) -> None:
            self.drawn[process.name, header.digest()] = copy

        return CopyingWork(work, begin, made)

    def _node_ended(self, site: str, process: Process, job: asyncio.Task[None]) -> None:
        """A node ends by itself when its disk fails as it starts; a supervisor starts it again."""
        if process.dead or job.cancelled() or job.exception() is None:
            return
        process.dead = True
        self.later(self._die(site, 1.0))

    async def _call(self, site: str, process: Process) -> Link:
        self.dials += 1
        await self.travel(site)
        if self.service is None or self.processes[COORDINATOR].dead:
            raise ConnectError("UNREACHABLE", "nobody listens")
        inner = self._there(lambda: MemoryLink(self._serving(), hospital_id(NAME, site)))
        road = Road(self, site, inner, process)
        self.links[process.name] = self.road_of[process.name] = road
        return road

    @property
    def coordinator(self) -> Process:
        """Return its present process."""
        return self.processes[COORDINATOR]

    # --- what is seen -------------------------------------------------------------------------

    def hears(self, message: CoordinatorOut) -> None:
        """A message of the coordinator's is under way."""
        match message:
            case Propose():
                survivors = tuple(node for node, _ in message.digests)
                self.sets[message.hd].add(survivors)
            case RoundStart():
                self.models[message.header.digest()] = message.header.model_sha256
            case _:
                pass

    def acknowledged(self, site: str, end: UploadEnd) -> None:
        """An acknowledgement is under way: what it is for has to be stored by now."""
        if (site, end.ydig) not in self.stored:
            self.early.add(site)

    def expected(self, record: RoundRecord) -> bytes:
        """See `Federation`; with noise, of what the survivors really put in."""
        if not self.study.privacy.dp.on:
            return super().expected(record)
        copies = [self._copy(site_name(node), record.hd) for node in record.survivors]
        return copied_sum(copies, round_layout(self.study, RoundKind.TRAIN).ring_bits)

    def _copy(self, site: str, hd: bytes) -> Copy:
        """Return what a hospital, or the twin that had the epoch's keys, put in."""
        found = [self.drawn[who, hd] for who in (site, twin_of(site)) if (who, hd) in self.drawn]
        assert len(found) == 1, f"{site} put in {len(found)} inputs under one header"
        return found[0]

    def _serving(self) -> Any:  # noqa: ANN401
        assert self.service is not None
        return self.service

    def _there(self, call: Callable[[], T]) -> T:
        return self.processes[COORDINATOR].context().run(call)

    async def travel(self, site: str) -> None:
        """Take as long as a message does; as long as nothing passes, no message arrives."""
        loop = asyncio.get_running_loop()
        wait = self.roads[site].uniform(0.0, self.faults.slowest_s)
        wait = max(wait, self.silent_until.get(site, 0.0) - loop.time())
        if wait > 0:
            await asyncio.sleep(wait)


def _set_up_in(seconds: float, file: Path) -> None:
    text = file.read_text()
    changed = text.replace("setup: 2s", f"setup: {seconds:g}s")
    assert changed != text or seconds == 2.0, "the template has another timing"
    file.write_text(changed)


def _real_unix() -> float:
    import time

    return time.time()
