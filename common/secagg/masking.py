"""Masks on, masks off (sections 4.3 and 4.7).

    y_i = v_i + PRG(b_i) + sum_{j > i} PRG(e_ij) - sum_{j < i} PRG(e_ij)      mod 2^w

Added over the survivors, both ends of an edge inside S cancel: sign(i,j) = -sign(j,i).
What stays is PRG(b_i) of each survivor and sign(i,j) PRG(e_ij) for each edge that
leads out of S; the coordinator subtracts exactly those once their seeds are released.

A `MaskStream` adds a fixed list of signed keystreams to word arrays in place. It keeps
its ciphers positioned and owns one small buffer: consecutive chunks cost neither a new
key nor an allocation, and any chunk that starts at a multiple of 16 bytes stands alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np

from common.errors import InternalError
from common.ids import NodeId
from common.secagg.keys import EdgeSeed, SelfSeed
from common.secagg.prg import Keystream
from common.secagg.ring import Words, word_dtype

Sign: TypeAlias = Literal[1, -1]
SignedEdge: TypeAlias = tuple[EdgeSeed, Sign]

PIECE_BYTES: Final = 1 << 18
"""Keystream made at a time: with the words it goes to, it fits a core's L2 cache."""


def edge_sign(own: NodeId, other: NodeId) -> Sign:
    """Return `sign(i,j)`: +1 if own id is the smaller, -1 if it is the larger.

    Raises:
        InternalError: a node has no edge to itself.
    """
    if own == other:
        raise InternalError("a node has no edge to itself")
    return 1 if own.encode() < other.encode() else -1


@dataclass(frozen=True, slots=True)
class MaskPlan:
    """All masks of one node under one header; edges as (seed, sign(own, other))."""

    self_seed: SelfSeed
    edges: tuple[SignedEdge, ...]
    ring_bits: int

    def stream(self) -> MaskStream:
        """Return the stream that masks an upload, chunk by chunk."""
        return MaskStream(((self.self_seed, 1), *self.edges), self.ring_bits)


@dataclass(frozen=True, slots=True)
class OpeningPlan:
    """What opens a sum: self seeds of S, and (e_ij, sign(i,j)) for i in S, j in D."""

    self_seeds: tuple[SelfSeed, ...]
    dropped_edges: tuple[SignedEdge, ...]
    ring_bits: int

    def stream(self) -> MaskStream:
        """Return the stream that takes the remaining masks off the sum of uploads."""
        edges: list[tuple[EdgeSeed | SelfSeed, Sign]] = [(seed, -1) for seed in self.self_seeds]
        edges += [(seed, -1 if sign == 1 else 1) for seed, sign in self.dropped_edges]
        return MaskStream(edges, self.ring_bits)


class MaskStream:
    """Signed keystreams, added to chunks of words in place. Not thread-safe."""

    __slots__ = ("_buffer", "_dtype", "_terms")

    def __init__(self, terms: Sequence[tuple[EdgeSeed | SelfSeed, Sign]], ring_bits: int) -> None:
        self._dtype = word_dtype(ring_bits)
        self._terms = tuple(
            (Keystream.of_mask(seed, ring_bits), np.add if sign == 1 else np.subtract)
            for seed, sign in terms
        )
        self._buffer = np.empty(PIECE_BYTES // self._dtype.itemsize, self._dtype)

    def apply(self, words: Words, word_offset: int) -> None:
        """Add every mask to `words`, which stand at `word_offset` of the vector.

        `words`: contiguous, writable, of the ring's unsigned dtype.

        Raises:
            InternalError: another dtype, or an offset that neither goes on from the
                last call nor is a multiple of 16 bytes.
        """
        if words.dtype != self._dtype or not words.flags.c_contiguous:
            raise InternalError(f"masks are for contiguous {self._dtype} words")
        step = self._buffer.size
        for start in range(0, words.size, step):
            piece = words[start : start + step]
            mask = self._buffer[: piece.size]
            for keystream, combine in self._terms:
                keystream.words_into(mask, word_offset + start)
                combine(piece, mask, out=piece)
