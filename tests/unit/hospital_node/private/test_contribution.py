"""A round's integer sum: what one patient can move it by, and who is in it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from common import models
from common.entropy import CountingEntropy
from common.features import Encoded
from common.models import vector
from common.privacy.clipping import integer_rows, integer_sum
from common.secagg.dp import DpMode, DpTerms
from common.secagg.keys import CoefficientSeed
from common.study import Study, VectorModel
from hospital_node.models.perceptron import build
from hospital_node.private import contribution
from hospital_node.private.contribution import evaluation_sum, hospital_step, patient_sum
from hospital_node.private.gradients import patient_gradients
from hospital_node.private.source import NoisedSource, pattern_sum
from hospital_node.train import train
from tests.learning import study

COLUMNS = 6
FEATURES = "".join(f"\n  - {{name: x{k}, type: float}}" for k in range(COLUMNS))
SEED = CoefficientSeed(bytes(range(32)))
PATIENTS = 57


def asked(model: str = "{kind: mlp, hidden: [5]}") -> Study:
    return study(FEATURES, model=model, more="normalise: none")


def terms(p: float = 1.0, sigma: float = 4.0, mode: DpMode = DpMode.PATIENT_DISTRIBUTED) -> DpTerms:
    return DpTerms(mode, 1.0, 0.05, 4096, sigma, 52, p, 100)


def table(seed: int = 1) -> tuple[Encoded, NDArray[np.int64]]:
    """Rows of patients, several each, in no order."""
    rng = np.random.default_rng(seed)
    patients = np.concatenate([np.arange(PATIENTS), rng.integers(0, PATIENTS, 100)])
    patients = rng.permutation(patients)
    features = rng.normal(size=(len(patients), COLUMNS)).astype(np.float32)
    return Encoded(features, (rng.random(len(patients)) < 0.5).astype(np.float32)), patients


def model(of: Study) -> NDArray[np.float32]:
    size = models.layout(of).parameters
    return np.random.default_rng(2).normal(0, 0.5, size).astype(np.float32)


def without(
    data: Encoded, patients: NDArray[np.int64], gone: int
) -> tuple[Encoded, NDArray[np.int64]]:
    keep = patients != gone
    return Encoded(data.features[keep], data.target[keep]), patients[keep]


def norm_squared(values: NDArray[np.int64]) -> int:
    return sum(value * value for value in values.tolist())


@pytest.mark.parametrize("word", [0, 2**62, 2**63 + 12345, 2**64 - 1])
@pytest.mark.parametrize("kind", ["{kind: logistic}", "{kind: mlp, hidden: [5]}"])
def test_removing_a_patient_moves_the_integer_sum_by_at_most_delta_int(
    word: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding's words are drawn in turn, so with one patient fewer the others' would differ.

    The guarantee is about probabilities: it is enough that a coupling exists. Here every
    draw is the same word, so that each patient's rounding is the same in both sums, and the
    difference must be that patient's own vector, to the last bit.
    """
    monkeypatch.setattr(
        contribution, "secret_uniforms", lambda _: lambda count: np.full(count, word, np.uint64)
    )
    of = asked(kind)
    data, patients = table()
    listed = np.arange(PATIENTS)
    weights = model(of)
    whole = patient_sum(of, data, patients, weights, listed, terms(), CountingEntropy(b"e"))
    for gone in range(0, PATIENTS, 4):
        less = patient_sum(
            of, *without(data, patients, gone), weights, listed, terms(), CountingEntropy(b"e")
        )
        assert 0 < norm_squared(whole - less) <= 4096**2
        own = patients == gone
        (gradient,) = patient_gradients(
            of, build(of, weights), data.features[own], data.target[own], np.zeros(own.sum(), int)
        )
        rounded = integer_rows(gradient, 0.05, 4096, lambda n: np.full(n, word, np.uint64))[0]
        assert (less - whole == rounded).all()


def test_a_step_is_downhill_for_the_patients_who_are_listed_and_drawn() -> None:
    """With p = 1 the sum is minus the clipped gradients of the list, and nobody else's."""
    of = asked()
    data, patients = table()
    listed = np.array([3, 8, 20, 21, 50])
    weights = model(of)
    found = patient_sum(of, data, patients, weights, listed, terms(), CountingEntropy(b"e"))
    expected = np.zeros(len(weights))
    for patient in listed:
        own = patients == patient
        (gradient,) = patient_gradients(
            of, build(of, weights), data.features[own], data.target[own], np.zeros(own.sum(), int)
        )
        expected -= gradient[0] * min(1.0, 0.05 / float(np.linalg.norm(gradient))) * 4096 / 0.05
    assert np.abs(found - expected).max() <= 3 * len(listed)
    assert np.linalg.norm(expected) > 4096


