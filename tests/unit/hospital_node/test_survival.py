"""Cox, Poisson and linear models train as independent computations say; rare classes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from common import models
from common.errors import DataError, Refusal
from common.features import Encoded
from common.study import Study
from hospital_node import losses
from hospital_node.evaluate import evaluation_contribution, judged, predict, site_metrics
from hospital_node.imbalance import balanced_order, class_weights, focal
from hospital_node.train import train
from tests.learning import study

SURVIVAL = "{type: survival, time: t, event: e}"


def cox(model: str = "{kind: cox}", batch: int = 64, steps: int = 1, lr: float = 0.1) -> Study:
    terms = f"{{lr: {lr}, batch: {batch}, local_steps: {steps}}}"
    more = "evaluate: {metrics: [c_index, brier], horizons: [1]}"
    return study(target=SURVIVAL, model=model, train=terms, more=more)


def patients(rows: int, seed: int = 0) -> Encoded:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 6)).astype(np.float32)
    time = np.round(rng.exponential(np.exp(-x[:, 0])), 1)
    target = np.column_stack([time, rng.random(rows) < 0.7]).astype(np.float32)
    return Encoded(x, target)


def slow_loss(z: np.ndarray, target: np.ndarray) -> float:
    total, events = 0.0, 0
    for (time, event), own in zip(target, z, strict=True):
        if event:
            total += np.log(np.exp(z[target[:, 0] >= time]).sum()) - own
            events += 1
    return total / events


def test_the_cox_loss_equals_a_loop_with_ties() -> None:
    data = patients(50)
    z = data.features @ np.arange(6) / 5
    found = losses.cox(torch.tensor(z, dtype=torch.float64), torch.from_numpy(data.target))
    assert float(found) == pytest.approx(slow_loss(z, data.target))


def test_a_rows_part_of_the_cox_loss_is_its_own_events_and_the_parts_add_up() -> None:
    data = patients(50, 3)
    z = torch.tensor(data.features @ np.arange(6) / 5, dtype=torch.float64)
    rows = losses.cox_rows(z, torch.from_numpy(data.target).double()).numpy()
    time, event = data.target.T
    assert not rows[event == 0].any()
    for row in np.flatnonzero(event):
        part = np.log(np.exp(z.numpy()[time >= time[row]]).sum()) - float(z[row])
        assert rows[row] == pytest.approx(part)
    assert rows.sum() / event.sum() == pytest.approx(slow_loss(z.numpy(), data.target))


def test_many_steps_reach_the_fit_of_lifelines() -> None:
    lifelines = pytest.importorskip(
        "lifelines", reason="lifelines is not installed: make install has it"
    )
    import pandas as pd

    data, terms = patients(150, 1), cox(batch=150, steps=1500, lr=0.3)
    rng = np.random.default_rng(1)
    target = data.target.copy()
    target[:, 0] += rng.random(150).astype(np.float32) * 0.01  # no ties: Efron is Breslow
    data = Encoded(data.features, target)
    found = train(terms, data, models.initial(terms), site="a").delta
    frame = pd.DataFrame(np.column_stack([data.features, data.target]).astype(float))
    fitted = lifelines.CoxPHFitter().fit(frame, duration_col=6, event_col=7)
    assert found == pytest.approx(fitted.params_.to_numpy(), abs=2e-3)


@pytest.mark.parametrize("model", ["{kind: cox}", "{kind: mlp, hidden: [5]}"])
def test_batches_and_hospitals_without_an_event_change_nothing(model: str) -> None:
    terms, data = cox(model, batch=4, steps=6), patients(20)
    censored = Encoded(data.features, data.target * np.array([1, 0], np.float32))
    start = models.initial(terms)
    assert not train(terms, censored, start, site="a").delta.any()
    assert train(terms, data, start, site="a").delta.any()


def test_a_cox_model_has_no_bias_and_predicts_the_log_hazard() -> None:
    terms, data = cox(), patients(20)
    weights = np.linspace(0, 2, 6).astype(np.float32)
    assert [t.name for t in models.layout(terms).tensors] == ["layers.0.weight"]
    assert predict(terms, weights, data.features) == pytest.approx(
        data.features @ weights, abs=1e-4
    )
    own = patients(30, 2)
    found, z = judged(terms, weights, data, own), predict(terms, weights, own.features)
    hazard = sum(  # Breslow's, up to the horizon 1
        1 / np.exp(z[own.target[:, 0] >= time]).sum()
        for time, event in own.target
        if event * (time <= 1)
    )
    assert found[:, 1] == pytest.approx(np.exp(-hazard * np.exp(found[:, 0])))
    assert found.shape == (20, 2)
    assert np.all((found[:, 1] >= 0) & (found[:, 1] <= 1))
    assert np.all(np.diff(found[np.argsort(found[:, 0]), 1]) <= 1e-12)


@pytest.mark.parametrize("size", [np.float32(3e38), np.float32(1e5)])
def test_a_model_whose_predictions_are_not_finite_is_not_judged(size: np.float32) -> None:
    """The first overflows as a log hazard, the second in exp(log hazard) at a horizon."""
    terms, data = cox(), patients(40)
    hostile = np.full_like(models.initial(terms), size)
    for judge in (site_metrics, partial(evaluation_contribution, levels=2**52)):
        with np.errstate(all="ignore"), pytest.raises(Refusal) as refused:
            judge(terms, hostile, data, train=data)
        assert refused.value.name == "INPUT_NAN"


def test_survival_of_the_trained_model_beats_the_untrained_one() -> None:
    terms, data = cox(batch=300, steps=60), patients(300)
    start = models.initial(terms)
    trained = start + train(terms, data, start, site="a").delta
    before, after = (
        site_metrics(terms, m, patients(200, 5), data).as_dict(terms) for m in (start, trained)
    )
    assert before["c_index"] == 0.5
    assert (after["c_index"] or 0) > 0.65
    assert (after["brier_at_1"] or 1) < (before["brier_at_1"] or 0)


def test_poisson_steps_reach_a_rate_and_refuse_a_negative_count() -> None:
    target = "{type: continuous, name: visits_next}"
    terms = study(
        target=target, model="{kind: poisson}", train="{lr: 0.1, batch: 200, local_steps: 400}"
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)).astype(np.float32)
    y = rng.poisson(np.exp(0.5 + 0.4 * x[:, 0])).astype(np.float32)
    start = models.initial(terms)
    weights = train(terms, Encoded(x, y), start, site="a").delta
    rate = predict(terms, weights, x)
    assert x.T @ (rate - y) == pytest.approx(np.zeros(6), abs=0.5)  # the score equations
    assert rate.sum() == pytest.approx(y.sum(), rel=1e-3)
    with pytest.raises(DataError, match="DATA_LABEL"):
        train(terms, Encoded(x, y - 5), start, site="a")


def rare(rows: int = 1000) -> Encoded:
    rng = np.random.default_rng(0)
    y = (np.arange(rows) % 20 == 0).astype(np.float32)
    x = (rng.normal(size=(rows, 6)) + 1.2 * y[:, None] * [1, 1, 0, 0, 0, 0]).astype(np.float32)
    return Encoded(x, y)


def recall(imbalance: str) -> float:
    terms = study(train=f"{{lr: 0.3, batch: 50, local_steps: 200, imbalance: {imbalance}}}")
    data = rare()
    model = train(terms, data, models.initial(terms), site="a").delta
    return float((predict(terms, model, data.features) > 0.5)[data.target > 0].mean())


def test_weights_and_resampling_find_more_of_a_class_of_5_percent() -> None:
    plain = recall("none")
    assert plain < 0.4
    assert recall("weighted") > plain + 0.3
    assert recall("resampled") > plain + 0.3
    assert recall("focal") > plain


@pytest.mark.parametrize("imbalance", ["weighted", "resampled", "focal"])
def test_one_class_alone_trains_and_equal_input_gives_equal_bits(imbalance: str) -> None:
    terms = study(train=f"{{lr: 0.3, batch: 8, local_epochs: 2, imbalance: {imbalance}}}")
    data = rare(40)
    one = Encoded(data.features, np.ones(40, np.float32))
    for part in (data, one):
        deltas = [train(terms, part, models.initial(terms), site="a").delta for _ in "ab"]
        assert deltas[0].tobytes() == deltas[1].tobytes()
        assert deltas[0].any()


def test_the_focal_loss_counts_a_row_by_how_unsure_it_is() -> None:
    chance = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    expected = (1 - chance) ** 2 * -chance.log()
    assert focal(-chance.log()).numpy() == pytest.approx(expected.numpy())


def test_class_weights_have_mean_one_and_passes_draw_classes_equally() -> None:
    target = rare(100).target
    weights = class_weights(torch.from_numpy(target)).numpy()
    assert weights.mean() == pytest.approx(1.0)
    assert weights[target > 0].sum() == pytest.approx(weights[target == 0].sum())
    order = balanced_order(target, np.random.default_rng(0))
    assert target[order].sum() == 50
    assert set(np.unique(order[target[order] > 0])) == set(np.flatnonzero(target > 0))
