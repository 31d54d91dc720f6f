"""The hospital's consent: every rule can refuse, names its line, and is told even after another."""

from __future__ import annotations

import pytest

from common.errors import PolicyRefusal, Refusal
from common.ids import ConfigHash
from common.policy import parse_policy
from common.study import Study, config_hash, parse_study
from hospital_node.consent import Accepted, ConsentRefused, decide, examine
from tests.policy_texts import POLICY
from tests.private_study import private_study
from tests.study_texts import HEART, STATISTICS, altered

PATH = "/etc/fedcare/policy.yaml"
RULES = 30
"""Rules of a policy that a study is held against, every one of them on every study."""


def consent(study: Study | str = HEART, policy: str = POLICY) -> Accepted:
    asked = parse_study(study) if isinstance(study, str) else study
    loaded = parse_policy(policy, PATH)
    return decide(asked, config_hash(asked), loaded.value, loaded.source)


def refused(study: str = HEART, policy: str = POLICY) -> ConsentRefused:
    with pytest.raises(ConsentRefused) as caught:
        consent(study, policy)
    return caught.value


def test_a_study_within_every_rule_is_accepted_with_all_findings() -> None:
    accepted = consent()
    assert accepted.config_hash == config_hash(parse_study(HEART))
    assert accepted.colluders == 1
    assert len(accepted.findings) == RULES
    assert all(finding.ok for finding in accepted.findings)


MORE_COLLUDERS = altered(POLICY, "colluders: 1", "colluders: 2")


@pytest.mark.parametrize(
    ("study", "policy", "code", "where", "words"),
    [
        (("purpose: research", "purpose: marketing"), None, "POLICY_PURPOSE", 9, "'marketing'"),
        (("uni-x", "uni-y"), None, "POLICY_OWNER", 10, "'uni-y'"),
        (("uni-x", "Uni-X"), None, "POLICY_OWNER", 10, "'Uni-X'"),
        (("dataset: heart", "dataset: lungs"), None, "POLICY_DATASET", 11, "'lungs'"),
        (None, ("[logistic, mlp, cox]", "[mlp]"), "POLICY_MODEL", 12, "'logistic'"),
        (None, ("[fedavg, fedprox]", "[fedprox]"), "POLICY_STRATEGY", 13, "'fedavg'"),
        (("weights: size_class", "weights: samples"), None, "POLICY_WEIGHTS", 14, "'samples'"),
        (
            ("weights: size_class", "weights: {a: 1, b: 1, c: 1}"),
            None,
            "POLICY_WEIGHTS",
            14,
            "'public'",
        ),
        (None, ("min_sites: 3", "min_sites: 4"), "POLICY_COHORT", 17, "min_sites 3"),
        (None, ("colluders: 1", "colluders: 2"), "POLICY_COHORT", 18, "colluders 1"),
        (("colluders: 1", "colluders: 0"), None, "POLICY_COHORT", 18, "colluders 0"),
        (
            ("colluders: 1", "colluders: null"),
            ("colluders: 1", "colluders: 2"),
            "POLICY_COHORT",
            18,
            "colluders 1",
        ),
        (
            ("accuracy, brier]", "accuracy, brier], site_metrics: true"),
            None,
            "POLICY_RELEASE",
            20,
            "site_metrics true",
        ),
    ],
)
def test_each_rule_refuses_with_its_line_and_both_values(
    study: tuple[str, str] | None,
    policy: tuple[str, str] | None,
    code: str,
    where: int,
    words: str,
) -> None:
    error = refused(
        altered(HEART, *study) if study else HEART, altered(POLICY, *policy) if policy else POLICY
    )
    assert error.name == code
    assert error.detail.startswith(f"policy.yaml:{where}: ")
    assert words in error.detail
    assert [finding.code for finding in error.objections] == [code]
    assert isinstance(error, PolicyRefusal)


def test_all_objections_are_told_not_only_the_first() -> None:
    text = altered(HEART, "purpose: research", "purpose: marketing")
    text = altered(text, "weights: size_class", "weights: samples")
    text = altered(text, "uni-x", "uni-y")
    error = refused(text)
    codes = [finding.code for finding in error.objections]
    assert codes == ["POLICY_PURPOSE", "POLICY_OWNER", "POLICY_WEIGHTS"]
    assert error.detail.endswith("(2 more rules against it)")
    assert len(error.findings) == RULES


