"""`fedcare study plan`: what a study will cost and promise, before anything runs. No network.

Everything follows from the study, from how many hospitals take part, and from the policies
and ledgers of those hospitals whose files the caller has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, assert_never

from common.config import Loaded
from common.errors import InternalError
from common.layouts import round_layout
from common.policy import Policy, load_policy
from common.secagg.dp import DpMode, DpTerms, check_terms
from common.secagg.header import RoundKind
from common.study import Study, config_hash
from common.study_privacy import steps
from hospital_node.budget import Budget, Forecast, forecast, read_budget
from hospital_node.config import NodeConfig
from hospital_node.consent import examine
from hospital_node.private.limits import Limits
from researcher.traffic import Traffic, total, traffic

CONTROL_BYTES: Final = (100, 1000)
"""A round's control messages at a hospital, for each member and in any case (section 14)."""


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of a training round with `sites` survivors, for each coordinate of the model.

    `terms` are the header's. `mean_sd` is the standard deviation of the noise in the mean
    contribution, `step_sd` in the step that is added to the model: the mean times the study's
    learning rate, or one (mode hospital).
    """

    terms: DpTerms
    honest: int
    mean_sd: float
    step_sd: float

    @property
    def relative(self) -> float:
        """`mean_sd` as a share of the clip."""
        return self.mean_sd / self.terms.clip


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a hospital would refuse."""

    code: str
    rule: str
    where: str
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a hospital would say; `ledger`: whether its own spending was read, or none assumed."""

    site: str
    file: str
    ledger: bool
    reasons: tuple[Reason, ...]
    budget: Forecast

    @property
    def accepts(self) -> bool:
        """Whether nothing speaks against the study."""
        return not self.reasons


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that `fedcare study plan` prints; `cost` and `noise` are empty without noise."""

    study: Study
    sites: int
    colluders: int
    cost: Forecast
    noise: Noise | None
    traffic: tuple[Traffic, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def accepted(self) -> bool:
        """Whether none of the hospitals that were named would refuse."""
        return all(verdict.accepts for verdict in self.verdicts)


def make_plan(
    study: Study, *, policies: Sequence[Path], nodes: Sequence[Path], sites: int | None
) -> Plan:
    """Return the plan of a study.

    Args:
        study: the completed study.
        policies: hospitals' policy files, whose ledgers are taken to be empty.
        nodes: hospitals' node files, whose policies and ledgers are read.
        sites: how many take part; None: the most members that a policy names, or `min_sites`.

    Raises:
        ConfigError: a file is missing or wrong.
        Refusal: ACCOUNTANT, the two accountants disagree; DP_WEAK, OVERFLOW_BOUND, the
            study's terms break a rule that every hospital enforces.
    """
    asked: list[tuple[Loaded[Policy], Path, Budget | None]] = [
        (load_policy(path), path, None) for path in policies
    ]
    for path in nodes:
        config = NodeConfig.read(path)
        asked += [(load_policy(config.path(config.policy)), path, read_budget(config))]
    members = [len(policy.value.federation.members) for policy, _, _ in asked]
    count = sites or max([study.federation.min_sites, *members])
    cost = forecast(study, _own_promise(study))
    return Plan(
        study,
        count,
        study.colluders(count),
        cost,
        _noise(study, count) if study.privacy.dp.on else None,
        traffic(study),
        tuple(_verdict(study, policy, str(path), budget) for policy, path, budget in asked),
    )


def _own_promise(study: Study) -> Budget:
    """Return the budget of a hospital whose only limit is what the study states."""
    terms = study.privacy.dp
    most = terms.epsilon or 1.0
    return Budget("", Limits(most, most, terms.delta or 0.5, "the study", "the study"), {})


# --- noise ----------------------------------------------------------------------------------------


def _noise(study: Study, sites: int) -> Noise:
    layout = round_layout(study, RoundKind.TRAIN)
    if layout.dp is None:
        raise InternalError("a study with differential privacy plans no noise")
    honest = study.federation.min_sites - study.colluders(sites)
    terms = layout.dp.terms(honest)
    check_terms(terms, n=sites, h=honest, d=layout.schema.words, w=layout.ring_bits)
    batch, lr = study.privacy.dp.batch, study.train.lr
    match terms.mode:
        case DpMode.HOSPITAL:
            mean = shared_noise(terms, sites, float(sites))
            return Noise(terms, honest, mean, mean)
        case DpMode.PATIENT_DISTRIBUTED:
            mean = shared_noise(terms, sites, float(batch or 1))
            return Noise(terms, honest, mean, mean * lr)
        case DpMode.PATIENT_LOCAL:
            batches = float(batch or 0) * sites or _public_patients(study) * terms.p
            mean = local_noise(terms, sites, batches)
            return Noise(terms, honest, mean, mean * lr * math.sqrt(study.train.local_steps or 1))
        case DpMode.NONE:
            raise InternalError("a study with differential privacy has no mode")
        case _:
            assert_never(terms.mode)


def shared_noise(terms: DpTerms, sites: int, count: float) -> float:
    """Return the noise in `sum / count` where `sites` hospitals each add `sigma_loc`."""
    return terms.sigma_loc * math.sqrt(sites) * terms.clip / (terms.delta_int * count)


def local_noise(terms: DpTerms, sites: int, batches: float) -> float:
    """Return the noise of one step in the mean of `sites` hospitals with full noise each.

    `batches` is the sum of what the hospitals divide by: each adds `z C / m_i` to its own
    step, and the mean weighs it by `m_i`, or equally with equal `m_i`.
    """
    return terms.sigma_loc * terms.clip / terms.delta_int * math.sqrt(sites) / batches


def _public_patients(study: Study) -> float:
    return float(sum(study.federation.weights.values()))


# --- hospitals ------------------------------------------------------------------------------------


def _verdict(study: Study, policy: Loaded[Policy], file: str, budget: Budget | None) -> Verdict:
    findings = examine(study, config_hash(study), policy.value, policy.source)
    reasons = [
        Reason(found.code, found.rule, found.where, str(found))
        for found in findings
        if not found.ok
    ]
    known = budget or Budget(policy.value.site, Limits.of(policy), {})
    held = forecast(study, known)
    named = {reason.rule for reason in reasons}
    reasons += [
        Reason("BUDGET", bound.rule, bound.where, str(bound))
        for bound in held.bounds
        if not bound.holds and bound.rule not in named
    ]
    if held.trouble is not None:
        where = f"data set {study.dataset}"
        reasons.append(Reason(held.trouble.name, "ledger", where, held.trouble.detail))
    return Verdict(policy.value.site, file, budget is not None, tuple(reasons), held)


# --- for scripts and people -----------------------------------------------------------------------


def plan_data(plan: Plan) -> dict[str, object]:
    """Return a plan for an envelope."""
    study, terms, cost = plan.study, plan.study.privacy.dp, plan.cost
    return {
        "study": study.id,
        "hash": f"sha256:{config_hash(study).hex()}",
        "sites": plan.sites,
        "min_sites": study.federation.min_sites,
        "colluders": plan.colluders,
        "mode": terms.mode,
        "rounds": study.federation.rounds,
        "steps": steps(study) if terms.on else 0,
        "delta": terms.delta,
        "epsilon_stated": terms.epsilon,
        "epsilon_charged": cost.charged if terms.on else None,
        "epsilon_charged_again": cost.again if terms.on else None,
        "epsilon_estimate": cost.estimate if terms.on else None,
        "noise": _noise_data(plan),
        "traffic": [part.data() for part in plan.traffic],
        "bytes_per_site": total(plan.traffic),
        "bytes_in_all": total(plan.traffic) * plan.sites,
        "hospitals": [
            {
                "site": verdict.site,
                "file": verdict.file,
                "ledger_read": verdict.ledger,
                "accepts": verdict.accepts,
                "reasons": [
                    {"code": r.code, "rule": r.rule, "where": r.where, "text": r.text}
                    for r in verdict.reasons
                ],
            }
            for verdict in plan.verdicts
        ],
    }


def _noise_data(plan: Plan) -> dict[str, object] | None:
    noise = plan.noise
    if noise is None:
        return None
    terms = noise.terms
    return {
        "noise_multiplier": terms.z,
        "clip": terms.clip,
        "sampling": plan.study.privacy.dp.sampling,
        "delta_int": terms.delta_int,
        "sigma_loc": terms.sigma_loc,
        "honest": noise.honest,
        "mean_sd": noise.mean_sd,
        "mean_sd_of_clip": noise.relative,
        "step_sd": noise.step_sd,
    }


def _control(sites: int) -> int:
    for_each, fixed = CONTROL_BYTES
    return for_each * sites + fixed


def plan_text(plan: Plan) -> str:
    """Return a plan for people."""
    from common.tables import table

    study, digest = plan.study, config_hash(plan.study).hex()
    whole = total(plan.traffic)
    parts = [
        f"study {study.id}, sha256:{digest}",
        (
            f"{plan.sites} hospitals, at least {study.federation.min_sites} in every sum, of which "
            f"{plan.colluders} may collude"
        ),
        "",
        *_privacy_lines(plan),
        "",
        table(
            ("round", "how many", "up, bytes", "down, bytes"),
            [
                (part.kind.value, str(part.rounds), f"{part.upload:,}", f"{part.download:,}")
                for part in plan.traffic
            ],
            right=frozenset({1, 2, 3}),
        ),
        f"in all {whole:,} bytes a hospital, {whole * plan.sites:,} for all",
        f"control messages add up to about {_control(plan.sites):,} bytes a round and hospital",
    ]
    for verdict in plan.verdicts:
        parts += ["", *_verdict_lines(verdict)]
    return "\n".join(parts)


def _privacy_lines(plan: Plan) -> list[str]:
    noise, cost, terms = plan.noise, plan.cost, plan.study.privacy.dp
    if noise is None:
        return [
            "dp mode none: no epsilon is charged and none is promised; whoever chooses the models",
            "can subtract two of them (docs/privacy.md)",
        ]
    header = noise.terms
    scale = "" if noise.step_sd == noise.mean_sd else f"; in the applied step {noise.step_sd:.3g}"
    return [
        (
            f"mode       {header.mode.value}, {steps(plan.study)} steps, sampling "
            f"{terms.sampling or 1:g}, clip {header.clip:g}"
        ),
        (
            f"noise      multiplier z {header.z:g}; Delta_int {header.delta_int}, sigma_loc "
            f"{header.sigma_loc:.1f} at each hospital"
        ),
        (
            f"charged    epsilon {cost.charged:.4f} at delta {terms.delta:g} to each hospital "
            f"(RDP; again by dp-accounting: {cost.again:.4f})"
        ),
        f"estimate   epsilon {cost.estimate:.4f} (PLD of continuous noise; never charged)",
        (
            f"error      standard deviation of each coordinate of the mean {noise.mean_sd:.3g}, "
            f"{noise.relative:.3g} of the clip{scale}"
        ),
    ]


def _verdict_lines(verdict: Verdict) -> list[str]:
    from common.text import escape

    word = "accepts" if verdict.accepts else "REFUSES"
    basis = "its ledger was read" if verdict.ledger else "nothing spent is assumed"
    lines = [f"{verdict.site}: {word} ({escape(verdict.file)}; {basis})"]
    lines += [f"  {reason.code}: {escape(reason.text)}" for reason in verdict.reasons]
    more = verdict.budget.more
    if verdict.accepts and more is not None:
        lines.append(f"  {more} such studies fit into what is left")
    return lines
