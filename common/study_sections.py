"""The sections of a study file: what each key means, its default and its limits.

Every section is frozen and strict (`common.config.Section`); checks that need more than
one section are in `common.study`. Names that a later version will know (models,
strategies, privacy modes) are refused as NOT_SUPPORTED, never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    field_validator,
    model_validator,
)

from common.config import (
    Name,
    Number,
    Seconds,
    Section,
    Text,
    format_duration,
    no_repeats,
    problem,
)
from common.ids import NAME_PATTERN
from common.positive import PositiveRule, parse_positive
from common.text import listed, nearest, show

MODEL_KINDS: Final = ("logistic", "mlp", "vector")
"""Models this version can train."""

LATER_MODEL_KINDS: Final = ("cox", "cnn", "deepsurv", "resnet", "unet", "transformer")
"""Models of the wider catalogue: known by name, refused until a version has them."""

LATER_NORMS: Final = ("batch", "layer", "group")
"""Normalisation layers: known by name, refused until a version has them."""

STRATEGIES: Final = ("fedavg",)
LATER_STRATEGIES: Final = ("fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold")

WEIGHT_RULES: Final = ("size_class", "samples", "equal")
"""`size_class`: rows rounded down to a power of two, masked. `samples`: exact rows, masked."""

DP_MODES: Final = ("none", "patient-distributed", "patient-local", "hospital")
"""See `DifferentialPrivacy`."""

_DP_KEYS: Final = (
    "epsilon", "delta", "clip", "sampling", "batch", "max_patients", "spare_rounds",
)  # fmt: skip
_DP_NEEDED: Final[Mapping[str, frozenset[str]]] = {
    "none": frozenset(),
    "patient-distributed": frozenset(_DP_KEYS),
    "patient-local": frozenset(_DP_KEYS) - {"batch"},
    "hospital": frozenset({"epsilon", "delta", "clip", "spare_rounds"}),
}
_DP_HINTS: Final[Mapping[str, str]] = {
    "batch": ", the public number of patients that a step draws at all hospitals together; or "
    "state federation.weights, a public number of patients for each site",
}
_DP_UNNEEDED: Final[Mapping[str, frozenset[str]]] = {"patient-local": frozenset({"batch"})}
_PATIENT_DEFAULTS: Final[Mapping[str, float]] = {
    "clip": 1.0,
    "sampling": 1.0,
    "max_patients": 10_000,
    "spare_rounds": 2,
}
_DP_DEFAULTS: Final[Mapping[str, Mapping[str, float]]] = {
    "patient-distributed": _PATIENT_DEFAULTS,
    "patient-local": _PATIENT_DEFAULTS,
    "hospital": {"spare_rounds": 2},
}

METRICS: Final[Mapping[str, tuple[str, ...]]] = {
    "binary": ("auroc", "accuracy", "brier", "log_loss"),
    "multiclass": ("accuracy", "brier", "log_loss"),
    "continuous": ("mse", "mae", "r2"),
}
"""Metrics that fit each target; counts are always computed."""

DEFAULT_METRICS: Final[Mapping[str, tuple[str, ...]]] = {
    "binary": ("auroc", "accuracy", "brier"),
    "multiclass": ("accuracy", "brier"),
    "continuous": ("mse", "r2"),
}
DEFAULT_BATCH: Final = 16
_DEFAULT_LR: Final = {"sgd": 0.02, "adam": 0.001}

DEFAULT_MAX_WEIGHT: Final = 4096
"""W_max (docs/protocol.md, section 8): rows above which a hospital weighs no more.

