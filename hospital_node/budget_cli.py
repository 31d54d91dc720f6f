"""`fedcare node budget show|history|forecast`: what privacy is spent, and what is left.

All three only read, also while the node serves. Exit code 1: a ledger cannot be trusted, or
the study of a forecast would be refused.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.commands import JsonFlag, Outcome, command, group
from common.errors import ConfigError, ExitCode
from common.text import escape, listed
from common.text import show as show_text

if TYPE_CHECKING:
    from common.privacy.accountant import Rdp
    from hospital_node.budget import Account, Budget, Forecast

app = group("Say what privacy is spent on each data set, and what is left.")

ConfigOption = Annotated[
    Path, typer.Option("--config", help="The node's file (fedcare.node/v1).", show_default=True)
]
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", metavar="NAME", help="This data set only.")
]


@app.command()
@command
def show(
    *,
    config: ConfigOption = Path("node.yaml"),
    dataset: DatasetOption = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """Show what is spent and left of each data set's epsilon, and by which studies."""
    del as_json
    from hospital_node.budget import account_data

    budget = _read(config)
    accounts = _chosen(budget, dataset)
    limits = budget.limits
    data = {
        "site": budget.site,
        "epsilon_per_study": limits.epsilon_per_study,
        "datasets": [account_data(account, budget) for account in accounts],
    }
    head = (
        f"{budget.site}: epsilon at most {limits.epsilon_total:g} for a data set "
        f"({limits.total_at}) and {limits.epsilon_per_study:g} for a study "
        f"({limits.per_study_at}), at delta {limits.delta:g}"
    )
    parts = [head, *(_account_text(account, budget) for account in accounts)]
    return Outcome(data, "\n".join(parts), _code(accounts))


@app.command()
@command
def history(
    *,
    config: ConfigOption = Path("node.yaml"),
    dataset: DatasetOption = None,
    study: Annotated[
        str | None, typer.Option("--study", metavar="ID", help="This study's charges only.")
    ] = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """List every charge: when, which round, with which noise, and the epsilon after it."""
    del as_json
    from common.tables import table
    from hospital_node.budget import history as charges_of
    from hospital_node.budget import trouble_data

    budget = _read(config)
    accounts = _chosen(budget, dataset)
    data, parts = [], []
    for account in accounts:
        rows = [
            {
                "time": charge.time,
                "study": charge.task,
                "round": charge.r,
                "mode": charge.mode,
                "z": charge.z,
                "p": charge.p,
                "header": charge.hd,
                "epsilon_after": after,
            }
            for charge, after in charges_of(account.entries, budget.limits.delta)
            if study is None or charge.task == study
        ]
        error = trouble_data(account.trouble)
        data.append({"dataset": account.dataset, "charges": rows, "error": error})
        parts.append(_trouble_text(account) if error else f"{account.dataset}: {len(rows)} charges")
        if rows:
            head = ("time", "study", "round", "mode", "z", "p", "epsilon after")
            cells = [
                (
                    _moment(int(str(row["time"]))),
                    *(str(row[key]) for key in ("study", "round", "mode")),
                    f"{row['z']:g}",
                    f"{row['p']:g}",
                    f"{row['epsilon_after']:.4f}",
                )
                for row in rows
            ]
            parts.append(table(head, cells, right=frozenset({2, 4, 5, 6})))
    return Outcome({"datasets": data}, "\n".join(parts), _code(accounts))


@app.command()
@command
def forecast(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", show_default=False)],
    *,
    config: ConfigOption = Path("node.yaml"),
    as_json: JsonFlag = False,
) -> Outcome:
    """Say what a study would charge here, whether it fits, and how many more like it would."""
    del as_json
    from common.study import load_study
    from hospital_node.budget import forecast as forecast_of
    from hospital_node.budget import forecast_data

    found = forecast_of(load_study(study), _read(config))
    code = ExitCode.OK if found.fits else ExitCode.REFUSED
    return Outcome(forecast_data(found), forecast_text(found), code)


def _read(config: Path) -> Budget:
    from hospital_node.budget import read_budget
    from hospital_node.config import NodeConfig

    return read_budget(NodeConfig.read(config))


def _chosen(budget: Budget, dataset: str | None) -> list[Account]:
    if dataset is None:
        return list(budget.accounts.values())
    if dataset not in budget.accounts:
        raise ConfigError(
            "BAD_ARGUMENT",
            f"no data set {show_text(dataset)}; there are {listed(budget.accounts)}",
            fix="Name one that the policy allows or that was ever charged.",
        )
    return [budget.accounts[dataset]]


def _epsilon(cost: Rdp, delta: float) -> float:
    from common.privacy.accountant import epsilon

    return epsilon(cost, delta).epsilon


def _code(accounts: list[Account]) -> ExitCode:
    sound = all(account.trouble is None for account in accounts)
    return ExitCode.OK if sound else ExitCode.REFUSED


def _account_text(account: Account, budget: Budget) -> str:
    from common.tables import bar, table

    limits, spent = budget.limits, budget.spent(account)
    left = max(0.0, limits.epsilon_total - spent)
    line = (
        f"\n{escape(account.dataset)}  {bar(spent / limits.epsilon_total)}  "
        f"{spent:.4f} of {limits.epsilon_total:g} spent, {left:.4f} left"
    )
    if account.trouble is not None:
        return f"{line}\n{_trouble_text(account)}"
    entries = account.entries
    charges = [charge.task for charge in entries.charges]
    rows = [
        (
            task,
            str(charges.count(task)),
            f"{_epsilon(entries.spent(task), limits.delta):.4f}",
        )
        for task in entries.tasks()
    ]
    if not rows:
        return f"{line}\nnothing was charged yet"
    return f"{line}\n{table(('study', 'rounds', 'epsilon'), rows, right=frozenset({1, 2}))}"


def _trouble_text(account: Account) -> str:

    trouble = account.trouble
    if trouble is None:
        return ""
    return (
        f"error {trouble.code} {trouble.name}: {escape(trouble.detail)}\nfix: {escape(trouble.fix)}"
    )


def forecast_text(found: Forecast) -> str:
    """Return a forecast with its arithmetic for people."""
    study, terms = found.study, found.study.privacy.dp
    if not terms.on:
        return f"study {study.id} has dp mode none: it charges no epsilon and promises none"
    from common.study_privacy import steps

    lines = [
        f"study {study.id}, data set {study.dataset}: {steps(study)} steps",
        f"noise multiplier {terms.noise_multiplier:g}, sampling {terms.sampling or 1:g}",
        f"charged    epsilon {found.charged:.4f} at delta {terms.delta:g} (RDP)",
        f"again      epsilon {found.again:.4f} (RDP by dp-accounting; at most 1 % apart)",
        f"estimate   epsilon {found.estimate:.4f} (PLD of continuous noise; never charged)",
    ]
    if found.trouble is not None:
        lines.append(f"error {found.trouble.code} {found.trouble.name}: {found.trouble.detail}")
        lines.append(f"fix: {found.trouble.fix}")
    lines += [f"{'keeps' if bound.holds else 'BREAKS':<10} {bound}" for bound in found.bounds]
    lines.append(
        f"fits: {found.more} such studies fit into what is left"
        if found.fits
        else "does not fit: the study would be refused"
    )
    return "\n".join(lines)


def _moment(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S")
