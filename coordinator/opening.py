"""Opens a round's sum from the spools, block by block (protocol, section 4.7).

    sum of v_i = sum over S of [ y_i - PRG(b_i) ] - sum of sign(i,j) PRG(e_ij)   mod 2^w

All uploads of the survivors are read side by side, one block of 1 MiB at a time, added,
and freed of the masks that remain; no more than a few blocks are ever in memory, whatever
the number of hospitals or the size of the model. Blocks go to a `Sink` in order, which
for training makes the next model in the same pass. Hashing and writing, which leave the
interpreter to others, run one block behind on a second thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from common.errors import Refusal, RoundError, StateError
from common.ids import Sha256
from common.secagg.masking import MaskStream, OpeningPlan
from common.secagg.ring import (
    SignedWords,
    Words,
    check_sum_range,
    signed_view,
    word_bytes,
    word_dtype,
)
from coordinator.spool import SpoolFile

BLOCK_BYTES: Final = 1 << 20
_MASK_ALIGN: Final = 16
"""Keystreams start at multiples of 16 bytes (section 4.3)."""


Later = Callable[[], None]
"""The rest of the work on a block: hashing and writing. Run in order, on another thread."""


class Sink(Protocol):
    """Takes the opened words in order; see `coordinator.aggregate`."""

    def take(self, start: int, words: SignedWords) -> Later | None:
        """Take the words from index `start` on; the array is reused after the answer."""
        ...


@dataclass(frozen=True, slots=True)
class Opening:
    """What is opened: the survivors' spools, the seeds, the vector's shape and bound.

    `words` is `d`; `bound` is `|S| * M`, beyond which no honest sum lies. `stopping`, asked
    between blocks, says that nobody waits for the sum: it is opened again after a restart.
    """

    spools: Sequence[SpoolFile]
    plan: OpeningPlan
    words: int
    bound: int
    stopping: Callable[[], bool] = lambda: False


class _Blocks:
    """Opens any range of words; keeps the buffers and the ciphers between calls."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._width = word_bytes(opening.plan.ring_bits)
        dtype = word_dtype(opening.plan.ring_bits)
        self.size = BLOCK_BYTES // self._width
        # Two, in turn: one is being hashed while the next block is opened into the other.
        self._totals: tuple[Words, Words] = (np.empty(self.size, dtype), np.empty(self.size, dtype))
        self._turn = 0
        self._part: Words = np.empty(self.size, dtype)
        self._masks: MaskStream = opening.plan.stream()
        self._read = [hashlib.sha256() for _ in opening.spools]

    def open(self, start: int, count: int) -> Words:
        """Return `count` opened words from `start`, valid until the call after the next.

        Raises:
            Refusal: SUM_RANGE, a word lies outside the bound.
            RoundError: RUN_CANCELLED, the process stops.
        """
        if self._opening.stopping():
            raise RoundError("RUN_CANCELLED", "the coordinator stops while a sum is opened")
        self._turn = 1 - self._turn
        total, part = self._totals[self._turn][:count], self._part[:count]
        offset = start * self._width
        first, *others = self._opening.spools
        first.read_into(total.data.cast("B"), offset)
        self._read[0].update(total.data)
        for place, spool in enumerate(others, 1):
            spool.read_into(part.data.cast("B"), offset)
            self._read[place].update(part.data)
            np.add(total, part, out=total)
        self._masks.apply(total, start)
        check_sum_range(total, self._opening.bound)
        return total

    def check_read(self) -> None:
        """Hold what was read, all of it, against what was received: a disk may lie.

        Raises:
            StateError: STATE_DAMAGED, naming the file.
        """
        for spool, read in zip(self._opening.spools, self._read, strict=True):
            if read.digest() != spool.digest:
                raise StateError("STATE_DAMAGED", f"{spool.path} is not what was received")


def open_tail(opening: Opening, first_word: int) -> tuple[int, ...]:
    """Return the opened words from `first_word` to the end: weight and metric words.

    Raises:
        Refusal: SUM_RANGE.
    """
    blocks = _Blocks(opening)
    align = _MASK_ALIGN // word_bytes(opening.plan.ring_bits)
    start = first_word - first_word % align
    out: list[int] = []
    for at in range(start, opening.words, blocks.size):
        out += signed_view(blocks.open(at, min(blocks.size, opening.words - at))).tolist()
    return tuple(out[first_word - start :])


def open_sum(opening: Opening, sink: Sink) -> Sha256:
    """Open every word, hand the blocks to `sink`, return the SHA-256 of the words.

    Raises:
        Refusal: SUM_RANGE, an input was corrupt or a mask did not cancel; what the sink
            received must then be thrown away. NOT_ENOUGH: no survivor.
        StateError: STATE_DAMAGED, a spooled upload changed; the same holds.
    """
    if not opening.spools:
        raise Refusal("NOT_ENOUGH", "no upload survived")
    blocks = _Blocks(opening)
    digest = hashlib.sha256()
    behind: Future[None] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as hasher:
        for start in range(0, opening.words, blocks.size):
            words = blocks.open(start, min(blocks.size, opening.words - start))
            later = sink.take(start, signed_view(words))
            if behind is not None:
                behind.result()
            behind = hasher.submit(_hash_and_write, digest, words, later)
        if behind is not None:
            behind.result()
    blocks.check_read()
    return Sha256(digest.digest())


def _hash_and_write(digest: hashlib._Hash, words: Words, later: Later | None) -> None:
    digest.update(words.data)
    if later is not None:
        later()


class Collect:
    """A sink that keeps the whole opened vector: for small rounds only."""

    def __init__(self, words: int) -> None:
        self.words: NDArray[np.int64] = np.empty(words, np.int64)

    def take(self, start: int, words: SignedWords) -> Later | None:
        """See `Sink`."""
        self.words[start : start + words.size] = words
        return None
