"""Released models of every privacy mode, trained fast and by the hospitals' own code.

Masks cancel exactly, so rounds without them give the very model that a federation of
processes releases; training, clipping, noise, quantiser and server step are production's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks import accuracy
from common import models
from common.entropy import Entropy
from common.errors import ConfigError
from common.features import Encoded
from common.layouts import round_layout
from common.secagg.dp import DpMode, DpTerms
from common.secagg.header import RoundKind
from common.secagg.keys import CoefficientSeed
from common.study import Study
from coordinator.aggregate import noised_mean
from hospital_node.private.contribution import NoisedSource, hospital_step, patient_sum

Model: TypeAlias = NDArray[np.float32]


def release(study: Study, sites: Mapping[str, Encoded], entropy: Entropy) -> Model:
    """Return the model that the study's rounds over these hospitals' rows end with.

    Raises:
        ConfigError: NOT_SUPPORTED, the study's mode has no attack here.
    """
    match study.privacy.dp.mode:
        case "none":
            return accuracy.federated(study, sites)
        case "patient-distributed" | "hospital":
            return _noised(study, sites, entropy)
        case mode:
            raise ConfigError("NOT_SUPPORTED", f"dp mode {mode} is not attacked yet")


def _noised(study: Study, sites: Mapping[str, Encoded], entropy: Entropy) -> Model:
    plan = round_layout(study, RoundKind.TRAIN).dp
    if plan is None:
        raise ValueError("a study with differential privacy has a plan")
    terms = plan.terms(study.federation.min_sites - study.colluders(len(sites)))
    model = models.initial(study)
    patient = terms.mode is DpMode.PATIENT_DISTRIBUTED
    count = (study.privacy.dp.batch or 1) if patient else len(sites)
    step = noised_mean(terms, count, study.train.lr if patient else 1.0)
    for number in range(1, study.federation.rounds + 1):
        opened = np.zeros(model.size, np.int64)
        for site, data in sites.items():
            total = _total(study, site, data, model, number, terms, entropy)
            out = np.empty(total.size, np.uint64)
            NoisedSource(total, terms, CoefficientSeed(entropy.take(32))).fill(out, 0)
            opened += out.view(np.int64)
        model = (model.astype(np.float64) + step(0, opened)).astype(np.float32)
    return model


def _total(
    study: Study,
    site: str,
    data: Encoded,
    model: Model,
    number: int,
    terms: DpTerms,
    entropy: Entropy,
) -> NDArray[np.int64]:
    """Return what a hospital adds before its noise; every row is a patient."""
    if terms.mode is DpMode.HOSPITAL:
        return hospital_step(study, site, data, model, number, terms, entropy)
    patients = np.arange(data.rows)
    return patient_sum(study, data, patients, model, patients, terms, entropy)
