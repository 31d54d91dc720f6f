"""Real nodes, a small coordinator in memory, and a connection that breaks on demand.

`World` holds a coordinator made of the protocol's own machines (facts are kept in a
list, so it never crashes here) and any number of real `Node`s, each with a real state
directory. Every message passes through `common.wire` both ways. A test breaks things
through `MemoryLink` (`cut_upload_after`, `cut_download_after`, `duplicate`, `sever`) or
by killing a node: `kill` drops the object without any of its clean-up, as `kill -9` does
to a process, and `start` makes a new one on the same directory.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common import layouts
from common.clock import ManualClock
from common.config import Loaded
from common.entropy import CountingEntropy
from common.errors import ConnectError, FedError, Refusal
from common.ids import (
    ConfigHash,
    Epoch,
    HeaderDigest,
    NodeId,
    RoundNo,
    RunId,
    Sha256,
    hospital_id,
    site_name,
)
from common.logs import EventLog, make_log
from common.messages import (
    CHUNK_BYTES,
    BeginEpoch,
    DownloadChunk,
    Heartbeat,
    Hello,
    ReleaseReceipt,
    RunEnded,
    StudyDecision,
    StudyOffer,
    UploadAck,
    UploadChunk,
    UploadStart,
    Welcome,
)
from common.model_file import model_header
from common.models import vector
from common.policy import Policy, parse_policy
from common.quantise import quantise_value
from common.secagg import coordinator as co
from common.secagg import coordinator_session as cs
from common.secagg.header import RoundKind, quant_bound
from common.secagg.keys import Suite
from common.secagg.messages import (
    FromNode,
    Ready,
    Refused,
    Resume,
    ResumeState,
    RoundResult,
    RoundStart,
    UploadEnd,
)
from common.secagg.ring import words_of
from common.secagg.rules import NodeRules
from common.secagg.session import EpochTerms
from common.study import Study, canonical_json, config_hash, parse_study
from common.vectors import model_digest
from common.wire import (
    CoordinatorStep,
    NodeStep,
    decode_coordinator,
    decode_node,
    decode_piece,
    decode_upload,
    encode_coordinator,
    encode_node,
    encode_piece,
    encode_upload,
)
from hospital_node.approval.gate import gate_of
from hospital_node.approval.records import ApprovalFolder
from hospital_node.driver import Node, NodeParts
from hospital_node.learning import HospitalDesk, StudyWork
from hospital_node.private.books import Books
from hospital_node.private.limits import Limits
from hospital_node.releases import ReleaseTrust
from hospital_node.store import NodeStore
from tests.simulation.secagg_harness import SimSigner, SimTrust

FEDERATION: Final = "sim"
TASK: Final = "pattern"
RUN: Final = RunId("run-1")
SITES: Final = ("h1", "h2", "h3", "h4")

STUDY: Final = """\
schema: fedcare.study/v1
id: pattern
purpose: research
dataset: none
owner: {name: A, organisation: uni-x}
features: [{name: x, type: float}]
target: {type: binary, name: y}
model: {kind: vector, size: SIZE}
normalise: none
federation: {weights: equal, rounds: 5, min_sites: 3}
privacy: {secure_aggregation: {colluders: 1, suite: SUITE}}
"""

POLICY: Final = """\
schema: fedcare.policy/v1
site: SITE
federation: {id: sim, ca_sha256: "PIN", members: [h1, h2, h3, h4]}
coordinator: {address: "localhost:8443"}
allow:
  {purposes: [research], owners: [uni-x], datasets: [none], model_kinds: [vector], weights: [equal]}
