"""Noised steps inside a hospital: one patient's reach, full noise in each step, who is drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.entropy import CountingEntropy
from common.errors import Refusal, RoundError
from common.features import Encoded
from common.ids import RunId
from common.logs import make_log
from common.policy import parse_policy
from common.privacy.noise import NoiseStream
from common.secagg.dp import DpTerms
from common.secagg.header import Header
from common.secagg.keys import CoefficientSeed
from common.site import load_site
from common.study import Study, canonical_json, config_hash, parse_study
from hospital_node.learning import HospitalDesk, StudyWork
from hospital_node.personal_state import OwnTensors
from hospital_node.private import contribution, local_steps, sampling
from hospital_node.private.contribution import patient_sum
from tests.learning import study
from tests.policy_texts import POLICY
from tests.unit.hospital_node.test_desk import SITE, NoBooks
from tests.vectors.stored import header_of, load

HEADER = header_of(load("local_steps.json")["header"])
SEED = CoefficientSeed(bytes(32))
COLUMNS = 6


def local_study(train: str = "{lr: 0.5, local_steps: 3}") -> Study:
    features = "".join(f"\n  - {{name: c{k}, type: float}}" for k in range(COLUMNS))
    return study(
        features,
        train=train,
        federation="{weights: equal, rounds: 3}",
        more="normalise: none\nprivacy: {dp: {mode: patient-local, epsilon: 8, delta: 1.0e-5, "
        "batch: 20}}",
    )


def header(weights: int, **changes: Any) -> Header:  # noqa: ANN401 - items of any type
    """Return a header whose constants take three words before that many weights."""
    terms = {"z": 2.0, "p": 1.0, "sigma_loc": 40_000.0, "noise_cap": 520_000, **changes}
    return replace(HEADER, d=weights + 3, dp=replace(HEADER.dp, **terms))


def rows(count: int, seed: int, size: float = 1.0) -> Encoded:
    rng = np.random.default_rng(seed)
    features = (size * rng.normal(size=(count, COLUMNS))).astype(np.float32)
    return Encoded(features, rng.integers(0, 2, count).astype(np.float32))


def training(
    data: Encoded, patients: NDArray[np.int64], terms: Study | None = None
) -> local_steps.LocalTraining:
    listed = np.unique(patients)
    entropy = CountingEntropy(b"who takes part")
    return local_steps.LocalTraining(terms or local_study(), "a", data, patients, listed, entropy)


NOBODY = training(rows(0, 0), np.zeros(0, np.int64))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4, 1e18])
def test_one_patient_moves_a_steps_integer_sum_by_at_most_delta_int(size: float) -> None:
    """Every patient has up to four rows; sums of parts differ from the whole by rounding only."""
    data = rows(40, 1, size)
    patients = np.repeat(np.arange(16, dtype=np.int64), np.arange(16) % 4 + 1)
    weights = np.random.default_rng(2).normal(size=COLUMNS + 1).astype(np.float32)
    terms = header(weights.size).dp

    def summed(listed: NDArray[np.int64]) -> NDArray[np.int64]:
        entropy = CountingEntropy(b"rounding")
        return patient_sum(local_study(), data, patients, weights, listed, terms, entropy)

    everybody = np.arange(16, dtype=np.int64)
    whole = summed(everybody)
    for one in everybody:
        alone = summed(np.array([one]))
        assert int(alone @ alone) <= terms.delta_int**2
        rest = summed(everybody[everybody != one])
        assert np.abs(whole - rest - alone).max() <= 3 * everybody.size
    assert np.abs(whole).max() > 0


def test_each_step_carries_the_whole_noise_of_its_own() -> None:
    weights = np.zeros(60_000, np.float32)
    made = NOBODY.update(weights, header(weights.size, steps=3), SEED)
    one_step = 0.5 * 40_000 / (20_000 / 1.0) / 20
    assert made.std() == pytest.approx(math.sqrt(3) * one_step, rel=0.02)
    assert abs(made.mean()) < 5 * made.std() / math.sqrt(made.size)
    first = NOBODY.update(weights, header(weights.size, steps=1), SEED)
    rest = made - first
    assert rest.std() == pytest.approx(math.sqrt(2) * one_step, rel=0.02)
    assert abs(np.corrcoef(first, rest)[0, 1]) < 5 / math.sqrt(made.size)


def test_no_word_of_noise_serves_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[range] = []

    class Watched(NoiseStream):
        def add_to(self, out: NDArray[np.int64], word_offset: int) -> None:
            taken.append(range(word_offset, word_offset + out.size))
            super().add_to(out, word_offset)

    monkeypatch.setattr(local_steps, "NoiseStream", Watched)
    weights = np.zeros(COLUMNS + 1, np.float32)
    NOBODY.update(weights, header(weights.size, steps=50), SEED)
    assert len(taken) == 50
    words = [word for words in taken for word in words]
    assert len(set(words)) == len(words) == 50 * weights.size


def test_the_update_follows_from_the_seed_but_for_who_is_drawn() -> None:
    data, patients = rows(30, 3), np.arange(30, dtype=np.int64)
    weights = np.zeros(COLUMNS + 1, np.float32)
    drawn = [
        training(data, patients).update(weights, header(weights.size, p=p), SEED).tolist()
        for p in (1.0, 1.0, 0.5, 0.25)
    ]
    assert drawn[0] == drawn[1]
    assert drawn[1] != drawn[2] != drawn[3]
    other = training(data, patients).update(
        weights, header(weights.size), CoefficientSeed(b"x" * 32)
    )
    assert other.tolist() != drawn[0]


def test_patients_are_drawn_anew_for_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, ...]] = []
    real = sampling.poisson

    def watched(count: int, p: float, entropy: CountingEntropy) -> NDArray[np.int64]:
        found = real(count, p, entropy)
        drawn.append(tuple(found))
        return found

    monkeypatch.setattr(contribution, "poisson", watched)
    weights = np.zeros(COLUMNS + 1, np.float32)
    training(rows(64, 4), np.arange(64, dtype=np.int64)).update(
        weights, header(weights.size, p=0.5, steps=6), SEED
    )
    assert len(drawn) == len(set(drawn)) == 6


def test_steps_go_downhill_where_noise_is_small_beside_the_patients() -> None:
    data = Encoded(
        np.vstack([np.eye(COLUMNS)[:1]] * 400).astype(np.float32), np.ones(400, np.float32)
    )
    weights = np.zeros(COLUMNS + 1, np.float32)
    terms = local_study("{lr: 0.05, local_steps: 8, weight_decay: 0.01}")
    little = {"z": 0.001, "sigma_loc": 20.0, "noise_cap": 260, "steps": 8}
    made = training(data, np.arange(400, dtype=np.int64), terms).update(
        weights, header(weights.size, **little), SEED
    )
    assert made[0] > 1  # the column that every positive patient has
    assert made[COLUMNS] > 1  # the bias
    assert np.abs(made[1:COLUMNS]).max() < 0.05


def test_a_round_that_ended_is_left_between_two_steps() -> None:
    asked: list[int] = []

    def ended() -> bool:
        asked.append(1)
        return len(asked) > 2

    weights = np.zeros(COLUMNS + 1, np.float32)
    with pytest.raises(RoundError, match="RUN_CANCELLED"):
        NOBODY.update(weights, header(weights.size, steps=9), SEED, ended)
    assert len(asked) == 3


# --- at the hospital's desk -----------------------------------------------------------------

STUDY = """\
schema: fedcare.study/v1
id: small-study
purpose: research
dataset: heart
owner: {name: Somebody, organisation: uni-x}
features: [{name: age, type: float}]
target: {type: binary, name: num}
split: {test: 0}
normalise: none
model: {kind: logistic}
train: {local_steps: 2}
federation: {weights: {cleveland: 12, va: 40, east: 9}, rounds: 1, min_sites: 3}
privacy: {dp: {mode: patient-local, epsilon: 1, delta: 1.0e-5}}
"""


class FullBooks(NoBooks):
    """Books that accept a study and refuse its first round."""

    def admit(self, study: Study, *, accepted: bool) -> None:
        pass

    def charge(self, study: Study, header: Header) -> None:
        raise Refusal("BUDGET", "nothing is left")


@pytest.fixture
def desk(tmp_path: Path) -> HospitalDesk:
    (tmp_path / "site.yaml").write_text(SITE)
    table = "age,diagnosis\n" + "".join(f"{40 + n},{n % 2}\n" for n in range(12))
    (tmp_path / "rows-of-cleveland.csv").write_text(table)
    policy = POLICY.replace("size_class", "public").replace(
        "min_cohort: 3", "min_cohort: 3\n  dp: {delta: 0.09}"
    )
    return HospitalDesk(
        parse_policy(policy, "policy.yaml"),
        load_site(tmp_path / "site.yaml"),
        make_log(io.StringIO()),
        FullBooks(),
    )


def judged(desk: HospitalDesk, text: str) -> list[str]:
    parsed = parse_study(text)
    return [one.code for one in desk.judge(canonical_json(parsed), config_hash(parsed))]


def test_a_study_without_a_number_for_this_site_is_refused(desk: HospitalDesk) -> None:
    assert judged(desk, STUDY) == []
    assert judged(desk, STUDY.replace("cleveland: 12", "north: 12")) == ["BAD_VALUE"]


def test_a_delta_of_one_over_the_patients_is_refused(desk: HospitalDesk) -> None:
    assert judged(desk, STUDY.replace("1.0e-5", "0.083")) == []
    assert judged(desk, STUDY.replace("1.0e-5", "0.084")) == ["DP_WEAK"]  # of 12 patients


def test_nothing_is_computed_from_patients_before_the_charge(
    desk: HospitalDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> Callable[[], None]:
        raise AssertionError(arguments)

    monkeypatch.setattr(local_steps, "patient_sum", never)
    monkeypatch.setattr(StudyWork, "_split", never)
    assert judged(desk, STUDY) == []
    work = desk.open(canonical_json(parse_study(STUDY)))
    assert isinstance(header(2).dp, DpTerms)
    with pytest.raises(Refusal, match="BUDGET"):
        work.make(header(2), None, SEED, lambda: False, OwnTensors(Path(), RunId("r")))
