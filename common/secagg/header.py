"""The round header: every number of a round, hashed into `hd` (section 4.2).

All masks, shares and signatures of a round are bound to `hd`. Whoever changes one
item at one node makes that node's masks cancel with nobody's. `Header.check_form`
judges what can be seen without knowing the session; the node's machine compares each
item with its own session, study and policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final

from common.encoding import MAX_INTEGER, Item, Label, hash_label
from common.errors import Refusal
from common.ids import (
    DIGEST_BYTES,
    ConfigHash,
    HeaderDigest,
    NodeId,
    RoundNo,
    SessionId,
    Sha256,
)
from common.secagg.dp import (
    NO_DP,
    DpMode,
    DpTerms,
    check_terms,
    codes_ranges,
    sharers,
    word_bound,
)
from common.secagg.params import SecAggParams
from common.secagg.ring import RING_BITS

PROTOCOL_VERSION: Final = 1
NONCE_BYTES: Final = 32
MAX_WORDS: Final = 2**32
EXACT_FLOAT_BOUND: Final = 2**52
"""Largest `B`: float64 holds every integer up to it and the halves between."""

STOCHASTIC_BELOW: Final = 2**19
"""With fewer levels than this, rounding is stochastic (7.2)."""


class RoundKind(StrEnum):
    """What a round adds up."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    STATISTICS = "statistics"
    VOTE = "vote"


class Rounding(StrEnum):
    """How a scaled value becomes an integer."""

    EVEN = "even"
    STOCHASTIC = "stochastic"


def quant_bound(n: int, ring_bits: int) -> int:
    """Return `B`: the largest quantised value with `n` members (7.2).

    Two spare bits stay, `n*B < 2^(w-3)`, by which a mask left in a sum is seen; at
    w = 64 float64 sets the limit.

    Raises:
        Refusal: OVERFLOW_BOUND, not one level is left.
    """
    bound = ((1 << (ring_bits - 1)) - 1) // (4 * n)
    if bound < 1:
        raise Refusal("OVERFLOW_BOUND", f"a ring of {ring_bits} bits is too small for n={n}")
    return min(bound, EXACT_FLOAT_BOUND)


def sum_bound(survivors: int, bound: int) -> int:
    """Return the largest honest word of an opened sum, `|S| * M` (4.7)."""
    return survivors * bound


def default_rounding(n: int, ring_bits: int) -> Rounding:
    """Return the rounding of 7.2: stochastic on few levels (and always at w = 16)."""
    coarse = quant_bound(n, ring_bits) < STOCHASTIC_BELOW
    return Rounding.STOCHASTIC if coarse else Rounding.EVEN


