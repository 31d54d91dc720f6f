"""Studies of images: what goes together with a feature of type `image`, and what does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common.config import problem
from common.study_features import Feature
from common.study_models import CnnModel

if TYPE_CHECKING:
    from common.study import Study


def image_of(study: Study) -> Feature | None:
    """Return the study's image; a study that has one has no other feature."""
    return next((feature for feature in study.features if feature.type == "image"), None)


def complete_images(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the defaults of a training study that has an image.

    Personal models of images have to be asked for: to compare them takes about 20 times a
    hospital's own part of the training, which is long for a network of images.
    """
    features = data.get("features")
    listed = features if isinstance(features, (list, tuple)) else ()
    if not any(isinstance(one, dict) and one.get("type") == "image" for one in listed):
        return dict(data)
    return {"normalise": "none", "personal": {"enabled": False}, **data}


def check_images(study: Study) -> None:
    """Refuse what does not go with an image, and a model of images where there is none.

    Raises:
        ValueError: with the key that is wrong (`common.config.problem`).
    """
    image, model = image_of(study), study.model
    if image is None:
        if isinstance(model, CnnModel):
            raise problem("is cnn, which needs a feature of type image", "model", "kind")
        return
    if study.kind == "statistics":
        place = study.features.index(image)
        raise problem("is image, which has no statistics", "features", place, "type")
    if len(study.features) > 1:
        raise problem(
            "must be the image alone: a model of images reads no other column in this version",
            "features", name="NOT_SUPPORTED",
        )  # fmt: skip
    if not isinstance(model, CnnModel):
        raise problem(f"is {model.kind}; a feature of type image needs cnn", "model", "kind")
    _check_blocks(image, model)
    if study.evaluate.subgroups:
        raise problem("cannot be told by an image", "evaluate", "subgroups")
    if study.normalise != "none":
        raise problem("must be none: the image's 'window' scales its pixels", "normalise")
    if study.privacy.dp.on:
        raise problem(
            "must be none: images have no form with differential privacy in this version",
            "privacy", "dp", "mode", name="NOT_SUPPORTED",
        )  # fmt: skip


def _check_blocks(image: Feature, model: CnnModel) -> None:
    smallest = min(image.size or (0, 0))
    if smallest >> len(model.channels) == 0:
        raise problem(
            f"has {len(model.channels)} blocks, each of which halves the image; nothing is left "
            f"of {smallest} pixels",
            "model", "channels",
        )  # fmt: skip
