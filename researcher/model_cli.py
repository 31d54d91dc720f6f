"""`fedcare model ...`: fetch a released model, verify it, read its card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.commands import JsonFlag, Outcome, command, group
from researcher.connection import Connection, CoordinatorOption, ProxyOption, TlsOption

if TYPE_CHECKING:
    from researcher.release import VerifiedModel

app = group("Pull, verify and show released models.")

ModelFolder = Annotated[Path, typer.Argument(metavar="DIR", show_default=False)]


@app.command()
@command
def pull(
    run: Annotated[str, typer.Argument(metavar="RUN", show_default=False)],
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new or empty folder.")],
    coordinator: CoordinatorOption,
    tls: TlsOption,
    proxy: ProxyOption = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """Fetch a run's model and verify it against the CA of your own folder."""
    del as_json
    from researcher.coefficients import read_coefficients
    from researcher.release import card_data, pull

    model = Connection(coordinator, tls, proxy).ask(
        lambda client: pull(client, run, out, tls / "ca.crt")
    )
    data = {**card_data(model.manifest), "folder": str(model.folder), "signer": model.signer}
    data["regression"] = read_coefficients(model.folder)
    text = f"{model.folder} holds the model of run {run}, verified; signed by {model.signer}"
    return Outcome(data, text)


@app.command()
@command
def verify(
    folder: ModelFolder,
    *,
    ca: Annotated[Path, typer.Option("--ca", metavar="CA.crt", help="The consortium's CA.")],
    as_json: JsonFlag = False,
) -> Outcome:
    """Check a model's signature, every file and its chain of rounds; needs the CA only."""
    del as_json
    from researcher.release import card_data, verify

    model = verify(folder, ca)
    data = {**card_data(model.manifest), "verified": True, "signer": model.signer}
    rounds, sites = len(model.manifest.rounds), ", ".join(model.manifest.sites)
    lines = [
        f"{folder} is genuine and complete",
        f"signed by {model.signer}",
        f"study {model.study.id}, sha256:{model.manifest.study.config_hash}",
        f"{rounds} rounds by {sites}",
        f"model sha256 {model.manifest.model_sha256}",
    ]
    return Outcome(data, "\n".join(lines))


@app.command()
@command
def tables(
    folder: ModelFolder,
    *,
    ca: Annotated[Path, typer.Option("--ca", metavar="CA.crt", help="The consortium's CA.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="A new folder: page and tables.")
    ] = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """Verify a release; show its Table 1, figures or coefficients, and write them as a page."""
    del as_json
    from researcher.release import verify

    release = verify(folder, ca)
    return _counted(release, out) if release.study.kind == "statistics" else _trained(release, out)


def _counted(release: VerifiedModel, out: Path | None) -> Outcome:
    from researcher import table_one
    from researcher.release import read_statistics

    found = read_statistics(release.folder)
    text = table_one.text(found)
    if out is not None:
        from researcher.statistics_page import write_all

        text += f"\n\n{write_all(release.study, found, out)} holds the page and the tables"
    return Outcome(found.model_dump(mode="json", by_alias=True), text)


def _trained(release: VerifiedModel, out: Path | None) -> Outcome:
    from researcher.coefficients import coefficients_text, read_coefficients
    from researcher.evaluation_file import evaluation_text, read_evaluation

    figures, regression = read_evaluation(release.folder), read_coefficients(release.folder)
    parts = ["no figures: too few test rows, or noised ones, which the card has"]
    parts = parts if figures is None else [evaluation_text(figures)]
    parts += [] if regression is None else [coefficients_text(regression)]
    if out is not None:
        from researcher.result_page import Result, write_page

        result = Result(figures, regression)
        parts.append(f"{write_page(release.study, result, out)} holds the page")
    return Outcome({"evaluation": figures, "regression": regression}, "\n\n".join(parts))


@app.command()
@command
def show(folder: ModelFolder, *, as_json: JsonFlag = False) -> Outcome:
    """Show a model's card as its manifest states it; nothing is verified."""
    del as_json
    from researcher.coefficients import coefficients_text, read_coefficients
    from researcher.release import card_data, card_text, read_card

    manifest, study = read_card(folder)
    found = read_coefficients(folder)
    parts = [card_text(manifest, study)]
    parts += [] if found is None else [coefficients_text(found)]
    parts += ["not verified here: `fedcare model verify DIR --ca CA.crt` does that"]
    data = {**card_data(manifest), "regression": found}
    return Outcome(data, "\n\n".join(parts))
