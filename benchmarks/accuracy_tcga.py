# ruff: noqa: INP001
"""C-index of the shipped TCGA-BRCA study, and what Ditto adds over FedAvg.

    python -m benchmarks.accuracy_tcga --flamby DIR

1. FLamby's split, five seeds: C-index per region of its test rows, and the mean of regions.
   Batches hold all rows of a region and models start at zero, so no seed changes a figure.
2. Twenty random splits (the split's share of test rows, drawn inside each region): the mean
   of regions of Ditto's personal models less that of FedAvg's model, paired by split.

Local rounds are the product's (`hospital_node.strategies`); their updates are averaged
here without masks, so figures differ from a run's by rounding only.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common import models
from common.features import Encoded, Table, encoded_columns
from common.preprocessing import Preprocessing
from common.study import Ditto, Study, load_study
from common.survival_metrics import c_index, pairs
from common.weights import weight
from hospital_node.data import tcga
from hospital_node.data.load import load
from hospital_node.evaluate import predict
from hospital_node.personal_state import DITTO, Own
from hospital_node.strategies import Received, local_round

STUDY: Final = Path(__file__).resolve().parents[1] / "studies" / "tcga-brca.yaml"
LAMBDA: Final = 0.1
"""Ditto's, the schema's default."""

Model = NDArray[np.float32]
Tables = Mapping[str, tuple[Table, Table]]


def encoded(study: Study, tables: Tables) -> dict[str, tuple[Encoded, Encoded]]:
    """Return train and test rows, standardised by the constants of all training rows."""
    rows = np.concatenate([train.values for train, _ in tables.values()])
    spread = np.where(rows.std(axis=0) > 0, rows.std(axis=0), 1.0)
    centre, scale = tuple(rows.mean(axis=0).tolist()), tuple(spread.tolist())
    names = tuple(column.name for column in encoded_columns(study))
    constants = Preprocessing(names, centre, scale, (None,) * len(study.features))
    return {
        site: (constants.encode(study, train), constants.encode(study, test))
        for site, (train, test) in tables.items()
    }


def federated(study: Study, sites: Mapping[str, Encoded]) -> tuple[Model, dict[str, Own]]:
    """Return the model after the study's rounds, and what each hospital keeps."""
    model = models.initial(study)
    kept: dict[str, Own] = {site: {} for site in sites}
    shares = {site: weight(study, site, data.rows) for site, data in sites.items()}
    for round_no in range(1, study.federation.rounds + 1):
        change = np.zeros(model.size)
        for site, data in sites.items():
            done = local_round(
                study, data, Received(model), kept[site], site=site, round_no=round_no
            )
            kept[site] = done.own
            change += shares[site] / sum(shares.values()) * done.delta
        model = (model + change).astype(np.float32)
    return model, kept


def by_region(
    study: Study, rows: Mapping[str, Encoded], chosen: Mapping[str, Model]
) -> dict[str, float]:
    """Return the C-index of each region that has a comparable pair of test rows."""
    found = {}
    for site, data in rows.items():
        target = data.target.astype(np.float64)
        risk = predict(study, chosen[site], data.features)
        value, _ = c_index(pairs(target[:, 0], target[:, 1], risk).sums())
        if value is not None:
            found[site] = value
    return found


def redrawn(tables: Tables, seed: int) -> dict[str, tuple[Table, Table]]:
    """Return tables with as many test rows as before, drawn anew."""
    rng, drawn = np.random.default_rng(seed), {}
    for site, (train, test) in tables.items():
        whole = Table(
            np.concatenate([train.values, test.values]),
            np.concatenate([train.target, test.target]),
            np.concatenate([train.patient, test.patient]),
        )
        order = rng.permutation(whole.rows)
        drawn[site] = (whole.take(order[test.rows :]), whole.take(order[: test.rows]))
    return drawn


def split_gain(study: Study, ditto: Study, tables: Tables) -> float:
    """Return Ditto's mean C-index of regions less FedAvg's, on one split."""
    sites = encoded(study, tables)
    train = {site: rows for site, (rows, _) in sites.items()}
    test = {site: rows for site, (_, rows) in sites.items()}
    model, kept = federated(ditto, train)  # its federated model is FedAvg's
    own = by_region(study, test, {site: kept[site][DITTO] for site in sites})
    shared = by_region(study, test, dict.fromkeys(sites, model))
    return float(np.mean([own[site] - shared[site] for site in shared]))


def main() -> None:
    """Print both figures."""
    parser = argparse.ArgumentParser(description="C-index on TCGA-BRCA")
    parser.add_argument("--flamby", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=20)
    options = parser.parse_args()
    study = load_study(STUDY)
    with tempfile.TemporaryDirectory() as folder:
        paths = tcga.write_sites(tcga.read_flamby(options.flamby), Path(folder))
        read = {site: load(study, path) for site, path in paths.items()}
    tables = {site: (data.train, data.test) for site, data in read.items()}
    sites = encoded(study, tables)
    means = []
    for seed in range(5):
        seeded = study.model_copy(update={"seed": seed})
        model, _ = federated(seeded, {site: rows for site, (rows, _) in sites.items()})
        test = {site: rows for site, (_, rows) in sites.items()}
        found = by_region(study, test, dict.fromkeys(sites, model))
        means.append(float(np.mean(list(found.values()))))
        print(  # noqa: T201 - a command
            f"seed {seed}  mean {means[-1]:.4f}  "
            + "  ".join(f"{k} {v:.3f}" for k, v in found.items())
        )
    print(  # noqa: T201 - a command
        f"C-index, mean of regions: {np.mean(means):.4f}, sd of seeds {np.std(means, ddof=1):.4f}"
    )
    strategy = Ditto.model_validate({"name": "ditto", "lambda": LAMBDA})
    ditto = study.model_copy(
        update={"federation": study.federation.model_copy(update={"strategy": strategy})}
    )
    gains = [split_gain(study, ditto, redrawn(tables, seed)) for seed in range(options.splits)]
    error = np.std(gains, ddof=1) / len(gains) ** 0.5
    print(  # noqa: T201 - a command
        f"Ditto over FedAvg, {len(gains)} splits: {np.mean(gains):+.4f}, standard error {error:.4f}"
    )


if __name__ == "__main__":
    main()
