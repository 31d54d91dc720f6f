"""Score patients at the hospital: risk, calibrated risk, what drove it, and what to mind.

    scorer = Scorer.personal(artefact.load(folder))
    for patient in scorer.score(read_csv(path, scorer.columns(), renamed), explain=3):
        ...

A row that the data contract refuses is reported with the reason, never the value; the
others are scored. Everything is computed over whole columns, so a file of many thousand
patients takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from common.features import Table
from common.layouts import split_model
from common.models import with_own
from common.preprocessing import Preprocessing
from common.study import MulticlassTarget, Study
from common.study_images import image_of
from hospital_node.data.contract import read_patients
from hospital_node.data.csv import TextTable
from hospital_node.evaluate import finite, predict
from hospital_node.personal.artefact import Personal
from hospital_node.personal.explain import drivers
from hospital_node.personal.fits import logit


@dataclass(frozen=True, slots=True)
class Patient:
    """One row's answer; `row` counts from 1, the header not included.

    `risk`: P(positive), the number, or P(`level`) of the most likely level. `calibrated`:
    the risk by the hospital's own calibration, equal to it where there is none. `drivers`:
    (feature, signed contribution), the largest first. `refused`: why there is no risk.
    """

    row: int
    risk: float | None = None
    calibrated: float | None = None
    level: str | None = None
    drivers: tuple[tuple[str, float], ...] = ()
    warnings: tuple[str, ...] = ()
    refused: str = ""

    def data(self) -> dict[str, object]:
        """Return the form for JSON."""
        level = {} if self.level is None else {"level": self.level}
        return {
            "row": self.row,
            "risk": self.risk,
            "calibrated": self.calibrated,
            **level,
            "drivers": [{"feature": name, "contribution": v} for name, v in self.drivers],
            "warnings": list(self.warnings),
            "refused": self.refused or None,
        }


@dataclass(frozen=True, slots=True)
class Scorer:
    """A model ready to score. `ranges`: of each number, in the hospital's own patients."""

    study: Study
    preprocessing: Preprocessing
    weights: NDArray[np.float32]
    calibration: tuple[float, float] = (0.0, 1.0)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def personal(cls, model: Personal) -> Scorer:
        """Return the hospital's own model.

        Raises:
            ConfigError: NOT_SUPPORTED, it predicts from images.
        """
        _check_columns(model.study)
        return cls(model.study, *model.model(), model.calibration, model.ranges)

    @classmethod
    def released(
        cls,
        study: Study,
        flat: NDArray[np.float32],
        ranges: Mapping[str, tuple[float, float]] | None = None,
        norms: NDArray[np.float32] | None = None,
    ) -> Scorer:
        """Return the released model, which nobody calibrated for this hospital.

        `norms`: with the strategy fedbn, the hospital's own normalisation, which belongs to it.

        Raises:
            ConfigError: NOT_SUPPORTED, the study's model predicts nothing, or from images.
        """
        _check_columns(study)
        if study.kind != "training" or study.model.kind == "vector":
            raise ConfigError("NOT_SUPPORTED", f"study {study.id} has no model that predicts")
        preprocessing, shared = split_model(study, flat)
        return cls(study, preprocessing, with_own(study, shared, norms), ranges=ranges or {})

    def columns(self) -> tuple[str, ...]:
        """Return the columns a table of patients needs: the features, by the study's names."""
        return tuple(feature.name for feature in self.study.features)

    def score(self, text: TextTable, explain: int = 3) -> list[Patient]:
        """Return every row's answer, in the file's order, with its `explain` largest drivers.

        Raises:
            Refusal: INPUT_NAN, the model predicts a value that is not finite.
        """
        values, notes = read_patients(self.study, text)
        good = np.flatnonzero([not note for note in notes]).astype(np.int64)
        found = [Patient(row + 1, refused=note) for row, note in enumerate(notes)]
        if good.size == 0:
            return found
        chosen = values[good]
        table = Table(chosen, np.zeros(good.size), good)
        features = self.preprocessing.encode(self.study, table).features
        risks, levels = self._risks(finite(predict(self.study, self.weights, features)))
        calibrated = self._calibrated(risks)
        causes = self._drivers(features, explain)
        warnings = self._warnings(chosen)
        for place, row in enumerate(good.tolist()):
            found[row] = Patient(
                row + 1,
                float(risks[place]),
                float(calibrated[place]),
                None if levels is None else levels[place],
                causes[place],
                tuple(warnings[place]),
            )
        return found

    def _risks(
        self, predictions: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], list[str] | None]:
        target = self.study.target
        if not isinstance(target, MulticlassTarget):
            return predictions, None
        top = predictions.argmax(axis=1)
        return predictions.max(axis=1), [target.levels[place] for place in top.tolist()]

    def _calibrated(self, risks: NDArray[np.float64]) -> NDArray[np.float64]:
        a, b = self.calibration
        if self.study.target.type != "binary" or (a, b) == (0.0, 1.0):
            return risks
        moved: NDArray[np.float64] = 1 / (1 + np.exp(-(a + b * logit(risks))))
        return moved

    def _drivers(
        self, features: NDArray[np.float32], explain: int
    ) -> list[tuple[tuple[str, float], ...]]:
        if explain <= 0:
            return [()] * len(features)
        found = drivers(self.study, self.weights, features).contributions
        order = np.argsort(-np.abs(found), axis=1, kind="stable")[:, :explain]
        largest = np.take_along_axis(found, order, axis=1)
        names = self.columns()
        return [
            tuple((names[place], value) for place, value in zip(places, values, strict=True))
            for places, values in zip(order.tolist(), largest.tolist(), strict=True)
        ]

    def _warnings(self, values: NDArray[np.float64]) -> list[list[str]]:
        found: list[list[str]] = [[] for _ in values]
        for place, feature in enumerate(self.study.features):
            column = values[:, place]
            missing = np.isnan(column)
            for row in np.flatnonzero(missing).tolist():
                found[row].append(f"{feature.name}: not measured, a stand-in was used")
            if feature.name not in self.ranges:
                continue
            low, high = self.ranges[feature.name]
            with np.errstate(invalid="ignore"):
                outside = ~missing & ((column < low) | (column > high))
            for row in np.flatnonzero(outside).tolist():
                found[row].append(
                    f"{feature.name}: outside what 98 of 100 of this hospital's patients have"
                )
        return found


def _check_columns(study: Study) -> None:
    if image_of(study) is not None:
        raise ConfigError("NOT_SUPPORTED", "this version scores no patients from images")
