"""Bytes that flip, ends that are cut off, and what became of each (F39)."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from common.errors import FedError
from tests.faults.budget import trials
from tests.faults.record import record_drawn


def flips() -> int:
    """How many bytes of each kind of file flip, one after the other."""
    return trials(change=12, nightly=200, release=400)


def cuts() -> int:
    """How often the end of each kind of file is cut off."""
    return trials(change=3, nightly=20, release=40)


def damages(good: bytes, rng: random.Random) -> Iterator[bytes]:
    """Yield a file's bytes with one of them changed, and without their end."""
    for _ in range(flips()):
        at = rng.randrange(len(good))
        yield good[:at] + bytes([good[at] ^ (1 + rng.randrange(255))]) + good[at + 1 :]
    for _ in range(cuts()):
        yield good[: rng.randrange(len(good))]


@dataclass
class Tally:
    """What became of the damages, by the kind of file."""

    refused: Counter[str] = field(default_factory=Counter)
    harmless: Counter[str] = field(default_factory=Counter)
    missed: list[object] = field(default_factory=list)

    def check(self, **figures: float) -> None:
        """Demand that none was missed, and write down how many there were."""
        total = self.refused.total() + self.harmless.total()
        record_drawn(
            "F39",
            trials=total + len(self.missed),
            failures=len(self.missed),
            refused=self.refused.total(),
            without_effect=self.harmless.total(),
            kinds_of_files=len(self.refused),
            **figures,
        )
        assert self.missed == []


def refused(work: Callable[[], object]) -> FedError | None:
    try:
        work()
    except FedError as failure:
        return failure
    return None


def same(before: bytes, after: bytes) -> bool:
    """Whether a flipped byte changed nothing that is read: white space between two values."""
    try:
        return bool(json.loads(before) == json.loads(after))
    except ValueError:
        return False
