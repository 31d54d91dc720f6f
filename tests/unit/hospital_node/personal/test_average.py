"""The average of own and likely models: what it is, when it is kept, what convexity promises."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from common.features import Encoded
from common.models import initial
from common.study import Study
from hospital_node.evaluate import predict
from hospital_node.personal import average
from hospital_node.personal.choose import Choice, Rows, choose, folds, row_losses
from hospital_node.personal.fits import fit, start
from tests.learning import study

FEATURES = "\n  - {name: a, type: float}\n  - {name: b, type: float}\n"
NONE = Encoded(np.empty((0, 2), np.float32), np.empty(0, np.float32))
RELEASED = np.array([1.4, 0.2, 0.1], np.float32)
TARGETS = {
    "logistic": "{type: binary, name: sick}",
    "linear": "{type: continuous, name: y}",
}


def asked(kind: str = "logistic", more: str = "") -> Study:
    return study(FEATURES, target=TARGETS[kind], model=f"{{kind: {kind}}}", more=more)


def drawn(seed: int, kind: str = "logistic", count: int = 80) -> Rows:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (count, 2)).astype(np.float32)
    z = 1.5 * x[:, 0] + rng.logistic(0, 1, count)
    y = (z if kind == "linear" else z > 0).astype(np.float32)
    return Rows(Encoded(x, y), np.arange(count, dtype=np.int64), NONE)


@cache
def averaging(kind: str = "logistic") -> tuple[Study, Rows, Choice]:
    """A hospital whose patients follow the released model about as well as its own."""
    for seed in range(20):
        wanted, rows = asked(kind), drawn(seed, kind)
        found = choose(wanted, "north", rows, RELEASED)
        if found.family == "averaged":
            return wanted, rows, found
    raise AssertionError("no hospital of twenty averages")


def members(found: Choice) -> list[str]:
    setting = found.figures["averaged"].setting
    assert setting.startswith("half own, half ")
    return setting.removeprefix("half own, half ").split(" and ")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 4), kind=st.sampled_from(list(TARGETS)))
def test_for_any_patients_it_loses_no_more_than_own_and_the_others_do_on_average(
    seed: int, count: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    models = rng.normal(0, 0.7, (count + 1, 3)).astype(np.float32)  # far from the floor of log
    data = drawn(seed, kind).train
    target = data.target.astype(np.float64)

    def loss(weights: NDArray[np.float32]) -> NDArray[np.float64]:
        return row_losses(asked(kind), predict(asked(kind), weights, data.features), target)

    mixed = average.mixed(models[0], list(models[1:]))
    bound = loss(models[0]) / 2 + np.mean([loss(one) for one in models[1:]], axis=0) / 2
    assert (loss(mixed) <= bound + 1e-5 * np.maximum(1, bound)).all()


@pytest.mark.parametrize("kind", list(TARGETS))
def test_it_is_half_own_and_half_the_mean_of_the_others_fitted_to_all_rows(kind: str) -> None:
    wanted, rows, found = averaging(kind)
    whole = start(wanted, "north", rows.train, RELEASED)

    def fitted(name: str) -> NDArray[np.float64]:
        models = fit(wanted, "north", rows.train, whole, name)
        return models[found.figures[name].setting].astype(np.float64)

    others = np.mean([fitted(name) for name in members(found)], axis=0)
    assert found.weights == pytest.approx((fitted("own") + others) / 2, abs=1e-6)
    assert "Nothing is clearly better" in found.why


def test_its_held_out_loss_is_that_of_a_plain_loop_over_the_folds() -> None:
    wanted, rows, found = averaging()
    fold, losses = folds(wanted, "north", rows), []
    for k in range(5):
        kept = np.flatnonzero(fold != k)
        data = Encoded(rows.train.features[kept], rows.train.target[kept])
        at = start(wanted, "north", data, RELEASED)
        shares = {"own": 0.5, **dict.fromkeys(members(found), 0.5 / len(members(found)))}
        for row in np.flatnonzero(fold == k):
            z = 0.0
            for name, share in shares.items():
                weights = fit(wanted, "north", data, at, name)[found.figures[name].setting]
                z += share * float(rows.train.features[row] @ weights[:2] + weights[2])
            p = 1 / (1 + np.exp(-z))
            losses.append(-np.log(p if rows.train.target[row] else 1 - p))
    assert found.figures["averaged"].loss == pytest.approx(np.mean(losses), rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), gap=st.floats(-1, 1), errors=st.sampled_from([1.0, 2.0]))
def test_worse_is_a_paired_t_statistic_above_the_bound(
    seed: int, gap: float, errors: float
) -> None:
    rng = np.random.default_rng(seed)
    than = rng.exponential(size=30)
    found = than + rng.normal(gap, 1, 30)
    statistic = float(stats.ttest_rel(found, than).statistic)
    assert average.worse(found, than, errors) == (statistic > errors)


def test_the_others_are_those_not_told_from_the_best_and_never_own() -> None:
    rng = np.random.default_rng(1)
    base, noise = rng.exponential(size=100), rng.normal(0, 0.1, (2, 100))
    losses = {"ditto": base, "federated": base + noise[0] - noise[0].mean() + 0.005,
              "fine-tuned": base + noise[1] - noise[1].mean() + 0.05,
              "own": base + 0.001}  # fmt: skip
    assert average.near(losses) == ("ditto", "federated")
    losses["own"] = base - 1  # better than all by far: then nothing is left to average with
    assert average.near(losses) == ()


def test_it_is_kept_unless_it_is_worse_than_own_or_clearly_worse_than_the_best() -> None:
    rng = np.random.default_rng(2)
    best = rng.exponential(size=100)
    away = rng.normal(0, 0.1, 100)
    away -= away.mean()  # a standard error of about 0.01
    losses = {"federated": best, "own": best + 1.0}
    assert average.preferred(best + away + 0.015, losses)
    assert not average.preferred(best + away + 0.025, losses)
    losses = {"federated": best, "own": best + 0.005}
    assert not average.preferred(best + away + 0.006, losses)
    assert average.preferred(best + away + 0.004, losses)


def test_a_wrong_release_has_no_part_in_it() -> None:
    more = "personal: {candidates: [federated, own, averaged]}"
    found = choose(asked(more=more), "north", drawn(3), -4 * RELEASED)
    assert found.family == "own"


def test_deep_models_and_studies_without_own_or_another_have_none() -> None:
    assert average.possible(asked())
    assert not average.possible(study(FEATURES, model="{kind: mlp, hidden: [3]}"))
    for names in ("[federated, averaged]", "[own, averaged]", "[federated, own]"):
        assert not average.possible(asked(more=f"personal: {{candidates: {names}}}"))
    alone = asked(more="personal: {candidates: [averaged]}")
    assert choose(alone, "north", drawn(1), initial(alone)).family == "federated"
