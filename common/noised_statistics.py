"""Pooled constants of a study with differential privacy, from one noised sum of patients.

`common.statistics` without differential privacy; here every training patient adds, per
number, [present, z, z^2] with z = (x - middle) / half of the public range, and per
category 1 at the patient's level; one with several rows adds their mean. No entry of a
number exceeds 1, so the vector's norm is at most the square root of (3 numbers +
categories), which is the clip C: nothing has to be cut (docs/protocol.md, section 9.5).

The constants are safe to use however large the noise is: a mean stays inside its range,
and a scale is between a twentieth and the whole of half the range.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import InternalError
from common.features import Table, level_count
from common.preprocessing import Preprocessing
from common.secagg.dp import DpTerms
from common.statistics import Constants, assemble, category_constants, middle_and_half
from common.study import Feature, Study
from common.vectors import ParameterSchema, TensorSpec, TensorType

LEAST_SPREAD: Final = 0.05
"""A spread below this share of half the range is taken for noise."""

_MOMENTS: Final = 3


def unsupported(study: Study) -> tuple[int, str] | None:
    """Return the place and the complaint of the first feature that has no noised constants."""
    for place, feature in enumerate(study.features):
        if feature.impute == "median":
            return place, "is imputed by its median, which has no noised form; use mean or centre"
        if feature.indicator:
            return place, "has an indicator, whose share has no noised form; use normalise: fixed"
        if feature.numeric and feature.range is None:
            return place, "needs a 'range': it bounds what one patient can add to a noised sum"
    return None


def clip(study: Study) -> float:
    """Return the norm that no patient's vector exceeds."""
    return math.sqrt(sum(1 if level_count(f) else _MOMENTS for f in study.features))


def layout(study: Study) -> ParameterSchema:
    """Return the layout of a noised statistics round."""
    size = sum(_size(feature) for feature in study.features)
    tensor = TensorSpec("noised.statistics", TensorType.FLOAT64, (size,))
    return ParameterSchema((tensor,), weighted=False)


def contributions(study: Study, table: Table, groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each patient's vector, float64 [patients, layout.parameters].

    `groups` [rows] numbers each row's patient from 0 without a gap.
    """
    rows = np.concatenate(
        [_rows(feature, table.values[:, place]) for place, feature in enumerate(study.features)],
        axis=1,
    )
    out = np.zeros((int(groups.max(initial=-1)) + 1, rows.shape[1]))
    np.add.at(out, groups, rows / np.bincount(groups)[groups][:, np.newaxis])
    return out


def pooled(study: Study, opened: NDArray[np.int64], terms: DpTerms) -> Preprocessing:
    """Return the study's constants from the opened sum, int64 [layout.parameters].

    Raises:
        InternalError: `opened` has not the layout's length.
    """
    if opened.shape != (layout(study).parameters,):
        raise InternalError("a noised statistics sum is not of the layout")
    sums = opened.astype(np.float64) / (terms.delta_int / terms.clip)
    found: list[Constants] = []
    start = 0
    for feature in study.features:
        part = sums[start : start + _size(feature)]
        number = not level_count(feature)
        found.append(_number(feature, part) if number else category_constants(feature, part))
        start += part.size
    return assemble(study, found)


def _size(feature: Feature) -> int:
    return level_count(feature) or _MOMENTS


def _rows(feature: Feature, column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each row's entries for one feature; zeros where it is missing."""
    present = ~np.isnan(column)
    values = np.where(present, column, 0.0)
    if level_count(feature):
        at_level = values[:, np.newaxis] == np.arange(level_count(feature))
        return np.asarray(at_level & present[:, np.newaxis], np.float64)
    middle, half = middle_and_half(feature)
    # The data contract keeps values inside the range; the bound must not rest on that alone.
    z = np.where(present, np.clip((values - middle) / half, -1.0, 1.0), 0.0)
    return np.stack([present.astype(np.float64), z, z * z], axis=1)


def _number(feature: Feature, sums: NDArray[np.float64]) -> Constants:
    middle, half = middle_and_half(feature)
    present, first, second = (float(value) for value in sums)
    if present < 1:  # the noise is larger than everything under it
        return Constants((middle,), (half,), middle if feature.impute == "mean" else None)
    mean = min(max(first / present, -1.0), 1.0)
    variance = min(max(second / present, 0.0), 1.0) - mean * mean
    spread = min(max(math.sqrt(max(variance, 0.0)), LEAST_SPREAD), 1.0)
    centre = middle + mean * half
    return Constants((centre,), (spread * half,), centre if feature.impute == "mean" else None)
