"""What differential privacy asks of the rest of a study, and the noise that follows from it.

The noise multiplier is part of the completed study, so that every hospital approves and
checks the very number that its noise is made with; `charged` is what the study costs by
the accountant that every hospital's ledger charges (docs/protocol.md, section 9.4).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

from common.config import problem
from common.errors import ConfigError, Refusal
from common.study_models import DEFAULT_BATCH

if TYPE_CHECKING:
    from common.privacy.accountant import Rdp
    from common.study import Study

FIGURES: Final = ("statistics", "evaluation")
"""What a study with differential privacy can pay for beside training: one noised sum each."""

PATIENT_MODES: Final = ("patient-distributed", "patient-local")
"""The modes that protect one patient."""

_DEFAULT_ROUNDS: Final = 10
_DEFAULT_SPARE: Final = 2
_MOST_ROUNDS: Final = 100_000
_MOST_STEPS: Final = 1_000_000
_MOST_DELTA: Final = 0.1
_MOST_WEIGHT: Final = 1e9
_LEAST_NOISE, _MOST_NOISE = 1e-9, 1e9
"""Of a noise multiplier; with less no `Delta_int` makes noise of 4 steps (protocol, 9.1)."""
_TOLERANCE: Final = 1e-9
"""Of epsilon, relative: what two machines' logarithms may differ by."""


def _mode(terms: Mapping[str, Any]) -> object:
    """Return the mode of a study's raw terms: stated, or the one that they imply."""
    return terms.get("mode", "patient-distributed" if terms else "none")


def protects_patients(data: Mapping[str, Any]) -> bool:
    """Whether a study's raw data ask for a mode that protects patients."""
    privacy = data.get("privacy")
    terms = privacy.get("dp") if isinstance(privacy, dict) else None
    return isinstance(terms, dict) and _mode(terms) in PATIENT_MODES


def complete_privacy(data: dict[str, Any]) -> dict[str, Any]:
    """Return a study's raw data with what follows from its privacy terms filled in.

    That is equal weights, one step a round in the patient modes, the public batch where the
    sites' public numbers of patients are stated, and the noise multipliers. Values that are
    wrong are left as they are: the sections' own checks name them.
    """
    privacy, federation = data.get("privacy"), data.get("federation", {})
    terms = privacy.get("dp") if isinstance(privacy, dict) else None
    train = data.get("train", {})
    if not (isinstance(privacy, dict) and isinstance(terms, dict)):
        return data
    if not (isinstance(federation, dict) and isinstance(train, dict)):
        return data
    mode = _mode(terms)
    if mode != "none":
        _refuse_norm(data.get("model"))
    if mode not in ("patient-distributed", "patient-local", "hospital"):
        return data
    full = {**data, "federation": {"weights": "equal", **federation}}
    if mode != "hospital" and not {"local_steps", "local_epochs"} & train.keys():
        full["train"] = {**train, "local_steps": 1}
    per_round = full.get("train", train).get("local_steps") if mode == "patient-local" else 1
    if mode == "patient-distributed":
        terms = _with_batch(terms, federation)
    full["privacy"] = {**privacy, "dp": _with_noise(terms, federation, per_round)}
    return full