def test_a_study_by_hash_needs_no_listed_owner() -> None:
    study = parse_study(HEART)
    listed = f"studies: [sha256:{config_hash(study).hex()}]"
    assert consent(study, altered(POLICY, "owners: [uni-x]", listed)).study_id == "heart-disease"
    both = altered(POLICY, "owners: [uni-x]", f"owners: [other]\n  {listed}")
    assert consent(study, both).study_id == "heart-disease"


def test_a_hash_allows_that_study_only() -> None:
    listed = f"studies: [sha256:{config_hash(parse_study(HEART)).hex()}]"
    changed = altered(HEART, "rounds: 15", "rounds: 16")
    error = refused(changed, altered(POLICY, "owners: [uni-x]", listed))
    assert (error.name, error.objections[0].rule) == ("POLICY_OWNER", "allow.studies")


def test_an_offer_under_another_hash_is_not_looked_at() -> None:
    study, loaded = parse_study(HEART), parse_policy(POLICY)
    with pytest.raises(Refusal) as caught:
        decide(study, ConfigHash(bytes(32)), loaded.value, loaded.source)
    assert caught.value.name == "CONFIG_HASH"


TWO = altered(
    POLICY, "members: [cleveland, hungarian, switzerland, va]", "members: [cleveland, va]"
)
TWO = TWO[: TWO.index("require:")] + "release: {min_cell: 10}\n"
PAIR = altered(altered(HEART, "min_sites: 3", "min_sites: 2"), "colluders: 1", "colluders: null")


def test_two_hospitals_are_refused_without_the_local_switch() -> None:
    error = refused(PAIR, TWO)
    assert error.name == "POLICY_TWO_PARTY"
    assert "allow_two_party is false" in error.detail


def test_two_hospitals_run_where_the_hospital_says_so() -> None:
    assert consent(PAIR, TWO + "require: {allow_two_party: true}\n").colluders == 0


def test_a_sum_over_two_of_many_counts_as_two_party() -> None:
    policy = altered(POLICY, "min_sites: 3", "min_sites: 2")
    error = refused(PAIR, altered(policy, "colluders: 1", "colluders: 0"))
    assert error.name == "POLICY_TWO_PARTY"


def test_statistics_need_to_be_listed_as_a_kind_of_their_own() -> None:
    study = altered(STATISTICS, "organisation: B", "organisation: uni-x")
    assert refused(study).name == "POLICY_MODEL"
    allowed = altered(POLICY, "[logistic, mlp, cox]", "[statistics]")
    assert consent(study, allowed).study_id == "counts"


def test_findings_name_the_file_but_not_its_folder() -> None:
    loaded = parse_policy(POLICY, PATH)
    study = parse_study(HEART)
    findings = examine(study, config_hash(study), loaded.value, loaded.source)
    assert all("/etc" not in str(finding) for finding in findings)
    assert {finding.where for finding in findings} >= {"policy.yaml:9", "policy.yaml:20"}


def test_a_rule_left_to_its_default_cites_its_section() -> None:
    error = refused(
        altered(HEART, "weights: size_class", "weights: samples"),
        altered(POLICY, "  weights: [size_class, equal]\n", ""),
    )
    assert error.detail.startswith("policy.yaml:8: allow.weights")


@pytest.mark.parametrize(("least", "ok"), [(10.0, False), (4.0, True)])
def test_the_least_noise_is_that_of_every_round_figures_too(least: float, *, ok: bool) -> None:
    """Or the node would refuse the evaluate round of a study that it had accepted."""
    study = private_study(epsilon=2.9, rounds=400, more=", evaluation_epsilon: 1.0")
    terms = study.privacy.dp
    assert (terms.noise_multiplier or 0) > 16
    assert 4 < (terms.evaluation_noise or 0) < 5
    loaded = parse_policy(
        altered(POLICY, "require:", f"require:\n  dp: {{min_noise_multiplier: {least}}}"), PATH
    )
    found = examine(study, config_hash(study), loaded.value, loaded.source)
    (rule,) = (one for one in found if "min_noise_multiplier" in str(one))
    assert rule.ok == ok
