"""From an opened sum to the next model (protocol, section 8).

    mean = (sum * R_l) / weight_sum                      coded words: mode none, patient-local
    mean = lr * ((sum / s) / m)                          noised integers, s = Delta_int / C
    next = model + rule(mean)                            `coordinator.strategies`

in float64, in this order, cast once to the tensor's type (ties to even). With FedAvg
(McMahan et al. 2017, algorithm 1) the rule is the identity. In mode patient-local, where no
weight is sent, `weight_sum` is B times the survivors' public weights. In the second line `m`
is the number of survivors and `lr` 1 (mode hospital), or a public batch size and the study's
learning rate (mode patient-distributed), never the number of patients drawn.

What a server optimiser remembers (its moments) is an object beside the model: for each
value of the model, in its order, the moments of that value, float32, cast once. It is
written in the same pass and named by the same fact, so that a crash finds both as they were
or both anew, and a voided round changes neither.

Where weights travel as float16 the sum is added to float32 values that the coordinator
keeps, so that steps below the half precision are not lost; what travels is their rounding.

Tensors whose name begins with `preprocess.` are constants of the run: their words are
passed over and their bytes copied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from common.errors import InternalError, Refusal
from common.ids import Sha256
from common.model_file import is_constant, model_header
from common.secagg.dp import DpTerms
from common.secagg.ring import SignedWords
from common.vectors import ModelHasher, ParameterSchema, widened
from coordinator.objects import ObjectReader, ObjectWriter
from coordinator.opening import Later
from coordinator.strategies import Mean, ServerRule, moment_count

MIN_WEIGHT_SHARE: Final = 2.0**-10
"""Below `s_min * B * MIN_WEIGHT_SHARE` the summed weight voids the round (section 8)."""


def check_weight_sum(weight_sum: float, s_min: int, bound: int) -> None:
    """Refuse a summed weight too small to divide by.

    Raises:
        Refusal: SUM_RANGE.
    """
    if weight_sum < s_min * bound * MIN_WEIGHT_SHARE:
        raise Refusal("SUM_RANGE", "the summed weight is below 2^-10 of the smallest set's")


def mean_step(words: SignedWords, scale: float, weight_sum: float) -> NDArray[np.float64]:
    """Return `(sum * R_l) / weight_sum` of opened words, a new float64 array."""
    step: NDArray[np.float64] = words * np.float64(scale)
    step /= weight_sum
    return step


class ServerStep(Protocol):
    """The mean update of one tensor's opened words."""

    def __call__(self, tensor: int, words: SignedWords) -> NDArray[np.float64]:
        """Return the mean for words of tensor number `tensor`, a new float64 array."""
        ...


def weighted_mean(ranges: tuple[float, ...], weight_sum: float) -> ServerStep:
    """Return the step of coded words (7.2); `ranges` are `R_l` per tensor."""

    def step(tensor: int, words: SignedWords) -> NDArray[np.float64]:
        return mean_step(words, ranges[tensor], float(weight_sum))

    return step


def noised_mean(terms: DpTerms, count: int, lr: float) -> ServerStep:
    """Return the step of a noised sum; `count` is `m`, `lr` the step size."""
    scale = terms.delta_int / terms.clip

    def step(tensor: int, words: SignedWords) -> NDArray[np.float64]:  # noqa: ARG001 - one scale
        out: NDArray[np.float64] = words / np.float64(scale)
        out /= count
        out *= lr
        return out

    return step


@dataclass(frozen=True, slots=True)
class NextModel:
    """The next model: its file's address, its protocol digest, and how far it moved.

    `rms` holds, per tensor, the root mean square of the mean update; the next round's
    ranges follow from it. `kept_sha256`: the address of the float32 values behind a model
    that travels in half precision. `moments_sha256`: that of what a server optimiser remembers.
    """

    object_sha256: Sha256
    model_sha256: Sha256
    rms: tuple[float, ...]
    kept_sha256: Sha256 | None = None
    moments_sha256: Sha256 | None = None


@dataclass(frozen=True, slots=True)
class Moments:
    """Where a server optimiser's moments come from (None: the first round) and go to."""

    previous: ObjectReader | None
    writer: ObjectWriter


