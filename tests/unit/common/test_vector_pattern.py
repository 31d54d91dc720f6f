"""The indicator pattern: whoever reads a sum of them knows who is in it, and how often."""

from __future__ import annotations

import numpy as np
import pytest

from common.models.vector import CELLS, PERIOD, cell, perturbation, whole
from common.study import canonical_json
from tests.faults.running import study_of
from tests.federation import SITES


@pytest.mark.parametrize("size", [CELLS, PERIOD, 2 * PERIOD + CELLS])
def test_it_is_one_in_a_cell_of_its_own_and_zero_elsewhere(size: int) -> None:
    total = sum(whole(site, r, size, "indicator") for r, site in enumerate(SITES, 1))
    assert isinstance(total, np.ndarray)
    assert set(np.unique(total)) == {0.0, 1.0}
    assert np.flatnonzero(total[:PERIOD]).tolist() == sorted(map(cell, SITES))


def test_a_hospital_that_is_in_twice_makes_a_two() -> None:
    one = whole("va", 1, CELLS, "indicator")
    assert (one + whole("va", 2, CELLS, "indicator"))[cell("va")] == 2.0


def test_without_it_the_pattern_is_the_random_one() -> None:
    assert np.array_equal(whole("va", 3, 100), perturbation("va", 3, 0, 100))


def test_a_study_without_the_key_keeps_its_hash() -> None:
    study = study_of("indicator-1", 2000, private=False)
    usual = study.model_copy(update={"model": study.model.model_copy(update={"pattern": "random"})})
    assert b'"pattern":"indicator"' in canonical_json(study)
    assert b"pattern" not in canonical_json(usual)
