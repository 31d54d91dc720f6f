"""From rows to ring words: what is opened is the weighted sum of what was trained."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from common import evaluation, models, statistics
from common.features import Encoded
from common.models.vector import whole
from common.quantise import Coding, limb_ranges
from common.secagg.header import Rounding, quant_bound
from common.secagg.ring import signed_view, word_dtype
from common.vectors import ParameterSchema
from common.weights import weight
from coordinator.aggregate import mean_step
from hospital_node.evaluate import predict
from hospital_node.pipeline import (
    ContributionSource,
    make_contribution,
    make_evaluation,
    make_statistics,
)
from hospital_node.strategies import Received
from hospital_node.train import train
from tests.learning import random_table, study

SIZES = {"a": 199, "b": 172, "c": 30, "d": 85}
TABLES = {site: random_table(rows, place) for place, (site, rows) in enumerate(SIZES.items())}


def opened(
    sources: list[ContributionSource],
    schema: ParameterSchema,
    ranges: tuple[float, ...],
    ring_bits: int,
) -> NDArray[np.int64]:
    coding = Coding(quant_bound(len(sources), ring_bits), ring_bits, Rounding.EVEN)
    total = np.zeros(schema.words, np.int64)
    for source in sources:
        words = np.empty(schema.words, word_dtype(ring_bits))
        source.encoder(schema, ranges, coding).fill(words, 0)
        total += signed_view(words)
    return total


def test_a_training_round_gives_the_weighted_mean_of_the_updates() -> None:
    terms = study(federation="{weights: size_class, max_weight: 256}")
    bound64, bound = quant_bound(4, 64), quant_bound(4, 32)
    schema = statistics.layout(terms)
    words = opened(
        [make_statistics(terms, site, table, bound64) for site, table in TABLES.items()],
        schema, limb_ranges(1.0, bound64), 64,
    )  # fmt: skip
    constants = statistics.pooled(terms, words[: schema.parameters], bound64)
    data = {site: constants.encode(terms, table) for site, table in TABLES.items()}

    start = models.initial(terms)
    layout = models.layout(terms)
    sources = [
        make_contribution(terms, site, rows, Received(start), 1, {}) for site, rows in data.items()
    ]
    assert [source.u for source in sources] == [0.5, 0.5, 0.0625, 0.25]
    words = opened(sources, layout, (1.0, 1.0, *models.metric_ranges(bound)), 32)
    weights, loss, clipped = (int(word) for word in words[layout.parameters :])
    assert weights == pytest.approx(1.3125 * bound, abs=2)
    assert loss * models.LOSS_LIMIT / weights == pytest.approx(np.log(2), abs=1e-5)
    assert clipped == 0

    updates = [train(terms, rows, start, site=s).delta for s, rows in data.items()]
    us = [weight(terms, site, rows) for site, rows in SIZES.items()]
    mean = sum(u * delta.astype(float) for u, delta in zip(us, updates, strict=True)) / sum(us)
    found = start + mean_step(words[: layout.parameters], 1.0, weights)
    assert found == pytest.approx(mean, abs=1e-6)


def test_clipped_values_are_counted_in_their_word() -> None:
    terms = study()
    layout = models.layout(terms)
    source = ContributionSource(np.array([9, -9, 0.1, 1, 0, 0, 3], np.float32), 0.5, (0.0,))
    bound = quant_bound(1, 32)
    words = opened([source], layout, (1.0, 1.0, *models.metric_ranges(bound)), 32)
    assert words[-1] == 3
    assert words[0] == -words[1] == bound


def test_an_evaluation_gives_the_pooled_metrics() -> None:
    terms = study()
    model = models.initial(terms) + np.float32(0.3)
    rng = np.random.default_rng(1)
    rows = [
        Encoded(rng.normal(size=(n, 6)).astype(np.float32), rng.integers(0, 2, n).astype("f4"))
        for n in (104, 89, 16, 0)
    ]
    schema = evaluation.layout(terms)
    sources = [make_evaluation(terms, part, model, levels=quant_bound(4, 64)) for part in rows]
    words = opened(sources, schema, (evaluation.ROW_LIMIT,) * 2, evaluation.RING_BITS)
    found = evaluation.pooled(terms, words[: schema.parameters], quant_bound(4, 64))
    exact = evaluation.site_metrics(
        terms,
        np.concatenate([predict(terms, model, part.features) for part in rows]),
        np.concatenate([part.target for part in rows]).astype(np.float64),
    )
    assert (found.rows, found.positives) == (exact.rows, exact.positives)
    assert found.auroc == pytest.approx(exact.auroc, abs=0.002)
    assert found.brier == pytest.approx(exact.brier, abs=1e-6)


def test_a_vector_model_reads_no_data() -> None:
    terms = study(model="{kind: vector, size: 100}", federation="{weights: equal}")
    nothing = Encoded(np.zeros((0, 6), np.float32), np.zeros(0, np.float32))
    source = make_contribution(terms, "a", nothing, Received(models.initial(terms)), 3, {})
    assert np.array_equal(source.values, whole("a", 3, 100))
    assert (source.u, source.metrics) == (1.0, ())
