"""Released models of every privacy mode, trained fast and by the hospitals' own code.

Masks cancel exactly, so rounds without them give the model that a federation of processes
releases; training, clipping, noise and server step are production's. So is the coding of
updates (7.2), except that mode patient-local goes without it: its steps are about 1e-8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, assert_never

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import rounds
from common import models
from common.entropy import Entropy
from common.features import Encoded
from common.ids import ConfigHash, RoundNo, SessionId, Sha256, hospital_id
from common.layouts import round_layout
from common.secagg.dp import DpMode, DpTerms
from common.secagg.header import Header, Rounding, RoundKind
from common.secagg.keys import CoefficientSeed
from common.secagg.params import SecAggParams
from common.study import Study
from common.weights import public_weight
from coordinator.aggregate import noised_mean
from hospital_node.private.contribution import hospital_step, patient_sum
from hospital_node.private.local_steps import LocalTraining
from hospital_node.private.source import NoisedSource

Model: TypeAlias = NDArray[np.float32]


def release(study: Study, sites: Mapping[str, Encoded], entropy: Entropy) -> Model:
    """Return the model that the study's rounds over these hospitals' rows end with."""
    match study.privacy.dp.mode:
        case "none":
            return rounds.federated(study, sites)
        case "patient-distributed" | "hospital":
            return _noised(study, sites, entropy)
        case "patient-local":
            return _local(study, sites, entropy)
        case mode:
            assert_never(mode)


def _noised(study: Study, sites: Mapping[str, Encoded], entropy: Entropy) -> Model:
    plan = round_layout(study, RoundKind.TRAIN).dp
    if plan is None:
        raise ValueError("a study with differential privacy has a plan")
    terms = plan.terms(study.federation.min_sites - study.colluders(len(sites)))
    model = models.initial(study)
    patient = terms.mode is DpMode.PATIENT_DISTRIBUTED
    count = (study.privacy.dp.batch or 1) if patient else len(sites)
    step = noised_mean(terms, count, study.train.lr if patient else 1.0)
    for _ in range(study.federation.rounds):
        opened = np.zeros(model.size, np.int64)
        for site, data in sites.items():
            total = _total(study, site, data, model, terms, entropy)
            out = np.empty(total.size, np.uint64)
            NoisedSource(total, terms, CoefficientSeed(entropy.take(32))).fill(out, 0)
            opened += out.view(np.int64)
        model = (model.astype(np.float64) + step(0, opened)).astype(np.float32)
    return model


def _local(study: Study, sites: Mapping[str, Encoded], entropy: Entropy) -> Model:
    header, model = header_of(study, tuple(sites)), models.initial(study)
    weights = {site: public_weight(study, site) for site in sites}
    for _ in range(study.federation.rounds):
        step = np.zeros(model.size)
        for site, data in sites.items():
            patients = np.arange(data.rows)
            training = LocalTraining(study, site, data, patients, patients, entropy)
            seed = CoefficientSeed(entropy.take(32))
            step += weights[site] * training.update(model, header, seed)
        model = (model + step / sum(weights.values())).astype(np.float32)
    return model


def header_of(study: Study, sites: Sequence[str]) -> Header:
    """Return a training round's header over these hospitals, its hashes and nonces left empty."""
    plan = round_layout(study, RoundKind.TRAIN)
    if plan.dp is None:
        raise ValueError("a study with differential privacy has a plan")
    colluders = study.colluders(len(sites))
    params = SecAggParams.derive(len(sites), colluders, s_min=study.federation.min_sites)
    empty = bytes(32)
    return Header(
        session_id=SessionId(empty),
        r=RoundNo(1),
        kind=RoundKind.TRAIN,
        model_sha256=Sha256(empty),
        layout_sha256=plan.schema.layout_sha256,
        config_hash=ConfigHash(empty),
        members=tuple((hospital_id("attacked", site), empty) for site in sorted(sites)),
        d=plan.schema.words,
        w=plan.ring_bits,
        c=colluders,
        q=params.q,
        s_min=params.s_min,
        t_h=params.t_h,
        kappa=params.kappa,
        ranges=(),
        w_max=study.federation.max_weight,
        rounding=plan.rounding or Rounding.EVEN,
        deadline_ms=1,
        dp=plan.dp.terms(params.s_min - colluders),
    )


def _total(
    study: Study,
    site: str,
    data: Encoded,
    model: Model,
    terms: DpTerms,
    entropy: Entropy,
) -> NDArray[np.int64]:
    """Return what a hospital adds before its noise; every row is a patient."""
    if terms.mode is DpMode.HOSPITAL:
        return hospital_step(study, site, data, model, terms, entropy)
    patients = np.arange(data.rows)
    return patient_sum(study, data, patients, model, patients, terms, entropy)
