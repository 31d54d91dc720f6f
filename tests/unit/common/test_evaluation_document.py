"""What is published tells of no small cell, not even by subtraction."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common import evaluation
from common.errors import ConfigError, InternalError
from common.evaluation_document import LEAST, band_counts, document, published
from common.medical import auroc
from common.quantise import Coding, VectorEncoder
from common.secagg.header import Rounding, quant_bound
from common.study import Study, parse_study
from common.subgroups import cells, members, shown_cells
from tests.small_study import small_text
from tests.unit.common.test_evaluation import ranges_of

GROUPS = """\
evaluate: {subgroups: [{feature: sex}, {feature: age, bands: [50, 65]}]}
"""


def study(evaluate: str = GROUPS) -> Study:
    text = small_text().replace(
        "features: [{name: age, type: float}]",
        'features: [{name: age, type: float}, {name: sex, type: category, levels: ["0", "1"]}]',
    )
    return parse_study(text + evaluate)


def rows(count: int, seed: int) -> tuple[NDArray[np.float64], ...]:
    rng = np.random.default_rng(seed)
    values = np.stack([rng.normal(57, 10, count), rng.integers(0, 2, count).astype(float)], axis=1)
    values[rng.random(count) < 0.1, 0] = np.nan
    y = (rng.random(count) < 0.4).astype(np.float64)
    return values, 1 / (1 + np.exp(-rng.normal(size=count) - y)), y


def opened(
    terms: Study, sites: list[tuple[NDArray[np.float64], ...]]
) -> tuple[NDArray[np.int64], int]:
    bound = quant_bound(len(sites), evaluation.RING_BITS)
    schema = evaluation.layout(terms)
    coding = Coding(bound, evaluation.RING_BITS, Rounding.EVEN)
    total = np.zeros(schema.words, np.int64)
    for values, p, y in sites:
        own = evaluation.contribution(terms, p, y, members(terms, values), levels=bound)
        words = np.empty(schema.words, np.uint64)
        VectorEncoder(schema, own, ranges=ranges_of(terms, bound), coding=coding).fill(words, 0)
        total += words.view(np.int64)
    return total[: schema.parameters], bound


def test_subgroups_of_the_sum_are_those_of_all_rows() -> None:
    terms = study()
    sites = [rows(300, seed) for seed in range(3)]
    words, bound = opened(terms, sites)
    values, p, y = (np.concatenate([site[k] for site in sites]) for k in range(3))
    inside = [values[:, 1] == 0, values[:, 1] == 1, values[:, 0] < 50]
    inside += [(values[:, 0] >= 50) & (values[:, 0] < 65), values[:, 0] >= 65]
    found = evaluation.pooled_cells(terms, words, bound)
    labels = ["0", "1", "<50", "50 to <65", ">=65"]
    assert [cell.label for cell in cells(terms)] == labels
    for one, cell in zip(found, inside, strict=True):
        exact = evaluation.site_metrics(terms, p[cell], y[cell]).as_dict(terms)
        for name, value in one.as_dict(terms).items():
            steep = 4.0 if name.startswith("calibration_slope") else 1.0
            assert value == pytest.approx(exact[name], abs=0.002 * steep), name


def test_a_contribution_that_was_not_told_its_subgroups_is_an_error() -> None:
    values, p, y = rows(50, 1)
    with pytest.raises(InternalError):
        evaluation.contribution(study(), p, y, levels=2**52)
    with pytest.raises(InternalError):
        evaluation.contribution(study(), p, y, members(study(), values)[:2], levels=2**52)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=8),
    st.tuples(st.integers(0, 12), st.integers(0, 12)),
)
def test_neither_a_cell_nor_what_is_left_is_small(
    pairs: list[tuple[int, int]], missing: tuple[int, int]
) -> None:
    counts = np.array(pairs, np.float64)
    total = counts.sum(axis=0) + missing
    shown = shown_cells(counts, total, LEAST)
    assert (counts[shown] >= LEAST).all()
    left = total - counts[shown].sum(axis=0)
    if shown.any():
        assert (left == 0).all() or (left >= LEAST).all()
    if (counts >= LEAST).all() and missing == (0, 0):
        assert shown.all()


def test_one_small_cell_takes_a_second_one_with_it() -> None:
    counts = np.array([[40.0, 30.0], [3.0, 8.0], [20.0, 15.0]])
    assert shown_cells(counts, counts.sum(axis=0), LEAST).tolist() == [True, False, False]


def test_published_bands_are_large_and_keep_the_auroc() -> None:
    terms = study()
    words, bound = opened(terms, [rows(300, seed) for seed in range(3)])
    everybody = evaluation.pooled(terms, words, bound)
    body = json.loads(document(terms, everybody, evaluation.pooled_cells(terms, words, bound)))
    assert all(band["healthy"] + band["sick"] >= LEAST for band in body["bands"])
    assert sum(band["sick"] for band in body["bands"]) == body["figures"]["positives"]
    found = auroc(band_counts(body["bands"]), 0.95).value
    assert found == pytest.approx(body["figures"]["auroc"], abs=0.01)
    yes = [band for band in body["bands"] if band["score"] > 0.5]
    assert sum(band["sick"] for band in yes) == body["figures"]["true_positive"]


def test_few_rows_leave_no_document_and_few_of_a_class_no_subgroup() -> None:
    terms = study()
    words, bound = opened(terms, [rows(4, 1), rows(3, 2)])
    groups = evaluation.pooled_cells(terms, words, bound)
    assert document(terms, evaluation.pooled(terms, words, bound), groups) == ""
    values, p, _ = rows(80, 3)
    few = (np.arange(80) < 9).astype(np.float64)
    words, bound = opened(terms, [(values, p, few), rows(0, 1)])
    groups = evaluation.pooled_cells(terms, words, bound)
    body = json.loads(document(terms, evaluation.pooled(terms, words, bound), groups))
    assert body["bands"] == []
    assert "auroc" not in body["figures"]
    assert all(group["figures"] is None for group in body["subgroups"])


def test_a_table_with_a_small_margin_is_not_published() -> None:
    p = np.concatenate([np.full(5, 0.9), np.linspace(0.1, 0.4, 55)])
    y = (np.arange(60) % 2).astype(np.float64)
    found = published(evaluation.site_metrics(study(), p, y))
    assert found is not None
    names = set(dict(found.detail))
    assert "auprc" in names
    assert not names & {"true_positive", "sensitivity", "sensitivity_low", "npv_high"}


def by_sex(first: list[float], second: list[float]) -> list[dict[str, object]]:
    """Return the published cells of sex 0 and 1; every other row of each is sick."""
    terms = study("evaluate: {subgroups: [{feature: sex}]}\n")
    p = np.array(first + second)
    sex = np.array([0.0] * len(first) + [1.0] * len(second))
    values = np.stack([np.full(len(p), 60.0), sex], axis=1)
    words, bound = opened(terms, [(values, p, (np.arange(len(p)) % 2).astype(np.float64))])
    groups = evaluation.pooled_cells(terms, words, bound)
    body = json.loads(document(terms, evaluation.pooled(terms, words, bound), groups))
    assert "true_positive" in body["figures"]
    return [cell["figures"] for cell in body["subgroups"]]


def test_a_subgroups_small_table_does_not_follow_from_the_others() -> None:
    few = by_sex([0.9] * 3 + [0.1] * 57, [0.9] * 40 + [0.1] * 40)
    for figures in few:
        assert "auroc" in figures
        assert not set(figures) & {"true_positive", "sensitivity", "npv_high"}
    for figures in by_sex([0.9] * 20 + [0.1] * 40, [0.9] * 40 + [0.1] * 40):
        assert {"true_positive", "sensitivity", "npv_high"} <= set(figures)


@pytest.mark.parametrize(
    ("evaluate", "said"),
    [
        (
            "evaluate: {subgroups: [{feature: age, bands: [50]}, {feature: age, bands: [51]}]}\n",
            "two ways of cutting one feature",
        ),
    ],
)
def test_a_feature_is_cut_once(evaluate: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        study(evaluate)
