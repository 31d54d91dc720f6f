"""Federated standardisation and imputation: one masked sum before the first round.

Scaling each hospital's columns by its own mean and spread throws away what differs
between hospitals; pooled constants keep it. They come out of one `statistics` round:

1. Each hospital computes, over its training rows and per feature, the share of rows
   where it is present, the mean of z and of z^2 (missing counts as 0), with
   z = (x - middle) / half of the public range; of a category its levels' shares; for a
   median also the shares in the bins of a histogram over the range; for an `indicator` the
   share of rows where the feature is missing.
2. It multiplies all by its weight u and sends them masked (`contribution`).
3. From the opened sums everybody computes the same constants (`pooled`): weighted
   means of shares. With weights `samples` these are the statistics of the pooled rows,
   with `size_class` nothing but the power of two of a row count could ever leak.

A feature may have no range, or one far wider than its values; z^2 is then tiny. So each
number is sent in two words ("limbs"): `high` with range 1, and what its rounding left
over as `low` with range 1/B, together about 104 bits (w = 64). A feature without a range
sends the mean of z^2 once more, 2^64 times as large and cut off at 1: if the plain sum
shows that no hospital's can have been cut off, this finer one is taken.

No constant is ever NaN or divides by zero: a column that is constant, or missing at
every hospital, is scaled by 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, InternalError
from common.features import Table, encoded_columns, level_count
from common.preprocessing import Preprocessing
from common.quantise import from_limbs, limbs
from common.study import Feature, Study
from common.vectors import ParameterSchema, TensorSpec, TensorType

UNRANGED: Final = 2.0**32
"""A feature without a range holds values within +-UNRANGED; the data contract checks it."""

BINS: Final = 1024
"""Bins of a median's histogram; whole numbers over a narrower range get a bin each."""

RING_BITS: Final = 64
"""Ring of a statistics round."""

SMALLEST_INDICATOR_SCALE: Final = 0.1
"""An indicator's scale is at least this, so that a rare level (below 1 in 100) is not
blown up into a value that throws a training step off."""

_CONSTANT: Final = 1e-12
"""A variance below this share of the mean square is rounding: the column is constant."""

_SMALLEST_SCALE: Final = 1e-30

_ABSENT: Final = 2.0**-60
"""A weighted share below this is no row at all."""

_MOMENTS: Final = 3

_FINE: Final = 2.0**64
"""Magnification of the second moment of a feature without a range."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Where a feature's numbers stand: `start`, then its moments and bins, or level shares.

    The last one is the share of rows without a value, if the feature has an `indicator`.
    """

    feature: Feature
    start: int
    bins: int

    @property
    def size(self) -> int:
        fine = 1 if self.feature.range is None else 0
        values = level_count(self.feature) or _MOMENTS + fine + self.bins
        return values + self.feature.indicator


def needed(study: Study) -> bool:
    """Return whether the study's constants need a statistics round at all."""
    return study.normalise == "federated" or any(
        feature.impute in ("mean", "median", "most-frequent") for feature in study.features
    )


def layout(study: Study) -> ParameterSchema:
    """Return the layout of the statistics round: two tensors, `high` and `low`, k words each."""
    size = (sum(block.size for block in _blocks(study)),)
    return ParameterSchema(
        (
            TensorSpec("high", TensorType.FLOAT64, size),
            TensorSpec("low", TensorType.FLOAT64, size),
        )
    )


def contribution(study: Study, table: Table, weight: float, levels: int) -> NDArray[np.float64]:
    """Return a hospital's vector, float64 [2 k]: `high`, then `low`, already times `weight`.

    `table` holds the training rows. The values are ready to be quantised with `ranges`;
    the weight word is u = `weight` as in every round.

    Raises:
        DataError: DATA_EMPTY, the hospital has no training row.
    """
    if table.rows == 0:
        raise DataError("DATA_EMPTY", "there is no training row to compute statistics from")
    shares = [_shares(block, table.values[:, place]) for place, block in enumerate(_blocks(study))]
    value = np.clip(np.concatenate(shares) * weight, -1.0, 1.0)
    return limbs(value, 1.0, levels)