require: {min_cohort: 3, min_sites: 3, colluders: 1}
"""


def node_id(site: str) -> NodeId:
    return hospital_id(FEDERATION, site)


class Killed(BaseException):
    """Stands for SIGKILL at the place where it is raised."""


class _Desk(HospitalDesk):
    """A desk whose studies train differently in each life of the process."""

    def __init__(self, policy: Loaded[Policy], log: EventLog, books: Books, life: int) -> None:
        super().__init__(policy, None, log, books)
        self._life = life

    def _work(self, study: Study, *, accepted: bool) -> StudyWork:
        work = super()._work(study, accepted=accepted)
        work._site += f"-{self._life}" if self._life else ""
        return work


class SimReleaseTrust(ReleaseTrust):
    """There are no real certificates here: the owner's "signature" is one word."""

    def verify_owner(self, offer: StudyOffer, now_unix: int) -> None:
        if offer.signature != b"signed":
            raise Refusal("OWNER_SIGNATURE", "not signed")


# --- the road ----------------------------------------------------------------------------


class MemoryLink:
    """See `hospital_node.link.Link`; one per connection."""

    def __init__(self, world: World, node: NodeId) -> None:
        self.world = world
        self.node = node
        self.inbox: asyncio.Queue[tuple[str, CoordinatorStep] | None] = asyncio.Queue()
        self.open = True

    def _check(self) -> None:
        if not self.open:
            raise ConnectError("UNREACHABLE", "severed")

    async def send(self, task: str, message: NodeStep) -> None:
        self._check()
        task, message = decode_node(encode_node(task, message))
        self.world.sent.append((self.node, message))
        if self.world.lose(self.node, message):
            return
        self.world.coordinator.receive(self.node, task, message)

    async def messages(self) -> AsyncIterator[tuple[str, CoordinatorStep]]:
        while (item := await self.inbox.get()) is not None:
            yield item
        raise ConnectError("UNREACHABLE", "severed")

    def deliver(self, task: str, message: CoordinatorStep) -> None:
        item = decode_coordinator(encode_coordinator(task, message))
        for _ in range(self.world.copies):
            self.inbox.put_nowait(item)

    async def upload(
        self, start: UploadStart, chunks: AsyncIterator[UploadChunk], end: UploadEnd
    ) -> UploadAck:
        self._check()
        world, sent = self.world, 0
        world.uploads.append((self.node, start.first_chunk))
        async for chunk in chunks:
            part = decode_upload(encode_upload(chunk))
            assert isinstance(part, UploadChunk)
            if world.cut_upload_after.get(self.node, -1) == sent:
                del world.cut_upload_after[self.node]
                raise ConnectError("UNREACHABLE", "cut")
            world.coordinator.chunk(self.node, start.hd, part)
            sent += 1
            await asyncio.sleep(0)
        return world.coordinator.uploaded(self.node, end)

    async def download(self, sha256: Sha256, offset: int) -> AsyncIterator[DownloadChunk]:
        self._check()
        world = self.world
        data = world.coordinator.objects[sha256]
        world.downloads.append((self.node, offset))
        sent = 0
        while offset < len(data):
            if world.cut_download_after.get(self.node, -1) == sent:
                del world.cut_download_after[self.node]
                raise ConnectError("UNREACHABLE", "cut")
            piece = DownloadChunk(offset, len(data), data[offset : offset + CHUNK_BYTES])
            yield decode_piece(encode_piece(piece))
            offset += len(piece.data)
            sent += 1

    async def close(self) -> None:
        self.sever()

    def sever(self) -> None:
        if self.open:
            self.open = False
            self.inbox.put_nowait(None)
            self.world.coordinator.lost(self)


# --- a coordinator in memory -----------------------------------------------------------------


