"""What must fit across a study's sections; `common.study.Study` runs these checks.

Each refuses by `common.config.problem` with the path of the key that does not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.config import problem
from common.study_evaluation import METRICS, MOST_CELLS
from common.study_features import NoTarget, SurvivalTarget
from common.study_federation import NARROW_BITS
from common.study_models import FITTING_KINDS, CnnModel, MlpModel
from common.study_sections import ColumnSplit, RandomSplit
from common.text import listed, nearest, show

if TYPE_CHECKING:
    from common.study import Study


def check_columns(study: Study) -> None:
    """Refuse a column that is used for two things."""
    used: dict[str, str] = {feature.name: "a feature" for feature in study.features}
    others: list[tuple[str, tuple[str, ...]]] = []
    match study.target:
        case NoTarget():
            pass
        case SurvivalTarget():
            others += [(study.target.time, ("target", "time"))]
            others += [(study.target.event, ("target", "event"))]
        case _:
            others += [(study.target.name, ("target", "name"))]
    if study.curve is not None:
        others += [(study.curve.time, ("statistics", "survival", "time"))]
        others += [(study.curve.event, ("statistics", "survival", "event"))]
    if isinstance(study.split, ColumnSplit):
        others += [(study.split.column, ("split", "column"))]
    if study.patient_key is not None:
        others += [(study.patient_key, ("patient_key",))]
    for column, path in others:
        if column in used:
            raise problem(
                f"is the column {show(column)}, which is {used[column]} already",
                *path,
                name="DUPLICATE_KEY",
            )
        used[column] = ".".join(path)


def check_subgroups(study: Study) -> None:
    """Refuse subgroups of no feature, of one cut twice, or cut as its kind is not."""
    features = {feature.name: feature for feature in study.features}
    used: set[str] = set()
    count = 0
    for index, group in enumerate(study.evaluate.subgroups):
        at = ("evaluate", "subgroups", index)
        if group.feature in used:
            raise problem(
                f"is {show(group.feature)} again; two ways of cutting one feature tell of "
                "the patients between them",
                *at, "feature", name="DUPLICATE_KEY",
            )  # fmt: skip
        used.add(group.feature)
        if study.target.type == "survival":
            raise problem(
                "is given, but a survival target's figures are of all patients only",
                "evaluate", "subgroups", name="NOT_SUPPORTED",
            )  # fmt: skip
        feature = features.get(group.feature)
        if feature is None:
            guess = nearest(group.feature, features)
            hint = f"; did you mean '{guess}'?" if guess else ""
            raise problem(f"is {show(group.feature)}, which is not a feature{hint}", *at, "feature")
        if feature.numeric and group.bands is None:
            raise problem("needs 'bands', because its feature is a number", *at)
        if not feature.numeric and group.bands is not None:
            raise problem("belongs to numbers, and this is a category", *at, "bands")
        count += len(group.bands or ()) + 1 if feature.numeric else len(feature.levels or ())
        if count > MOST_CELLS:
            raise problem(f"makes more than {MOST_CELLS} subgroups in all", *at, "feature")


def check_sites(study: Study) -> None:
    """Refuse fewer hospitals than the colluders or the stated weights want."""
    federation = study.federation
    colluders = study.privacy.secure_aggregation.colluders
    if colluders is not None and federation.min_sites < colluders + 2:
        raise problem(
            f"is {federation.min_sites}, but with {colluders} colluders it must be at least "
            f"{colluders + 2}: two honest hospitals must remain in every sum",
            "federation",
            "min_sites",
        )
    if federation.weight_rule == "public" and len(federation.weights) < federation.min_sites:
        raise problem(
            f"names {len(federation.weights)} sites, fewer than min_sites {federation.min_sites}",
            "federation",
            "weights",
        )


def check_training(study: Study) -> None:
    """Refuse a model, metric or way of training that does not fit the target."""
    if study.statistics is not None:
        raise problem("belongs to a study of kind statistics", "statistics")
    target = study.target.type
    if target == "none":
        raise ValueError("is of kind training and needs the key 'target'")
    if study.model.kind == "none":
        raise ValueError("is of kind training and needs the key 'model'")
    if study.model.kind not in FITTING_KINDS[target]:
        raise problem(
            f"is {study.model.kind}, which cannot predict a {target} target; "
            f"one of {listed(FITTING_KINDS[target])} can",
            "model",
            "kind",
        )
    _check_strategy(study, target)
    _check_communication(study)
    if isinstance(study.split, RandomSplit) and study.split.stratify and target == "continuous":
        raise problem("must be false for a continuous target", "split", "stratify")
    if study.evaluate.horizons and target != "survival":
        raise problem("belongs to a survival target", "evaluate", "horizons")
    at_times = {"auroc", "brier"} & set(study.evaluate.metrics)
    if target == "survival" and at_times and not study.evaluate.horizons:
        text = f"is not given, and {listed(sorted(at_times))} of a survival model needs times"
        raise problem(text, "evaluate", "horizons")
    for index, metric in enumerate(study.evaluate.metrics):
        if metric not in METRICS[target]:
            guess = nearest(metric, METRICS[target])
            hint = f"; did you mean '{guess}'?" if guess else ""
            raise problem(
                f"is {show(metric)}, but a {target} target has {listed(METRICS[target])}{hint}",
                "evaluate",
                "metrics",
                index,
            )
    _check_normalise(study)


def _check_strategy(study: Study, target: str) -> None:
    """Refuse a way of training that the model, the target or the privacy does not have."""
    strategy, model = study.federation.strategy.name, study.model
    at = ("federation", "strategy", "name")
    exact = model.kind in ("logistic", "linear", "poisson", "cox") and target != "multiclass"
    if strategy == "newton" and not exact:
        raise problem(
            "is newton, which fits a logistic (two classes), linear, poisson or cox model", *at
        )
    if strategy == "fedbn" and not (
        isinstance(model, MlpModel | CnnModel) and model.norm == "batch"
    ):
        raise problem("is fedbn, which needs a model with batch norm", *at)
    if strategy == "scaffold" and study.train.optimiser != "sgd":
        raise problem("is scaffold, whose control variates need train.optimiser sgd", *at)
    if study.model.kind == "vector" and strategy != "fedavg":
        raise problem("must be fedavg for a model that learns nothing", *at)
    if study.privacy.dp.on and strategy != "fedavg":
        raise problem("must be fedavg with differential privacy", *at)
    if study.privacy.dp.on and (model.kind == "poisson" or target == "survival"):
        raise problem("has no form with differential privacy in this version", "model", "kind")
    if study.train.imbalance != "none" and target not in ("binary", "multiclass"):
        raise problem("belongs to targets with classes", "train", "imbalance")


def _check_communication(study: Study) -> None:
    federation = study.federation
    exact = federation.strategy.name == "newton"
    for key, plain in (("upload_bits", 32), ("download", "float32")):
        if getattr(federation, key) == plain:
            continue
        if study.privacy.dp.on:
            raise problem(f"must be {plain} with differential privacy", "federation", key)
        if exact:
            raise problem(f"must be {plain} for exact regression", "federation", key)
    if federation.upload_bits == NARROW_BITS and study.model.kind == "vector":
        raise problem("must be 32 for a model that learns nothing", "federation", "upload_bits")


def _check_normalise(study: Study) -> None:
    for index, feature in enumerate(study.features):
        if not feature.numeric:
            continue
        if study.normalise == "fixed" and feature.scale is None:
            raise problem(
                "needs 'centre' and 'scale', because normalise is fixed", "features", index
            )
        if study.normalise != "fixed" and feature.scale is not None:
            raise problem(
                f"belongs to normalise: fixed, and normalise is {study.normalise}",
                "features",
                index,
                "scale",
            )
