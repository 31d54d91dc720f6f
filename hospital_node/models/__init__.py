"""The torch modules of the catalogue (`common.models`), small and seeded."""

import numpy as np
from numpy.typing import NDArray

from common.study import CnnModel, Study
from hospital_node.models import convolutional, perceptron
from hospital_node.models.convolutional import Convolutional
from hospital_node.models.perceptron import Perceptron, fill, flatten, load

__all__ = ["Convolutional", "Perceptron", "build", "flatten", "load"]


def build(study: Study, model: NDArray[np.float32]) -> Perceptron | Convolutional:
    """Return the study's module holding the flat vector `model` (a copy of it).

    `model` is in `layout` or in `full_layout`; a hospital's own tensors that are not in it
    are as they start.
    """
    if not isinstance(study.model, CnnModel):
        return perceptron.build(study, model)
    module = convolutional.bare(study)
    fill(study, module, model)
    return module
