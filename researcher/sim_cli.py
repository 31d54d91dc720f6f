"""`fedcare sim`: see `researcher.sim`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.commands import JsonFlag, Outcome, command, single
from researcher.connection import SeedOption

if TYPE_CHECKING:
    from common.site import Site
    from common.study import Study
    from researcher.comparison import Comparison
    from researcher.engines import Engine
    from researcher.sim import SimResult


OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="A new folder for the result as a page."),
]


@command
def sim(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", show_default=False)],
    *,
    site: Annotated[
        list[Path], typer.Option("--site", metavar="SITE.yaml", help="One manifest per hospital.")
    ],
    seed: SeedOption = None,
    leave_one_out: Annotated[
        bool,
        typer.Option(
            "--leave-one-out", help="Also run without each hospital, and test on the one left out."
        ),
    ] = False,
    out: OutOption = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="local|ray",
            help="Where the hospitals run: in this process, or over Ray (its own extra).",
        ),
    ] = "local",
    as_json: JsonFlag = False,
) -> Outcome:
    """Run a study over several site manifests in one process, with the same round code."""
    del as_json
    began = time.monotonic()
    from common.site import load_site
    from common.study import load_study
    from researcher.progress import display
    from researcher.release import require_empty
    from researcher.studies import with_seed

    chosen = with_seed(load_study(study), seed)
    sites = [load_site(path) for path in site]
    from researcher.engines import engine_of

    where = engine_of(engine)
    if chosen.kind == "statistics":
        return _counted(chosen, sites, out, began, where)
    if out is not None:
        require_empty(out)  # before minutes of work
    from researcher.sim import simulate

    with display(f"simulation of {chosen.id}") as screen:
        result = simulate(chosen, sites, screen, began, where, leave_out=leave_one_out)
    text = _text(chosen, result)
    if out is not None:
        from researcher.result_page import Result, write_page

        page = Result(result.evaluation, result.regression, result.comparison)
        text += f"\n\n{write_page(chosen, page, out)} holds the page"
    return Outcome(result.data, text)


def _counted(
    study: Study, sites: list[Site], out: Path | None, began: float, where: Engine
) -> Outcome:
    from researcher import table_one
    from researcher.progress import display
    from researcher.sim import simulate_statistics

    with display(f"simulation of {study.id}") as screen:
        result = simulate_statistics(study, sites, screen, began, where)
    text = table_one.text(result.found)
    if out is not None:
        from researcher.statistics_page import write_all

        text += f"\n\n{write_all(study, result.found, out)} holds the page and the tables"
    text += f"\n\nstatistics sha256 {result.data['statistics_sha256']}"
    return Outcome(result.data, f"{text}, {result.data['seconds']:.1f} s")


def _text(study: Study, result: SimResult) -> str:
    from common.evaluation import headline
    from common.study import warnings
    from common.tables import table
    from researcher.coefficients import coefficients_text
    from researcher.report import NOTE, comparison_rows

    head = ("hospital", "test rows", "federated", "local only", "centralised")
    parts: list[str] = []
    for name in headline(study):
        rows = comparison_rows(result.comparison, name)
        parts += ["", name, table(head, rows, right=frozenset({1, 2, 3, 4}))]
    parts += [NOTE, "", *_left_out(study, result)]
    parts += own_models(result.comparison)
    parts += by_level(result.comparison)
    if result.regression is not None:
        parts += [coefficients_text(result.regression), ""]
    parts += _promise(result)
    parts += [f"warning: {note}" for note in warnings(study)]
    parts += [f"model sha256 {result.data['model_sha256']}, {result.data['seconds']:.1f} s"]
    return "\n".join(parts)


def _left_out(study: Study, result: SimResult) -> list[str]:
    """Return the table of hospitals left out, by the target's first figure."""
    from common.evaluation import headline
    from common.tables import table
    from researcher.figures import with_interval

    if not result.left_out:
        return []
    name = headline(study)[0]
    head = ("left out", "test rows", "federated without", "with it", "its own", "centralised")
    rows = [
        (
            one.site,
            f"{one.figures.get('rows') or 0:.0f}",
            *(with_interval(kind, name) for kind in one.columns),
        )
        for one in result.left_out
    ]
    return [name, table(head, rows, right=frozenset({1})), ""]


def by_level(comparison: Comparison) -> list[str]:
    """Return the federated model's figures of each level of a multiclass target."""
    from common.evaluation_document import levels_data
    from common.tables import table
    from researcher.evaluation_file import confusion_grid, levels_grid

    if comparison.by_level is None:
        return []
    found = levels_data(comparison.by_level)
    right = frozenset(range(1, len(comparison.by_level.levels) + 1))
    return [
        "federated model, each level against the rest, all test patients",
        table(*levels_grid(found)),
        "",
        table(*confusion_grid(found), right=right),
        "",
    ]


def own_models(comparison: Comparison) -> list[str]:
    """Return the table of the hospitals' own models; nothing where there are none."""
    from common.tables import table
    from researcher.personal import rows

    if comparison.personal is None:
        return []
    parts = ["each hospital's own model, chosen there, over its own test rows"]
    head = ("hospital", "chosen", "own model", "federated", "local only")
    for name in ("auroc", "c_index", "accuracy", "log_loss", "r2"):
        found = rows(comparison, name)
        if any(cell != "-" for row in found for cell in row[2:]):
            parts += ["", name, table(head, found, right=frozenset({2, 3, 4}))]
    return [*parts, ""]


def _promise(result: SimResult) -> list[str]:
    """Say what the run cost a patient, or that nothing was promised."""
    dp = result.data["dp"]
    if not isinstance(dp, dict) or dp["epsilon"] is None:
        return ["no differential privacy: the model may tell something about single patients"]
    spent = f"epsilon {dp['epsilon']:.4f} charged of {dp['stated_epsilon']:g} stated"
    return [f"privacy {dp['mode']}: {spent}, at delta {dp['delta']:g}"]


app = single(sim, "Run a study over several site manifests in one process.")