def pooled(study: Study, opened: NDArray[np.int64], levels: int) -> Preprocessing:
    """Return the study's constants from the opened sum of the tensor words, int64 [2 k].

    The weight word is not needed: every constant is a ratio of two sums.

    Raises:
        InternalError: `opened` has not the layout's length.
    """
    blocks = _blocks(study)
    size = sum(block.size for block in blocks)
    if opened.shape != (2 * size,):
        raise InternalError(f"a statistics sum has {2 * size} words, not {opened.shape}")
    sums = from_limbs(opened, 1.0, levels)
    found = [_constants(block, sums[block.start : block.start + block.size]) for block in blocks]
    return assemble(study, found)


def without_statistics(study: Study) -> Preprocessing:
    """Return the constants of a study that needs no statistics round (`needed` is false)."""
    return assemble(study, [Constants((), (), None) for _ in study.features])


# --- at the hospital ----------------------------------------------------------------


def _blocks(study: Study) -> tuple[_Block, ...]:
    blocks: list[_Block] = []
    start = 0
    for feature in study.features:
        blocks.append(_Block(feature, start, _bins(feature)))
        start += blocks[-1].size
    return tuple(blocks)


def _bins(feature: Feature) -> int:
    """Return the histogram's bins: none unless the feature is imputed by its median."""
    if feature.impute != "median" or feature.range is None:
        return 0
    low, high = feature.range
    if feature.type == "int" and high - low < BINS:
        return int(math.floor(high) - math.ceil(low)) + 1
    return BINS


def _edges(block: _Block) -> tuple[float, float]:
    """Return the lower edge of the first bin and the bins' width."""
    if block.feature.range is None:
        raise InternalError(f"feature '{block.feature.name}' has bins but no range")
    low, high = block.feature.range
    if block.feature.type == "int" and high - low < BINS:
        return math.ceil(low) - 0.5, 1.0
    return low, (high - low) / block.bins


def middle_and_half(feature: Feature) -> tuple[float, float]:
    """Return the middle of a number's range and half its width."""
    if feature.range is None:
        return 0.0, UNRANGED
    low, high = feature.range
    return low / 2.0 + high / 2.0, high / 2.0 - low / 2.0


def _shares(block: _Block, column: NDArray[np.float64]) -> NDArray[np.float64]:
    values = _level_shares(block, column) if level_count(block.feature) else _moments(block, column)
    return np.append(values, np.isnan(column).mean()) if block.feature.indicator else values


