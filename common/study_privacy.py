"""What differential privacy asks of the rest of a study, and the noise that follows from it.

The noise multiplier is part of the completed study, so that every hospital approves and
checks the very number that its noise is made with; `charged` is what the study costs by
the accountant that every hospital's ledger charges (docs/protocol.md, section 9.4).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from common.config import problem
from common.errors import ConfigError
from common.study_sections import DEFAULT_BATCH

if TYPE_CHECKING:
    from common.privacy.accountant import Rdp
    from common.study import Study

_DEFAULT_ROUNDS: Final = 10
_DEFAULT_SPARE: Final = 2
_MOST_ROUNDS: Final = 100_000
_MOST_STEPS: Final = 1_000_000
_MOST_DELTA: Final = 0.1
_TOLERANCE: Final = 1e-9
"""Of epsilon, relative: what two machines' logarithms may differ by."""


def complete_privacy(data: dict[str, Any]) -> dict[str, Any]:
    """Return a study's raw data with what follows from its privacy terms filled in.

    That is equal weights, one step a round in the patient modes, and the noise
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
    if mode not in ("patient-distributed", "patient-local", "hospital"):
        return data
    full = {**data, "federation": {"weights": "equal", **federation}}
    if mode != "hospital" and not {"local_steps", "local_epochs"} & train.keys():
        full["train"] = {**train, "local_steps": 1}
    if terms.get("noise_multiplier") is None:
        per_round = train.get("local_steps", 1) if mode == "patient-local" else 1
        z = _noise_multiplier(terms, federation, per_round)
        if z is not None:
            full["privacy"] = {**privacy, "dp": {**terms, "noise_multiplier": z}}
    return full


def _noise_multiplier(
    terms: Mapping[str, Any], federation: Mapping[str, Any], per_round: object
) -> float | None:
    """Return z for raw terms and noised steps `per_round`, None if no number follows."""
    epsilon = _number(terms.get("epsilon"), 1000)
    delta = _number(terms.get("delta"), _MOST_DELTA)
    p = _number(terms.get("sampling", 1.0), 1)
    rounds = _count(federation.get("rounds", _DEFAULT_ROUNDS))
    spare = _count(terms.get("spare_rounds", _DEFAULT_SPARE))
    local = _count(per_round, _MOST_STEPS)
    if epsilon is None or delta is None or p is None or not rounds or spare is None or not local:
        return None
    from common.privacy.calibration import noise_multiplier  # it brings numpy

    try:
        return noise_multiplier(epsilon, delta, (rounds + spare) * local, p)
    except ConfigError as failure:
        raise problem(failure.detail, "privacy", "dp", "epsilon") from None


def _number(value: object, most: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        return None
    return float(value)


def _count(value: object, most: int = _MOST_ROUNDS) -> int | None:
    return value if type(value) is int and 0 <= value <= most else None


def steps_per_round(study: Study) -> int:
    """Return how many noised steps each hospital takes in a round: K of mode patient-local."""
    match study.privacy.dp.mode:
        case "none":
            return 0
        case "patient-local":
            return study.train.local_steps or 1
        case _:
            return 1


def steps(study: Study) -> int:
    """Return the noised steps that the study's epsilon pays for."""
    return (study.federation.rounds + (study.privacy.dp.spare_rounds or 0)) * steps_per_round(study)


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
    if study.privacy.dp.mode == "patient-distributed":
        _check_step(study)
    elif study.privacy.dp.mode == "patient-local":
        _check_local(study)


def _check_noise(study: Study) -> None:
    terms = study.privacy.dp
    found, stated = charged(study), terms.epsilon or 0.0
    if found > stated * (1 + _TOLERANCE):
        raise problem(
            f"is {terms.noise_multiplier:g}, which charges epsilon {found:.4f} over "
            f"{steps(study)} steps; the study states {stated:g}. Leave the key out: it follows",
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
    rule, mode = study.federation.weight_rule, study.privacy.dp.mode
    local = mode == "patient-local"
    if rule != "equal" and not (local and rule == "public"):
        wanted = "equal (each patient, or hospital, counts the same)"
        if local:
            wanted = "equal, or a public number of patients for each site"
        raise problem(
            f"is {rule}; with dp mode {mode} it must be {wanted}", "federation", "weights"
        )
    if study.evaluate.site_metrics:
        raise problem(
            "is true, which releases figures without noise; with differential privacy it must be "
            "false",
            "evaluate", "site_metrics",
        )  # fmt: skip


def _check_step(study: Study) -> None:
    train = study.train
    if train.optimiser != "sgd" or train.local_steps != 1 or train.weight_decay:
        raise problem(
            "must be sgd with local_steps 1 and no weight_decay: in mode patient-distributed a "
            "round is one gradient step of the whole federation",
            "train",
        )


def _check_local(study: Study) -> None:
    """Steps are counted, and divided by public numbers only (protocol, section 9.5)."""
    train, terms, federation = study.train, study.privacy.dp, study.federation
    if train.optimiser != "sgd" or train.local_steps is None:
        raise problem(
            "must be sgd with local_steps: in mode patient-local a round is that many noised "
            "gradient steps inside each hospital",
            "train",
        )
    if train.batch != DEFAULT_BATCH:
        raise problem(
            "is not used by dp mode patient-local, where a batch is a draw of patients; remove it",
            "train", "batch",
        )  # fmt: skip
    if federation.weight_rule == "equal":
        if terms.batch is None:
            raise problem("needs the key 'batch' with equal weights", "privacy", "dp")
        return
    if terms.batch is not None:
        raise problem(
            "is not used where federation.weights states each site's public number of patients "
            "(a site divides by sampling times its own); remove it",
            "privacy", "dp", "batch",
        )  # fmt: skip
    for site, number in federation.weights.items():
        if number * (terms.sampling or 1.0) < 1:
            raise problem(
                f"gives {site} {number:g}, of which sampling {terms.sampling:g} leaves less than "
                "one patient a step; in mode patient-local it is the site's public number of "
                "patients",
                "federation", "weights", site,
            )  # fmt: skip
