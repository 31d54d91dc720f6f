"""`statistics.json`: what a statistics study publishes, `fedcare.statistics/v1`.

Every list over *columns* begins with all rows and goes on with the groups, if any. `null`
stands for a figure that may not be published, or that has no value; the file does not say
which, nor why. Counts are whole numbers: 0, or at least `min_cell`.
"""

from __future__ import annotations

import json
from typing import Annotated, Final, Literal

from pydantic import Field

from common.config import Section, validate
from common.documents import parse_json
from common.errors import FedError, StateError
from common.manifest import STATISTICS_FILE

SCHEMA: Final = "fedcare.statistics/v1"

Count = Annotated[int, Field(ge=0)] | None
Figure = float | None


class Column(Section):
    """A group of patients, and how many; the first column is everybody."""

    label: str
    n: Count


class Quantile(Section):
    """The smallest value that at least a share `q` does not exceed, per column."""

    q: float
    values: tuple[Figure, ...]


class Bar(Section):
    """Patients (of all columns) with low <= value < high; the last bar has its end too."""

    low: float
    high: float
    count: Count


class NumberEntry(Section):
    """A number. `resolution`: width of the bins that quantiles come from.

    A quantile is a bin's middle, so off by at most half the resolution; of whole numbers that
    have bins of their own (`whole`) it is exact.
    """

    kind: Literal["number"] = "number"
    name: str
    unit: str | None
    whole: bool
    resolution: float
    present: tuple[Count, ...]
    missing: tuple[Count, ...]
    mean: tuple[Figure, ...]
    sd: tuple[Figure, ...]
    quantiles: tuple[Quantile, ...]
    histogram: tuple[Bar, ...]


class LevelEntry(Section):
    """Patients at one level, or at several that were too few alone, per column."""

    label: str
    missing: bool
    """Whether this row holds, alone or with others, patients without a value."""
    counts: tuple[Count, ...]


class CategoryEntry(Section):
    """A category."""

    kind: Literal["category"] = "category"
    name: str
    levels: tuple[LevelEntry, ...]


class CrossTable(Section):
    """Patients by two features, [rows][columns]; margins are sums over all rows."""

    rows: str
    columns: str
    row_labels: tuple[str, ...]
    column_labels: tuple[str, ...]
    counts: tuple[tuple[Count, ...], ...]
    row_totals: tuple[Count, ...]
    column_totals: tuple[Count, ...]


class Step(Section):
    """A published time of a curve; `events` and `lost` since the one before, `at_risk` after."""

    time: float
    at_risk: int
    events: int
    lost: int
    survival: float
    low: Figure
    high: Figure


class CurveEntry(Section):
    """A Kaplan-Meier curve: exact at its published times, unknown between them."""

    label: str
    n: int
    steps: tuple[Step, ...]


class Test(Section):
    """A log-rank test."""

    chi_square: float
    df: int
    p: float


class SurvivalEntry(Section):
    """Curves per group, or of everybody; `pooled` on the grid, `stratified` by hospital."""

    time: str
    unit: str | None
    horizon: float
    step: float
    curves: tuple[CurveEntry, ...]
    pooled: Test | None
    stratified: Test | None


class StatisticsFile(Section):
    """See the module. Without `columns` there were too few patients to say anything."""

    schema_: Annotated[Literal["fedcare.statistics/v1"], Field(alias="schema")] = SCHEMA
    study: str
    config_hash: str
    min_cell: int
    group_by: str | None
    columns: tuple[Column, ...]
    features: tuple[Annotated[NumberEntry | CategoryEntry, Field(discriminator="kind")], ...]
    cross: tuple[CrossTable, ...]
    survival: SurvivalEntry | None

    def to_json(self) -> bytes:
        """Return the released bytes: sorted keys, one line end."""
        body = self.model_dump(mode="json", by_alias=True)
        return (json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True) + "\n").encode()

    @staticmethod
    def from_json(raw: bytes) -> StatisticsFile:
        """Read the file of a release.

        Raises:
            StateError: MODEL_INVALID.
        """
        try:
            return validate(parse_json(raw, STATISTICS_FILE), StatisticsFile, SCHEMA)
        except FedError as error:
            raise StateError("MODEL_INVALID", error.detail) from None