A round is void when its hospitals' mean weight is below W_max/1024 rows, so this default
carries hospitals of a handful of rows; studies with larger hospitals raise it."""
_LONGEST_ROUND_S: Final = 7 * 86_400.0
_SITE: Final = re.compile(NAME_PATTERN)


# --- features and target ----------------------------------------------------------------


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError(f"must be [low, high] with low below high, not {show(list(value))}")
    return value


def _pair(value: object) -> object:
    if not (isinstance(value, tuple) and len(value) == 2):  # noqa: PLR2004
        raise ValueError("must be [low, high]")
    return value


Range = Annotated[tuple[Number, Number], AfterValidator(_range), BeforeValidator(_pair)]
"""Closed interval of plausible values; what lies outside is refused by the data contract."""

Levels = Annotated[
    tuple[Name, ...], Field(min_length=2, max_length=1000), AfterValidator(no_repeats)
]


def _code(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"must be a number or a text in quotes, not {show(value)}")  # noqa: TRY004
    return value


Code = Annotated[Number | Name, BeforeValidator(_code)]
"""A code that stands for "not measured"."""


class Feature(Section):
    """One column the model reads.

    `float` and `int` columns may state a `unit` and a `range`; `category` columns state
    their `levels` as text. `missing` lists codes that mean "not measured" besides an empty
    cell: numbers are compared with the value, texts with the cell. `impute: none` (the
    default) makes a missing value an error; `median` needs a `range`, because the federated
    median is read off a secure histogram over it; `centre` is the feature's own public
    constant, which no patient has a part in.
    """

    name: Name
    type: Literal["float", "int", "category"]
    unit: Name | None = None
    range: Range | None = None
    levels: Levels | None = None
    missing: Annotated[tuple[Code, ...], Field(max_length=100), AfterValidator(no_repeats)] = ()
    impute: Literal["mean", "median", "most-frequent", "centre", "drop-row", "none"] = "none"
    centre: Number | None = None
    scale: Annotated[Number, Field(gt=0)] | None = None

    @property
    def numeric(self) -> bool:
        """Whether the column holds numbers rather than levels."""
        return self.type != "category"

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse keys that contradict the type."""
        if self.numeric:
            self._check_numeric()
        else:
            self._check_category()
        return self

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
    positive: str = "== 1"

    @field_validator("positive")
    @classmethod
    def canonical(cls, value: str) -> str:
        """Check the rule and keep its one canonical spelling."""
        return str(parse_positive(value))

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
    """Time to an event; known by name, refused until a version has a model for it."""

    type: Literal["survival"]
    time: Name
    event: Name


class NoTarget(Section):
    """The target of a statistics study."""

    type: Literal["none"] = "none"


Target = Annotated[
    BinaryTarget | MulticlassTarget | ContinuousTarget | SurvivalTarget | NoTarget,
    Field(discriminator="type"),
]


# --- split, model, training ----------------------------------------------------------------


class RandomSplit(Section):
    """Rows split at random inside each hospital; `stratify` keeps the classes' shares."""

    test: Annotated[Number, Field(ge=0, lt=1)] = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    stratify: bool = False


class ColumnSplit(Section):
    """A column says `train`, `test` or `validation`; rows where it is empty are not used."""

    column: Name


def split_form(value: object) -> str:
    """Return which of the two forms raw data states: `by-column` or `random`."""
    has_column = isinstance(value, ColumnSplit) or (isinstance(value, dict) and "column" in value)
    return "by-column" if has_column else "random"


Split = Annotated[
    Annotated[RandomSplit, Tag("random")] | Annotated[ColumnSplit, Tag("by-column")],
    Discriminator(split_form),
]


class LogisticModel(Section):
    """Logistic (for several levels: softmax) regression."""

    kind: Literal["logistic"]


def _norm(value: object) -> object:
    if isinstance(value, str) and value in LATER_NORMS:
        raise problem(
            f"is '{value}', which this version's models do not have; it has none",
            name="NOT_SUPPORTED",
        )
    return value


class MlpModel(Section):
    """A multilayer perceptron; `hidden` lists the widths of its hidden layers.

    `norm`: normalisation between layers; `none` is the only one of this version.
    """

    kind: Literal["mlp"]
    norm: Annotated[Literal["none"], BeforeValidator(_norm)] = "none"
    hidden: Annotated[
        tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(min_length=1, max_length=16)
    ] = (64, 64)


class VectorModel(Section):
    """`size` numbers and no learning: what `fedcare bench` sends through a whole federation.

    A hospital's "training" adds a fixed pattern (`common.models.vector`) and reads no data;
    it runs only where the site policy lists the model kind `vector`.
    """

    kind: Literal["vector"]
    size: Annotated[int, Field(ge=1, le=2**31)]


class NoModel(Section):
    """The model of a statistics study."""

    kind: Literal["none"] = "none"


def _catalogue(value: object) -> object:
    kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in LATER_MODEL_KINDS:
        raise problem(
            f"is '{kind}', which is not in this version's catalogue; it has {listed(MODEL_KINDS)}",
            "kind",
            name="NOT_SUPPORTED",
        )
    return value


Model = Annotated[
    Annotated[LogisticModel | MlpModel | VectorModel | NoModel, Field(discriminator="kind")],
    BeforeValidator(_catalogue),
]


