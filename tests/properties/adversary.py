"""A coordinator that owns the network and up to c hospitals, against real node machines.

`Cast` is a session: honest nodes run `common.secagg.node`, corrupt ones have given all
their keys to the adversary. `World` is one attack: it delivers whatever the adversary
likes, in any order, with crashes at any command, and keeps what the adversary learns:

    b_j known           j released it, or t_h shares of it are in the adversary's hands
    e_ij known from i   i released it, or t_h shares of i's polynomial are

Shares sealed to corrupt helpers count from the moment of the upload. Every secret
that an honest node utters is compared with the truth taken from the node's own state,
so that a mislabelled secret cannot slip by. `World.check` raises `BreachError` if

  * an honest node signed, or released for, two sets in one (session, r),
  * for an honest j both b_j and an honest i's e_ij towards j are known (invariant 4),
  * two sums, or a sum over too few honest inputs, can be opened in one header
    (invariant 5): connected parts of the honest nodes, edges being the pair seeds that
    the adversary lacks, whose self seeds are all known,
  * sums opened on one model can be combined to isolate one hospital (invariant 16),
  * two different uploads were made under one header (invariant 6).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.entropy import CountingEntropy
from common.errors import Refusal
from common.ids import (
    ConfigHash,
    Epoch,
    HeaderDigest,
    NodeId,
    RoundNo,
    SessionId,
    Sha256,
    hospital_id,
)
from common.secagg import keys, params
from common.secagg import node as machine
from common.secagg.header import Header, Rounding, RoundKind
from common.secagg.messages import (
    Certificate,
    Commit,
    Confirm,
    Digests,
    FromNode,
    Kem,
    KemForward,
    KemFrom,
    KeyAdvert,
    Ready,
    RecoverRequest,
    RecoverShares,
    Release,
    Roster,
    RoundResult,
    RoundStatus,
    SealedFrom,
    UploadEnd,
)
from common.secagg.node_state import NodeEvent, OpenRound
from common.secagg.sealed import Sealed, open_sealed
from common.secagg.session import EpochTerms
from common.secagg.shamir import SELF_NAME, split, split_bundle
from common.secagg.transcript import commit_statement, set_hash
from common.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

FEDERATION = "attack"
CONFIG = ConfigHash(hashlib.sha256(b"study").digest())
LAYOUT = Sha256(hashlib.sha256(b"layout").digest())
MODELS = tuple(Sha256(hashlib.sha256(bytes([k])).digest()) for k in range(3))
NOW = 1_800_000_000
DEADLINE_MS = 600_000
LYING = 3
"""The variant of a digest list that is wrong for honest nodes as well."""


class BreachError(AssertionError):
    """The adversary got what the protocol promises it cannot get."""


@dataclass(frozen=True, slots=True)
class FakeSigner:
    """A certificate key without a certificate."""

    node_id: NodeId
    key: Ed25519PrivateKey = field(repr=False)

    @property
    def chain(self) -> tuple[bytes, ...]:
        return (self.node_id.encode(),)

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data)


@dataclass(frozen=True, slots=True)
class FakeTrust:
    """Knows every member's certificate key."""

    members: Mapping[NodeId, Ed25519PrivateKey]

    def verify_chain(
        self, chain_der: Sequence[bytes], node_id: NodeId, now_unix: int
    ) -> CertificatePublicKeyTypes:
        if node_id not in self.members:
            raise Refusal("NOT_MEMBER", f"{node_id} is not listed")
        return self.members[node_id].public_key()


@dataclass(frozen=True, slots=True)
class Cast:
    """A session that has just been confirmed, before any round."""

    ids: tuple[NodeId, ...]
    corrupt: frozenset[NodeId]
    c: int
    states: Mapping[NodeId, machine.NodeState]
    signers: Mapping[NodeId, FakeSigner]
    trust: FakeTrust
    session_id: SessionId

    @property
    def honest(self) -> tuple[NodeId, ...]:
        return tuple(i for i in self.ids if i not in self.corrupt)

    def context(self, node: NodeId, entropy: CountingEntropy) -> machine.NodeContext:
        rules = machine.NodeRules(colluders=self.c)
        return machine.NodeContext(entropy, NOW, self.signers[node], self.trust, rules)


