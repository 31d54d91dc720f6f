"""A whole federation in one process: the real coordinator, real nodes, a road that breaks.

`Federation` builds the folders that an operator and four hospitals would have, starts
`CoordinatorService` and `Node`s on them, and joins them by `researcher.memory_link`. In
between stands `FaultyLink`, which does what a test scripts. A kill is a kill: tasks stop
where they are, nothing is written or sent any more, and the next start sees the disk.

    async with Federation(tmp_path) as fed:
        fed.on_send("va", Commit, fed.kill)          # its process dies with the message
        run = await fed.run()
        fed.check(run)                               # every sum is the survivors', exactly

The oracle: hospitals contribute `common.models.vector`'s pattern, so the exact integer sum
of any set of them is known, and its digest is compared with what the run says was opened.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

import numpy as np

from common import state_folder
from common.clock import Clock, SystemClock
from common.errors import ConnectError
from common.events import EVENTS
from common.identity import load_identity, sign_study
from common.ids import NodeId, RunId, Sha256, hospital_id, site_name
from common.logs import make_log
from common.messages import CHUNK_BYTES, DownloadChunk, UploadAck, UploadChunk, UploadStart
from common.models import vector
from common.quantise import quantise_value
from common.secagg.header import quant_bound
from common.secagg.messages import UploadEnd
from common.study import canonical_json, config_hash, parse_study
from common.views import RunPhase
from common.wire_operations import Submission
from coordinator.app import build_service
from coordinator.config import CoordinatorConfig
from coordinator.driver import RunDriver
from coordinator.run_state import RoundRecord, RunState
from coordinator.service import CoordinatorService
from hospital_node.app import build_node, load_setup
from hospital_node.config import NodeConfig
from hospital_node.driver import Node
from hospital_node.link import CoordinatorOut, Link, NodeOut
from hospital_node.store import NodeStore
from researcher.local import FederationPlan, SitePlan, build
from researcher.memory_link import MemoryLink

NAME: Final = "heart"
SITES: Final = ("cleveland", "hungarian", "switzerland", "va")
OWNER: Final = "researcher"

_STUDY: Final = """\
schema: fedcare.study/v1
id: pattern
purpose: research
dataset: none
owner: {name: A, organisation: OWNER}
features: [{name: x, type: float}]
target: {type: binary, name: y}
model: {kind: vector, size: SIZE}
normalise: none
federation: {weights: equal, rounds: ROUNDS, min_sites: 3, round_deadline: DEADLINE}
privacy: {secure_aggregation: {colluders: 1, suite: SUITE}, dp: TERMS}
"""


def pattern_study(
    *, size: int, rounds: int, deadline: str, suite: str = "classical", dp: str = "{mode: none}"
) -> str:
    """Return a study whose hospitals add a pattern of `size` numbers."""
    text = _STUDY.replace("SIZE", str(size)).replace("ROUNDS", str(rounds))
    text = text.replace("SUITE", suite).replace("DEADLINE", deadline).replace("TERMS", dp)
    return text.replace("OWNER", OWNER)


PATIENCE_S: Final = 40.0
"""A scenario that takes longer than this hangs."""

_TURN_S: Final = 0.002

T = TypeVar("T")
Act = Callable[[str], Awaitable[None]]


class Killed(BaseException):
    """Stands for SIGKILL at the place where it is raised."""


# --- the road -------------------------------------------------------------------------------


class Breakable(Link, Protocol):
    """A link that a test can break."""

    def cut(self) -> None:
        """Break the connection."""


class FaultyLink:
    """A link that does what the federation's script says; see `hospital_node.link.Link`."""

    def __init__(self, fed: Federation, site: str, inner: MemoryLink) -> None:
        self._fed = fed
        self._site = site
        self._inner = inner
        self._cut = asyncio.Event()

    def cut(self) -> None:
        """The connection breaks: every pending and further call fails."""
        self._cut.set()

    def _check(self) -> None:
        if self._cut.is_set():
            raise ConnectError("UNREACHABLE", "the connection broke")

    async def send(self, task: str, message: NodeOut) -> None:
        self._check()
        await self._fed.jostle()
        await self._fed.before(self._site, message)
        self._check()
        for _ in range(self._fed.copies):
            await self._unless_cut(self._inner.send(task, message))
        await self._fed.after(self._site, message)
        self._check()

    async def _unless_cut(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns; a call on a broken connection fails at once."""
        job = asyncio.ensure_future(work)
        broken = asyncio.ensure_future(self._cut.wait())
        try:
            await asyncio.wait({job, broken}, return_when=asyncio.FIRST_COMPLETED)
            if self._cut.is_set():
                raise ConnectError("UNREACHABLE", "the connection broke")
            return job.result()
        finally:
            for each in (job, broken):
                each.cancel()
            await asyncio.gather(job, broken, return_exceptions=True)

    async def messages(self) -> AsyncIterator[tuple[str, CoordinatorOut]]:
        stream = self._inner.messages()
        while True:
            item = await self._unless_cut(_next(stream))
            if item is None:
                return
            await self._fed.jostle()
            await self._fed.before(self._site, item[1])
            self._check()
            for _ in range(self._fed.copies):
                yield item

    async def upload(
        self, start: UploadStart, chunks: AsyncIterator[UploadChunk], end: UploadEnd
    ) -> UploadAck:
        self._check()

        async def counted() -> AsyncIterator[UploadChunk]:
            async for chunk in chunks:
                await self._fed.before(self._site, chunk)
                self._check()
                self._fed.chunks_sent.append((self._site, start.hd, chunk.index))
                yield chunk
            await self._fed.before(self._site, end)
            self._check()

        ack = await self._unless_cut(self._inner.upload(start, counted(), end))
        await self._fed.after(self._site, end)
        self._check()
        return ack

    async def download(self, sha256: Sha256, offset: int) -> AsyncIterator[DownloadChunk]:
        self._check()
        stream = self._inner.download(sha256, offset)
        while (piece := await self._unless_cut(_next(stream))) is not None:
            await self._fed.before(self._site, piece)
            self._check()
            yield piece

    async def close(self) -> None:
        self.cut()
        await self._inner.close()


class Tee(io.StringIO):
    """A stream that is also written to another one."""

    def __init__(self, other: io.StringIO) -> None:
        super().__init__()
        self._other = other

    def write(self, text: str) -> int:
        self._other.write(text)
        return super().write(text)


class Rule:
    """Do something when a site sends or is about to be handed a message of a kind."""

    def __init__(self, site: str, kind: type, act: Act, skip: int, *, late: bool) -> None:
        self.site, self.kind, self.act, self.skip, self.late = site, kind, act, skip, late
        self.used = False


# --- the federation ---------------------------------------------------------------------------


class Federation:
    """See the module."""

    def __init__(
        self,
        root: Path,
        *,
        size: int = 300,
        rounds: int = 2,
        suite: str = "classical",
        deadline: str = "60s",
        gather: str = "200ms",
        setup: str = "2s",
        clinics: Sequence[SitePlan] = (),
        study: str | None = None,
        built: bool = False,
        clock: Clock | None = None,
    ) -> None:
        """`clinics` have tables, and `study` reads them; without, `vector`'s pattern is sent."""
        text = pattern_study(size=size, rounds=rounds, deadline=deadline, suite=suite)
        self.study = parse_study(text if study is None else study)
        self.size = size
        timing = {"enrolment_grace": "2s", "setup": setup, "gather": gather, "release": "2s"}
        sites = clinics or [SitePlan(site) for site in SITES]
        self.plan = FederationPlan(root, NAME, self.study, sites, timing)
        if not built:
            build(self.plan, "127.0.0.1:1")
        self.clock = clock or SystemClock()
        self.words = io.StringIO()
        self.log = make_log(self.words, form="json", level="info", clock=self.clock)
        self.own_words = Tee(self.words)
        """What the coordinator alone wrote."""
        self.own_log = make_log(self.own_words, form="json", level="info", clock=self.clock)
        self.service: CoordinatorService | None = None
        self.nodes: dict[str, Node] = {}
        self.serving: dict[str, asyncio.Task[None]] = {}
        self.links: dict[str, Breakable] = {}
        self.rules: list[Rule] = []
        self.copies = 1
        self.jostle: Callable[[], Awaitable[None]] = _no_delay
        self.chunks_sent: list[tuple[str, bytes, int]] = []
        self.run_id: RunId | None = None
        self.kill_coordinator_at: int | None = None
        self.kill_coordinator_every: int | None = None
        self.kill_before_writing = False
        self.appended = 0
        """Groups of facts that coordinators stored, all of them together."""
        self.writes: dict[str, int] = {}
        """Durable writes of the nodes that were armed."""
        self.crashes = 0
        self._later: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self.start_coordinator()
        for site in SITES:
            self.start(site)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.gather(*self._later, return_exceptions=True)
        for node in self.nodes.values():
            node.stop()
        await asyncio.gather(*self.serving.values(), return_exceptions=True)
        if self.service is not None:
            await self.kill_coordinator()
        self.check_lines()

    # --- scripts --------------------------------------------------------------------------

    def on_send(
        self, site: str, kind: type, act: Act, *, skip: int = 0, late: bool = False
    ) -> None:
        """Do `act` at the site's message of that kind, sent or received, once.

        Before it is handed over, or (`late`, sent ones only) right after.
        """
        self.rules.append(Rule(site, kind, act, skip, late=late))

    async def before(self, site: str, message: object) -> None:
        await self._apply(site, message, late=False)

    async def after(self, site: str, message: object) -> None:
        await self._apply(site, message, late=True)

    async def _apply(self, site: str, message: object, *, late: bool) -> None:
        for rule in self.rules:
            fits = rule.site == site and isinstance(message, rule.kind) and rule.late == late
            if not fits or rule.used:
                continue
            if rule.skip > 0:
                rule.skip -= 1
                continue
            rule.used = True
            await rule.act(site)

    async def cut(self, site: str) -> None:
        """Break the site's connection; it dials again by itself."""
        link = self.links.get(site)
        if link is not None:
            link.cut()

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside whatever is going on now."""
        self._later.append(asyncio.create_task(work))

    def count(self, event: str, **fields: object) -> int:
        """Return how often an event was logged with these fields."""
        lines = [json.loads(line) for line in self.words.getvalue().splitlines()]
        fits = (line for line in lines if line["event"] == event)
        return sum(all(line.get(k) == v for k, v in fields.items()) for line in fits)

    def told(self, *events: str) -> list[dict[str, Any]]:
        """Return the coordinator's lines of these events, or all of them."""
        lines = [json.loads(line) for line in self.own_words.getvalue().splitlines()]
        return [line for line in lines if not events or line["event"] in events]

    def check_lines(self) -> None:
        """Demand that every line of the log has only fields that its event is documented with."""
        for line in map(json.loads, self.words.getvalue().splitlines()):
            extra = line.keys() - {"time", "level", "event", *EVENTS[line["event"]].fields}
            assert not extra, f"{line['event']} has undocumented fields {sorted(extra)}"
            assert line["level"] in EVENTS[line["event"]].level

    def ended(self, site: str) -> bool:
        """Whether a hospital knows that the run is over."""
        return self.count("run.finished", site=site) > 0

    # --- processes ------------------------------------------------------------------------

    def start_coordinator(self) -> None:
        config = CoordinatorConfig.read(self.plan.coordinator_folder / "coordinator.yaml")
        identity = load_identity(self.plan.coordinator_folder, now_unix=self.clock.unix())
        state_folder.make(config.path(config.state_dir))
        service = build_service(config, identity, self.clock, self.own_log)
        store = service._shop.store
        append = store.append

        def counted(*arguments: Any, **named: Any) -> None:  # noqa: ANN401
            self.appended += 1
            every = self.kill_coordinator_every
            planned = self.appended == self.kill_coordinator_at or (
                every is not None and self.appended % every == 0
            )
            if planned and self.kill_before_writing:
                raise Killed
            append(*arguments, **named)
            if planned:
                raise Killed

        store.append = counted  # type: ignore[method-assign]
        service.recover()
        self.service = service
        for task in service._tasks.values():
            task.add_done_callback(self._died)

    def _died(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and isinstance(task.exception(), Killed):
            self.later(self.restart_coordinator())

    async def restart_coordinator(self) -> None:
        """Kill the coordinator and start another on its folder."""
        self.crashes += 1
        await self.kill_coordinator()
        self.start_coordinator()

    async def kill_coordinator(self) -> None:
        service, self.service = self.service, None
        if service is None:
            return
        for link in list(self.links.values()):
            link.cut()
        jobs = [*service._tasks.values()]
        for driver in service._drivers.values():
            driver._act = lambda _: None  # type: ignore[method-assign,assignment]
            jobs += driver._work
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        shop = service._shop
        shop.crunch.shutdown(wait=True, cancel_futures=True)
        shop.disk.shutdown(wait=True, cancel_futures=True)
        shop.store.close()
        for file in shop.spool._open.values():
            file.close()

    async def _dial(self, site: str) -> Link:
        if self.service is None:
            raise ConnectError("UNREACHABLE", "nobody listens")
        link = FaultyLink(self, site, MemoryLink(self.service, hospital_id(NAME, site)))
        self.links[site] = link
        return link

    def start(self, site: str, kill_at_write: int | None = None) -> None:
        """Start a hospital's node on its folder."""
        setup = load_setup(NodeConfig.read(self.plan.site_folder(site) / "node.yaml"), self.clock)
        made = build_node(setup, lambda: self._dial(site), log=self.log.bind(site=site))
        if kill_at_write is not None:
            self._arm(site, made._parts.store, kill_at_write)
        node = Node(replace(made._parts, jitter=lambda: 0.05))
        self.nodes[site] = node
        self.serving[site] = asyncio.create_task(node.run(), name=f"node {site}")

    def _arm(self, site: str, store: NodeStore, at: int) -> None:
        """Have the node die right after its write number `at`."""
        self.writes[site] = 0

        def counted(write: Callable[..., None]) -> Callable[..., None]:
            def wrapped(*arguments: Any) -> None:  # noqa: ANN401
                write(*arguments)
                self.writes[site] += 1
                if self.writes[site] == at:
                    self.later(self.crash(site))
                    raise Killed

            return wrapped

        store.save_session = counted(store.save_session)  # type: ignore[method-assign]
        store.save_decision = counted(store.save_decision)  # type: ignore[method-assign]

    async def stop(self, site: str) -> None:
        """Stop a node in order."""
        self.nodes.pop(site).stop()
        await asyncio.gather(self.serving.pop(site), return_exceptions=True)

    async def power_cut(self) -> None:
        """Kill every process, and start them all again."""
        gone = [self._kill(site) for site in SITES]
        await self.kill_coordinator()
        await asyncio.gather(*(job for job in gone if job is not None))
        self.start_coordinator()
        for site in SITES:
            self.start(site)

    async def kill(self, site: str) -> None:
        """End a node as `kill -9` would: nothing of it runs any more, its disk stays."""
        self._kill(site)

    async def crash(self, site: str) -> None:
        """Kill a node and start it again."""
        self.crashes += 1
        gone = self._kill(site)
        if gone is not None:
            self.later(self._back(site, gone))

    def _kill(self, site: str) -> asyncio.Task[None] | None:
        """Cut the node off at once; the answer is done when nothing of it is left."""
        node = self.nodes.pop(site, None)
        if node is None:
            return None
        link = self.links.get(site)
        if link is not None:
            link.cut()
        # No last words: neither the status file nor anything else is written.
        node._write_status = lambda **_: None  # type: ignore[method-assign]
        job = self.serving.pop(site)
        job.cancel()
        gone = asyncio.create_task(_reap(job, node._parts.store))
        self._later.append(gone)
        return gone

    async def _back(self, site: str, gone: asyncio.Task[None]) -> None:
        await gone
        self.start(site)

    # --- running ---------------------------------------------------------------------------

    async def submit(self, request: str = "request-1") -> None:
        owner = load_identity(self.plan.researcher_folder, now_unix=self.clock.unix())
        signature = sign_study(owner, config_hash(self.study))
        content = canonical_json(self.study)
        submission = Submission(content, request, signature, owner.chain)
        assert self.service is not None
        run = await self.service.submit(submission, f"spiffe://{NAME}/researcher/{OWNER}")
        self.run_id = run.run_id
        for task in self.service._tasks.values():
            task.add_done_callback(self._died)

    @property
    def driver(self) -> RunDriver | None:
        if self.service is None or self.run_id is None:
            return None
        return self.service._driver(self.run_id)

    @property
    def state(self) -> RunState:
        assert self.driver is not None
        return self.driver.state

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; fail with the log's last words if it never holds."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():
                    self._check_alive()
                    await asyncio.sleep(_TURN_S)
        except TimeoutError:
            raise AssertionError(f"it never came about:\n{self.words.getvalue()[-6000:]}") from None

    def _check_alive(self) -> None:
        for site, job in list(self.serving.items()):
            if job.done() and site in self.nodes and not job.cancelled():
                job.result()
        if self.service is not None:
            for task in self.service._tasks.values():
                failed = task.done() and not task.cancelled()
                if failed and not isinstance(task.exception(), Killed):
                    task.result()

    async def run(self) -> RunState:
        """Submit the study and wait until its run is over."""
        await self.submit()
        return await self.finish()

    async def finish(self) -> RunState:
        await self.until(lambda: self.driver is not None and self.state.phase.final)
        return self.state

    # --- the oracle ------------------------------------------------------------------------

    def check(self, run: RunState) -> None:
        """Demand a finished run whose every opened sum is the survivors', to the last word."""
        assert run.phase is RunPhase.FINISHED, run.reason
        opened = [record for record in run.history if record.opened]
        assert [record.position for record in opened] == list(range(1, self.rounds + 1))
        for record in opened:
            assert record.sum_sha256 == self.expected(record), f"round {record.position}"

    @property
    def rounds(self) -> int:
        return int(self.study.federation.rounds)

    def expected(self, record: RoundRecord) -> bytes:
        """Return SHA-256 of the exact integer sum of a round's survivors."""
        bound = quant_bound(len(record.survivors) + len(record.dropped), 32)
        total = np.zeros(self.size + 1, np.int64)
        for node in record.survivors:
            total[:-1] += _quantised(site_name(node), record.r, self.size, bound)
        total[-1] = bound * len(record.survivors)
        return hashlib.sha256((total % 2**32).astype("<u4").tobytes()).digest()


@lru_cache(maxsize=128)
def _quantised(site: str, r: int, size: int, bound: int) -> np.ndarray:
    """Return what a hospital puts in; a campaign asks for the same ones again and again."""
    kinds, places = np.unique(vector.whole(site, r, size), return_inverse=True)
    return np.array([quantise_value(float(x), 1.0, bound) for x in kinds], np.int64)[places]


def names(nodes: Iterable[NodeId]) -> set[str]:
    """Return the sites' short names."""
    return {site_name(node) for node in nodes}


async def _next(stream: AsyncIterator[T]) -> T | None:
    return await anext(stream, None)


async def _no_delay() -> None:
    return


async def _reap(job: asyncio.Task[None], store: NodeStore) -> None:
    await asyncio.gather(job, return_exceptions=True)
    store.close()


__all__ = ["CHUNK_BYTES", "SITES", "FaultyLink", "Federation", "Killed", "names"]
