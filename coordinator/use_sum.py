"""What the coordinator does with an opened sum, by kind of round.

    statistics   pooled constants, and with them the first model
    train        the next model, written while the sum is being opened
    evaluate     pooled metrics

Runs in a worker thread; everything it returns is durable.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from typing import Final, assert_never

import numpy as np
from numpy.typing import NDArray

from common import evaluation, noised_evaluation, noised_statistics, statistics
from common.errors import InternalError
from common.evaluation import Metrics
from common.ids import HeaderDigest, site_name
from common.layouts import first_model, has_constants, model_schema, round_layout
from common.model_file import model_header
from common.secagg.dp import DpMode
from common.secagg.header import Header, RoundKind, sum_bound
from common.secagg.ring import word_bytes
from common.study import Study
from common.vectors import ParameterSchema, model_digest
from common.weights import public_weight
from coordinator.aggregate import (
    ModelUpdate,
    Moments,
    ServerStep,
    check_weight_sum,
    noised_mean,
    weighted_mean,
)
from coordinator.objects import ObjectStore
from coordinator.opening import Collect, Opening, open_sum, open_tail
from coordinator.run_state import ModelRef, OpenSum, SumUsed
from coordinator.spool import Spool
from coordinator.strategies import moment_count, tensor_rules

SMALLEST_CELL: Final = 10
"""Rows, of all hospitals together, below which no pooled figure is published."""


def use_sum(study: Study, command: OpenSum, spool: Spool, objects: ObjectStore) -> SumUsed:
    """Open the sum of a certified set and make of it what the round was for.

    Raises:
        Refusal: SUM_RANGE, a word lies outside its bound; nothing was kept.
        StateError: DISK.
    """
    header = command.header
    layout = round_layout(study, header.kind)
    hd = header.digest()
    size = header.d * word_bytes(header.w)
    opening = Opening(
        spools=[spool.file(hd, node, size) for node in command.survivors],
        plan=command.plan,
        words=header.d,
        bound=sum_bound(len(command.survivors), header.word_bound),
    )
    match header.kind:
        case RoundKind.TRAIN:
            return _train(study, command, opening, layout.schema, objects)
        case RoundKind.STATISTICS:
            sink = Collect(header.d)
            digest = open_sum(opening, sink)
            words = sink.words[: layout.schema.parameters]
            if header.dp.mode is DpMode.NONE:
                constants = statistics.pooled(study, words, header.bound)
            else:
                constants = noised_statistics.pooled(study, words, header.dp)
            model = _store(model_schema(study), first_model(study, constants), objects)
            return SumUsed(hd, digest, model, ())
        case RoundKind.EVALUATE:
            sink = Collect(header.d)
            digest = open_sum(opening, sink)
            words = sink.words[: layout.schema.parameters]
            pooled = _pooled(study, header, words, len(command.survivors))
            return SumUsed(hd, digest, None, _figures(study, pooled))
        case RoundKind.VOTE:
            raise InternalError("no study has vote rounds")
        case _:
            assert_never(header.kind)


def _train(
    study: Study,
    command: OpenSum,
    opening: Opening,
    schema: ParameterSchema,
    objects: ObjectStore,
) -> SumUsed:
    header = command.header
    if command.model is None:
        raise InternalError("a training round has no model to add to")
    server_step = _server_step(study, command, opening, schema)
    rules = tensor_rules(
        study, schema, survivors=len(command.survivors), hospitals=command.hospitals
    )
    with ExitStack() as stack:
        previous = stack.enter_context(objects.open(command.model.object_sha256))
        writer = stack.enter_context(objects.writer())
        moments = None
        if moment_count(rules) > 0:
            before = command.model.moments_sha256
            moments = Moments(
                None if before is None else stack.enter_context(objects.open(before)),
                stack.enter_context(objects.writer()),
            )
        update = ModelUpdate(schema, server_step, previous, writer, rules, moments)
        digest = open_sum(opening, update)
        made = update.finish()
    model = ModelRef(made.object_sha256, made.model_sha256, made.rms, made.moments_sha256)
    return SumUsed(HeaderDigest(header.digest()), digest, model, ())


def _server_step(
    study: Study, command: OpenSum, opening: Opening, schema: ParameterSchema
) -> ServerStep:
    header = command.header
    match header.dp.mode:
        case DpMode.NONE:
            summed = open_tail(opening, schema.parameters)[0]
            check_weight_sum(summed, header.s_min, header.bound)
            return weighted_mean(header.ranges, summed)
        case DpMode.HOSPITAL:
            return noised_mean(header.dp, len(command.survivors), 1.0)
        case DpMode.PATIENT_DISTRIBUTED:
            batch = study.privacy.dp.batch
            if batch is None:
                raise InternalError("a study of patient-distributed has no public batch size")
            return noised_mean(header.dp, batch, study.train.lr)
        case DpMode.PATIENT_LOCAL:
            weights = (public_weight(study, site_name(node)) for node in command.survivors)
            weight_sum = float(header.bound) * sum(weights)
            check_weight_sum(weight_sum, header.s_min, header.bound)
            return weighted_mean(header.ranges, weight_sum)
        case _:
            assert_never(header.dp.mode)


def _pooled(
    study: Study, header: Header, words: NDArray[np.int64], survivors: int
) -> Metrics | None:
    if header.dp.mode is DpMode.NONE:
        return published(evaluation.pooled(study, words, header.bound))
    # Its noise bounds what it says, whatever it counts.
    return noised_evaluation.pooled(words, header.dp, survivors)


def _figures(study: Study, found: Metrics | None) -> tuple[tuple[str, float], ...]:
    if found is None:
        return ()
    return tuple(
        (name, value)
        for name, value in found.as_dict(study).items()
        if value is not None and math.isfinite(value)
    )


def published(found: Metrics) -> Metrics | None:
    """Return pooled figures without those that few patients stand behind.

    Over fewer than `SMALLEST_CELL` test rows nothing is kept; where one of two classes has
    fewer, its count and the AUROC, which ranks its few rows, are left out. Each hospital's
    own smallest cell was asked of its own rows before they came into the sum.
    """
    if found.rows < SMALLEST_CELL:
        return None
    positives = found.positives
    if positives is None or min(positives, found.rows - positives) >= SMALLEST_CELL:
        return found
    return replace(found, positives=None, auroc=None, detail=())


def make_first_model(study: Study, objects: ObjectStore) -> ModelRef:
    """Store the first model of a study that needs no statistics round."""
    constants = statistics.without_statistics(study) if has_constants(study) else None
    return _store(model_schema(study), first_model(study, constants), objects)


def _store(schema: ParameterSchema, model: NDArray[np.float32], objects: ObjectStore) -> ModelRef:
    data = model.astype("<f4", copy=False).data.cast("B")
    with objects.writer() as writer:
        writer.write(model_header(schema))
        writer.write(data)
        return ModelRef(writer.commit(), model_digest(schema, data))
