"""What the federation is compared with: each hospital alone, and all rows in one place.

Both train the study's model with its optimiser, rounds and local steps, on data that is
prepared as in the federation; a strategy of federating has no part in them. They need
several hospitals' rows at once, so they exist for `demo`, `sim` and benchmarks only; a node
never calls them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from common.features import Encoded
from common.layouts import is_exact
from common.models import initial, with_own
from common.regression import fit, sums
from common.study import Study
from hospital_node.going_on import go_on
from hospital_node.train import train


def local_only(study: Study, sites: Mapping[str, Encoded]) -> dict[str, NDArray[np.float32]]:
    """Return the model each hospital gets from its own training rows alone."""
    return {site: _alone(study, site, data) for site, data in sites.items()}


def centralised(study: Study, sites: Mapping[str, Encoded]) -> NDArray[np.float32]:
    """Return the model that all training rows in one place would give."""
    rows = Encoded(
        np.concatenate([data.features for data in sites.values()]),
        np.concatenate([data.target for data in sites.values()]),
    )
    return _alone(study, "all-sites", rows)


def _alone(study: Study, site: str, data: Encoded) -> NDArray[np.float32]:
    if is_exact(study):
        return _fitted(study, data)
    model = with_own(study, initial(study))
    for _ in range(study.federation.rounds):
        model = model + train(study, data, model, site=site).delta
    return model


def _fitted(study: Study, data: Encoded) -> NDArray[np.float32]:
    """Return the exact regression over one place's rows."""
    state = fit.begin(study)
    columns, target = data.features.astype(np.float64), data.target.astype(np.float64)
    for _ in range(study.federation.rounds):
        go_on()
        found = sums.sums_of(study, columns, target, state.sent.astype(np.float64))
        state = fit.advance(study, state, found)
        if state.converged:
            break
    return state.sent
