"""The sections of a study file: what each key means, its default and its limits.

Every section is frozen and strict (`common.config.Section`); checks that need more than
one section are in `common.study`. Features and targets are in `common.study_features`,
models in `common.study_models`, the federation in `common.study_federation`, evaluation in
`common.study_evaluation`. Names that a later version will know are refused as
NOT_SUPPORTED, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from common.config import Name, Number, Section, Text, problem

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


# --- split ---------------------------------------------------------------------------------------


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


# --- privacy, ownership ------------------------------------------------------------------------


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


class Owner(Section):
    """Who answers for the study; a hospital's policy lists organisations."""

    name: Annotated[Text, Field(min_length=1, max_length=200)]
    organisation: Annotated[Text, Field(min_length=1, max_length=200)]
