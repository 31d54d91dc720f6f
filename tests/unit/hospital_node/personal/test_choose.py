"""Which model a hospital ends with: judged on rows unseen, never worse than its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize

from common.features import Encoded, encoded_columns
from common.models import initial, initial_own
from common.preprocessing import Preprocessing
from common.site import load_site
from common.study import FedBn, Study, load_study
from common.weights import weight
from hospital_node.baselines import local_only
from hospital_node.data.invent.files import generate
from hospital_node.data.invent.knobs import scenario
from hospital_node.data.load import SiteData, load_table
from hospital_node.evaluate import predict, site_metrics
from hospital_node.personal import choose as choosing
from hospital_node.personal.choose import Choice, Rows, choose, folds, row_losses
from hospital_node.personal.fits import (
    RIDGE,
    Start,
    exact_near,
    families,
    fit,
    logit,
    platt,
    recalibrated,
)
from hospital_node.personal_state import DITTO, FEDBN
from hospital_node.train import train
from tests.learning import study

FEATURES = """
  - {name: a, type: float}
  - {name: b, type: float}
"""
NONE = Encoded(np.empty((0, 2), np.float32), np.empty(0, np.float32))
MODELS = ("{kind: logistic}", "{kind: mlp, hidden: [4]}")


def drawn(seed: int, rows: int = 60, slope: float = 2.0, shift: float = 0.0) -> Rows:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (rows, 2)).astype(np.float32)
    sick = (slope * x[:, 0] + shift + rng.logistic(0, 1, rows) > 0).astype(np.float32)
    return Rows(Encoded(x, sick), np.arange(rows, dtype=np.int64) // 2, NONE)


def small(model: str = MODELS[0], more: str = "") -> Study:
    return study(FEATURES, model=model, more=more)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), model=st.sampled_from(MODELS), shift=st.floats(-3, 3))
def test_by_the_measure_that_chooses_no_hospital_is_worse_than_its_own_model(
    seed: int, model: str, shift: float
) -> None:
    asked = small(model)
    released = initial(asked) + np.float32(0.3)
    found = choose(asked, "north", drawn(seed, shift=shift), released)
    fitted = {"federated", "recalibrated", "fine-tuned", "ditto", "own"}
    assert fitted <= set(found.figures) <= {*fitted, "averaged"}
    chosen = found.figures[found.family]
    assert chosen.loss <= found.figures["own"].loss
    if found.family != "averaged":
        assert all(chosen.loss <= found.figures[other].loss for other in fitted)
    assert f"{chosen.loss:.4f}" in found.why


def test_the_figure_of_a_local_fit_is_that_of_a_plain_loop_over_the_folds() -> None:
    asked, rows = small(), drawn(3)
    found = choose(asked, "north", rows, initial(asked))
    fold, losses = folds(asked, "north", rows), []
    for k in range(5):
        others = np.flatnonzero(fold != k)
        data = Encoded(rows.train.features[others], rows.train.target[others])
        weights = local_only(asked, {"north": data})["north"]
        for row in np.flatnonzero(fold == k):
            z = float(rows.train.features[row] @ weights[:2] + weights[2])
            p = 1 / (1 + np.exp(-z))
            losses.append(-np.log(p if rows.train.target[row] else 1 - p))
    assert found.figures["own"].loss == pytest.approx(np.mean(losses), rel=1e-5)
    spread = np.std(losses, ddof=1) / np.sqrt(len(losses))
    assert found.figures["own"].se == pytest.approx(spread, rel=1e-5)


def test_no_candidate_is_judged_on_a_row_that_its_fit_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = small(more="personal: {candidates: [federated, recalibrated, fine-tuned, own]}")
    rows = drawn(4)
    fitted: list[set[bytes]] = []
    judged: list[bytes] = []

    def spy_fit(*args: object) -> Mapping[str, NDArray[np.float32]]:
        data = args[2]
        assert isinstance(data, Encoded)
        fitted.append({row.tobytes() for row in data.features})
        return fit(*args)  # type: ignore[arg-type]

    def spy_predict(
        of: Study, weights: NDArray[np.float32], features: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        seen = [row.tobytes() for row in features]
        assert not fitted[-1] & set(seen)
        judged.extend(seen)
        return predict(of, weights, features)

    monkeypatch.setattr(choosing, "fit", spy_fit)
    monkeypatch.setattr(choosing, "predict", spy_predict)
    choose(asked, "north", rows, initial(asked))
    every = {row.tobytes() for row in rows.train.features}
    assert set(judged) == every
    assert len({judged.count(row) for row in every}) == 1


def test_one_patients_rows_share_a_fold_and_the_folds_share_the_classes() -> None:
    rows = drawn(5, rows=100, shift=-2)
    fold = folds(small(), "north", rows)
    assert all(len({*fold[rows.patient == one]}) == 1 for one in np.unique(rows.patient))
    sick = [len({*rows.patient[(fold == k) & (rows.train.target > 0)]}) for k in range(5)]
    assert max(sick) - min(sick) <= 1
    sizes = [int((fold == k).sum()) for k in range(5)]
    assert max(sizes) - min(sizes) <= 2


def test_validation_rows_judge_where_there_are_any() -> None:
    asked, rows = small(), drawn(6)
    fresh = drawn(7).train
    found = choose(asked, "north", Rows(rows.train, rows.patient, fresh), initial(asked))
    weights = local_only(asked, {"north": rows.train})["north"]
    mean = row_losses(
        asked, predict(asked, weights, fresh.features), fresh.target.astype(np.float64)
    ).mean()
    assert found.figures["own"].loss == pytest.approx(float(mean))
    assert "validation patients" in found.why


def test_few_patients_keep_the_released_model_and_say_so() -> None:
    asked, released = small(), initial(small()) + np.float32(1)
    found = choose(asked, "north", drawn(8, rows=18), released)
    assert (found.family, found.figures) == ("federated", {})
    assert np.array_equal(found.weights, released)
    assert "too few patients" in found.why


def test_a_model_that_knows_these_patients_is_kept_and_a_wrong_one_is_not() -> None:
    asked, rows = small(more="personal: {candidates: [federated, own]}"), drawn(9)
    right = np.array([2, 0, 0], np.float32)
    assert choose(asked, "north", rows, right).family == "federated"
    assert choose(asked, "north", rows, -right).family == "own"


def test_the_choice_is_the_same_bits_again() -> None:
    asked, rows = small(MODELS[1]), drawn(10)
    first, second = (choose(asked, "north", rows, initial(asked)) for _ in range(2))
    assert first.weights.tobytes() == second.weights.tobytes()
    assert first.figures == second.figures


# --- the fits -------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 50), sick=st.floats(0, 1))
def test_platts_map_is_the_minimum_that_a_general_optimiser_finds(
    seed: int, rows: int, sick: float
) -> None:
    rng = np.random.default_rng(seed)
    z, y = rng.normal(0, 2, rows), (rng.random(rows) < sick).astype(np.float64)
    high, low = (y.sum() + 1) / (y.sum() + 2), 1 / (rows - y.sum() + 2)
    goal = np.where(y > 0, high, low)

    def cost(map_: NDArray[np.float64]) -> float:
        at = map_[0] + map_[1] * z
        data = np.logaddexp(0, at) - goal * at
        penalty = 0.1 * RIDGE * map_[0] ** 2 + RIDGE * (map_[1] - 1) ** 2
        return float(data.sum() + penalty / 2)

    best = minimize(cost, [0.0, 1.0], method="BFGS").x
    a, b = platt(z, y)
    assert (a, b) == pytest.approx((best[0], best[1]), abs=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_recalibration_moves_the_logit_and_nothing_else(model: str) -> None:
    asked, data = small(model), drawn(11, shift=2).train
    released = initial(asked) + np.float32(0.2)
    z = logit(predict(asked, released, data.features))
    a, b = platt(z, data.target.astype(np.float64))
    moved = logit(predict(asked, recalibrated(asked, data, released), data.features))
    assert moved == pytest.approx(a + b * z, abs=1e-4)


def test_a_number_is_recalibrated_by_least_squares() -> None:
    asked = study(FEATURES, target="{type: continuous, name: y}", model="{kind: mlp, hidden: [3]}")
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1, (400, 2)).astype(np.float32)
    released = initial(asked)
    f = predict(asked, released, x)
    data = Encoded(x, (3 + 2 * f + rng.normal(0, 0.1, 400)).astype(np.float32))
    moved = predict(asked, recalibrated(asked, data, released), x)
    slope, intercept = np.polyfit(f, moved, 1)
    assert (slope, intercept) == pytest.approx((2, 3), abs=0.1)


def test_the_harder_ditto_pulls_the_nearer_it_stays() -> None:
    data, released = drawn(12).train, np.array([-1, 1, 0.5], np.float32)
    gaps = []
    for pull in (0.001, 0.1, 10, 1000):
        asked = study(
            FEATURES,
            federation=f"{{strategy: {{name: ditto, lambda: {pull}}}, rounds: 3}}",
        )
        (weights,) = fit(
            asked, "north", data, Start(released, released, released), "ditto"
        ).values()
        gaps.append(float(np.linalg.norm(weights - released)))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 1
    assert gaps[-1] < 0.01


def test_own_is_what_reports_call_local_only() -> None:
    asked, data = small(), drawn(13).train
    (weights,) = fit(asked, "north", data, Start(*[initial(asked) + 1] * 3), "own").values()
    assert weights.tobytes() == local_only(asked, {"north": data})["north"].tobytes()


# --- hospitals whose patients differ ----------------------------------------------------------


def constants(asked: Study, sites: Mapping[str, SiteData]) -> Preprocessing:
    values = np.concatenate([data.train.values for data in sites.values()])
    columns = encoded_columns(asked)
    shown = [
        values[:, c.feature] if c.level is None else (values[:, c.feature] == c.level) * 1.0
        for c in columns
    ]
    return Preprocessing(
        tuple(c.name for c in columns),
        tuple(float(x.mean()) for x in shown),
        tuple(float(x.std()) or 1.0 for x in shown),
        tuple(0.0 for _ in asked.features),
    )


def federate(asked: Study, rows: Mapping[str, Encoded]) -> NDArray[np.float32]:
    """FedAvg in the clear, on the hospitals' own rounds of training."""
    model = initial(asked)
    shares = {site: weight(asked, site, data.rows) for site, data in rows.items()}
    for _ in range(asked.federation.rounds):
        moves = [
            shares[site] * train(asked, data, model, site=site).delta for site, data in rows.items()
        ]
        model = (model + sum(moves) / sum(shares.values())).astype(np.float32)
    return model


