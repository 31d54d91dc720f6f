"""What goes wrong in one simulated run: a list of faults, made from a seed, and its text.

A plan is data, so that one which found a defect can be made smaller, kept in a file and
run again for ever.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from common.failpoints import POINTS

COORDINATOR: Final = "coordinator"
SITES: Final = ("cleveland", "hungarian", "switzerland", "va")


def twin_of(site: str) -> str:
    """Return what the second process with a hospital's certificate is called."""
    return f"{site}-twin"


DEADLINE_S: Final = 20.0
"""The simulated study's round deadline."""


CHUNK_BYTES: Final = 4096
"""Of uploads and downloads, in place of a MiB: what is done with them is the same."""
SMALL: Final = 200
BIG: Final = 1_500
"""Two chunks of an upload, two pieces of a download."""


class Act(StrEnum):
    """What a fault does."""

    CRASH = "crash"
    """The process dies at its reach number `at` of the place `point`, back `seconds` later."""
    ERROR = "error"
    """That place fails with ENOSPC, at that reach and the next `times - 1`."""
    LOSE = "lose"
    """The message that passes that place is lost, and its connection breaks."""
    CUT = "cut"
    """The hospital's connection breaks `at` seconds after the submission."""
    SILENCE = "silence"
    """From `at` on nothing passes between a hospital and the coordinator for `seconds`."""
    JUMP = "jump"
    """At `at` the process' clock of the day jumps by `seconds`, for a while."""
    STOP = "stop"
    """At `at` the process is told to stop in order; it is started `seconds` later."""
    POWER = "power"
    """At `at` everything dies; it is started `seconds` later."""
    REPLAY = "replay"
    """At `at` all that ever passed between a hospital and the coordinator passes once more."""
    FORGET = "forget"
    """At `at` a hospital dies and loses its sessions' keys; back `seconds` later."""
    TWIN = "twin"
    """At `at` a second process with the hospital's certificate starts, for `seconds`."""
    LEAP = "leap"
    """At `at` a clock of the day leaps beyond every certificate, for `seconds`."""


NONE: Final = "none"
NOISES: Final = (NONE, "hospital", "patient-distributed")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong; see `Act`."""

    act: Act
    who: str
    at: float
    seconds: float = 0.0
    point: str = ""
    times: int = 1

    def __str__(self) -> str:
        where = f" at {self.point} #{self.at:g}" if self.point else f" after {self.at:.2f} s"
        return f"{self.who}: {self.act}{where}, {self.seconds:g} s, {self.times}x"


@dataclass(frozen=True, slots=True)
class Plan:
    """A simulated run: how messages travel, and what goes wrong."""

    seed: int
    """Of the messages' delays."""
    faults: tuple[Fault, ...]
    slowest_s: float = 0.05
    """The longest that a message travels; each takes its own time up to it.

    Less than a second. A step of the key exchange waits `setup` (2 s here) and the survivors'
    signatures a tenth of the deadline (2 s as well) for a message and its answer: over a road
    that is slower than this both always end first, and no run gets anywhere.
    """
    copies: int = 1
    """How often each message arrives."""
    size: int = SMALL
    """Parameters of the model."""
    dp: str = NONE
    """The study's mode of differential privacy, one of `NOISES`."""
    jitter: float = 0.05
    """What the hospitals draw for their pauses between two tries, 0 to 1."""
    rounds: int = 3
    """Of the study."""
    setup_s: float = 2.0
    """How long an epoch's keys may take."""
    cancel_s: float = 0.0
    """When a person ends the run and submits the study once more; 0: nobody does."""

    def as_json(self) -> dict[str, Any]:
        """Return the plan as it is kept."""
        return asdict(self)

    @staticmethod
    def of_json(tree: dict[str, Any]) -> Plan:
        """Return a plan that was kept."""
        faults = tuple(Fault(**{**one, "act": Act(one["act"])}) for one in tree["faults"])
        return Plan(**{**tree, "faults": faults})


