"""Whom a model is judged in besides everybody: the study's subgroups as cells of patients.

A declared subgroup has a cell for each level of its category, or for each band of its
number. Cells are in the order of the study, so that both sides of the wire agree on them.
Membership follows from a hospital's own values, before anything is imputed.

What is published must not tell of a small cell, nor let one follow by subtraction from the
total and the others of its feature: `shown_cells` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from common.study import Study


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: `group` is the subgroup's place in the study, `label` says who is in it."""

    group: int
    feature: str
    label: str


def cells(study: Study) -> tuple[Cell, ...]:
    """Return every cell of the study's subgroups, in order."""
    features = {feature.name: feature for feature in study.features}
    found: list[Cell] = []
    for place, group in enumerate(study.evaluate.subgroups):
        if group.bands is None:
            labels = tuple(features[group.feature].levels or ())
        else:
            labels = _band_labels(group.bands)
        found += [Cell(place, group.feature, label) for label in labels]
    return tuple(found)


def _band_labels(bands: Sequence[float]) -> tuple[str, ...]:
    middle = [f"{low:g} to <{high:g}" for low, high in pairwise(bands)]
    return (f"<{bands[0]:g}", *middle, f">={bands[-1]:g}")


def members(study: Study, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return who is in which cell, bool [cells, rows]; a missing value is in none.

    `values` float64 [rows, features] as in `common.features.Table`.
    """
    columns = {feature.name: place for place, feature in enumerate(study.features)}
    found: list[NDArray[np.bool_]] = []
    for group in study.evaluate.subgroups:
        column = values[:, columns[group.feature]]
        known = ~np.isnan(column)
        if group.bands is None:
            feature = study.features[columns[group.feature]]
            found += [column == level for level in range(len(feature.levels or ()))]
        else:
            place = np.searchsorted(np.asarray(group.bands), column, side="right")
            found += [known & (place == band) for band in range(len(group.bands) + 1)]
    return np.array(found, np.bool_).reshape(len(found), len(values))


def shown_cells(
    counts: NDArray[np.float64], total: NDArray[np.float64], least: int
) -> NDArray[np.bool_]:
    """Return which cells of ONE feature may be published, bool [cells].

    `counts` float64 [cells, parts]: rows of each class (one part where there are no classes);
    `total` float64 [parts]: everybody's, published. A cell is shown if each part has `least`
    rows. What is left of the total (hidden cells, and patients whose value is missing) can be
    computed by anybody, so it must be nobody or as large too: until then the smallest shown
    cell is hidden as well.
    """
    shown: NDArray[np.bool_] = np.asarray((counts >= least).all(axis=1), np.bool_)
    while shown.any():
        left = np.round(total - counts[shown].sum(axis=0))
        if (left == 0).all() or (left >= least).all():
            break
        smallest = np.where(shown, counts.min(axis=1), np.inf).argmin()
        shown[smallest] = False
    return shown
