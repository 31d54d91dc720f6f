"""What is released beside a model reads back to the last bit, or is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from common.errors import DataError, StateError
from common.features import encoded_columns
from common.preprocessing import Preprocessing
from common.statistics import Constants, assemble
from tests.learning import study, table

TWO = "\n  - {name: x, type: float}\n  - {name: c, type: category, levels: [a, b, c]}"
FOUND = Preprocessing(("x", "c=b", "c=c"), (0.1, 0.0, 1 / 3), (2.0, 1.0, 0.5), (0.7, None))


def test_it_reads_back_to_the_last_bit() -> None:
    assert Preprocessing.from_json(FOUND.to_json()) == FOUND
    assert Preprocessing.from_json(FOUND.to_json()).to_json() == FOUND.to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "fedcare.preprocessing/v2"},
        {"scale": [1, 0, 1]},
        {"scale": [1, -1, 1]},
        {"scale": [1, 1]},
        {"centre": [1, math.nan, 1]},
        {"centre": [1, "2", 1]},
        {"impute": [math.inf, None]},
        {"columns": [1, 2, 3]},
        {"centre": None},
    ],
)
def test_an_altered_file_is_refused(change: dict[str, object]) -> None:
    body = {**json.loads(FOUND.to_json()), **change}
    with pytest.raises(StateError, match="MODEL_INVALID"):
        Preprocessing.from_json(json.dumps(body))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", FOUND.to_json()[:-9]])
def test_no_such_file_is_refused(text: str) -> None:
    with pytest.raises(StateError, match="MODEL_INVALID"):
        Preprocessing.from_json(text)


def test_a_category_becomes_one_indicator_less_than_it_has_levels() -> None:
    assert [column.name for column in encoded_columns(study(TWO))] == ["x", "c=b", "c=c"]


@pytest.mark.parametrize("normalise", ["none", "fixed"])
def test_an_indicator_without_pooled_constants_is_0_or_1(normalise: str) -> None:
    more = ", centre: 3, scale: 2" if normalise == "fixed" else ""
    text = f"\n  - {{name: x, type: float, impute: mean, indicator: true{more}}}"
    terms = study(text, more=f"normalise: {normalise}")
    found = assemble(terms, [Constants((7.0,), (9.0,), 7.0, (0.4, 0.5))])
    encoded = found.encode(terms, table([[math.nan, 5.0]]))
    assert encoded.features[:, 1].tolist() == [1.0, 0.0]
    assert encoded.features[0, 0] == (2.0 if normalise == "fixed" else 7.0)


def test_rows_are_imputed_encoded_centred_and_scaled() -> None:
    rows = table([[math.nan, 2.1], [2.0, 0.0]], [1, 0])
    encoded = FOUND.encode(study(TWO), rows)
    expected = [[(0.7 - 0.1) / 2, 0, (1 - 1 / 3) / 0.5], [1, 0, -(1 / 3) / 0.5]]
    assert encoded.features == pytest.approx(np.array(expected, np.float32))
    assert encoded.features.dtype == np.float32
    assert encoded.target.tolist() == [1.0, 0.0]


def test_a_missing_value_without_imputation_is_named_by_feature() -> None:
    with pytest.raises(DataError, match="'c' has missing values"):
        FOUND.encode(study(TWO), table([[1.0], [math.nan]]))


def test_constants_of_another_study_are_refused() -> None:
    with pytest.raises(StateError, match="columns of study test-study"):
        FOUND.encode(study(), table([[1.0]] * 5))
