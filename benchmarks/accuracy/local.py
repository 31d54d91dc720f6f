"""How the terms of mode patient-local were chosen on four real hospitals.

    python -m benchmarks.accuracy.local --data DIR

DIR holds the four original files `processed.<hospital>.data` of the UCI Heart Disease data
set; rows and split are FLamby's. Rounds, steps, learning rate and clip are ranked by the
log-loss of a cross-validation inside the training rows (4 folds), with the hospitals' own
noised steps and without the protocol around them. There a fold's patients are three quarters,
and so are the public numbers and the noise: the same signal to noise. What the shipped study
reaches, protocol included, is `benchmarks.accuracy.private`'s to say.
"""

# ruff: noqa: T201 - a script, and its table is its output

from __future__ import annotations

import argparse
import itertools
import statistics as plain
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.rounds import Figures, Model, folds, read_tables, scores
from common import layouts, models, statistics
from common.documents import dump_yaml
from common.entropy import OsEntropy
from common.features import Encoded
from common.ids import ConfigHash, RoundNo, SessionId, Sha256, hospital_id
from common.secagg.header import Header, Rounding, RoundKind
from common.secagg.keys import CoefficientSeed
from common.secagg.params import SecAggParams
from common.study import Study, completed, load_study, parse_study
from common.weights import public_weight
from hospital_node.data.load import SiteData
from hospital_node.private.local_steps import LocalTraining

STUDY: Final = Path(__file__).resolve().parents[2] / "studies" / "heart-disease-private-local.yaml"
FOLDS: Final = 4
KEPT: Final = 1 - 1 / FOLDS
LENGTHS: Final = ((5, 1), (8, 1), (15, 1), (5, 2), (8, 2), (4, 4))
"""Rounds and local steps."""

RATES: Final = (0.3, 0.6, 1.0)
CLIPS: Final = (0.5, 1.0)


def variant(study: Study, rounds: int, steps: int, lr: float, clip: float) -> Study:
    """Return the study with other terms, its noise calibrated anew."""
    data = completed(study)
    data["federation"]["rounds"] = rounds
    data["train"] |= {"local_steps": steps, "lr": lr}
    data["privacy"]["dp"] = {
        key: value for key, value in data["privacy"]["dp"].items() if key != "noise_multiplier"
    } | {"clip": clip}
    return parse_study(dump_yaml(data))


def header_of(study: Study, sites: tuple[str, ...]) -> Header:
    """Return a round's header as far as local steps read it: the privacy terms and `d`."""
    layout = layouts.round_layout(study, RoundKind.TRAIN)
    if layout.dp is None:
        raise SystemExit("the study has no differential privacy")
    params = SecAggParams.derive(len(sites), 0, s_min=len(sites))
    terms = replace(layout.dp, z=layout.dp.z * KEPT).terms(params.s_min)
    nothing = bytes(32)
    return Header(
        SessionId(nothing), RoundNo(1), RoundKind.TRAIN, Sha256(nothing), Sha256(nothing),
        ConfigHash(nothing), tuple((hospital_id("cv", site), nothing) for site in sites),
        d=layout.schema.words, w=32, c=0, q=params.q, s_min=params.s_min, t_h=params.t_h,
        kappa=params.kappa, ranges=(), w_max=1, rounding=Rounding.EVEN, deadline_ms=1, dp=terms,
    )  # fmt: skip


def shrunk(study: Study) -> Study:
    """Return the study with the public numbers of a fold's patients."""
    weights = {site: KEPT * number for site, number in study.federation.weights.items()}
    return study.model_copy(
        update={"federation": study.federation.model_copy(update={"weights": weights})}
    )


def federated(study: Study, sites: Mapping[str, tuple[Encoded, NDArray[np.int64]]]) -> Model:
    """Return the model after the study's rounds, updates averaged by public weights."""
    header, model = header_of(study, tuple(sites)), models.initial(study).copy()
    total = sum(public_weight(study, site) for site in sites)
    for _ in range(study.federation.rounds):
        step = np.zeros(model.size)
        for site, (rows, patients) in sites.items():
            training = LocalTraining(study, site, rows, patients, np.unique(patients), OsEntropy())
            seed = CoefficientSeed.fresh(OsEntropy())
            step += public_weight(study, site) * training.update(model, header, seed)
        model = (model + step / total).astype(np.float32)
    return model


def select(study: Study, tables: Mapping[str, SiteData], repeats: int) -> None:
    """Print candidates by cross-validated log-loss; test rows are not used."""
    constants = statistics.without_statistics(study)
    cuts = [cut for repeat in range(repeats) for cut in folds(tables, FOLDS, repeat)]
    found: list[tuple[float, Figures, tuple[object, ...]]] = []
    for (rounds, steps), lr, clip in itertools.product(LENGTHS, RATES, CLIPS):
        candidate = shrunk(variant(study, rounds, steps, lr, clip))
        figures = []
        for cut in cuts:
            trains = {
                site: (constants.encode(study, data.train), data.train.patient)
                for site, data in cut.items()
            }
            held_out = {site: constants.encode(study, data.test) for site, data in cut.items()}
            figures.append(scores(candidate, federated(candidate, trains), held_out))
        mean = (
            plain.fmean(one[0] for one in figures),
            plain.fmean(one[1] for one in figures),
            plain.fmean(one[2] for one in figures),
        )
        found.append((mean[2], mean, (rounds, steps, lr, clip)))
    print("cross-validated log-loss, AUROC, accuracy; rounds, local_steps, lr, clip")
    for loss, mean, settings in sorted(found)[:12]:
        print(f"{loss:.4f} {mean[0]:.4f} {mean[1]:.4f}  {settings}")


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the UCI files")
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--repeats", type=int, default=3, help="repeats of the folds")
    given = parser.parse_args()
    study = load_study(given.study)
    select(study, read_tables(study, given.data), given.repeats)


if __name__ == "__main__":
    main()
