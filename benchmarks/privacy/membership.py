"""Was a patient in the training data of a released model?

    python -m benchmarks.privacy.membership [--quick] [--json]

The likelihood-ratio attack of Carlini et al. (2022), the strongest known: models are
trained on random halves of all 740 heart patients, each hospital's on its own. For each
patient the margins of the models that had the patient and of those that had not are
described by a normal distribution each; the score is their likelihood ratio at the
attacked model's margin. Every model is attacked once, with all others as shadows. The
attacker knows the study and has data of its own of the very same patients: this bounds
what anyone weaker can do.

An over-fitted network without differential privacy is the control: where that is not
found out, the attack is worth nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from benchmarks.privacy import hearts
from benchmarks.privacy.bounds import Floats
from benchmarks.privacy.releases import Model, release
from benchmarks.privacy.report import Cell, Table, main
from common.entropy import CountingEntropy
from common.features import Encoded
from common.study import Study
from common.study_privacy import charged
from hospital_node.models import build

FALSE_RATE: Final = 0.01
_BOOTSTRAPS: Final = 300
_COLUMNS: Final = (
    "mode", "model", "models", "epsilon", "attack AUROC", "95 % interval", "TPR at 1 % FPR",
    "95 % interval of TPR", "TPR that epsilon allows", "AUROC on patients not seen",
)  # fmt: skip

_LOGISTIC: Final[Mapping[str, Any]] = {"kind": "logistic"}
_MLP: Final[Mapping[str, Any]] = {"kind": "mlp", "hidden": [64, 64]}
_SHORT: Final[Mapping[str, Any]] = {
    "optimiser": "sgd", "lr": 0.02, "batch": 16, "local_steps": 25, "weight_decay": 0.0,
}  # fmt: skip
_LONG: Final[Mapping[str, Any]] = {
    "optimiser": "adam", "lr": 0.01, "batch": 32, "local_epochs": 25,
}  # fmt: skip
_STEP: Final[Mapping[str, Any]] = {"optimiser": "sgd", "lr": 2.0, "local_steps": 1}
_LOCAL_STEPS: Final[Mapping[str, Any]] = {"optimiser": "sgd", "lr": 0.6, "local_steps": 4}
_HALVES: Final[Mapping[str, int]] = {
    "cleveland": 150,
    "hungarian": 130,
    "switzerland": 23,
    "va": 65,
}
"""Public numbers near half of each hospital's patients."""

_MLP_STEP: Final[Mapping[str, Any]] = {"optimiser": "sgd", "lr": 0.5, "local_steps": 1}


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of model under attack; `raw` is its dp section, `weights` the hospitals'."""

    name: str
    model: Mapping[str, Any]
    train: Mapping[str, Any]
    raw: Mapping[str, Any]
    rounds: int = 15
    weights: str | Mapping[str, int] = "equal"

    def study(self) -> Study:
        """Return the study."""
        return hearts.study(
            model=dict(self.model),
            train=dict(self.train),
            federation={
                "rounds": self.rounds,
                "min_sites": 4,
                "weights": self.weights if isinstance(self.weights, str) else dict(self.weights),
            },
            privacy={"secure_aggregation": {"colluders": 0}, "dp": dict(self.raw)},
            seed=1,
        )


def _patient(epsilon: float) -> dict[str, Any]:
    return {
        "mode": "patient-distributed", "epsilon": epsilon, "delta": 1e-5, "clip": 1.0,
        "batch": 370, "max_patients": 200,
    }  # fmt: skip


def _local(epsilon: float) -> dict[str, Any]:
    return {
        "mode": "patient-local", "epsilon": epsilon, "delta": 1e-5, "clip": 0.5,
        "max_patients": 200, "spare_rounds": 1,
    }  # fmt: skip


def targets() -> list[Target]:
    """Return every kind of model that is attacked; the control comes first."""
    hospital = {"mode": "hospital", "epsilon": 8.0, "delta": 1e-5, "clip": 0.5}
    return [
        Target("none, over-fitted (control)", _MLP, _LONG, {"mode": "none"}, 5),
        Target("none", _LOGISTIC, _SHORT, {"mode": "none"}),
        Target("none", _MLP, _SHORT, {"mode": "none"}),
        Target("patient-distributed", _LOGISTIC, _STEP, _patient(8.0)),
        Target("patient-distributed", _LOGISTIC, _STEP, _patient(1.0)),
        Target("patient-distributed", _MLP, _MLP_STEP, _patient(8.0)),
        Target("hospital", _LOGISTIC, _SHORT, hospital),
        Target("patient-local", _LOGISTIC, _LOCAL_STEPS, _local(8.0), 4, _HALVES),
        Target("patient-local", _LOGISTIC, _LOCAL_STEPS, _local(1.0), 4, _HALVES),
    ]


# --- many models ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Models:
    """What many models say of every patient.

    `margins` float64 [models, patients]: score of the true class less that of the other;
    `member` bool [models, patients]; `auroc` of each model on the patients it did not see.
    """

    margins: Floats
    member: NDArray[np.bool_]
    auroc: Floats


