"""A study: what a researcher asks hospitals to train, as data and never as code.

The schema is `fedcare.study/v1`. `parse_study` fills in every default, so that the
result says all there is to say; `canonical_json` writes that down in one way only
(sorted keys, no spaces, ASCII escapes, shortest floats: docs/protocol.md, section 3.3)
and `config_hash` is its SHA-256: what hospitals approve and every round header carries.

    study = load_study(Path("heart-disease.yaml"))
    config_hash(study).hex()

A `statistics` study has neither target nor model; those sections then hold their
`none` form, are refused in the file and absent from the canonical form. Its own section,
`statistics` (`common.study_statistics`), belongs to no other study.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from common.config import Label, Name, Section, Text, problem, validate
from common.documents import Document, dump_yaml, parse_json, parse_yaml, read_text
from common.errors import ConfigError
from common.ids import ConfigHash
from common.study_checks import check_columns, check_sites, check_subgroups, check_training
from common.study_evaluation import DEFAULT_METRICS, METRICS, Evaluate, Subgroup
from common.study_features import (
    IMAGE_KEYS,
    BinaryTarget,
    ContinuousTarget,
    Feature,
    MulticlassTarget,
    NoTarget,
    SurvivalTarget,
    Target,
)
from common.study_federation import (
    LATER_STRATEGIES,
    NARROW_BITS,
    STRATEGIES,
    WEIGHT_RULES,
    Ditto,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBn,
    Federation,
    FedProx,
    FedYogi,
    Newton,
    Scaffold,
    Strategy,
)
from common.study_images import check_images, complete_images
from common.study_models import (
    LATER_MODEL_KINDS,
    MODEL_KINDS,
    CnnModel,
    CoxModel,
    LinearModel,
    LogisticModel,
    MlpModel,
    Model,
    NoModel,
    PoissonModel,
    Train,
    VectorModel,
)
from common.study_personal import CANDIDATES, Personal
from common.study_privacy import check_privacy, complete_privacy, protects_patients
from common.study_sections import (
    DP_MODES,
    ColumnSplit,
    DifferentialPrivacy,
    Owner,
    Privacy,
    RandomSplit,
    SecureAggregation,
    Split,
    split_form,
)
from common.study_statistics import Statistics, SurvivalCurve, check_statistics
from common.text import show

SCHEMA: Final = "fedcare.study/v1"

_TRAINING_ONLY: Final = (
    "target", "split", "normalise", "model", "train", "evaluate", "personal",
)  # fmt: skip
_STUDY_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")

_ABSENT: Final = object()
_ADDED: Final[Mapping[str, Mapping[str, object]]] = {
    "evaluate": {"threshold": 0.5, "confidence": 0.95, "subgroups": [], "horizons": []},
    "federation": {"upload_bits": 32, "download": "float32"},
    "train": {"imbalance": "none"},
    "personal": {"enabled": True, "candidates": list(CANDIDATES), "validation": 0.2},
}
"""Keys added after the schema's first release, and their defaults (`canonical_json`)."""

__all__ = [
    "DP_MODES",
    "LATER_MODEL_KINDS",
    "LATER_STRATEGIES",
    "METRICS",
    "MODEL_KINDS",
    "NARROW_BITS",
    "SCHEMA",
    "STRATEGIES",
    "WEIGHT_RULES",
    "BinaryTarget",
    "CnnModel",
    "ColumnSplit",
    "ContinuousTarget",
    "CoxModel",
    "DifferentialPrivacy",
    "Ditto",
    "Evaluate",
    "Feature",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBn",
    "FedProx",
    "FedYogi",
    "Federation",
    "LinearModel",
    "LogisticModel",
    "MlpModel",
    "MulticlassTarget",
    "Newton",
    "NoModel",
    "NoTarget",
    "Owner",
    "Personal",
    "PoissonModel",
    "Privacy",
    "RandomSplit",
    "Scaffold",
    "SecureAggregation",
    "Statistics",
    "Strategy",
    "Study",
    "Subgroup",
    "SurvivalCurve",
    "SurvivalTarget",
    "Train",
    "VectorModel",
    "canonical_json",
    "completed",
    "completed_yaml",
    "config_hash",
    "load_study",
    "parse_study",
    "study_from_canonical",
    "warnings",
]  # fmt: skip


# --- the study ------------------------------------------------------------------------------


