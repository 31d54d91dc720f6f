"""Invariants 3, 4, 5 and 16 under random attacks by the coordinator and c hospitals.

The adversary owns the network and every key of up to c hospitals.

A script is a list of `Move`s, executed by `play` on a fresh `World`: rounds opened for
any members with the same or different headers, any sets proposed to anybody, whatever
certificates the heard signatures allow, recovery requests, results, time-outs,
replays of any earlier message, and crashes at any command. Moves that the nodes
refuse change nothing; `World.check` judges what the adversary holds after each move.

The same property is then run against four machines that were broken on purpose, and
has to catch each of them: the test can fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.ids import HeaderDigest, NodeId
from common.secagg import node as machine
from common.secagg import node_round, params
from common.secagg.header import Header
from common.secagg.messages import Certificate, Digests, Propose
from common.secagg.node_state import LiveSession, NodeState, OpenRound
from common.secagg.rerun import RerunMemory
from tests.properties.adversary import BreachError, World, cast
from tests.properties.profile import bounded

CASTS = (
    (3, 0, ()),
    (3, 1, (2,)),
    (4, 1, (0,)),
    (5, 1, (2,)),
    (5, 1, (4,)),
    (6, 1, (3,)),
    (7, 2, (1, 5)),
    (8, 2, (0, 7)),
)


class Kind(Enum):
    """What a move does; see `play`."""

    ROUND = "ready, header and input for all targets"
    READY = "a new nonce"
    START = "a header to the targets, inputs not made"
    INPUT = "inputs of the targets become final"
    PROPOSE = "a set to the targets"
    CERTIFY = "a certificate over a set to the targets"
    RECOVER = "shares of all other members asked from the targets"
    SQUEEZE = "propose to the targets, certify and recover: from them, or from everybody"
    EQUIVOCATE = "squeeze one set, then another from everybody"
    RESULT = "the round is declared over"
    TIMEOUT = "the node's own limit"
    RESTART = "the targets crash and repeat what they said last"
    FUSE = "the targets' next handling crashes at a command"
    REPLAY = "an old message again"


@dataclass(frozen=True, slots=True)
class Move:
    """One step; every number is taken modulo what there is to choose from."""

    kind: Kind
    which: int = -1
    """Header or history entry, from the end."""
    without: frozenset[int] = frozenset()
    """Places left out of U or S."""
    targets: int = -1
    """Bit mask over the honest nodes; -1 is everybody."""
    detail: int = 0
    """Variant of a header, round step, digest variant, or command to crash at."""


BUSY = (Kind.ROUND, Kind.SQUEEZE, Kind.EQUIVOCATE, Kind.PROPOSE, Kind.CERTIFY, Kind.RECOVER)
KINDS = st.one_of(st.sampled_from(BUSY), st.sampled_from(Kind))
PLACE = st.integers(0, 7)
WITHOUT = st.one_of(
    st.just(frozenset[int]()), st.frozensets(PLACE, max_size=1), st.frozensets(PLACE, max_size=3)
)
MOVES = st.builds(
    Move,
    kind=KINDS,
    which=st.sampled_from([-1, -1, -1, -2, -3, 7]),
    without=WITHOUT,
    targets=st.one_of(st.just(-1), st.integers(1, 255)),
    detail=st.sampled_from([0, 0, 0, 1, 2, 3]),
)
OPENINGS = st.builds(
    Move,
    kind=st.just(Kind.ROUND),
    without=st.frozensets(PLACE, max_size=1),
    detail=st.sampled_from([0, 0, 0, 3]),
)
EPISODES = st.builds(
    lambda opening, moves: [opening, *moves], OPENINGS, st.lists(MOVES, min_size=1, max_size=5)
)
SCRIPTS = st.builds(
    lambda cast_, episodes: (cast_, [move for episode in episodes for move in episode]),
    st.sampled_from(CASTS),
    st.lists(EPISODES, min_size=1, max_size=4),
)

Script = tuple[tuple[int, int, tuple[int, ...]], list[Move]]


class Attack:
    """Executes moves on a world."""

    def __init__(self, script: Script, *, hybrid: bool = False) -> None:
        (n, c, corrupt), self.moves = script
        self.world = World(cast(n, c, corrupt, hybrid=hybrid))
        self.headers: list[HeaderDigest] = []
        self.fuses: dict[NodeId, int] = {}
        self.r = 1
        self.opened = 0

    def play(self) -> World:
        """Play all moves; check after each."""
        for move in self.moves:
            self.step(move)
            self.world.check()
        return self.world

    def targets(self, move: Move) -> list[NodeId]:
        honest = self.world.cast.honest
        chosen = [i for place, i in enumerate(honest) if move.targets >> place & 1]
        return chosen or [honest[move.targets % len(honest)]]

    def chosen(self, ids: tuple[NodeId, ...], move: Move) -> list[NodeId]:
        places = {place % len(ids) for place in move.without}
        return [i for place, i in enumerate(ids) if place not in places]

    def header(self, move: Move) -> HeaderDigest:
        return self.headers[move.which % len(self.headers)]

    def deliver(self, node: NodeId, event: machine.NodeEvent) -> None:
        self.world.deliver(node, event, self.fuses.pop(node, None))

    def step(self, move: Move) -> None:  # noqa: C901 - one case a kind
        targets = self.targets(move)
        match move.kind:
            case Kind.READY:
                self.ready(targets)
            case Kind.ROUND:
                self.whole_round(move, targets)
            case Kind.START:
                self.start(move, targets)
            case Kind.INPUT:
                self.input(self.header(move), targets)
            case Kind.PROPOSE:
                self.propose(move, targets)
            case Kind.CERTIFY:
                self.certify(move, targets)
            case Kind.RECOVER:
                self.recover(move, targets)
            case Kind.SQUEEZE:
                self.squeeze(move, targets)
            case Kind.EQUIVOCATE:
                self.equivocate(move, targets)
            case Kind.RESULT:
                self.each(targets, self.world.result(self.header(move), self.r))
            case Kind.TIMEOUT:
                self.each(targets, machine.LocalTimeout(self.header(move)))
            case Kind.RESTART:
                for i in targets:
                    self.world.crash(i)
                    self.deliver(i, machine.Restarted())
            case Kind.FUSE:
                self.fuses |= dict.fromkeys(targets, move.detail)
            case Kind.REPLAY:
                self.replay(move, targets)

    def whole_round(self, move: Move, targets: list[NodeId]) -> None:
        if move.detail == 2:  # skip a round: nodes take the number from a result
            self.r += 1
            self.each(self.world.cast.honest, self.world.result(HeaderDigest(bytes(32)), self.r))
        self.ready(self.world.cast.honest)
        self.input(self.start(move, targets), targets)
        self.r += 1

    def equivocate(self, move: Move, targets: list[NodeId]) -> None:
        self.squeeze(move, targets[:-1] if move.detail == 2 else targets)
        other = frozenset({max(move.without, default=0) + 1})
        self.squeeze(replace(move, without=other, detail=0), list(self.world.cast.honest))

    def each(self, targets: Iterable[NodeId], event: machine.NodeEvent) -> None:
        for i in targets:
            self.deliver(i, event)

    def ready(self, targets: Iterable[NodeId]) -> None:
        self.each(targets, machine.MakeReady())

    def start(self, move: Move, targets: list[NodeId]) -> HeaderDigest:
        """Detail 1: two variants of the header to two halves; 3: a larger s_min."""
        members = self.chosen(self.world.cast.ids, move) or self.world.cast.ids
        model = len(self.headers) % 2 if move.detail > 1 else 0
        hd = self.world.header(members, r=self.r, model=model, extra_s_min=move.detail // 3)
        self.headers.append(hd)
        halves = [(hd, targets)]
        if move.detail == 1:
            other = self.world.header(members, r=self.r, model=model, variant=1)
            self.headers.append(other)
            halves = [(hd, targets[::2]), (other, targets[1::2])]
        for digest, half in halves:
            header = self.world.seen[digest].header
            self.each(half, machine.HeaderReceived(header, header.model_sha256))
        return hd

    def input(self, hd: HeaderDigest, targets: Iterable[NodeId]) -> None:
        for i in targets:
            session = self.world.states[i].session
            actual = session.open.hd if session and session.open else hd
            self.deliver(i, machine.InputFinal(actual, self.world.ydig(actual, i)))

    def digests(self, move: Move) -> Digests:
        hd = self.header(move)
        ids = self.world.seen[hd].header.ids
        return self.world.digests(hd, self.chosen(ids, move), variant=move.detail)

    def propose(self, move: Move, targets: list[NodeId]) -> None:
        self.each(targets, Propose(self.header(move), self.digests(move)))

    def certify(self, move: Move, targets: list[NodeId]) -> None:
        self.each(targets, self.world.certificate(self.header(move), self.digests(move)))

    def recover(self, move: Move, targets: list[NodeId]) -> None:
        digests = self.digests(move)
        for i in targets:
            silent = [j for j, _ in digests if j != i and j not in self.world.cast.corrupt]
            self.deliver(i, self.world.recover_request(self.header(move), digests, i, silent))

    def squeeze(self, move: Move, targets: list[NodeId]) -> None:
        self.propose(move, targets)
        heard = list(self.world.cast.honest) if move.detail > 1 else targets
        self.certify(move, heard)
        self.recover(move, heard)

    def replay(self, move: Move, targets: list[NodeId]) -> None:
        node, event = self.world.history[move.which % len(self.world.history)]
        if move.detail == 0:
            self.deliver(node, event)
        else:
            self.each(targets, event)


@pytest.mark.fault("F69")
@pytest.mark.fault("F70")
@pytest.mark.fault("F71")
@given(SCRIPTS)
@bounded(400)
def test_invariants_3_4_5_16_hold_against_every_script(script: Script) -> None:
    Attack(script).play()


@given(SCRIPTS)
@bounded(60)
def test_the_hybrid_suite_holds_against_the_same_scripts(script: Script) -> None:
    Attack(script, hybrid=True).play()


def test_the_scripts_get_far_enough_to_mean_something() -> None:
    reached: Counter[str] = Counter()

    @given(SCRIPTS)
    @bounded(150)
    def run(script: Script) -> None:
        world = Attack(script).play()
        for known in world.seen.values():
            reached["signed"] += any(known.sigs.values())
            reached["released"] += bool(known.b)
            reached["recovered"] += any(len(points) > 1 for points in known.shares.values())
            reached["opened"] += bool(list(world.open_parts(known)))
        reached.update(world.refusals)

    run()
    wanted = {"signed", "released", "recovered", "opened", "SET_CONFLICT", "RERUN", "CLOSED"}
    wanted |= {"CERT_QUORUM", "NOT_IN_SET", "SET_SMALL", "RELEASE_OUTSIDE", "DIGEST"}
    assert {name for name in wanted if reached[name] < 3} == set(), reached


# --- machines broken on purpose ----------------------------------------------------------


def caught(examples: int) -> str:
    """Return the breach that the property finds within that many scripts, or fail."""

    @given(SCRIPTS)
    @settings(bounded(examples, shrink=False), report_multiple_bugs=False)
    def attack(script: Script) -> None:
        Attack(script).play()

    with pytest.raises(BreachError) as breach:
        attack()
    return str(breach.value)


def test_a_smaller_quorum_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_small(n: int, c: int) -> int:
        return (n + c) // 2

    monkeypatch.setattr(params, "quorum", too_small)
    assert caught(1500)


def test_a_machine_without_the_one_set_rule_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    bind: Callable[[NodeState, OpenRound, Digests, NodeId], NodeState] = node_round._bind

    def forgetful(state: NodeState, opened: OpenRound, digests: Digests, own: NodeId) -> NodeState:
        fresh = replace(state, rerun=RerunMemory())
        return bind(fresh, replace(opened, accepted=None), digests, own)

    monkeypatch.setattr(node_round, "_bind", forgetful)
    assert "two statements" in caught(1500)


def test_a_certificate_that_does_not_bind_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = node_round._accept

    def unbinding(
        state: NodeState, session: LiveSession, opened: OpenRound, cert: Certificate, own: NodeId
    ) -> tuple[NodeState, OpenRound]:
        _, released = accept(state, session, opened, cert, own)
        return state, released

    monkeypatch.setattr(node_round, "_accept", unbinding)
    assert "bound to two sets" in caught(1500)


def test_a_machine_without_rule_10_4_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def anything(self: RerunMemory, header: Header, survivors: Iterable[NodeId]) -> None:
        """Allow every set for every model."""

    monkeypatch.setattr(RerunMemory, "check_set", anything)
    assert "isolate" in caught(1500)
