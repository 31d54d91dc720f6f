"""Accuracy on four real hospitals: federated against alone and against pooled data.

    python -m benchmarks.accuracy.rounds --data DIR             # the shipped study, 5 seeds
    python -m benchmarks.accuracy.rounds --data DIR --select    # how its terms were chosen

DIR holds the four original files `processed.<hospital>.data` of the UCI Heart Disease
data set. Rows and split are FLamby's (see `hospital_node.data.heart`). The rounds run in
this process without encryption, but through the same statistics, training, quantiser and
aggregation formula as in production; masks cancel exactly, so they change no figure.

`--select` never touches a test row: it ranks candidates by the pooled log-loss of a
cross-validation inside the training rows (5 folds, repeated). A proper score moves less
by chance than accuracy or AUROC, which are shown beside it.
"""

# ruff: noqa: T201 - a script, and its table is its output

from __future__ import annotations

import argparse
import itertools
import statistics as plain
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common import metrics, models, statistics
from common.evaluation import Metrics
from common.features import Encoded, Table
from common.quantise import Coding, limb_ranges
from common.secagg.header import Rounding, quant_bound
from common.study import Study, load_study
from common.vectors import ParameterSchema
from coordinator.aggregate import mean_step
from hospital_node.baselines import centralised, local_only
from hospital_node.data import heart
from hospital_node.data.load import SiteData, load
from hospital_node.evaluate import finite, predict, site_metrics
from hospital_node.pipeline import ContributionSource, make_contribution, make_statistics
from hospital_node.strategies import Received
from researcher.studies import with_seed

STUDY: Final = Path(__file__).resolve().parents[2] / "studies" / "heart-disease-flamby.yaml"
FIRST_RANGE: Final = 1.0
"""R of the first round; later ones follow the previous aggregate (section 7.2)."""

Model = NDArray[np.float32]


def read_tables(study: Study, uci: Path) -> dict[str, SiteData]:
    """Return the four hospitals' rows from the original files, with FLamby's split."""
    with tempfile.TemporaryDirectory() as folder:
        files = heart.write_sites(heart.read_uci(uci), Path(folder), with_flamby_split=True)
        return {site: load(study, file) for site, file in files.items()}


# --- rounds in one process ---------------------------------------------------------------


def open_sum(
    sources: list[ContributionSource],
    schema: ParameterSchema,
    ranges: tuple[float, ...],
    coding: Coding,
) -> NDArray[np.int64]:
    """Return the integer sum of the hospitals' vectors, as opened masks would give it."""
    total = np.zeros(schema.words, np.int64)
    for source in sources:
        words = np.empty(schema.words, np.uint64)
        source.encoder(schema, ranges, coding).fill(words, 0)
        total += words.view(np.int64)
    return total


def prepare(study: Study, tables: Mapping[str, SiteData]) -> dict[str, tuple[Encoded, Encoded]]:
    """Return each hospital's encoded train and test rows, constants from one summed round."""
    coding = Coding(quant_bound(len(tables), statistics.RING_BITS), 64, Rounding.EVEN)
    schema = statistics.layout(study)
    sources = [make_statistics(study, s, t.train, coding.bound) for s, t in tables.items()]
    opened = open_sum(sources, schema, limb_ranges(1.0, coding.bound), coding)
    constants = statistics.pooled(study, opened[: schema.parameters], coding.bound)
    return {
        site: (constants.encode(study, data.train), constants.encode(study, data.test))
        for site, data in tables.items()
    }


def federated(study: Study, sites: Mapping[str, Encoded]) -> Model:
    """Return the model after the study's rounds of section 8's weighted mean."""
    coding = Coding(quant_bound(len(sites), 32), 64, Rounding.EVEN)
    schema = models.layout(study)
    model = models.initial(study)
    scales = [FIRST_RANGE] * len(schema.tensors)
    for round_no in range(1, study.federation.rounds + 1):
        ranges = (*scales, *models.metric_ranges(coding.bound))
        sources = [
            make_contribution(study, s, d, Received(model), round_no, {}) for s, d in sites.items()
        ]
        opened = open_sum(sources, schema, ranges, coding)
        weight_sum = int(opened[schema.parameters])
        previous = model.copy()
        for place, segment in enumerate(schema.segments()):
            part = slice(segment.start, segment.stop)
            model[part] = previous[part] + mean_step(opened[part], scales[place], weight_sum)
            rms = float(np.sqrt(np.mean((model[part] - previous[part]) ** 2)))
            scales[place] = max(8.0 * rms, FIRST_RANGE)
    return model


# --- figures -------------------------------------------------------------------------------


Figures = tuple[float, float, float]
"""Pooled AUROC, mean of the hospitals' accuracies, pooled log-loss."""


