"""What differential privacy asks of the rest of a study, and the noise that follows from it.

The noise multiplier is part of the completed study, so that every hospital approves and
checks the very number that its noise is made with; `charged` is what the study costs by
the accountant that every hospital's ledger charges (docs/protocol.md, section 9.4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from common.config import problem
from common.errors import ConfigError

if TYPE_CHECKING:
    from common.privacy.accountant import Rdp
    from common.study import Study

_DEFAULT_ROUNDS: Final = 10
_DEFAULT_SPARE: Final = 2
_MOST_ROUNDS: Final = 100_000
_MOST_DELTA: Final = 0.1
_TOLERANCE: Final = 1e-9
"""Of epsilon, relative: what two machines' logarithms may differ by."""


def complete_privacy(data: dict[str, Any]) -> dict[str, Any]:
    """Return a study's raw data with what follows from its privacy terms filled in.

    That is equal weights, the one step a round of patient-distributed, and the noise
    multiplier. Values that are wrong are left as they are: the sections' own checks name
    them.
    """
    privacy, federation = data.get("privacy"), data.get("federation", {})
    terms = privacy.get("dp") if isinstance(privacy, dict) else None
    train = data.get("train", {})
    if not (isinstance(privacy, dict) and isinstance(terms, dict)):
        return data
    if not (isinstance(federation, dict) and isinstance(train, dict)):
        return data
    mode = terms.get("mode", "patient-distributed" if terms else "none")
    if mode != "none":
        _refuse_batch_norm(data.get("model"))
    if mode not in ("patient-distributed", "hospital"):
        return data
    full = {**data, "federation": {"weights": "equal", **federation}}
    if mode == "patient-distributed" and not {"local_steps", "local_epochs"} & train.keys():
        full["train"] = {**train, "local_steps": 1}
    if terms.get("noise_multiplier") is None:
        z = _noise_multiplier(terms, federation)
        if z is not None:
            full["privacy"] = {**privacy, "dp": {**terms, "noise_multiplier": z}}
    return full


def _refuse_batch_norm(model: object) -> None:
    """Say why, not only that no version has it: statistics of a batch mix its patients (7.1)."""
    if isinstance(model, dict) and model.get("norm") == "batch":
        raise problem(
            "is batch, which mixes the patients of a batch: a gradient then depends on the others "
            "and cannot be clipped patient by patient. With differential privacy use none",
            "model", "norm",
        )  # fmt: skip


def _noise_multiplier(terms: Mapping[str, Any], federation: Mapping[str, Any]) -> float | None:
    """Return z for raw terms, None if they are not numbers that have one."""
    epsilon = _number(terms.get("epsilon"), 1000)
    delta = _number(terms.get("delta"), _MOST_DELTA)
    p = _number(terms.get("sampling", 1.0), 1)
    rounds = _count(federation.get("rounds", _DEFAULT_ROUNDS))
    spare = _count(terms.get("spare_rounds", _DEFAULT_SPARE))
    if epsilon is None or delta is None or p is None or not rounds or spare is None:
        return None
    from common.privacy.calibration import noise_multiplier  # it brings numpy

    try:
        return noise_multiplier(epsilon, delta, rounds + spare, p)
    except ConfigError as failure:
        raise problem(failure.detail, "privacy", "dp", "epsilon") from None


