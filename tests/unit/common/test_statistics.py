"""Constants out of masked sums equal those of the pooled rows, and never break."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common import layouts, statistics
from common.errors import ConfigError, DataError, InternalError
from common.features import Table
from common.preprocessing import Preprocessing
from common.quantise import Coding, VectorEncoder, limb_ranges
from common.secagg.header import Rounding, quant_bound
from common.study import Study, load_study
from common.weights import weight
from tests.learning import random_table, study, table

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared" / "data" / "fed_heart_disease"
UCI = Path(os.environ.get("FEDCARE_UCI_DIR", SHARED))


def opened_sum(terms: Study, tables: list[Table]) -> tuple[NDArray[np.int64], int]:
    """The integer sum of the hospitals' quantised vectors, and B."""
    bound = quant_bound(len(tables), 64)
    coding = Coding(bound, 64, Rounding.EVEN)
    schema = statistics.layout(terms)
    total = np.zeros(schema.words, np.int64)
    for rows in tables:
        values = statistics.contribution(terms, rows, weight(terms, "x", rows.rows), bound)
        words = np.empty(schema.words, np.uint64)
        encoder = VectorEncoder(schema, values, ranges=limb_ranges(1.0, bound), coding=coding)
        assert encoder.count_clipped() == 0
        encoder.fill(words, 0)
        total += words.view(np.int64)
    return total[: schema.parameters], bound


def constants(terms: Study, tables: list[Table]) -> Preprocessing:
    return statistics.pooled(terms, *opened_sum(terms, tables))


def assert_is_pooled(found: Preprocessing, terms: Study, values: NDArray[np.float64]) -> None:
    """Compare with the mean, deviation, median and mode of all rows together."""
    place = 0
    for column, feature in enumerate(terms.features):
        present = values[~np.isnan(values[:, column]), column]
        if feature.levels is None:
            assert found.centre[place] == pytest.approx(present.mean(), rel=1e-9, abs=1e-9)
            assert found.scale[place] == pytest.approx(present.std(), rel=1e-9)
            place += 1
        else:
            shares = np.bincount(present.astype(int), minlength=len(feature.levels)) / len(present)
            for share in shares[1:]:
                assert found.centre[place] == pytest.approx(share, abs=1e-9)
                deviation = max(math.sqrt(share * (1 - share)), 0.1)
                assert found.scale[place] == pytest.approx(deviation, abs=1e-9)
                place += 1
            if feature.impute == "most-frequent":
                assert found.impute[column] == shares.argmax()
        if feature.impute == "mean":
            assert found.impute[column] == pytest.approx(present.mean(), rel=1e-9, abs=1e-9)
    assert place == len(found.columns)


def test_exact_weights_give_the_statistics_of_all_rows_together() -> None:
    terms = study()
    tables = [random_table(rows, seed) for seed, rows in enumerate((199, 172, 30, 85))]
    values = np.concatenate([rows.values for rows in tables])
    found = constants(terms, tables)
    assert_is_pooled(found, terms, values)
    visits, dose = (values[~np.isnan(values[:, k]), k] for k in (1, 2))
    assert found.impute[1] == np.sort(visits)[(len(visits) - 1) // 2]
    assert found.impute[2] == pytest.approx(np.median(dose), abs=2 * 8 / 1024)


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1.0, 1e5])
def test_without_a_range_the_unit_of_a_column_does_not_matter(unit: float) -> None:
    terms = study("\n  - {name: x, type: float}")
    rng = np.random.default_rng(1)
    tables = [table([unit * (3 + rng.normal(size=n))]) for n in (50, 70)]
    assert_is_pooled(constants(terms, tables), terms, np.concatenate([t.values for t in tables]))


