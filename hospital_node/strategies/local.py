"""One round of local training under the study's strategy: what leaves, and what stays.

The received model, and the update in answer, are float32 in `common.models.layout`; with
SCAFFOLD the server's control variate came with it and the hospital's change goes behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.features import Encoded
from common.models import split_own, with_own
from common.study import Ditto, FedBn, FedProx, Scaffold, Study
from hospital_node.models import build
from hospital_node.personal_state import CONTROL, DITTO, FEDBN, Own
from hospital_node.strategies.personal import ditto_step
from hospital_node.strategies.prox import held_near
from hospital_node.strategies.scaffold import scaffold_round
from hospital_node.train import Update, train

_NONE = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class Received:
    """What came with the header: weights; SCAFFOLD's c and the ranges of its tensors."""

    weights: NDArray[np.float32]
    control: NDArray[np.float32] = field(default_factory=lambda: _NONE)
    limits: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class LocalRound:
    """`delta` is sent, `loss` is the received model's; `own` stays, if the round counts."""

    delta: NDArray[np.float32]
    loss: float
    own: Own = field(default_factory=dict)


def local_round(
    study: Study, data: Encoded, received: Received, kept: Own, *, site: str
) -> LocalRound:
    """Train for one round; `kept` is what earlier rounds left at this hospital.

    Raises:
        DataError: DATA_EMPTY. Refusal: INPUT_NAN.
    """
    model = received.weights

    def plain() -> Update:
        return train(study, data, model, site=site)

    match study.federation.strategy:
        case FedProx(mu=mu):
            hooks = held_near(build(study, model), mu, study.train.lr)
            update = train(study, data, model, site=site, hooks=hooks)
            return LocalRound(update.delta, update.loss)
        case Scaffold():
            controlled = scaffold_round(
                study, data, model, received.control, kept.get(CONTROL), received.limits,
                site=site,
            )  # fmt: skip
            update = controlled.update
            delta = np.concatenate([update.delta, controlled.change])
            return LocalRound(delta, update.loss, {CONTROL: controlled.control})
        case FedBn():
            return _fedbn(study, data, model, kept, site)
        case Ditto():
            update = plain()
            personal = ditto_step(study, data, model, kept.get(DITTO), site=site)
            return LocalRound(update.delta, update.loss, {DITTO: personal})
        case _:
            update = plain()
            return LocalRound(update.delta, update.loss)


def _fedbn(
    study: Study,
    data: Encoded,
    model: NDArray[np.float32],
    kept: Own,
    site: str,
) -> LocalRound:
    """Train all of the model, send all but the normalisation layers (Li et al. 2021)."""
    full = with_own(study, model, kept.get(FEDBN))
    update = train(study, data, full, site=site)
    after = split_own(study, full + update.delta)[1]
    return LocalRound(split_own(study, update.delta)[0], update.loss, {FEDBN: after})