def _study_id(value: str) -> str:
    if not _STUDY_ID.fullmatch(value):
        raise ValueError(f"must be 3 to 63 of a-z, 0-9 and inner hyphens, not {show(value)}")
    return value


class Study(Section):
    """A completed study: every default is filled in and every cross-check has passed."""

    schema_: Literal["fedcare.study/v1"] = Field(alias="schema")
    id: Annotated[str, AfterValidator(_study_id)]
    kind: Literal["training", "statistics"] = "training"
    title: Annotated[Text, Field(max_length=300)] = ""
    purpose: Label
    dataset: Label
    owner: Owner
    features: Annotated[tuple[Feature, ...], Field(min_length=1, max_length=100_000)]
    target: Target = NoTarget()
    split: Split = RandomSplit()
    patient_key: Name | None = None
    normalise: Literal["federated", "fixed", "none"] = "federated"
    model: Model = NoModel()
    train: Train = Train(local_epochs=1)
    federation: Federation = Federation()
    privacy: Privacy = Privacy()
    evaluate: Evaluate = Evaluate()
    statistics: Statistics | None = None
    personal: Personal = Personal()
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None

    @model_validator(mode="before")
    @classmethod
    def complete(cls, data: object) -> object:
        """Fill in the defaults that depend on the kind and the target."""
        if not isinstance(data, dict):
            return data
        if data.get("kind") == "statistics":
            return {"statistics": {}, **data}
        target = data.get("target")
        target_type = target.get("type") if isinstance(target, dict) else None
        full = complete_images(data)
        split = full.get("split", {})
        if isinstance(split, dict) and split_form(split) == "random" and "stratify" not in split:
            classes = target_type in ("binary", "multiclass", "survival")
            full["split"] = {**split, "stratify": classes and not protects_patients(full)}
        evaluate = full.get("evaluate", {})
        if isinstance(evaluate, dict) and "metrics" not in evaluate:
            full["evaluate"] = {**evaluate, "metrics": DEFAULT_METRICS.get(str(target_type), ())}
        return complete_privacy(full)

    @field_validator("features")
    @classmethod
    def distinct(cls, value: tuple[Feature, ...]) -> tuple[Feature, ...]:
        """Refuse two features of one name."""
        names: set[str] = set()
        for index, feature in enumerate(value):
            if feature.name in names:
                raise problem(
                    f"is {show(feature.name)}, as an earlier feature is",
                    index,
                    "name",
                    name="DUPLICATE_KEY",
                )
            names.add(feature.name)
        return value

    @model_validator(mode="after")
    def check(self) -> Self:
        """Run the checks across sections."""
        check_columns(self)
        check_subgroups(self)
        check_sites(self)
        check_images(self)
        if self.kind == "statistics":
            self._check_statistics()
        else:
            check_training(self)
        if self.privacy.dp.on:
            check_privacy(self)
        return self

    def columns(self) -> tuple[str, ...]:
        """Return every column the study reads, features first, each once."""
        target: tuple[str, ...]
        match self.target:
            case NoTarget():
                target = ()
            case SurvivalTarget():
                target = (self.target.time, self.target.event)
            case _:
                target = (self.target.name,)
        split = (self.split.column,) if isinstance(self.split, ColumnSplit) else ()
        key = (self.patient_key,) if self.patient_key is not None else ()
        curve = self.curve
        times = (curve.time, curve.event) if curve is not None else ()
        return (*(feature.name for feature in self.features), *target, *times, *split, *key)

    @property
    def curve(self) -> SurvivalCurve | None:
        """The survival curve that a statistics study asks for."""
        return self.statistics.survival if self.statistics is not None else None

    def colluders(self, roster_size: int) -> int:
        """Return `c` for a roster of that many hospitals: as stated, or by the protocol's rule."""
        stated = self.privacy.secure_aggregation.colluders
        if stated is not None:
            return stated
        from common.secagg.params import default_colluders  # it brings numpy

        return default_colluders(roster_size)

    def _check_statistics(self) -> None:
        stated = [key for key in _TRAINING_ONLY if key in self.model_fields_set]
        if stated:
            raise problem("does not belong to a study of kind statistics", stated[0])
        if self.statistics is None:
            raise problem("is missing", "statistics")
        check_statistics(self.features, self.statistics)


# --- reading, completing, hashing -----------------------------------------------------------


