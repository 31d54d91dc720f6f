"""A whole federation in virtual time, to which a plan of faults happens; and what must hold.

    outcome = simulate(folder, draw(seed))
    outcome.problem            # None, or what was found

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
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, TypeVar

from common import failpoints
from common.clock import Clock
from common.errors import ConnectError, FedError
from common.ids import hospital_id, site_name
from common.messages import DownloadChunk, UploadAck, UploadChunk, UploadStart
from common.secagg.messages import UploadEnd
from coordinator.run_facts import replay
from coordinator.run_state import RunState, decode_fact
from hospital_node import worker
from hospital_node.app import build_node, load_setup
from hospital_node.config import NodeConfig
from hospital_node.driver import Node
from hospital_node.link import CoordinatorOut, Link, NodeOut
from researcher.memory_link import MemoryLink
from tests.faults import virtual
from tests.faults.plan import COORDINATOR, DEADLINE_S, SITES, Act, Fault, Plan
from tests.federation import NAME, Federation, Killed, names

ROUNDS: Final = 3
MOST_S: Final = 1800.0
"""Virtual seconds after which a run counts as stuck; the longest silence is far shorter."""
_POLL_S: Final = 0.25
_INLINE: Final = SimpleNamespace(Thread=virtual.InlineThread, Event=threading.Event)

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


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a simulated run ended; `problem` is None if everything held."""

    problem: str | None
    virtual_s: float
    deaths: int
    voided: int
    words: str


class _Clock:
    """A process' clocks: durations from the loop, the day's time with its own error."""

    def __init__(self, epoch: float) -> None:
        self.ahead_s = 0.0
        self._epoch = epoch

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def unix(self) -> float:
        return self._epoch + self.monotonic() + self.ahead_s


