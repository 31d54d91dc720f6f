"""`fedcare run ...`: follow a run, look at it, end it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from common.commands import JsonFlag, Outcome, command, group
from researcher.connection import Connection, CoordinatorOption, ProxyOption, TlsOption

if TYPE_CHECKING:
    from pathlib import Path

    from common.study import Study
    from common.views import RunView
    from researcher.client import Client

app = group("Watch, show and cancel runs.")

RunArgument = Annotated[str, typer.Argument(metavar="RUN", show_default=False)]


NoWaitFlag = Annotated[
    bool,
    typer.Option(
        "--no-wait",
        help="End with exit code 6 once only people's approval at hospitals is missing.",
    ),
]


@app.command()
@command
def watch(
    run: RunArgument,
    *,
    coordinator: CoordinatorOption,
    tls: TlsOption,
    proxy: ProxyOption = None,
    no_wait: NoWaitFlag = False,
    as_json: JsonFlag = False,
) -> Outcome:
    """Follow a run until it ends; fails if the run does."""
    del as_json
    from researcher.client import require_finished
    from researcher.progress import display
    from researcher.show import run_data, run_text, waiting, waits_for_people

    with display(f"run {run}") as screen:

        async def follow(client: Client) -> RunView:
            last = None
            async for view in client.watch(run):
                screen.show(view)
                last = view
                if no_wait and waits_for_people(view):
                    break
            return _ended(last)

        view = Connection(coordinator, tls, proxy).ask(follow)
    if not view.state.final:
        return waiting(view)
    require_finished(view)
    return Outcome(run_data(view), run_text(view))


def _ended(last: RunView | None) -> RunView:
    from common.errors import InternalError

    if last is None:
        raise InternalError("a run was watched and nothing was seen")
    return last


@app.command()
@command
def show(
    run: RunArgument,
    *,
    coordinator: CoordinatorOption,
    tls: TlsOption,
    proxy: ProxyOption = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """Show a run: what each hospital does, every round so far, figures, the result's tables."""
    del as_json
    from common.study import study_from_canonical
    from researcher.show import run_data, run_text
    from researcher.traffic import communication, communication_text

    async def ask(client: Client) -> tuple[RunView, bytes]:
        view = await client.run(run)
        return view, (await client.study(view.study_id))[1]

    connection = Connection(coordinator, tls, proxy)
    view, raw = connection.ask(ask)
    study = study_from_canonical(raw)
    more, words = _tables(connection, view, study, tls / "ca.crt")
    data = {**run_data(view), "communication": communication(study), **more}
    return Outcome(data, f"{run_text(view)}\n{communication_text(study)}{words}")


def _tables(
    connection: Connection, view: RunView, study: Study, ca: Path
) -> tuple[dict[str, object], str]:
    """Return a finished run's published tables, out of its verified release: data and text."""
    from common.study import Newton
    from common.views import RunPhase
    from researcher import table_one
    from researcher.coefficients import coefficients_text, read_coefficients
    from researcher.release import read_released, read_statistics
    from researcher.show import counted

    if view.state is not RunPhase.FINISHED:
        return {}, ""
    run = view.run_id
    if counted(view):
        found = connection.ask(lambda client: read_released(client, run, ca, read_statistics))
        data = found.model_dump(mode="json", by_alias=True)
        return {"statistics": data}, f"\n\n{table_one.text(found)}"
    if not isinstance(study.federation.strategy, Newton):
        return {}, ""
    table = connection.ask(lambda client: read_released(client, run, ca, read_coefficients))
    return {"regression": table}, "" if table is None else f"\n\n{coefficients_text(table)}"


@app.command("list")
@command
def list_(
    *,
    coordinator: CoordinatorOption,
    tls: TlsOption,
    proxy: ProxyOption = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """List all runs, oldest first."""
    del as_json
    from researcher.show import progress_line, run_data

    views = Connection(coordinator, tls, proxy).ask(lambda client: client.runs())
    lines = [progress_line(view) for view in views] or ["no run yet"]
    return Outcome({"runs": [run_data(view) for view in views]}, "\n".join(lines))


@app.command()
@command
def cancel(
    run: RunArgument,
    *,
    reason: Annotated[str, typer.Option("--reason", help="One line, shown to everybody.")],
    coordinator: CoordinatorOption,
    tls: TlsOption,
    proxy: ProxyOption = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """End a run; hospitals are told why."""
    del as_json
    from common.errors import ConfigError
    from researcher.show import progress_line, run_data

    if not reason.strip() or not reason.isprintable():
        raise ConfigError("BAD_ARGUMENT", "--reason needs one line of printable text")
    view = Connection(coordinator, tls, proxy).ask(lambda client: client.cancel(run, reason))
    return Outcome(run_data(view), progress_line(view))
