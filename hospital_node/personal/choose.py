"""Which candidate becomes the hospital's personal model.

A candidate is judged by its loss (in nats; of a number, the squared error; of a time to an
event, what the unseen patients add to the negative log partial likelihood among themselves)
for training patients that its local fit did not see: the patients are dealt into folds, each
fold is predicted by models fitted to the others. Of a model of one layer the average of `own`
and what cannot be told from the best is kept, unless something is clearly better
(`hospital_node.personal.average`); otherwise the smallest mean loss wins. `own` is among the
candidates, so the choice is never worse than it by this measure. The chosen kind is then
fitted to all training rows.

The released model has seen every hospital's rows, the held-out fold among them. That
favours the candidates that start from it a little, by the hospital's share of what the
federation fitted; holding rows out of the federation instead costs far more
(docs/adr/0017). Rows of a split column's `validation` were never trained on by anybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from common.features import Encoded
from common.metrics import PROBABILITY_FLOOR
from common.study import FedBn, Study
from hospital_node.evaluate import finite, predict
from hospital_node.losses import cox_rows
from hospital_node.personal import average
from hospital_node.personal.average import AVERAGED, OWN
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
    settings = {family: held.best_setting(family) for family in families(study)}
    losses = {family: held.losses[family, setting] for family, setting in settings.items()}
    family = average.best(losses)
    others = average.near(losses) if average.possible(study) else ()
    if others:
        held.add_average([(name, settings[name]) for name in others])
        settings[AVERAGED] = f"half own, half {' and '.join(others)}"
        averaged = held.losses[AVERAGED, ""]
        if average.preferred(averaged, losses):
            family = AVERAGED
        losses[AVERAGED] = averaged
    fitted = [*others, OWN] if family == AVERAGED else [family]
    models = [fit(study, site, rows.train, whole, name)[settings[name]] for name in fitted]
    figures = {name: _judged(found, settings[name]) for name, found in losses.items()}
    key = (family, "" if family == AVERAGED else settings[family])
    return Choice(
        family=family,
        setting=settings[family],
        weights=average.mixed(models[-1], models[:-1]) if family == AVERAGED else models[0],
        why=_why(study, family, figures, fresh=rows.validation.rows > 0),
        figures=figures,
        calibration=_calibration(study, held.predictions[key], held.target),
    )


def _judged(losses: NDArray[np.float64], setting: str) -> Judged:
    spread = float(losses.std(ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else 0.0
    return Judged(float(losses.mean()), spread, setting)


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
    loss = f"{best[family].loss:.4f}{against}"
    if family == AVERAGED:
        return (
            f"Nothing is clearly better than {best[family].setting}: {measure} for {where} {loss}."
        )
    return f"Smallest {measure} for {where}: {loss}."


Key: TypeAlias = tuple[str, str]
"""A candidate and its setting."""


class _Held:
    """Losses and predictions of every candidate for rows that its fit did not see.

    Where an average of the fits can be a candidate, they stay with the rows of their part.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self.losses: dict[Key, NDArray[np.float64]] = {}
        self.predictions: dict[Key, NDArray[np.float64]] = {}
        self.target: NDArray[np.float64] = np.empty(0)
        self._fits: list[tuple[Encoded, dict[Key, Weights]]] = []

    @classmethod
    def of(cls, study: Study, site: str, rows: Rows, federated: Weights, own: Own | None) -> _Held:
        held, train = cls(study), rows.train
        if rows.validation.rows:
            parts = [(train, rows.validation)]
        else:
            fold = folds(study, site, rows)
            count = 1 if train.rows >= ONE_FOLD_ROWS else int(fold.max()) + 1
            parts = [(_take(train, fold != k), _take(train, fold == k)) for k in range(count)]
        averaging = average.possible(study)
        for fitted, unseen in parts:
            models: dict[Key, Weights] = {}
            kept = own if rows.validation.rows else None
            at = start(study, site, fitted, federated, kept)
            for family in families(study):
                for setting, weights in fit(study, site, fitted, at, family).items():
                    held._add((family, setting), weights, unseen)
                    if averaging:
                        models[family, setting] = weights
            held._fits.append((unseen, models))
        held.target = np.concatenate([unseen.target for _, unseen in parts]).astype(np.float64)
        return held

    def best_setting(self, family: str) -> str:
        """Return the family's setting of the smallest mean loss."""
        means = {s: float(losses.mean()) for (f, s), losses in self.losses.items() if f == family}
        return min(means, key=means.__getitem__)

    def add_average(self, others: Sequence[Key]) -> None:
        """Judge the average of `own` and the others as the candidate `averaged`."""
        for unseen, models in self._fits:
            weights = average.mixed(models[OWN, ""], [models[key] for key in others])
            self._add((AVERAGED, ""), weights, unseen)

    def _add(self, key: Key, weights: Weights, unseen: Encoded) -> None:
        found = finite(predict(self._study, weights, unseen.features))
        losses = row_losses(self._study, found, unseen.target.astype(np.float64))
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
