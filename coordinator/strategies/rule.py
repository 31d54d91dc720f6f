"""What every server rule has."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class ServerRule(Protocol):
    """From a mean update to the step that is added to the model, value by value."""

    @property
    def first(self) -> tuple[float, ...]:
        """Each moment's value before the first round; empty for a rule without memory."""
        ...

    def step(self, mean: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the step for `mean` [n]; change `moments` [n, len(first)] in place.

        `mean` may be changed too, and may be what is returned.
        """
        ...
