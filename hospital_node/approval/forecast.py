"""What a study would cost of a data set's privacy budget, for the page that people read."""

from __future__ import annotations

from common.privacy.accountant import NOTHING, add, epsilon
from common.study import Study
from common.study_privacy import study_cost
from hospital_node.budget import Account
from hospital_node.private.limits import Limits, bounds


def forecast(study: Study, limits: Limits, account: Account, *, alone: bool) -> dict[str, object]:
    """Return epsilon spent and to be spent, at the policy's delta, and the policy's limits.

    `after` is with the whole study. `alone`: no other version of it was accepted, so that all
    charges under its id are its own and count once; else they come on top, as the ledger
    counts them. `over` says which limits the study would pass, with the arithmetic.

    Raises:
        FedError: the ledger cannot be trusted.
    """
    if account.trouble is not None:
        raise account.trouble
    entries = account.entries
    others = NOTHING
    for task in entries.tasks():
        others = others if alone and task == study.id else add(others, entries.spent(task))
    whole, delta = study_cost(study), limits.delta
    begun = alone and study.id in entries.tasks()  # was judged when it was accepted
    held = () if begun else bounds(study, limits, entries, whole)
    return {
        "delta": delta,
        "spent": epsilon(entries.spent(), delta).epsilon,
        "spent_by_study": epsilon(entries.spent(study.id), delta).epsilon,
        "after": epsilon(add(others, whole), delta).epsilon,
        "study": epsilon(whole, study.privacy.dp.delta or delta).epsilon,
        "limit_total": limits.epsilon_total,
        "limit_study": limits.epsilon_per_study,
        "over": [str(bound) for bound in held if not bound.holds],
    }
