"""`fedcare study ...`: what a researcher does with a study file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from common.commands import JsonFlag, Outcome, command, group
from common.errors import ExitCode
from researcher.connection import (
    Connection,
    CoordinatorOption,
    ProxyOption,
    SeedOption,
    TlsOption,
)

app = group("Check, plan, submit and list studies.")


def _duration(text: str) -> float:
    from common.config import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", show_default=False)]


@app.command()
@command
def lint(file: StudyFile, *, as_json: JsonFlag = False) -> Outcome:
    """Check a study; print it with every default filled in, its hash and what to mind."""
    del as_json
    from common.study import completed, completed_yaml, config_hash, load_study, warnings

    study = load_study(file)
    digest, notes = config_hash(study).hex(), warnings(study)
    data = {
        "id": study.id,
        "kind": study.kind,
        "hash": f"sha256:{digest}",
        "study": completed(study),
        "warnings": list(notes),
    }
    lines = [completed_yaml(study).rstrip(), "", f"hash: sha256:{digest}"]
    lines += [f"warning: {note}" for note in notes]
    return Outcome(data, "\n".join(lines))


@app.command()
@command
def plan(
    file: StudyFile,
    *,
    policy: Annotated[
        list[Path] | None,
        typer.Option("--policy", metavar="POLICY.yaml", help="A hospital's policy; nothing spent."),
    ] = None,
    node: Annotated[
        list[Path] | None,
        typer.Option("--node", metavar="NODE.yaml", help="A hospital's policy and ledger."),
    ] = None,
    sites: Annotated[
        int | None, typer.Option("--sites", metavar="N", min=2, help="Hospitals that take part.")
    ] = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """Say what a study costs and promises before it runs, and which hospitals would refuse."""
    del as_json
    from common.study import load_study
    from researcher.plan import make_plan, plan_data, plan_text

    made = make_plan(load_study(file), policies=policy or (), nodes=node or (), sites=sites)
    code = ExitCode.OK if made.accepted else ExitCode.REFUSED
    return Outcome(plan_data(made), plan_text(made), code)


@app.command()
@command
def submit(
    file: StudyFile,
    *,
    coordinator: CoordinatorOption,
    tls: TlsOption,
    proxy: ProxyOption = None,
    seed: SeedOption = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """Check a study, sign it as its owner and submit it; every hospital then decides."""
    del as_json
    from common.study import canonical_json, load_study
    from researcher.studies import with_seed

    study = with_seed(load_study(file), seed)
    content, connection = canonical_json(study), Connection(coordinator, tls, proxy)
    connection.require_owner(study.owner.organisation)
    submitted = connection.ask(lambda client: client.submit(content))
    data = {
        "study_id": submitted.study_id,
        "run_id": submitted.run_id,
        "hash": f"sha256:{submitted.config_hash.hex()}",
    }
    watch = ["fedcare", "run", "watch", submitted.run_id, *connection.options()]
    text = (
        f"submitted study {submitted.study_id}, hash {data['hash']}\n"
        f"run {submitted.run_id}: follow it with\n  {shlex.join(watch)}"
    )
    return Outcome(data, text)


@app.command()
@command
def run(
    study: Annotated[
        str,
        typer.Argument(
            metavar="STUDY", show_default=False, help="A study's file, or a shipped one's name."
        ),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The model goes into DIR/RUN.")],
    coordinator: CoordinatorOption,
    tls: TlsOption,
    proxy: ProxyOption = None,
    seed: SeedOption = None,
    wait: Annotated[
        float,
        typer.Option(
            "--wait",
            metavar="DURATION",
            parser=_duration,
            help="How long to wait for a coordinator that does not answer, such as 5m.",
        ),
    ] = "5m",  # type: ignore[assignment] # the parser's input
    as_json: JsonFlag = False,
) -> Outcome:
    """Run a study to its end and fetch the verified model; goes on where it was."""
    del as_json
    from common.clock import SystemClock
    from researcher.progress import display
    from researcher.studies import named, with_seed
    from researcher.study_run import Errand, Patience, ran_data, ran_text

    wanted = with_seed(named(study), seed)
    connection = Connection(coordinator, tls, proxy)
    connection.require_owner(wanted.owner.organisation)
    errand = Errand(wanted, out, tls / "ca.crt")
    with display(f"study {wanted.id}") as screen:
        patience = Patience(wait, SystemClock(), screen)
        ran = connection.ask(lambda client: errand.run(client, patience))
    return Outcome(ran_data(ran), ran_text(ran))


@app.command("list")
@command
def list_(
    *,
    coordinator: CoordinatorOption,
    tls: TlsOption,
    proxy: ProxyOption = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """List the studies that were submitted, with their runs."""
    del as_json
    from researcher.show import studies_text, study_data

    views = Connection(coordinator, tls, proxy).ask(lambda client: client.studies())
    return Outcome({"studies": [study_data(view) for view in views]}, studies_text(views))


@app.command()
@command
def show(
    study: Annotated[str, typer.Argument(metavar="STUDY", show_default=False)],
    *,
    coordinator: CoordinatorOption,
    tls: TlsOption,
    proxy: ProxyOption = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """Show a submitted study as hospitals see it, with its runs."""
    del as_json
    from common.study import completed, completed_yaml, study_from_canonical
    from researcher.show import study_data, study_text

    view, content = Connection(coordinator, tls, proxy).ask(lambda client: client.study(study))
    found = study_from_canonical(content, view.study_id)
    data = {**study_data(view), "study": completed(found)}
    return Outcome(data, f"{study_text(view)}\n\n{completed_yaml(found).rstrip()}")
