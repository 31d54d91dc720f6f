"""What the rounds of a study add up: both sides derive it from the study alone.

A run is a row of rounds of three kinds. Each has a layout of its own (the tensors of
the vector `v`), a ring, and rules for its ranges; a header that differs is refused by
every hospital. The *model* that travels is the same throughout: first the constants of
preprocessing, as tensors named `preprocess.*`, then the weights, then, with SCAFFOLD, the
server's control variate, `control.*`. Because the constants and the control variate are
part of the model, the header's `model_sha256` binds them, and no hospital can be made to
scale its data, or to correct its gradients, differently from the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common import counting, evaluation, models, noised_evaluation, noised_statistics, statistics
from common.errors import InternalError
from common.features import encoded_columns
from common.model_file import CONSTANT_PREFIX, CONTROL_PREFIX, is_control
from common.preprocessing import Preprocessing
from common.quantise import limb_ranges
from common.regression import sums
from common.secagg.dp import DpMode, DpPlan, DpTerms, codes_ranges, delta_int_of
from common.secagg.header import Rounding, RoundKind
from common.secagg.node_state import HeaderExpectation, RangeRule, SessionExpectation
from common.secagg.params import SecAggParams
from common.study import NARROW_BITS, Newton, Scaffold, Study, VectorModel
from common.study_privacy import steps_per_round
from common.vectors import ParameterSchema, TensorSpec, TensorType

TRAIN_RING_BITS: Final = 32
FIRST_RANGE: Final = 1.0
"""Range of a weight's update before any aggregate is known, and the least one ever."""

FIRST_CONTROL_RANGE: Final = 32.0
"""The same for a control variate's change, which is a gradient and not a step of `lr` times it.

Rounding is 32 times as coarse for it, still far below what one batch's gradient varies by."""

RANGE_FACTOR: Final = 8.0
"""`R_l` is this many times the root mean square of the last aggregate (section 7.2)."""

MOST_SITES_NARROW: Final = 64
"""With DP the ring has 32 bits if this many hospitals' patients fit it, else 64."""

REACH_FACTOR: Final = 8.0
"""In the narrow ring `R_l` is this many times what the hospitals' updates reached on average.

Of up to four hospitals none reaches farther than four times the mean, so an update as large
as ever lies within half the range, and one hospital that alone is cut off at a range too
narrow at least doubles it in the next round."""

REACH: Final = "reach."
"""Metric words of the narrow ring: how far a hospital's update of each tensor reached."""

_CENTRE, _SCALE, _IMPUTE = (f"{CONSTANT_PREFIX}{name}" for name in ("centre", "scale", "impute"))


@dataclass(frozen=True, slots=True)
class RoundLayout:
    """The vector of one kind of round: its schema, its ring, its rules for the ranges.

    `dp`: the privacy terms that a study with differential privacy fixes for the round.
    """

    kind: RoundKind
    schema: ParameterSchema
    ring_bits: int
    ranges: tuple[RangeRule, ...]
    dp: DpPlan | None = None

    @property
    def rounding(self) -> Rounding | None:
        """None: the rule of section 7.2. Noised integers were rounded at random (7.3)."""
        coded = self.dp is None or codes_ranges(self.dp.mode)
        return None if coded else Rounding.STOCHASTIC


def has_constants(study: Study) -> bool:
    """Whether the study's model carries preprocessing; a `vector` has no data at all."""
    return not isinstance(study.model, VectorModel)


def round_kinds(study: Study) -> tuple[RoundKind, ...]:
    """Return the kinds of a run's rounds, in order."""
    if study.kind == "statistics":
        return (RoundKind.STATISTICS,)
    trained = (RoundKind.TRAIN,) * study.federation.rounds
    if not has_constants(study):
        return trained
    first = (RoundKind.STATISTICS,) if statistics.needed(study) else ()
    if study.privacy.dp.on and study.privacy.dp.evaluation_noise is None:
        return (*first, *trained)  # counts and losses would leave without noise
    return (*first, *trained, RoundKind.EVALUATE)


