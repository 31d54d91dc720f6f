"""A study over seeds, as figures with their standard error: what every entry is made of."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from common.site import Site, load_site
from common.study import Study
from common.views import RunView
from researcher.comparison import Assessment, Comparison
from researcher.local import site_file, write
from researcher.sim import simulate
from researcher.studies import with_seed

ROOT: Final = Path(__file__).resolve().parents[2]
BUILD: Final = ROOT / "build" / "accuracy"
STUDIES: Final = Path(__file__).resolve().parent / "studies"

ACCURACY: Final = "mean-of-sites accuracy"
AUROC: Final = "pooled AUROC"
BRIER: Final = "pooled Brier score"
WORST: Final = "worst site's AUROC"

C_INDEX: Final = "mean-of-sites C-index"
POOLED_C: Final = "pooled C-index"
WORST_C: Final = "worst site's C-index"

Figures = dict[str, float]
"""One run's figures by name."""


@dataclass(frozen=True, slots=True)
class Must:
    """A value that a figure has to reach; of a Brier score or a loss, to stay below."""

    way: str
    figure: str
    value: float
    at_most: bool = False

    def met(self, mean: float) -> bool:
        """Return whether the mean reaches it."""
        return mean <= self.value if self.at_most else mean >= self.value


@dataclass(frozen=True, slots=True)
class Result:
    """One way of training, over seeds: each figure's value in every run, in order."""

    way: str
    figures: Mapping[str, tuple[float, ...]]

    def mean(self, figure: str) -> float:
        """Return a figure's mean over the runs."""
        return statistics.fmean(self.figures[figure])

    def error(self, figure: str) -> float:
        """Return the mean's standard error; 0 where there is one run."""
        values = self.figures[figure]
        return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Entry:
    """What one command found: its results in the order to show them, and what they must reach."""

    name: str
    title: str
    command: str
    text: str
    results: tuple[Result, ...]
    musts: tuple[Must, ...]
    seconds: float
    picture: str = ""
    """An SVG of its own, if it has one."""

    def result(self, way: str) -> Result:
        """Return the result of one way of training."""
        return next(result for result in self.results if result.way == way)

    def save(self, folder: Path = BUILD) -> Path:
        """Write the entry and return the file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n", "utf-8")
        return path

    @staticmethod
    def load(name: str, folder: Path = BUILD) -> Entry:
        """Return an entry as it was measured last.

        Raises:
            OSError: it was not.
        """
        data: dict[str, Any] = json.loads((folder / f"{name}.json").read_text("utf-8"))
        results = tuple(
            Result(one["way"], {key: tuple(values) for key, values in one["figures"].items()})
            for one in data.pop("results")
        )
        musts = tuple(Must(**one) for one in data.pop("musts"))
        return Entry(**data, results=results, musts=musts)


def manifests(files: Mapping[str, Path], dataset: str) -> list[Site]:
    """Write a manifest beside each hospital's table, and return them."""
    found = []
    for name, file in files.items():
        path = file.with_suffix(".yaml")
        write(path, site_file(name, dataset, file.name))
        found.append(load_site(path))
    return found


class Silent:
    """Shows nothing; see `researcher.progress.Display`."""

    def step(self, text: str) -> None:
        """See `Display`."""

    def show(self, view: RunView) -> None:
        """See `Display`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def run(study: Study, sites: Sequence[Site]) -> Comparison:
    """Simulate a study once, with a line on stderr."""
    began = time.monotonic()
    found = simulate(study, sites, Silent(), began).comparison
    shown = " ".join(f"{name} {value:.4f}" for name, value in of(found.federated).items())
    print(  # noqa: T201 - progress of a command
        f"{study.id}, seed {study.seed}: {shown}, {time.monotonic() - began:.0f} s",
        file=sys.stderr,
    )
    return found


def over_seeds(study: Study, sites: Sequence[Site], seeds: Iterable[int]) -> tuple[Result, ...]:
    """Return the federated model, each hospital alone, and all rows in one place."""
    runs = [run(with_seed(study, seed), sites) for seed in seeds]
    return (
        gather("federated", (of(one.federated) for one in runs)),
        gather("each hospital alone", (_alone(one) for one in runs)),
        gather("all rows in one place", (of(one.centralised) for one in runs)),
    )


def gather(way: str, runs: Iterable[Figures]) -> Result:
    """Return the runs' figures side by side."""
    listed = list(runs)
    return Result(way, {name: tuple(one[name] for one in listed) for name in listed[0]})


def of(assessment: Assessment) -> Figures:
    """Return the four figures of a binary outcome, or three of a survival one.

    A site of one class has no AUROC, and one without a comparable pair no C-index.
    """
    return _figures(assessment.pooled, assessment.by_site)


def _alone(found: Comparison) -> Figures:
    """Return the figures of every hospital's own model on its own test rows."""
    return _figures(found.at_home, found.local_only.by_site)


def _figures(
    pooled: Mapping[str, float | None], by_site: Mapping[str, Mapping[str, float | None]]
) -> Figures:
    if "c_index" in pooled:
        found = [site["c_index"] for site in by_site.values()]
        values = [one for one in found if one is not None]
        means = {C_INDEX: statistics.fmean(values), POOLED_C: _known(pooled["c_index"])}
        return {**means, WORST_C: min(values)}
    aurocs = [site["auroc"] for site in by_site.values()]
    accuracies = [site["accuracy"] for site in by_site.values()]
    return {
        ACCURACY: statistics.fmean(one for one in accuracies if one is not None),
        AUROC: _known(pooled["auroc"]),
        BRIER: _known(pooled["brier"]),
        WORST: min(one for one in aurocs if one is not None),
    }


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("the test rows of all hospitals give no such figure")
    return value
