"""The models of a study and how a hospital trains one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from common.config import Number, Section, problem
from common.text import listed

MODEL_KINDS: Final = ("logistic", "linear", "poisson", "cox", "mlp", "cnn", "vector")
"""Models this version can train."""

LATER_MODEL_KINDS: Final = ("resnet", "unet", "transformer")
"""Models of the wider catalogue: known by name, refused until a version has them."""

LATER_NORMS: Final = ("group",)
"""Normalisation layers: known by name, refused until a version has them."""

FITTING_KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "binary": ("logistic", "mlp", "cnn", "vector"),
    "multiclass": ("logistic", "mlp", "cnn", "vector"),
    "continuous": ("linear", "poisson", "mlp", "cnn", "vector"),
    "survival": ("cox", "mlp", "vector"),
}
"""Models that can predict each type of target."""

DEFAULT_BATCH: Final = 16
_DEFAULT_LR: Final = {"sgd": 0.02, "adam": 0.001}


class LogisticModel(Section):
    """Logistic (for several levels: softmax) regression."""

    kind: Literal["logistic"]


class LinearModel(Section):
    """Linear regression: the mean of a number is a weighted sum of the features."""

    kind: Literal["linear"]


class PoissonModel(Section):
    """Poisson regression with log link, for counts: a number of at least 0."""

    kind: Literal["poisson"]


class CoxModel(Section):
    """Cox regression: the log hazard is a weighted sum of the features, without intercept.

    The baseline hazard is each hospital's own (a stratum), so no hospital's times are
    compared with another's.
    """

    kind: Literal["cox"]


def _norm(value: object) -> object:
    if isinstance(value, str) and value in LATER_NORMS:
        raise problem(
            f"is '{value}', which this version's models do not have; it has none, batch and layer",
            name="NOT_SUPPORTED",
        )
    return value


class MlpModel(Section):
    """A multilayer perceptron; `hidden` lists the widths of its hidden layers.

    With a survival target its one output is the log hazard (Katzman et al. 2018).
    `norm`: normalisation between layers: of each column over the batch (`batch`, Ioffe and
    Szegedy 2015) or of each row over the layer (`layer`, Ba et al. 2016).
    """

    kind: Literal["mlp"]
    norm: Annotated[Literal["none", "batch", "layer"], BeforeValidator(_norm)] = "none"
    hidden: Annotated[
        tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(min_length=1, max_length=16)
    ] = (64, 64)


class CnnModel(Section):
    """A small convolutional network over one image.

    A block for each of `channels`: 3x3 convolution to that many channels, normalisation,
    ReLU, 2x2 max pooling; then the mean of each channel and one linear layer. `norm`: of
    groups of channels of each image (`group`, Wu and He 2018), of each channel over the
    batch (`batch`, Ioffe and Szegedy 2015) or `none`.
    """

    kind: Literal["cnn"]
    channels: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=1, max_length=7)
    ] = (16, 32)
    norm: Literal["group", "batch", "none"] = "group"


class VectorModel(Section):
    """`size` numbers and no learning: what `fedcare bench` sends through a whole federation.

    A hospital's "training" adds a fixed pattern (`common.models.vector`) and reads no data;
    it runs only where the site policy lists the model kind `vector`. `pattern`: `random`
    numbers, or an `indicator`, 1 in the hospital's own cell and 0 in all others.
    """

    kind: Literal["vector"]
    size: Annotated[int, Field(ge=1, le=2**31)]
    pattern: Literal["random", "indicator"] = "random"


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
    Annotated[
        LogisticModel
        | LinearModel
        | PoissonModel
        | CoxModel
        | MlpModel
        | CnnModel
        | VectorModel
        | NoModel,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_catalogue),
]


class Train(Section):
    """Local training: one of `local_steps` (batches) or `local_epochs` a round.

    `imbalance`: what is done about a rare class of a binary or multiclass target, by each
    hospital's own training rows. `weighted`: rows weigh inversely to their class's share;
    `resampled`: batches draw each class equally often; `focal`: rows that are predicted well
    count little (Lin et al. 2017, gamma 2).
    """

    optimiser: Literal["sgd", "adam"] = "sgd"
    lr: Annotated[Number, Field(gt=0, le=1000)] = 0.02
    batch: Annotated[int, Field(ge=1, le=1_000_000)] = DEFAULT_BATCH
    local_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    local_epochs: Annotated[int, Field(ge=1, le=10_000)] | None = None
    weight_decay: Annotated[Number, Field(ge=0, le=1000)] = 0.0
    imbalance: Literal["none", "weighted", "resampled", "focal"] = "none"

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
