"""The server step against the formula in float64, tensor by tensor, block by block."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import InternalError, Refusal
from common.ids import Sha256
from common.model_file import model_header
from common.vectors import ParameterSchema, TensorSpec, TensorType, model_digest
from coordinator.aggregate import ModelUpdate, NextModel, check_weight_sum, weighted_mean
from coordinator.objects import ObjectStore

F32 = TensorType.FLOAT32
SCHEMA = ParameterSchema(
    (
        TensorSpec("preprocess.centre", F32, (3,)),
        TensorSpec("w1", F32, (4, 3)),
        TensorSpec("empty", F32, (0,)),
        TensorSpec("bias", F32, ()),
        TensorSpec("w2", F32, (2, 2)),
    ),
    ("loss",),
)
RANGES = (1.0, 0.37, 1.0, 5.0, 1e-3, 8.0)
SIZES = (3, 12, 0, 1, 4)
WEIGHT = 3 * 2**20 + 12345


def previous(values: np.ndarray, store: ObjectStore) -> Sha256:
    return store.put(model_header(SCHEMA) + values.astype("<f4").tobytes())


def step(store: ObjectStore, model: np.ndarray, words: np.ndarray, block: int) -> NextModel:
    address = previous(model, store)
    with store.open(address) as reader, store.writer() as writer:
        update = ModelUpdate(SCHEMA, weighted_mean(RANGES, WEIGHT), reader, writer)
        for start in range(0, words.size, block):
            later = update.take(start, words[start : start + block].astype(np.int32))
            if later is not None:
                later()
        return update.finish()


def expected(model: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The formula of the module, one value at a time, in Python's own float64."""
    out = []
    place = 0
    for tensor, size in enumerate(SIZES):
        for _ in range(size):
            value = float(model[place])
            if tensor > 0:
                value += float(int(words[place])) * RANGES[tensor] / float(WEIGHT)
            out.append(value)
            place += 1
    return np.array(out, np.float64).astype("<f4")


def example(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    model = generator.normal(0, 2, SCHEMA.parameters).astype("<f4")
    return model, generator.integers(-(2**27), 2**27, SCHEMA.words)


@pytest.mark.parametrize("block", [1, 4, 5, 16, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_the_next_model_is_the_formulas_to_the_last_bit(
    tmp_path: Path, seed: int, block: int
) -> None:
    store = ObjectStore(tmp_path)
    model, words = example(seed)
    made = step(store, model, words, block)
    data = store.path(made.object_sha256).read_bytes()
    header = model_header(SCHEMA)
    assert data[: len(header)] == header
    assert data[len(header) :] == expected(model, words).tobytes()
    assert made.object_sha256 == hashlib.sha256(data).digest()
    assert made.model_sha256 == model_digest(SCHEMA, data[len(header) :])


def test_constants_are_copied_byte_for_byte_whatever_their_words_say(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    model, words = example(7)
    model[0] = np.float32(-0.0)
    made = step(store, model, words, 4)
    skip = len(model_header(SCHEMA))
    data = store.path(made.object_sha256).read_bytes()[skip:]
    assert data[:12] == model.astype("<f4").tobytes()[:12]
    assert made.rms[0] == 0.0


def test_rms_is_that_of_the_applied_update(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    model, words = example(8)
    made = step(store, model, words, 7)
    update = words[3:15].astype(np.float64) * RANGES[1] / WEIGHT
    assert made.rms[1] == pytest.approx(float(np.sqrt(np.mean(update**2))), rel=1e-12)
    assert made.rms[2] == 0.0
    assert made.rms[3] == pytest.approx(abs(float(words[15])) * 5.0 / WEIGHT, rel=1e-12)
    assert len(made.rms) == len(SIZES)


def test_a_zero_sum_moves_nothing(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    model, words = example(9)
    made = step(store, model, np.zeros_like(words), 5)
    assert made.object_sha256 == previous(model, store)
    assert set(made.rms) == {0.0}


@pytest.mark.parametrize(("s_min", "bound"), [(3, 2**20), (2, 2**12), (5, 1)])
def test_a_summed_weight_below_the_floor_is_refused(s_min: int, bound: int) -> None:
    floor = -(-s_min * bound // 1024)
    check_weight_sum(floor, s_min, bound)
    for weight in (floor - 1, 0, -1, -(2**30)):
        with pytest.raises(Refusal) as refused:
            check_weight_sum(weight, s_min, bound)
        assert refused.value.name == "SUM_RANGE"


def test_other_types_than_float32_are_our_own_bug(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    half = ParameterSchema((TensorSpec("w", TensorType.FLOAT16, (2,)),))
    address = store.put(b"x")
    with store.open(address) as reader, store.writer() as writer, pytest.raises(InternalError):
        ModelUpdate(half, weighted_mean((1.0,), 1), reader, writer)


# --- weights that travel in half precision ----------------------------------------------------

HALF = ParameterSchema(
    tuple(
        replace(tensor, dtype=TensorType.FLOAT16) if not tensor.name.startswith("pre") else tensor
        for tensor in SCHEMA.tensors
    ),
    SCHEMA.metrics,
)


@pytest.mark.parametrize("block", [1, 5, 1000])
def test_steps_below_half_precision_add_up_behind_a_half_precision_model(
    tmp_path: Path, block: int
) -> None:
    """A hundredth of float16's step, 300 times: lost in float16, three steps here."""
    store = ObjectStore(tmp_path)
    model = np.ones(SCHEMA.parameters, np.float32)
    tiny = 2.0**-10 / 100
    kept, made = previous(model, store), None
    words = np.full(SCHEMA.words, 1, np.int32)
    for _ in range(300 if block == 1000 else 3):
        with (
            store.open(kept) as reader,
            store.writer() as writer,
            store.writer() as keeper,
        ):
            step_of = weighted_mean((tiny,) * 6, 1.0)
            update = ModelUpdate(HALF, step_of, reader, writer, keeper)
            for start in range(0, words.size, block):
                later = update.take(start, words[start : start + block])
                if later is not None:
                    later()
            made = update.finish()
        assert made.kept_sha256 is not None
        kept = made.kept_sha256
    assert made is not None
    data = store.path(made.object_sha256).read_bytes()
    assert data.startswith(model_header(HALF))
    body = data[len(model_header(HALF)) :]
    assert made.model_sha256 == model_digest(HALF, body)
    wanted = 1.0 + (3.0 * 2.0**-10 if block == 1000 else 0.0)
    np.testing.assert_allclose(HALF.flat(body)[3:], wanted, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(HALF.flat(body)[:3], 1.0)


def test_a_half_precision_model_without_kept_values_is_a_mistake(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    address = previous(np.ones(SCHEMA.parameters, np.float32), store)
    with store.open(address) as reader, store.writer() as writer, pytest.raises(InternalError):
        ModelUpdate(HALF, weighted_mean(RANGES, WEIGHT), reader, writer)
