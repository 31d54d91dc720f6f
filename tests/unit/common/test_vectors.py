"""Layouts, flat views and model digests: one order, one hash, any chunks."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.encoding import enc
from common.errors import InternalError, Refusal
from common.vectors import (
    EMPTY_MODEL,
    ModelHasher,
    ParameterSchema,
    Segment,
    TensorSpec,
    TensorType,
    model_digest,
)

F32 = TensorType.FLOAT32
SCHEMA = ParameterSchema(
    (
        TensorSpec("none", F32, (0, 4)),
        TensorSpec("w", F32, (2, 3)),
        TensorSpec("b", F32, ()),
        TensorSpec("end", F32, (0,)),
    ),
    ("loss", "correct"),
)
MODEL = np.arange(7, dtype="<f4").tobytes()


def test_words_are_tensors_then_weight_then_metrics() -> None:
    assert SCHEMA.parameters == 7
    assert SCHEMA.words == 10
    assert SCHEMA.range_count == 6
    assert SCHEMA.segments() == (Segment(0, 0), Segment(0, 6), Segment(6, 7), Segment(7, 7))


def test_under_dp_neither_weight_nor_metric_words_exist() -> None:
    bare = ParameterSchema(SCHEMA.tensors, (), weighted=False)
    assert bare.words == bare.parameters
    assert bare.range_count == len(bare.tensors)
    with pytest.raises(InternalError):
        replace(SCHEMA, weighted=False)


def test_views_share_the_flat_vector_and_flatten_restores_it() -> None:
    flat = np.frombuffer(MODEL, "<f4").copy()
    views = SCHEMA.views(flat)
    assert views["w"].shape == (2, 3)
    assert views["w"][1, 0] == 3.0
    views["b"][...] = 50.0
    assert flat[6] == 50.0
    np.testing.assert_array_equal(SCHEMA.flatten(views), flat)


@pytest.mark.parametrize("wrong", ["missing", "unknown", "shape"])
def test_flatten_refuses_tensors_that_are_not_of_the_layout(wrong: str) -> None:
    values = dict(SCHEMA.views(np.zeros(7, np.float32)))
    if wrong == "missing":
        del values["b"]
    elif wrong == "unknown":
        values["c"] = values["b"]
    else:
        values["w"] = np.zeros((3, 2), np.float32)
    with pytest.raises(InternalError):
        SCHEMA.flatten(values)


def test_flat_reads_a_models_bytes_without_a_copy() -> None:
    raw = bytearray(MODEL)
    flat = SCHEMA.flat(raw)
    raw[0:4] = struct.pack("<f", 9.0)
    assert flat[0] == 9.0
    with pytest.raises(Refusal, match="MODEL_HASH"):
        SCHEMA.flat(MODEL[:-4])


@pytest.mark.parametrize(
    "other",
    [
        replace(SCHEMA, metrics=("correct", "loss")),
        replace(SCHEMA, metrics=("loss",)),
        replace(SCHEMA, tensors=SCHEMA.tensors[::-1]),
        replace(SCHEMA, tensors=(*SCHEMA.tensors[:-1], TensorSpec("end", F32, (0, 1)))),
        replace(
            SCHEMA, tensors=(*SCHEMA.tensors[:-1], TensorSpec("end", TensorType.FLOAT64, (0,)))
        ),
    ],
)
def test_every_part_of_a_layout_changes_its_hash(other: ParameterSchema) -> None:
    assert other.layout_sha256 != SCHEMA.layout_sha256


def test_a_layout_with_a_name_twice_does_not_exist() -> None:
    with pytest.raises(InternalError):
        ParameterSchema((TensorSpec("w", F32, (1,)), TensorSpec("w", F32, (2,))))
    with pytest.raises(InternalError):
        ParameterSchema((TensorSpec("w", F32, (-1,)),))


def test_the_model_digest_is_that_of_heads_and_data_in_order() -> None:
    text = enc("none", "float32", 2, 0, 4, 0)
    text += enc("w", "float32", 2, 2, 3, 24) + MODEL[:24]
    text += enc("b", "float32", 0, 4) + MODEL[24:]
    text += enc("end", "float32", 1, 0, 0)
    assert model_digest(SCHEMA, MODEL) == hashlib.sha256(text).digest()


@given(st.lists(st.integers(0, 28), max_size=6))
def test_chunk_borders_do_not_change_a_model_digest(cuts: list[int]) -> None:
    hasher = ModelHasher(SCHEMA)
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 28], strict=True):
        hasher.update(MODEL[start:stop])
    assert hasher.finish() == model_digest(SCHEMA, MODEL)


def test_a_model_shorter_or_longer_than_its_layout_has_no_digest() -> None:
    for wrong in (MODEL[:-1], MODEL + b"\0", b""):
        with pytest.raises(Refusal, match="MODEL_HASH"):
            model_digest(SCHEMA, wrong)


def test_no_model_hashes_as_nothing() -> None:
    assert model_digest(ParameterSchema(()), b"") == EMPTY_MODEL == hashlib.sha256().digest()
