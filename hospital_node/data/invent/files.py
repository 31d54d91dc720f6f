"""A folder of generated hospitals: what a new user, or a test, starts from.

DIR/study.yaml                 a study that runs on them
DIR/truth.json                 what made the data
DIR/<hospital>/site.yaml       its manifest
DIR/<hospital>/...             its records, in the format asked for
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from common.documents import dump_yaml
from common.errors import ConfigError
from common.text import listed, nearest, show
from hospital_node.data.invent import manifests
from hospital_node.data.invent.fhir import write_fhir
from hospital_node.data.invent.knobs import Knobs
from hospital_node.data.invent.omop import write_omop
from hospital_node.data.invent.patients import cohorts
from hospital_node.data.invent.recording import Ward, record
from hospital_node.data.invent.study import DATASET, study_file, truth_file
from hospital_node.data.invent.tables import write_csv, write_parquet

FORMATS: Final = ("csv", "parquet", "fhir", "omop")


@dataclass(frozen=True, slots=True)
class Written:
    """Where the files are."""

    study: Path
    truth: Path
    manifests: tuple[Path, ...]


def generate(folder: Path, knobs: Knobs, seed: int, form: str = "csv") -> Written:
    """Write hospitals, a study and the truth into `folder`; equal arguments give equal bytes.

    (An OMOP manifest names its database by the absolute path, which is where `folder` is.)

    Raises:
        ConfigError: BAD_ARGUMENT, no such format; OUTPUT_EXISTS, the folder holds something.
    """
    if form not in FORMATS:
        guess = nearest(form, FORMATS)
        hint = f"; did you mean '{guess}'?" if guess else f"; there are {listed(FORMATS)}"
        raise ConfigError("BAD_ARGUMENT", f"no format is called {show(form)}{hint}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("OUTPUT_EXISTS", f"{folder} already holds something")
    people = cohorts(knobs, seed)
    wards = [record(knobs, seed, place, cohort) for place, cohort in enumerate(people)]
    manifests = tuple(_write_ward(folder / ward.site, ward, form) for ward in wards)
    study, truth = folder / "study.yaml", folder / "truth.json"
    study.write_text(dump_yaml(study_file(knobs, seed)), encoding="utf-8")
    body = json.dumps(truth_file(knobs, seed, people, wards), indent=1, sort_keys=True)
    truth.write_text(body + "\n", encoding="utf-8")
    return Written(study, truth, manifests)


def _write_ward(folder: Path, ward: Ward, form: str) -> Path:
    folder.mkdir(parents=True)
    path = folder / "site.yaml"
    manifest = {"schema": "fedcare.site/v1", "id": ward.site, "data": [_table(folder, ward, form)]}
    path.write_text(dump_yaml(manifest), encoding="utf-8")
    return path


def _table(folder: Path, ward: Ward, form: str) -> dict[str, Any]:
    """Write the records and return their entry of the manifest."""
    match form:
        case "csv":
            write_csv(folder / f"{DATASET}.csv", ward)
            return manifests.of_file(ward, "csv", f"{DATASET}.csv")
        case "parquet":
            write_parquet(folder / f"{DATASET}.parquet", ward)
            return manifests.of_file(ward, "parquet", f"{DATASET}.parquet")
        case "fhir":
            write_fhir(folder / "fhir", ward)
            return manifests.of_fhir(ward, "fhir")
        case _:
            write_omop(folder / "omop.sqlite", ward)
            return manifests.of_omop(ward, folder.absolute() / "omop.sqlite")
