"""`fedcare node serve|status|health|unlock|budget|predict|...`: serve one hospital."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.commands import JsonFlag, Outcome, command, group
from hospital_node import budget_cli, check_cli, policy_cli
from hospital_node.approval import cli as approval_cli
from hospital_node.personal import cli as personal_cli

app = group("Serve one hospital; show its state.")
app.add_typer(budget_cli.app, name="budget")
app.add_typer(approval_cli.app, name="approvals")
app.add_typer(policy_cli.app, name="policy")
app.add_typer(check_cli.app, name="data")
app.command("predict")(personal_cli.predict)
app.command("report")(personal_cli.report)

ConfigOption = Annotated[
    Path, typer.Option("--config", help="The node's file (fedcare.node/v1).", show_default=True)
]


@app.command()
@command
def serve(*, config: ConfigOption = Path("node.yaml"), as_json: JsonFlag = False) -> Outcome:  # noqa: ARG001
    """Dial the coordinator and take part until stopped; log lines go to stderr."""
    from hospital_node.app import serve as run
    from hospital_node.config import NodeConfig

    run(NodeConfig.read(config))
    return Outcome({"stopped": True})


@app.command()
@command
def status(*, config: ConfigOption = Path("node.yaml"), as_json: JsonFlag = False) -> Outcome:  # noqa: ARG001
    """Show whether the node runs, is connected, and what each study waits for."""
    from common.clock import SystemClock
    from hospital_node.config import NodeConfig
    from hospital_node.status import describe, read_status

    loaded = NodeConfig.read(config)
    found = read_status(loaded.path(loaded.state_dir))
    return Outcome(found, describe(found, SystemClock().unix()))


@app.command()
@command
def health(
    *,
    config: ConfigOption = Path("node.yaml"),
    link: Annotated[
        bool, typer.Option("--link", help="Ask for the session with the coordinator instead.")
    ] = False,
    as_json: JsonFlag = False,  # noqa: ARG001
) -> Outcome:
    """Ask the node of this file whether it works: exit code 0 yes, 1 no, 2 not running."""
    import asyncio

    from hospital_node.ask_health import ask
    from hospital_node.config import NodeConfig

    loaded = NodeConfig.read(config)
    return asyncio.run(ask(loaded.path(loaded.state_dir), link=link))


ReasonOption = Annotated[
    str, typer.Option("--reason", help="Why, in one line; it is kept and logged.")
]


@app.command()
@command
def unlock(
    study: Annotated[str, typer.Argument(metavar="STUDY", show_default=False)],
    code: Annotated[
        str, typer.Option("--set", metavar="CODE", help="As `fedcare doctor RUN` shows it.")
    ],
    reason: ReasonOption,
    *,
    config: ConfigOption = Path("node.yaml"),
    as_json: JsonFlag = False,  # noqa: ARG001
) -> Outcome:
    """Forget the set that a run waits for, if it was signed here (protocol, 10.4); node stopped."""
    from common.clock import SystemClock
    from hospital_node import orders
    from hospital_node.orders_cli import held, outcome

    with held(config) as store:
        given = orders.unlock(store, study, code, reason, SystemClock())
    return outcome([given], "Start the node: it agrees to one other set on the same model.")


@app.command("accept-loss")
@command
def accept_loss(
    reason: ReasonOption,
    *,
    config: ConfigOption = Path("node.yaml"),
    as_json: JsonFlag = False,  # noqa: ARG001
) -> Outcome:
    """Go on with an old copy of the state, without its keys; the node is stopped."""
    from common.clock import SystemClock
    from hospital_node import orders
    from hospital_node.orders_cli import held, outcome

    with held(config) as store:
        given = orders.accept_loss(store, reason, SystemClock())
    return outcome(given, "The loss is on record. Start the node: it joins through a new epoch.")


@app.command("orders")
@command
def list_orders(
    *,
    config: ConfigOption = Path("node.yaml"),
    as_json: JsonFlag = False,  # noqa: ARG001
) -> Outcome:
    """List what people ordered here; the node may run."""
    from hospital_node import orders
    from hospital_node.config import NodeConfig
    from hospital_node.orders_cli import outcome

    loaded = NodeConfig.read(config)
    return outcome(orders.orders(loaded.path(loaded.state_dir)))


@app.command()
@command
def verify(
    *,
    config: ConfigOption = Path("node.yaml"),
    as_json: JsonFlag = False,  # noqa: ARG001
) -> Outcome:
    """Say what in the state is good and what is damaged; it only reads, the node may run."""
    from common.verified import shown
    from hospital_node.config import NodeConfig
    from hospital_node.verify import verify as run

    return shown(run(NodeConfig.read(config)))
