"""What this hospital agrees to run: its policy, held against a study before anything starts.

Pure: a study, its hash and a policy in, one finding per rule out. Every rule is always
examined, so that a researcher learns of all objections at once and `policy explain` can
show what passed. A finding cites the policy's file and line.

The coordinator has no say here. What a round header states later (crowd, ring, suite,
privacy terms, deadline, size, hour) is held against the same policy again
(`common.secagg.rules`), whatever the study said. What depends on rows (`release.min_cell`)
is judged when they are loaded, what depends on other studies (`limits.studies`, the budget)
by the offer book and the ledger.

The owner is what the study says; a hospital that wants more certainty than the
consortium's word lists studies by hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from common.documents import Source
from common.errors import PolicyRefusal, Refusal
from common.ids import ConfigHash
from common.policy import STATISTICS, Policy, PrivacyRules
from common.study import Study, config_hash
from common.text import show
from hospital_node.consent_limits import layout_rule, limit_rules, ring_rule
from hospital_node.findings import Finding, Rules, words

_TWO: Final = 2


@dataclass(frozen=True, slots=True)
class Accepted:
    """The hospital's consent to one study, by hash; `findings` are the rules that passed."""

    study_id: str
    config_hash: ConfigHash
    colluders: int
    """`c` that the study runs with among the pinned members."""
    findings: tuple[Finding, ...] = field(repr=False)


class ConsentRefused(PolicyRefusal):
    """The policy says no; `findings` holds every rule, those that passed too."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        against = [finding for finding in findings if not finding.ok]
        more = len(against) - 1
        rest = f" ({more} more rule{'s' if more > 1 else ''} against it)" if more else ""
        super().__init__(against[0].code, f"{against[0]}{rest}")
        self.findings = findings

    @property
    def objections(self) -> tuple[Finding, ...]:
        """The rules that spoke against the study, in the policy's order."""
        return tuple(finding for finding in self.findings if not finding.ok)


def decide(study: Study, digest: ConfigHash, policy: Policy, source: Source) -> Accepted:
    """Return this hospital's consent to `study`.

    Args:
        study: the completed study.
        digest: the hash the offer carried; it must be the study's own.
        policy: the hospital's rules.
        source: where each rule stands in the hospital's file.

    Raises:
        Refusal: CONFIG_HASH, `digest` is not the study's hash.
        ConsentRefused: at least one rule is against it; named after the first.
    """
    own = config_hash(study)
    if own != digest:
        raise Refusal(
            "CONFIG_HASH",
            f"study '{study.id}' was offered as sha256:{digest.hex()}, its hash is "
            f"sha256:{own.hex()}",
        )
    findings = examine(study, digest, policy, source)
    if not all(finding.ok for finding in findings):
        raise ConsentRefused(findings)
    return Accepted(study.id, digest, study.colluders(len(policy.federation.members)), findings)


def examine(
    study: Study, digest: ConfigHash, policy: Policy, source: Source
) -> tuple[Finding, ...]:
    """Return what every rule says about the study, in the policy's order. Pure, never raises."""
    rules = Rules(source)
    return (
        *_allow_rules(study, digest, policy, rules),
        *_require_rules(study, policy, rules),
        *_privacy_rules(study, policy.require.dp, rules),
        _release_rule(study, policy, rules),
        *limit_rules(study, policy.limits, rules),
        _hours_rule(policy, rules),
    )


def _allow_rules(
    study: Study, digest: ConfigHash, policy: Policy, rules: Rules
) -> Iterator[Finding]:
    allow, federation = policy.allow, study.federation
    kind = STATISTICS if study.kind == "statistics" else study.model.kind
    listed = (
        ("POLICY_DATASET", "datasets", "data set", study.dataset, allow.datasets),
        ("POLICY_MODEL", "model_kinds", "model kind", kind, allow.model_kinds),
        ("POLICY_STRATEGY", "strategies", "strategy", federation.strategy.name, allow.strategies),
        ("POLICY_WEIGHTS", "weights", "weights", federation.weight_rule, allow.weights),
    )
    yield rules.member("POLICY_PURPOSE", "allow.purposes", "purpose", study.purpose, allow.purposes)
    yield _owner(study, digest, policy, rules)
    for code, key, noun, asked, allowed in listed:
        yield rules.member(code, f"allow.{key}", noun, asked, allowed)
    yield rules.finding(
        "POLICY_TASK",
        "allow.tasks",
        ok=allow.tasks is None or study.id in allow.tasks,
        asked=f"study {study.id}",
        allowed="any" if allow.tasks is None else words(allow.tasks),
    )
    yield layout_rule(study, policy, rules)
    suite = study.privacy.secure_aggregation.suite
    yield rules.member("POLICY_PROTOCOL", "allow.suites", "suite", suite, allow.suites)
    yield ring_rule(study, policy, rules)


