"""`fedcare demo`: see `researcher.demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.commands import JsonFlag, Outcome, command, single
from researcher.connection import SeedOption

if TYPE_CHECKING:
    from researcher.demo import DemoResult


@command
def demo(
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="New, empty, or a previous demo's folder.")
    ],
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", metavar="N", min=1, max=100_000, help="Training rounds."),
    ] = None,
    seed: SeedOption = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """Train one model at four real hospitals, each in its own process, and report."""
    del as_json
    began = time.monotonic()
    from researcher.demo import run_demo
    from researcher.progress import display
    from researcher.studies import shipped, with_rounds, with_seed

    study = with_rounds(with_seed(shipped("heart-disease"), seed), rounds)
    with display("FedCare: four hospitals, one model") as screen:
        result = run_demo(out, study, screen, began)
    return Outcome(result.data, _text(result))


def _text(result: DemoResult) -> str:
    from common.tables import table
    from researcher.report import NOTE, comparison_rows

    head = ("hospital", "test rows", "federated", "local only", "centralised")
    right = frozenset({1, 2, 3, 4})
    parts = ["", "AUROC on test patients that no model saw"]
    parts += [table(head, comparison_rows(result.comparison), right=right)]
    parts += ["", "accuracy"]
    parts += [table(head, comparison_rows(result.comparison, "accuracy"), right=right)]
    data = result.data
    first, whole = data["seconds_to_first_round"], data["seconds"]
    parts += [
        NOTE,
        "",
        f"first round closed after {first:.1f} s, everything after {whole:.1f} s",
        f"report  {result.out / 'report.html'}",
        f"model   {result.out / 'model'}, sha256 {data['model_sha256']}",
        f"data    {result.attribution}",
    ]
    return "\n".join(parts)


app = single(demo, "Four real hospitals train one model on this machine, with mTLS and masks.")
