"""Each level against the rest: scikit-learn's figures, the same over the wire within 0.002."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax
from sklearn import metrics as reference

from common import evaluation, multiclass
from common.evaluation import Metrics
from common.evaluation_document import LEAST, document, published
from common.multiclass import ByLevel
from common.study import Study
from hospital_node.disclosure import shown_figures
from tests.learning import study
from tests.unit.common.test_evaluation import opened

Floats = NDArray[np.float64]
LEVELS = ("benign", "doubtful", "malignant")
Z = 1.959964


def terms(levels: tuple[str, ...] = LEVELS) -> Study:
    return study(target=f"{{type: multiclass, name: kind, levels: [{', '.join(levels)}]}}")


def sample(rows: int, seed: int, stretch: float = 1.0, rare: float = 0.0) -> tuple[Floats, Floats]:
    """Return P(level) [rows, 3] and levels [rows]; `rare` > 0: few rows of the last one."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, 3)) - np.array([0.0, 0.5, rare])
    truth = np.array([rng.choice(3, p=row) for row in softmax(scores, axis=1)], np.float64)
    return softmax(stretch * scores, axis=1), truth


def by_level(found: Metrics) -> ByLevel:
    assert found.by_level is not None
    return found.by_level


def test_exact_figures_are_scikit_learns() -> None:
    p, y = sample(400, 1)
    found = evaluation.site_metrics(terms(), p, y)
    levels = by_level(found)
    ovr = reference.roc_auc_score(y, p, multi_class="ovr", average=None)
    assert [one.auroc.value for one in levels.levels] == pytest.approx(list(ovr), abs=1e-12)
    assert found.auroc == pytest.approx(ovr.mean(), abs=1e-12)
    assert np.array(levels.confusion) == pytest.approx(
        reference.confusion_matrix(y, p.argmax(axis=1))
    )
    recall, precision = (
        score(y, p.argmax(axis=1), average=None)
        for score in (reference.recall_score, reference.precision_score)
    )
    assert [one.sensitivity.value for one in levels.levels] == pytest.approx(list(recall))
    assert [one.ppv.value for one in levels.levels] == pytest.approx(list(precision))
    assert found.brier == pytest.approx(((p - np.eye(3)[y.astype(int)]) ** 2).sum(axis=1).mean())


def test_intervals_of_a_level_are_those_of_its_yes_or_no_question() -> None:
    p, y = sample(300, 2)
    levels = by_level(evaluation.site_metrics(terms(), p, y)).levels
    for k, level in enumerate(levels):
        binary = evaluation.site_metrics(study(), p[:, k], (y == k).astype(np.float64))
        named = binary.as_dict(study())
        assert (level.auroc.low, level.auroc.high) == (named["auroc_low"], named["auroc_high"])
        assert level.rows == named["positives"]


def test_the_mean_aurocs_interval_holds_the_one_of_the_rows_influences() -> None:
    """The oracle sums each row's part in all three AUROCs, so it knows their covariance."""
    p, y = sample(300, 3)
    influence, values = np.zeros(300), []
    for k in range(3):
        own = y == k
        wins = (p[own, k][:, None] > p[~own, k]) + 0.5 * (p[own, k][:, None] == p[~own, k])
        values.append(wins.mean())
        influence[own] += (wins.mean(axis=1) - wins.mean()) / own.sum() / 3
        influence[~own] += (wins.mean(axis=0) - wins.mean()) / (~own).sum() / 3
    value, error = np.mean(values), np.sqrt((influence**2).sum())
    found = evaluation.site_metrics(terms(), p, y).as_dict(terms())
    half = Z * error / (value * (1 - value))
    low, high = found["auroc_low"], found["auroc_high"]
    assert low is not None
    assert high is not None
    assert low < expit(logit(value) - half) < expit(logit(value) + half) < high
    assert high - low < 2.5 * (expit(logit(value) + half) - expit(logit(value) - half))


def test_the_brier_scores_interval_is_that_of_a_mean() -> None:
    p, y = sample(150, 4)
    each = ((p - np.eye(3)[y.astype(int)]) ** 2).sum(axis=1)
    half = Z * each.std(ddof=1) / np.sqrt(150)
    for found in (
        evaluation.site_metrics(terms(), p, y),
        opened(terms(), [(p[:60], y[:60]), (p[60:], y[60:])]),
    ):
        named = found.as_dict(terms())
        assert named["brier_low"] == pytest.approx(each.mean() - half, abs=1e-6)
        assert named["brier_high"] == pytest.approx(each.mean() + half, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(1.0, 0.0), (1.0, 2.0), (0.1, 0.0), (8.0, 0.0), (40.0, 0.0)]),
    st.integers(400, 2000),
)
def test_pooled_figures_are_within_0_002_of_the_exact_ones(
    seed: int, shape: tuple[float, float], rows: int
) -> None:
    """Hesitant, crowded and very sure scores, and a rare level."""
    p, y = sample(rows, seed, *shape)
    cut = rows // 3
    exact = evaluation.site_metrics(terms(), p, y)
    found = opened(terms(), [(p[:cut], y[:cut]), (p[cut:], y[cut:])])
    pairs = [(found.as_dict(terms()), exact.as_dict(terms()))]
    for one, other in zip(by_level(found).levels, by_level(exact).levels, strict=True):
        assert (one.rows, one.predicted) == (other.rows, other.predicted)
        assert one.sensitivity == other.sensitivity
        assert one.auroc.value == pytest.approx(other.auroc.value, abs=0.002)
        assert one.auroc.low == pytest.approx(other.auroc.low, abs=0.002)
    for mine, theirs in pairs:
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, abs=0.002), name
    assert by_level(found).confusion == by_level(exact).confusion