def scores(study: Study, model: Model, tests: Mapping[str, Encoded]) -> Figures:
    """Return the three figures of a model over all hospitals' test rows."""
    labels = np.concatenate([data.target for data in tests.values()]).astype(np.float64)
    found = np.concatenate(
        [finite(predict(study, model, data.features)) for data in tests.values()]
    )
    each = [site_metrics(study, model, data).accuracy for data in tests.values() if data.rows]
    mean_accuracy = plain.fmean(value for value in each if value is not None)
    pooled = metrics.auroc(found, labels), metrics.log_loss(found, labels)
    return pooled[0] or 0.0, mean_accuracy, pooled[1] or 0.0


def report(study: Study, tables: Mapping[str, SiteData], seeds: int) -> None:
    """Print the table: federated, with each hospital's own scaling, centralised, alone."""
    prepared = prepare(study, tables)
    apart = {site: prepare(study, {site: data})[site] for site, data in tables.items()}
    trains = {site: pair[0] for site, pair in prepared.items()}
    tests = {site: pair[1] for site, pair in prepared.items()}
    rows: dict[str, list[Figures]] = {}
    last: dict[str, Metrics] = {}
    for seed in range(seeds):
        seeded = with_seed(study, seed)
        whole = federated(seeded, trains)
        rows.setdefault("federated", []).append(scores(seeded, whole, tests))
        own = federated(seeded, {site: pair[0] for site, pair in apart.items()})
        rows.setdefault("scaled apart", []).append(
            scores(seeded, own, {site: pair[1] for site, pair in apart.items()})
        )
        rows.setdefault("centralised", []).append(
            scores(seeded, centralised(seeded, trains), tests)
        )
        for site, model in local_only(seeded, trains).items():
            rows.setdefault(f"{site} alone", []).append(scores(seeded, model, tests))
        last = {site: site_metrics(seeded, whole, data) for site, data in tests.items()}
    print(f"study {study.id}, {study.federation.rounds} rounds, mean of {seeds} seeds (min to max)")
    print(f"{'':18} pooled AUROC               mean-of-sites accuracy")
    for name, found in rows.items():
        print(f"{name:18} " + "   ".join(spread([pair[k] for pair in found]) for k in (0, 1)))
    print("federated model at each hospital (last seed):")
    for site, figures in last.items():
        print(f"  {site:12} {figures.as_dict(study)}")


def spread(values: list[float]) -> str:
    """Return mean and range for people."""
    return f"{plain.fmean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


# --- choosing the terms by cross-validation ------------------------------------------------


def folds(tables: Mapping[str, SiteData], count: int, seed: int) -> Iterator[dict[str, SiteData]]:
    """Yield training tables cut into train and held-out rows, stratified per hospital."""
    marks = {site: _fold_marks(data.train, count, seed) for site, data in tables.items()}
    for fold in range(count):
        yield {
            site: SiteData(
                data.train.take(np.flatnonzero(marks[site] != fold)),
                data.train.take(np.flatnonzero(marks[site] == fold)),
                data.validation,
            )
            for site, data in tables.items()
        }


def _fold_marks(table: Table, count: int, seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    marks = np.zeros(table.rows, np.int64)
    for label in np.unique(table.target):
        members = rng.permutation(np.flatnonzero(table.target == label))
        marks[members] = np.arange(len(members)) % count
    return marks


def select(study: Study, tables: Mapping[str, SiteData], repeats: int) -> None:
    """Print candidates by cross-validated log-loss; test rows are not used."""
    grid = itertools.product((0.02, 0.05, 0.1), (16, 64), (10, 25), (0.0, 0.05))
    cuts = [cut for repeat in range(repeats) for cut in folds(tables, 5, repeat)]
    ready = [prepare(study, cut) for cut in cuts]
    found = []
    for lr, batch, steps, decay in grid:
        terms = study.train.model_copy(
            update={"lr": lr, "batch": batch, "local_steps": steps, "weight_decay": decay}
        )
        candidate = with_seed(study.model_copy(update={"train": terms}), 0)
        figures = []
        for one in ready:
            model = federated(candidate, {site: pair[0] for site, pair in one.items()})
            held_out = {site: pair[1] for site, pair in one.items()}
            figures.append(scores(candidate, model, held_out))
        means = tuple(plain.fmean(figure[k] for figure in figures) for k in range(3))
        found.append((means[2], means, (lr, batch, steps, decay)))
        print(f"lr {lr} batch {batch} steps {steps} decay {decay}", file=sys.stderr)
    print("cross-validated log-loss, AUROC, accuracy; lr, batch, local_steps, weight_decay")
    for _, means, settings in sorted(found)[:10]:
        print(f"{means[2]:.4f} {means[0]:.4f} {means[1]:.4f}  {settings}")


def main() -> None:
    """Read the command line and print one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the UCI files")
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--select", action="store_true")
    parser.add_argument("--repeats", type=int, default=4, help="repeats of the 5 folds")
    given = parser.parse_args()
    study = load_study(given.study)
    tables = read_tables(study, given.data)
    if given.select:
        select(study, tables, given.repeats)
    else:
        report(study, tables, given.seeds)


if __name__ == "__main__":
    main()
