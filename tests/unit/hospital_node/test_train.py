"""Local training is deterministic, agrees with an independent computation, never breaks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common import models
from common.errors import DataError, Refusal
from common.features import Encoded
from common.study import Study
from hospital_node.baselines import centralised, local_only
from hospital_node.evaluate import finite, predict, site_metrics
from hospital_node.models import build, flatten
from hospital_node.train import order_seed, train
from tests.learning import study

NETWORK = "{kind: mlp, hidden: [5, 4]}"


def rows(count: int, seed: int = 0, columns: int = 6, *, sick: float | None = None) -> Encoded:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, columns)).astype(np.float32)
    y = (x[:, 0] - x[:, 1] + rng.normal(0, 0.5, count) > 0).astype(np.float32)
    return Encoded(x, y if sick is None else np.full(count, sick, np.float32))


def slow_sgd(terms: Study, data: Encoded, steps: int) -> NDArray[np.float64]:
    """Full-batch gradient steps of logistic regression, written out in float64."""
    x = np.column_stack([data.features.astype(float), np.ones(data.rows)])
    w = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-x @ w))
        w -= terms.train.lr * (x.T @ (p - data.target) / data.rows + terms.train.weight_decay * w)
    return w


def test_gradient_steps_equal_a_slow_computation() -> None:
    terms = study(train="{lr: 0.3, batch: 40, local_steps: 12, weight_decay: 0.1}")
    data = rows(40)
    update = train(terms, data, models.initial(terms), site="a")
    assert update.delta == pytest.approx(slow_sgd(terms, data, 12), abs=1e-5)
    assert update.loss == pytest.approx(np.log(2), abs=1e-6)
    assert update.steps == 12


@pytest.mark.parametrize("model", ["{kind: logistic}", NETWORK])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_equal_input_gives_equal_bits(model: str, optimiser: str) -> None:
    terms = study(model=model, train=f"{{optimiser: {optimiser}, batch: 8, local_epochs: 2}}")
    start = models.initial(terms)
    first, again = (train(terms, rows(30), start, site="a") for _ in range(2))
    assert first.delta.tobytes() == again.delta.tobytes()
    assert first.delta.dtype == np.float32
    assert first.delta.any()


@pytest.mark.parametrize(
    ("site", "seed", "moved"), [("b", 5, 0.0), ("a", 6, 0.0), ("a", 5, 2.0**-20)]
)
def test_site_seed_and_received_model_each_change_the_order_of_rows(
    site: str, seed: int, moved: float
) -> None:
    terms = study()
    start = models.initial(terms)
    other = terms.model_copy(update={"seed": seed})
    here, again = order_seed(terms, "a", start), order_seed(terms, "a", start.copy())
    assert here == again
    assert here != order_seed(other, site, start + np.float32(moved))
    there = train(other, rows(30), start + np.float32(moved), site=site)
    assert train(terms, rows(30), start, site="a").delta.tobytes() != there.delta.tobytes()


def test_training_leaves_the_received_model_alone() -> None:
    terms = study(model=NETWORK)
    start = models.initial(terms)
    start.flags.writeable = False
    before = start.tobytes()
    train(terms, rows(20), start, site="a")
    assert start.tobytes() == before


@pytest.mark.parametrize(
    ("terms", "steps"),
    [
        ("{batch: 8, local_epochs: 1}", 4),
        ("{batch: 8, local_epochs: 3}", 12),
        ("{batch: 8, local_steps: 7}", 7),
        ("{batch: 100, local_steps: 3}", 3),
    ],
)
def test_the_number_of_steps(terms: str, steps: int) -> None:
    one = study(train=terms)
    update = train(one, rows(30), models.initial(one), site="a")
    assert update.steps == steps


@pytest.mark.parametrize("sick", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, 30])
def test_one_class_or_one_row_gives_a_finite_update_and_no_nan(sick: float, count: int) -> None:
    terms = study(model=NETWORK)
    data = rows(count, sick=sick)
    start = models.initial(terms)
    update = train(terms, data, start, site="a")
    assert np.isfinite(update.delta).all()
    found = site_metrics(terms, start + update.delta, data)
    assert found.auroc is None
    assert found.accuracy is not None


def test_no_training_rows_are_refused() -> None:
    terms = study()
    with pytest.raises(DataError, match="DATA_EMPTY"):
        train(terms, rows(0), models.initial(terms), site="a")


def test_a_diverging_run_is_refused_not_sent() -> None:
    terms = study(
        target="{type: continuous, name: y}", model=NETWORK,
        train="{lr: 1000, batch: 8, local_steps: 60}",
    )  # fmt: skip
    with pytest.raises(Refusal, match="INPUT_NAN"):
        train(terms, rows(30), models.initial(terms), site="a")


@pytest.mark.parametrize(
    ("target", "labels"),
    [
        ("{type: multiclass, name: y, levels: [a, b, c]}", [0, 1, 2]),
        ("{type: continuous, name: y}", [-2, 0, 4]),
    ],
)
def test_other_targets_are_learnt(target: str, labels: list[int]) -> None:
    terms = study(
        target=target, model="{kind: mlp, hidden: [16]}",
        train="{optimiser: adam, lr: 0.02, batch: 30, local_steps: 150}",
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(90, 6)).astype(np.float32)
    kind = np.digitize(x[:, 0], [-0.4, 0.4])
    data = Encoded(x, np.array(labels, np.float32)[kind])
    start = models.initial(terms)
    update = train(terms, data, start, site="a")
    found = site_metrics(terms, start + update.delta, data)
    figure = found.accuracy if found.accuracy is not None else found.r2
    assert figure is not None
    assert figure > 0.9


def test_the_module_and_the_vector_agree_tensor_by_tensor() -> None:
    terms = study(model=NETWORK)
    model = np.arange(models.layout(terms).parameters, dtype=np.float32)
    module = build(terms, model)
    assert np.array_equal(flatten(module, models.layout(terms)), model)
    assert [name for name, _ in module.named_parameters()] == [
        tensor.name for tensor in models.layout(terms).tensors
    ]


def test_predictions_equal_a_network_written_out() -> None:
    terms = study(model=NETWORK)
    model = models.initial(terms)
    views = models.layout(terms).views(model)
    signal = rows(9).features.astype(np.float64)
    for place in range(3):
        signal = signal if place == 0 else np.maximum(signal, 0)
        signal = signal @ views[f"layers.{place}.weight"].T + views[f"layers.{place}.bias"]
    expected = 1 / (1 + np.exp(-signal[:, 0]))
    assert predict(terms, model, rows(9).features) == pytest.approx(expected, abs=1e-6)


def test_a_model_that_is_not_finite_predicts_nothing() -> None:
    terms = study()
    broken = np.full(models.layout(terms).parameters, np.nan, np.float32)
    with pytest.raises(Refusal, match="INPUT_NAN"):
        finite(predict(terms, broken, rows(3).features))


def test_baselines_train_as_long_as_the_federation_would() -> None:
    terms = study(train="{lr: 0.3, batch: 500, local_steps: 4}", federation="{rounds: 3}")
    sites = {"a": rows(40, 1), "b": rows(30, 2)}
    alone = local_only(terms, sites)
    assert set(alone) == {"a", "b"}
    assert alone["a"] == pytest.approx(slow_sgd(terms, sites["a"], 12), abs=1e-5)
    both = Encoded(
        np.concatenate([sites[s].features for s in "ab"]),
        np.concatenate([sites[s].target for s in "ab"]),
    )
    assert centralised(terms, sites) == pytest.approx(slow_sgd(terms, both, 12), abs=1e-5)


def test_training_runs_on_one_thread() -> None:
    torch.set_num_threads(2)
    terms = study()
    train(terms, rows(5), models.initial(terms), site="a")
    assert torch.get_num_threads() == 1
