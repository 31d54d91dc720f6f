"""A patient that never lived, as one structural equation.

Of hospital h with event rate p_h, vector z of V variables, outcome y:

    y0 ~ Bernoulli(p_h)                                  the patient that comes
    s  = EFFECT y0 + e,            e ~ N(0, 1)           severity
    z  = L s + sqrt(1 - L^2) u,    u ~ N(0, I)           L: each variable's loading
    z  = z + shift_h + drift (year)                      covariate shift and drift
    y  ~ Bernoulli(1 / (1 + exp(-(a_h + b_h' z))))       the outcome

Given y0 the values are normal with means EFFECT y0 L and one covariance S = L L' + diag(1 - L^2),
so that Bayes' rule is a logistic regression with

    b = EFFECT S^-1 L,    a_h = logit p_h - EFFECT b' L / 2                             (1)

Without shifts (z, y) is then distributed as (z, y0): moving p_h alone leaves P(z | y) as it is.
`shift_h` and the drift are added before y is drawn from the same rule, so P(y | z) stays; they
are orthogonal to b, so the risk stays too. Concept shift replaces b by b_h of another direction
and leaves z. In a one-class hospital y0 = y = 1: P(z | y) stays.

Other outcomes follow from the score r = b_h' z / |b' S b|^(1/2), so that other tasks can be
tried on the same patients: `days` and `died` (exponential with hazard HAZARD e^(0.7 r) a day,
lost from sight between 1 and 4 years), `stay` (days in hospital, 12 + 2 r + N(0, 2), at least
1), `visits` (Poisson with mean e^(0.5 + 0.5 r)).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hospital_node.data.invent.knobs import FIRST_YEAR, LAST_YEAR, Knobs
from hospital_node.data.invent.variables import Variable, variables

EFFECT: Final = 1.7
"""How much sicker who has the outcome is, in standard deviations of severity."""

HAZARD: Final = 1 / 1500
_SMALLEST: Final = 20

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rule:
    """How outcomes come about at a hospital, on the scale of z: intercept and coefficients."""

    intercept: float
    coefficients: Vector


@dataclass(frozen=True, slots=True)
class Cohort:
    """One hospital's patients as they are, before anybody writes anything down.

    `z` [rows, variables]; `year`, `outcome`, `days`, `died`, `stay`, `visits` and `person`
    (opaque ids) [rows].
    `shift` [variables] is what the covariate shift added to z. The last `guests` rows are
    patients of the hospital before.
    """

    site: str
    rule: Rule
    shift: Vector
    z: Vector
    year: NDArray[np.int64]
    outcome: NDArray[np.int64]
    days: Vector
    died: NDArray[np.int64]
    stay: Vector
    visits: NDArray[np.int64]
    person: NDArray[np.str_]
    guests: int = 0


def stream(seed: int, purpose: str, place: int = 0) -> np.random.Generator:
    """Return the generator of one purpose at one hospital; streams do not touch each other."""
    words = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "big")
    return np.random.Generator(np.random.PCG64([seed, words, place]))


def site_name(place: int) -> str:
    """Return the id of the hospital at `place`, counted from 1."""
    return f"hospital-{place + 1:02}"


def loadings(measured: tuple[Variable, ...]) -> Vector:
    """Return L [variables]."""
    return np.array([variable.loading for variable in measured])


def rule(load: Vector, event_rate: float) -> Rule:
    """Return the true rule of equation (1)."""
    covariance = np.outer(load, load) + np.diag(1 - load**2)
    slope: Vector = EFFECT * np.asarray(np.linalg.solve(covariance, load), np.float64)
    return Rule(_logit(event_rate) - EFFECT * float(slope @ load) / 2, slope)


def cohorts(knobs: Knobs, seed: int) -> tuple[Cohort, ...]:
    """Return every hospital's patients, by the seed alone."""
    load = loadings(variables(knobs.extra))
    own = [_cohort(knobs, seed, place, load) for place in range(knobs.sites)]
    return tuple(
        _with_guests(cohort, own[place - 1], knobs.duplicates) for place, cohort in enumerate(own)
    )


# --- how hospitals differ ------------------------------------------------------------------------


def sizes(knobs: Knobs, seed: int) -> list[int]:
    """Return each hospital's number of patients of its own."""
    steps = np.linspace(-1.0, 1.0, knobs.sites)
    order = stream(seed, "size").permutation(knobs.sites)
    exact = knobs.rows * np.exp(knobs.size * steps[order])
    return [max(_SMALLEST, round(float(value))) for value in exact]


def event_rates(knobs: Knobs, seed: int) -> list[float]:
    """Return p_h of each hospital."""
    steps = np.linspace(-1.0, 1.0, knobs.sites)
    order = stream(seed, "label shift").permutation(knobs.sites)
    logits = _logit(knobs.event_rate) + knobs.label_shift * steps[order]
    return [float(_expit(value)) for value in logits]


def _direction(rng: np.random.Generator, away: Vector) -> Vector:
    """Return a random unit vector orthogonal to `away`."""
    raw = rng.normal(size=away.size)
    raw -= away * (raw @ away) / (away @ away)
    return np.asarray(raw / np.linalg.norm(raw))