def test_a_level_that_nobody_has_leaves_no_mean() -> None:
    p, y = sample(100, 5)
    y = np.where(y == 2, 0.0, y)
    for found in (evaluation.site_metrics(terms(), p, y), opened(terms(), [(p, y)] * 2)):
        assert found.auroc is None
        assert by_level(found).levels[2].auroc.value is None
        assert by_level(found).levels[0].auroc.value is not None
        assert found.accuracy is not None


def test_more_levels_than_a_sum_can_carry_have_the_plain_figures() -> None:
    many = terms(tuple(f"l{k}" for k in range(multiclass.MOST_LEVELS + 1)))
    rng = np.random.default_rng(6)
    p = rng.dirichlet(np.ones(33), 200)
    y = rng.integers(0, 33, 200).astype(np.float64)
    found = evaluation.site_metrics(many, p, y)
    assert (found.auroc, found.by_level) == (None, None)
    assert opened(many, [(p, y), (p, y)]).accuracy == pytest.approx(found.accuracy)
    assert evaluation.layout(many).parameters == 5
    most = terms(tuple(f"l{k}" for k in range(multiclass.MOST_LEVELS)))
    assert evaluation.layout(most).parameters < 300_000


# --- what is published --------------------------------------------------------------------------


def labelled(counts: tuple[int, int, int], said: tuple[int, int, int]) -> tuple[Floats, Floats]:
    """Return rows with so many of each true level and so many said to be of each."""
    y = np.repeat([0.0, 1.0, 2.0], counts)
    says = np.random.default_rng(7).permutation(np.repeat([0, 1, 2], said))
    return np.full((len(y), 3), 0.2) + 0.4 * np.eye(3)[says], y


def test_a_rare_level_leaves_nothing_by_level_and_no_way_to_its_count() -> None:
    p, y = labelled((60, 51, 9), (40, 40, 40))
    found = published(evaluation.site_metrics(terms(), p, y))
    assert found is not None
    assert (found.auroc, found.detail, found.by_level) == (None, (), None)
    assert found.accuracy is not None
    p, y = labelled((60, 60, 0), (60, 60, 0))
    assert published(evaluation.site_metrics(terms(), p, y)) is not None


def test_a_level_that_few_are_said_to_be_of_takes_the_table_and_its_rates() -> None:
    p, y = labelled((50, 40, 30), (60, 51, 9))
    found = evaluation.site_metrics(terms(), p, y)
    body = json.loads(document(terms(), found, ()))
    assert body["confusion"] == []
    assert [level["predicted"] for level in body["levels"]] == [None] * 3
    assert [level["rows"] for level in body["levels"]] == [50, 40, 30]
    names = {name for level in body["levels"] for name in level["figures"]}
    assert names == {"auroc", "auroc_low", "auroc_high"}


def test_the_document_holds_the_table_and_each_levels_figures() -> None:
    p, y = sample(600, 8)
    found = opened(terms(), [(p[:200], y[:200]), (p[200:], y[200:])])
    body = json.loads(document(terms(), found, ()))
    assert np.array(body["confusion"]).sum() == 600
    assert [level["level"] for level in body["levels"]] == list(LEVELS)
    assert body["levels"][2]["figures"]["sensitivity_low"] > 0
    assert body["figures"]["auroc"] == pytest.approx(found.auroc)


@given(st.tuples(*[st.integers(0, 30)] * 3), st.tuples(*[st.integers(0, 30)] * 3))
def test_no_count_by_level_that_is_published_is_small(
    true: tuple[int, int, int], said: tuple[int, int, int]
) -> None:
    rows = max(sum(true), sum(said))
    true, said = (true[0] + rows - sum(true), *true[1:]), (said[0] + rows - sum(said), *said[1:])
    p, y = labelled(true, said)
    found = published(evaluation.site_metrics(terms(), p, y))
    if found is None or found.by_level is None:
        return
    for level in found.by_level.levels:
        assert level.rows == 0 or level.rows >= LEAST
        assert level.predicted is None or level.predicted == 0 or level.predicted >= LEAST
    if found.by_level.confusion:
        margins = np.array(found.by_level.confusion).sum(axis=0)
        assert all(count == 0 or count >= LEAST for count in margins)


def test_a_hospitals_own_report_has_no_auroc_over_a_rare_level() -> None:
    from common.evaluation_document import withheld

    p, y = labelled((60, 51, 9), (40, 40, 40))
    found = withheld(evaluation.site_metrics(terms(), p, y), 10)
    shown = shown_figures(found.as_dict(terms()), 10)
    assert shown["auroc"] is None
    assert "auroc_low" not in shown
    assert shown["rows"] == 120