@dataclass(frozen=True, slots=True)
class Header:
    """Every item of section 4.2, in its order.

    `members` are (id, fresh nonce), ids strictly increasing by their bytes. `ranges`
    are `R_1 .. R_L`. `deadline_ms` is a duration.
    """

    session_id: SessionId
    r: RoundNo
    kind: RoundKind
    model_sha256: Sha256
    layout_sha256: Sha256
    config_hash: ConfigHash
    members: tuple[tuple[NodeId, bytes], ...]
    d: int
    w: int
    c: int
    q: int
    s_min: int
    t_h: int
    kappa: int
    ranges: tuple[float, ...]
    w_max: int
    rounding: Rounding
    deadline_ms: int
    dp: DpTerms = NO_DP
    group: int = 0
    version: int = PROTOCOL_VERSION

    @property
    def n(self) -> int:
        """Number of members of `U`."""
        return len(self.members)

    @property
    def ids(self) -> tuple[NodeId, ...]:
        """`U`, in order."""
        return tuple(node for node, _ in self.members)

    @property
    def params(self) -> SecAggParams:
        """The numbers that section 1 rules; `check` them against the policy."""
        return SecAggParams(
            n=self.n,
            c=self.c,
            q=self.q,
            s_min=self.s_min,
            t_h=self.t_h,
            kappa=self.kappa,
            ring_bits=self.w,
        )

    @property
    def bound(self) -> int:
        """`B` of this round."""
        return quant_bound(self.n, self.w)

    @property
    def word_bound(self) -> int:
        """`M`: the largest word of one honest hospital (7.2, 7.3)."""
        return self.bound if codes_ranges(self.dp.mode) else word_bound(self.dp)

    @property
    def honest(self) -> int:
        """`s_min - c`: the honest hospitals that every opened sum holds."""
        return self.s_min - self.c

    @property
    def sharers(self) -> int:
        """`h`: the hospitals whose noise the guarantee counts on (9.1)."""
        return sharers(self.dp.mode, self.honest)

    def nonce_of(self, node: NodeId) -> bytes | None:
        """Return the nonce the header carries for a node, None if it is not a member."""
        return next((nonce for member, nonce in self.members if member == node), None)

    def point_of(self, node: NodeId) -> int:
        """Return a member's Shamir point: its 1-based place in sorted `U`.

        Raises:
            ValueError: not a member.
        """
        return self.ids.index(node) + 1

    def digest(self) -> HeaderDigest:
        """Return `hd`.

        Raises:
            Refusal: BAD_MESSAGE, an item that has no encoding (see `common.encoding.enc`).
        """
        return HeaderDigest(hash_label(Label.HEADER, *self._items()))

    def _items(self) -> tuple[Item, ...]:
        members: list[Item] = []
        for node, nonce in self.members:
            members += (node, nonce)
        return (
            *(self.version, self.session_id, self.r, self.kind.value, self.group),
            *(self.model_sha256, self.layout_sha256, self.config_hash),
            *(self.n, *members),
            *(self.d, self.w, self.c, self.q, self.s_min, self.t_h, self.kappa),
            *(len(self.ranges), *map(float, self.ranges)),
            *(self.w_max, self.rounding.value),
            *(self.dp.mode.value, float(self.dp.z), float(self.dp.clip), self.dp.delta_int),
            *(float(self.dp.sigma_loc), self.dp.noise_cap, float(self.dp.p), self.dp.m_max),
            *((self.dp.steps,) if self.dp.mode is DpMode.PATIENT_LOCAL else ()),
            self.deadline_ms,
        )

    def check_form(self) -> None:
        """Refuse a header that no session could accept.

        1. version, lengths of digests and nonces   2. members strictly increasing
        3. integers within the encoding             4. vector, ring and ranges
        5. the numbers of section 1                 6. the privacy terms, unused ones zero

        Raises:
            Refusal: HEADER_FORM, or the name of the rule of section 1 or 7 it breaks.
        """
        if self.version != PROTOCOL_VERSION:
            raise Refusal("HEADER_FORM", f"protocol version {self.version}; this is version 1")
        digests = (self.session_id, self.model_sha256, self.layout_sha256, self.config_hash)
        if any(len(digest) != DIGEST_BYTES for digest in digests):
            raise Refusal("HEADER_FORM", "a digest does not have 32 bytes")
        self._check_members()
        self._check_integers()
        self._check_vector()
        self.params.check_rules()
        quant_bound(self.n, self.w)
        check_terms(self.dp, n=self.n, h=self.honest, d=self.d, w=self.w)

    def _check_members(self) -> None:
        names = [node.encode() for node in self.ids]
        if any(first >= second for first, second in pairwise(names)):
            raise Refusal("HEADER_FORM", "the members are not strictly increasing")
        if any(len(nonce) != NONCE_BYTES for _, nonce in self.members):
            raise Refusal("HEADER_FORM", "a member's nonce does not have 32 bytes")

    def _check_integers(self) -> None:
        integers = {
            "group": self.group,
            "W_max": self.w_max,
            "Delta_int": self.dp.delta_int,
            "T": self.dp.noise_cap,
            "m_max": self.dp.m_max,
            "steps": self.dp.steps,
            "deadline_ms": self.deadline_ms,
        }
        for name, value in integers.items():
            if not 0 <= value <= MAX_INTEGER:
                raise Refusal("HEADER_FORM", f"{name} lies outside 0 to 2^64 - 1")
        if self.r < 1:
            raise Refusal("HEADER_FORM", f"round number {self.r}; rounds count from 1")

    def _check_vector(self) -> None:
        if self.w not in RING_BITS:
            raise Refusal("HEADER_FORM", f"w={self.w} is not one of 16, 32, 64")
        if not 1 <= self.d <= MAX_WORDS:
            raise Refusal("HEADER_FORM", f"d={self.d} is not from 1 to 2^32")
        if not all(math.isfinite(scale) and scale > 0 for scale in self.ranges):
            raise Refusal("HEADER_FORM", "a range R_l is not a positive finite number")
        terms = (self.dp.z, self.dp.clip, self.dp.sigma_loc, self.dp.p)
        if not all(math.isfinite(term) and term >= 0 for term in terms):
            raise Refusal("HEADER_FORM", "a privacy term is negative or not finite")
