"""Each knob of the generator moves what it names and nothing else."""

from __future__ import annotations

import functools
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from common.errors import ConfigError
from hospital_node.data.invent.knobs import LAST_YEAR, SCENARIOS, Knobs, scenario
from hospital_node.data.invent.patients import (
    EFFECT,
    Cohort,
    cohorts,
    event_rates,
    loadings,
    rule,
    sizes,
)
from hospital_node.data.invent.recording import SENTINEL, Ward, record
from hospital_node.data.invent.variables import BASE, Choice, Quantity, variables

SEED = 3
PLAIN = Knobs(sites=3, rows=60)
NUMBERS = tuple(one.name for one in BASE if isinstance(one, Quantity))
TURNED: dict[str, Any] = {
    "size": 1.0, "label_shift": 1.0, "covariate_shift": 1.0, "concept_shift": 1.0, "units": 0.5,
    "coding": 0.5, "missing": 0.3, "sentinel": 0.2, "one_class": 1, "duplicates": 0.2,
    "drift": 1.0, "split_year": 2020,
}  # fmt: skip


def wards(knobs: Knobs, seed: int = SEED) -> list[Ward]:
    return [record(knobs, seed, place, one) for place, one in enumerate(cohorts(knobs, seed))]


def changed(a: Ward, b: Ward) -> set[str]:
    """The columns whose cells differ, in rows that both have."""
    return {
        name
        for name in {*a.cells, *b.cells}
        if any(
            one != other
            for one, other in zip(a.cells.get(name, [""]), b.cells.get(name, [""]), strict=False)
        )
    }


def test_every_knob_that_is_off_by_default_is_listed_here() -> None:
    set_up = {"sites", "rows", "event_rate", "extra"}
    assert {field.name for field in fields(Knobs)} - set_up == set(TURNED)
    assert all(field.default == 0 for field in fields(Knobs) if field.name in TURNED)


@given(seed=st.integers(0, 2**32), sites=st.integers(2, 4), rows=st.integers(20, 40))
def test_same_seed_same_cells_and_another_seed_others(seed: int, sites: int, rows: int) -> None:
    knobs = Knobs(sites=sites, rows=rows, missing=0.2, label_shift=1.0, duplicates=0.1)
    once, again = wards(knobs, seed), wards(knobs, seed)
    assert [one.cells for one in once] == [one.cells for one in again]
    assert once[0].cells != wards(knobs, seed + 1)[0].cells


@pytest.mark.parametrize("knob", sorted(set(TURNED) - {"one_class", "split_year"}))
@given(seed=st.integers(0, 2**32))
@settings(max_examples=10)
def test_a_knob_turned_by_next_to_nothing_gives_the_plain_data(knob: str, seed: int) -> None:
    little: dict[str, Any] = {knob: 1e-12}
    turned = replace(PLAIN, **little)
    assert [one.cells for one in wards(turned, seed)] == [one.cells for one in wards(PLAIN, seed)]


OUTCOMES = {"outcome", "days", "died", "stay", "visits"}
MAY_CHANGE: dict[str, set[str]] = {
    "size": set(),
    "concept_shift": OUTCOMES,
    "units": {"creatinine", "glucose", "haemoglobin", "crp"},
    "coding": {"sex", "smoking"},
    "missing": {one.name for one in BASE} - {"age", "sex"},
    "sentinel": set(NUMBERS) - {"age"},
    "duplicates": set(),
    "split_year": {"split"},
    "covariate_shift": {one.name for one in BASE},  # and no outcome: the risk stays
    "drift": {one.name for one in BASE},
    "label_shift": {one.name for one in BASE} | OUTCOMES,
    "one_class": {one.name for one in BASE} | OUTCOMES,
}


@pytest.mark.parametrize("knob", TURNED)
def test_a_knob_changes_only_the_columns_it_names(knob: str) -> None:
    turned = wards(replace(PLAIN, **{knob: TURNED[knob]}))
    pairs = zip(wards(PLAIN), turned, strict=True)
    found = {name for one, other in pairs for name in changed(one, other)}
    assert found <= MAY_CHANGE[knob]
    assert bool(found) == bool(MAY_CHANGE[knob])
    rows = [one.rows for one in turned] == [one.rows for one in wards(PLAIN)]
    assert rows == (knob not in ("size", "duplicates"))


