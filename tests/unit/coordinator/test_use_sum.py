"""Pooled figures that few patients stand behind are not published."""

from __future__ import annotations

import numpy as np
import pytest

from common import continuous, evaluation
from common.evaluation import Metrics
from common.evaluation_document import LEAST, finite, published
from common.quantise import limb_ranges, quantise_value
from common.secagg.header import quant_bound
from tests.learning import study

FULL = Metrics(rows=30, positives=12, auroc=0.8, accuracy=0.7, brier=0.2, log_loss=0.6)


@pytest.mark.parametrize(
    ("rows", "positives", "kept"),
    [
        (30, 12, {"rows", "positives", "auroc", "accuracy"}),
        (30, 10, {"rows", "positives", "auroc", "accuracy"}),
        (30, 9, {"rows", "accuracy"}),
        (30, 21, {"rows", "accuracy"}),
        (30, 0, {"rows", "accuracy"}),
        (20, 10, {"rows", "positives", "auroc", "accuracy"}),
        (9, 5, None),
        (0, None, None),
    ],
)
def test_a_cell_below_the_smallest_is_left_out(
    rows: int, positives: int | None, kept: set[str] | None
) -> None:
    found = published(Metrics(rows, positives, auroc=0.8, accuracy=0.7))
    names = (
        None
        if found is None
        else {name for name in ("rows", "positives", "auroc", "accuracy") if getattr(found, name)}
    )
    assert names == kept


@pytest.mark.parametrize(("rows", "some"), [(LEAST, True), (LEAST - 1, False)])
def test_the_figures_of_a_real_sum_obey_it(rows: int, some: bool) -> None:
    """A number as target has one class only: what counts is the rows."""
    terms = study(target="{type: continuous, name: y}", model="{kind: mlp, hidden: [2]}")
    bound = quant_bound(3, evaluation.RING_BITS)
    target = np.arange(rows, dtype=np.float64)
    own = evaluation.contribution(terms, target + 0.5, target, levels=bound)
    ranges = np.repeat(limb_ranges(continuous.LIMIT, bound), len(own) // 2)
    words = np.array(
        [quantise_value(float(x), float(r), bound) for x, r in zip(own, ranges, strict=True)]
    )
    found = finite(terms, published(evaluation.pooled(terms, words, bound)))
    assert ({"rows", "mse"} <= found.keys()) is some
    assert bool(found) is some