class MemoryCoordinator:
    """Drives the protocol's machines for one run; keeps everything in memory."""

    def __init__(self, world: World, rounds: int) -> None:
        self.world = world
        self.rounds = rounds
        self.links: dict[NodeId, MemoryLink] = {}
        self.accepted: set[NodeId] = set()
        self.decisions: list[StudyDecision] = []
        self.refused: list[tuple[NodeId, Refused]] = []
        self.receipts: list[ReleaseReceipt] = []
        self.session: cs.SessionState | None = None
        self.round: co.RoundState | None = None
        self.view: co.SessionView | None = None
        self.spools: dict[NodeId, bytearray] = {}
        self.objects: dict[Sha256, bytes] = {}
        self.results: list[RoundResult] = []
        self.early: dict[NodeId, Ready] = {}
        self.opened: list[tuple[int, tuple[NodeId, ...], np.ndarray[Any, Any]]] = []
        self.done = asyncio.Event()
        self.model, self.stream = self._put_model()
        self.ended = False

    def _put_model(self) -> tuple[Sha256, Sha256]:
        schema = layouts.model_schema(self.world.study)
        data = np.zeros(schema.parameters, "<f4").tobytes()
        file = model_header(schema) + data
        address = Sha256(hashlib.sha256(file).digest())
        self.objects[address] = file
        return model_digest(schema, data), address

    @property
    def context(self) -> cs.SessionContext:
        return cs.SessionContext(self.world.trust, int(self.world.clock.unix()))

    def send(self, node: NodeId, task: str, message: CoordinatorStep) -> None:
        link = self.links.get(node)
        if link is not None:
            link.deliver(task, message)

    def lost(self, link: MemoryLink) -> None:
        if self.links.get(link.node) is link:
            del self.links[link.node]

    def receive(self, node: NodeId, task: str, message: NodeStep) -> None:
        match message:
            case Hello():
                self._hello(node)
            case Heartbeat():
                self.send(node, "", Heartbeat(message.counter))
            case StudyDecision():
                self.decisions.append(message)
                if message.accepted:
                    self.accepted.add(node)
                if len(self.accepted) == len(self.world.sites) and self.session is None:
                    self._open_session()
            case Resume():
                stored = len(self.spools.get(node, b"")) // CHUNK_BYTES
                round_ = self.round
                done = round_ is not None and any(u.sender == node for u in round_.uploads)
                self.send(node, task, ResumeState(message.hd, stored, done))
            case ReleaseReceipt():
                self.receipts.append(message)
            case _:
                self._step(node, message)

    def _hello(self, node: NodeId) -> None:
        world = self.world
        self.links[node] = world.links[node]
        self.send(node, "", Welcome(FEDERATION, 10_000, unix=world.told()))
        self.send(node, TASK, world.offer)
        if self.ended:
            self.send(node, TASK, RunEnded(RUN, "finished", ""))
            return
        if self.session is None:
            return
        if self.session.session_id is None:
            self._begin(node)
        r = RoundNo(1) if self.round is None else self.round.r
        self._setup(cs.MemberBack(node, r))
        if self.results:
            self.send(node, TASK, self.results[-1])
        if self.round is not None:
            self._round(co.MemberBack(node))

    def _open_session(self) -> None:
        world = self.world
        terms = EpochTerms(FEDERATION, TASK, Epoch(1), world.config_hash, world.suite)
        invited = tuple(sorted((node_id(site) for site in world.sites), key=str.encode))
        self.session, _ = cs.handle(None, cs.OpenSession(terms, invited, 30.0), self.context)
        for node in invited:
            self._begin(node)

    def _begin(self, node: NodeId) -> None:
        now = int(self.world.clock.unix())
        self.send(node, TASK, BeginEpoch(RUN, TASK, Epoch(1), now, now + 86_400))

    def _step(self, node: NodeId, message: FromNode) -> None:
        if isinstance(message, Refused):
            self.refused.append((node, message))
        if isinstance(message, Ready) and self.round is None:
            self.early[node] = message  # the others have not all confirmed yet
            return
        try:
            if self.round is not None:
                self._round(co.From(node, message))
            else:
                self._setup(cs.From(node, message))
        except Refusal as refusal:
            if refusal.name != "OUT_OF_TURN":
                raise
            self._setup(cs.From(node, message))

    def _setup(self, event: cs.SessionEvent) -> None:
        assert self.session is not None
        try:
            self.session, commands = cs.handle(self.session, event, self.context)
        except Refusal as refusal:
            if refusal.name != "OUT_OF_TURN":
                raise
            return
        for command in commands:
            match command:
                case cs.SendTo():
                    self.send(command.to, TASK, command.message)
                case cs.SessionReady():
                    self.view = co.SessionView.of(self.session)
                    self.round = co.begin_round(self.view, RoundNo(1))
                    for node, ready in self.early.items():
                        self._round(co.From(node, ready))
                case _:
                    pass

    def _round(self, event: co.RoundEvent) -> None:
        assert self.round is not None
        self.round, commands = co.handle(self.round, event)
        for command in commands:
            match command:
                case co.SendTo(to=to, message=RoundStart() as start):
                    self.send(to, TASK, RoundStart(start.header, self.stream))
                case co.SendTo(to=to, message=RoundResult() as result):
                    self.send(to, TASK, result)
                    if not self.results or self.results[-1].hd != result.hd:
                        self.results.append(result)
                case co.SendTo():
                    self.send(command.to, TASK, command.message)
                case co.Open():
                    self._open(command)
                case co.Close():
                    self._close()
                case _:
                    pass
        round_ = self.round
        if round_.phase is co.RoundPhase.COLLECTING and len(round_.ready) == len(self.world.sites):
            self._start()

    def _start(self) -> None:
        study = self.world.study
        layout = layouts.round_layout(study, RoundKind.TRAIN)
        self.spools = {}
        terms = co.RoundTerms(
            kind=RoundKind.TRAIN,
            model_sha256=self.model,
            layout_sha256=layout.schema.layout_sha256,
            d=layout.schema.words,
            c=1,
            ranges=layouts.header_ranges(layout, 1, ()),
            w_max=study.federation.max_weight,
            deadline_ms=60_000,
            s_min=study.federation.min_sites,
        )
        members = tuple(sorted((node_id(site) for site in self.world.sites), key=str.encode))
        self._round(co.OpenRound(terms, members))

    def chunk(self, node: NodeId, hd: HeaderDigest, chunk: UploadChunk) -> None:
        if self.round is None or self.round.hd != hd:
            raise Refusal("UPLOAD_LATE", "no such round")
        spool = self.spools.setdefault(node, bytearray())
        assert len(spool) == chunk.index * CHUNK_BYTES
        spool += chunk.data

    def uploaded(self, node: NodeId, end: UploadEnd) -> UploadAck:
        spool = bytes(self.spools[node])
        ydig = Sha256(hashlib.sha256(spool).digest())
        self.world.upload_digests.append((node, end.hd, ydig))
        self._round(co.UploadReceived(node, end, ydig, len(spool)))
        return UploadAck(end.hd, ydig)

    def _open(self, opening: co.Open) -> None:
        total = np.zeros(opening.header.d, np.uint32)
        for node in opening.survivors:
            total += words_of(bytes(self.spools[node]), 32)
        opening.plan.stream().apply(total, 0)
        found = total.view(np.int32).astype(np.int64)
        self.opened.append((opening.header.r, opening.survivors, found))
        digest = Sha256(hashlib.sha256(total.tobytes()).digest())
        self._round(co.SumOpened(digest, b""))

    def _close(self) -> None:
        assert self.round is not None
        assert self.view is not None
        self._model_moves()
        if len(self.opened) >= self.rounds:
            self.ended = True
            for node in tuple(self.links):
                self.send(node, TASK, RunEnded(RUN, "finished", ""))
            self.done.set()
            return
        self.round = co.begin_round(self.view, RoundNo(self.round.r + 1), self.round.edges)

    def _model_moves(self) -> None:
        """The next round has another model, as a real one would."""
        schema = layouts.model_schema(self.world.study)
        data = np.full(schema.parameters, float(len(self.opened)), "<f4").tobytes()
        file = model_header(schema) + data
        self.stream = Sha256(hashlib.sha256(file).digest())
        self.objects[self.stream] = file
        self.model = model_digest(schema, data)


