"""A statistics study's sums and what is published of them, against pandas and lifelines."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from lifelines import KaplanMeierFitter
from lifelines.statistics import multivariate_logrank_test
from scipy import stats

from common import counting, statistics_result
from common.statistics_file import CategoryEntry, NumberEntry, StatisticsFile
from common.study import Study
from common.survival_curves import chi_square_tail, kaplan_meier, logrank
from tests import statistics_study as world

SIZES = (700, 420, 260)


@pytest.fixture(scope="module")
def study() -> Study:
    return world.study()


@pytest.fixture(scope="module")
def frames() -> list[pd.DataFrame]:
    return [world.patients(rows, seed) for seed, rows in enumerate(SIZES)]


@pytest.fixture(scope="module")
def pooled(frames: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def sums(study: Study, frames: list[pd.DataFrame]) -> counting.Sums:
    return world.summed(study, frames)


@pytest.fixture(scope="module")
def found(study: Study, sums: counting.Sums) -> StatisticsFile:
    return statistics_result.published(study, sums)


def groups(pooled: pd.DataFrame) -> list[pd.DataFrame]:
    """Return everybody, then each arm, then those of no known arm."""
    arms = [pooled[pooled.arm == arm] for arm in range(3)]
    return [pooled, *arms, pooled[pooled.arm.isna()]]


def test_counts_are_those_of_the_pooled_rows(found: StatisticsFile, pooled: pd.DataFrame) -> None:
    assert [column.n for column in found.columns] == [len(part) for part in groups(pooled)]
    assert [column.label for column in found.columns] == ["all", "a", "b", "c", "not known"]
    age = found.features[0]
    assert isinstance(age, NumberEntry)
    for got, part in zip(age.present, groups(pooled), strict=True):
        assert got is None or got == part.age.notna().sum()
    sex = found.features[3]
    assert isinstance(sex, CategoryEntry)
    for place, level in enumerate(sex.levels[:2]):
        for count, part in zip(level.counts, groups(pooled), strict=True):
            assert count is None or count == (part.sex == place).sum()
    assert sex.levels[2].missing
    assert sex.levels[2].counts[0] == pooled.sex.isna().sum()


@pytest.mark.parametrize("name", ["age", "lab"])
def test_means_and_spreads_are_exact(
    found: StatisticsFile, pooled: pd.DataFrame, name: str
) -> None:
    entry = found.features[world.FEATURES.index(name)]
    assert isinstance(entry, NumberEntry)
    for place, part in enumerate(groups(pooled)):
        # Beside a hidden count a mean has four digits: it would be a fraction over the count.
        rel = 1e-9 if entry.present[place] is not None else 1e-3
        assert entry.mean[place] == pytest.approx(part[name].mean(), rel=rel)
        assert entry.sd[place] == pytest.approx(part[name].std(), rel=rel)


@pytest.mark.parametrize("name", ["age", "lab"])
def test_quantiles_are_within_half_a_bin(
    found: StatisticsFile, pooled: pd.DataFrame, name: str
) -> None:
    entry = found.features[world.FEATURES.index(name)]
    assert isinstance(entry, NumberEntry)
    assert entry.resolution == pytest.approx(1.0 if entry.whole else 15 / 1024)
    shown = 0
    for one in entry.quantiles:
        for value, part in zip(one.values, groups(pooled), strict=True):
            if value is not None:
                exact = np.quantile(part[name].dropna(), one.q, method="inverted_cdf")
                tolerance = 1e-9 if entry.whole else entry.resolution / 2 + 1e-9
                assert abs(value - exact) <= tolerance
                shown += 1
    assert shown >= 12


def test_histogram_bars_hold_enough_and_add_up(found: StatisticsFile, pooled: pd.DataFrame) -> None:
    for entry in found.features[:2]:
        assert isinstance(entry, NumberEntry)
        values = pooled[entry.name].dropna()
        for bar in entry.histogram:
            assert bar.count == ((values >= bar.low) & (values < bar.high)).sum()
            assert bar.count == 0 or (bar.count or 0) >= found.min_cell
        assert sum(bar.count or 0 for bar in entry.histogram) == len(values)


def test_a_cross_table_is_that_of_the_rows(found: StatisticsFile, pooled: pd.DataFrame) -> None:
    cross = found.cross[0]
    band = np.searchsorted([50, 65], pooled.age.to_numpy(), side="right").astype(float)
    band[pooled.age.isna()] = 3
    exact = pd.crosstab(pooled.sex.fillna(2), band).to_numpy()
    assert cross.row_labels == ("0", "1", "missing")
    assert cross.column_labels == ("< 50", "50 to < 65", ">= 65", "missing")
    assert list(cross.row_totals) == exact.sum(axis=1).tolist()
    for row, want in zip(cross.counts, exact, strict=True):
        assert all(n is None or n == w for n, w in zip(row, want, strict=True))
    assert any(n is None for row in cross.counts for n in row)  # both missing: few


def test_kaplan_meier_is_lifelines_on_the_grid(sums: counting.Sums, pooled: pd.DataFrame) -> None:
    for arm in range(3):
        curve = kaplan_meier(sums.counts["events"][arm], sums.counts["lost"][arm])
        part = pooled[pooled.arm == arm]
        fit = KaplanMeierFitter().fit(part.days, part.dead, timeline=np.arange(401))
        assert curve.survival == pytest.approx(
            fit.survival_function_.iloc[:, 0].to_numpy(), rel=1e-9
        )
        inside = ~np.isnan(curve.low)
        bounds = fit.confidence_interval_.to_numpy()[inside]
        assert curve.low[inside] == pytest.approx(bounds[:, 0], rel=1e-9)
        assert curve.high[inside] == pytest.approx(bounds[:, 1], rel=1e-9)


def test_published_steps_are_the_curve_and_hold_enough(
    found: StatisticsFile, sums: counting.Sums
) -> None:
    assert found.survival is not None
    for arm, entry in enumerate(found.survival.curves[:3]):
        curve = kaplan_meier(sums.counts["events"][arm], sums.counts["lost"][arm])
        assert len(entry.steps) >= 3
        gone = entry.n
        for step in entry.steps:
            assert step.survival == pytest.approx(curve.survival[round(step.time)], abs=5e-5)
            gone -= step.events + step.lost
            assert step.at_risk == gone
            assert all(n == 0 or n >= 10 for n in (step.events, step.lost, step.at_risk))


def horizon_cut(part: pd.DataFrame) -> pd.DataFrame:
    """Return rows as the grid sees them: watched to day 400, then lost."""
    late = part.days > 400
    return part.assign(days=part.days.clip(upper=401), dead=part.dead.where(~late, 0.0))


def test_the_log_rank_test_is_lifelines(sums: counting.Sums, pooled: pd.DataFrame) -> None:
    known = horizon_cut(pooled[pooled.arm.notna()])
    exact = multivariate_logrank_test(known.days, known.arm, known.dead)
    mine = logrank(*statistics_result.pooled_terms(sums, [[0], [1], [2]]))
    assert mine is not None
    assert mine[0] == pytest.approx(exact.test_statistic, rel=1e-9)
    assert mine[1] == 2
    assert mine[2] == pytest.approx(exact.p_value, rel=1e-9)


def test_the_stratified_test_adds_up_the_hospitals(
    sums: counting.Sums, frames: list[pd.DataFrame]
) -> None:
    """Each hospital's two-group log-rank by a plain loop over its event times."""
    excess = variance = 0.0
    for frame in frames:
        known = frame[frame.arm.notna()]
        one = (known.arm == 0).to_numpy()
        for time in known.days[known.dead > 0].unique():
            risk, now = (known.days >= time).to_numpy(), (known.days == time).to_numpy()
            dead = now & (known.dead > 0).to_numpy()
            n, d, k = risk.sum(), dead.sum(), (risk & one).sum()
            excess += (dead & one).sum() - d * k / n
            if n > 1:
                variance += d * (k / n) * (1 - k / n) * (n - d) / (n - 1)
    found = logrank(*statistics_result.stratified_terms(sums, [[0], [1, 2]]))
    assert found is not None
    assert found[0] == pytest.approx(excess**2 / variance, rel=1e-9)


