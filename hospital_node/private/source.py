"""A hospital's input of a round with differential privacy (docs/protocol.md, 7.3 and 9).

    v = (sum of clipped, integer contributions)  +  this hospital's share of the noise

The noise is added as the words are written, so that no second vector is held; its key
follows from the round's own seed. Nothing here needs torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.entropy import Entropy
from common.errors import InternalError
from common.models import vector
from common.privacy.clipping import integer_sum, secret_uniforms
from common.privacy.noise import NoiseStream, NoiseTable
from common.secagg.dp import DpTerms
from common.secagg.header import Header
from common.secagg.keys import CoefficientSeed
from common.secagg.ring import Words, signed_view
from common.study import VectorModel


class NoisedSource:
    """The finished `v_i` of a round with noise; see `hospital_node.contribution.WordSource`.

    `total` int64 [d]: the integer sum, which this object owns.
    """

    def __init__(self, total: NDArray[np.int64], terms: DpTerms, seed: CoefficientSeed) -> None:
        self.words = total.size
        self._total = total
        self._noise = NoiseStream(NoiseTable.of(terms.sigma_loc), seed)

    def fill(self, out: Words, word_offset: int) -> None:
        """See `WordSource`; the words of a chunk are ready once, for noise is added in place."""
        chunk = self._total[word_offset : word_offset + out.size]
        if chunk.size != out.size:
            raise InternalError("a chunk reaches beyond the vector")
        self._noise.add_to(chunk, word_offset)
        signed_view(out)[:] = chunk


def pattern_sum(
    model: VectorModel, site: str, r: int, terms: DpTerms, entropy: Entropy
) -> NDArray[np.int64]:
    """Return the pattern of a `vector` study, clipped to C, in integers, int64 [size].

    It stands for the update of the hospital, or of one patient who is drawn every time.
    """
    row = vector.whole(site, r, model.size, model.pattern)[np.newaxis, :]
    return integer_sum(row, terms.clip, terms.delta_int, secret_uniforms(entropy))


def pattern_update(
    model: VectorModel,
    site: str,
    header: Header,
    seed: CoefficientSeed,
    entropy: Entropy,
    step: float,
) -> NDArray[np.float32]:
    """Return the pattern as the outcome of a round of mode patient-local, float32 [size].

    As many noised steps as the header says, each `step` times its noised mean gradient.
    """
    terms = header.dp
    noise = NoiseStream(NoiseTable.of(terms.sigma_loc), seed)
    update = np.zeros(model.size, np.float64)
    for number in range(terms.steps):
        total = pattern_sum(model, site, header.r, terms, entropy)
        noise.add_to(total, number * header.d)
        update += total * (step * terms.clip / terms.delta_int)
    return update.astype(np.float32)