# --- the world -----------------------------------------------------------------------------


@dataclass
class World:
    """See the module."""

    root: Path
    size: int = 1000
    rounds: int = 3
    suite: Suite = Suite.CLASSICAL
    sites: tuple[str, ...] = SITES
    clock: ManualClock = field(default_factory=ManualClock)
    copies: int = 1
    """How often each message to a node is delivered."""
    told: Callable[[], int] = lambda: 0
    """The time of day that the coordinator tells."""
    vary: bool = False
    """Whether a node trains otherwise after each restart, as real training may."""

    def __post_init__(self) -> None:
        self.study = parse_study(
            STUDY.replace("SIZE", str(self.size)).replace("SUITE", self.suite.value)
        )
        self.canonical = canonical_json(self.study)
        self.config_hash: ConfigHash = config_hash(self.study)
        self.offer = StudyOffer(RUN, self.canonical, self.config_hash, b"signed", (b"chain",))
        self.keys = {
            node_id(site): Ed25519PrivateKey.from_private_bytes(
                hashlib.sha256(site.encode()).digest()
            )
            for site in self.sites
        }
        public = {node: key.public_key().public_bytes_raw() for node, key in self.keys.items()}
        self.trust = SimTrust(public)
        self.links: dict[NodeId, MemoryLink] = {}
        self.nodes: dict[str, Node] = {}
        self.running: dict[str, asyncio.Task[None]] = {}
        self.starts: dict[str, int] = {}
        self.cut_upload_after: dict[NodeId, int] = {}
        self.cut_download_after: dict[NodeId, int] = {}
        self.uploads: list[tuple[NodeId, int]] = []
        self.downloads: list[tuple[NodeId, int]] = []
        self.upload_digests: list[tuple[NodeId, HeaderDigest, Sha256]] = []
        self.sent: list[tuple[NodeId, NodeStep]] = []
        self.lose: Callable[[NodeId, NodeStep], bool] = lambda _node, _message: False
        self.unreachable: dict[str, int] = {}
        """How many of a site's first dials find nobody."""
        self.more_policy: dict[str, str] = {}
        """Further keys of a site's `require`."""
        self.dials: list[str] = []
        self.slept: list[tuple[str, float]] = []
        self.log = io.StringIO()
        self.coordinator = MemoryCoordinator(self, self.rounds)

    def state_dir(self, site: str) -> Path:
        return self.root / site

    async def connect(self, site: str) -> MemoryLink:
        self.dials.append(site)
        if self.dials.count(site) <= self.unreachable.get(site, 0):
            raise ConnectError("UNREACHABLE", "no route")
        link = MemoryLink(self, node_id(site))
        self.links[link.node] = link
        return link

    async def sleep(self, site: str, seconds: float) -> None:
        """Waits are short here: a back-off yields, a heartbeat lasts for ever."""
        self.slept.append((site, seconds))
        if seconds >= 10.0 - 1e-9:
            await asyncio.Event().wait()
        await asyncio.sleep(0)

    def start(self, site: str, wrap: Callable[[NodeParts], NodeParts] | None = None) -> Node:
        self.starts[site] = self.starts.get(site, 0) + 1
        entropy = CountingEntropy(f"{site}/{self.starts[site]}".encode())
        log = make_log(self.log, form="json", level="debug", clock=self.clock)
        text = POLICY.replace("SITE", site).replace("PIN", "ab" * 32)
        more = self.more_policy.get(site, "")
        policy = parse_policy(text.replace("colluders: 1}", f"colluders: 1{more}}}"))
        own = node_id(site)
        store = NodeStore.open(self.state_dir(site), entropy)
        books = Books(store, own, Limits.of(policy), entropy, lambda: int(self.clock.unix()))
        parts = NodeParts(
            federation=FEDERATION,
            signer=SimSigner(own, self.keys[own]),
            trust=self.trust,
            rules=NodeRules(colluders=1, min_cohort=3, s_min=3),
            release_trust=SimReleaseTrust((), FEDERATION),
            gate=gate_of(
                ApprovalFolder(store.root, site, FEDERATION, policy.value.require.approval),
                policy.value.require.approval,
                self.clock,
                log,
            ),
            store=store,
            desk=_Desk(policy, log, books, self.starts[site] if self.vary else 0),
            witnessed=books.witnessed,
            connect=lambda: self.connect(site),
            log=log,
            clock=self.clock,
            entropy=entropy,
            sleep=partial(self.sleep, site),
            jitter=lambda: 0.5,
        )
        node = Node(parts if wrap is None else wrap(parts))
        self.nodes[site] = node
        self.running[site] = asyncio.create_task(node.run(), name=f"node {site}")
        return node

    def start_all(self) -> None:
        for site in self.sites:
            self.start(site)

    async def kill(self, site: str) -> None:
        """End a node as `kill -9` would: nothing of it runs any more, the disk stays."""
        node = self.nodes.pop(site)
        link = self.links.get(node_id(site))
        if link is not None:
            link.sever()
        parts = node._parts
        # No last words: neither the status file nor anything else is written.
        node._write_status = lambda **_: None  # type: ignore[method-assign]
        self.running[site].cancel()
        await asyncio.gather(self.running.pop(site), return_exceptions=True)
        parts.store.close()
        gc.collect()

    async def finish(self, seconds: float = 8.0) -> None:
        """Wait until the run has ended at every node, then stop them in order."""
        try:
            await self._until_done(seconds)
        except TimeoutError:
            said = [(node[-2:], type(message).__name__) for node, message in self.sent[-12:]]
            raise AssertionError(
                f"the run did not end; sent last: {said}\n{self.log.getvalue()[-4000:]}"
            ) from None

    async def _until_done(self, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            waiting = asyncio.create_task(self.coordinator.done.wait())
            await asyncio.wait(
                {waiting, *self.running.values()}, return_when=asyncio.FIRST_COMPLETED
            )
            for job in self.running.values():
                if job.done():
                    job.result()
            await waiting
            await self.settle()
        await self.stop()

    async def until(self, true: Callable[[], object]) -> None:
        """Let the world turn until something holds."""
        async with asyncio.timeout(30):
            while not true():  # noqa: ASYNC110 - what is waited for is other code's state
                await asyncio.sleep(0.001)

    async def settle(self, turns: int = 200) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    async def stop(self) -> None:
        for node in self.nodes.values():
            node.stop()
        jobs = list(self.running.values())
        self.running.clear()
        for result in await asyncio.gather(*jobs, return_exceptions=True):
            if isinstance(result, FedError | Exception):
                raise result

    def expected_sum(self, r: int, survivors: Iterable[NodeId]) -> np.ndarray[Any, Any]:
        """The exact integer sum of a round, from the pattern's formula."""
        bound = quant_bound(len(self.sites), 32)
        total = np.zeros(self.size + 1, np.int64)
        for node in survivors:
            values = vector.whole(site_name(node), r, self.size)
            words = [quantise_value(float(x), 1.0, bound) for x in values[: vector.PERIOD]]
            total[: self.size] += np.resize(np.array(words), self.size)
            total[self.size] += bound
        return total

    def check(self) -> None:
        """Every opened sum is exact, and no node made two inputs for one header."""
        opened = self.coordinator.opened
        assert len(opened) == self.rounds
        for r, survivors, total in () if self.vary else opened:
            assert np.array_equal(total, self.expected_sum(r, survivors)), f"round {r}"
        once: dict[tuple[NodeId, HeaderDigest], Sha256] = {}
        for node, hd, ydig in self.upload_digests:
            assert once.setdefault((node, hd), ydig) == ydig, "two inputs for one header"