def expectation(c: int) -> machine.SessionExpectation:
    known = machine.HeaderExpectation(
        kind=RoundKind.TRAIN, layout_sha256=LAYOUT, d=8, ranges=("free",), w_max=1000
    )
    return machine.SessionExpectation((known,), c, DEADLINE_MS)


def sent(commands: Iterable[machine.NodeCommand]) -> list[FromNode]:
    return [command.message for command in commands if isinstance(command, machine.Send)]


@cache
def cast(n: int, c: int, corrupt: tuple[int, ...] = (), *, hybrid: bool = False) -> Cast:
    """Return a session of n nodes; those at the places `corrupt` work for the adversary."""
    ids = tuple(hospital_id(FEDERATION, f"h{k:02d}") for k in range(n))
    cert_keys = {
        i: Ed25519PrivateKey.from_private_bytes(hashlib.sha256(i.encode()).digest()) for i in ids
    }
    signers = {i: FakeSigner(i, cert_keys[i]) for i in ids}
    blank = Cast(
        ids,
        frozenset(ids[k] for k in corrupt),
        c,
        {},
        signers,
        FakeTrust(cert_keys),
        SessionId(b""),
    )
    suite = keys.Suite.HYBRID if hybrid else keys.Suite.CLASSICAL
    terms = EpochTerms(FEDERATION, "task", Epoch(1), CONFIG, suite)
    begin = machine.BeginEpoch(terms, expectation(c), NOW, NOW + 86_400)
    states: dict[NodeId, machine.NodeState] = {}
    adverts: list[KeyAdvert] = []
    for i in ids:
        entropy = CountingEntropy(b"setup" + i.encode())
        states[i], commands = machine.handle(machine.NodeState(), begin, blank.context(i, entropy))
        adverts += [m for m in sent(commands) if isinstance(m, KeyAdvert)]
    entropy = CountingEntropy(b"unused")
    roster = Roster(tuple(adverts), RoundNo(1))
    kems: list[Kem] = []
    confirmed: dict[NodeId, SessionId] = {}

    def take(i: NodeId, commands: list[machine.NodeCommand]) -> None:
        for message in sent(commands):
            if isinstance(message, Kem):
                kems.append(message)
            elif isinstance(message, Confirm):
                confirmed[i] = message.session_id

    for i in ids:
        states[i], commands = machine.handle(states[i], roster, blank.context(i, entropy))
        take(i, commands)
    for i in ids if hybrid else ():
        items = tuple(
            KemFrom(k.sender, item.ct, item.sig) for k in kems for item in k.items if item.to == i
        )
        setup = states[i].setup
        session = getattr(setup, "session_id", SessionId(b""))
        forward = KemForward(session, items)
        states[i], commands = machine.handle(states[i], forward, blank.context(i, entropy))
        take(i, commands)
    if len(set(confirmed.values())) != 1 or len(confirmed) != n:
        raise BreachError("the cast did not confirm one session")
    return replace(blank, states=states, session_id=next(iter(confirmed.values())))


