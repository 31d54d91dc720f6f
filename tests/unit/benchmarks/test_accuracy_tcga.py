"""The TCGA benchmark: folds and splits are stratified, fits and figures are the product's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.accuracy import tcga
from common.features import Encoded, Table
from common.study import Ditto, Newton, Study
from hospital_node.baselines import centralised
from hospital_node.data.load import SiteData
from hospital_node.personal.choose import Rows, choose
from tests.learning import study


def cox() -> Study:
    return study(target="{type: survival, time: t, event: e}", model="{kind: cox}")


def rows(count: int, events: int) -> SiteData:
    rng = np.random.default_rng(count)
    target = np.column_stack([rng.exponential(size=count), np.arange(count) < events])
    whole = Table(rng.normal(size=(count, 2)), target, np.arange(count, dtype=np.int64))
    order = rng.permutation(count)
    parts = [order[count // 4 :], order[: count // 4], order[:0]]
    return SiteData(*(whole.take(part) for part in parts))


def test_folds_and_drawn_splits_hold_events_in_proportion() -> None:
    data = rows(80, 20)
    marks, event = tcga.cut(data, 5, 1), data.train.target[:, 1] > 0
    held = [int(event[marks == fold].sum()) for fold in range(5)]
    assert sum(held) == event.sum()
    assert max(held) - min(held) <= 1
    drawn = tcga.redrawn({"a": data}, 3)["a"]
    assert drawn.test.target[:, 1].sum() == 5
    assert sorted([*drawn.train.patient, *drawn.test.patient]) == list(range(80))
    assert (tcga.redrawn({"a": data}, 4)["a"].test.patient != drawn.test.patient).any()


def test_an_exact_fit_of_one_region_is_that_of_the_product() -> None:
    rng = np.random.default_rng(0)
    target = np.column_stack([rng.exponential(size=60), rng.random(60) < 0.6])
    data = Encoded(rng.normal(size=(60, 6)).astype(np.float32), target.astype(np.float32))
    terms = tcga.with_strategy(cox(), Newton.model_validate({"name": "newton", "ridge": 5}))
    model, kept = tcga.federated(terms, {"a": (data, data)})
    assert model == pytest.approx(centralised(terms, {"a": data}))
    assert model.any()
    assert not kept


def test_a_regions_c_index_is_that_of_lifelines() -> None:
    concordance = pytest.importorskip(
        "lifelines.utils", reason="lifelines is not installed: make install has it"
    ).concordance_index
    rng = np.random.default_rng(2)
    found, wanted = [], []
    model = rng.normal(size=6).astype(np.float32)
    for _ in range(3):
        x = rng.normal(size=(20, 6)).astype(np.float32)
        y = np.column_stack([np.ceil(rng.exponential(4, 20)), rng.random(20) < 0.4])
        found.append(tcga.counted(cox(), model, Encoded(x, y.astype(np.float32))))
        wanted.append(concordance(y[:, 0], -(x @ model), y[:, 1]))
    assert tcga.mean_of_regions(found) == pytest.approx(np.mean(wanted))


def test_ditto_is_what_a_node_ends_with_and_a_hard_pull_is_the_federated_model() -> None:
    rng = np.random.default_rng(4)
    target = np.column_stack([rng.exponential(size=60), rng.random(60) < 0.6])
    data = Encoded(rng.normal(size=(60, 6)).astype(np.float32), target.astype(np.float32))
    gaps = []
    for strength in (0.1, 10, 1000):
        terms = tcga.with_strategy(
            cox(), Ditto.model_validate({"name": "ditto", "lambda": strength})
        )
        model, kept = tcga.federated(terms, {"a": (data, data), "b": (data, data)})
        asked = terms.model_copy(
            update={"personal": terms.personal.model_copy(update={"candidates": ("ditto",)})}
        )
        rows = Rows(data, np.arange(60), Encoded(data.features[:0], data.target[:0]))
        found = tcga.personal(terms, "a", data, model, kept["a"])
        assert (found == choose(asked, "a", rows, model, kept["a"]).weights).all()
        gaps.append(float(np.abs(found - model).max()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-3 < gaps[0]


def test_a_weaker_pull_has_to_be_better_by_more_than_its_standard_error() -> None:
    federated = [0.70, 0.72, 0.68, 0.71, 0.69]
    noisy = [0.80, 0.62, 0.80, 0.60, 0.72]
    better = [0.73, 0.75, 0.70, 0.75, 0.72]
    assert tcga.strongest({1.0: noisy, math.inf: federated}) == math.inf
    assert tcga.strongest({1.0: better, math.inf: federated}) == 1.0
    assert tcga.strongest({0.3: better, 1.0: better, math.inf: federated}) == 1.0
