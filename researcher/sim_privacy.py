"""What a simulation's hospitals really charged, read from the ledgers that they wrote."""

from __future__ import annotations

from common.privacy.accountant import epsilon
from hospital_node.budget import read_budget
from hospital_node.config import NodeConfig
from researcher.local import FederationPlan


def privacy_data(plan: FederationPlan) -> dict[str, object]:
    """Return the envelope's `dp`: the mode, what was stated, and what the run has cost.

    `epsilon` is the charged epsilon of the steps truly taken, at `delta`, at the hospital
    where it is largest; `stated_epsilon`, only with noise, what the study promised not to pass.
    """
    study = plan.study
    terms = study.privacy.dp
    if not terms.on or terms.delta is None:
        return {"mode": terms.mode, "epsilon": None, "delta": None}
    charged = 0.0
    for site in plan.sites:
        budget = read_budget(NodeConfig.read(plan.site_folder(site.name) / "node.yaml"))
        entries = budget.account(study.dataset).entries
        charged = max(charged, epsilon(entries.spent(study.id), terms.delta).epsilon)
    return {
        "mode": terms.mode,
        "epsilon": charged,
        "delta": terms.delta,
        "stated_epsilon": terms.epsilon,
    }
