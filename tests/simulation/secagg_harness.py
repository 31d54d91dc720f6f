"""A whole federation in one process: real machines, real masks, scripted delivery.

`Simulation` holds n nodes and a coordinator, each with its own "disk" (bytes, written
where a machine says Persist or Record), and one list of envelopes in flight. A test
decides what happens next:

    sim = Simulation(Setting(n=4, colluders=1))
    sim.open_session(); sim.run()                  # adverts, roster, kem, confirm
    sim.open_round();   sim.run()                  # deliver everything, in order
    assert sim.coordinator.opened[-1].exact        # opened sum == sum of the survivors' v_i

Delivery is pluggable: `run(pick=...)` chooses the next envelope (reordering),
`sim.on_send` maps an envelope to a list of envelopes (drop, duplicate, alter),
`sim.away` holds nodes whose traffic is lost both ways. `crash()` on a node or on the
coordinator forgets everything but its disk; `crash_at` does so right after a chosen
durable write. Timers fire only when a test says so (`fire`).

`SimNode` alone, without a coordinator, is what a scripted malicious coordinator talks
to: `node.hear(event)` returns what the node sent, and `node.said` is all it ever sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.entropy import CountingEntropy
from common.errors import Refusal
from common.ids import ConfigHash, Epoch, HeaderDigest, NodeId, RoundNo, Sha256, hospital_id
from common.secagg import coordinator as co
from common.secagg import coordinator_session as cs
from common.secagg import node as nd
from common.secagg.dp import DpPlan
from common.secagg.header import Header, Rounding, RoundKind, sum_bound
from common.secagg.keys import Suite
from common.secagg.messages import (
    Confirm,
    FromCoordinator,
    FromNode,
    Kem,
    KeyAdvert,
    Refused,
    RoundStart,
    UploadEnd,
)
from common.secagg.ring import check_sum_range, signed_view, word_dtype, words_of
from common.secagg.session import EpochTerms

NOW: Final = 1_800_000_000
FEDERATION: Final = "sim"
TASK: Final = "task"
CONFIG: Final = ConfigHash(b"\x0c" * 32)
LAYOUT: Final = Sha256(b"\x1a" * 32)
MODEL: Final = Sha256(b"\x3d" * 32)
W_MAX: Final = 1000

Ints: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"


def node_id(place: int) -> NodeId:
    """Return the id of the n-th simulated hospital; ids sort by their number."""
    return hospital_id(FEDERATION, f"h{place:04d}")


def digest(text: str) -> Sha256:
    """Return a digest that a test can name."""
    return Sha256(hashlib.sha256(text.encode()).digest())


@dataclass(frozen=True)
class SimSigner:
    """A hospital whose "certificate" is its raw public key."""

    node_id: NodeId
    key: Ed25519PrivateKey

    @property
    def chain(self) -> tuple[bytes, ...]:
        return (self.key.public_key().public_bytes_raw(),)

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data)


@dataclass(frozen=True)
class SimTrust:
    """Pins raw keys by id, with the refusals of the real trust."""

    keys: dict[NodeId, bytes]

    def verify_chain(
        self, chain_der: Iterable[bytes], node_id: NodeId, now_unix: int
    ) -> Ed25519PublicKey:
        chain = tuple(chain_der)
        if node_id not in self.keys:
            raise Refusal("NOT_MEMBER", f"{node_id} is not pinned")
        if chain != (self.keys[node_id],):
            raise Refusal("CERT_CHAIN", f"{node_id} came with another certificate")
        return Ed25519PublicKey.from_public_bytes(chain[0])


@dataclass(frozen=True)
class Setting:
    """A federation: who, how many words, which numbers."""

    n: int = 4
    colluders: int = 1
    d: int = 8
    w: int = 32
    suite: Suite = Suite.CLASSICAL
    s_min: int = 0
    allow_two_party: bool = False
    seed: int = 1
    deadline_ms: int = 60_000
    max_deadline_ms: int = 600_000
    dp: DpPlan | None = None

    @property
    def ids(self) -> tuple[NodeId, ...]:
        return tuple(node_id(place) for place in range(self.n))

    @property
    def ranges(self) -> tuple[float, ...]:
        """One tensor whose range the coordinator chooses, one fixed metric range."""
        return (0.5, 1.0)

    @property
    def terms(self) -> EpochTerms:
        return EpochTerms(FEDERATION, TASK, Epoch(1), CONFIG, self.suite)

    @property
    def expect(self) -> nd.SessionExpectation:
        rounds = tuple(
            nd.HeaderExpectation(
                kind=kind,
                layout_sha256=LAYOUT,
                d=self.d,
                ranges=("free", 1.0),
                w_max=W_MAX,
                rounding=Rounding.EVEN,
                w=self.w,
                s_min=self.s_min,
                dp=self.dp,
            )
            for kind in (RoundKind.TRAIN, RoundKind.EVALUATE)
        )
        return nd.SessionExpectation(rounds, self.colluders, self.max_deadline_ms)

    @property
    def rules(self) -> nd.NodeRules:
        return nd.NodeRules(
            colluders=self.colluders,
            min_cohort=2 if self.allow_two_party else 3,
            allow_two_party=self.allow_two_party,
            ring_bits=frozenset((16, 32, 64)),
        )

    def round_terms(self, model: Sha256 = MODEL) -> co.RoundTerms:
        return co.RoundTerms(
            kind=RoundKind.TRAIN,
            model_sha256=model,
            layout_sha256=LAYOUT,
            d=self.d,
            c=self.colluders,
            ranges=self.ranges,
            w_max=W_MAX,
            deadline_ms=self.deadline_ms,
            s_min=self.s_min,
            w=self.w,
            rounding=Rounding.EVEN,
            dp=self.dp,
        )


class CrashedError(Exception):
    """A simulated process died right after a durable write."""


# --- a node ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Uploaded:
    """An upload on its way: the end record and the masked words."""

    end: UploadEnd
    body: bytes


Said: TypeAlias = FromNode | Uploaded


class SimNode:
    """A node's machine with a disk, a spool of inputs and everything it ever said."""

    def __init__(self, setting: Setting, place: int, trust: SimTrust, signer: SimSigner) -> None:
        self.setting = setting
        self.id = node_id(place)
        self.signer = signer
        self.trust = trust
        self.entropy = CountingEntropy(f"{setting.seed}/{place}".encode())
        self.state = nd.NodeState()
        self.disk = nd.encode_state(self.state)
        self.spool: dict[HeaderDigest, bytes] = {}
        self.inputs: dict[HeaderDigest, Ints] = {}
        """Every `v_i` this node made, also after its spool is erased: the test's oracle."""
        self.said: list[Said] = []
        self.refusals: list[Refusal] = []
        self.closed: list[tuple[HeaderDigest, str]] = []
        self.reports: list[nd.Report] = []
        self.rules = setting.rules
        self.now_unix = NOW
        self.trains = True
        """False: a node that never finishes an input."""
        self.writes = 0
        self.crash_at: int | None = None
        self._rng = np.random.default_rng((setting.seed, place))

    @property
    def ctx(self) -> nd.NodeContext:
        return nd.NodeContext(self.entropy, self.now_unix, self.signer, self.trust, self.rules)

    def begin_epoch(self, terms: EpochTerms | None = None) -> list[Said]:
        begin = nd.BeginEpoch(
            terms or self.setting.terms, self.setting.expect, NOW - 60, NOW + 86_400
        )
        return self.hear(begin)

    def hear(self, event: nd.NodeEvent) -> list[Said]:
        """Handle one event and do its commands; return what was said.

        A refusal is noted in `refusals`, and reported to the coordinator as the
        driver would. A planned crash leaves what was said before it.
        """
        said: list[Said] = []
        try:
            state, commands = nd.handle(self.state, event, self.ctx)
        except Refusal as refusal:
            self.refusals.append(refusal)
            said.append(Refused(_hd_of(event), refusal.name, refusal.detail))
            self.said += said
            return said
        self.state = state
        try:
            for command in commands:
                said += self._do(command)
        except CrashedError:
            self.said += [one for one in said if one not in self.said[-len(said) :]]
            said += self.crash()
            return said
        return said

    def _do(self, command: nd.NodeCommand) -> list[Said]:
        match command:
            case nd.Persist():
                self.disk = nd.encode_state(self.state)
                self._wrote()
            case nd.Send():
                self.said.append(command.message)
                return [command.message]
            case nd.PrepareInput():
                return self._prepare(command.header, command.hd) if self.trains else []
            case nd.StartUpload():
                body = self.spool.get(command.end.hd)
                if body is None:
                    return self.hear(nd.InputFailed(command.end.hd, "CLOSED", "input lost"))
                self.said.append(Uploaded(command.end, body))
                return [Uploaded(command.end, body)]
            case nd.RoundClosed():
                self.spool.pop(command.hd, None)
                self.closed.append((command.hd, command.status))
            case nd.Report():
                self.reports.append(command)
        return []

    def _prepare(self, header: Header, hd: HeaderDigest) -> list[Said]:
        values = self._rng.integers(-header.bound, header.bound + 1, header.d)
        self.inputs[hd] = values
        words = values.astype(f"<i{header.w // 8}").view(word_dtype(header.w)).copy()
        nd.mask_plan(self.state, self.id).stream().apply(words, 0)
        self.spool[hd] = words.tobytes()
        return self.hear(nd.InputFinal(hd, Sha256(hashlib.sha256(words.tobytes()).digest())))

    def _wrote(self) -> None:
        self.writes += 1
        if self.crash_at == self.writes:
            raise CrashedError

    def crash(self) -> list[Said]:
        """Forget everything but the disk and the spool, come back, say it all again."""
        self.state = nd.decode_state(self.disk)
        said = self.hear(nd.Restarted())
        if self.state.session is not None:
            said += self.hear(nd.MakeReady())
        return said


