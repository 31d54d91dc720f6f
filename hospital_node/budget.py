"""What a hospital's ledgers say of its privacy budget: read beside a serving node or after it.

Nothing is locked and nothing is written. A ledger that cannot be trusted is shown with the
error that the node would stop with, and its whole budget as spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from common.config import Loaded
from common.entropy import OsEntropy
from common.errors import FedError
from common.ids import hospital_id
from common.policy import Policy, load_policy
from common.privacy.accountant import NOTHING, Rdp, add, epsilon, times
from common.study import Study, config_hash
from common.study_privacy import charged, steps, study_cost
from hospital_node.config import NodeConfig
from hospital_node.ledger import Charge, Entries, ledger_path, look, lost
from hospital_node.private import second_accountant
from hospital_node.private.books import agreed_datasets, anchor_of, check_witness
from hospital_node.private.limits import Bound, Limits, bounds
from hospital_node.status import noised_sums
from hospital_node.store import KEY_NAME, StoreReader

_MOST_STUDIES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Account:
    """One data set's ledger; `trouble` is why it cannot be trusted, and then it is empty."""

    dataset: str
    entries: Entries
    trouble: FedError | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """A hospital's limits, and the account of each data set that it allows or ever charged."""

    site: str
    limits: Limits
    accounts: Mapping[str, Account]

    def account(self, dataset: str) -> Account:
        """Return a data set's account; one that never had a ledger is empty."""
        return self.accounts.get(dataset) or Account(dataset, Entries())

    def spent(self, account: Account) -> float:
        """Return the epsilon that counts as spent on a data set, at the policy's delta."""
        if account.trouble is not None:
            return self.limits.epsilon_total
        return epsilon(account.entries.spent(), self.limits.delta).epsilon


def read_budget(config: NodeConfig) -> Budget:
    """Read every ledger of the node of this file.

    Raises:
        ConfigError, PolicyRefusal: node or policy file, or the sealing key, cannot be read.
        StateError: STATE_DAMAGED, a decision.
    """
    policy = load_policy(config.path(config.policy))
    return Budget(
        policy.value.site, Limits.of(policy), {a.dataset: a for a in _accounts(config, policy)}
    )


def _accounts(config: NodeConfig, policy: Loaded[Policy]) -> list[Account]:
    root = config.path(config.state_dir)
    anchor = None if config.ledger_anchor is None else config.path(config.ledger_anchor)
    key_file = None if config.sealing_key is None else config.path(config.sealing_key)
    names = set(policy.value.allow.datasets) | _named(root / "ledger", anchor)
    if not (root / "ledger").is_dir() and not (key_file or root / KEY_NAME).exists():
        return [_of_no_node(root, name, anchor) for name in sorted(names)]
    reader = StoreReader(root, OsEntropy(), key_file)
    agreed = agreed_datasets(reader.decisions())
    node = hospital_id(policy.value.federation.id, policy.value.site)
    sums, found = noised_sums(root), []
    for name in sorted(names | agreed):
        try:
            entries = look(
                reader.ledgers,
                node,
                name,
                reader,
                anchor_of(anchor, node, name, reader),
                begun=name not in agreed,
            )
            check_witness(name, len(entries.charges), sums.get(name, 0))
        except FedError as trouble:
            found.append(Account(name, Entries(), trouble))
        else:
            found.append(Account(name, entries))
    return found


def _of_no_node(root: Path, dataset: str, anchor: Path | None) -> Account:
    """Return the account where no node has run, or where its state is gone."""
    vouched = anchor is not None and (anchor / f"{dataset}.anchor").exists()
    trouble = lost(ledger_path(root / "ledger", dataset)) if vouched else None
    return Account(dataset, Entries(), trouble)


def _named(ledgers: Path, anchor: Path | None) -> set[str]:
    """Return the data sets that files speak of, also where one of the files is gone."""
    names = set()
    for folder, suffix in ((ledgers, ".jsonl"), (ledgers, ".head.sealed"), (anchor, ".anchor")):
        if folder is not None and folder.is_dir():
            names |= {path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}")}
    return names


# --- what was charged --------------------------------------------------------------------------