def shifted(folder: Path, seed: int, concept: float) -> list[tuple[Choice, float, float]]:
    """Five generated hospitals of 105 training patients: each one's choice, and log-losses
    on 1,395 test patients of the personal model and of local only."""
    knobs = scenario("feature-shift", rows=1500, concept_shift=concept)
    written = generate(folder / str(seed), knobs, seed)
    asked = load_study(written.study)
    asked = asked.model_copy(
        update={
            "split": asked.split.model_copy(update={"test": 0.93}),
            "federation": asked.federation.model_copy(update={"rounds": 8}),
        }
    )
    sites = {
        path.parent.name: load_table(asked, load_site(path).table(asked.dataset))
        for path in written.manifests
    }
    encode = constants(asked, sites).encode
    rows = {site: encode(asked, data.train) for site, data in sites.items()}
    released, own = federate(asked, rows), local_only(asked, rows)
    found = []
    for site, data in sites.items():
        patients, test = data.train.patient, encode(asked, data.test)
        given = Rows(rows[site], patients, encode(asked, data.validation))
        choice = choose(asked, site, given, released)
        losses = [
            float(site_metrics(asked, weights, test).log_loss or 0)
            for weights in (choice.weights, own[site])
        ]
        found.append((choice, losses[0], losses[1]))
    return found


