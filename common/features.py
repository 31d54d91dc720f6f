"""From a study's features to the columns a model sees; both sides agree on them.

A hospital reads its file into a `Table`: numbers as they are, a category as the index
of its level, NaN where a value is missing. The model sees encoded columns: a number
stays one column, a category of k levels becomes k - 1 indicators (the first level is
the one where all are 0), and a feature with `indicator` has one more, which is 1 where it
was missing. The coordinator needs the columns' number and names only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.study import Feature, Study


@dataclass(frozen=True, slots=True)
class Table:
    """One hospital's usable rows of a study, before imputation and encoding.

    `values` float64 [rows, features]: numbers, or level indices of categories; NaN where
    missing. `target` float64 [rows]: 0 or 1 (binary), level index (multiclass), number
    (continuous), 0 in a statistics study; of a survival target [rows, 2]: the time, and 1 if
    the event came then, else 0. `patient` int64 [rows]: equal for rows of one
    patient, and the patient's own whoever else is in the file. `pixels` float32 [rows,
    channels * height * width] in 0..1, of a study of images; its value in `values` is 0.
    """

    values: NDArray[np.float64]
    target: NDArray[np.float64]
    patient: NDArray[np.int64]
    pixels: NDArray[np.float32] | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.target)

    def take(self, rows: NDArray[np.int64]) -> Table:
        """Return the named rows, in that order."""
        pixels = None if self.pixels is None else self.pixels[rows]
        return Table(self.values[rows], self.target[rows], self.patient[rows], pixels)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows as a model sees them: `features` float32 [rows, columns], `target` float32 [rows].

    A survival target is [rows, 2], as in `Table`. Of images, `features` are the pixels.
    """

    features: NDArray[np.float32]
    target: NDArray[np.float32]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.target)


@dataclass(frozen=True, slots=True)
class EncodedColumn:
    """A column the model sees: `age`, `cp=3` for a category's level, or `ca=(missing)`.

    `feature` is the place of its feature in the study, `level` the index of the level
    that the indicator stands for (`None` for a number); `missing` where it stands for none.
    """

    name: str
    feature: int
    level: int | None
    missing: bool = False


def level_count(feature: Feature) -> int:
    """Return the number of levels of a category, 0 for a number."""
    return 0 if feature.levels is None else len(feature.levels)


def encoded_columns(study: Study) -> tuple[EncodedColumn, ...]:
    """Return the columns the study's model sees, in order; an image counts as one."""
    columns: list[EncodedColumn] = []
    for place, feature in enumerate(study.features):
        if feature.levels is None:
            columns.append(EncodedColumn(feature.name, place, None))
        else:
            columns += [
                EncodedColumn(f"{feature.name}={text}", place, level)
                for level, text in enumerate(feature.levels)
                if level > 0
            ]
        if feature.indicator:
            columns.append(EncodedColumn(f"{feature.name}=(missing)", place, None, missing=True))
    return tuple(columns)
