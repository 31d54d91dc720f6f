"""What this hospital agrees to run: its policy, held against a study before anything starts.

Pure: a study, its hash and a policy in, one finding per rule out. Every rule is always
examined, so that a researcher learns of all objections at once and `policy explain` can
show what passed. A finding cites the policy's file and line.

The coordinator has no say here. What a round header states later (cohort, quorum, smallest
set) is checked again against the same policy by the protocol's own rules (`NodeRules`).

The owner is what the study says; a hospital that wants more certainty than the
consortium's word lists studies by hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from common.documents import Source
from common.errors import PolicyRefusal, Refusal
from common.ids import ConfigHash
from common.policy import STATISTICS, Policy
from common.study import Study, config_hash
from common.text import show

_TWO: Final = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule of the policy says about the study."""

    code: str
    """The catalogue name a refusal carries, for example `POLICY_PURPOSE`."""
    rule: str
    """The policy's key, for example `allow.purposes`."""
    where: str
    """`policy.yaml:9`: where the hospital wrote the rule, or where it would stand."""
    ok: bool
    asked: str
    """The study's value, for people."""
    allowed: str
    """The policy's value, for people."""

    def __str__(self) -> str:
        verb = "allows" if self.ok else "does not allow"
        return f"{self.where}: {self.rule} is {self.allowed}: {verb} {self.asked}"


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
    return (*_allow_rules(study, digest, policy, source), *_require_rules(study, policy, source))


def _allow_rules(
    study: Study, digest: ConfigHash, policy: Policy, source: Source
) -> Iterator[Finding]:
    allow = policy.allow
    yield _member("POLICY_PURPOSE", "purposes", "purpose", study.purpose, allow.purposes, source)
    yield _owner(study, digest, policy, source)
    yield _member("POLICY_DATASET", "datasets", "data set", study.dataset, allow.datasets, source)
    kind = STATISTICS if study.kind == "statistics" else study.model.kind
    yield _member("POLICY_MODEL", "model_kinds", "model kind", kind, allow.model_kinds, source)
    strategy = study.federation.strategy.name
    yield _member("POLICY_STRATEGY", "strategies", "strategy", strategy, allow.strategies, source)
    rule = study.federation.weight_rule
    yield _member("POLICY_WEIGHTS", "weights", "weights", rule, allow.weights, source)


def _member(
    code: str, key: str, noun: str, asked: str, allowed: tuple[str, ...], source: Source
) -> Finding:
    return Finding(
        code,
        f"allow.{key}",
        _where(source, "allow", key),
        asked in allowed,
        f"{noun} {show(asked)}",
        _shown(allowed),
    )


def _owner(study: Study, digest: ConfigHash, policy: Policy, source: Source) -> Finding:
    """Allowed by organisation or by hash; a policy may use either or both."""
    allow = policy.allow
    by_hash = allow.lists_study(digest)
    by_owner = study.owner.organisation in allow.owners
    key = "studies" if by_hash or ("owners" not in allow.model_fields_set) else "owners"
    return Finding(
        "POLICY_OWNER",
        f"allow.{key}",
        _where(source, "allow", key),
        by_hash or by_owner,
        f"owner {show(study.owner.organisation)} with study sha256:{digest.hex()}",
        _shown(allow.studies if key == "studies" else allow.owners),
    )


def _require_rules(study: Study, policy: Policy, source: Source) -> Iterator[Finding]:
    require, members = policy.require, policy.federation.members
    wanted = study.federation.min_sites
    two = _TWO in (len(members), wanted)
    yield Finding(
        "POLICY_TWO_PARTY",
        "require.allow_two_party",
        _where(source, "require", "allow_two_party"),
        require.allow_two_party or not two,
        f"{'a run of two hospitals' if two else 'a run'} with min_sites {wanted} among "
        f"{len(members)} members",
        show(require.allow_two_party),
    )
    yield _at_least("min_sites", wanted, require.min_sites, "min_sites", source)
    colluders = study.colluders(len(members))
    yield _at_least("colluders", colluders, require.colluders, "colluders", source)
    yield _at_least("min_cohort", len(members), require.min_cohort, "a roster of", source)
    yield from _privacy_rules(study, policy, source)
    yield Finding(
        "POLICY_RELEASE",
        "release.site_metrics",
        _where(source, "release", "site_metrics"),
        policy.release.site_metrics or not study.evaluate.site_metrics,
        f"evaluate.site_metrics {show(study.evaluate.site_metrics)}",
        show(policy.release.site_metrics),
    )


def _privacy_rules(study: Study, policy: Policy, source: Source) -> Iterator[Finding]:
    """A study without noise has a mode only; whether budget is left, the ledger says."""
    rules, terms = policy.require.dp, study.privacy.dp
    yield _privacy(
        "modes", terms.mode in rules.modes, f"mode {terms.mode}", _shown(rules.modes), source
    )
    if not terms.on:
        return
    most = (
        ("epsilon_per_study", "epsilon", terms.epsilon, rules.epsilon_per_study),
        ("delta", "delta", terms.delta, rules.delta),
        ("max_clip", "clip", terms.clip, rules.max_clip),
    )
    for key, noun, asked, limit in most:
        ok = asked is not None and asked <= limit
        yield _privacy(key, ok, f"{noun} {show(asked)}", f"at most {limit:g}", source)
    z, least = terms.noise_multiplier, rules.min_noise_multiplier
    ok = z is not None and z >= least
    asked_z = f"noise multiplier {show(z)}"
    yield _privacy("min_noise_multiplier", ok, asked_z, f"at least {least:g}", source)


def _privacy(key: str, ok: bool, asked: str, allowed: str, source: Source) -> Finding:  # noqa: FBT001
    where = _where(source, "require", "dp", key)
    return Finding("POLICY_DP", f"require.dp.{key}", where, ok, asked, allowed)


def _at_least(key: str, asked: int, least: int, noun: str, source: Source) -> Finding:
    return Finding(
        "POLICY_COHORT",
        f"require.{key}",
        _where(source, "require", key),
        asked >= least,
        f"{noun} {asked}",
        f"at least {least}",
    )


def _where(source: Source, *path: str) -> str:
    """Return `policy.yaml:9`: the file's name only, for a finding may leave the hospital."""
    line = source.line(*path)
    name = Path(source.name).name
    return name if line is None else f"{name}:{line}"


def _shown(words: tuple[str, ...]) -> str:
    return "[" + ", ".join(show(word)[1:-1] for word in words) + "]"
