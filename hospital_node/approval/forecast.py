"""What a study would cost of a data set's privacy budget, for the page that people read."""

from __future__ import annotations

from common.policy import PrivacyRules
from common.privacy.accountant import NOTHING, add, epsilon
from common.study import Study
from common.study_privacy import study_cost
from hospital_node.budget import Account


def forecast(study: Study, rules: PrivacyRules, account: Account) -> dict[str, float]:
    """Return epsilon spent and to be spent, at the policy's delta, and the policy's limits.

    `after` is with the whole study, whatever of it was charged already.

    Raises:
        FedError: the ledger cannot be trusted.
    """
    if account.trouble is not None:
        raise account.trouble
    entries = account.entries
    others = NOTHING
    for task in entries.tasks():
        others = others if task == study.id else add(others, entries.spent(task))
    whole, delta = study_cost(study), rules.delta
    return {
        "delta": delta,
        "spent": epsilon(entries.spent(), delta).epsilon,
        "spent_by_study": epsilon(entries.spent(study.id), delta).epsilon,
        "after": epsilon(add(others, whole), delta).epsilon,
        "study": epsilon(whole, study.privacy.dp.delta or delta).epsilon,
        "limit_total": rules.epsilon_total,
        "limit_study": rules.epsilon_per_study,
    }
