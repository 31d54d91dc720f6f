"""What the released model is worth, beside each hospital alone and all rows in one place.

Every figure here is exact and over test rows only. They need several hospitals' rows at
once, which is why this exists for `demo` and `sim` alone, where one person owns all the
data: in a real federation pooled figures come from masked sums, and a hospital's own
stay with it.

Three models are compared, all on rows prepared with the federation's constants:

* `federated`: the released one;
* `local_only`: what each hospital gets from its own training rows, tested at home
  (`by_site`) and on all hospitals' test rows (`elsewhere`); its `pooled` figures are the
  mean of the latter: what one hospital's model is worth for everybody's patients.
  `at_home` pools the rows with each scored by its own hospital's model;
* `centralised`: what all training rows in one place would give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.features import Encoded
from common.preprocessing import Preprocessing
from common.study import Study
from hospital_node.data.load import SiteData

if TYPE_CHECKING:
    from common.multiclass import ByLevel
    from researcher.personal import PersonalFigures

Figures: TypeAlias = dict[str, float | None]
"""Metrics by name as `common.evaluation.Metrics.as_dict` gives them."""

Weights: TypeAlias = NDArray[np.float32]


_COUNTS: Final = ("rows", "positives", "events")


@dataclass(frozen=True, slots=True)
class Scored:
    """Predictions and true values of test rows, [rows] each (predictions may have levels)."""

    predictions: NDArray[np.float64]
    target: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Assessment:
    """One way of training: figures over all rows, per hospital, and their plain mean."""

    pooled: Figures
    by_site: dict[str, Figures]

    @property
    def mean_of_sites(self) -> Figures:
        """Each figure's mean over the hospitals that have it."""
        means = _means(self.by_site)
        return {name: value for name, value in means.items() if name not in _COUNTS}

    def data(self) -> dict[str, object]:
        """Return the form for envelopes and files."""
        return {
            "pooled": self.pooled,
            "by_site": self.by_site,
            "mean_of_sites": self.mean_of_sites,
        }


@dataclass(frozen=True, slots=True)
class SubgroupFigures:
    """The federated model in one cell of a subgroup; None where few are in it."""

    feature: str
    label: str
    figures: Figures | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All three, with the federated model's scores for plots."""

    federated: Assessment
    local_only: Assessment
    at_home: Figures
    elsewhere: dict[str, Figures]
    centralised: Assessment
    scores: Mapping[str, Scored]
    subgroups: tuple[SubgroupFigures, ...] = ()
    personal: PersonalFigures | None = None
    by_level: ByLevel | None = None

    def metrics(self) -> dict[str, object]:
        """Return `metrics` of the envelope."""
        groups = [
            {"feature": one.feature, "label": one.label, "figures": one.figures}
            for one in self.subgroups
        ]
        from common.evaluation_document import levels_data

        levels = {} if self.by_level is None else levels_data(self.by_level)
        return {**self.federated.data(), "subgroups": groups, **levels}

    def baselines(self) -> dict[str, object]:
        """Return `baselines` of the envelope."""
        return {
            "local_only": {
                **self.local_only.data(),
                "elsewhere": self.elsewhere,
                "at_home": self.at_home,
            },
            "centralised": self.centralised.data(),
        }


def _means(figures: Mapping[str, Figures]) -> Figures:
    """Return each figure's mean over those that have it."""
    names = next(iter(figures.values()), {})
    return {name: _mean(entry.get(name) for entry in figures.values()) for name in names}


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return float(sum(found) / len(found)) if found else None


