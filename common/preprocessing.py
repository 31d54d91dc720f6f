"""Imputation and scaling, fixed for a whole study and released beside its model.

Every hospital prepares its rows with the same constants, so that a coefficient means
the same everywhere and whoever receives the model can apply it:

    encoded = (value or its imputed stand-in, as number or indicator) - centre) / scale

The constants come from a secure sum (`common.statistics`), from the study itself
(`normalise: fixed`) or are 0 and 1. They are finite and no scale is zero.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, StateError
from common.features import Encoded, Table, encoded_columns
from common.study import Study

SCHEMA: Final = "fedcare.preprocessing/v1"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Constants that turn a `Table` into what the model sees.

    `columns` are the encoded columns' names, `centre` and `scale` (> 0) belong to them.
    `impute` holds one entry per feature of the study: the value (a category's level
    index) that stands in for a missing one, or `None` where none may be missing.
    """

    columns: tuple[str, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    impute: tuple[float | None, ...]

    def __post_init__(self) -> None:
        numbers = [*self.centre, *self.scale, *(v for v in self.impute if v is not None)]
        if not all(math.isfinite(number) for number in numbers):
            raise StateError("MODEL_INVALID", "the preprocessing holds a value that is not finite")
        if not all(scale > 0 for scale in self.scale):
            raise StateError(
                "MODEL_INVALID", "the preprocessing holds a scale that is not positive"
            )
        if not len(self.columns) == len(self.centre) == len(self.scale):
            raise StateError("MODEL_INVALID", "the preprocessing's lists differ in length")

    def to_json(self) -> str:
        """Return the released form: sorted keys, shortest floats, one line end."""
        body = {
            "schema": SCHEMA,
            "columns": list(self.columns),
            "centre": list(self.centre),
            "scale": list(self.scale),
            "impute": list(self.impute),
        }
        return json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> Preprocessing:
        """Read the released form back, to the last bit.

        Raises:
            StateError: MODEL_INVALID, it is not such a file.
        """
        try:
            body = json.loads(text)
            _check_schema(body)
            return Preprocessing(
                columns=tuple(_text(name) for name in body.pop("columns")),
                centre=tuple(_number(value) for value in body.pop("centre")),
                scale=tuple(_number(value) for value in body.pop("scale")),
                impute=tuple(None if v is None else _number(v) for v in body.pop("impute")),
            )
        except (ValueError, KeyError, TypeError):
            raise StateError("MODEL_INVALID", f"the preprocessing is not a {SCHEMA} file") from None

    def check_fits(self, study: Study) -> None:
        """Refuse constants of another study.

        Raises:
            StateError: MODEL_INVALID.
        """
        names = tuple(column.name for column in encoded_columns(study))
        if names != self.columns or len(self.impute) != len(study.features):
            raise StateError(
                "MODEL_INVALID", f"the preprocessing does not have the columns of study {study.id}"
            )

    def encode(self, study: Study, table: Table) -> Encoded:
        """Return `table` as the model sees it: imputed, encoded, centred and scaled.

        Raises:
            DataError: DATA_VALUE, a value is missing in a feature without imputation.
            StateError: MODEL_INVALID, the constants belong to another study.
        """
        if table.pixels is not None:
            self.check_fits(study)
            return Encoded(table.pixels, table.target.astype(np.float32))
        with np.errstate(over="ignore"):  # whoever computes with it sees it
            columns = self.columns_of(study, table).astype(np.float32)
        return Encoded(columns, table.target.astype(np.float32))

    def columns_of(self, study: Study, table: Table) -> NDArray[np.float64]:
        """Return the encoded columns, float64 [rows, columns]; raises as `encode`."""
        self.check_fits(study)
        filled = self._filled(study, table.values)
        out = np.empty((table.rows, len(self.columns)))
        for place, column in enumerate(encoded_columns(study)):
            values = filled[:, column.feature]
            if column.missing:
                values = np.isnan(table.values[:, column.feature]).astype(np.float64)
            elif column.level is not None:
                values = (values == column.level).astype(np.float64)
            with np.errstate(over="ignore", invalid="ignore"):  # whoever computes with it sees it
                out[:, place] = (values - self.centre[place]) / self.scale[place]
        return out

    def _filled(self, study: Study, values: NDArray[np.float64]) -> NDArray[np.float64]:
        filled = values.copy()
        for place, stand_in in enumerate(self.impute):
            missing = np.isnan(filled[:, place])
            if stand_in is not None:
                filled[missing, place] = stand_in
            elif missing.any():
                raise DataError(
                    "DATA_VALUE",
                    f"feature '{study.features[place].name}' has missing values and the study "
                    "states no imputation",
                )
        return filled


def _check_schema(body: object) -> None:
    if not isinstance(body, dict) or body.pop("schema", None) != SCHEMA:
        raise ValueError(SCHEMA)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("text")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("number")
    return float(value)
