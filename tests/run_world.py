"""A run's machine alone with real protocol nodes: no clock, no disk, no event loop.

`RunWorld` calls `coordinator.run.handle` and does what its commands say with plain
lists: facts go into `facts`, timers into `timers` (a test lets one run out with `fire`),
work that takes time is answered at once unless its command is in `hold`. Nodes are the
harness's `SimNode`s with real keys and masks, so every message is a proper one.

After each step the state must equal what replaying the facts gives: that is checked
here, for every scenario of every test.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common import messages as wire
from common.errors import Refusal
from common.ids import Epoch, HeaderDigest, NodeId, RunId, Sha256
from common.layouts import session_expectation
from common.messages import Objection, ReleaseReceipt, RunEnded, StudyDecision, StudyOffer, Verdict
from common.secagg import node as nd
from common.secagg.coordinator_state import RoundPhase
from common.secagg.keys import Suite
from common.secagg.messages import (
    KemForward,
    Refused,
    Roster,
    RoundResult,
    RoundStart,
)
from common.secagg.ring import signed_view, word_dtype, words_of
from common.secagg.session import EpochTerms
from common.study import config_hash, parse_study
from common.views import RunPhase
from coordinator import run
from coordinator import run_state as rs
from coordinator.journal import Journal
from coordinator.run_facts import replay
from coordinator.run_step import RunContext, Timing
from tests.simulation.secagg_harness import (
    FEDERATION,
    NOW,
    Setting,
    SimNode,
    SimSigner,
    SimTrust,
    Uploaded,
    digest,
)

VECTOR: Final = """\
schema: fedcare.study/v1
id: pattern
purpose: research
dataset: none
owner: {name: A, organisation: uni-x}
features: [{name: x, type: float}]
target: {type: binary, name: y}
model: {kind: vector, size: 5}
normalise: none
federation: {weights: equal, rounds: 2, min_sites: 3, round_deadline: 100s}
privacy: {secure_aggregation: {colluders: 1, suite: classical}}
"""

RUN: Final = RunId("pattern-1")


class RunWorld:
    """See the module."""

    def __init__(self, study: str = VECTOR, n: int = 4) -> None:
        self.study = parse_study(study)
        self.setting = Setting(n=n, suite=Suite(self.study.privacy.secure_aggregation.suite))
        ids = self.setting.ids
        self.ids = ids
        signers = {one: SimSigner(one, _key(one)) for one in ids}
        self.trust = SimTrust({one: signer.chain[0] for one, signer in signers.items()})
        self.nodes = {
            one: SimNode(self.setting, place, self.trust, signers[one])
            for place, one in enumerate(ids)
        }
        self.first = rs.RunState(RUN, self.study, config_hash(self.study), FEDERATION, ids)
        self.state = self._replayed = self.first
        self.facts: list[bytes] = []
        self._journal = Journal()
        self._blanked: set[int] = set()
        """Places of the facts that a store would not hold any more."""
        self.says: dict[NodeId, tuple[Objection, ...] | None] = dict.fromkeys(ids, ())
        """What a hospital objects to; None: it says nothing yet."""
        self.online: set[NodeId] = set()
        self.timers: dict[str, float] = {}
        """Seconds by name, without the round's or epoch's number, which `full_names` has."""
        self.full_names: dict[str, str] = {}
        self.lines: list[rs.Tell] = []
        self.hold: set[type] = set()
        self.held: list[rs.RunCommand] = []
        self.mute: set[tuple[NodeId, type]] = set()
        """Messages of a kind that a node sends and that never arrive."""
        self.now = 0.0
        self.epoch = 100
        self.spool: dict[tuple[HeaderDigest, NodeId], bytes] = {}
        self.commands: list[rs.RunCommand] = []
        self.sent: list[tuple[NodeId, Any]] = []
        self.sums: list[tuple[int, tuple[NodeId, ...], tuple[int, ...]]] = []
        self.refused: list[Refusal] = []
        self.crash_after: int | None = None
        """The process dies once so many facts are stored."""
        self.crashes = 0
        self._inbox: deque[rs.RunEvent] = deque()
        self._running = False
        self._greet: list[NodeId] = []

    # --- looking ---------------------------------------------------------------------------

    def at(self, place: int) -> NodeId:
        return self.ids[place]

    @property
    def phase(self) -> RunPhase:
        return self.state.phase

    def told(self, node: NodeId, kind: type) -> list[Any]:
        return [step for to, step in self.sent if to == node and isinstance(step, kind)]

    def done(self, kind: type) -> list[Any]:
        return [command for command in self.commands if isinstance(command, kind)]

    # --- events ---------------------------------------------------------------------------

    def tell(self, *events: rs.RunEvent) -> None:
        """Hand in events and everything that follows from them, until nothing moves."""
        self._inbox += events
        if self._running:
            return
        self._running = True
        try:
            while self._inbox:
                self._step(self._inbox.popleft())
        finally:
            self._running = False

    def begin(self, connected: Iterable[int] | None = None) -> None:
        """Submit the study, and have hospitals connect (all of them by default)."""
        self.tell(rs.Begin())
        for place in range(len(self.ids)) if connected is None else connected:
            self.connect(place)

    def connect(self, place: int, *, crashed: bool = False) -> None:
        """A hospital dials: with its memory, or after a crash with its disk only."""
        node = self.at(place)
        self.online.add(node)
        session = self.nodes[node].state.session
        self.tell(rs.NodeConnected(node, session is not None, named=True))
        if crashed:
            self._say(node, self.nodes[node].crash())
        else:
            self._say(node, self.nodes[node].hear(nd.Restarted()))
            self._be_ready(node)

    def lose(self, place: int) -> None:
        self.online.discard(self.at(place))
        self.tell(rs.NodeLost(self.at(place)))

    def fire(self, name: str) -> None:
        """Let a timer run out, which must be running."""
        self.now += self.timers.pop(name)
        self.tell(rs.TimerFired(self.full_names[name]))

    def release_held(self) -> None:
        """Do the work that was held back."""
        held, self.held, self.hold = self.held, [], set()
        for command in held:
            self._work(command)

    def restart(self) -> None:
        """The process died and comes back: facts are all there is."""
        self.crashes += 1
        self.timers.clear()
        self.held.clear()
        self._inbox.clear()
        left = [body for seq, body in enumerate(self.facts) if seq not in self._blanked]
        self.state = self._replayed = replay(self.first, [rs.decode_fact(body) for body in left])
        online, self.online = sorted(self.online), set()
        self._inbox.append(rs.Begin())
        for node in online:
            self._inbox.append(
                rs.NodeConnected(node, self.nodes[node].state.session is not None, named=True)
            )
            self.online.add(node)
        self._greet = online

    # --- the driver --------------------------------------------------------------------------

    def _step(self, event: rs.RunEvent) -> None:
        timing = Timing(enrolment_grace=20.0, setup=30.0, gather=2.0, release=30.0)
        ctx = RunContext(self.now, NOW + int(self.now), self.trust, timing)
        try:
            self.state, commands = run.handle(self.state, event, ctx)
        except Refusal as refusal:
            self.refused.append(refusal)
            if isinstance(event, rs.FromNode):
                hd = getattr(event.step, "hd", b"")
                self._deliver(event.node, Refused(hd, refusal.name, refusal.detail))
            return
        self.commands += commands
        self._store([rs.encode_fact(c.fact) for c in commands if isinstance(c, rs.Record)])
        if self.crash_after is not None and len(self.facts) >= self.crash_after:
            self.crash_after = None
            self.restart()
            return
        for command in commands:
            self._act(command)
        greet, self._greet = self._greet, []
        for node in greet:
            self._say(node, self.nodes[node].hear(nd.Restarted()))
            self._be_ready(node)

    def _store(self, bodies: list[bytes]) -> None:
        """Keep facts, and compare the state with what they give when they are read back."""
        facts = [rs.decode_fact(body) for body in bodies]
        self.facts += bodies
        self._blanked.update(self._journal.add(facts))
        self._replayed = replay(self._replayed, facts)
        assert stored(self._replayed) == stored(self.state)

    def _act(self, command: rs.RunCommand) -> None:
        if type(command) in self.hold:
            self.held.append(command)
            return
        match command:
            case rs.Send():
                self._deliver(command.to, command.step)
            case rs.StartTimer():
                parts = command.name.split(":")
                short = ":".join((parts[0], *parts[2:])) if len(parts) > 2 else parts[0]
                short = "gather" if parts[0] == "gather" else short
                self.timers[short] = command.seconds
                self.full_names[short] = command.name
            case rs.AckUpload():
                self._say(command.to, self.nodes[command.to].hear(nd.UploadAcked(command.hd)))
            case rs.SendRelease():
                self._deliver(command.to, ReleaseReceipt(RUN, digest("manifest")))
            case rs.DropSpool():
                self.spool = {key: y for key, y in self.spool.items() if key[0] != command.hd}
            case _:
                self._work(command)

    def _work(self, command: rs.RunCommand) -> None:
        match command:
            case rs.ReserveEpoch():
                self.epoch += 1
                self.tell(rs.EpochReserved(Epoch(self.epoch)))
            case rs.MakeFirstModel():
                self.tell(rs.FirstModelMade(rs.ModelRef(digest("object 0"), digest("model 0"))))
            case rs.OpenSum():
                self._open(command)
            case rs.MakeRelease():
                self.tell(rs.ReleaseMade(digest("manifest")))
            case rs.Tell():
                self.lines.append(command)
            case _:
                pass

    def _open(self, command: rs.OpenSum) -> None:
        header = command.header
        hd = header.digest()
        total = np.zeros(header.d, word_dtype(header.w))
        expected = np.zeros(header.d, object)
        if any((hd, node) not in self.spool for node in command.survivors):
            # The run was ended while this went on, with the files still open.
            self.tell(rs.SumUsed(HeaderDigest(hd), digest("late"), None, ()))
            return
        for node in command.survivors:
            total += words_of(self.spool[hd, node], header.w)
            expected += self.nodes[node].inputs[hd].astype(object)
        command.plan.stream().apply(total, 0)
        values = tuple(int(x) for x in signed_view(total))
        assert values == tuple(int(x) for x in expected)
        self.sums.append((self.state.position + 1, command.survivors, values))
        name = f"{header.kind.value} {self.state.position + 1}"
        model = rs.ModelRef(digest(f"object {name}"), digest(f"model {name}"))
        made = None if header.kind.value == "evaluate" else model
        pooled = (("auroc", 0.5),) if made is None else ()
        sum_sha256 = Sha256(hashlib.sha256(total.tobytes()).digest())
        self.tell(rs.SumUsed(HeaderDigest(hd), sum_sha256, made, pooled))

    # --- hospitals ---------------------------------------------------------------------------

    def _deliver(self, node: NodeId, step: Any) -> None:  # noqa: ANN401 - any step
        if node not in self.online:
            return
        self.sent.append((node, step))
        sim = self.nodes[node]
        match step:
            case StudyOffer():
                self._decide(node)
            case wire.BeginEpoch():
                self._say(node, sim.hear(self._epoch(step)))
            case RoundStart():
                event = nd.HeaderReceived(step.header, step.header.model_sha256)
                if sim.state.session is None or sim.state.session.open is None:
                    self._say(node, sim.hear(event))
            case ReleaseReceipt():
                self.hear(node, step)
            case RunEnded() | Refused():
                pass
            case _:
                self._say(node, sim.hear(step))
                if isinstance(step, Roster | KemForward | RoundResult):
                    self._be_ready(node)

    def _epoch(self, step: wire.BeginEpoch) -> nd.BeginEpoch:
        terms = EpochTerms(
            FEDERATION, self.study.id, step.epoch, config_hash(self.study), self.setting.suite
        )
        expect = session_expectation(self.study, len(self.ids))
        return nd.BeginEpoch(terms, expect, step.not_before, step.not_after)

    def decide(self, place: int, objections: tuple[Objection, ...] = ()) -> None:
        """A hospital makes up its mind."""
        self.says[self.at(place)] = objections
        self._decide(self.at(place))

    def _decide(self, node: NodeId) -> None:
        objections = self.says[node]
        if objections is not None:
            verdict = Verdict.REFUSED if objections else Verdict.ACCEPTED
            self.hear(node, StudyDecision(RUN, config_hash(self.study), verdict, objections))

    def _be_ready(self, node: NodeId) -> None:
        session = self.nodes[node].state.session
        if session is not None and session.open is None and self.nodes[node].state.setup is None:
            self._say(node, self.nodes[node].hear(nd.MakeReady()))

    def _say(self, node: NodeId, said: Iterable[Any]) -> None:
        for message in said:
            if node not in self.online or (node, type(message)) in self.mute:
                continue
            if isinstance(message, Uploaded):
                self.spool[message.end.hd, node] = message.body
                ydig = Sha256(hashlib.sha256(message.body).digest())
                self.tell(rs.UploadComplete(node, message.end, ydig, len(message.body)))
            else:
                self.hear(node, message)

    def hear(self, node: NodeId, message: Any) -> None:  # noqa: ANN401 - any step
        """A message of a hospital arrives."""
        self.tell(rs.FromNode(node, message))


def _key(node: NodeId) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(node.encode()).digest())


def stored(state: rs.RunState) -> rs.RunState:
    """Return what of a state facts have to give again: not what nodes and timers say anew."""
    opened = state.round is not None and state.round.phase is not RoundPhase.COLLECTING
    passing = state.phase in (RunPhase.RELEASING, RunPhase.SETTING_UP)
    return replace(
        state,
        round=state.round if opened else None,
        phase=RunPhase.RUNNING if passing else state.phase,
    )