def _owner(study: Study, digest: ConfigHash, policy: Policy, rules: Rules) -> Finding:
    """Allowed by organisation or by hash; a policy may use either or both."""
    allow = policy.allow
    by_hash = allow.lists_study(digest)
    by_owner = study.owner.organisation in allow.owners
    key = "studies" if by_hash or ("owners" not in allow.model_fields_set) else "owners"
    return rules.finding(
        "POLICY_OWNER",
        f"allow.{key}",
        ok=by_hash or by_owner,
        asked=f"owner {show(study.owner.organisation)} with study sha256:{digest.hex()}",
        allowed=words(allow.studies if key == "studies" else allow.owners),
    )


def _require_rules(study: Study, policy: Policy, rules: Rules) -> Iterator[Finding]:
    require, members = policy.require, policy.federation.members
    wanted = study.federation.min_sites
    two = _TWO in (len(members), wanted)
    yield rules.finding(
        "POLICY_TWO_PARTY",
        "require.allow_two_party",
        ok=require.allow_two_party or not two,
        asked=f"{'a run of two hospitals' if two else 'a run'} with min_sites {wanted} among "
        f"{len(members)} members",
        allowed=show(require.allow_two_party),
    )
    cohort, colluders = "POLICY_COHORT", study.colluders(len(members))
    yield rules.at_least(cohort, "require.min_sites", "min_sites", wanted, require.min_sites)
    yield rules.at_least(cohort, "require.colluders", "colluders", colluders, require.colluders)
    yield rules.at_least(
        cohort, "require.min_cohort", "a roster of", len(members), require.min_cohort
    )
    yield rules.finding(
        cohort,
        "federation.members",
        ok=wanted <= len(members),
        asked=f"min_sites {wanted}",
        allowed=f"{len(members)} hospitals",
    )


def _privacy_rules(study: Study, limits: PrivacyRules, rules: Rules) -> Iterator[Finding]:
    """A study without noise has a mode only; what budget is left, the ledger says."""
    terms = study.privacy.dp
    key = "require.dp."
    yield rules.member("POLICY_DP", key + "modes", "mode", terms.mode, limits.modes)
    most = (
        ("epsilon_per_study", "epsilon", terms.epsilon, limits.epsilon_per_study),
        ("epsilon_total", "epsilon", terms.epsilon, limits.epsilon_total),
        ("delta", "delta", terms.delta, limits.delta),
        ("max_clip", "clip", terms.clip, limits.max_clip),
    )
    for name, noun, asked, limit in most:
        yield rules.at_most("POLICY_DP", key + name, noun, asked, limit)
    noises = (terms.noise_multiplier, terms.statistics_noise, terms.evaluation_noise)
    z = min((noise for noise in noises if noise is not None), default=None)
    least = limits.min_noise_multiplier
    yield rules.finding(
        "POLICY_DP",
        key + "min_noise_multiplier",
        ok=not terms.on if z is None else z >= least,
        asked="no noise" if z is None else f"noise multiplier {z:g}",
        allowed=f"at least {least:g}",
    )


def _release_rule(study: Study, policy: Policy, rules: Rules) -> Finding:
    return rules.finding(
        "POLICY_RELEASE",
        "release.site_metrics",
        ok=policy.release.site_metrics or not study.evaluate.site_metrics,
        asked=f"evaluate.site_metrics {show(study.evaluate.site_metrics)}",
        allowed=show(policy.release.site_metrics),
    )


def _hours_rule(policy: Policy, rules: Rules) -> Finding:
    """A study is welcome at any hour; its rounds wait for the window."""
    return rules.finding(
        "POLICY_HOURS",
        "hours",
        ok=True,
        asked="rounds, which wait for the window",
        allowed=str(policy.hours),
    )
