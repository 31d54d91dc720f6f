"""Steps 3 to 5 of a round at the hospital: train, (clip, noise), weigh, quantise.

    source = make_contribution(study, site, data, model, round_no)
    encoder = source.encoder(layout(study), header.ranges, Coding.of_header(header))
    encoder.fill(words, word_offset)          # any chunk, in any order; then masked

The update stays float32 until a chunk of it is quantised: no second copy is made.
Clipping and noise of a DP mode belong between the two calls in `make_contribution`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common import statistics
from common.features import Encoded, Table
from common.models.vector import whole
from common.quantise import Coding, Values, VectorEncoder
from common.study import Study, VectorModel
from common.vectors import ParameterSchema
from common.weights import weight
from hospital_node.evaluate import evaluation_contribution
from hospital_node.train import train


@dataclass(frozen=True, slots=True)
class ContributionSource:
    """What one hospital adds in one round, before it is quantised.

    `values`: the tensor words, flat, float32 (training) or float64; `u`: the weight they
    are multiplied with, also the weight word; `metrics`: metric words but for `clipped`,
    which is counted when the ranges are known.
    """

    values: Values
    u: float = 1.0
    metrics: tuple[float, ...] = ()

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
        return encode((*self.metrics, float(encode((*self.metrics, 0.0)).count_clipped())))


def make_contribution(
    study: Study, site: str, data: Encoded, model: NDArray[np.float32], round_no: int
) -> ContributionSource:
    """Return the hospital's contribution to a training round.

    Raises:
        DataError: DATA_EMPTY. Refusal: INPUT_NAN. ConfigError: no weight for the site.
    """
    if isinstance(study.model, VectorModel):
        return ContributionSource(whole(site, round_no, len(model)))
    update = train(study, data, model, site=site, round_no=round_no)
    u = weight(study, site, data.rows)
    return ContributionSource(update.delta, u, (u * update.loss,))


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
) -> ContributionSource:
    """Return the hospital's contribution to an evaluate round; all zeros without test rows.

    `members` says who is in which subgroup (`common.subgroups.members`).
    """
    return ContributionSource(evaluation_contribution(study, model, data, members))