def _number(value: object, most: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        return None
    return float(value)


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST_ROUNDS else None


def steps(study: Study) -> int:
    """Return the noised steps that the study's epsilon pays for."""
    return study.federation.rounds + (study.privacy.dp.spare_rounds or 0)


def charged(study: Study) -> float:
    """Return the epsilon that the study charges at the most, at its delta; 0 without DP."""
    if not study.privacy.dp.on:
        return 0.0
    from common.privacy.accountant import epsilon  # it brings numpy

    return epsilon(study_cost(study), study.privacy.dp.delta or 0.0).epsilon


def study_cost(study: Study) -> Rdp:
    """Return the Rényi cost of all rounds that the noise of a study pays for.

    Raises:
        ValueError: (a `problem`) the study has no noise.
    """
    from common.privacy.accountant import step_rdp, times  # it brings numpy

    terms = study.privacy.dp
    if terms.noise_multiplier is None:
        raise problem("is missing", "privacy", "dp", "noise_multiplier")
    return times(step_rdp(1 / terms.noise_multiplier, terms.sampling or 1.0), steps(study))


def check_privacy(study: Study) -> None:
    """Refuse a study whose other sections would let something out beside the guarantee.

    Raises:
        ValueError: (a `problem`) with the path of the key to change.
    """
    if study.kind == "statistics":
        raise problem(
            "is not for studies of kind statistics in this version", "privacy", "dp", "mode",
            name="NOT_SUPPORTED",
        )  # fmt: skip
    _check_noise(study)
    _check_constants(study)
    _check_federation(study)
    _check_ring(study)
    if study.privacy.dp.mode == "patient-distributed":
        _check_step(study)


def _check_noise(study: Study) -> None:
    terms = study.privacy.dp
    found, stated = charged(study), terms.epsilon or 0.0
    if found > stated * (1 + _TOLERANCE):
        raise problem(
            f"is {terms.noise_multiplier:g}, which charges epsilon {found:.4f} over "
            f"{steps(study)} rounds; the study states {stated:g}. Leave the key out: it follows",
            "privacy", "dp", "noise_multiplier",
        )  # fmt: skip


def _check_constants(study: Study) -> None:
    """Means and scales of patients would be a release of their own: public constants only."""
    if study.normalise == "federated":
        raise problem(
            "is federated, which sums patients' values without noise; with differential privacy "
            "use fixed (each numeric feature states centre and scale) or none",
            "normalise",
        )
    for index, feature in enumerate(study.features):
        if feature.impute not in ("none", "drop-row"):
            raise problem(
                f"is {feature.impute}, which is computed from patients without noise; with "
                "differential privacy use none or drop-row",
                "features", index, "impute",
            )  # fmt: skip


def _check_federation(study: Study) -> None:
    federation, terms = study.federation, study.privacy.dp
    if federation.weight_rule != "equal":
        raise problem(
            f"is {federation.weight_rule}; with dp mode {terms.mode} it must be equal (each "
            "patient, or hospital, counts the same)",
            "federation", "weights",
        )  # fmt: skip
    if study.evaluate.site_metrics:
        raise problem(
            "is true, which releases figures without noise; with differential privacy it must be "
            "false",
            "evaluate", "site_metrics",
        )  # fmt: skip


def _check_ring(study: Study) -> None:
    """Refuse a clip that the ring's integers cannot carry (7.3), at the fewest hospitals.

    Every hospital asks again for the roster it is in.
    """
    from common.layouts import round_layout  # it brings numpy
    from common.secagg.dp import word_bound
    from common.secagg.header import RoundKind

    layout = round_layout(study, RoundKind.TRAIN)
    if layout.dp is None:
        return
    clip, delta_int = layout.dp.clip, layout.dp.delta_int
    if not math.isfinite(delta_int / clip) or clip / delta_int == 0:
        raise problem(
            f"is {clip:g}, which {delta_int} integer steps cannot carry: a step would be "
            f"{clip / delta_int:g}. State a clip near the length of one patient's gradient",
            "privacy", "dp", "clip",
        )  # fmt: skip
    n = study.federation.min_sites
    h = max(2, n - study.colluders(n))
    if n * word_bound(layout.dp.terms(h)) > (1 << (layout.ring_bits - 1)) - 1:
        raise problem(
            f"is not carried by a ring of {layout.ring_bits} bits: {n} hospitals with "
            f"{layout.dp.m_max or 1} patients of {delta_int} steps each and noise of "
            f"z {layout.dp.z:g}. Lower max_patients, or state a larger epsilon",
            "privacy", "dp", "clip",
        )  # fmt: skip


def _check_step(study: Study) -> None:
    train = study.train
    if train.optimiser != "sgd" or train.local_steps != 1 or train.weight_decay:
        raise problem(
            "must be sgd with local_steps 1 and no weight_decay: in mode patient-distributed a "
            "round is one gradient step of the whole federation",
            "train",
        )
