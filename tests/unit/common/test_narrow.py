"""Half the bytes: words of 16 bits with ranges that follow the updates, weights as float16."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common import layouts
from common.errors import ConfigError, InternalError
from common.quantise import Coding, VectorEncoder
from common.secagg.header import Rounding, RoundKind, default_rounding, quant_bound
from common.secagg.keys import CoefficientSeed
from common.secagg.ring import signed_view, word_dtype
from common.study import Study, canonical_json, parse_study
from common.vectors import ParameterSchema, TensorSpec, TensorType, widened
from tests.security.refusals import PRIVATE, changed
from tests.study_texts import HEART, altered

NARROW = altered(HEART, "rounds: 15", "rounds: 15\n  upload_bits: 16\n  download: float16")
F16, F32 = TensorType.FLOAT16, TensorType.FLOAT32
MIXED = ParameterSchema(
    (TensorSpec("c", F32, (3,)), TensorSpec("w", F16, (4, 2)), TensorSpec("b", F16, ()))
)


def narrow() -> Study:
    return parse_study(NARROW)


# --- the study ----------------------------------------------------------------------------


def test_a_study_that_states_the_defaults_has_the_hash_of_one_that_does_not() -> None:
    stated = altered(HEART, "rounds: 15", "rounds: 15\n  upload_bits: 32\n  download: float32")
    assert canonical_json(parse_study(stated)) == canonical_json(parse_study(HEART))
    assert b'"upload_bits":16' in canonical_json(narrow())


@pytest.mark.parametrize("key", ["upload_bits: 16", "download: float16"])
def test_noise_and_exact_regression_have_neither(key: str) -> None:
    private = changed(PRIVATE, ("rounds: ", f"{key}\n  rounds: "))
    with pytest.raises(ConfigError, match="with differential privacy"):
        parse_study(private)
    exact = altered(HEART, "name: fedavg", "name: newton")
    with pytest.raises(ConfigError, match="for exact regression"):
        parse_study(exact.replace("rounds: 15", f"rounds: 15\n  {key}"))


# --- words of 16 bits -----------------------------------------------------------------------


def test_the_narrow_round_has_half_the_bits_and_a_reach_word_for_each_tensor() -> None:
    wide = layouts.round_layout(parse_study(HEART), RoundKind.TRAIN)
    layout = layouts.round_layout(narrow(), RoundKind.TRAIN)
    assert (wide.ring_bits, layout.ring_bits) == (32, 16)
    count = len(layout.schema.tensors)
    assert layout.schema.metrics[2:] == tuple(f"reach.{k}" for k in range(count))
    assert layout.schema.range_count == len(layout.ranges)
    assert default_rounding(64, 16) is Rounding.STOCHASTIC


def opened(
    updates: list[NDArray[np.float32]], layout: layouts.RoundLayout, ranges: tuple[float, ...]
) -> NDArray[np.int64]:
    """Return the sum of what hospitals of weight 1 would send."""
    bound = quant_bound(len(updates), 16)
    total = np.zeros(layout.schema.words, np.int64)
    for place, update in enumerate(updates):
        coding = Coding(bound, 16, Rounding.STOCHASTIC, CoefficientSeed(bytes([place]) * 32))
        blank = [0.0] * len(layout.schema.metrics)
        encoder = VectorEncoder(layout.schema, update, ranges=ranges, coding=coding, metrics=blank)
        metrics = [0.0, float(encoder.count_clipped()), *encoder.reach()]
        words = np.zeros(layout.schema.words, word_dtype(16))
        VectorEncoder(layout.schema, update, ranges=ranges, coding=coding, metrics=metrics).fill(
            words, 0
        )
        total += signed_view(words)
    return total


@example(scale=10.0, sites=4, seed=6255)  # one hospital far beyond the others
@given(scale=st.floats(1e-6, 50.0), sites=st.integers(2, 5), seed=st.integers(0, 2**20))
def test_ranges_follow_the_updates_within_a_few_rounds(scale: float, sites: int, seed: int) -> None:
    """Wherever updates lie, their range comes to fit, also where one hospital's stand alone."""
    layout = layouts.round_layout(narrow(), RoundKind.TRAIN)
    generator = np.random.default_rng(seed)
    size = layout.schema.parameters
    shape = generator.normal(0, scale, (sites, size)).astype(np.float32)
    shape[:, : layouts.constant_count(narrow())] = 0.0
    bound = quant_bound(sites, 16)
    rms: tuple[float, ...] = ()
    for _ in range(12):
        ranges = layouts.header_ranges(layout, bound, rms)
        total = opened(list(shape), layout, ranges)
        tail = tuple(total[size:].tolist())
        rms = layouts.reached(layout, ranges, tail, sites * bound)
    ranges = layouts.header_ranges(layout, bound, rms)
    for tensor, segment in enumerate(layout.schema.segments()):
        part = np.abs(shape[:, segment.start : segment.stop])
        if part.any():
            top = float(part.max())
            assert top < ranges[tensor] < 9 * top
            if sites <= 4:  # then none reaches beyond four times the mean
                assert ranges[tensor] > 1.8 * top


def test_a_rule_that_shrank_with_the_mean_would_clip_hospitals_that_pull_apart() -> None:
    """Two hospitals' updates cancel: the mean is zero, what each sends is not, and nor is R."""
    layout = layouts.round_layout(narrow(), RoundKind.TRAIN)
    update = np.full(layout.schema.parameters, 0.5, np.float32)
    update[: layouts.constant_count(narrow())] = 0.0
    bound = quant_bound(2, 16)
    ranges = layouts.header_ranges(layout, bound, ())
    tail = tuple(opened([update, -update], layout, ranges)[update.size :].tolist())
    rms = layouts.reached(layout, ranges, tail, 2 * bound)
    assert min(layouts.header_ranges(layout, bound, rms)[3:5]) >= 0.5


# --- weights as float16 -----------------------------------------------------------------------


def test_only_the_weights_travel_narrow_and_the_kept_layout_is_float32() -> None:
    schema = layouts.model_schema(narrow())
    kinds = {tensor.name.startswith("preprocess."): tensor.dtype for tensor in schema.tensors}
    assert kinds == {True: F32, False: F16}
    assert widened(schema).is_flat_float32
    assert widened(schema).parameters == schema.parameters


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=12, max_size=12), st.integers(1, 12))
def test_packed_values_read_back_as_the_nearest_half(values: list[float], cut: int) -> None:
    flat = np.array(values, np.float32)
    whole = MIXED.pack(flat)
    parts = [MIXED.pack(flat[at : at + cut], at) for at in range(0, 12, cut)]
    assert b"".join(parts) == whole
    assert len(whole) == MIXED.byte_size
    back = MIXED.flat(whole)
    assert back[:3].tobytes() == flat[:3].tobytes()
    with np.errstate(over="ignore"):
        nearest = np.clip(flat[3:], -65504, 65504).astype("<f2").astype(np.float32)
    np.testing.assert_array_equal(back[3:], nearest)


def test_other_types_are_not_read() -> None:
    schema = ParameterSchema((TensorSpec("w", TensorType.BFLOAT16, (2,)),))
    with pytest.raises(InternalError, match="bfloat16"):
        schema.flat(b"\0" * 4)