@pytest.mark.skipif(
    not (UCI / "processed.va.data").is_file(),
    reason="no FEDCARE_UCI_DIR with the four processed.*.data files of archive.ics.uci.edu",
)
def test_the_four_real_hospitals_together(tmp_path: Path) -> None:
    from hospital_node.data import heart
    from hospital_node.data.load import load

    shipped = load_study(ROOT / "studies" / "heart-disease-flamby.yaml")
    exact = shipped.federation.model_copy(update={"weights": "samples"})
    terms = shipped.model_copy(update={"federation": exact})
    files = heart.write_sites(heart.read_uci(UCI), tmp_path, with_flamby_split=True)
    tables = [load(terms, file).train for file in files.values()]
    assert [rows.rows for rows in tables] == [199, 172, 30, 85]
    values = np.concatenate([rows.values for rows in tables])
    assert_is_pooled(constants(terms, tables), terms, values)


def test_size_classes_hide_all_but_the_class() -> None:
    """130 and 250 copies of one row weigh the same: the words do not tell them apart."""
    terms = study(federation="{weights: size_class, max_weight: 1024}")
    row = random_table(1, 3, missing=0.0)
    words = []
    for count in (130, 250):
        rows = row.take(np.zeros(count, np.int64))
        words.append(statistics.contribution(terms, rows, weight(terms, "x", count), 2**52))
    assert np.allclose(words[0], words[1], rtol=0, atol=1e-15)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 3.3, 6.9, 7.0])
@pytest.mark.parametrize("sizes", [(5, 9), (199, 172, 30, 85), (1, 1)])
def test_a_constant_column_is_scaled_by_one(value: float, sizes: tuple[int, ...]) -> None:
    terms = study("\n  - {name: x, type: float}\n  - {name: y, type: float, range: [0, 7]}")
    found = constants(terms, [table([[1e6 + value] * n, [value] * n]) for n in sizes])
    assert found.centre == pytest.approx((1e6 + value, value))
    assert found.scale == (1.0, 1.0)


def test_a_column_missing_at_one_hospital_takes_the_others_constants() -> None:
    terms = study("\n  - {name: x, type: float, range: [0, 9], impute: mean}")
    found = constants(terms, [table([[math.nan] * 30]), table([[2.0, 4.0]])])
    assert (found.centre[0], found.scale[0], found.impute[0]) == pytest.approx((3.0, 1.0, 3.0))


MARKED = """
  - {name: x, type: float, range: [0, 9], impute: mean, indicator: true}
  - {name: d, type: int, range: [0, 40], impute: median, indicator: true}
  - {name: c, type: category, levels: [a, b, c], impute: most-frequent, indicator: true}
"""


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 999), st.floats(0, 1))
def test_an_indicator_is_standardised_by_how_often_all_rows_lack_the_value(
    sizes: list[int], seed: int, missing: float
) -> None:
    rng, terms, plain = np.random.default_rng(seed), study(MARKED), study(
        MARKED.replace(", indicator: true", "")
    )  # fmt: skip
    tables = []
    for rows in sizes:
        values = np.column_stack(
            [rng.uniform(0, 9, rows), rng.integers(0, 41, rows), rng.integers(0, 3, rows)]
        ).astype(float)
        values[rng.random(values.shape) < missing] = np.nan
        tables.append(table(list(values.T)))
    found, without = constants(terms, tables), constants(plain, tables)
    whole = np.concatenate([rows.values for rows in tables])
    share = np.isnan(whole).mean(axis=0)
    places = [found.columns.index(f"{name}=(missing)") for name in "xdc"]
    assert [found.centre[place] for place in places] == pytest.approx(share.tolist(), abs=1e-9)
    spread = np.sqrt(share * (1 - share))
    wanted = np.where(spread > 0, np.maximum(spread, 0.1), 1.0)
    assert [found.scale[place] for place in places] == pytest.approx(wanted.tolist(), abs=1e-6)
    others = [place for place in range(len(found.columns)) if place not in places]
    assert tuple(found.centre[place] for place in others) == without.centre
    assert found.impute == without.impute
    encoded = found.encode(terms, tables[0])
    for column, place in enumerate(places):
        lacks = np.isnan(tables[0].values[:, column])
        expected = (lacks - found.centre[place]) / found.scale[place]
        assert encoded.features[:, place] == pytest.approx(expected, abs=1e-6)