class World(Federation):
    """A federation whose processes, clocks and roads a plan disturbs."""

    def __init__(self, root: Path, plan: Plan, template: Path) -> None:
        shutil.copytree(template, root)
        self.clocks = {name: _Clock(_real_unix()) for name in (COORDINATOR, *SITES)}
        super().__init__(
            root, size=plan.size, rounds=ROUNDS, deadline=f"{DEADLINE_S:g}s", gather="2s",
            setup="10s", built=True, clock=self.clocks[COORDINATOR],
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
                    raise OSError(errno.ENOSPC, "No space left on device")
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

    async def disturb(self) -> None:
        """Do what the plan has at a time."""
        timed = [fault for fault in self.faults.faults if not fault.point]
        for fault in timed:
            self.later(self._timed(fault))

    async def _timed(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at)
        match fault.act:
            case Act.CUT:
                await self.cut(fault.who)
            case Act.SILENCE:
                now = asyncio.get_running_loop().time()
                self.silent_until[fault.who] = now + fault.seconds
            case Act.JUMP:
                self.clocks[fault.who].ahead_s += fault.seconds
            case Act.STOP:
                await self._stopped(fault.who, fault.seconds)
            case Act.POWER:
                for who in (COORDINATOR, *SITES):
                    if not self.processes[who].dead:
                        self.processes[who].dead = True
                        self.later(self._die(who, fault.seconds))
            case _:
                raise AssertionError(fault)

    async def _stopped(self, who: str, down_s: float) -> None:
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
        try:
            process.context().run(super().start_coordinator)
        except (Killed, FedError):  # while it read its store, or it could not: started again
            process.dead = True
            self.later(self._die(COORDINATOR, 0.5))

    def start(self, site: str, kill_at_write: int | None = None) -> None:
        del kill_at_write
        process = self.processes[site] = Process(site)
        try:
            node = process.context().run(self._make_node, site, self.clocks[site])
        except (Killed, FedError):
            process.dead = True
            self.later(self._die(site, 0.5))
            return
        self.nodes[site] = node
        self.serving[site] = asyncio.get_running_loop().create_task(
            node.run(), name=f"node {site}", context=process.context()
        )
        self.serving[site].add_done_callback(lambda job: self._node_ended(site, process, job))

    def _make_node(self, site: str, clock: Clock) -> Node:
        setup = load_setup(NodeConfig.read(self.plan.site_folder(site) / "node.yaml"), self.clock)
        made = build_node(
            setup, lambda: self._dial(site), log=self.log.bind(site=site), clock=clock
        )
        return Node(replace(made._parts, jitter=lambda: 0.05))

    def _node_ended(self, site: str, process: Process, job: asyncio.Task[None]) -> None:
        """A node ends by itself when its disk fails as it starts; a supervisor starts it again."""
        if process.dead or job.cancelled() or job.exception() is None:
            return
        process.dead = True
        self.later(self._die(site, 1.0))

    async def _dial(self, site: str) -> Link:
        await self._travel(site)
        if self.service is None or self.processes[COORDINATOR].dead:
            raise ConnectError("UNREACHABLE", "nobody listens")
        inner = self._there(lambda: MemoryLink(self._serving(), hospital_id(NAME, site)))
        road = _Road(self, site, inner)
        self.links[site] = road
        return road

    def _serving(self) -> Any:  # noqa: ANN401
        assert self.service is not None
        return self.service

    def _there(self, call: Callable[[], T]) -> T:
        return self.processes[COORDINATOR].context().run(call)

    async def _travel(self, site: str) -> None:
        """Take as long as a message does; as long as nothing passes, no message arrives."""
        loop = asyncio.get_running_loop()
        wait = self.roads[site].uniform(0.0, self.faults.slowest_s)
        wait = max(wait, self.silent_until.get(site, 0.0) - loop.time())
        if wait > 0:
            await asyncio.sleep(wait)


class _Road:
    """A link whose far end runs as the coordinator; see `hospital_node.link.Link`."""

    def __init__(self, world: World, site: str, inner: MemoryLink) -> None:
        self._world = world
        self._site = site
        self._inner = inner
        self._broken = asyncio.Event()
        self._near = world.processes[site]
        self._far = world.processes[COORDINATOR]

    def cut(self) -> None:
        """The connection breaks: every pending and further call fails."""
        self._broken.set()

    def _check(self) -> None:
        if self._broken.is_set() or self._far.dead:
            raise ConnectError("UNREACHABLE", "the connection broke")

    async def _run(self, work: Coroutine[Any, Any, T], process: Process) -> T:
        """Return what `work` returns where `process` does it; a broken connection ends it."""
        loop = asyncio.get_running_loop()
        job = loop.create_task(work, context=process.context())
        broken = loop.create_task(self._broken.wait())
        try:
            await asyncio.wait({job, broken}, return_when=asyncio.FIRST_COMPLETED)
            if self._broken.is_set() or (job.done() and self._was_killed(job)):
                raise ConnectError("UNREACHABLE", "the connection broke")
            return job.result()
        finally:
            for each in (job, broken):
                each.cancel()
            await asyncio.gather(job, broken, return_exceptions=True)

    @staticmethod
    def _was_killed(job: asyncio.Task[Any]) -> bool:
        return not job.cancelled() and isinstance(job.exception(), Killed)

    async def send(self, task: str, message: NodeOut) -> None:
        """See `Link`."""
        self._check()
        await self._world._travel(self._site)
        self._check()
        for _ in range(self._world.copies):
            await self._run(self._inner.send(task, message), self._far)

    async def messages(self) -> AsyncIterator[tuple[str, CoordinatorOut]]:
        """See `Link`."""
        stream = self._inner.messages()
        while True:
            item = await self._run(_next(stream), self._far)
            if item is None:
                return
            await self._world._travel(self._site)
            self._check()
            for _ in range(self._world.copies):
                yield item

    async def upload(
        self, start: UploadStart, chunks: AsyncIterator[UploadChunk], end: UploadEnd
    ) -> UploadAck:
        """See `Link`."""
        self._check()
        world, site = self._world, self._site
        world.masked[site, end.hd].add(end.ydig)

        async def arriving() -> AsyncIterator[UploadChunk]:
            while (chunk := await self._run(_next(chunks), self._near)) is not None:
                await world._travel(site)
                self._check()
                yield chunk

        ack = await self._run(self._inner.upload(start, arriving(), end), self._far)
        await world._travel(site)
        self._check()
        world.receipts[site, end.hd] = None
        return ack

    async def download(self, sha256: Any, offset: int) -> AsyncIterator[DownloadChunk]:  # noqa: ANN401
        """See `Link`."""
        self._check()
        stream = self._inner.download(sha256, offset)
        while (piece := await self._run(_next(stream), self._far)) is not None:
            await self._world._travel(self._site)
            self._check()
            yield piece

    async def close(self) -> None:
        """See `Link`."""
        self.cut()
        if not self._far.dead:
            await self._inner.close()


async def _next(stream: AsyncIterator[T]) -> T | None:
    return await anext(stream, None)


def _real_unix() -> float:
    import time

    return time.time()


# --- one run ------------------------------------------------------------------------------------


def simulate(root: Path, plan: Plan, template: Path) -> Outcome:
    """Run the plan in `root`, which is not there yet; `template` holds the built federation."""
    world: list[World] = []

    async def go() -> tuple[str | None, float]:
        one = World(root, plan, template)
        world.append(one)
        failpoints.install(one.reach)
        setattr(worker, "threading", _INLINE)  # noqa: B010
        try:
            problem = await _story(one)
            return problem, asyncio.get_running_loop().time()
        finally:
            await _end(one)

    try:
        problem, took = virtual.run(go(), MOST_S)
    except virtual.StuckError as stuck:
        problem, took = str(stuck), MOST_S
    finally:
        failpoints.install(None)
        setattr(worker, "threading", threading)  # noqa: B010
    one = world[0]
    voided = one.count("round.voided")
    return Outcome(problem, took, one.crashes, voided, one.words.getvalue())


async def _story(world: World) -> str | None:
    world.start_coordinator()
    for site in SITES:
        world.start(site)
    await _submitted(world)
    await world.disturb()
    await _until(lambda: world.driver is not None and world.state.phase.final)
    await _until(lambda: all(_has_release(world, site) for site in members(world.state)))
    return problem_of(world)


async def _submitted(world: World) -> None:
    """Submit as a researcher does: with the same request, until it is taken."""
    while world.run_id is None:
        if world.service is not None and not world.processes[COORDINATOR].dead:
            job = asyncio.get_running_loop().create_task(
                world.submit(), context=world.processes[COORDINATOR].context()
            )
            await asyncio.gather(job, return_exceptions=True)
            if world.run_id is not None:
                return
        await asyncio.sleep(_POLL_S)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - virtual time costs nothing
        await asyncio.sleep(_POLL_S)


def members(run: RunState) -> list[str]:
    """Return who took part: a hospital that was away until the end is not among them."""
    found = {node for record in run.history for node in (*record.survivors, *record.dropped)}
    return sorted(site_name(node) for node in found)


def _has_release(world: World, site: str) -> bool:
    folder = world.plan.site_folder(site) / "state" / "releases" / str(world.run_id)
    return (folder / "model.safetensors").is_file()


async def _end(world: World) -> None:
    for process in world.processes.values():
        process.dead = True
    for site in SITES:
        world._kill(site)
    if world.service is not None:
        await world.kill_coordinator()
    for job in world._later:
        job.cancel()
    await asyncio.gather(*world._later, return_exceptions=True)


# --- what must hold -----------------------------------------------------------------------------


def problem_of(world: World) -> str | None:
    """Return what is wrong after a run that ended, in one line; None if all holds."""
    run = world.state
    try:
        world.check(run)
        world.check_lines()
        for check in (_receipts, _one_vector, _one_model, _stored, _no_bug):
            check(world, run)
    except AssertionError as failure:
        return f"{type(failure).__name__}: {failure}" if str(failure) else repr(failure)
    return None


def _receipts(world: World, run: RunState) -> None:
    """Who holds a receipt for a round that was opened is in its sum."""
    for record in run.history:
        held = {site for site, hd in world.receipts if hd == record.hd}
        assert not record.opened or held <= names(record.survivors), (
            f"round {record.r}: {sorted(held - names(record.survivors))} hold receipts, "
            "and are not in the sum"
        )


def _one_vector(world: World, run: RunState) -> None:
    """A hospital never promised two masked vectors for one header: masks would cancel."""
    del run
    twice = {site for (site, _), digests in world.masked.items() if len(digests) > 1}
    assert not twice, f"{sorted(twice)} signed two vectors for one header"


def _one_model(world: World, run: RunState) -> None:
    """Every hospital ends with the very model that the run names."""
    assert run.model is not None
    found = set()
    for site in members(run):
        folder = world.plan.site_folder(site) / "state" / "releases" / run.run_id
        found.add((folder / "model.safetensors").read_bytes())
    assert len(found) == 1, "hospitals hold different models"


def _stored(world: World, run: RunState) -> None:
    """What the store holds gives the very state that the coordinator has in memory."""
    service = world.service
    assert service is not None
    store = service._shop.store
    stored = next(one for one in store.runs() if one.run_id == run.run_id)
    facts = [decode_fact(fact.body) for fact in store.facts(run.run_id) if fact.body]
    state = replay(service._first_state(stored, run.study), facts)
    assert state.history == run.history, "the store tells another history"
    assert state.model == run.model, "the store names another model"


def _no_bug(world: World, run: RunState) -> None:
    del run
    assert world.count("internal.error") == 0, "an error that should not be possible was logged"