class Train(Section):
    """Local training: one of `local_steps` (batches) or `local_epochs` a round."""

    optimiser: Literal["sgd", "adam"] = "sgd"
    lr: Annotated[Number, Field(gt=0, le=1000)] = 0.02
    batch: Annotated[int, Field(ge=1, le=1_000_000)] = DEFAULT_BATCH
    local_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    local_epochs: Annotated[int, Field(ge=1, le=10_000)] | None = None
    weight_decay: Annotated[Number, Field(ge=0, le=1000)] = 0.0

    @model_validator(mode="before")
    @classmethod
    def complete(cls, data: object) -> object:
        """Fill in one epoch if no length is given, and the optimiser's learning rate."""
        if not isinstance(data, dict):
            return data
        full = dict(data)
        if full.get("local_steps") is None and full.get("local_epochs") is None:
            full["local_epochs"] = 1
        optimiser = full.get("optimiser", "sgd")
        if "lr" not in full and isinstance(optimiser, str):
            full["lr"] = _DEFAULT_LR.get(optimiser, 0.02)
        return full

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse two lengths."""
        if self.local_steps is not None and self.local_epochs is not None:
            raise ValueError("must state one of 'local_steps' and 'local_epochs', not both")
        return self


# --- federation, privacy, evaluation ----------------------------------------------------------


class Strategy(Section):
    """How sums become the next model."""

    name: Literal["fedavg"] = "fedavg"

    @field_validator("name", mode="before")
    @classmethod
    def in_catalogue(cls, value: object) -> object:
        """Say that a known strategy comes with a later version."""
        if isinstance(value, str) and value in LATER_STRATEGIES:
            raise problem(
                f"is '{value}', which is not in this version's catalogue; "
                f"it has {listed(STRATEGIES)}",
                name="NOT_SUPPORTED",
            )
        return value


def _weights(value: object) -> object:
    if isinstance(value, dict):
        if not value:
            raise ValueError("must name at least one site")
        for site, weight in value.items():
            if not _SITE.fullmatch(site):
                raise ValueError(f"names {show(site)}, which is not a site id")
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise ValueError(f"must give {show(site)} a number, not {show(weight)}")  # noqa: TRY004
            if not 0 < weight <= 1e9:  # noqa: PLR2004
                raise ValueError(f"must give {show(site)} a constant above 0, not {show(weight)}")
        return MappingProxyType({site: float(weight) for site, weight in sorted(value.items())})
    if isinstance(value, str) and value in WEIGHT_RULES:
        return value
    guess = nearest(value, WEIGHT_RULES) if isinstance(value, str) else None
    hint = f"; did you mean '{guess}'?" if guess else ""
    raise ValueError(
        f"must be {listed(WEIGHT_RULES)}, or a public constant for each site, "
        f"not {show(value)}{hint}"
    )


def _deadline(seconds: float) -> float:
    if not 1 <= seconds <= _LONGEST_ROUND_S:
        raise ValueError(f"must be 1s to {format_duration(_LONGEST_ROUND_S)}")
    return seconds


class Federation(Section):
    """Who takes part and how long.

    `weights`: a rule, or a public constant per site. `min_sites` is `s_min` of
    docs/protocol.md, section 1. `max_weight` is W_max of section 8: public, fixed for the
    study.
    """

    strategy: Strategy = Strategy()
    weights: Annotated[
        Any,
        BeforeValidator(_weights),
        PlainSerializer(lambda value: value if isinstance(value, str) else dict(value)),
    ] = "size_class"
    max_weight: Annotated[int, Field(ge=1, le=2**31)] = DEFAULT_MAX_WEIGHT
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 10
    min_sites: Annotated[int, Field(ge=2, le=10_000)] = 3
    round_deadline: Annotated[Seconds, AfterValidator(_deadline)] = 600.0

    @property
    def weight_rule(self) -> str:
        """`size_class`, `samples`, `equal`, or `public` for constants per site."""
        return self.weights if isinstance(self.weights, str) else "public"

    def public_weight(self, site: str) -> float | None:
        """Return a site's public weight in (0, 1], the largest being 1; None if it has none."""
        if isinstance(self.weights, str) or site not in self.weights:
            return None
        return float(self.weights[site] / max(self.weights.values()))

    def public_number(self, site: str) -> float | None:
        """Return the constant that the study states for a site; None if it states none."""
        if isinstance(self.weights, str) or site not in self.weights:
            return None
        return float(self.weights[site])


class SecureAggregation(Section):
    """Always on. `colluders: null` follows the protocol's rule for the roster's size."""

    colluders: Annotated[int, Field(ge=0, le=10_000)] | None = None
    suite: Literal["hybrid", "classical"] = "hybrid"


