"""What a hospital tells the coordinator about a study that its own table does not fit."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import CATALOGUE, ConfigError, Refusal
from common.ids import RunId
from common.layouts import noise_terms
from common.logs import make_log
from common.policy import parse_policy
from common.secagg.dp import NO_DP
from common.secagg.header import Header
from common.secagg.keys import CoefficientSeed
from common.site import load_site
from common.study import Study, canonical_json, config_hash, parse_study
from hospital_node.learning import HospitalDesk, StudyWork
from hospital_node.personal_state import OwnTensors
from tests.policy_texts import POLICY
from tests.private_study import header_of, private_study

STUDY = """\
schema: fedcare.study/v1
id: small-study
purpose: research
dataset: heart
owner: {name: Somebody, organisation: uni-x}
features: [{name: age, type: float, unit: a, impute: mean}]
target: {type: binary, name: num}
model: {kind: logistic}
federation: {rounds: 1, min_sites: 3, round_deadline: 30s}
"""
SITE = """\
schema: fedcare.site/v1
id: cleveland
data: [{name: heart, kind: csv, path: rows-of-cleveland.csv, columns: {num: diagnosis}}]
"""
GOOD = "age,diagnosis,salary\n" + "".join(f"{20 + n},{n % 2},77{n}\n" for n in range(60))


class NoBooks:
    """Books of a hospital that no study with privacy comes to."""

    def admit(self, study: Study, *, accepted: bool) -> None:
        raise AssertionError

    def charge(self, study: Study, header: Header) -> None:
        raise AssertionError

    def listed(self, study: Study, part: str, patients: NDArray[np.int64]) -> NDArray[np.int64]:
        raise AssertionError


NO_BOOKS = NoBooks()


@pytest.mark.parametrize(
    ("table", "name", "in_log"),
    [
        (GOOD.replace("age", "years"), "DATA_COLUMN", "'age'"),
        (GOOD.replace("diagnosis", "diagnoses"), "DATA_COLUMN", "'diagnoses'"),
        (GOOD.replace("21,", "twenty-one,", 1), "DATA_VALUE", "row 2"),
        (GOOD.replace(",1,", ",maybe,"), "DATA_LABEL", "row 2"),
        (GOOD + "50,1\n", "FILE_SYNTAX", "row 61: 2 cells, the header has 3"),
        ("age,diagnosis,salary\n", "DATA_EMPTY", "no rows"),
        (GOOD.encode() + b"50,1,\xff\n", "FILE_SYNTAX", "UTF-8"),
        (None, "FILE_MISSING", "rows-of-cleveland.csv"),
    ],
)
def test_a_study_that_the_table_does_not_fit_is_refused_and_nothing_of_the_table_is_told(
    tmp_path: Path, table: str | bytes | None, name: str, in_log: str
) -> None:
    file = tmp_path / "rows-of-cleveland.csv"
    (tmp_path / "site.yaml").write_text(SITE)
    file.write_text(GOOD)
    site = load_site(tmp_path / "site.yaml")
    if table is None:
        file.unlink()
    else:
        file.write_bytes(table if isinstance(table, bytes) else table.encode())
    study, log = parse_study(STUDY), io.StringIO()
    desk = HospitalDesk(
        parse_policy(POLICY, "policy.yaml"), site, make_log(log, form="json"), NO_BOOKS
    )
    (objection,) = desk.judge(canonical_json(study), config_hash(study))
    assert (objection.code, objection.detail) == (name, CATALOGUE[name].meaning)
    line = json.loads(log.getvalue())
    assert (line["event"], line["name"]) == ("study.refused", name)
    assert in_log in line["detail"]


def test_a_study_that_fits_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "rows-of-cleveland.csv").write_text(GOOD)
    study = parse_study(STUDY)
    site = load_site(tmp_path / "site.yaml")
    desk = HospitalDesk(
        parse_policy(POLICY, "policy.yaml"), site, make_log(io.StringIO()), NO_BOOKS
    )
    assert desk.judge(canonical_json(study), config_hash(study)) == ()


def test_no_round_without_noise_is_made_of_a_study_that_promises_it() -> None:
    """The machine compares every term before; this is the last place that could."""
    study = private_study()
    work = StudyWork(study, "a", 4, None, NO_BOOKS, 1)
    for mode in (NO_DP, header_of(private_study(mode="hospital"), 1).dp):
        header = replace(header_of(study, 1), dp=mode)
        with pytest.raises(Refusal, match="DP_WEAK"):
            work.make(
                header,
                None,
                CoefficientSeed(bytes(32)),
                lambda: False,
                OwnTensors(Path(), RunId("r")),
            )


class OpenBooks(NoBooks):
    """Books that admit every study."""

    def admit(self, study: Study, *, accepted: bool) -> None:
        pass


def vector_study(rounds: int) -> Study:
    return parse_study(
        STUDY.replace("{kind: logistic}", "{kind: vector, size: 1000}")
        .replace("rounds: 1", f"rounds: {rounds}")
        .replace(", impute: mean", "")
        + "normalise: none\nprivacy: {dp: {mode: hospital, epsilon: 0.1, delta: 1.0e-6, clip: 1}}"
    )


def vector_desk() -> HospitalDesk:
    policy = POLICY.replace("model_kinds: [logistic", "model_kinds: [vector, logistic")
    return HospitalDesk(parse_policy(policy, "p.yaml"), None, make_log(io.StringIO()), OpenBooks())


def test_noise_that_no_table_holds_is_refused_in_the_study_file() -> None:
    with pytest.raises(ConfigError, match="above 524288, the most of this version"):
        vector_study(4000)


def test_the_noise_table_is_made_before_any_round_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For the round that is likely: of all members."""
    made: list[float] = []
    monkeypatch.setattr("hospital_node.learning.NoiseTable.of", made.append)
    study, desk = vector_study(2), vector_desk()
    assert desk.judge(canonical_json(study), config_hash(study)) == ()
    members = len(parse_policy(POLICY, "p.yaml").value.federation.members)
    assert made == [terms.sigma_loc for terms in noise_terms(study, members, members)]
