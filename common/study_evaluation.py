"""What a study measures of its model, and in whom."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, model_validator

from common.config import Name, Number, Section, no_repeats, problem

METRICS: Final[Mapping[str, tuple[str, ...]]] = {
    "binary": ("auroc", "accuracy", "brier", "log_loss"),
    "multiclass": ("auroc", "accuracy", "brier", "log_loss"),
    "continuous": ("rmse", "mae", "r2", "mse"),
    "survival": ("c_index", "auroc", "brier"),
}
"""Metrics that fit each target; counts are always computed."""

DEFAULT_METRICS: Final[Mapping[str, tuple[str, ...]]] = {
    "binary": ("auroc", "accuracy", "brier"),
    "multiclass": ("accuracy", "brier"),
    "continuous": ("mse", "r2"),
    "survival": ("c_index",),
}

MOST_BANDS: Final = 16
MOST_CELLS: Final = 256
"""Subgroups of all features together: each is judged by 8,000 words of the evaluate round."""


class Subgroup(Section):
    """Patients told apart by one feature: by its levels, or by cut points of a number.

    `bands: [50, 65]` makes three groups: below 50, 50 up to but not including 65, and 65 and
    above. Patients whose value is missing are in none.
    """

    feature: Name
    bands: Annotated[tuple[Number, ...], Field(max_length=MOST_BANDS - 1)] | None = None

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse cut points that do not rise."""
        if self.bands is not None:
            if not self.bands:
                raise problem("needs at least one cut point", "bands")
            if any(low >= high for low, high in pairwise(self.bands)):
                raise problem("must rise from cut point to cut point", "bands")
        return self


class Evaluate(Section):
    """`site_metrics` asks each hospital to release its own metrics, not only the pooled ones.

    `threshold`: a probability above this says yes. `confidence`: of every interval.
    `subgroups`: in whom the model is judged besides everybody. `horizons`: times, in the
    target's unit, at which a survival model's predictions are judged by AUROC and Brier score.
    """

    metrics: Annotated[tuple[str, ...], Field(max_length=20), AfterValidator(no_repeats)] = ()
    site_metrics: bool = False
    threshold: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    confidence: Annotated[Number, Field(ge=0.5, le=0.9999)] = 0.95
    subgroups: Annotated[tuple[Subgroup, ...], Field(max_length=16)] = ()
    horizons: Annotated[
        tuple[Annotated[Number, Field(gt=0)], ...], Field(max_length=8), AfterValidator(no_repeats)
    ] = ()