@pytest.mark.parametrize("freedom", [1, 2, 3, 7])
def test_the_chi_square_tail_is_scipys(freedom: int) -> None:
    for x in (1e-9, 0.1, 0.9, 2.0, 3.84, 10.0, 40.0, 300.0):
        assert chi_square_tail(x, freedom) == pytest.approx(stats.chi2.sf(x, freedom), rel=1e-9)
    assert chi_square_tail(0.0, freedom) == 1.0


def test_too_few_patients_in_all_publish_nothing(study: Study) -> None:
    found = statistics_result.published(
        study, world.summed(study, [world.patients(3, s) for s in range(3)])
    )
    assert found.columns == ()
    assert found.features == ()
    assert found.survival is None


@pytest.mark.parametrize("seed", range(12))
def test_no_small_count_stands_anywhere(study: Study, seed: int) -> None:
    """Whatever the sizes: every published count is 0 or at least 10."""
    rng = np.random.Generator(np.random.PCG64(seed))
    frames = [world.patients(int(rng.integers(5, 60)), 100 + seed * 3 + s) for s in range(3)]
    found = statistics_result.published(study, world.summed(study, frames))
    assert StatisticsFile.from_json(found.to_json()) == found

    def counts(value: object) -> list[int]:
        if isinstance(value, dict):
            keys = ("q", "min_cell", "df", "whole", "missing_row")
            return [n for key, part in value.items() if key not in keys for n in counts(part)]
        if isinstance(value, (list, tuple)):
            return [n for part in value for n in counts(part)]
        return [value] if isinstance(value, int) and not isinstance(value, bool) else []

    assert all(n == 0 or n >= 10 for n in counts(found.model_dump()))


def test_cuts_of_one_number_hold_enough_between_them(study: Study) -> None:
    """Quantiles, bars and bands of everybody cut the patients in parts that are not small."""
    for seed in range(8):
        frames = [world.patients(rows, seed * 3 + at) for at, rows in enumerate((40, 50, 70))]
        pooled = pd.concat(frames)
        found = statistics_result.published(study, world.summed(study, frames))
        for entry in found.features[:2]:
            assert isinstance(entry, NumberEntry)
            values = pooled[entry.name].dropna().to_numpy()
            cuts = {bar.low for bar in entry.histogram} | {math.inf, -math.inf}
            cuts |= {50.0, 65.0} if entry.name == "age" else set()
            half = entry.resolution / 2
            bins = [q.model_dump()["values"][0] for q in entry.quantiles]
            own = {(v - half, v + half) for v in bins if v is not None}
            ends = sorted(cuts | {end for pair in own for end in pair})
            for low, high in pairwise(ends):
                inside = int(((values >= low) & (values < high)).sum())
                same = any(math.isclose(low, a) and math.isclose(high, b) for a, b in own)
                close = math.isclose(low, high, abs_tol=1e-9)
                banded = {low, high} <= {50.0, 65.0, math.inf, -math.inf}
                assert same or close or banded or inside == 0 or inside >= 10, (seed, low, high)