def history(entries: Entries, delta: float) -> list[tuple[Charge, float]]:
    """Return each charge with the epsilon of the data set after it, at `delta`."""
    total = np.zeros(len(NOTHING))
    found = []
    for charge in entries.charges:
        total += np.array(charge.rdp)
        found.append((charge, epsilon(total.tolist(), delta).epsilon))
    return found


# --- what would be charged -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a study would charge at this hospital, and whether its budget holds it.

    `charged` by the ledger's accountant at the study's delta, `again` by the second one,
    `estimate` by the privacy loss distribution (never charged); all 0 without noise. `more`:
    how many such studies, one after the other, the data set's total holds from now on.
    """

    study: Study
    charged: float
    again: float
    estimate: float
    bounds: tuple[Bound, ...]
    more: int | None
    trouble: FedError | None

    @property
    def fits(self) -> bool:
        """Whether the study would be admitted, as far as the budget goes."""
        return self.trouble is None and all(bound.holds for bound in self.bounds)


def forecast(study: Study, budget: Budget) -> Forecast:
    """Return what a study would charge here; a study without noise charges nothing.

    Raises:
        Refusal: ACCOUNTANT. ConfigError: NOT_INSTALLED.
    """
    if not study.privacy.dp.on:
        return Forecast(study, 0.0, 0.0, 0.0, (), None, None)
    again = second_accountant.check(study)
    spent = second_accountant.spending(study)
    estimate = second_accountant.estimate(spent, study.privacy.dp.delta or 0.0)
    account, cost = budget.account(study.dataset), study_cost(study)
    if account.trouble is not None:
        return Forecast(study, charged(study), again, estimate, (), 0, account.trouble)
    held = bounds(study, budget.limits, account.entries, cost)
    more = _studies_left(account.entries.spent(), cost, budget.limits) if held[0].holds else 0
    return Forecast(study, charged(study), again, estimate, held, more, None)


def _studies_left(spent: Rdp, cost: Rdp, limits: Limits) -> int:
    """Return how often a cost fits into what is left of the total; `_MOST_STUDIES` at most."""

    def fits(count: int) -> bool:
        after = epsilon(add(spent, times(cost, count)), limits.delta).epsilon
        return after <= limits.epsilon_total

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
        if low >= _MOST_STUDIES:
            return low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# --- for scripts -------------------------------------------------------------------------------


def trouble_data(trouble: FedError | None) -> dict[str, object] | None:
    """Return an error for an envelope's data."""
    if trouble is None:
        return None
    return {
        "code": trouble.code,
        "message": f"{trouble.name}: {trouble.detail}",
        "fix": trouble.fix,
    }


def account_data(account: Account, budget: Budget) -> dict[str, object]:
    """Return an account for an envelope."""
    limits, entries = budget.limits, account.entries
    spent = budget.spent(account)
    charges = [charge.task for charge in entries.charges]
    return {
        "dataset": account.dataset,
        "epsilon_spent": spent,
        "epsilon_limit": limits.epsilon_total,
        "epsilon_left": max(0.0, limits.epsilon_total - spent),
        "delta": limits.delta,
        "charges": len(charges),
        "studies": [
            {
                "study": task,
                "epsilon_spent": epsilon(entries.spent(task), limits.delta).epsilon,
                "charges": charges.count(task),
            }
            for task in entries.tasks()
        ],
        "error": trouble_data(account.trouble),
    }


def bound_data(bound: Bound) -> dict[str, object]:
    """Return one limit and its arithmetic for an envelope."""
    return {
        "rule": bound.rule,
        "where": bound.where,
        "spent": bound.before,
        "cost": bound.alone,
        "after": bound.after,
        "limit": bound.limit,
        "delta": bound.delta,
        "holds": bound.holds,
    }


def forecast_data(found: Forecast) -> dict[str, object]:
    """Return a forecast for an envelope."""
    study = found.study
    return {
        "study": study.id,
        "hash": f"sha256:{config_hash(study).hex()}",
        "dataset": study.dataset,
        "mode": study.privacy.dp.mode,
        "steps": steps(study) if study.privacy.dp.on else 0,
        "delta": study.privacy.dp.delta,
        "epsilon_charged": found.charged,
        "epsilon_charged_again": found.again,
        "epsilon_estimate": found.estimate,
        "fits": found.fits,
        "more_such_studies": found.more,
        "limits": [bound_data(bound) for bound in found.bounds],
        "error": trouble_data(found.trouble),
    }
