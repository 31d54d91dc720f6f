"""Every patient's gradient: right, and the same bits whoever else takes part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common import models
from common.study import Study
from hospital_node.evaluate import predict
from hospital_node.models.perceptron import Perceptron, build
from hospital_node.models.rows import TILE_ROWS, product
from hospital_node.private import gradients
from hospital_node.private.gradients import patient_gradients
from hospital_node.train import loss
from tests.learning import study

COLUMNS = 7
FEATURES = "".join(f"\n  - {{name: x{k}, type: float}}" for k in range(COLUMNS))
BINARY, CLASSES, NUMBER = (
    "{type: binary, name: y}",
    "{type: multiclass, name: y, levels: [a, b, c]}",
    "{type: continuous, name: y}",
)
NETWORK = "{kind: mlp, hidden: [5, 4]}"
KINDS = [
    pytest.param(BINARY, "{kind: logistic}", id="logistic"),
    pytest.param(BINARY, NETWORK, id="network"),
    pytest.param(CLASSES, "{kind: logistic}", id="classes"),
    pytest.param(CLASSES, NETWORK, id="classes-network"),
    pytest.param(NUMBER, NETWORK, id="number"),
]


def asked(target: str, model: str) -> Study:
    stratify = "split: {stratify: false}" if "continuous" in target else ""
    return study(FEATURES, target=target, model=model, more=f"normalise: none\n{stratify}")


def rows(terms: Study, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(count, COLUMNS)).astype(np.float32)
    if terms.target.type == "continuous":
        return features, rng.normal(size=count).astype(np.float32)
    levels = 3 if terms.target.type == "multiclass" else 2
    return features, rng.integers(0, levels, count).astype(np.float32)


def weights(terms: Study) -> NDArray[np.float32]:
    size = models.layout(terms).parameters
    return np.random.default_rng(4).normal(0, 0.7, size).astype(np.float32)


def fast(
    terms: Study,
    module: Perceptron,
    features: NDArray[np.float32],
    target: NDArray[np.float32],
    groups: NDArray[np.int64],
) -> NDArray[np.float32]:
    """All vectors at once, copied out of the buffer that they share."""
    made = patient_gradients(terms, module, features, target, groups)
    return np.concatenate([block.copy() for block in made])


def slow(
    terms: Study,
    model: NDArray[np.float32],
    features: NDArray[np.float32],
    target: NDArray[np.float32],
    groups: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Autograd in float64, one patient after the other, of the training's own mean loss."""
    module = build(terms, model).double()
    out = []
    for patient in range(groups.max() + 1):
        own = groups == patient
        x = torch.from_numpy(features[own].astype(np.float64))
        y = torch.from_numpy(target[own].astype(np.float64))
        found = torch.autograd.grad(loss(terms, module(x), y), list(module.parameters()))
        named = dict(zip(dict(module.named_parameters()), found, strict=True))
        flat = [named[tensor.name].reshape(-1) for tensor in models.layout(terms).tensors]
        out.append(torch.cat(flat).numpy())
    return np.array(out)