def _hd_of(event: nd.NodeEvent) -> bytes:
    if isinstance(event, nd.HeaderReceived):
        return event.header.digest()
    return getattr(event, "hd", b"")


# --- the coordinator ------------------------------------------------------------------


@dataclass(frozen=True)
class OpenedSum:
    """A sum the coordinator opened, beside the integer sum of what it should be."""

    header: Header
    survivors: tuple[NodeId, ...]
    total: tuple[int, ...]
    expected: tuple[int, ...]

    @property
    def exact(self) -> bool:
        return self.total == self.expected


class SimCoordinator:
    """The coordinator's machines with a fact log and a spool."""

    def __init__(self, setting: Setting, trust: SimTrust) -> None:
        self.setting = setting
        self.ctx = cs.SessionContext(trust, NOW)
        self.session: cs.SessionState | None = None
        self.round: co.RoundState | None = None
        self.session_log: list[bytes] = []
        self.round_log: list[bytes] = []
        self.spool: dict[NodeId, bytes] = {}
        self.timers: list[str] = []
        self.commands: list[cs.SessionCommand | co.RoundCommand] = []
        """Every command ever given, for tests to look through."""
        self.refusals: list[tuple[NodeId, Refusal]] = []
        self.opened: list[OpenedSum] = []
        self.oracle: Callable[[HeaderDigest, NodeId], Ints] | None = None
        self.writes = 0
        self.crash_at: int | None = None

    def of_kind(self, kind: type) -> list[object]:
        """Return every command of a kind that was ever given."""
        return [command for command in self.commands if isinstance(command, kind)]

    def tell_session(self, event: cs.SessionEvent) -> list[Envelope]:
        return self._guard(event, lambda: self._session(event))

    def tell_round(self, event: co.RoundEvent) -> list[Envelope]:
        return self._guard(event, lambda: self._round(event))

    def _guard(self, event: object, work: Callable[[], list[Envelope]]) -> list[Envelope]:
        try:
            return work()
        except Refusal as refusal:
            sender = getattr(event, "sender", None)
            if sender is None:
                raise
            self.refusals.append((sender, refusal))
            hd = b"" if self.round is None else self.round.hd
            return [Envelope(sender, Refused(hd, refusal.name, refusal.detail))]

    def _session(self, event: cs.SessionEvent) -> list[Envelope]:
        self.session, commands = cs.handle(self.session, event, self.ctx)
        out: list[Envelope] = []
        try:
            for command in commands:
                self.commands.append(command)
                if isinstance(command, cs.RecordSession):
                    self.session_log.append(cs.encode_fact(command.fact))
                    self._wrote()
                elif isinstance(command, cs.SendTo):
                    out.append(Envelope(command.to, command.message))
                elif isinstance(command, cs.ArmTimer):
                    self.timers.append(command.name)
        except CrashedError:
            return [*out, *self.crash()]
        return out

    def _round(self, event: co.RoundEvent) -> list[Envelope]:
        assert self.round is not None
        self.round, commands = co.handle(self.round, event)
        out: list[Envelope] = []
        try:
            for command in commands:
                self.commands.append(command)
                out += self._do(command)
        except CrashedError:
            return [*out, *self.crash()]
        return out

    def _do(self, command: co.RoundCommand) -> list[Envelope]:
        match command:
            case co.Record():
                self.round_log.append(co.encode_fact(command.fact))
                self._wrote()
            case co.SendTo():
                return [Envelope(command.to, command.message)]
            case co.AckUpload():
                return [Envelope(command.to, nd.UploadAcked(command.hd))]
            case co.ArmTimer():
                self.timers.append(command.name)
            case co.Open():
                return self._open(command)
            case co.Evidence() | co.Report() | co.Close():
                pass
        return []

    def _open(self, command: co.Open) -> list[Envelope]:
        header = command.header
        total = np.zeros(header.d, word_dtype(header.w))
        for survivor in command.survivors:
            total += words_of(self.spool[survivor], header.w)
        command.plan.stream().apply(total, 0)
        try:
            check_sum_range(total, sum_bound(len(command.survivors), header.bound))
        except Refusal:
            return self._round(co.SumOutOfRange())
        expected = np.zeros(header.d, np.int64)
        assert self.oracle is not None
        for survivor in command.survivors:
            expected += self.oracle(header.digest(), survivor)
        self.opened.append(
            OpenedSum(
                header,
                command.survivors,
                tuple(int(word) for word in signed_view(total)),
                tuple(int(word) for word in expected),
            )
        )
        sum_sha256 = Sha256(hashlib.sha256(total.tobytes()).digest())
        return self._round(co.SumOpened(sum_sha256, digest("next model")))

    def upload(self, sender: NodeId, uploaded: Uploaded) -> list[Envelope]:
        """Spool an upload as the driver would: only the first complete one is kept."""
        self.spool.setdefault(sender, uploaded.body)
        body = self.spool[sender]
        event = co.UploadReceived(
            sender, uploaded.end, Sha256(hashlib.sha256(body).digest()), len(body)
        )
        out = self.tell_round(event)
        if self.round is not None and sender not in {u.sender for u in self.round.uploads}:
            del self.spool[sender]
        return out

    def _wrote(self) -> None:
        self.writes += 1
        if self.crash_at == self.writes:
            raise CrashedError

    def crash(self) -> list[Envelope]:
        """Forget everything but logs and spool, replay, go on."""
        self.timers.clear()
        out: list[Envelope] = []
        before = self.round
        self.session = cs.replay(cs.decode_fact(data) for data in self.session_log)
        if self.session is not None:
            out += self.tell_session(cs.Restarted())
        self.round = co.replay(co.decode_fact(data) for data in self.round_log)
        if self.round is not None:
            out += self.tell_round(co.Restarted())
        elif before is not None and self.session is not None:
            self.round = co.begin_round(before.session, before.r, before.edges)
        return out