def result_schema(study: Study) -> ParameterSchema:
    """Return the layout of what a run makes: of its model, or of a statistics study's one sum."""
    return counting.layout(study) if study.kind == "statistics" else model_schema(study)


def model_schema(study: Study) -> ParameterSchema:
    """Return the layout of the model that travels, which is also a training round's."""
    weights = models.layout(study)
    kind = TensorType(study.federation.download)
    travelling = (replace(tensor, dtype=kind) for tensor in weights.tensors)
    tensors = (*_constants(study), *travelling, *control_schema(study).tensors)
    return ParameterSchema(tensors, weights.metrics)


def control_schema(study: Study) -> ParameterSchema:
    """Return the tensors of a control variate: with SCAFFOLD one number per trained weight.

    They travel as float32 whatever the weights do: gradients have no common scale.
    """
    if not isinstance(study.federation.strategy, Scaffold):
        return ParameterSchema(())
    return ParameterSchema(
        tuple(
            TensorSpec(f"{CONTROL_PREFIX}{tensor.name}", tensor.dtype, tensor.shape)
            for tensor in models.layout(study).tensors
            if not models.is_statistic(tensor.name)
        )
    )


def _constants(study: Study) -> tuple[TensorSpec, ...]:
    if not has_constants(study):
        return ()
    columns = (len(encoded_columns(study)),)
    return (
        TensorSpec(_CENTRE, TensorType.FLOAT32, columns),
        TensorSpec(_SCALE, TensorType.FLOAT32, columns),
        TensorSpec(_IMPUTE, TensorType.FLOAT32, (len(study.features),)),
    )


def constant_count(study: Study) -> int:
    """Return how many of the model's first values are constants of the run."""
    return sum(tensor.size for tensor in _constants(study))


def round_layout(study: Study, kind: RoundKind) -> RoundLayout:
    """Return the layout of one kind of round.

    Raises:
        InternalError: the study has no such rounds.
    """
    match kind:
        case RoundKind.STATISTICS if study.kind == "statistics":
            return RoundLayout(kind, counting.layout(study), counting.RING_BITS, counting.RANGES)
        case RoundKind.STATISTICS if study.privacy.dp.on:
            return _noised_statistics(study)
        case RoundKind.STATISTICS:
            return RoundLayout(kind, statistics.layout(study), statistics.RING_BITS, (1.0, "free"))
        case RoundKind.TRAIN:
            return _train_layout(study)
        case RoundKind.EVALUATE if study.privacy.dp.on:
            return _noised_evaluation(study)
        case RoundKind.EVALUATE:
            ranges = evaluation.ranges(study)
            return RoundLayout(kind, evaluation.layout(study), evaluation.RING_BITS, ranges)
        case _:
            raise InternalError(f"no study has rounds of kind {kind}")


def is_exact(study: Study) -> bool:
    """Whether training rounds add up a regression's sums rather than updates of a model."""
    return isinstance(study.federation.strategy, Newton)


def _train_layout(study: Study) -> RoundLayout:
    if is_exact(study):
        ranges: tuple[RangeRule, ...] = (sums.RANGE, "free")
        return RoundLayout(RoundKind.TRAIN, sums.layout(study), sums.RING_BITS, ranges)
    schema = model_schema(study)
    if study.privacy.dp.on:
        return _noised_layout(study, schema)
    tensors = _tensor_ranges(schema)
    rules: dict[str, RangeRule] = {"loss": models.LOSS_LIMIT, "clipped": "count"}
    metrics = [rules[name] for name in schema.metrics]
    bits = study.federation.upload_bits
    if bits == NARROW_BITS:
        reach = tuple(f"{REACH}{place}" for place in range(len(tensors)))
        schema = replace(schema, metrics=(*schema.metrics, *reach))
        metrics += [1.0] * len(reach)
    return RoundLayout(RoundKind.TRAIN, schema, bits, (*tensors, *metrics))


def _tensor_ranges(schema: ParameterSchema) -> list[RangeRule]:
    return [
        FIRST_RANGE if tensor.name.startswith(CONSTANT_PREFIX) else "free"
        for tensor in schema.tensors
    ]