class ModelUpdate:
    """A sink that writes the next model while the sum is being opened.

    `previous` is the float32 model, read by offset; `writer` receives the file of `schema` in
    order, and `kept`, where `schema` is narrower, the next float32 model. `rules` holds each
    tensor's rule, without one the mean is added; `moments` is for rules that remember.
    """

    def __init__(
        self,
        schema: ParameterSchema,
        server_step: ServerStep,
        previous: ObjectReader,
        writer: ObjectWriter,
        kept: ObjectWriter | None = None,
        rules: tuple[ServerRule, ...] = (),
        moments: Moments | None = None,
    ) -> None:
        if schema.is_flat_float32 != (kept is None):
            raise InternalError("float32 values are kept beside a narrower model, and only there")
        self._schema = schema
        self._kept = kept
        self._server_step = server_step
        self._previous = previous
        self._writer = writer
        self._rules = rules or (Mean(),) * len(schema.tensors)
        self._moments = moments
        self._moment_count = moment_count(self._rules)
        if (self._moment_count > 0) != (moments is not None):
            raise InternalError("a server rule and the place of its moments come together")
        self._header = model_header(widened(schema))
        self._hasher = ModelHasher(schema)
        self._squares = [0.0] * len(schema.tensors)
        writer.write(model_header(schema))
        if kept is not None:
            kept.write(self._header)

    def take(self, start: int, words: SignedWords) -> Later | None:
        """See `coordinator.opening.Sink`."""
        count = min(words.size, self._schema.parameters - start)
        if count <= 0:
            return None
        data = self._previous.read(len(self._header) + 4 * start, 4 * count)
        model = np.frombuffer(data, "<f4").astype(np.float64)
        moments = self._read_moments(start, count)
        for index, segment in enumerate(self._schema.segments()):
            low, high = max(segment.start, start) - start, min(segment.stop, start + count) - start
            if low < high and not is_constant(self._schema.tensors[index].name):
                self._step(index, model[low:high], words[low:high], moments[low:high])
        out = model.astype("<f4")
        remembered = moments.astype("<f4").tobytes()
        return lambda: self._keep(out, start, remembered)

    def _read_moments(self, start: int, count: int) -> NDArray[np.float64]:
        """Return the moments of a block, [count, moments], as the last round left them."""
        shape = (count, self._moment_count)
        if self._moments is not None and self._moments.previous is not None:
            size = 4 * self._moment_count
            data = self._moments.previous.read(size * start, size * count)
            return np.frombuffer(data, "<f4").reshape(shape).astype(np.float64)
        moments = np.zeros(shape)
        for rule, segment in zip(self._rules, self._schema.segments(), strict=True):
            part = slice(max(segment.start - start, 0), max(segment.stop - start, 0))
            moments[part, : len(rule.first)] = rule.first
        return moments

    def _keep(self, out: NDArray[np.float32], start: int, remembered: bytes) -> None:
        data: memoryview | bytes = out.data.cast("B")
        if self._kept is not None:
            self._kept.write(data)
            data = self._schema.pack(out, start)
        self._hasher.update(data)
        self._writer.write(data)
        if self._moments is not None:
            self._moments.writer.write(remembered)

    def _step(
        self, index: int, model: np.ndarray, words: SignedWords, moments: NDArray[np.float64]
    ) -> None:
        mean = self._server_step(index, words)
        self._squares[index] += float(np.dot(mean, mean))
        rule = self._rules[index]
        model += rule.step(mean, moments[:, : len(rule.first)])

    def finish(self) -> NextModel:
        """Make the next model durable, and what is remembered with it; describe both."""
        sizes = (max(tensor.size, 1) for tensor in self._schema.tensors)
        rms = tuple(
            math.sqrt(square / size) for square, size in zip(self._squares, sizes, strict=True)
        )
        kept = None if self._kept is None else self._kept.commit()
        moments = None if self._moments is None else self._moments.writer.commit()
        return NextModel(self._writer.commit(), self._hasher.finish(), rms, kept, moments)