def _study(document: Document) -> Study:
    return validate(document, Study, SCHEMA)


def parse_study(text: str, name: str = "study") -> Study:
    """Return the completed study of a YAML text; `name` is how messages call it.

    Raises:
        ConfigError: the first problem, with its line.
    """
    return _study(parse_yaml(text, name))


def load_study(path: Path) -> Study:
    """Return the completed study of a YAML file.

    Raises:
        ConfigError: the file is missing or wrong; the message names file and line.
    """
    return _study(parse_yaml(read_text(path), str(path)))


def study_from_canonical(raw: bytes, name: str = "study") -> Study:
    """Return the study whose canonical form a peer sent.

    Raises:
        ConfigError: it is not valid, or not byte for byte canonical (BAD_VALUE): then its
            hash would not be the SHA-256 of what was sent.
    """
    study = _study(parse_json(raw, name))
    if canonical_json(study) != raw:
        raise ConfigError("BAD_VALUE", f"{name}: not in canonical form")
    return study


def completed(study: Study) -> dict[str, Any]:
    """Return the study as plain data in the schema's order, every default filled in."""
    data = study.model_dump(mode="json", by_alias=True)
    if study.kind == "statistics":
        for key in _TRAINING_ONLY:
            del data[key]
    else:
        del data["statistics"]
    for feature in data["features"]:
        if feature["type"] != "image":
            for key in IMAGE_KEYS:
                del feature[key]
    terms = data["privacy"]["dp"]
    data["privacy"]["dp"] = {key: value for key, value in terms.items() if value is not None}
    return data


def completed_yaml(study: Study) -> str:
    """Return the completed study as YAML; it reads back as an equal study."""
    data = completed(study)
    data["features"] = [_stated(feature) for feature in data["features"]]
    return dump_yaml(data)


def _stated(feature: dict[str, Any]) -> dict[str, Any]:
    """Drop what a feature does not have, so that a line holds it."""
    return {
        key: value
        for key, value in feature.items()
        if value is not None and value is not False and value != []
    }


def canonical_json(study: Study) -> bytes:
    """Return the canonical form: JSON, sorted keys, no spaces, ASCII, shortest floats.

    A key that came into the schema after its first release is absent where it has its
    default, so that what hospitals approved earlier keeps its hash.
    """
    data = completed(study)
    for feature in data["features"]:
        if not feature["indicator"]:
            del feature["indicator"]
    for section, added in _ADDED.items():
        if section in data:
            for key, default in added.items():
                if data[section].get(key, _ABSENT) == default:
                    del data[section][key]
            if not data[section]:  # the section is newer than the first release itself
                del data[section]
    return json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def config_hash(study: Study) -> ConfigHash:
    """Return the SHA-256 of the canonical form (docs/protocol.md, section 3.3)."""
    return ConfigHash(hashlib.sha256(canonical_json(study)).digest())


def warnings(study: Study) -> tuple[str, ...]:
    """Return what a careful reader of the study should know before submitting it."""
    found: list[str] = []
    federation, secure = study.federation, study.privacy.secure_aggregation
    if federation.min_sites == 2:  # noqa: PLR2004
        found.append(
            "federation.min_sites is 2: where only two hospitals take part, each can compute the "
            "other's update; both must set allow_two_party in their policy"
        )
    if secure.colluders == 0:
        found.append(
            "privacy.secure_aggregation.colluders is 0: nothing is promised if one hospital helps "
            "the coordinator"
        )
    if secure.suite == "classical":
        found.append("suite classical: recorded traffic is open to a future quantum computer")
    if federation.weight_rule == "samples":
        found.append(
            "federation.weights is samples: two rounds with different hospitals reveal the exact "
            "row count of the one that left; size_class reveals its power of two only"
        )
    imputed = any(feature.impute in ("mean", "median") for feature in study.features)
    if federation.strategy.name == "newton" and imputed and federation.weight_rule != "samples":
        found.append(
            f"federation.weights is {federation.weight_rule}, and values are imputed by a pooled "
            "mean or median: with newton only weights samples imputes that of all rows, so the "
            "table is exact for the imputed rows, and not quite that of the pooled analysis"
        )
    if study.kind == "training" and isinstance(study.split, RandomSplit) and study.split.test == 0:
        found.append("split.test is 0: no rows are left to evaluate the model on")
    return tuple(found)