def train_many(study: Study, count: int, seed: int) -> Models:
    """Train `count` models, each on a random half of each hospital's patients."""
    rows = hearts.complete_rows()
    whole = {site: hearts.encode(study, rows[site]) for site in rows}
    features = np.concatenate([data.features for data in whole.values()])
    sick = np.concatenate([data.target for data in whole.values()]) > 0
    rng = np.random.default_rng(seed)
    margins, member, aurocs = [], [], []
    for number in range(count):
        halves = {site: rng.random(data.rows) < 0.5 for site, data in whole.items()}  # noqa: PLR2004
        mine = {
            site: Encoded(data.features[halves[site]], data.target[halves[site]])
            for site, data in whole.items()
        }
        entropy = CountingEntropy(f"membership/{seed}/{number}".encode())
        # Another order of rows for each model, as each run of a study would have.
        seeded = study.model_copy(update={"seed": seed * 10_000 + number})
        scores = _scores(seeded, release(seeded, mine, entropy), features)
        inside = np.concatenate(list(halves.values()))
        margins.append(np.where(sick, scores, -scores))
        member.append(inside)
        aurocs.append(auroc(scores[~inside & sick], scores[~inside & ~sick]))
    return Models(np.array(margins), np.array(member), np.array(aurocs))


def _scores(study: Study, model: Model, features: NDArray[np.float32]) -> Floats:
    with torch.no_grad():
        found: Floats = build(study, model)(torch.from_numpy(features))[:, 0].double().numpy()
    return found


# --- the attack ----------------------------------------------------------------------------------


def likelihood_ratios(models: Models) -> Floats:
    """Return each attacked model's score of each patient, the others being the shadows."""
    out = np.empty_like(models.margins)
    for target in range(len(out)):
        others = np.arange(len(out)) != target
        margins, member = models.margins[others], models.member[others]
        inside, outside = _normal(margins, member), _normal(margins, ~member)
        # One spread for both: with few shadows two of them would be mostly chance.
        spread = np.sqrt((inside[1] + outside[1]) / 2 + 1e-12)
        value = models.margins[target]
        out[target] = ((value - outside[0]) ** 2 - (value - inside[0]) ** 2) / (2 * spread**2)
    return out


def _normal(margins: Floats, which: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    count = np.maximum(which.sum(axis=0), 1)
    mean = np.where(which, margins, 0).sum(axis=0) / count
    variance = np.where(which, (margins - mean) ** 2, 0).sum(axis=0) / count
    return mean, variance


def auroc(positive: Floats, negative: Floats) -> float:
    """Return the chance that a positive scores above a negative, ties half."""
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    won = ranks[: positive.size].sum() - positive.size * (positive.size + 1) / 2
    return float(won / (positive.size * negative.size))


def true_rate(positive: Floats, negative: Floats, false_rate: float = FALSE_RATE) -> float:
    """Return the share of positives above the negatives' highest `false_rate`."""
    return float((positive > np.quantile(negative, 1 - false_rate)).mean())


def judged(models: Models, seed: int) -> tuple[tuple[float, str], tuple[float, str]]:
    """Return AUROC and TPR with bootstrap intervals over the attacked models."""
    scores = likelihood_ratios(models)
    rng = np.random.default_rng(seed)
    draws = [np.arange(len(scores))]
    draws += [rng.integers(len(scores), size=len(scores)) for _ in range(_BOOTSTRAPS)]
    found = []
    for draw in draws:
        member, score = models.member[draw], scores[draw]
        found.append(
            (auroc(score[member], score[~member]), true_rate(score[member], score[~member]))
        )
    figures = np.array(found)
    low, high = np.quantile(figures[1:], [0.025, 0.975], axis=0)
    first, second = ((float(figures[0, k]), f"{low[k]:.3f} to {high[k]:.3f}") for k in range(2))
    return first, second


# --- the table -----------------------------------------------------------------------------------


def row(target: Target, count: int) -> tuple[Cell, ...]:
    """Return one kind of model's row."""
    kind = str(target.model["kind"])
    study = target.study()
    models = train_many(study, count, seed=1)
    (area, area_interval), (rate, rate_interval) = judged(models, seed=2)
    epsilon = charged(study) if study.privacy.dp.on else None
    return (
        target.name, kind, count, epsilon, area, area_interval, rate, rate_interval,
        _allowed(study), float(models.auroc.mean()),
    )  # fmt: skip


def _allowed(study: Study) -> float | None:
    """Return the largest TPR at `FALSE_RATE` that a patient's guarantee leaves possible."""
    if not study.privacy.dp.on:
        return None
    return min(1.0, math.exp(charged(study)) * FALSE_RATE + (study.privacy.dp.delta or 0.0))


def measure(quick: bool) -> list[Table]:  # noqa: FBT001 - the one switch of every script here
    """Return the table over all kinds of models."""
    count = 10 if quick else 48
    return [Table("membership", _COLUMNS, tuple(row(target, count) for target in targets()))]


if __name__ == "__main__":
    main("membership", measure)