@pytest.mark.parametrize(("knob", "share"), [("units", 0.5), ("coding", 0.5), ("one_class", 1)])
def test_a_knob_of_some_hospitals_leaves_the_others(knob: str, share: float) -> None:
    some: dict[str, Any] = {knob: share}
    turned = wards(replace(PLAIN, sites=4, **some))
    differ = [bool(changed(*pair)) for pair in zip(wards(replace(PLAIN, sites=4)), turned,
                                                   strict=True)]  # fmt: skip
    expected = [False, False, True, True] if share < 1 else [False, False, False, True]
    assert differ == expected


# --- distributions, against scikit-learn and moments -----------------------------------------

MANY = Knobs(sites=2, rows=20_000)


@functools.cache
def many() -> tuple[Cohort, ...]:
    return cohorts(MANY, SEED)


def fit(cohort: Cohort) -> NDArray[np.float64]:
    model = LogisticRegression(C=1e6, max_iter=500).fit(cohort.z, cohort.outcome)
    return np.asarray(model.coef_[0])


def by_outcome(cohort: Cohort, outcome: int) -> NDArray[np.float64]:
    return np.asarray(cohort.z[cohort.outcome == outcome].mean(axis=0))


def test_a_fit_to_the_patients_finds_the_stated_coefficients() -> None:
    cohort = many()[0]
    assert np.abs(fit(cohort) - cohort.rule.coefficients).max() < 0.1
    assert abs(cohort.outcome.mean() - MANY.event_rate) < 0.01


def test_values_given_the_outcome_are_those_of_the_equation() -> None:
    cohort, load = many()[0], loadings(BASE)
    assert np.abs(by_outcome(cohort, 0)).max() < 0.05
    assert np.abs(by_outcome(cohort, 1) - EFFECT * load).max() < 0.05


def test_label_shift_moves_the_event_rates_and_leaves_values_given_the_outcome() -> None:
    knobs = replace(MANY, label_shift=1.5)
    load, rates = loadings(BASE), event_rates(knobs, SEED)
    assert min(rates) < 0.1
    assert max(rates) > 0.5
    for cohort, rate in zip(cohorts(knobs, SEED), rates, strict=True):
        assert abs(cohort.outcome.mean() - rate) < 0.01
        assert np.abs(by_outcome(cohort, 0)).max() < 0.08
        assert np.abs(by_outcome(cohort, 1) - EFFECT * load).max() < 0.08


def test_a_one_class_hospital_has_sick_patients_like_sick_ones_elsewhere() -> None:
    ordinary, sick = cohorts(replace(MANY, one_class=1), SEED)
    assert sick.outcome.all()
    assert not ordinary.outcome.all()
    assert np.abs(sick.z.mean(axis=0) - EFFECT * loadings(BASE)).max() < 0.05


def test_covariate_shift_moves_values_by_its_length_and_leaves_the_risk() -> None:
    plain, moved = many(), cohorts(replace(MANY, covariate_shift=2.0), SEED)
    for before, after in zip(plain, moved, strict=True):
        step = (after.z - before.z).mean(axis=0)
        assert np.linalg.norm(step) == pytest.approx(2.0)
        assert step == pytest.approx(after.shift)
        assert (after.outcome == before.outcome).all()
    assert moved[0].shift != pytest.approx(moved[1].shift)


def test_drift_moves_late_patients_at_all_hospitals_the_same_way() -> None:
    plain, moved = cohorts(PLAIN, SEED), cohorts(replace(PLAIN, drift=1.5), SEED)
    for before, after in zip(plain, moved, strict=True):
        length = np.linalg.norm(after.z - before.z, axis=1)
        assert length == pytest.approx(1.5 * (after.year - 2015) / (LAST_YEAR - 2015))
        assert (after.outcome == before.outcome).all()


