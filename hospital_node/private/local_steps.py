"""Noised gradient steps inside one hospital: mode patient-local (docs/protocol.md, 9.6).

    x_k = x_(k-1) + lr ( ((g_k + eta_k) / s) / m_i - weight_decay x_(k-1) )     k = 1 .. K

`g_k` is the integer sum of the clipped contributions of the patients drawn for step k,
`eta_k` the hospital's full noise, `m_i` a public batch size. DP-SGD (Abadi et al. 2016) in
integers: nothing after `g_k + eta_k` looks at a patient, so the update may leave whatever
becomes of the masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.entropy import Entropy
from common.errors import RoundError
from common.features import Encoded
from common.privacy.noise import NoiseStream, NoiseTable
from common.secagg.header import Header
from common.secagg.keys import CoefficientSeed
from common.study import Study
from common.weights import public_batch
from hospital_node.private.contribution import patient_sum


@dataclass(frozen=True, slots=True)
class LocalTraining:
    """A hospital's rows and what a round's steps draw from.

    `patients` [rows] numbers each row's patient, `listed` are the numbers on the hospital's
    list. Who takes part, and rounding, are drawn from `entropy`; noise follows from `a_i`.
    """

    study: Study
    site: str
    data: Encoded
    patients: NDArray[np.int64]
    listed: NDArray[np.int64]
    entropy: Entropy

    def update(
        self,
        weights: NDArray[np.float32],
        header: Header,
        seed: CoefficientSeed,
        abandoned: Callable[[], bool] = lambda: False,
    ) -> NDArray[np.float32]:
        """Return trained minus received weights after the header's steps, float32 [weights].

        Raises:
            ConfigError: BAD_VALUE, the study has no public batch size for this site.
            RoundError: RUN_CANCELLED, `abandoned` said so between two steps.
        """
        terms, train = header.dp, self.study.train
        noise = NoiseStream(NoiseTable.of(terms.sigma_loc), seed)
        batch = public_batch(self.study, self.site)
        scale = terms.delta_int / terms.clip
        first = header.d - weights.size  # before them stand the constants, which stay
        local = weights.astype(np.float64)
        for step in range(terms.steps):
            if abandoned():
                raise RoundError("RUN_CANCELLED", "the round ended while training ran")
            total = self._sum(_narrow(local), header)
            noise.add_to(total, step * header.d + first)
            local += train.lr * (total / scale / batch - train.weight_decay * local)
        return _narrow(local - weights)

    def _sum(self, weights: NDArray[np.float32], header: Header) -> NDArray[np.int64]:
        return patient_sum(
            self.study, self.data, self.patients, weights, self.listed, header.dp, self.entropy
        )


def _narrow(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return float32 values; one beyond them is infinite, and refused where it is coded (7.2)."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
