"""Local strategies: limits that are known exactly, and SCAFFOLD against a slow federation."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from common import layouts, models
from common.errors import ConfigError, DataError
from common.features import Encoded
from common.secagg.header import RoundKind
from common.study import Study
from hospital_node.evaluate import predict
from hospital_node.models import build, flatten
from hospital_node.personal_state import CONTROL, DITTO, FEDBN
from hospital_node.strategies import Received, ditto_refine, fine_tune, local_round
from hospital_node.strategies.scaffold import trained_schema
from hospital_node.train import train
from tests.learning import study

NUMBERS = "[{name: a, type: float}, {name: b, type: float}]"
MLP = "{kind: mlp, hidden: [5], norm: batch}"


def terms(
    strategy: str = "name: fedavg",
    model: str = "{kind: logistic}",
    steps: str = "{lr: 0.1, batch: 8, local_steps: 5}",
) -> Study:
    return study(
        " " + NUMBERS, model=model, train=steps,
        federation=f"{{strategy: {{{strategy}}}, rounds: 3}}",
    )  # fmt: skip


def rows(count: int, seed: int) -> Encoded:
    rng = np.random.default_rng(seed)
    features = rng.normal(seed, 1.0, (count, 2)).astype(np.float32)
    return Encoded(features, (features[:, 0] > seed).astype(np.float32))


def whole(of: Study) -> NDArray[np.float32]:
    return models.with_own(of, models.initial(of))


# --- FedProx --------------------------------------------------------------------------------


def delta_with(mu: float) -> NDArray[np.float32]:
    prox = terms(f"name: fedprox, mu: {mu}")
    start = np.array([0.5, -0.25, 0.1], np.float32)
    return local_round(prox, rows(30, 1), Received(start), {}, site="a").delta


def test_fedprox_with_a_large_mu_stays_put_and_with_a_small_one_is_fedavg() -> None:
    start = np.array([0.5, -0.25, 0.1], np.float32)
    plain = train(terms(), rows(30, 1), start, site="a").delta
    assert np.linalg.norm(plain) > 0.05
    assert np.abs(delta_with(1000.0)).max() < 0.02 * np.abs(plain).max()
    assert np.allclose(delta_with(1e-7), plain, atol=1e-6)
    lengths = [float(np.linalg.norm(delta_with(mu))) for mu in (0.01, 1.0, 10.0, 100.0)]
    assert lengths == sorted(lengths, reverse=True)


def test_fedprox_ends_where_the_papers_objective_has_no_slope() -> None:
    """F(w) + mu/2 |w - w0|^2 is least where grad F(w) = mu (w0 - w)."""
    full = "{lr: 0.3, batch: 30, local_steps: 400}"
    prox, data = terms("name: fedprox, mu: 0.5", steps=full), rows(30, 1)
    start = np.array([0.5, -0.25, 0.1], np.float32)
    end = start + local_round(prox, data, Received(start), {}, site="a").delta
    wide = np.column_stack([data.features, np.ones(30)]).astype(np.float64)
    errors = 1 / (1 + np.exp(-wide @ end)) - data.target
    assert np.allclose(wide.T @ errors / 30, 0.5 * (start - end), atol=1e-4)


# --- Ditto and personal models -----------------------------------------------------------------


def test_ditto_with_a_large_lambda_is_the_federated_model_and_with_a_small_one_is_alone() -> None:
    data, received = rows(40, 2), np.array([1.0, -1.0, 0.5], np.float32)
    kept = {DITTO: np.array([0.2, 0.1, 0.0], np.float32)}
    whole_batch = "{lr: 0.1, batch: 40, local_steps: 5}"  # the order of rows then says nothing
    held = terms("name: ditto, lambda: 1000", steps=whole_batch)
    near = local_round(held, data, Received(received), kept, site="a")
    assert np.allclose(near.own[DITTO], received, atol=0.02)
    loose = terms("name: ditto, lambda: 1.0e-7", steps=whole_batch)
    free = local_round(loose, data, Received(received), kept, site="a")
    alone = kept[DITTO] + train(held, data, kept[DITTO], site="a").delta
    assert np.allclose(free.own[DITTO], alone, atol=1e-6)
    plain = train(held, data, received, site="a").delta
    for found in (near, free):  # what is sent is FedAvg's update, whatever the personal model is
        assert np.array_equal(found.delta, plain)


def test_a_first_personal_model_starts_from_the_received_one() -> None:
    data, received = rows(40, 2), np.array([1.0, -1.0, 0.5], np.float32)
    of = terms("name: ditto, lambda: 0.1")
    first = local_round(of, data, Received(received), {}, site="a").own[DITTO]
    told = local_round(of, data, Received(received), {DITTO: received}, site="a")
    assert np.array_equal(first, told.own[DITTO])


def test_fine_tuning_is_local_epochs_and_refinement_without_lambda_is_fine_tuning() -> None:
    data, model = rows(40, 3), np.array([0.3, 0.3, 0.0], np.float32)
    epochs = terms(steps="{lr: 0.1, batch: 8, local_epochs: 4}")
    by_round = model + train(epochs, data, model, site="").delta
    tuned = fine_tune(terms(), data, model, 4)
    assert np.allclose(tuned, by_round, atol=1e-6)
    assert np.allclose(ditto_refine(terms(), data, model, 4, 1e-8), tuned, atol=1e-5)
    assert np.allclose(ditto_refine(terms(), data, model, 4, 1e6), model, atol=1e-4)
    with pytest.raises(DataError, match="DATA_EMPTY"):
        fine_tune(terms(), rows(0, 1), model, 1)


# --- FedBN --------------------------------------------------------------------------------------


def test_normalisation_never_leaves_with_fedbn_and_does_with_fedavg() -> None:
    own, shared = terms("name: fedbn", MLP), terms(model=MLP)
    sent = [tensor.name for tensor in layouts.model_schema(own).tensors]
    assert not [name for name in sent if "norm" in name]
    assert {tensor.name for tensor in models.own_layout(own).tensors} == {
        f"norms.0.{part}" for part in ("weight", "bias", "running_mean", "running_var")
    }
    both = [tensor.name for tensor in layouts.model_schema(shared).tensors]
    assert "norms.0.running_var" in both
    assert not [name for name in both if "batches" in name]
    received = Received(models.initial(own))
    found = local_round(own, rows(40, 4), received, {}, site="a")
    assert found.delta.size == models.layout(own).parameters == received.weights.size
    assert found.own[FEDBN].size == 4 * 5


def test_a_hospital_trains_on_from_its_own_normalisation() -> None:
    of, data = terms("name: fedbn", MLP), rows(40, 4)
    received = Received(models.initial(of))
    first = local_round(of, data, received, {}, site="a")
    second = local_round(of, data, received, first.own, site="a")
    full = models.with_own(of, received.weights, first.own[FEDBN])
    update = train(of, data, full, site="a")
    assert np.array_equal(second.delta, models.split_own(of, update.delta)[0])
    other = local_round(of, data, received, {}, site="a")
    assert not np.array_equal(second.delta, other.delta)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_row_is_predicted_alike_in_any_company_and_as_torch_does(norm: str) -> None:
    import torch

    of = terms(model=f"{{kind: mlp, hidden: [5, 4], norm: {norm}}}")
    model = whole(of) + np.random.default_rng(1).normal(0, 0.1, whole(of).size).astype(np.float32)
    features = rows(300, 2).features
    together = predict(of, model, features)
    alone = np.concatenate([predict(of, model, features[[row]]) for row in (0, 7, 299)])
    assert np.array_equal(together[[0, 7, 299]], alone)
    module = build(of, model).eval()
    with torch.no_grad():
        wanted = torch.sigmoid(module(torch.from_numpy(features))[:, 0]).numpy()
    assert np.allclose(together, wanted, atol=1e-5)
    assert np.array_equal(flatten(module, models.full_layout(of)), model)


def test_a_last_batch_of_a_single_row_trains_by_the_running_statistics() -> None:
    of = terms(model=MLP, steps="{lr: 0.1, batch: 8, local_epochs: 1}")
    update = train(of, rows(9, 1), models.initial(of), site="a")
    assert update.steps == 2
    assert np.isfinite(update.delta).all()


# --- SCAFFOLD -----------------------------------------------------------------------------------


class SlowHospital:
    """Algorithm 1, option II, on least squares over one batch, in exact fractions."""

    def __init__(self, data: Encoded) -> None:
        self.x = [[Fraction(float(v)) for v in row] + [Fraction(1)] for row in data.features]
        self.y = [Fraction(float(v)) for v in data.target]
        self.c = [Fraction(0)] * 3

    def gradient(self, w: list[Fraction]) -> list[Fraction]:
        out = [Fraction(0)] * 3
        for x, y in zip(self.x, self.y, strict=True):
            error = sum((a * b for a, b in zip(x, w, strict=True)), Fraction(0)) - y
            out = [o + 2 * error * a / len(self.y) for o, a in zip(out, x, strict=True)]
        return out

    def round(
        self, x: list[Fraction], c: list[Fraction], steps: int, lr: Fraction
    ) -> tuple[list[Fraction], list[Fraction]]:
        y = list(x)
        for _ in range(steps):
            slope = self.gradient(y)
            y = [
                v - lr * (g - mine + c_) for v, g, mine, c_ in zip(y, slope, self.c, c, strict=True)
            ]
        plus = [
            mine - c_ + (start - end) / (steps * lr)
            for mine, c_, start, end in zip(self.c, c, x, y, strict=True)
        ]
        change = [new - old for new, old in zip(plus, self.c, strict=True)]
        self.c = plus
        return [end - start for start, end in zip(x, y, strict=True)], change


def test_scaffold_is_the_papers_algorithm_over_a_slow_federation() -> None:
    """Three hospitals of equal weight, four rounds, the third away in the second round."""
    of = study(
        " " + NUMBERS, target="{type: continuous, name: y}", model="{kind: mlp, hidden: [2]}",
        train="{lr: 0.0625, batch: 64, local_steps: 3}",
        federation="{strategy: {name: scaffold}, rounds: 4}",
    )  # fmt: skip
    data = [rows(12, seed) for seed in range(3)]
    linear = of.model_copy(update={"model": terms().model})  # one layer: least squares
    slow = [SlowHospital(each) for each in data]
    x, c = [Fraction(0)] * 3, [Fraction(0)] * 3
    model, server = np.zeros(3, np.float32), np.zeros(3, np.float32)
    kept: list[dict[str, NDArray[np.float32]]] = [{}, {}, {}]
    for round_no in range(1, 5):
        here = [0, 1] if round_no == 2 else [0, 1, 2]
        share = Fraction(1, len(here))
        answers = [slow[i].round(x, c, 3, Fraction(1, 16)) for i in here]
        x = [v + share * sum(a[0][k] for a in answers) for k, v in enumerate(x)]
        c = [v + Fraction(1, 3) * sum(a[1][k] for a in answers) for k, v in enumerate(c)]
        found = [
            local_round(
                linear, data[i], Received(model, server, (32.0, 32.0)), kept[i],
                site=str(i),
            )
            for i in here
        ]  # fmt: skip
        for i, done in zip(here, found, strict=True):
            kept[i] = dict(done.own)
        mean = np.mean([done.delta for done in found], axis=0)
        model = (model + mean[:3]).astype(np.float32)
        server = (server + mean[3:] * len(here) / 3).astype(np.float32)
        assert np.allclose(model, [float(v) for v in x], atol=2e-5)
        assert np.allclose(server, [float(v) for v in c], atol=2e-5)
    assert np.allclose(server, np.mean([own[CONTROL] for own in kept], axis=0), atol=1e-5)


def test_a_clipped_change_is_kept_as_it_was_sent() -> None:
    of = terms("name: scaffold")
    received = Received(np.zeros(3, np.float32), np.zeros(3, np.float32), (1e-3, 10.0))
    done = local_round(of, rows(30, 5), received, {}, site="a")
    assert np.abs(done.delta[3:5]).max() > 1e-3  # clipped, and counted, when it is coded
    assert np.abs(done.own[CONTROL][:2]).max() == np.float32(1e-3)
    assert done.own[CONTROL][2] == done.delta[5]


def test_control_variates_are_part_of_model_and_vector_and_no_weights() -> None:
    of = terms("name: scaffold", MLP)
    schema = layouts.model_schema(of)
    plain = layouts.model_schema(terms(model=MLP))
    controls = [t for t in schema.tensors if t.name.startswith("control.")]
    assert schema.tensors[: len(plain.tensors)] == plain.tensors
    assert [t.name for t in controls] == [f"control.{t.name}" for t in trained_schema(of).tensors]
    assert not [t for t in controls if "running" in t.name]
    model = np.arange(schema.parameters, dtype=np.float32) + 1
    weights = layouts.split_model(of, model)[1]
    assert weights.size == models.layout(of).parameters
    assert layouts.control_of(of, model)[0] == weights[-1] + 1
    layout = layouts.round_layout(of, RoundKind.TRAIN)
    ranges = layouts.header_ranges(layout, 2**20, ())
    by_name = dict(zip((t.name for t in schema.tensors), ranges, strict=False))
    assert by_name["control.layers.0.weight"] == layouts.FIRST_CONTROL_RANGE
    assert by_name["layers.0.weight"] == layouts.FIRST_RANGE


def test_scaffold_needs_plain_gradient_steps() -> None:
    with pytest.raises(ConfigError, match=r"need train\.optimiser sgd"):
        terms("name: scaffold", steps="{optimiser: adam, local_steps: 2}")