def test_concept_shift_turns_the_coefficients_and_leaves_the_values() -> None:
    knobs = replace(MANY, concept_shift=1.0)
    true = rule(loadings(BASE), knobs.event_rate).coefficients
    for before, after in zip(many(), cohorts(knobs, SEED), strict=True):
        assert (after.z == before.z).all()
        turned = after.rule.coefficients - true
        assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(true))
        assert np.abs(fit(after) - after.rule.coefficients).max() < 0.15


def test_sizes_run_evenly_in_the_logarithm() -> None:
    knobs = Knobs(sites=3, rows=100, size=1.0)
    assert sorted(sizes(knobs, SEED)) == [37, 100, 272]


def test_gaps_come_in_the_share_asked_for_and_never_in_age_or_sex() -> None:
    ward = wards(Knobs(sites=2, rows=4000, missing=0.8, sentinel=0.1))[0]
    for variable in ward.measured:
        cells = ward.cells[variable.name]
        never = variable.name in ("age", "sex")
        assert cells.count("") / len(cells) == pytest.approx(0.0 if never else 0.8, abs=0.03)
        filled = never or isinstance(variable, Choice)
        assert cells.count(SENTINEL) / len(cells) == pytest.approx(
            0.0 if filled else 0.02, abs=0.01
        )


def test_other_units_are_the_same_amounts() -> None:
    knobs = Knobs(sites=2, rows=200, units=0.5)
    native, other = wards(replace(knobs, units=0.0))[1], wards(knobs)[1]
    factors = {"creatinine": 113.12e-4, "glucose": 18.0156, "haemoglobin": 10.0, "crp": 0.1}
    assert set(other.other_units) == set(factors)
    for name, factor in factors.items():
        stated = [float(cell) for cell in other.cells[name]]
        assert stated == pytest.approx([factor * float(cell) for cell in native.cells[name]])


@given(share=st.floats(0.0, 0.5), sites=st.integers(2, 4))
def test_duplicates_are_exactly_the_listed_ones(share: float, sites: int) -> None:
    people = cohorts(Knobs(sites=sites, rows=20, duplicates=share), SEED)
    for place, cohort in enumerate(people):
        before = people[place - 1]
        own = cohort.year.size - cohort.guests
        assert cohort.guests == round(share * 20)
        assert (cohort.person[own:] == before.person[: cohort.guests]).all()
        assert (cohort.z[own:] == before.z[: cohort.guests]).all()
        assert (cohort.outcome[own:] == before.outcome[: cohort.guests]).all()
    every = np.concatenate([one.person[: one.year.size - one.guests] for one in people])
    assert len(set(every.tolist())) == every.size


def test_more_variables_leave_the_first_fourteen_as_they_were() -> None:
    few, many = wards(PLAIN)[0], wards(replace(PLAIN, extra=34))[0]
    assert changed(few, many) - OUTCOMES == {f"lab_{number:02}" for number in range(1, 35)}
    assert len(variables(34)) == 48


# --- other outcomes --------------------------------------------------------------------------


def test_other_outcomes_follow_the_same_score() -> None:
    cohort = many()[0]
    score = cohort.z @ cohort.rule.coefficients
    assert np.corrcoef(score, cohort.stay)[0, 1] > 0.6
    assert np.corrcoef(score, cohort.visits)[0, 1] > 0.3
    assert np.corrcoef(score, cohort.days)[0, 1] < -0.2
    assert cohort.days.min() >= 1
    assert 0.1 < cohort.died.mean() < 0.9


# --- knobs that cannot be ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"sites": 1}, {"missing": 1.0}, {"label_shift": float("nan")}, {"split_year": 1999},
     {"one_class": 5, "sites": 4}, {"duplicates": -0.1}],
)  # fmt: skip
def test_a_knob_out_of_its_limits_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong)).replace("_", "-")) as refused:
        Knobs(**wrong)  # type: ignore[arg-type]
    assert refused.value.name == "BAD_ARGUMENT"


def test_a_scenario_is_known_by_name_and_options_override_it() -> None:
    assert scenario("wide", sites=20, rows=None) == replace(SCENARIOS["wide"], sites=20)
    with pytest.raises(ConfigError, match="did you mean 'wide'"):
        scenario("wyde")