class DifferentialPrivacy(Section):
    """The guarantee a study gives, and what its noise follows from (docs/protocol.md, 9).

    `patient-distributed`: one step of gradient descent a round; every patient's gradient
    is clipped to `clip`, the hospitals share the noise. `patient-local`: each hospital takes
    `train.local_steps` such steps a round by itself, with full noise in each. `hospital`: a
    hospital's whole update is clipped and the noise shared. `none`: masks only.

    `sampling` p: each patient takes part in a step with this probability. `batch`: the
    public number that the summed gradient is divided by; in mode patient-local it is stated
    with equal weights only, since public weights are the sites' public numbers of patients
    and a site divides by p times its own. `max_patients`: the most patients
    of one hospital that can ever take part. `spare_rounds`: rounds beyond `rounds` that the
    noise pays for, so that a round that is voided and tried again does not end the run.
    `noise_multiplier` z follows from the others when the study is completed.

    Out of `epsilon`: `statistics_epsilon` is what one noised sum of training patients'
    features may cost; it gives the constants that the study takes from patients (normalise:
    federated, impute). `evaluation_epsilon` is what one noised histogram of test patients'
    scores may cost; without it no figure of the model leaves a hospital. `statistics_noise`
    and `evaluation_noise`, the noise multipliers of these rounds, follow.
    """

    mode: Literal["none", "patient-distributed", "patient-local", "hospital"] = "none"
    epsilon: Annotated[Number, Field(gt=0, le=1000)] | None = None
    delta: Annotated[Number, Field(gt=0, lt=0.1)] | None = None
    clip: Annotated[Number, Field(gt=0, le=1e9)] | None = None
    sampling: Annotated[Number, Field(gt=0, le=1)] | None = None
    batch: Annotated[int, Field(ge=1, le=2**40)] | None = None
    max_patients: Annotated[int, Field(ge=1, le=2**31)] | None = None
    spare_rounds: Annotated[int, Field(ge=0, le=10_000)] | None = None
    noise_multiplier: Annotated[Number, Field(ge=1e-9, le=1e9)] | None = None
    statistics_epsilon: Annotated[Number, Field(gt=0, le=1000)] | None = None
    statistics_noise: Annotated[Number, Field(ge=1e-9, le=1e9)] | None = None
    evaluation_epsilon: Annotated[Number, Field(gt=0, le=1000)] | None = None
    evaluation_noise: Annotated[Number, Field(ge=1e-9, le=1e9)] | None = None

    @property
    def on(self) -> bool:
        """Whether the study has any differential privacy."""
        return self.mode != "none"

    @model_validator(mode="before")
    @classmethod
    def complete(cls, data: object) -> object:
        """Fill in the mode and its defaults."""
        if not isinstance(data, dict):
            return data
        full = dict(data)
        stated = [key for key in full if key != "mode" and full[key] is not None]
        if stated and "mode" not in full:
            full["mode"] = "patient-distributed"
        mode = full.get("mode")
        defaults: dict[str, float] = dict(_DP_DEFAULTS.get(str(mode), {}))
        return {**defaults, **{key: full[key] for key in full if full[key] is not None}}

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse a guarantee that lacks a number, and numbers without a guarantee."""
        needed = _DP_NEEDED[self.mode]
        for key in _DP_KEYS:
            value = getattr(self, key)
            if value is None and key in needed:
                raise problem(f"needs the key '{key}' for mode {self.mode}{_DP_HINTS.get(key, '')}")
            if value is not None and key not in needed | _DP_UNNEEDED.get(self.mode, frozenset()):
                raise problem(f"is not used by dp mode {self.mode}; remove it", key)
        figures = ("statistics", "evaluation")
        extra = [f"{figure}_{what}" for figure in figures for what in ("epsilon", "noise")]
        for key in ("noise_multiplier", *extra):
            if not self.on and getattr(self, key) is not None:
                raise problem("is not used by dp mode none; remove it", key)
        return self


class Privacy(Section):
    """What is promised besides that records stay where they are."""

    secure_aggregation: SecureAggregation = SecureAggregation()
    dp: DifferentialPrivacy = DifferentialPrivacy()


class Evaluate(Section):
    """`site_metrics` asks each hospital to release its own metrics, not only the pooled ones."""

    metrics: Annotated[tuple[str, ...], Field(max_length=20), AfterValidator(no_repeats)] = ()
    site_metrics: bool = False


class Owner(Section):
    """Who answers for the study; a hospital's policy lists organisations."""

    name: Annotated[Text, Field(min_length=1, max_length=200)]
    organisation: Annotated[Text, Field(min_length=1, max_length=200)]
