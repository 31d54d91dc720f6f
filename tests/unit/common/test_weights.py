"""A hospital's weight is what its study's rule says, and shows no more."""

from __future__ import annotations

import pytest

from common.errors import ConfigError, DataError
from common.weights import public_batch, public_weight, weight
from tests.learning import study


@pytest.mark.parametrize(
    ("rule", "rows", "expected"),
    [
        ("samples", 199, 199 / 256),
        ("samples", 1000, 1.0),
        ("size_class", 199, 128 / 256),
        ("size_class", 128, 128 / 256),
        ("size_class", 127, 64 / 256),
        ("size_class", 1, 1 / 256),
        ("size_class", 9999, 1.0),
        ("equal", 3, 1.0),
        ("{x: 2, y: 8}", 3, 0.25),
    ],
)
def test_weight_by_rule(rule: str, rows: int, expected: float) -> None:
    terms = study(federation=f"{{weights: {rule}, max_weight: 256, min_sites: 2}}")
    assert weight(terms, "x", rows) == expected


def test_a_site_without_a_public_weight_is_named() -> None:
    terms = study(federation="{weights: {x: 2, y: 8}, min_sites: 2}")
    with pytest.raises(ConfigError, match="site z"):
        weight(terms, "z", 5)


def test_no_rows_have_no_weight() -> None:
    with pytest.raises(DataError, match="DATA_EMPTY"):
        weight(study(), "x", 0)


@pytest.mark.parametrize(
    ("weights", "dp", "u", "batch"),
    [
        ("{x: 200, y: 800}", "sampling: 0.25", 0.25, 50.0),
        ("{x: 200, y: 800}", "sampling: 1", 0.25, 200.0),
        ("equal", "sampling: 0.25, batch: 60", 1.0, 60.0),
    ],
)
def test_local_steps_divide_and_weigh_by_public_numbers(
    weights: str, dp: str, u: float, batch: float
) -> None:
    terms = study(
        "\n  - {name: age, type: float}",
        train="{local_steps: 2}",
        federation=f"{{weights: {weights}, rounds: 3, min_sites: 2}}",
        more="normalise: none\nprivacy: {secure_aggregation: {colluders: 0}, "
        f"dp: {{mode: patient-local, epsilon: 1, delta: 1.0e-5, {dp}}}}}",
    )
    assert public_weight(terms, "x") == u
    assert public_batch(terms, "x") == batch
    if weights != "equal":
        for one in (public_weight, public_batch):
            with pytest.raises(ConfigError, match="site z"):
                one(terms, "z")