# --- the wire between them ------------------------------------------------------------


@dataclass(frozen=True)
class Envelope:
    """Something in flight: to a node (from the coordinator), or from a node."""

    node: NodeId
    to_node: FromCoordinator | nd.UploadAcked | None = None
    from_node: Said | None = None


def _in_order(flying: list[Envelope]) -> int:
    return 0


@dataclass
class Simulation:
    """n nodes, a coordinator, and what is in flight between them."""

    setting: Setting
    nodes: dict[NodeId, SimNode] = field(init=False)
    coordinator: SimCoordinator = field(init=False)
    flying: list[Envelope] = field(default_factory=list)
    away: set[NodeId] = field(default_factory=set)
    on_send: Callable[[Envelope], list[Envelope]] | None = None

    def __post_init__(self) -> None:
        signers = {
            one: SimSigner(
                one, Ed25519PrivateKey.from_private_bytes(hashlib.sha256(one.encode()).digest())
            )
            for one in self.setting.ids
        }
        trust = SimTrust({one: signer.chain[0] for one, signer in signers.items()})
        self.nodes = {
            one: SimNode(self.setting, place, trust, signers[one])
            for place, one in enumerate(self.setting.ids)
        }
        self.coordinator = SimCoordinator(self.setting, trust)
        self.coordinator.oracle = lambda hd, one: self.nodes[one].inputs[hd]

    @property
    def round(self) -> co.RoundState:
        assert self.coordinator.round is not None
        return self.coordinator.round

    def at(self, place: int) -> SimNode:
        return self.nodes[node_id(place)]

    # --- starting things

    def open_session(self, terms: EpochTerms | None = None) -> None:
        """Open an epoch and have every node that is not away advertise."""
        self.coordinator.session = None
        self.coordinator.session_log.clear()
        opening = cs.OpenSession(
            terms or self.setting.terms,
            self.setting.ids,
            30.0,
            2 if self.setting.allow_two_party else 3,
        )
        self.post(self.coordinator.tell_session(opening))
        for one in self.nodes.values():
            if one.id not in self.away:
                self.say(one.id, one.begin_epoch(terms))

    def open_round(self, members: Iterable[NodeId] | None = None, model: Sha256 = MODEL) -> None:
        """Collect nonces and send the header to `members` (default: all that are ready)."""
        self.begin_round()
        self.run()
        chosen = tuple(members or (one for one, _ in self.round.ready))
        event = co.OpenRound(self.setting.round_terms(model), chosen)
        self.post(self.coordinator.tell_round(event))

    def begin_round(self) -> None:
        """Begin the next round; every node in a session says Ready."""
        session = self.coordinator.session
        assert session is not None
        last = self.coordinator.round
        view = co.SessionView.of(session)
        same = last is not None and last.session.session_id == view.session_id
        r = RoundNo(last.r + 1) if same and last is not None else RoundNo(1)
        edges = last.edges if same and last is not None else None
        self.coordinator.round = co.begin_round(view, r, edges)
        self.coordinator.round_log.clear()
        self.coordinator.spool.clear()
        for one in self.nodes.values():
            if one.state.session is not None and one.id not in self.away:
                self.say(one.id, one.hear(nd.MakeReady()))

    # --- moving envelopes

    def post(self, envelopes: Iterable[Envelope]) -> None:
        """Put envelopes in flight, through `on_send` if a test set it."""
        for envelope in envelopes:
            if envelope.node in self.away:
                continue
            self.flying += [envelope] if self.on_send is None else self.on_send(envelope)

    def say(self, sender: NodeId, said: Iterable[Said]) -> None:
        self.post(Envelope(sender, from_node=one) for one in said)

    def run(self, pick: Callable[[list[Envelope]], int] = _in_order, limit: int = 100_000) -> None:
        """Deliver until nothing flies; `pick` chooses the next envelope's place."""
        for _ in range(limit):
            if not self.flying:
                return
            self.deliver(self.flying.pop(pick(self.flying)))
        raise AssertionError("the federation never comes to rest")

    def deliver(self, envelope: Envelope) -> None:
        if envelope.node in self.away:
            return
        if envelope.from_node is not None:
            self.post(self._to_coordinator(envelope.node, envelope.from_node))
        elif envelope.to_node is not None:
            self.say(envelope.node, self._to_node(self.nodes[envelope.node], envelope.to_node))

    def _to_coordinator(self, sender: NodeId, said: Said) -> list[Envelope]:
        if isinstance(said, Uploaded):
            return self.coordinator.upload(sender, said)
        if isinstance(said, KeyAdvert | Kem | Confirm):
            return self.coordinator.tell_session(cs.From(sender, said))
        if self.coordinator.round is None:
            return []
        return self.coordinator.tell_round(co.From(sender, said))

    @staticmethod
    def _to_node(one: SimNode, message: FromCoordinator | nd.UploadAcked) -> list[Said]:
        match message:
            case RoundStart():
                return one.hear(nd.HeaderReceived(message.header, message.header.model_sha256))
            case Refused():
                return []
            case _:
                return one.hear(message)

    # --- faults

    def fire(self, name: str) -> None:
        """Let a timer run out."""
        event = cs.Deadline(name)
        if name in {phase.value for phase in cs.SetupPhase}:
            self.post(self.coordinator.tell_session(event))
        else:
            self.post(self.coordinator.tell_round(event))

    def lose(self, place: int) -> None:
        """A node is gone for longer than the grace period; its traffic is lost."""
        one = node_id(place)
        self.away.add(one)
        self.flying = [envelope for envelope in self.flying if envelope.node != one]
        if self.coordinator.round is not None:
            self.post(self.coordinator.tell_round(co.MemberGone(one)))

    def back(self, place: int, *, crashed: bool = False) -> None:
        """A node reconnects, after a crash or with its memory intact."""
        one = self.at(place)
        self.away.discard(one.id)
        self.say(one.id, one.crash() if crashed else one.hear(nd.Restarted()))
        if self.coordinator.round is not None:
            self.post(self.coordinator.tell_round(co.MemberBack(one.id)))

    def crash_node(self, place: int) -> None:
        one = self.at(place)
        self.say(one.id, one.crash())

    def crash_coordinator(self) -> None:
        self.post(self.coordinator.crash())


def changed(envelope: Envelope, **fields: Any) -> Envelope:  # noqa: ANN401 - any field
    """Return an envelope whose message has other fields, for altering deliveries."""
    if envelope.to_node is not None:
        return replace(envelope, to_node=replace(envelope.to_node, **fields))
    assert envelope.from_node is not None
    return replace(envelope, from_node=replace(envelope.from_node, **fields))
