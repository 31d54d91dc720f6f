"""What a hospital really put into a round: a copy of its input, kept by the simulation.

With noise nobody can compute a round's sum again from names; so each input that is made is
copied as it is written, and the copies of a round's survivors are added up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.secagg.header import Header
from common.secagg.keys import CoefficientSeed
from common.secagg.ring import Words, word_dtype
from hospital_node.contribution import WordSource
from hospital_node.personal_state import OwnTensors
from hospital_node.work import Work
from researcher.bench_node import WrappedWork


@dataclass
class Copy:
    """An input as it is written; see `WordSource`."""

    source: WordSource
    parts: list[Words] = field(default_factory=list)

    @property
    def words(self) -> int:
        """See `WordSource`."""
        return self.source.words

    def fill(self, out: Words, word_offset: int) -> None:
        """See `WordSource`."""
        self.source.fill(out, word_offset)
        self.parts.append(out.copy())


class CopyingWork(WrappedWork):
    """The real work; `begin` and `made` hear of every input of a header."""

    def __init__(
        self, work: Work, begin: Callable[[Header], None], made: Callable[[Header, Copy], None]
    ) -> None:
        super().__init__(work)
        self._begin = begin
        self._made = made

    def make(
        self,
        header: Header,
        model: Path | None,
        seed: CoefficientSeed,
        abandoned: Callable[[], bool],
        own: OwnTensors,
    ) -> WordSource:
        """See `Work`."""
        self._begin(header)
        copy = Copy(self._work.make(header, model, seed, abandoned, own))
        self._made(header, copy)
        return copy


def copied_sum(copies: Iterable[Copy], ring_bits: int) -> bytes:
    """Return SHA-256 of the ring sum of what was put in."""
    total = sum((np.concatenate(copy.parts).astype(np.int64) for copy in copies), start=np.int64(0))
    return hashlib.sha256(np.asarray(total).astype(word_dtype(ring_bits)).tobytes()).digest()
