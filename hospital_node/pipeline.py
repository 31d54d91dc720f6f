"""Steps 3 to 5 of a round at the hospital: train, (clip, noise), weigh, quantise.

    source = make_contribution(study, site, data, received, round_no, kept)
    encoder = source.encoder(layout(study), header.ranges, Coding.of_header(header))
    encoder.fill(words, word_offset)          # any chunk, in any order; then masked

The update stays float32 until a chunk of it is quantised: no second copy is made.
What the strategy keeps at the hospital is in `source.own` and never in `source.values`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common import statistics
from common.features import Encoded, Table
from common.models.vector import whole
from common.quantise import Coding, Values, VectorEncoder
from common.regression import sums
from common.study import Study, VectorModel
from common.vectors import ParameterSchema
from common.weights import weight
from hospital_node.evaluate import evaluation_contribution
from hospital_node.exchange import TrainingTask
from hospital_node.personal_state import Own
from hospital_node.strategies import LocalRound, Received


@dataclass(frozen=True, slots=True)
class ContributionSource:
    """What one hospital adds in one round, before it is quantised.

    `values`: the tensor words, flat, float32 (training) or float64; `u`: the weight they
    are multiplied with, also the weight word; `metrics`: metric words but for `clipped`,
    which is counted when the ranges are known; `own`: what stays, if the round counts.
    """

    values: Values
    u: float = 1.0
    metrics: tuple[float, ...] = ()
    own: Own = field(default_factory=dict)

    def encoder(
        self, schema: ParameterSchema, ranges: Sequence[float], coding: Coding
    ) -> VectorEncoder:
        """Return what writes the words of v, chunk by chunk.

        Raises:
            Refusal: INPUT_NAN, a value is not finite.
        """

        def encode(metrics: tuple[float, ...]) -> VectorEncoder:
            return VectorEncoder(
                schema, self.values, ranges=ranges, coding=coding, u=self.u, metrics=metrics
            )

        if "clipped" not in schema.metrics:
            return encode(self.metrics)
        reach = schema.metrics[len(self.metrics) + 1 :]
        blank = encode((*self.metrics, 0.0, *(0.0 for _ in reach)))
        shares = blank.reach() if reach else ()
        return encode((*self.metrics, float(blank.count_clipped()), *shares))


def make_contribution(
    study: Study,
    site: str,
    data: Encoded,
    received: Received,
    round_no: int,
    kept: Own,
    training: Callable[[TrainingTask], LocalRound] = TrainingTask.train,
) -> ContributionSource:
    """Return the hospital's contribution to a training round, constants left out.

    `kept` is what earlier rounds left at this hospital (`hospital_node.personal_state`);
    `training` is done in this process unless another way is given (`hospital_node.launcher`).

    Raises:
        DataError: DATA_EMPTY. Refusal: INPUT_NAN. ConfigError: no weight for the site.
    """
    if isinstance(study.model, VectorModel):
        size = len(received.weights)
        return ContributionSource(whole(site, round_no, size, study.model.pattern))
    done = training(TrainingTask(study, data, received, kept, site))
    u = weight(study, site, data.rows)
    return ContributionSource(done.delta, u, (u * done.loss,), done.own)


def make_regression(
    study: Study,
    columns: NDArray[np.float64],
    target: NDArray[np.float64],
    theta: NDArray[np.float64],
    levels: int,
) -> ContributionSource:
    """Return the hospital's contribution to a round of exact regression; `levels` is B.

    Sums over rows, of which each counts once, so the weight word is 1 for every hospital.

    Raises:
        Refusal: INPUT_NAN, a sum is not finite or too large.
    """
    own = sums.sums_of(study, columns, target, theta)
    return ContributionSource(sums.contribution(own, levels))


def make_statistics(study: Study, site: str, table: Table, levels: int) -> ContributionSource:
    """Return the hospital's contribution to the statistics round; `levels` is B.

    The values carry their weight already, so the weight word is 1 for every hospital.

    Raises:
        DataError: DATA_EMPTY. ConfigError: no weight for the site.
    """
    u = weight(study, site, table.rows)
    return ContributionSource(statistics.contribution(study, table, u, levels))


def make_evaluation(
    study: Study,
    data: Encoded,
    model: NDArray[np.float32],
    members: NDArray[np.bool_] | None = None,
    *,
    levels: int,
    train: Encoded | None = None,
) -> ContributionSource:
    """Return the hospital's contribution to an evaluate round; all zeros without test rows.

    `members` says who is in which subgroup (`common.subgroups.members`); `levels` is
    B; `train` are the training rows, for the baseline of survival predictions.
    """
    own = evaluation_contribution(study, model, data, members, levels=levels, train=train)
    return ContributionSource(own)
