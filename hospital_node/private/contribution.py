"""What a hospital adds up in a round with differential privacy (docs/protocol.md, 7.3 and 9).

The sum is exact in int64 and its sensitivity to one patient (mode patient-distributed) or
to the hospital (mode hospital) is `Delta_int`. `hospital_node.private.source` adds the
noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common import noised_evaluation, noised_statistics
from common.entropy import Entropy
from common.errors import Refusal
from common.features import Encoded, Table
from common.privacy.clipping import integer_sum, secret_uniforms
from common.secagg.dp import DpTerms
from common.study import Study
from hospital_node.evaluate import predict
from hospital_node.models.perceptron import build
from hospital_node.private.gradients import patient_gradients
from hospital_node.private.sampling import poisson
from hospital_node.train import train


def patient_sum(
    study: Study,
    data: Encoded,
    patients: NDArray[np.int64],
    weights: NDArray[np.float32],
    listed: NDArray[np.int64],
    terms: DpTerms,
    entropy: Entropy,
) -> NDArray[np.int64]:
    """Return the summed steps of a random part of this hospital's patients, int64 [weights].

    `patients` [rows] numbers each row's patient; `listed` are the numbers on the hospital's
    list. Each of them takes part with probability `p`, drawn from the operating system. A
    step is the negative gradient of the patient's mean loss; one that is not finite adds
    nothing (`common.privacy.clipping`).
    """
    drawn = listed[poisson(listed.size, terms.p, entropy)]
    chosen = np.isin(patients, drawn)
    total = np.zeros(weights.size, np.int64)
    if not chosen.any():
        return total
    _, groups = np.unique(patients[chosen], return_inverse=True)
    module = build(study, weights)
    features, target = data.features[chosen], data.target[chosen]
    uniforms = secret_uniforms(entropy)
    for block in patient_gradients(study, module, features, target, groups.astype(np.int64)):
        total -= integer_sum(block, terms.clip, terms.delta_int, uniforms)
    return total


def statistics_sum(
    study: Study, table: Table, listed: NDArray[np.int64], terms: DpTerms, entropy: Entropy
) -> NDArray[np.int64]:
    """Return the summed features of the listed training patients, int64 [words] (section 9.5)."""
    rows = table.take(np.flatnonzero(np.isin(table.patient, listed)))
    _, groups = np.unique(rows.patient, return_inverse=True)
    vectors = noised_statistics.contributions(study, rows, groups.astype(np.int64))
    return integer_sum(vectors, terms.clip, terms.delta_int, secret_uniforms(entropy))


def evaluation_sum(
    study: Study,
    data: Encoded,
    patients: NDArray[np.int64],
    weights: NDArray[np.float32],
    listed: NDArray[np.int64],
    terms: DpTerms,
    entropy: Entropy,
) -> NDArray[np.int64]:
    """Return the histogram of the listed patients' scores, int64 [2 BINS] (section 9.5).

    Arguments as of `patient_sum`, rows of the test part; nobody is left out by chance.
    """
    chosen = np.isin(patients, listed)
    if not chosen.any():
        return np.zeros(noised_evaluation.layout().words, np.int64)
    _, groups = np.unique(patients[chosen], return_inverse=True)
    predictions = predict(study, weights, data.features[chosen])
    target = data.target[chosen].astype(np.float64)
    rows = noised_evaluation.contributions(predictions, target, groups.astype(np.int64))
    return integer_sum(rows, terms.clip, terms.delta_int, secret_uniforms(entropy))


def hospital_step(
    study: Study,
    site: str,
    data: Encoded,
    weights: NDArray[np.float32],
    terms: DpTerms,
    entropy: Entropy,
) -> NDArray[np.int64]:
    """Return the hospital's whole update, clipped to C, in integers, int64 [weights].

    Zeros where training leads to a value that is not finite: that a hospital leaves a round
    would be told without noise.

    Raises:
        DataError: DATA_EMPTY.
    """
    try:
        update = train(study, data, weights, site=site)
    except Refusal:  # INPUT_NAN
        return np.zeros(weights.size, np.int64)
    rows = update.delta[np.newaxis, :]
    return integer_sum(rows, terms.clip, terms.delta_int, secret_uniforms(entropy))
