"""`fedcare bench ...`: see `researcher.bench`."""

from __future__ import annotations

from typing import Annotated

import typer

from common.commands import JsonFlag, Outcome, command, group

app = group("Measure rounds on this machine.")


@app.command("round")
@command
def round_(
    *,
    sites: Annotated[int, typer.Option("--sites", metavar="N", help="Hospitals.")],
    params: Annotated[int, typer.Option("--params", metavar="D", help="Numbers in the model.")],
    rounds: Annotated[int, typer.Option("--rounds", metavar="R", help="Rounds to measure.")],
    dropouts: Annotated[
        int, typer.Option("--dropouts", metavar="K", help="Hospitals that leave every round.")
    ] = 0,
    dp: Annotated[
        str,
        typer.Option("--dp", metavar="MODE", help="none, hospital, patient-distributed or -local."),
    ] = "none",
    as_json: JsonFlag = False,
) -> Outcome:
    """Run a federation of real processes and measure its rounds, memory and traffic."""
    del as_json
    from researcher.bench import BenchPlan, run_bench, table_text
    from researcher.progress import display

    plan = BenchPlan(sites, params, rounds, dropouts, dp)
    plan.check()
    with display(f"{sites} hospitals, {params:,} parameters, {rounds} rounds") as screen:
        data = run_bench(plan, screen)
    return Outcome(data, table_text([data]))
