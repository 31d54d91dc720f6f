"""What a study would cost of a data set's privacy budget, read beside a node that serves."""

from __future__ import annotations

from pathlib import Path

from common.ids import NodeId
from common.policy import PrivacyRules
from common.privacy.accountant import NOTHING, add, epsilon
from common.study import Study
from common.study_privacy import study_cost
from hospital_node.ledger import read_charges


def forecast(study: Study, rules: PrivacyRules, ledgers: Path, node: NodeId) -> dict[str, float]:
    """Return epsilon spent and to be spent, at the policy's delta, and the policy's limits.

    `after` is with the whole study, whatever of it was charged already.

    Raises:
        StateError: LEDGER_DAMAGED.
    """
    own = others = NOTHING
    for charge in read_charges(ledgers, node, study.dataset):
        if charge.task == study.id:
            own = add(own, charge.rdp)
        else:
            others = add(others, charge.rdp)
    whole, delta = study_cost(study), rules.delta
    return {
        "delta": delta,
        "spent": epsilon(add(own, others), delta).epsilon,
        "spent_by_study": epsilon(own, delta).epsilon,
        "after": epsilon(add(others, whole), delta).epsilon,
        "study": epsilon(whole, study.privacy.dp.delta or delta).epsilon,
        "limit_total": rules.epsilon_total,
        "limit_study": rules.epsilon_per_study,
    }