def test_a_column_missing_everywhere_is_zero_after_encoding() -> None:
    terms = study()
    nothing = table([[math.nan] * 4] * 5)
    found = constants(terms, [nothing, nothing])
    encoded = found.encode(terms, nothing)
    assert np.array_equal(encoded.features, np.zeros((4, 6), np.float32))


def test_a_rare_level_is_not_blown_up() -> None:
    terms = study("\n  - {name: c, type: category, levels: [a, b]}")
    found = constants(terms, [table([[0.0] * 999 + [1.0]]), table([[0.0] * 1000])])
    assert found.scale == (statistics.SMALLEST_INDICATOR_SCALE,)


@pytest.mark.parametrize(
    ("values", "median"),
    [([1, 1, 2, 9], 1), ([1, 2, 2, 9], 2), ([40], 40), ([0, 0, 0, 40, 40], 0)],
)
def test_the_median_of_whole_numbers_is_exact(values: list[int], median: int) -> None:
    terms = study("\n  - {name: v, type: int, range: [0, 40], impute: median}")
    halves = [table([values]), table([values])]
    assert constants(terms, halves).impute == (median,)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=2, max_size=5),
    st.floats(0, 1),
    st.integers(0, 1000),
    st.sampled_from(["samples", "size_class", "equal"]),
)
def test_no_constant_is_ever_nan_or_a_zero_scale(
    sizes: list[int], missing: float, seed: int, weights: str
) -> None:
    terms = study(federation=f"{{weights: {weights}, max_weight: 64}}")
    found = constants(terms, [random_table(n, seed + k, missing) for k, n in enumerate(sizes)])
    assert all(math.isfinite(value) for value in (*found.centre, *found.scale))
    assert min(found.scale) > 0
    assert all(value is not None and math.isfinite(value) for value in found.impute)


def test_values_at_the_ends_of_their_range_are_not_clipped() -> None:
    terms = study("\n  - {name: x, type: float, range: [18, 110], impute: median}")
    found = constants(terms, [table([[18.0, 110.0]]), table([[18.0, 110.0]])])
    assert (found.centre[0], found.scale[0]) == pytest.approx((64.0, 46.0))


def test_fixed_and_none_bring_their_own_scales() -> None:
    own = "\n  - {name: x, type: float, centre: 5, scale: 2}"
    fixed = study(own, more="normalise: fixed")
    assert not statistics.needed(fixed)
    found = statistics.without_statistics(fixed)
    assert (found.centre, found.scale) == ((5.0,), (2.0,))
    none = study("\n  - {name: x, type: float, impute: mean}", more="normalise: none")
    assert statistics.needed(none)
    found = constants(none, [table([[1.0, 3.0]]), table([[5.0]])])
    assert (found.centre, found.scale) == ((0.0,), (1.0,))
    assert found.impute == pytest.approx((3.0,))


def test_a_public_constant_stands_in_without_a_sum_over_patients() -> None:
    own = "\n  - {name: x, type: float, centre: 5, scale: 2, impute: centre}"
    fixed = study(own, more="normalise: fixed")
    assert not statistics.needed(fixed)
    found = statistics.without_statistics(fixed)
    assert found.impute == (5.0,)
    assert found.encode(fixed, table([[9.0, math.nan]])).features.tolist() == [[2.0], [0.0]]
    parts = layouts.split_model(fixed, layouts.first_model(fixed, found))[0]
    assert parts.impute == (5.0,)


@pytest.mark.parametrize(
    "feature",
    [
        "{name: x, type: float, impute: centre}",
        '{name: x, type: category, levels: ["0", "1"], impute: centre}',
    ],
)
def test_a_feature_without_a_centre_cannot_be_imputed_by_it(feature: str) -> None:
    with pytest.raises(ConfigError, match="impute"):
        study(f"\n  - {feature}", more="normalise: fixed")


def test_an_empty_hospital_is_refused() -> None:
    with pytest.raises(DataError, match="DATA_EMPTY"):
        statistics.contribution(study(), random_table(0, 1), 1.0, 2**52)


def test_a_sum_of_another_length_is_refused() -> None:
    with pytest.raises(InternalError):
        statistics.pooled(study(), np.zeros(3, np.int64), 2**52)
