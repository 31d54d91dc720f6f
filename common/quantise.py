"""Floats to ring words (protocol, sections 7.1 and 7.2).

    v = clamp(rint((clip(x, -R, R) * B) / R), -B, B)        float64, in this order

`x` is `u_i * delta_i`; `u_i = min(n_i, W_max) / W_max` is the hospital's weight, whose
word `rint(u_i * B)` follows the tensors, and the metric words follow it. The order of
operations is part of the protocol: another order may round otherwise, and then two
implementations would disagree about the same update. The way back is the coordinator's
(`coordinator.aggregate`).

Blocks of 64K values and reused buffers keep all passes in a core's cache.
A value that is not finite is refused before anything is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import InternalError, Refusal
from common.secagg.header import Header, Rounding
from common.secagg.keys import CoefficientSeed
from common.secagg.prg import Keystream
from common.secagg.ring import SignedWords, Words, signed_view, word_dtype
from common.vectors import ParameterSchema

BLOCK_WORDS: Final = 1 << 16
"""Values worked on at a time: 512 KiB of float64."""

_STREAM_ALIGN: Final = 2
_EXACT: Final = 2**50
_FULL: Final = 2.0**64

Values: TypeAlias = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Coding:
    """How values become words in one round; `round_seed` is `a_i`, for stochastic only."""

    bound: int
    ring_bits: int
    rounding: Rounding
    round_seed: CoefficientSeed | None = None

    @classmethod
    def of_header(cls, header: Header, round_seed: CoefficientSeed | None = None) -> Coding:
        """Return the coding of a round without DP."""
        return cls(header.bound, header.w, header.rounding, round_seed)


def limbs(value: NDArray[np.float64], reach: float, levels: int) -> NDArray[np.float64]:
    """Return numbers within +-`reach` as two words each, float64 [2 k]: all `high`, all `low`.

    `low` is what the rounding of `high`, of range `reach`, leaves over; with the range
    `reach` / B, B = `levels`, both together have a resolution of about `reach` / B^2.
    """
    high = np.rint(value * levels / reach) / levels * reach
    return np.concatenate([value, value - high])


def limb_ranges(reach: float, levels: int) -> tuple[float, float]:
    """Return R of `high` and `low` (section 7.1)."""
    return reach, reach / levels


def from_limbs(words: NDArray[np.int64], reach: float, levels: int) -> NDArray[np.float64]:
    """Return the sums of opened words, int64 [2 k], that hospitals made by `limbs`."""
    high, low = words.astype(np.float64).reshape(2, -1)
    return np.asarray(high * (reach / levels) + low * (reach / levels / levels), np.float64)


# --- weights ---------------------------------------------------------------------------


def size_class(count: int) -> int:
    """Return a sample count rounded down to a power of two; 0 stays 0."""
    return 1 << (count.bit_length() - 1) if count > 0 else 0


def weight(count: int, w_max: int) -> float:
    """Return `u_i = min(n_i, W_max) / W_max`, in (0, 1].

    Raises:
        InternalError: a count or `W_max` below 1; a site without rows takes no part.
    """
    if count < 1 or w_max < 1:
        raise InternalError("a weight needs a sample count and W_max of at least 1")
    return min(count, w_max) / w_max


def weight_word(u: float, bound: int) -> int:
    """Return `rint(u * B)`, ties to even, never stochastic."""
    return round(u * bound)


# --- quantising --------------------------------------------------------------------------


class Quantiser:
    """Turns blocks of values into words; owns its buffers. Not thread-safe."""

    __slots__ = ("_coding", "_float", "_random", "_signed", "_spare", "_stream")

    def __init__(self, coding: Coding) -> None:
        self._coding = coding
        self._signed = signed_view(np.empty(0, word_dtype(coding.ring_bits))).dtype
        self._float = np.empty(BLOCK_WORDS, np.float64)
        self._stream: Keystream | None = None
        if coding.rounding is Rounding.STOCHASTIC:
            if coding.round_seed is None:
                raise InternalError("stochastic rounding needs the node's seed a_i")
            self._stream = Keystream.of_rounding(coding.round_seed)
            # One word more: the keystream is read from even word offsets (16 bytes).
            self._random = np.empty(BLOCK_WORDS + 1, np.dtype("<u8"))
            self._spare = np.empty(BLOCK_WORDS, np.float64)

    def quantise(
        self,
        x: Values,
        scale: float,
        out: Words,
        *,
        u: float = 1.0,
        word_offset: int = 0,
    ) -> int:
        """Write `Q(u * x)` with range `scale` (R_l) to `out`, as two's complement words.

        `word_offset` is the place of `out[0]` in the whole vector: stochastic rounding
        takes its randomness by place, so that any chunk can be made again alone.
        Returns how many values were clipped to the range.

        Raises:
            Refusal: INPUT_NAN, a value is not finite; `out` may then be half written.
            InternalError: `x` and `out` differ in length, or a range that is not positive.
        """
        if x.shape != out.shape or not (math.isfinite(scale) and scale > 0):
            raise InternalError("values and words differ in length, or a range is not positive")
        words = out.view(self._signed)
        clipped = 0
        for start in range(0, x.size, BLOCK_WORDS):
            stop = start + BLOCK_WORDS
            clipped += self._block(x[start:stop], scale, words[start:stop], u, word_offset + start)
        return clipped

    def _block(self, x: Values, scale: float, out: SignedWords, u: float, place: int) -> int:
        z = self._float[: x.size]
        low, high = float(x.min()), float(x.max())  # NaN in the block makes both NaN
        if not (math.isfinite(low) and math.isfinite(high)):
            raise Refusal("INPUT_NAN", "an update or metric has a value that is not finite")
        np.copyto(z, x)
        if u != 1.0:
            np.multiply(z, u, out=z)
        clipped = 0
        if low * u < -scale or high * u > scale:
            clipped = int(np.count_nonzero(np.abs(z) > scale))
            np.clip(z, -scale, scale, out=z)
        bound = float(self._coding.bound)
        with np.errstate(over="ignore"):  # R * B may pass binary64; the clamp decides
            np.multiply(z, bound, out=z)
        np.divide(z, scale, out=z)
        if bound > _EXACT or self._stream is not None or math.isinf(scale * bound):
            # The bound is an integer, so a clamp before rounding equals the one after;
            # in the other cases rint undoes what two roundings can add to the bound.
            np.clip(z, -bound, bound, out=z)
        if self._stream is None:
            np.rint(z, out=z)
        else:
            self._round_stochastically(z, self._stream, place)
        np.copyto(out, z, casting="unsafe")
        return clipped

    def _round_stochastically(self, z: NDArray[np.float64], stream: Keystream, place: int) -> None:
        """Replace z by floor(z), plus 1 where the next word is below frac(z) * 2^64.

        Exact also where float64 cannot hold frac(z), that is for z just below 0. With
        G = frac(|z|) * 2^64, which it always holds: a z >= 0 goes up, away from 0, if
        word < ceil(G); a z < 0 goes down, away from 0, if ~word < floor(G), since
        not (word < 2^64 - G) says the same of integer words.
        """
        skip = place % _STREAM_ALIGN
        random = self._random[: skip + z.size]
        stream.words_into(random, place - skip)
        word = random[skip:]
        spare = self._spare[: z.size]
        flips = spare.view(np.int64)
        np.right_shift(z.view(np.int64), 63, out=flips)  # all ones where z < 0
        np.bitwise_xor(word, flips.view(np.uint64), out=word)
        np.trunc(z, out=spare)  # carries z's sign, also as -0.0
        np.subtract(z, spare, out=z)
        np.multiply(z, _FULL, out=z)
        np.ceil(z, out=z)  # for z < 0 this is -floor(G)
        np.abs(z, out=z)
        away = word < z.astype(np.uint64)
        np.copysign(away.astype(np.float64), spare, out=z)
        np.add(z, spare, out=z)


def quantise_value(x: float, scale: float, bound: int) -> int:
    """Return one value's integer, ties to even: the readable form of the definition.

    Raises:
        Refusal: INPUT_NAN.
    """
    if not math.isfinite(x):
        raise Refusal("INPUT_NAN", "a metric is not finite")
    level = (min(max(x, -scale), scale) * float(bound)) / scale
    return round(min(max(level, float(-bound)), float(bound)))  # R * B may be infinite


class VectorEncoder:
    """The whole `v_i` of a node, made chunk by chunk in any order.

    `update`: the flat tensor values (delta, not yet weighted); `ranges`: `R_1 .. R_L`;
    `u`: the node's weight; `metrics`: one value for each metric word. Metrics are sums
    already and are not multiplied by `u`.
    """

    __slots__ = ("_metrics", "_parts", "_quantiser", "_schema", "_u", "_update", "_weight")

    def __init__(
        self,
        schema: ParameterSchema,
        update: Values,
        *,
        ranges: Sequence[float],
        coding: Coding,
        u: float = 1.0,
        metrics: Sequence[float] = (),
    ) -> None:
        if update.shape != (schema.parameters,) or len(metrics) != len(schema.metrics):
            raise InternalError("an update or its metrics are not of the layout")
        if len(ranges) != len(schema.tensors) + len(schema.metrics):
            raise InternalError(f"{len(ranges)} ranges do not fit the layout")
        if not 0.0 < u <= 1.0:
            raise InternalError("a weight lies outside (0, 1]")
        self._schema = schema
        self._update = update
        self._quantiser = Quantiser(coding)
        self._u = u
        self._parts = [
            (segment.start, segment.stop, float(scale))
            for segment, scale in zip(schema.segments(), ranges, strict=False)
        ]
        self._weight = np.array([weight_word(u, coding.bound)] if schema.weighted else [])
        tail = ranges[len(schema.tensors) :]
        self._metrics = np.array(metrics, np.float64), tuple(map(float, tail))

    @property
    def words(self) -> int:
        """`d`."""
        return self._schema.words

    def count_clipped(self) -> int:
        """Return how many tensor values lie outside their range (a metric word of 7.2).

        Raises:
            Refusal: INPUT_NAN.
        """
        count = 0
        for start, stop, scale in self._parts:
            for at in range(start, stop, BLOCK_WORDS):
                block = self._update[at : min(at + BLOCK_WORDS, stop)]
                top = max(float(block.max()), -float(block.min()))
                if not math.isfinite(top):
                    raise Refusal("INPUT_NAN", "an update has a value that is not finite")
                if top * self._u > scale:
                    count += int(np.count_nonzero(np.abs(block * np.float64(self._u)) > scale))
        return count

    def reach(self) -> tuple[float, ...]:
        """Return how much of its range each tensor's weighted values use, in [0, 1] (7.4)."""
        tops = (np.abs(self._update[start:stop]).max(initial=0.0) for start, stop, _ in self._parts)
        scales = (scale for _, _, scale in self._parts)
        return tuple(
            min(float(top) * self._u / scale, 1.0) for top, scale in zip(tops, scales, strict=True)
        )

    def fill(self, out: Words, word_offset: int) -> None:
        """Write the words from `word_offset` on to `out`.

        Raises:
            Refusal: INPUT_NAN.
            InternalError: the chunk reaches beyond the vector.
        """
        end = word_offset + out.size
        if not 0 <= word_offset <= end <= self.words:
            raise InternalError("a chunk reaches beyond the vector")
        for start, stop, scale in self._parts:
            low, high = max(start, word_offset), min(stop, end)
            if low < high:
                self._quantiser.quantise(
                    self._update[low:high],
                    scale,
                    out[low - word_offset : high - word_offset],
                    u=self._u,
                    word_offset=low,
                )
        if end > self._schema.parameters:
            self._fill_tail(out, word_offset, end)

    def _fill_tail(self, out: Words, word_offset: int, end: int) -> None:
        """Write the weight word and the metric words that the chunk covers."""
        first = self._schema.parameters
        if self._weight.size and word_offset <= first:
            signed_view(out)[first - word_offset] = self._weight[0]
        values, scales = self._metrics
        for index, scale in enumerate(scales):
            place = first + 1 + index
            if word_offset <= place < end:
                at = place - word_offset
                self._quantiser.quantise(
                    values[index : index + 1], scale, out[at : at + 1], word_offset=place
                )
