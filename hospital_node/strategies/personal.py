"""Personal models: one hospital's own variant of the federated one; nothing of them is sent.

Ditto (Li et al. 2021, algorithm 1): beside its share of the federated model w, hospital k
keeps v_k and takes, in each round, local steps on

    min over v_k of  F_k(v_k) + lambda/2 ||v_k - w||^2

v_k starts as the first w that the hospital receives. With lambda large v_k is w, with
lambda near 0 it is what the hospital learns alone.

`ditto_refine` solves the same problem for a model that is finished, and `fine_tune` (only
local steps, from that model) is its case lambda 0: both work after any strategy.

    tuned = fine_tune(study, rows, weights, epochs=5)
    near = ditto_refine(study, rows, weights, epochs=5, strength=0.1)

Models are flat float32 in `common.models.layout` or, with a hospital's own tensors, in
`full_layout`; results are in `full_layout`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, Refusal
from common.features import Encoded
from common.models import full_layout
from common.study import Ditto, Study
from hospital_node.models import build, flatten
from hospital_node.strategies.prox import held_near
from hospital_node.train import PLAIN, Hooks, order_seed, take_steps


def ditto_step(
    study: Study,
    data: Encoded,
    federated: NDArray[np.float32],
    personal: NDArray[np.float32] | None,
    *,
    site: str,
) -> NDArray[np.float32]:
    """Return v_k after one round's local steps near the received w; `personal` None: the first.

    Raises:
        Refusal: INPUT_NAN.
    """
    terms = study.federation.strategy
    strength = terms.lambda_ if isinstance(terms, Ditto) else 0.0
    hooks = held_near(build(study, federated), strength, study.train.lr)
    start = federated if personal is None else personal
    module = build(study, start)
    take_steps(study, module, data, order_seed(study, site, federated), hooks)
    return _finite(flatten(module, full_layout(study)))


def fine_tune(
    study: Study, data: Encoded, model: NDArray[np.float32], epochs: int, *, site: str = ""
) -> NDArray[np.float32]:
    """Return `model` after `epochs` passes over one hospital's rows, in `full_layout`.

    `site` only seeds the order of the rows.

    Raises:
        DataError: DATA_EMPTY. Refusal: INPUT_NAN.
    """
    return _refined(study, data, model, epochs, site, PLAIN)


def ditto_refine(
    study: Study,
    data: Encoded,
    model: NDArray[np.float32],
    epochs: int,
    strength: float,
    *,
    site: str = "",
) -> NDArray[np.float32]:
    """Return Ditto's personal model for a finished `model`; `strength` is lambda.

    Raises:
        DataError: DATA_EMPTY. Refusal: INPUT_NAN.
    """
    hooks = held_near(build(study, model), strength, study.train.lr)
    return _refined(study, data, model, epochs, site, hooks)


def _refined(
    study: Study,
    data: Encoded,
    model: NDArray[np.float32],
    epochs: int,
    site: str,
    hooks: Hooks,
) -> NDArray[np.float32]:
    if data.rows == 0:
        raise DataError("DATA_EMPTY", "there is no training row to fit a personal model to")
    terms = study.train.model_copy(update={"local_steps": None, "local_epochs": epochs})
    module = build(study, model)
    take_steps(study, module, data, order_seed(study, site, model), hooks, terms)
    return _finite(flatten(module, full_layout(study)))


def _finite(model: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(model).all():
        raise Refusal("INPUT_NAN", "training a personal model gave a value that is not finite")
    return model
