"""Layouts and first values follow from the study alone, with the same bits everywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from common import models
from common.errors import InternalError
from tests.learning import study


def test_a_logistic_model_has_a_weight_per_encoded_column() -> None:
    schema = models.layout(study())
    assert [(t.name, t.shape) for t in schema.tensors] == [
        ("layers.0.weight", (1, 6)),
        ("layers.0.bias", (1,)),
    ]
    assert schema.metrics == ("loss", "clipped")
    assert schema.words == 6 + 1 + 1 + 2


def test_the_first_examples_network_is_64_64_1() -> None:
    terms = study(model="{kind: mlp, hidden: [64, 64]}")
    assert models.layer_widths(terms) == (6, 64, 64, 1)
    assert models.layout(terms).parameters == 6 * 64 + 64 + 64 * 64 + 64 + 64 + 1


def test_several_levels_need_an_output_each() -> None:
    terms = study(target="{type: multiclass, name: kind, levels: [a, b, c]}")
    assert models.layer_widths(terms) == (6, 3)


def test_logistic_starts_at_zero() -> None:
    assert not models.initial(study()).any()


def test_a_network_starts_within_kaimings_bounds_and_uses_their_width() -> None:
    terms = study(model="{kind: mlp, hidden: [64, 32]}")
    views = models.layout(terms).views(models.initial(terms))
    for place, (inputs, gain) in enumerate([(6, 6), (64, 6), (32, 3)]):
        limit = np.sqrt(gain / inputs)
        weight = views[f"layers.{place}.weight"]
        assert 0.8 * limit < np.abs(weight).max() <= limit
        assert abs(weight.mean()) < 0.25 * limit
        assert not views[f"layers.{place}.bias"].any()


def test_the_first_model_is_the_same_on_every_machine() -> None:
    terms = study(model="{kind: mlp, hidden: [8]}")
    digest = hashlib.sha256(models.initial(terms, seed=1).astype("<f4").tobytes()).hexdigest()
    assert digest == "210d366be48cb50326a1e7583abaa340bf75540b4793bbb58a862d7a58957022"


def test_seeds_differ_and_the_studys_is_the_default() -> None:
    terms = study(model="{kind: mlp, hidden: [8]}")
    assert np.array_equal(models.initial(terms), models.initial(terms, seed=5))
    assert not np.array_equal(models.initial(terms), models.initial(terms, seed=6))


def test_a_study_without_a_seed_starts_from_its_hash() -> None:
    seedless = study(model="{kind: mlp, hidden: [8]}").model_copy(update={"seed": None})
    other = seedless.model_copy(update={"title": "another"})
    assert np.array_equal(models.initial(seedless), models.initial(seedless))
    assert not np.array_equal(models.initial(seedless), models.initial(other))


def test_a_model_without_layers_has_no_widths() -> None:
    with pytest.raises(InternalError):
        models.layer_widths(study(model="{kind: vector, size: 10}"))
