"""The shipped quantiser gives the reference's words, value by value and as whole vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.model_file import model_header
from common.quantise import (
    Coding,
    Quantiser,
    VectorEncoder,
    quantise_value,
    size_class,
    weight,
    weight_word,
)
from common.secagg.header import Rounding, quant_bound
from common.secagg.keys import CoefficientSeed
from common.secagg.ring import signed_view, word_dtype
from common.vectors import ParameterSchema, TensorSpec, TensorType
from coordinator.aggregate import ModelUpdate, weighted_mean
from coordinator.objects import ObjectStore
from tests.reference import quantiser as reference
from tests.vectors import inputs
from tests.vectors.stored import header_of, load, unhex

STORED = load("quantise.json")
LAYOUT = ParameterSchema((TensorSpec("w", TensorType.FLOAT32, (5,)),), inputs.METRICS)


def words(row: dict[str, Any], rounding: Rounding) -> list[int]:
    out = np.zeros(len(row["values"]), word_dtype(row["w"]))
    coding = Coding(row["B"], row["w"], rounding, CoefficientSeed(unhex(row["seed"])))
    Quantiser(coding).quantise(np.array(row["values"], np.float64), row["range"], out)
    return [int(x) for x in signed_view(out)]


@pytest.mark.parametrize(
    "row", STORED["rows"], ids=lambda row: f"n{row['n']}-w{row['w']}-R{row['range']}"
)
def test_words_of_awkward_values(row: dict[str, Any]) -> None:
    assert words(row, Rounding.EVEN) == row["even"]
    assert [quantise_value(x, row["range"], row["B"]) for x in row["values"]] == row["even"]
    assert words(row, Rounding.STOCHASTIC) == row["stochastic"]


def test_weight_words_and_size_classes() -> None:
    for count, size in STORED["size_class"].items():
        assert size_class(int(count)) == size
    stored = STORED["weight_words"]
    for count, word in stored["words"].items():
        u = weight(int(count), stored["W_max"])
        assert weight_word(u, quant_bound(stored["n"], stored["w"])) == word


@pytest.mark.parametrize("name", ["round_n3.json", "round_n5.json", "round_n5_w64.json"])
def test_whole_vectors_of_the_stored_rounds(name: str) -> None:
    tree = load(name)
    header = header_of(tree["header"])
    assert header.layout_sha256 == LAYOUT.layout_sha256
    assert header.d == LAYOUT.words
    for local, given in zip(inputs.LOCALS, tree["inputs"].values(), strict=False):
        encoder = VectorEncoder(
            LAYOUT,
            np.array(local.update, np.float64),
            ranges=header.ranges,
            coding=Coding.of_header(header),
            u=weight(size_class(local.count), header.w_max),
            metrics=(local.loss, float(local.clipped)),
        )
        out = np.zeros(header.d, word_dtype(header.w))
        encoder.fill(out, 0)
        assert [int(x) for x in signed_view(out)] == given["v"]


@pytest.mark.parametrize("name", ["round_n3.json", "round_n5.json", "round_n5_w64.json"])
def test_the_server_step_is_the_equations(name: str, tmp_path: Path) -> None:
    tree = load(name)
    header = header_of(tree["header"])
    weight_sum = tree["opened"][5]
    opened = np.array(tree["opened"], np.int64)
    model = np.array([0.5, -1.25, 3.0, 0.0, -0.0], np.float32)
    store = ObjectStore(tmp_path)
    address = store.put(model_header(LAYOUT) + model.tobytes())
    with store.open(address) as reader, store.writer() as writer:
        update = ModelUpdate(LAYOUT, weighted_mean(header.ranges, weight_sum), reader, writer)
        later = update.take(0, opened)
        assert later is not None
        later()
        made = store.path(update.finish().object_sha256).read_bytes()
    assert np.frombuffer(made[len(model_header(LAYOUT)) :], "<f4").tolist() == [
        np.float32(reference.next_value(m, 1.0, int(t), header.ranges[0], weight_sum))
        for m, t in zip(model.tolist(), opened[:5], strict=True)
    ]
