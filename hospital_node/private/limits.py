"""The hospital's limits on epsilon, held against what is spent and what something would cost. Pure.

The ledger, `fedcare node budget forecast` and `fedcare study plan` all say the same sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.config import Loaded
from common.policy import Policy
from common.privacy.accountant import Rdp, add, epsilon
from common.study import Study
from hospital_node.ledger_lines import Entries

_TOLERANCE: Final = 1e-9
"""Of a limit, relative: what adding a study's rounds one by one may round."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the hospital's policy allows: per study, and per data set for ever, at `delta`.

    `per_study_at` and `total_at` say where the policy states them, such as `policy.yaml:9`.
    """

    epsilon_per_study: float
    epsilon_total: float
    delta: float
    per_study_at: str = "policy"
    total_at: str = "policy"

    @classmethod
    def of(cls, policy: Loaded[Policy]) -> Limits:
        """Return a policy's limits; of its file only the name is told, for it may leave."""
        rules, source = policy.value.require.dp, policy.source
        name = Path(source.name).name

        def at(key: str) -> str:
            line = source.line("require", "dp", key)
            return name if line is None else f"{name}:{line}"

        return cls(
            rules.epsilon_per_study,
            rules.epsilon_total,
            rules.delta,
            at("epsilon_per_study"),
            at("epsilon_total"),
        )


@dataclass(frozen=True, slots=True)
class Bound:
    """One limit held against a cost: epsilon `before`, of the cost `alone`, and `after` both.

    Costs are added order by order, so `after` is less than the sum of the other two.
    """

    whose: str
    rule: str
    where: str
    before: float
    alone: float
    after: float
    limit: float
    delta: float

    @property
    def holds(self) -> bool:
        """Whether the limit is kept."""
        return self.after <= self.limit * (1 + _TOLERANCE)

    def __str__(self) -> str:
        return (
            f"{self.whose}: epsilon {self.before:.4f} is spent, this costs {self.alone:.4f}, "
            f"together {self.after:.4f}; the limit is {self.limit:g} at delta {self.delta:g} "
            f"({self.rule}, {self.where})"
        )


def bounds(study: Study, limits: Limits, spent: Entries, cost: Rdp) -> tuple[Bound, Bound]:
    """Hold a study's or a round's cost against what is left for it at this hospital."""
    terms = study.privacy.dp
    stated, own = terms.epsilon or 0.0, limits.epsilon_per_study
    study_rule = (
        ("require.dp.epsilon_per_study", limits.per_study_at, own)
        if own <= stated
        else ("privacy.dp.epsilon", "the study", stated)
    )
    return (
        _bound(f"study {study.id}", study_rule, spent.spent(study.id), cost, terms.delta or 0.0),
        _bound(
            f"data set {study.dataset}",
            ("require.dp.epsilon_total", limits.total_at, limits.epsilon_total),
            spent.spent(),
            cost,
            limits.delta,
        ),
    )


def _bound(whose: str, limit: tuple[str, str, float], spent: Rdp, cost: Rdp, delta: float) -> Bound:
    rule, where, most = limit
    before, alone = epsilon(spent, delta).epsilon, epsilon(cost, delta).epsilon
    after = epsilon(add(spent, cost), delta).epsilon
    return Bound(whose, rule, where, before, alone, after, most, delta)
