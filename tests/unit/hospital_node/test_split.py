"""The hospital's own split equals scikit-learn's, which FLamby's split is made with."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from hospital_node.data.split import train_test


@pytest.mark.parametrize("rows", [12, 46, 123, 303])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", [0, 43, 2024])
@pytest.mark.parametrize("stratify", [True, False])
def test_equals_scikit_learn(rows: int, classes: int, seed: int, stratify: bool) -> None:
    if stratify and rows // classes < 3:
        pytest.skip("a class of fewer than three rows is drawn without stratification")
    labels = np.random.default_rng(seed).permutation(np.arange(rows) % classes).astype(float)
    for share in (0.2, 1 - 0.66):
        train, test = train_test(labels, share, seed, stratify=stratify)
        by = labels if stratify else None
        expected = train_test_split(
            np.arange(rows), test_size=share, random_state=seed, stratify=by
        )
        assert train.tolist() == sorted(expected[0].tolist())
        assert test.tolist() == sorted(expected[1].tolist())


def test_unbalanced_classes_equal_scikit_learn_for_many_seeds() -> None:
    labels = np.array([0.0] * 7 + [1.0] * 61 + [2.0] * 30)
    for seed in range(60):
        train, test = train_test(labels, 0.34, seed, stratify=True)
        expected = train_test_split(
            np.arange(98), test_size=0.34, random_state=seed, stratify=labels
        )
        assert (train.tolist(), test.tolist()) == (sorted(expected[0]), sorted(expected[1]))


@pytest.mark.parametrize("labels", [[1.0] * 30, [1.0] * 28 + [0.0] * 2])
def test_one_class_or_a_tiny_one_is_drawn_without_stratification(labels: list[float]) -> None:
    train, test = train_test(np.array(labels), 0.34, 43, stratify=True)
    expected = train_test_split(np.arange(30), test_size=0.34, random_state=43)
    assert (train.tolist(), test.tolist()) == (sorted(expected[0]), sorted(expected[1]))


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_every_row_is_used_once_however_few_there_are(rows: int) -> None:
    train, test = train_test(np.ones(rows), 0.34, 1, stratify=True)
    assert sorted([*train, *test]) == list(range(rows))