def test_who_takes_part_follows_the_entropy_and_p(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of patients whose vectors are added, over rounds."""
    of = asked("{kind: logistic}")
    data, patients = table()
    counted: list[int] = []
    real = integer_sum

    def count(x: NDArray[np.float32], *rest: object) -> NDArray[np.int64]:
        counted.append(len(x))
        return real(x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(contribution, "integer_sum", count)
    entropy = CountingEntropy(b"who")
    listed = np.arange(40)
    for _ in range(300):
        patient_sum(of, data, patients, model(of), listed, terms(0.25), entropy)
    assert max(counted) <= 40
    assert abs(sum(counted) / 300 - 10) < 5 * np.sqrt(40 * 0.25 * 0.75 / 300)
    assert len(set(counted)) > 8


def test_nobody_drawn_adds_nothing() -> None:
    of = asked()
    data, patients = table()
    for chosen, p in ((np.zeros(0, np.int64), 1.0), (np.arange(PATIENTS), 2.0**-64)):
        found = patient_sum(of, data, patients, model(of), chosen, terms(p), CountingEntropy(b"x"))
        assert not found.any()
        assert found.shape == model(of).shape


def test_a_patient_whose_gradient_is_not_finite_is_as_if_not_drawn() -> None:
    of = asked()
    data, patients = table()
    data.features[patients == 5] = np.float32(np.inf)

    def found(listed: NDArray[np.int64]) -> NDArray[np.int64]:
        entropy = CountingEntropy(b"x")
        return patient_sum(of, data, patients, model(of), listed, terms(), entropy)

    others = np.delete(np.arange(PATIENTS), 5)
    assert np.abs(found(np.arange(PATIENTS)) - found(others)).max() <= PATIENTS  # rounding


def test_removing_a_patient_moves_the_histogram_of_scores_by_that_patient_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        contribution, "secret_uniforms", lambda _: lambda count: np.full(count, 2**63, np.uint64)
    )
    of = asked()
    data, patients = table()
    listed, bounds = np.arange(PATIENTS), DpTerms(DpMode.PATIENT_DISTRIBUTED, 1.0, 1.0, 4096)
    whole = evaluation_sum(of, data, patients, model(of), listed, bounds, CountingEntropy(b"e"))
    for gone in range(0, PATIENTS, 9):
        rest = without(data, patients, gone)
        less = evaluation_sum(of, *rest, model(of), listed, bounds, CountingEntropy(b"e"))
        assert 0 < norm_squared(whole - less) <= 4096**2


def test_a_hospitals_update_is_within_delta_int_and_has_its_direction() -> None:
    of = asked()
    data, _ = table()
    bounds = terms(mode=DpMode.HOSPITAL)
    found = hospital_step(of, "a", data, model(of), bounds, CountingEntropy(b"h"))
    again = train(of, data, model(of), site="a").delta
    assert 0.98 * 4096 < np.sqrt(norm_squared(found)) <= 4096
    cosine = (found * again).sum() / np.linalg.norm(found) / np.linalg.norm(again)
    assert cosine > 0.999


def test_a_pattern_is_clipped_like_a_patient_and_rounded_anew_each_time() -> None:
    shape = VectorModel(kind="vector", size=5000)
    entropy = CountingEntropy(b"p")
    one, two = (pattern_sum(shape, "site-01", 3, terms(), entropy) for _ in range(2))
    assert max(norm_squared(one), norm_squared(two)) <= 4096**2
    assert (one != two).any()
    exact = vector.whole("site-01", 3, 5000)
    assert np.corrcoef(one, exact)[0, 1] > 0.999


@pytest.mark.parametrize("bits", [32, 64])
def test_a_noised_source_is_the_total_plus_the_seeds_noise_whatever_the_blocks(bits: int) -> None:
    total = np.arange(-5000, 5000, dtype=np.int64) * 7
    unsigned = np.dtype(f"<u{bits // 8}")

    def made(step: int) -> NDArray[np.int64]:
        source = NoisedSource(total.copy(), terms(), SEED)
        out = np.zeros(source.words, unsigned)
        for start in range(0, out.size, step):
            source.fill(out[start : start + step], start)
        return out.view(f"<i{bits // 8}").astype(np.int64)

    noise = made(10_000) - total
    assert (made(128) - total == noise).all()
    assert 3.8 < noise.std() < 4.2
    assert abs(noise.mean()) < 0.2
