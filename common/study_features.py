"""The columns of a study: its features and what the model is to predict."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from common.config import Name, Number, Section, no_repeats, problem
from common.positive import PositiveRule, parse_positive
from common.text import show

_SMALLEST: Final = 1e-100
_LARGEST: Final = 1e100
"""Widths of a range: what is computed with them and their squares stays a float64."""


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError(f"must be [low, high] with low below high, not {show(list(value))}")
    if not _SMALLEST <= value[1] - value[0] <= _LARGEST:
        raise ValueError(f"must be {_SMALLEST:g} to {_LARGEST:g} wide")
    return value


def _pair(value: object) -> object:
    if not (isinstance(value, tuple) and len(value) == 2):  # noqa: PLR2004
        raise ValueError("must be [low, high]")
    return value


Range = Annotated[tuple[Number, Number], AfterValidator(_range), BeforeValidator(_pair)]
"""Closed interval of plausible values; what lies outside is refused by the data contract."""

Pixels = Annotated[int, Field(ge=4, le=512)]
"""Height or width of an image as the model sees it."""

IMAGE_KEYS: Final = ("size", "channels", "window")
"""Keys that only images have; absent from the canonical form of other columns."""

EIGHT_BITS: Final = (0.0, 255.0)
"""The window of values of 8 bits."""


def _height_width(value: object) -> object:
    if value is not None and not (isinstance(value, tuple) and len(value) == 2):  # noqa: PLR2004
        raise ValueError("must be [height, width]")
    return value


Levels = Annotated[
    tuple[Name, ...], Field(min_length=2, max_length=1000), AfterValidator(no_repeats)
]


def _code(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"must be a number or a text in quotes, not {show(value)}")  # noqa: TRY004
    return value


Code = Annotated[Number | Name, BeforeValidator(_code)]
"""A code that stands for "not measured"."""


def _canonical(value: str) -> str:
    return str(parse_positive(value))


Positive = Annotated[str, AfterValidator(_canonical)]
"""A rule that says which cells are yes, in its one canonical spelling."""


class Feature(Section):
    """One column the model reads.

    `float` and `int` columns may state a `unit` and a `range`; `category` columns state
    their `levels` as text. `missing` lists codes that mean "not measured" besides an empty
    cell: numbers are compared with the value, texts with the cell. `impute: none` (the
    default) makes a missing value an error; `median` needs a `range`, because the federated
    median is read off a secure histogram over it; `centre` is the feature's own public
    constant, which no patient has a part in. `indicator` gives the model a further column, 1
    where the value was missing and a stand-in is used, so that it can tell the two apart.

    An `image` column names a file per row. It is brought to `size` = [height, width] and
    `channels` (1 grey, 3 RGB), and a pixel's value v to (v - low) / (high - low), cut off at
    0 and 1, with `window` = [low, high]: a public rule that no patient has a part in. A DICOM
    value is rescaled first (in CT: Hounsfield units).
    """

    name: Name
    type: Literal["float", "int", "category", "image"]
    unit: Name | None = None
    range: Range | None = None
    levels: Levels | None = None
    missing: Annotated[tuple[Code, ...], Field(max_length=100), AfterValidator(no_repeats)] = ()
    impute: Literal["mean", "median", "most-frequent", "centre", "drop-row", "none"] = "none"
    indicator: bool = False
    centre: Number | None = None
    scale: Annotated[Number, Field(gt=0)] | None = None
    size: Annotated[tuple[Pixels, Pixels], BeforeValidator(_height_width)] | None = None
    channels: Literal[1, 3] | None = None
    window: Range | None = None

    @model_validator(mode="before")
    @classmethod
    def complete(cls, data: object) -> object:
        """Fill in what an image has and other columns do not."""
        if isinstance(data, dict) and data.get("type") == "image":
            return {"channels": 1, "window": EIGHT_BITS, **data}
        return data

    @property
    def numeric(self) -> bool:
        """Whether the column holds numbers rather than levels or images."""
        return self.type in ("float", "int")

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse keys that contradict the type."""
        if self.type == "image":
            self._check_image()
            return self
        for key in IMAGE_KEYS:
            if getattr(self, key) is not None:
                raise problem("belongs to images", key)
        if self.numeric:
            self._check_numeric()
        else:
            self._check_category()
        if self.indicator and self.impute in ("none", "drop-row"):
            raise problem(
                f"is true, and with impute: {self.impute} no row of the model's lacks the value; "
                "state a stand-in",
                "indicator",
            )
        return self

    def _check_image(self) -> None:
        for key in ("unit", "range", "levels", "centre", "scale"):
            if getattr(self, key) is not None:
                raise problem("does not belong to an image", key)
        if self.missing or self.impute != "none":
            raise problem("must be none: every row needs its image", "impute")
        if self.indicator:
            raise problem("must be false: every row needs its image", "indicator")
        if self.size is None or self.channels is None or self.window is None:
            raise problem("is image, which needs 'size', [height, width]", "type")

    def _check_numeric(self) -> None:
        if self.levels is not None:
            raise problem("belongs to type category, and this is a number", "levels")
        if self.impute == "most-frequent":
            raise problem("must be mean, median, centre, drop-row or none for a number", "impute")
        if self.impute == "median" and self.range is None:
            raise problem("is median, which needs the feature's 'range'", "impute")
        if (self.centre is None) != (self.scale is None):
            raise ValueError("must state both 'centre' and 'scale' or neither")
        if self.impute == "centre" and self.centre is None:
            raise problem("is centre, which needs the feature's 'centre' and 'scale'", "impute")

    def _check_category(self) -> None:
        if self.levels is None:
            raise problem("is category, which needs 'levels'", "type")
        for key in ("unit", "range", "centre", "scale"):
            if getattr(self, key) is not None:
                raise problem("belongs to numbers, and this is a category", key)
        if self.impute in ("mean", "median", "centre"):
            raise problem("must be most-frequent, drop-row or none for a category", "impute")
        for index, code in enumerate(self.missing):
            if not isinstance(code, str):
                raise problem("must be in quotes for a category", "missing", index)
            if code in self.levels:
                raise problem(f"is {show(code)}, which is also a level", "missing", index)


class BinaryTarget(Section):
    """Yes or no: rows whose cell fits the rule `positive` are yes."""

    type: Literal["binary"]
    name: Name
    positive: Positive = "== 1"

    @property
    def rule(self) -> PositiveRule:
        """The rule, ready to apply to cells."""
        return parse_positive(self.positive)


class MulticlassTarget(Section):
    """One of several levels."""

    type: Literal["multiclass"]
    name: Name
    levels: Levels


class ContinuousTarget(Section):
    """A number."""

    type: Literal["continuous"]
    name: Name
    unit: Name | None = None
    range: Range | None = None


class SurvivalTarget(Section):
    """Time to an event, or to the last time a patient was seen without it (censored).

    `time` is a number of at least 0 in `unit`; rows whose cell of the column `event` fits the
    rule `positive` had the event at that time, the others are censored then.
    """

    type: Literal["survival"]
    time: Name
    event: Name
    unit: Name | None = None
    positive: Positive = "== 1"

    @property
    def rule(self) -> PositiveRule:
        """The rule, ready to apply to the cells of `event`."""
        return parse_positive(self.positive)


class NoTarget(Section):
    """The target of a statistics study."""

    type: Literal["none"] = "none"


Target = Annotated[
    BinaryTarget | MulticlassTarget | ContinuousTarget | SurvivalTarget | NoTarget,
    Field(discriminator="type"),
]