_LEDGER: Final = ("node.ledger", "node.anchor")
_WHERE: Final = {
    True: sorted(point for point in POINTS if point.startswith("coordinator.")),
    False: sorted(
        point for point in POINTS if point.startswith("node.") and not point.startswith(_LEDGER)
    ),
}
_CHARGES: Final = sorted(point for point in POINTS if point.startswith("node.ledger"))
_SENDS: Final = ("node.upload", "node.receipt")
"""Where a hospital's update is out and its receipt is not in; struck more often than others."""
_SETUP_S: Final = 10.0
_GATHER_S: Final = 2.0
_HOPS: Final = 6
"""About how many times the slowest message a round takes."""
_CANCELLED: Final = 0.2
_WEIGHTS: Final = (8, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1)


def draw(seed: int) -> Plan:
    """Return the plan of a seed."""
    rng = random.Random(seed)  # noqa: S311 - a schedule, no secret
    dp = rng.choice((NONE, NONE, NONE, *NOISES[1:]))
    slowest = rng.choice((0.0, 0.05, 0.05, 0.3, 0.8))
    copies, size = rng.choice((1, 1, 1, 2)), rng.choice((SMALL,) * 7 + (BIG,))
    rounds = rng.choice((2, 2, 2, 3))
    until_s = _GATHER_S + 0.5 + _HOPS * rounds * slowest
    count = rng.choice((1, 1, 2, 2, 3, 4, 6))
    faults = tuple(_fault(rng, until_s, noised=dp != NONE) for _ in range(count))
    # With noise the first run may have spent what the study has.
    cancel_s = rng.uniform(0.1, until_s) if dp == NONE and rng.random() < _CANCELLED else 0.0
    return Plan(
        seed,
        _enough_left(faults),
        slowest,
        copies,
        size,
        dp,
        rounds=rounds,
        setup_s=_SETUP_S,
        cancel_s=cancel_s,
    )


def _enough_left(faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """Leave out what would keep two hospitals away for good, for two are too few to go on.

    A twin may have spent its hospital's budget.
    """
    twins = [fault for fault in faults if fault.act is Act.TWIN]
    return tuple(fault for fault in faults if fault not in twins[1:])


def _fault(rng: random.Random, until_s: float, *, noised: bool) -> Fault:
    """Return a fault that comes about in the run's first `until_s` seconds, or at a place."""
    who = rng.choice((COORDINATOR, *SITES))
    act = rng.choices(list(Act), weights=_WEIGHTS)[0]
    seconds = rng.choice((0.0, 0.0, rng.uniform(0, 3), rng.uniform(3, 2 * DEADLINE_S)))
    when = rng.uniform(0.0, until_s)
    points = _WHERE[who == COORDINATOR]
    if who != COORDINATOR:
        points = [*points, *_SENDS * 4, *_CHARGES * (3 if noised else 0)]
    match act:
        case Act.CRASH:
            return Fault(act, who, _reach(rng), seconds, rng.choice(points))
        case Act.ERROR:
            disk = [point for point in points if point.endswith(("before_write", "before_fsync"))]
            return Fault(act, who, _reach(rng), 0.0, rng.choice(disk), rng.choice((1, 1, 2, 5)))
        case Act.LOSE:
            point = "coordinator.send" if who == COORDINATOR else "node.send"
            return Fault(act, who, _reach(rng), 0.0, point)
        case Act.CUT | Act.SILENCE | Act.REPLAY | Act.FORGET | Act.TWIN:
            return Fault(act, rng.choice(SITES), when, seconds)
        case Act.JUMP:
            hours = rng.choice((-3.0, -1.0, 1.0, 3.0))
            return Fault(act, who, when, hours * 3600)
        case _:
            return Fault(act, who, when, seconds)


def _reach(rng: random.Random) -> int:
    return rng.choice((1, 1, 2, 3, rng.randint(1, 12), rng.randint(1, 40)))