@dataclass(slots=True)
class Knowledge:
    """What the adversary holds of one header."""

    header: Header
    truth: dict[NodeId, OpenRound] = field(default_factory=dict)
    uploads: dict[NodeId, UploadEnd] = field(default_factory=dict)
    sigs: dict[Digests, dict[NodeId, bytes]] = field(default_factory=lambda: defaultdict(dict))
    proposed: set[Digests] = field(default_factory=set)
    statements: dict[NodeId, bytes] = field(default_factory=dict)
    """What each honest node signed."""
    b: set[NodeId] = field(default_factory=set)
    """Self seeds released."""
    edges: set[tuple[NodeId, NodeId]] = field(default_factory=set)
    """(i, j): i released e_ij."""
    shares: dict[tuple[NodeId, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    """(i, name): the points at which i's polynomial of that name is known."""


class World:
    """One attack, from a confirmed session on."""

    def __init__(self, players: Cast, seed: bytes = b"attack") -> None:
        self.cast = players
        self.entropy = CountingEntropy(seed)
        self.states = {i: players.states[i] for i in players.honest}
        self.durable = {i: machine.encode_state(players.states[i]) for i in players.honest}
        self.nonces: dict[NodeId, bytes] = {}
        self.seen: dict[HeaderDigest, Knowledge] = {}
        self.bound: dict[tuple[NodeId, SessionId, int], set[tuple[bytes, bytes]]] = defaultdict(set)
        """(header, set) that a node signed or acted on, per round."""
        self.history: list[tuple[NodeId, NodeEvent]] = []
        self.refusals: dict[str, int] = defaultdict(int)

    # --- delivering -------------------------------------------------------------------

    def deliver(self, node: NodeId, event: NodeEvent, crash_at: int | None = None) -> None:
        """Let an honest node handle an event; it crashes before command `crash_at`."""
        self.history.append((node, event))
        context = self.cast.context(node, self.entropy)
        before = self.states[node]
        try:
            new, commands = machine.handle(before, event, context)
        except Refusal as refusal:
            self.refusals[refusal.name] += 1
            if crash_at is not None:
                self.crash(node)
            return
        self.states[node] = new
        for place, command in enumerate(commands):
            if place == crash_at:
                break
            match command:
                case machine.Persist():
                    self.durable[node] = machine.encode_state(new)
                case machine.Send(message):
                    self.hear(node, message)
                case machine.StartUpload(end):
                    self.hear(node, end)
                case machine.PrepareInput(hd=hd):
                    self.note_truth(node, hd)
                case _:
                    pass
        if crash_at is not None:
            self.crash(node)

    def crash(self, node: NodeId) -> None:
        """Lose everything that is not durable."""
        self.states[node] = machine.decode_state(self.durable[node])

    def note_truth(self, node: NodeId, hd: HeaderDigest) -> None:
        session = self.states[node].session
        if session is None or session.open is None or session.open.hd != hd:
            raise BreachError(f"{node} prepares an input for a round that is not open")
        known = self.seen[hd].truth.setdefault(node, session.open)
        if known.b != session.open.b:
            raise BreachError(f"{node} has two self seeds for one header")

    # --- listening --------------------------------------------------------------------

    def hear(self, node: NodeId, message: FromNode) -> None:
        match message:
            case Ready(session_id=_, r=_, nonce=nonce):
                self.nonces[node] = nonce
            case UploadEnd():
                self.hear_upload(node, message)
            case Commit():
                self.hear_commit(node, message)
            case Release():
                self.hear_release(node, message)
            case RecoverShares():
                self.hear_shares(node, message)
            case _:
                pass

    def hear_upload(self, node: NodeId, end: UploadEnd) -> None:
        known = self.seen[end.hd]
        if known.uploads.setdefault(node, end) != end:
            raise BreachError(f"{node} made two uploads under one header")
        for sealed in end.sealed:
            if sealed.helper in self.cast.corrupt:
                closed = Sealed(sealed.nonce, sealed.ct)
                bundle = self.open_sealed(known.header, node, sealed.helper, closed)
                self.learn_shares(known, node, sealed.helper, bundle)

    def open_sealed(
        self, header: Header, node: NodeId, helper: NodeId, closed: Sealed
    ) -> dict[str, bytes]:
        """Open what an honest node sealed to a corrupt helper, with the helper's own chain."""
        session = self.cast.states[helper].session
        if session is None:
            raise BreachError("a corrupt node has no session")
        first = next(peer.chain for peer in session.peers if peer.id == node)
        key = keys.share_key(keys.ratchet_to(first, 1, header.r), header.digest(), node, helper)
        opened = open_sealed(key, header.digest(), node, helper, closed)
        names = [SELF_NAME, *(i for i in header.ids if i != node)]
        return dict(zip(names, split_bundle(opened, header.n), strict=True))

    def learn_shares(
        self, known: Knowledge, node: NodeId, helper: NodeId, shares: Mapping[str, bytes]
    ) -> None:
        """Note shares of `node`'s secrets at `helper`'s point, each compared with the truth."""
        point = known.header.point_of(helper)
        truth = known.truth[node]
        secrets: dict[str, Secret] = {SELF_NAME: truth.b, **{p.peer: p.edge for p in truth.pairs}}
        for name, share in shares.items():
            right = split(secrets[name], name, truth.a, known.header.t_h, [point])[0]
            if share != right:
                raise BreachError(f"a share of {node}'s {name} is not what it should be")
            known.shares[node, name].add(point)

    def hear_commit(self, node: NodeId, message: Commit) -> None:
        known = self.seen[message.hd]
        session = self.states[node].session
        key = session.key.public() if session else b""
        for digests in known.proposed:
            statement = commit_statement(message.hd, dict(digests))
            if bytes(set_hash(dict(digests))) != message.set_hash:
                continue
            try:
                keys.verify_session_signature(
                    key, message.sig, statement, refusal="COMMIT_SIG", who=node
                )
            except Refusal:
                continue
            known.sigs[digests][node] = message.sig
            if known.statements.setdefault(node, statement) != statement:
                raise BreachError(f"{node} signed two statements in round {known.header.r}")
            break
        else:
            raise BreachError(f"{node} signed something that was never proposed")
        self.bind(node, known, message.set_hash)

    def bind(self, node: NodeId, known: Knowledge, chosen: bytes) -> None:
        """Note that a node signed, or released for, a set in this round."""
        sets = self.bound[node, known.header.session_id, int(known.header.r)]
        sets.add((known.header.digest(), chosen))
        if len(sets) > 1:
            raise BreachError(f"{node} was bound to two sets in round {known.header.r}")

    def hear_release(self, node: NodeId, message: Release) -> None:
        known = self.seen[message.hd]
        truth = known.truth[node]
        edges = {pair.peer: pair.edge for pair in truth.pairs}
        if message.b.reveal() != truth.b.reveal():
            raise BreachError(f"{node} released something that is not its self seed")
        known.b.add(node)
        for peer, edge in message.edges:
            if edge.reveal() != edges[peer].reveal():
                raise BreachError(f"{node} released something that is not its edge")
            known.edges.add((node, peer))
        outside = {peer for peer, _ in message.edges}
        self.bind(node, known, set_hash(i for i in known.header.ids if i not in outside))

    def hear_shares(self, node: NodeId, message: RecoverShares) -> None:
        known = self.seen[message.hd]
        for item in message.items:
            if item.sender in self.cast.corrupt:
                continue
            shares = {SELF_NAME: item.b_share.reveal()}
            shares |= {peer: share.reveal() for peer, share in item.edges}
            self.learn_shares(known, item.sender, node, shares)

    # --- what the adversary makes --------------------------------------------------------

    def header(
        self,
        members: Iterable[NodeId],
        *,
        r: int,
        model: int = 0,
        variant: int = 0,
        extra_s_min: int = 0,
        w: int = 32,
    ) -> HeaderDigest:
        """Make a header by the rules over the latest nonces; remember and return its hd."""
        chosen = [i for i in self.cast.ids if i in set(members)]
        n, c = len(chosen), self.cast.c
        q = params.quorum(n, c)
        nonces = [
            self.nonces.get(i, hashlib.sha256(b"corrupt" + i.encode()).digest()) for i in chosen
        ]
        header = Header(
            session_id=self.cast.session_id,
            r=RoundNo(r),
            kind=RoundKind.TRAIN,
            model_sha256=MODELS[model],
            layout_sha256=LAYOUT,
            config_hash=CONFIG,
            members=tuple(zip(chosen, nonces, strict=True)),
            d=8,
            w=w,
            c=c,
            q=q,
            s_min=min(n, max(q, c + 2) + extra_s_min),
            t_h=c + 1,
            kappa=max(n - 1, 0),
            ranges=(1.0,),
            w_max=1000,
            rounding=Rounding.EVEN,
            deadline_ms=DEADLINE_MS - variant,
        )
        hd = header.digest()
        self.seen.setdefault(hd, Knowledge(header))
        return hd

    def ydig(self, hd: HeaderDigest, node: NodeId, variant: int = 0) -> Sha256:
        """Return an honest node's upload digest, or one made up (always in variant 3)."""
        upload = self.seen[hd].uploads.get(node)
        if upload is not None and variant != LYING:
            return upload.ydig
        return Sha256(hashlib.sha256(hd + node.encode() + bytes([variant])).digest())

    def digests(self, hd: HeaderDigest, chosen: Iterable[NodeId], variant: int = 0) -> Digests:
        wanted = set(chosen)
        ids = [i for i in self.seen[hd].header.ids if i in wanted]
        made = tuple((i, self.ydig(hd, i, variant)) for i in ids)
        self.seen[hd].proposed.add(made)
        return made

    def certificate(self, hd: HeaderDigest, digests: Digests) -> Certificate:
        """Return all signatures there are: the honest ones heard, the corrupt ones made now."""
        statement = commit_statement(hd, dict(digests))
        sigs = dict(self.seen[hd].sigs[digests])
        for i, _ in digests:
            session = self.cast.states[i].session
            if i in self.cast.corrupt and session is not None:
                sigs[i] = session.key.sign(statement)
        return Certificate(hd, digests, tuple(sorted(sigs.items())))

    def recover_request(
        self, hd: HeaderDigest, digests: Digests, helper: NodeId, silent: Iterable[NodeId]
    ) -> RecoverRequest:
        known = self.seen[hd]
        sealed = [
            SealedFrom(i, entry.nonce, entry.ct)
            for i in silent
            if i in known.uploads
            for entry in known.uploads[i].sealed
            if entry.helper == helper
        ]
        return RecoverRequest(self.certificate(hd, digests), tuple(sealed))

    def result(self, hd: HeaderDigest, next_r: int) -> RoundResult:
        return RoundResult(hd, RoundStatus.ABORTED, (), b"", b"", RoundNo(next_r))

    # --- the promises ------------------------------------------------------------------

    def check(self) -> None:
        """Raise `BreachError` if any promise is broken."""
        opened: dict[Sha256, list[frozenset[NodeId]]] = defaultdict(list)
        for known in self.seen.values():
            self.check_both_kinds(known)
            parts = list(self.open_parts(known))
            if len(parts) > 1:
                raise BreachError(f"{len(parts)} sums of one header can be opened")
            least = known.header.s_min - len(self.cast.corrupt & set(known.header.ids))
            for part in parts:
                if len(part) < least or len(part) < 2:
                    raise BreachError(f"a sum of only {len(part)} honest inputs can be opened")
                opened[known.header.model_sha256].append(part)
        for sets in opened.values():
            self.check_combinations(sets)

    def knows_b(self, known: Knowledge, j: NodeId) -> bool:
        return j in known.b or len(known.shares[j, SELF_NAME]) >= known.header.t_h

    def knows_edge_from(self, known: Knowledge, i: NodeId, j: NodeId) -> bool:
        """Return whether e_ij is known because i (or i's shares) gave it away."""
        return (i, j) in known.edges or len(known.shares[i, j]) >= known.header.t_h

    def members(self, known: Knowledge) -> list[NodeId]:
        return [i for i in known.header.ids if i not in self.cast.corrupt]

    def check_both_kinds(self, known: Knowledge) -> None:
        for j in self.members(known):
            if not self.knows_b(known, j):
                continue
            for i in self.members(known):
                if i != j and self.knows_edge_from(known, i, j):
                    raise BreachError(f"both b and an honest node's edge of {j} are known")

    def open_parts(self, known: Knowledge) -> Iterator[frozenset[NodeId]]:
        """Yield the sets of honest nodes whose masked inputs add up to something readable."""
        left = set(self.members(known))
        while left:
            part = {left.pop()}
            frontier = set(part)
            while frontier:
                i = frontier.pop()
                near = {
                    j
                    for j in left
                    if not self.knows_edge_from(known, i, j)
                    and not self.knows_edge_from(known, j, i)
                }
                left -= near
                part |= near
                frontier |= near
            if all(self.knows_b(known, i) and i in known.uploads for i in part):
                yield frozenset(part)

    def check_combinations(self, sets: Sequence[frozenset[NodeId]]) -> None:
        """Raise if a linear combination of the sums isolates one honest hospital."""
        honest = list(self.cast.honest)
        rows = [[Fraction(int(i in chosen)) for i in honest] for chosen in set(sets)]
        rank = _rank(rows)
        for place, i in enumerate(honest):
            unit = [Fraction(int(k == place)) for k in range(len(honest))]
            if _rank([*rows, unit]) == rank:
                raise BreachError(f"the sums opened on one model isolate {i}")


def _rank(rows: Sequence[Sequence[Fraction]]) -> int:
    """Return the rank over the rationals."""
    table = [list(row) for row in rows]
    rank = 0
    for column in range(len(table[0]) if table else 0):
        pivot = next((k for k in range(rank, len(table)) if table[k][column]), None)
        if pivot is None:
            continue
        table[rank], table[pivot] = table[pivot], table[rank]
        for k in range(rank + 1, len(table)):
            factor = table[k][column] / table[rank][column]
            table[k] = [a - factor * b for a, b in zip(table[k], table[rank], strict=True)]
        rank += 1
    return rank