@pytest.mark.parametrize(("target", "model"), KINDS)
@pytest.mark.parametrize("several", [False, True], ids=["one-row", "several-rows"])
@pytest.mark.parametrize("block", [None, 40], ids=["whole", "blocks"])
def test_gradients_are_those_of_a_slow_loop_over_patients(
    target: str, model: str, several: bool, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block is not None:
        monkeypatch.setattr(gradients, "BLOCK_VALUES", block)
        monkeypatch.setattr(gradients, "PASS_ROWS", 10)
    terms = asked(target, model)
    count = 90
    features, wanted = rows(terms, count)
    rng = np.random.default_rng(5)
    groups = rng.integers(0, 23, count) if several else rng.permutation(count)
    groups[:23] = np.arange(23) if several else groups[:23]
    module = build(terms, weights(terms))
    found = fast(terms, module, features, wanted, groups)
    expected = slow(terms, weights(terms), features, wanted, groups)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize(("target", "model"), KINDS)
def test_a_patients_gradient_is_the_same_bits_alone_and_in_any_company(
    target: str, model: str
) -> None:
    """Else one patient more would move the others' rounded vectors: no exact sensitivity."""
    terms = asked(target, model)
    count = 2 * TILE_ROWS + 61
    features, wanted = rows(terms, count)
    groups = np.random.default_rng(6).integers(0, count // 2, count)
    _, groups = np.unique(groups, return_inverse=True)
    module = build(terms, weights(terms))

    def of(chosen: NDArray[np.bool_]) -> dict[int, list[float]]:
        names, own = np.unique(groups[chosen], return_inverse=True)
        made = patient_gradients(terms, module, features[chosen], wanted[chosen], own)
        vectors = np.concatenate(list(made))
        return {int(name): row.tolist() for name, row in zip(names, vectors, strict=True)}

    everybody = of(np.ones(count, bool))
    for size in (1, 2, 3, 5, 17, 100, len(everybody) - 1):
        some = np.random.default_rng(size).permutation(len(everybody))[:size]
        fewer = of(np.isin(groups, some))
        assert fewer == {patient: everybody[patient] for patient in fewer}


@pytest.mark.parametrize(("target", "model"), KINDS)
def test_a_rows_prediction_is_the_same_bits_alone_and_in_any_company(
    target: str, model: str
) -> None:
    """A histogram of scores has one patient's sensitivity only if nobody else's score moves."""
    terms = asked(target, model)
    count = 2 * TILE_ROWS + 61
    features, _ = rows(terms, count)
    together = predict(terms, weights(terms), features)
    assert together.shape[0] == count
    for start in (0, 1, 7, 300, count - 1, count):
        assert (predict(terms, weights(terms), features[start:]) == together[start:]).all()


def test_a_patient_with_many_rows_weighs_as_much_as_one_with_few() -> None:
    terms = asked(BINARY, "{kind: logistic}")
    features, wanted = rows(terms, 1)
    many = np.repeat(features, 1000, axis=0), np.repeat(wanted, 1000)
    module = build(terms, weights(terms))
    nobody_else = np.zeros(1000, np.int64)
    one = fast(terms, module, features, wanted, nobody_else[:1])
    all_ = fast(terms, module, *many, nobody_else)
    np.testing.assert_allclose(all_, one, rtol=1e-4)


@pytest.mark.parametrize("inner", [1, 3, 64, 129, 2048])
def test_a_product_is_the_exact_one_of_its_rounded_factors(inner: int) -> None:
    """Whatever order it is added up in, and as near the true product as float32 would be."""
    rng = np.random.default_rng(inner)
    left = torch.from_numpy(rng.normal(size=(9, inner)) * 10.0 ** rng.integers(-9, 9, (9, 1)))
    right = torch.from_numpy(rng.normal(size=(inner, 5)) * 10.0 ** rng.integers(-3, 3, 5))
    found = product(left, right)
    order = rng.permutation(inner)
    assert torch.equal(found, product(left[:, order], right[order]))
    assert torch.equal(found[3:4], product(left[3:4], right))
    assert torch.equal(found[:, 2:3], product(left, right[:, 2:3]))
    spread = left.abs().amax(1, keepdim=True) * right.abs().amax(0) * inner
    assert ((found - left @ right).abs() / spread).max() < 2.0**-19


def test_a_batch_of_rows_goes_through_the_layers_once_for_each_tile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No loop over rows or patients: the number of products follows the tiles alone."""
    terms = asked(BINARY, NETWORK)
    features, wanted = rows(terms, 2 * TILE_ROWS)
    module = build(terms, weights(terms))
    calls = []
    real = product

    def counted(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        calls.append(len(left))
        return real(left, right)

    monkeypatch.setattr("hospital_node.models.rows.product", counted)
    fast(terms, module, features, wanted, np.arange(2 * TILE_ROWS))
    assert calls == [TILE_ROWS] * (2 * (3 + 2))