def _moments(block: _Block, column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [present, mean of z, mean of z^2, (fine z^2 | bins...)], each over all rows."""
    middle, half = middle_and_half(block.feature)
    rows = len(column)
    values = column[~np.isnan(column)]
    z = (values - middle) / half
    # fsum rounds once: the constants then do not depend on the order of the rows.
    moments = np.array([len(z), math.fsum(z), math.fsum(z * z)]) / rows
    if block.feature.range is None:
        return np.append(moments, moments[-1] * _FINE)
    if not block.bins:
        return moments
    first, width = _edges(block)
    place = np.clip(((values - first) / width).astype(np.int64), 0, block.bins - 1)
    return np.concatenate([moments, np.bincount(place, minlength=block.bins) / rows])


def _level_shares(block: _Block, column: NDArray[np.float64]) -> NDArray[np.float64]:
    present = column[~np.isnan(column)].astype(np.int64)
    return np.bincount(present, minlength=level_count(block.feature)) / len(column)


# --- from the opened sums -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Constants:
    """One feature's constants; a category has a centre and a scale per level.

    `absent`: centre and scale of the column that says where the feature is missing.
    """

    centre: tuple[float, ...]
    scale: tuple[float, ...]
    impute: float | None
    absent: tuple[float, float] = (0.0, 1.0)


def _constants(block: _Block, sums: NDArray[np.float64]) -> Constants:
    count = level_count(block.feature)
    values = sums[:-1] if block.feature.indicator else sums
    found = category_constants(block.feature, values) if count else _number_constants(block, values)
    if not block.feature.indicator:
        return found
    present = float(np.maximum(values[:count], 0.0).sum()) if count else float(values[0])
    return replace(found, absent=_absent(float(sums[-1]), present))


def _absent(missing: float, present: float) -> tuple[float, float]:
    """Return centre and scale of an indicator from two shares of the same weight."""
    if missing + present < _ABSENT:
        return 0.0, 1.0
    share = missing / (missing + present)
    spread = math.sqrt(max(share * (1.0 - share), 0.0))
    return share, max(spread, SMALLEST_INDICATOR_SCALE) if spread > 0.0 else 1.0


def category_constants(feature: Feature, sums: NDArray[np.float64]) -> Constants:
    """Return a category's constants from what each level's share or count is in the sum."""
    shares = np.maximum(sums, 0.0)
    present = float(shares.sum())
    count = level_count(feature)
    stand_in = float(np.argmax(shares)) if feature.impute == "most-frequent" else None
    if present < _ABSENT:
        return Constants((0.0,) * count, (1.0,) * count, stand_in)
    share = shares / present
    spread = np.sqrt(share * (1.0 - share))
    scale = np.where(spread > 0.0, np.maximum(spread, SMALLEST_INDICATOR_SCALE), 1.0)
    return Constants(tuple(share.tolist()), tuple(scale.tolist()), stand_in)


def _number_constants(block: _Block, sums: NDArray[np.float64]) -> Constants:
    middle, half = middle_and_half(block.feature)
    present, first, second = (float(value) for value in sums[:_MOMENTS])
    if block.feature.range is None and second * _FINE <= 1.0:
        second = float(sums[_MOMENTS]) / _FINE
    if present < _ABSENT:
        return Constants((middle,), (1.0,), _stand_in(block, middle, middle))
    mean = first / present
    square = second / present
    variance = square - mean * mean
    spread = math.sqrt(variance) * half if variance > _CONSTANT * square else 0.0
    # A model file keeps the scale as float32, where anything smaller could become 0.
    scale = spread if spread > _SMALLEST_SCALE else 1.0
    centre = middle + mean * half
    median = _median(block, sums[_MOMENTS:]) if block.bins else centre
    return Constants((centre,), (scale,), _stand_in(block, centre, median))


def _stand_in(block: _Block, mean: float, median: float) -> float | None:
    match block.feature.impute:
        case "mean":
            return mean
        case "median":
            return median
        case _:
            return None


def _median(block: _Block, bins: NDArray[np.float64]) -> float:
    """Return the pooled median.

    It is exact for whole numbers in bins of their own, else interpolated within its bin,
    that is within (high - low) / 1024.
    """
    shares = np.maximum(bins, 0.0)
    cumulative = np.cumsum(shares)
    if not cumulative[-1] > 0.0:  # only a corrupt input can make such a sum
        return middle_and_half(block.feature)[0]
    half = float(cumulative[-1]) / 2.0
    # A hair below one half, so that rounding does not move an exact half up a bin.
    place = int(np.searchsorted(cumulative, half * (1.0 - 1e-9)))
    first, width = _edges(block)
    if block.feature.type == "int" and width == 1.0:
        return first + 0.5 + place
    before = float(cumulative[place] - shares[place])
    inside = (half - before) / float(shares[place])
    return first + width * (place + min(max(inside, 0.0), 1.0))


def assemble(study: Study, found: list[Constants]) -> Preprocessing:
    """Put the constants in encoded order; `fixed` and `none` bring their own scales."""
    centre: list[float] = []
    scale: list[float] = []
    columns = encoded_columns(study)
    for column in columns:
        feature = study.features[column.feature]
        if column.missing:
            of_all = found[column.feature].absent if study.normalise == "federated" else (0.0, 1.0)
            centre.append(of_all[0])
            scale.append(of_all[1])
        elif study.normalise == "federated":
            place = column.level or 0
            centre.append(found[column.feature].centre[place])
            scale.append(found[column.feature].scale[place])
        else:  # a feature states centre and scale only with `normalise: fixed`
            centre.append(0.0 if feature.centre is None else feature.centre)
            scale.append(1.0 if feature.scale is None else feature.scale)
    return Preprocessing(
        columns=tuple(column.name for column in columns),
        centre=tuple(centre),
        scale=tuple(scale),
        impute=tuple(
            feature.centre if feature.impute == "centre" else constants.impute
            for feature, constants in zip(study.features, found, strict=True)
        ),
    )