@pytest.mark.parametrize("seed", [1])
def test_with_strong_feature_shift_no_site_is_worse_than_local_and_the_mean_is_better(
    tmp_path: Path, seed: int
) -> None:
    found = shifted(tmp_path, seed, concept=0.0)
    assert len(found) == 5
    for _choice, personal, own in found:
        assert personal <= own
    assert np.mean([own - personal for _, personal, own in found]) > 0.015


def test_where_the_effects_differ_too_no_site_is_worse_than_local_and_the_mean_is_better(
    tmp_path: Path,
) -> None:
    found = shifted(tmp_path, 0, concept=0.5)
    assert all(personal <= own for _, personal, own in found)
    assert np.mean([own - personal for _, personal, own in found]) > 0.01


# --- strategies that keep tensors, or fit exactly ---------------------------------------------


def test_what_the_run_fitted_to_all_rows_has_no_part_in_a_comparison_on_them() -> None:
    asked = study(FEATURES, federation="{strategy: {name: ditto, lambda: 0.5}, rounds: 3}")
    rows, released = drawn(14), initial(asked)
    kept = {DITTO: np.array([5, -5, 1], np.float32)}
    plain = choose(asked, "north", rows, released)
    found = choose(asked, "north", rows, released, kept)
    assert found.figures == plain.figures
    norms = small("{kind: mlp, hidden: [4], norm: batch}").federation.model_copy(
        update={"strategy": FedBn(name="fedbn")}
    )
    asked = small("{kind: mlp, hidden: [4], norm: batch}").model_copy(update={"federation": norms})
    own = {FEDBN: initial_own(asked) + np.float32(0.25)}
    first = choose(asked, "north", rows, initial(asked))
    second = choose(asked, "north", rows, initial(asked), own)
    assert first.figures == second.figures


def exact(more: str = "") -> Study:
    return study(FEATURES, federation=f"{{strategy: {{name: newton{more}}}, rounds: 12}}")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), pull=st.floats(0.01, 10))
def test_an_exact_fit_near_the_released_one_is_the_minimum_of_a_general_optimiser(
    seed: int, pull: float
) -> None:
    data, home = drawn(seed, rows=40).train, np.array([1, -1, 0.5], np.float32)
    x = np.column_stack([data.features.astype(np.float64), np.ones(data.rows)])

    def cost(at: NDArray[np.float64]) -> float:
        z = x @ at
        nll = float((np.logaddexp(0, z) - data.target * z).sum())
        return nll + pull * data.rows / 2 * float(((at - home) ** 2).sum())

    best = minimize(cost, home.astype(np.float64), method="BFGS").x
    assert exact_near(exact(), data, home, pull * data.rows) == pytest.approx(best, abs=1e-3)


def test_the_exact_fit_of_one_class_or_of_separated_classes_stays_finite() -> None:
    asked, data = exact(), drawn(15).train
    home = Start(*[np.zeros(3, np.float32)] * 3)
    for target in (np.ones(data.rows), data.features[:, 0] > 0):
        one = Encoded(data.features, target.astype(np.float32))
        for family in families(asked):
            for weights in fit(asked, "north", one, home, family).values():
                assert np.isfinite(weights).all()
                assert np.abs(weights).max() < 40