def _noised_layout(study: Study, schema: ParameterSchema) -> RoundLayout:
    """No weight word, no metric word; ranges only where noise came before coding (7.1)."""
    bare = ParameterSchema(schema.tensors, weighted=False)
    plan = dp_plan(study, bare.words)
    if codes_ranges(plan.mode):
        ranges = tuple(_tensor_ranges(bare))
        return RoundLayout(RoundKind.TRAIN, bare, TRAIN_RING_BITS, ranges, plan)
    return RoundLayout(RoundKind.TRAIN, bare, _noised_ring(plan), (), plan)


def _noised_ring(plan: DpPlan) -> int:
    narrow = plan.m_max * plan.delta_int * MOST_SITES_NARROW < 1 << (TRAIN_RING_BITS - 2)
    return TRAIN_RING_BITS if narrow else 64


def _noised_evaluation(study: Study) -> RoundLayout:
    """One noised histogram: every test patient counts once (section 9.5)."""
    schema = noised_evaluation.layout()
    plan = _figure_plan(
        study, study.privacy.dp.evaluation_noise, noised_evaluation.CLIP, schema.words
    )
    return RoundLayout(RoundKind.EVALUATE, schema, _noised_ring(plan), (), plan)


def _noised_statistics(study: Study) -> RoundLayout:
    """One noised sum of features: every training patient counts once (section 9.5)."""
    schema = noised_statistics.layout(study)
    clip = noised_statistics.clip(study)
    plan = _figure_plan(study, study.privacy.dp.statistics_noise, clip, schema.words)
    return RoundLayout(RoundKind.STATISTICS, schema, _noised_ring(plan), (), plan)


def _figure_plan(study: Study, z: float | None, clip: float, words: int) -> DpPlan:
    if z is None:
        raise InternalError("a study has a round that its epsilon does not pay for")
    return DpPlan(
        mode=DpMode.PATIENT_DISTRIBUTED,
        z=float(z),
        clip=clip,
        delta_int=delta_int_of(words),
        p=1.0,
        m_max=study.privacy.dp.max_patients or 0,
    )


def dp_plan(study: Study, words: int) -> DpPlan:
    """Return the privacy terms of a study's training rounds of `words` words.

    Raises:
        InternalError: the study has no differential privacy.
    """
    terms = study.privacy.dp
    if terms.noise_multiplier is None or terms.clip is None:
        raise InternalError("a study without differential privacy has no noise to plan")
    return DpPlan(
        mode=DpMode(terms.mode),
        z=float(terms.noise_multiplier),
        clip=float(terms.clip),
        delta_int=delta_int_of(words),
        p=float(terms.sampling or 0.0),
        m_max=terms.max_patients or 0,
        steps=steps_per_round(study) if terms.mode == "patient-local" else 0,
    )


def noise_terms(study: Study, n: int, roster_size: int) -> tuple[DpTerms, ...]:
    """Return the privacy terms of each kind of noised round of `n` of the roster's hospitals.

    Raises:
        Refusal: no round of that shape is safe.
    """
    c = study.colluders(roster_size)
    h = SecAggParams.derive(n, c, s_min=study.federation.min_sites).s_min - c
    plans = [round_layout(study, kind).dp for kind in dict.fromkeys(round_kinds(study))]
    return tuple(plan.terms(h) for plan in plans if plan is not None)


def session_expectation(study: Study, roster_size: int) -> SessionExpectation:
    """Return what a hospital holds every header of the study against."""
    layouts = [round_layout(study, kind) for kind in dict.fromkeys(round_kinds(study))]
    return SessionExpectation(
        rounds=tuple(_expectation(study, layout) for layout in layouts),
        colluders=study.colluders(roster_size),
        max_deadline_ms=round(study.federation.round_deadline * 1000),
    )


