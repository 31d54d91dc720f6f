"""Exact regression over hospitals against statsmodels and lifelines over all of their rows.

    python -m benchmarks.accuracy newton [--seeds 5]

Four models of the same generated hospitals: whether a patient has the outcome (logistic), days
in hospital (linear), visits (Poisson), days until death with a stratum for each hospital (Cox).
A seed draws other hospitals, for an exact fit has nothing else to draw; figures are the largest
over the seeds. Distances are |ours - theirs| / max(1, |theirs|).
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import frame
from common.features import encoded_columns
from common.site import Site, load_sites
from common.study import Study, load_study
from hospital_node.data.invent.files import generate
from hospital_node.data.invent.knobs import Knobs
from hospital_node.data.load import load_table
from researcher.sim import simulate
from researcher.studies import changed

TARGETS: Final[Mapping[str, Mapping[str, str]]] = {
    "logistic": {"type": "binary", "name": "outcome"},
    "linear": {"type": "continuous", "name": "stay"},
    "poisson": {"type": "continuous", "name": "visits"},
    "cox": {"type": "survival", "time": "days", "event": "died"},
}
"""Each model's target."""

FIGURES: Final = {
    "coefficient": "coefficients",
    "standard_error": "standard errors",
    "p_value": "p-values",
}
WORST: Final = "largest distance"
ROUNDS: Final = "rounds"
MOST_ROUNDS: Final = 12
KNOBS: Final = Knobs(sites=4, rows=200, size=0.7, covariate_shift=1.0)

Values = NDArray[np.float64]
Fitted = Mapping[str, Values]
"""Coefficients, standard errors and p-values by their names in the released table."""


def measure(given: argparse.Namespace) -> frame.Entry:
    """Fit all four models to every seed's hospitals, and again to their rows in one place."""
    began = time.monotonic()
    found: dict[str, list[frame.Figures]] = {kind: [] for kind in TARGETS}
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as name:
            written = generate(Path(name) / "data", KNOBS, seed)
            study, sites = load_study(written.study), load_sites(written.manifests)
            for kind in TARGETS:
                found[kind].append(distances(exact(study, kind), sites))
    results = tuple(frame.Result(kind, _largest(runs)) for kind, runs in found.items())
    return frame.Entry(
        "newton",
        "Exact regression against the pooled fit",
        "python -m benchmarks.accuracy newton",
        f"Generated: four hospitals of 99 to 403 patients, covariate shift 1, {given.seeds} data "
        "seeds; fourteen variables, strategy `newton` without a ridge. Figures are the largest "
        "over the seeds; a distance is |ours - theirs| / max(1, |theirs|). The pooled fits are "
        "statsmodels'; Cox regression is compared with lifelines as well, and has a stratum for "
        "each hospital. A linear model is exact after one step, so it needs no four rounds.",
        results,
        tuple(
            must
            for kind in TARGETS
            for must in (
                frame.Must(kind, WORST, 1e-6, at_most=True),
                frame.Must(kind, ROUNDS, 8, at_most=True),
            )
        ),
        time.monotonic() - began,
    )


def exact(study: Study, kind: str) -> Study:
    """Return the generated study as an exact regression of one kind."""
    return changed(
        study,
        {
            "model": {"kind": kind},
            "target": TARGETS[kind],
            "split": {"test": 0.2, "seed": 1, "stratify": False},
            "federation": {"rounds": MOST_ROUNDS, "min_sites": 3, "strategy": {"name": "newton"}},
            "evaluate": None,
            "personal": {"enabled": False},
        },
    )


def distances(study: Study, sites: Sequence[Site]) -> frame.Figures:
    """Return how far the released table is from the pooled fits, and its rounds.

    Raises:
        ValueError: the federation's fit did not converge.
    """
    table: Any = simulate(study, sites, frame.Silent(), time.monotonic()).data["regression"]
    if not table["converged"]:
        raise ValueError(f"{study.model.kind}: not converged in {table['rounds']} rounds")
    found = dict.fromkeys(FIGURES.values(), 0.0)
    for theirs in pooled(study, sites):
        for name, shown in FIGURES.items():
            ours = np.array([line[name] for line in table["coefficients"]], np.float64)
            away = np.abs(ours - theirs[name]) / np.maximum(1.0, np.abs(theirs[name]))
            found[shown] = max(found[shown], float(away.max()))
    return {**found, WORST: max(found.values()), ROUNDS: table["rounds"]}


def _largest(runs: Sequence[frame.Figures]) -> dict[str, tuple[float, ...]]:
    return {name: (max(one[name] for one in runs),) for name in runs[0]}


# --- the same rows in one place ------------------------------------------------------------------


def pooled(study: Study, sites: Sequence[Site]) -> list[Fitted]:
    """Return other libraries' fits of all training rows, in the features' own units."""
    trains = [load_table(study, site.table(study.dataset)).train for site in sites]
    raw = np.concatenate([train.values for train in trains])
    columns = np.column_stack(
        [
            raw[:, one.feature] if one.level is None else (raw[:, one.feature] == one.level) * 1.0
            for one in encoded_columns(study)
        ]
    )
    target = np.concatenate([train.target for train in trains])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        if study.model.kind != "cox":
            return [_generalised(study.model.kind, columns, target)]
        strata = np.repeat(np.arange(len(trains)), [train.rows for train in trains])
        return [_statsmodels_cox(columns, target, strata), _lifelines_cox(columns, target, strata)]


def _generalised(kind: str, columns: Values, target: Values) -> Fitted:
    import statsmodels.api as sm

    wide = np.column_stack([columns, np.ones(len(columns))])
    if kind == "linear":
        return _of(sm.OLS(target, wide).fit())
    family = sm.families.Binomial() if kind == "logistic" else sm.families.Poisson()
    return _of(sm.GLM(target, wide, family=family).fit(tol=1e-14, maxiter=100))


def _statsmodels_cox(columns: Values, target: Values, strata: NDArray[np.int64]) -> Fitted:
    import statsmodels.api as sm

    model = sm.PHReg(target[:, 0], columns, status=target[:, 1], strata=strata, ties="efron")
    return _of(model.fit(method="newton", tol=1e-14, maxiter=100, disp=False))


def _of(fitted: Any) -> Fitted:  # noqa: ANN401 - statsmodels has no types
    return {
        "coefficient": fitted.params,
        "standard_error": fitted.bse,
        "p_value": fitted.pvalues,
    }


def _lifelines_cox(columns: Values, target: Values, strata: NDArray[np.int64]) -> Fitted:
    import pandas as pd
    from lifelines import CoxPHFitter

    rows = pd.DataFrame(columns).add_prefix("x")
    rows["t"], rows["e"], rows["site"] = target[:, 0], target[:, 1], strata
    options = {"precision": 1e-13, "max_steps": 200}
    found = CoxPHFitter().fit(rows, "t", "e", strata=["site"], fit_options=options).summary
    names = {"coefficient": "coef", "standard_error": "se(coef)", "p_value": "p"}
    return {ours: found[theirs].to_numpy() for ours, theirs in names.items()}