def compare(
    study: Study, preprocessing: Preprocessing, weights: Weights, sites: Mapping[str, SiteData]
) -> Comparison:
    """Train both baselines and assess all three on the hospitals' test rows. Blocking.

    Raises:
        DataError, Refusal, StateError: the model or the rows do not fit the study.
    """
    from hospital_node.baselines import centralised, local_only

    train = {site: preprocessing.encode(study, data.train) for site, data in sites.items()}
    test = {site: preprocessing.encode(study, data.test) for site, data in sites.items()}
    alone = local_only(study, train)
    together = centralised(study, train)
    scores = _score_together(study, test, weights, train)

    def everywhere(model: Weights) -> dict[str, Scored]:
        return _score_together(study, test, model, train)

    home = assess(study, score(study, test, lambda site: alone[site], train))
    # Pooled figures only: n models at each of n hospitals would be most of a large simulation.
    elsewhere = {site: _pooled(study, everywhere(model)) for site, model in alone.items()}
    return Comparison(
        federated=assess(study, scores),
        local_only=Assessment(_means(elsewhere), home.by_site),
        at_home=home.pooled,
        elsewhere=elsewhere,
        centralised=assess(study, everywhere(together)),
        scores=scores,
        subgroups=subgroup_figures(study, scores, sites),
        by_level=_by_level(study, scores),
    )


def _by_level(study: Study, scores: Mapping[str, Scored]) -> ByLevel | None:
    from common.multiclass import exact

    rows = _together(scores)
    return exact(study, rows.predictions, rows.target)


def subgroup_figures(
    study: Study, scores: Mapping[str, Scored], sites: Mapping[str, SiteData]
) -> tuple[SubgroupFigures, ...]:
    """Return exact figures in each subgroup, of those that a federation would publish."""
    from common.evaluation import site_metrics
    from common.evaluation_document import shown_groups
    from common.subgroups import cells, members

    inside = np.concatenate([members(study, sites[site].test.values) for site in scores], axis=1)
    rows = _together(scores)
    groups = [site_metrics(study, rows.predictions[cell], rows.target[cell]) for cell in inside]
    everybody = site_metrics(study, rows.predictions, rows.target)
    shown = shown_groups(study, everybody, groups)
    return tuple(
        SubgroupFigures(cell.feature, cell.label, None if one is None else one.as_dict(study))
        for cell, one in zip(cells(study), shown, strict=True)
    )


def _together(scores: Mapping[str, Scored]) -> Scored:
    return Scored(
        np.concatenate([rows.predictions for rows in scores.values()]),
        np.concatenate([rows.target for rows in scores.values()]),
    )


def score(
    study: Study,
    test: Mapping[str, Encoded],
    model: Callable[[str], Weights],
    train: Mapping[str, Encoded],
) -> dict[str, Scored]:
    """Return each hospital's test rows scored by the model chosen for it.

    `train`: the hospitals' training rows, for the baseline of survival predictions.
    """
    from hospital_node.evaluate import judged

    return {
        site: Scored(
            judged(study, model(site), rows, train[site]),
            rows.target.astype(np.float64),
        )
        for site, rows in test.items()
    }


def _score_together(
    study: Study, test: Mapping[str, Encoded], model: Weights, train: Mapping[str, Encoded]
) -> dict[str, Scored]:
    """Return the same for one model, in one pass over all rows: n models see n hospitals."""
    from hospital_node.evaluate import at_horizons, finite, predict

    rows = np.concatenate([encoded.features for encoded in test.values()])
    ends = np.cumsum([encoded.rows for encoded in test.values()])[:-1]
    parts = np.split(finite(predict(study, model, rows)), ends)
    return {
        site: Scored(
            at_horizons(study, model, part, train[site]), encoded.target.astype(np.float64)
        )
        for (site, encoded), part in zip(test.items(), parts, strict=True)
    }


def assess(study: Study, scores: Mapping[str, Scored]) -> Assessment:
    """Return exact figures over all rows and per hospital."""
    by_site = {site: _figures(study, rows) for site, rows in scores.items()}
    return Assessment(_pooled(study, scores), by_site)


def _pooled(study: Study, scores: Mapping[str, Scored]) -> Figures:
    """Return exact figures over all rows."""
    from common.evaluation import of_hospitals

    if study.target.type == "survival":  # patients are compared within hospitals
        strata = [(rows.predictions, rows.target) for rows in scores.values()]
        return of_hospitals(study, strata).as_dict(study)
    return _figures(study, _together(scores))


def _figures(study: Study, rows: Scored) -> Figures:
    from common.evaluation import site_metrics

    return site_metrics(study, rows.predictions, rows.target).as_dict(study)