def _with_batch(terms: dict[str, Any], federation: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the public batch: sampling times the sites' public numbers of patients, if any."""
    weights, p = federation.get("weights"), _number(terms.get("sampling", 1.0), 1)
    if terms.get("batch") is not None or p is None or not isinstance(weights, dict):
        return terms
    numbers = [_number(number, _MOST_WEIGHT) for number in weights.values()]
    patients = sum(number for number in numbers if number is not None)
    return {**terms, "batch": max(1, round(p * patients))} if patients else terms


def _refuse_norm(model: object) -> None:
    """Say why: statistics of a batch mix its patients (7.1); the rest has no closed form here."""
    norm = model.get("norm") if isinstance(model, dict) else None
    if norm == "batch":
        raise problem(
            "is batch, which mixes the patients of a batch: a gradient then depends on the others "
            "and cannot be clipped patient by patient. With differential privacy use none",
            "model", "norm",
        )  # fmt: skip
    if norm == "layer":
        raise problem(
            "is layer, whose gradients this version does not clip patient by patient. With "
            "differential privacy use none",
            "model", "norm",
        )  # fmt: skip


def _with_noise(
    terms: dict[str, Any], federation: Mapping[str, Any], per_round: object
) -> dict[str, Any]:
    full = dict(terms)
    for figure in FIGURES:
        stated, follows = f"{figure}_epsilon", f"{figure}_noise"
        if full.get(stated) is not None and full.get(follows) is None:
            full[follows] = _figure_noise(full, stated)
    if full.get("noise_multiplier") is None:
        full["noise_multiplier"] = _noise_multiplier(full, federation, per_round)
    return full


def _figure_noise(terms: Mapping[str, Any], key: str) -> float | None:
    wanted = _number(terms.get(key), 1000)
    delta = _number(terms.get("delta"), _MOST_DELTA)
    return None if wanted is None or delta is None else _calibrated(key, wanted, delta, 1)


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
    from common.privacy.accountant import epsilon as epsilon_of  # it brings numpy

    paid = [figure for figure in FIGURES if terms.get(f"{figure}_epsilon") is not None]
    figures = _figures_cost([_noise(terms.get(f"{name}_noise")) for name in paid])
    if epsilon_of(figures, delta).epsilon >= epsilon:
        raise problem(
            f"leaves nothing of epsilon {epsilon:g} for training", "privacy", "dp",
            f"{paid[-1]}_epsilon",
        )  # fmt: skip
    return _calibrated("epsilon", epsilon, delta, (rounds + spare) * local, p, figures)


def _figures_cost(noises: Iterable[float | None]) -> Rdp:
    """Return the cost of one noised sum for each noise multiplier that is there."""
    from common.privacy.accountant import NOTHING, add, step_rdp  # it brings numpy

    costs = (step_rdp(1 / noise) for noise in noises if noise is not None)
    return reduce(add, costs, NOTHING)


def _calibrated(
    key: str, wanted: float, delta: float, steps: int, p: float = 1.0, besides: Rdp | None = None
) -> float:
    """Return the least noise for `wanted`; `besides` is what else the study charges."""
    from common.privacy.accountant import NOTHING  # it brings numpy
    from common.privacy.calibration import noise_multiplier

    try:
        return noise_multiplier(wanted, delta, steps, p, besides or NOTHING)
    except ConfigError as failure:
        raise problem(failure.detail, "privacy", "dp", key) from None


def _number(value: object, most: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        return None
    return float(value)


def _noise(value: object) -> float | None:
    found = _number(value, _MOST_NOISE)
    return None if found is None or found < _LEAST_NOISE else found


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
    """Return the Rényi cost of all rounds that the noise of a study pays for, figures too.

    Raises:
        ValueError: (a `problem`) the study has no noise.
    """
    from common.privacy.accountant import add, step_rdp, times  # it brings numpy

    terms = study.privacy.dp
    if terms.noise_multiplier is None:
        raise problem("is missing", "privacy", "dp", "noise_multiplier")
    training = times(step_rdp(1 / terms.noise_multiplier, terms.sampling or 1.0), steps(study))
    return add(training, _figures_cost((terms.statistics_noise, terms.evaluation_noise)))


def check_privacy(study: Study) -> None:
    """Refuse a study whose other sections would let something out beside the guarantee.

    Raises:
        ValueError: (a `problem`) with the path of the key to change.
    """
    if study.kind == "statistics":
        raise problem(
            "is not for studies of kind statistics in this version, whose sums have no noise; "
            "it must be none",
            "privacy", "dp", "mode",
            name="NOT_SUPPORTED",
        )  # fmt: skip
    _check_federation(study)
    _check_split(study)
    if study.privacy.dp.mode == "patient-local":
        _check_local(study)
    _check_figures(study)
    _check_noise(study)
    _check_constants(study)
    _check_ring(study)
    _check_reserve(study)
    if study.privacy.dp.mode == "patient-distributed":
        _check_step(study)


def _check_noise(study: Study) -> None:
    terms = study.privacy.dp
    found, stated = charged(study), terms.epsilon or 0.0
    if not found <= stated * (1 + _TOLERANCE):
        raise problem(
            f"is {terms.noise_multiplier:g}, which charges epsilon {found:.4f} over "
            f"{steps(study)} steps; the study states {stated:g}. Leave the key out: it follows",
            "privacy", "dp", "noise_multiplier",
        )  # fmt: skip


def _check_figures(study: Study) -> None:
    terms = study.privacy.dp
    for figure in FIGURES:
        stated, follows = f"{figure}_epsilon", f"{figure}_noise"
        if getattr(terms, follows) is None:
            continue
        if getattr(terms, stated) is None:
            raise problem(f"needs the key '{stated}'", "privacy", "dp", follows)
        if terms.mode != "patient-distributed":
            raise problem(
                "is for mode patient-distributed in this version, for the hospitals share the "
                "noise of a figure: remove it",
                "privacy", "dp", stated, name="NOT_SUPPORTED",
            )  # fmt: skip
        _check_figure(figure, getattr(terms, stated), getattr(terms, follows), terms.delta or 0.0)
    if terms.evaluation_noise is not None and study.target.type != "binary":
        raise problem(
            "is for binary targets in this version; leave it out, and no figure of the model "
            "leaves a hospital",
            "privacy", "dp", "evaluation_epsilon", name="NOT_SUPPORTED",
        )  # fmt: skip


def _check_figure(figure: str, stated: float, noise: float, delta: float) -> None:
    """Refuse noise that would make a figure cost more than people read in the study."""
    from common.privacy.accountant import epsilon, step_rdp  # it brings numpy

    found = epsilon(step_rdp(1 / noise), delta).epsilon
    if not found <= stated * (1 + _TOLERANCE):
        raise problem(
            f"is {noise:g}, which charges epsilon {found:.4f}; the study states {stated:g}. Leave "
            "the key out: it follows",
            "privacy", "dp", f"{figure}_noise",
        )  # fmt: skip


def _check_constants(study: Study) -> None:
    """Means and scales of patients are a release of their own: noised and paid, or constants."""
    from common import noised_statistics, statistics  # they bring numpy

    if study.privacy.dp.statistics_noise is not None:
        if not statistics.needed(study):
            raise problem(
                "pays for constants that this study does not take from patients: remove it",
                "privacy", "dp", "statistics_epsilon",
            )  # fmt: skip
        wrong = noised_statistics.unsupported(study)
        if wrong is not None:
            raise problem(wrong[1], "features", wrong[0])
        return
    if study.normalise == "federated":
        raise problem(
            "is federated, which sums patients' values without noise; with differential privacy "
            "use fixed (each numeric feature states centre and scale) or none, or pay for noised "
            "sums with privacy.dp.statistics_epsilon",
            "normalise",
        )
    for index, feature in enumerate(study.features):
        if feature.impute not in ("none", "drop-row", "centre"):
            raise problem(
                f"is {feature.impute}, which is computed from patients without noise; with "
                "differential privacy use centre (a public constant), drop-row or none",
                "features", index, "impute",
            )  # fmt: skip


def _check_federation(study: Study) -> None:
    rule, mode = study.federation.weight_rule, study.privacy.dp.mode
    patients = mode in PATIENT_MODES
    if rule != "equal" and not (patients and rule == "public"):
        wanted = "equal (each hospital counts the same)"
        if patients:
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
    if study.evaluate.subgroups:
        raise problem(
            "is given, but each subgroup's figures would have to be noised and paid for; with "
            "differential privacy it must be empty",
            "evaluate", "subgroups",
        )  # fmt: skip


def _check_split(study: Study) -> None:
    """One patient's label must not decide on which side of the split another one falls."""
    if study.privacy.dp.mode in PATIENT_MODES and getattr(study.split, "stratify", False):
        raise problem(
            "is true, which lets one patient's label move others between training and test; with "
            "differential privacy for patients it must be false",
            "split", "stratify",
        )  # fmt: skip


def _check_ring(study: Study) -> None:
    """Refuse a clip that the ring's integers cannot carry (7.3), at the fewest hospitals.

    Every hospital asks again for the roster it is in.
    """
    from common.layouts import round_layout  # it brings numpy
    from common.secagg.dp import check_terms
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
    try:
        terms = layout.dp.terms(h)
        check_terms(terms, n=n, h=h, d=layout.schema.words, w=layout.ring_bits)
    except Refusal as refusal:
        raise problem(
            f"is not carried by the ring: {refusal.detail}. Lower max_patients, or state a larger "
            "epsilon",
            "privacy", "dp", "clip",
        ) from None  # fmt: skip


def _check_reserve(study: Study) -> None:
    """Refuse a delta that every hospital's books would find too small in the first round (9.4)."""
    from common.layouts import model_schema  # it brings numpy
    from common.privacy.accountant import check_reserve

    terms, n, d = study.privacy.dp, study.federation.min_sites, model_schema(study).parameters
    try:
        check_reserve(
            terms.epsilon or 0.0, terms.delta or 0.0, rounds=steps(study) + len(FIGURES), n=n, d=d
        )
    except Refusal as refusal:
        raise problem(
            f"does not pay for the noise: {refusal.detail}. State a larger delta or a smaller "
            "epsilon",
            "privacy", "dp", "delta",
        ) from None  # fmt: skip


def _check_step(study: Study) -> None:
    train = study.train
    if train.optimiser != "sgd" or train.local_steps != 1 or train.weight_decay:
        raise problem(
            "must be sgd with local_steps 1 and no weight_decay: in mode patient-distributed a "
            "round is one gradient step of the whole federation",
            "train",
        )


def _check_local(study: Study) -> None:
    """Steps are counted, and divided by public numbers only (protocol, section 9.6)."""
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
