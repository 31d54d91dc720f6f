"""Which candidate becomes the hospital's personal model.

A candidate is judged by its loss (in nats; of a number, the squared error; of a time to an
event, what the unseen patients add to the negative log partial likelihood among themselves)
for training patients that its local fit did not see: the patients are dealt into folds, each
fold is predicted by models fitted to the others, and the smallest mean loss wins. `own` is among
the candidates, so the choice is never worse than it by this measure. The chosen kind is
then fitted to all training rows.

The released model has seen every hospital's rows, the held-out fold among them. That
favours the candidates that start from it a little, by the hospital's share of what the
federation fitted; holding rows out of the federation instead costs far more
(docs/adr/0017). Rows of a split column's `validation` were never trained on by anybody.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from common.features import Encoded
from common.metrics import PROBABILITY_FLOOR
from common.study import FedBn, Study
from hospital_node.evaluate import finite, predict
from hospital_node.losses import cox_rows
from hospital_node.personal.fits import Start, Weights, families, fit, logit, platt, start
from hospital_node.personal_state import Own

LEAST_PATIENTS: Final = 10
"""With fewer no comparison says anything, and the released model is kept. Likewise of events."""

ONE_FOLD_ROWS: Final = 2000
"""From here a single fold is precise enough, and the others would cost time only."""

CALIBRATION_CLASS: Final = 10
"""Fewest patients of each class for a calibration of the chosen model."""

_MEASURES: Final = {
    "continuous": "squared error",
    "survival": "negative log partial likelihood",
}
_SEVERAL: Final = 2


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate's mean loss over held-out rows, its standard error, and its best setting."""

    loss: float
    se: float
    setting: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What the hospital ends with.

    `figures` has the candidates in the study's order; empty where they were not compared.
    `calibration` (a, b) turns the model's logit into the calibrated one, (0, 1) is none.
    """

    family: str
    setting: str
    weights: Weights
    why: str
    figures: dict[str, Judged]
    calibration: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Rows:
    """A hospital's encoded training rows with each row's patient, and validation rows."""

    train: Encoded
    patient: NDArray[np.int64]
    validation: Encoded


def choose(
    study: Study, site: str, rows: Rows, federated: Weights, own: Own | None = None
) -> Choice:
    """Fit, compare and choose. Blocking: about 20 times the hospital's part of the training.

    `federated` is in `layout`, the choice's weights in `full_layout`. `own`, what the run
    kept at the hospital, was fitted to all of its training rows, so it has no part in a
    comparison on them: it is in the final model, and judged where validation rows judge.

    Raises:
        Refusal: INPUT_NAN.
    """
    whole = start(study, site, rows.train, federated, own)
    if np.unique(rows.patient).size < LEAST_PATIENTS:
        return _unjudged(study, whole, "too few patients to compare on")
    if study.target.type == "survival" and _events(rows).sum() < LEAST_PATIENTS:
        return _unjudged(study, whole, "too few events to compare on")
    held = _Held.of(study, site, rows, federated, own)
    best: dict[str, Judged] = {}
    for family in families(study):
        settings = {s: held.losses[f, s] for f, s in held.losses if f == family}
        setting = min(settings, key=lambda name: float(settings[name].mean()))
        found = settings[setting]
        spread = float(found.std(ddof=1) / np.sqrt(len(found))) if len(found) > 1 else 0.0
        best[family] = Judged(float(found.mean()), spread, setting)
    family = min(best, key=lambda name: best[name].loss)
    setting = best[family].setting
    return Choice(
        family=family,
        setting=setting,
        weights=fit(study, site, rows.train, whole, family)[setting],
        why=_why(study, family, best, fresh=rows.validation.rows > 0),
        figures=best,
        calibration=_calibration(study, held.predictions[family, setting], held.target),
    )


def _unjudged(study: Study, at: Start, reason: str) -> Choice:
    family = "fedbn" if isinstance(study.federation.strategy, FedBn) else "federated"
    return Choice(family, "", at.mine, f"The released model is kept: {reason}.", {}, (0.0, 1.0))


def _why(study: Study, family: str, best: dict[str, Judged], *, fresh: bool) -> str:
    """Return the reason in one sentence."""
    measure = _MEASURES.get(study.target.type, "log-loss")
    where = "validation patients" if fresh else "held-out training patients"
    others = [
        f"{best[name].loss:.4f} of {name}"
        for name in ("federated", "own")
        if name in best and name != family
    ]
    against = f" against {' and '.join(others)}" if others else ""
    return f"Smallest {measure} for {where}: {best[family].loss:.4f}{against}."


class _Held:
    """Losses and predictions of every candidate for rows that its fit did not see."""

    def __init__(self) -> None:
        self.losses: dict[tuple[str, str], NDArray[np.float64]] = {}
        self.predictions: dict[tuple[str, str], NDArray[np.float64]] = {}
        self.target: NDArray[np.float64] = np.empty(0)

    @classmethod
    def of(cls, study: Study, site: str, rows: Rows, federated: Weights, own: Own | None) -> _Held:
        held, train = cls(), rows.train
        if rows.validation.rows:
            parts = [(train, rows.validation)]
        else:
            fold = folds(study, site, rows)
            count = 1 if train.rows >= ONE_FOLD_ROWS else int(fold.max()) + 1
            parts = [(_take(train, fold != k), _take(train, fold == k)) for k in range(count)]
        for fitted, unseen in parts:
            target = unseen.target.astype(np.float64)
            kept = own if rows.validation.rows else None
            at = start(study, site, fitted, federated, kept)
            for family in families(study):
                for setting, weights in fit(study, site, fitted, at, family).items():
                    found = finite(predict(study, weights, unseen.features))
                    held._add((family, setting), found, row_losses(study, found, target))
        held.target = np.concatenate([unseen.target for _, unseen in parts]).astype(np.float64)
        return held

    def _add(
        self, key: tuple[str, str], found: NDArray[np.float64], losses: NDArray[np.float64]
    ) -> None:
        if key in self.losses:
            found = np.concatenate([self.predictions[key], found])
            losses = np.concatenate([self.losses[key], losses])
        self.predictions[key], self.losses[key] = found, losses


def folds(study: Study, site: str, rows: Rows) -> NDArray[np.int64]:
    """Return each row's fold. A patient's rows share one; classes are spread evenly."""
    patients, places = np.unique(rows.patient, return_inverse=True)
    count = min(round(1 / study.personal.validation), patients.size // _SEVERAL)
    text = f"{study.id}/{study.seed}/{site}/folds"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(patients.size)
    if study.target.type != "continuous":
        labels = np.full(patients.size, -np.inf)
        shown = _events(rows) if study.target.type == "survival" else rows.train.target
        np.maximum.at(labels, places, shown.astype(np.float64))
        order = order[np.argsort(labels[order], kind="stable")]
    dealt = np.empty(patients.size, np.int64)
    dealt[order] = np.arange(patients.size) % count
    fold: NDArray[np.int64] = dealt[places]
    return fold


def row_losses(
    study: Study, predictions: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return each row's loss: minus the log of the true class's probability, or (y - f)^2.

    Of a time to an event the rows are compared with each other (`hospital_node.losses`).
    """
    match study.target.type:
        case "binary":
            right = np.where(target > 0, predictions, 1.0 - predictions)
        case "multiclass":
            right = predictions[np.arange(len(target)), target.astype(np.int64)]
        case "survival":
            eta, seen = torch.from_numpy(predictions), torch.from_numpy(target)
            compared: NDArray[np.float64] = cox_rows(eta, seen).numpy()
            return compared
        case _:
            squared: NDArray[np.float64] = (predictions - target) ** 2
            return squared
    losses: NDArray[np.float64] = -np.log(np.clip(right, PROBABILITY_FLOOR, 1.0))
    return losses


def _events(rows: Rows) -> NDArray[np.float32]:
    """Return 1 for each training row of a survival study that had the event, else 0."""
    return rows.train.target[:, 1]


def _calibration(
    study: Study, predictions: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[float, float]:
    sick = int(target.sum()) if study.target.type == "binary" else 0
    if min(sick, len(target) - sick) < CALIBRATION_CLASS:
        return 0.0, 1.0
    return platt(logit(predictions), target)


def _take(data: Encoded, rows: NDArray[np.bool_]) -> Encoded:
    return Encoded(data.features[rows], data.target[rows])