def _rule_at(knobs: Knobs, seed: int, place: int, load: Vector) -> Rule:
    true = rule(load, event_rates(knobs, seed)[place])
    if knobs.concept_shift == 0:
        return true
    turn = _direction(stream(seed, "concept shift", place), true.coefficients)
    length = knobs.concept_shift * float(np.linalg.norm(true.coefficients))
    return Rule(true.intercept, true.coefficients + length * turn)


# --- one hospital --------------------------------------------------------------------------------


def _cohort(knobs: Knobs, seed: int, place: int, load: Vector) -> Cohort:
    rows = sizes(knobs, seed)[place]
    true, here = rule(load, knobs.event_rate), _rule_at(knobs, seed, place, load)
    all_sick = place >= knobs.sites - knobs.one_class
    year = _years(seed, place, rows)
    shift = knobs.covariate_shift * _direction(
        stream(seed, "covariate shift", place), true.coefficients
    )
    comes = stream(seed, "comes", place).random(rows) < event_rates(knobs, seed)[place]
    z = _values(seed, place, load, (comes | all_sick).astype(np.float64))
    along = (year - FIRST_YEAR) / (LAST_YEAR - FIRST_YEAR)
    drift = knobs.drift * _direction(stream(seed, "drift"), true.coefficients)
    z = z + shift + np.outer(along, drift)
    score = z @ here.coefficients
    chance = _expit(here.intercept + score)
    fires = stream(seed, "outcome", place).random(rows) < chance
    spread = float(np.sqrt(EFFECT * true.coefficients @ load))
    return Cohort(
        site_name(place), here, shift, z, year,
        np.where(all_sick, 1, fires).astype(np.int64),
        *_survival(seed, place, score / spread),
        *_amounts(seed, place, score / spread),
        person=_persons(seed, place, rows),
    )  # fmt: skip


def _years(seed: int, place: int, rows: int) -> NDArray[np.int64]:
    return stream(seed, "year", place).integers(FIRST_YEAR, LAST_YEAR + 1, rows)


def _values(seed: int, place: int, load: Vector, comes: Vector) -> Vector:
    severity = EFFECT * comes + stream(seed, "severity", place).normal(size=comes.size)
    own = np.empty((comes.size, load.size))
    for column in range(load.size):  # a stream each: more variables leave the first ones alone
        own[:, column] = stream(seed, f"variable {column}", place).normal(size=comes.size)
    return np.asarray(np.outer(severity, load) + own * np.sqrt(1 - load**2))


def _survival(seed: int, place: int, score: Vector) -> tuple[Vector, NDArray[np.int64]]:
    """Return the days seen, at least 1, and whether death ended them."""
    waiting = stream(seed, "death", place).exponential(size=score.size)
    death = np.ceil(waiting / (HAZARD * np.exp(0.7 * score)))
    lost = stream(seed, "lost", place).integers(365, 4 * 365 + 1, score.size)
    return np.minimum(death, lost), (death <= lost).astype(np.int64)


def _amounts(seed: int, place: int, score: Vector) -> tuple[Vector, NDArray[np.int64]]:
    noise = stream(seed, "stay", place).normal(0.0, 2.0, score.size)
    stay: Vector = np.round(np.maximum(1.0, 12.0 + 2.0 * score + noise), 1).astype(np.float64)
    # One uniform each, through the inverse: counts of early patients never depend on later ones.
    chance = stream(seed, "visits", place).random(score.size)
    return stay, _poisson(chance, np.exp(0.5 + 0.5 * np.clip(score, -6.0, 6.0)))


def _poisson(chance: Vector, mean: Vector) -> NDArray[np.int64]:
    """Return the least k whose distribution function exceeds `chance`."""
    counts = np.zeros(mean.size, np.int64)
    term = np.exp(-mean)
    total = term.copy()
    for k in range(1, 400):
        above = chance >= total
        if not above.any():
            break
        counts[above] = k
        term = term * mean / k
        total += term
    return counts


def _persons(seed: int, place: int, rows: int) -> NDArray[np.str_]:
    """Return opaque ids, the same for a patient wherever he or she is written down."""
    texts = (f"{seed}/{place}/{row}".encode() for row in range(rows))
    return np.array([hashlib.sha256(text).hexdigest()[:16] for text in texts])


def _with_guests(cohort: Cohort, before: Cohort, share: float) -> Cohort:
    """Return the cohort with the share of the hospital before, its first patients, at its end."""
    guests = round(share * before.year.size)
    if guests == 0:
        return cohort

    def joined(name: str) -> NDArray[np.generic]:
        return np.concatenate([getattr(cohort, name), getattr(before, name)[:guests]])

    names = ("z", "year", "outcome", "days", "died", "stay", "visits", "person")
    arrays = {name: joined(name) for name in names}
    return Cohort(cohort.site, cohort.rule, cohort.shift, guests=guests, **arrays)  # type: ignore[arg-type]


def _logit(chance: float) -> float:
    return float(np.log(chance / (1 - chance)))


def _expit(value: float | Vector) -> Vector:
    return np.asarray(1 / (1 + np.exp(-np.asarray(value, np.float64))))
