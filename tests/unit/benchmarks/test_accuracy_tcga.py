"""The TCGA benchmark: folds and splits are stratified, fits and figures are the product's."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.accuracy import tcga
from common.features import Encoded, Table
from common.study import Newton, Study
from hospital_node.baselines import centralised
from hospital_node.data.load import SiteData
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
