"""From a released model and a hospital's rows to its personal model on the disk."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

import numpy as np

from common import layouts
from common.errors import StateError
from common.features import Table
from common.manifest import MANIFEST_FILE, Manifest
from common.models import with_own
from common.study import Study
from common.vectors import ParameterSchema, model_digest
from hospital_node.data.load import SiteData
from hospital_node.evaluate import site_metrics
from hospital_node.personal import artefact
from hospital_node.personal.choose import Rows, choose
from hospital_node.personal.fits import Weights
from hospital_node.personal_state import FEDBN, Own
from hospital_node.receive import read_model

RANGE_PERCENT = (1.0, 99.0)
"""Of the hospital's own training rows; a patient outside is unlike those it learned from."""


def make(
    study: Study,
    site: str,
    data: SiteData,
    released: Weights,
    folder: Path,
    own: Own | None = None,
) -> str:
    """Choose and keep the personal model; return how it was made. Blocking.

    `released`: the whole flat model, constants first; `own`: what the run kept at the hospital.

    Raises:
        DataError, Refusal (INPUT_NAN), StateError (DISK, MODEL_INVALID).
    """
    preprocessing, federated = layouts.split_model(study, released)
    train = preprocessing.encode(study, data.train)
    rows = Rows(train, data.train.patient, preprocessing.encode(study, data.validation))
    choice = choose(study, site, rows, federated, own)
    record = {
        "site": site,
        "released_sha256": hashlib.sha256(released.tobytes()).hexdigest(),
        "chosen": choice.family,
        "setting": choice.setting,
        "why": choice.why,
        "candidates": {name: asdict(found) for name, found in choice.figures.items()},
        "calibration": list(choice.calibration),
        "ranges": _ranges(study, data.train),
        "test": {},
    }
    if data.test.rows:
        test = preprocessing.encode(study, data.test)
        shown = with_own(study, federated, (own or {}).get(FEDBN))
        record["test"] = {
            "personal": site_metrics(study, choice.weights, test, train).as_dict(study),
            "federated": site_metrics(study, shown, test, train).as_dict(study),
        }
    constants = released[: layouts.constant_count(study)]
    flat = np.concatenate([constants, choice.weights])
    artefact.save(folder, study, flat, record)
    return choice.family


def read_released(file: Path, schema: ParameterSchema) -> Weights:
    """Return the flat model of a kept release, which may have lain there for long.

    Raises:
        StateError: MODEL_INVALID, it is not the one of the manifest beside it.
    """
    raw = read_model(file, schema)
    manifest = Manifest.from_json((file.parent / MANIFEST_FILE).read_bytes())
    if model_digest(schema, raw).hex() != manifest.model_sha256:
        where = f"{file.parent.name}/{file.name}"
        raise StateError("MODEL_INVALID", f"{where} is not the model of its manifest")
    return schema.flat(raw)


def _ranges(study: Study, train: Table) -> dict[str, list[float]]:
    """Return the reference range of each number that any training row has."""
    found: dict[str, list[float]] = {}
    for place, feature in enumerate(study.features):
        values = train.values[:, place]
        values = values[~np.isnan(values)]
        if feature.numeric and values.size:
            found[feature.name] = [float(v) for v in np.percentile(values, RANGE_PERCENT)]
    return found
