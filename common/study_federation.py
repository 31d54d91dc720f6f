"""Who takes part in a study, how long, and how sums become the next model."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from common.config import Number, Seconds, Section, format_duration
from common.ids import NAME_PATTERN
from common.text import listed, nearest, show

STRATEGIES: Final = (
    "fedavg", "fedavgm", "fedprox", "scaffold", "fedadam", "fedyogi", "fedadagrad",
    "fedbn", "ditto", "newton",
)  # fmt: skip
LATER_STRATEGIES: Final[tuple[str, ...]] = ()

WEIGHT_RULES: Final = ("size_class", "samples", "equal")
"""`size_class`: rows rounded down to a power of two, masked. `samples`: exact rows, masked."""

NARROW_BITS: Final = 16
"""`upload_bits` of the narrow ring, whose ranges follow the hospitals' own updates."""

DEFAULT_MAX_WEIGHT: Final = 4096
"""W_max (docs/protocol.md, section 8): rows above which a hospital weighs no more.

A round is void when its hospitals' mean weight is below W_max/1024 rows, so this default
carries hospitals of a handful of rows; studies with larger hospitals raise it."""
_LONGEST_ROUND_S: Final = 7 * 86_400.0
_SITE: Final = re.compile(NAME_PATTERN)

ServerRate = Annotated[Number, Field(gt=0, le=1000)]
"""The server's learning rate: how much of an averaged update is applied."""

Decay = Annotated[Number, Field(ge=0, lt=1)]
"""How much of a moving average is kept from round to round."""

Tau = Annotated[Number, Field(gt=0, le=1)]
"""Adaptivity: added to the root of the second moment; the larger, the less adaptive."""


class FedAvg(Section):
    """The weighted mean of the hospitals' updates (McMahan et al. 2017, algorithm 1)."""

    name: Literal["fedavg"] = "fedavg"


class FedAvgM(Section):
    """FedAvg with momentum at the server (Hsu et al. 2019)."""

    name: Literal["fedavgm"]
    server_lr: ServerRate = 1.0
    momentum: Decay = 0.9


class FedProx(Section):
    """FedAvg whose hospitals are held near the received model (Li et al. 2020, equation 2).

    `mu / 2` times the squared distance from it is added to their loss.
    """

    name: Literal["fedprox"]
    mu: Annotated[Number, Field(gt=0, le=1000)] = 0.01


class Scaffold(Section):
    """Control variates cancel the hospitals' drift (Karimireddy et al. 2020, algorithm 1).

    Option II of the paper: a hospital's variate is the mean gradient of its last steps.
    """

    name: Literal["scaffold"]
    server_lr: ServerRate = 1.0


class FedAdam(Section):
    """Adam at the server (Reddi et al. 2021, algorithm 2)."""

    name: Literal["fedadam"]
    server_lr: ServerRate = 0.01
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    tau: Tau = 0.001


class FedYogi(Section):
    """Yogi at the server (Reddi et al. 2021, algorithm 2)."""

    name: Literal["fedyogi"]
    server_lr: ServerRate = 0.01
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    tau: Tau = 0.001


class FedAdagrad(Section):
    """Adagrad at the server (Reddi et al. 2021, algorithm 2)."""

    name: Literal["fedadagrad"]
    server_lr: ServerRate = 0.01
    beta1: Decay = 0.0
    tau: Tau = 0.001


class FedBn(Section):
    """FedAvg but for the normalisation layers, which stay each hospital's own (Li et al. 2021)."""

    name: Literal["fedbn"]


class Ditto(Section):
    """FedAvg, and beside it a personal model at each hospital (Li et al. 2021, algorithm 1).

    `lambda / 2` times the squared distance from the federated model is added to its loss.
    """

    name: Literal["ditto"]
    lambda_: Annotated[Number, Field(gt=0, le=1000, alias="lambda")] = 0.1


class Newton(Section):
    """Exact regression: Newton's method on the summed gradients and Hessians of all rows.

    `ridge` times half the squared coefficients (not the intercept) is added to the negative
    log-likelihood. The run ends before `federation.rounds` when the largest change of a
    coefficient is below `tolerance`.
    """

    name: Literal["newton"]
    ridge: Annotated[Number, Field(ge=0, le=1e12)] = 0.0
    tolerance: Annotated[Number, Field(gt=0, lt=1)] = 1e-8


def _named(value: object) -> object:
    """Return `fedavg` where no strategy is named."""
    return {"name": "fedavg", **value} if isinstance(value, dict) else value


Strategy: TypeAlias = Annotated[
    Annotated[
        FedAvg
        | FedAvgM
        | FedProx
        | Scaffold
        | FedAdam
        | FedYogi
        | FedAdagrad
        | FedBn
        | Ditto
        | Newton,
        Field(discriminator="name"),
    ],
    BeforeValidator(_named),
]
"""How sums become the next model."""


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
    study. `upload_bits`: width of a word of a training round's masked update; 16 halves the
    upload, for at most 64 hospitals (section 7.4). `download`: the type in which weights
    travel to the hospitals and are released; float16 halves the download, while the
    coordinator goes on adding to float32.
    """

    strategy: Strategy = FedAvg()
    weights: Annotated[
        Any,
        BeforeValidator(_weights),
        PlainSerializer(lambda value: value if isinstance(value, str) else dict(value)),
    ] = "size_class"
    max_weight: Annotated[int, Field(ge=1, le=2**31)] = DEFAULT_MAX_WEIGHT
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 10
    min_sites: Annotated[int, Field(ge=2, le=10_000)] = 3
    round_deadline: Annotated[Seconds, AfterValidator(_deadline)] = 600.0
    upload_bits: Literal[16, 32] = 32
    download: Literal["float32", "float16"] = "float32"

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