def _expectation(study: Study, layout: RoundLayout) -> HeaderExpectation:
    return HeaderExpectation(
        kind=layout.kind,
        layout_sha256=layout.schema.layout_sha256,
        d=layout.schema.words,
        ranges=layout.ranges,
        w_max=study.federation.max_weight,
        w=layout.ring_bits,
        s_min=study.federation.min_sites,
        rounding=layout.rounding,
        dp=layout.dp,
    )


def header_ranges(layout: RoundLayout, bound: int, rms: tuple[float, ...]) -> tuple[float, ...]:
    """Return `R_1 .. R_L` of a header with `B` = `bound`.

    `rms` holds the root mean square of the last aggregate per tensor, empty before the
    first; free ranges of a training round follow it, never below `FIRST_RANGE`, or for a
    control variate `FIRST_CONTROL_RANGE`. In the narrow ring it holds how far the hospitals'
    updates reached (`reached`), and the ranges follow that alone: there are too few levels
    to waste any.
    """
    narrow = layout.ring_bits == NARROW_BITS
    out: list[float] = []
    tensors = layout.schema.tensors
    for place, rule in enumerate(layout.ranges):
        if rule == "count":
            out.append(float(bound))
        elif rule != "free":
            out.append(float(rule))
        elif place < len(tensors) and tensors[place].name == "low":  # what `high` left over
            out.append(limb_ranges(out[-1], bound)[1])
        else:
            last = rms[place] if place < len(rms) else 0.0
            control = place < len(tensors) and is_control(tensors[place].name)
            least = FIRST_CONTROL_RANGE if control else FIRST_RANGE
            wide = max(least, RANGE_FACTOR * last)
            out.append(REACH_FACTOR * last if narrow and last else wide)
    return tuple(out)


def reached(
    layout: RoundLayout, ranges: tuple[float, ...], tail: tuple[int, ...], top: int
) -> tuple[float, ...]:
    """Return how far the hospitals' updates of each tensor reached, on average.

    `tail`: the opened weight and metric words; `top`: what `reach` words add up to where every
    hospital reached its range, |S| B. A sum of 0 says less than one level, and counts as one.
    """
    first = 1 + layout.schema.metrics.index(f"{REACH}0")
    words = tail[first : first + len(layout.schema.tensors)]
    return tuple(
        scale * max(word, 1) / top for scale, word in zip(ranges[: len(words)], words, strict=True)
    )


# --- the model that travels ---------------------------------------------------------------


def first_model(study: Study, preprocessing: Preprocessing | None) -> NDArray[np.float32]:
    """Return the first model, float32 [model_schema.parameters].

    `preprocessing` is None only for a study without data (`has_constants`).
    """
    weights = models.initial(study)
    if preprocessing is None:
        return weights
    control = np.zeros(control_schema(study).parameters, np.float32)
    impute = [0.0 if value is None else value for value in preprocessing.impute]
    constants = (preprocessing.centre, preprocessing.scale, impute)
    return np.concatenate([*(np.asarray(row, np.float32) for row in constants), weights, control])


def split_model(
    study: Study, model: NDArray[np.float32]
) -> tuple[Preprocessing, NDArray[np.float32]]:
    """Return a received model's constants and its weights (a view).

    Raises:
        StateError: MODEL_INVALID, a scale is not positive or a constant not finite.
    """
    columns = encoded_columns(study)
    count = len(columns)
    size = constant_count(study)
    impute = model[2 * count : size].tolist()
    preprocessing = Preprocessing(
        columns=tuple(column.name for column in columns),
        centre=tuple(model[:count].tolist()),
        scale=tuple(model[count : 2 * count].tolist()),
        impute=tuple(
            value if feature.impute not in ("none", "drop-row") else None
            for feature, value in zip(study.features, impute, strict=True)
        ),
    )
    return preprocessing, model[size : size + models.layout(study).parameters]


def control_of(study: Study, model: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the server's control variate in a received model (a view); often empty."""
    return model[constant_count(study) + models.layout(study).parameters :]


def with_constants(study: Study, delta: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an update of all that follows the constants as one of the whole model."""
    return np.concatenate([np.zeros(constant_count(study), np.float32), delta])
