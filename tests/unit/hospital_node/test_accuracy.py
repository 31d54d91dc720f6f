"""The shipped accuracy study reaches what is asked of it on the four real hospitals."""

from __future__ import annotations

import os
import statistics as plain
from pathlib import Path

import pytest

from benchmarks.accuracy import rounds as accuracy
from common.study import load_study
from hospital_node.baselines import centralised, local_only
from hospital_node.data import heart
from hospital_node.data.load import load
from researcher.studies import with_seed

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "fed_heart_disease"
UCI = Path(os.environ.get("FEDCARE_UCI_DIR", SHARED))


@pytest.mark.skipif(
    not (UCI / "processed.va.data").is_file(),
    reason="no FEDCARE_UCI_DIR with the four processed.*.data files of archive.ics.uci.edu",
)
def test_flambys_split_in_fifteen_rounds_mean_of_five_seeds(tmp_path: Path) -> None:
    study = load_study(accuracy.STUDY)
    assert study.federation.rounds == 15
    files = heart.write_sites(heart.read_uci(UCI), tmp_path, with_flamby_split=True)
    prepared = accuracy.prepare(study, {site: load(study, file) for site, file in files.items()})
    trains = {site: pair[0] for site, pair in prepared.items()}
    tests = {site: pair[1] for site, pair in prepared.items()}
    seeded = [with_seed(study, seed) for seed in range(5)]
    found = [accuracy.scores(one, accuracy.federated(one, trains), tests) for one in seeded]
    auroc, mean_accuracy = (plain.fmean(each[k] for each in found) for k in (0, 1))
    assert auroc >= 0.878
    assert mean_accuracy >= 0.81
    pooled = [accuracy.scores(one, centralised(one, trains), tests)[0] for one in seeded]
    assert abs(auroc - plain.fmean(pooled)) <= 0.005
    alone = local_only(seeded[0], trains)
    assert all(accuracy.scores(seeded[0], model, tests)[0] < auroc for model in alone.values())
