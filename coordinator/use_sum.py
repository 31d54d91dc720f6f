"""What the coordinator does with an opened sum, by kind of round.

    statistics   pooled constants, and with them the first model; of a study of kind
                 statistics the file that it publishes
    train        the next model, written while the sum is being opened
    evaluate     pooled metrics

Runs in a worker thread; everything it returns is durable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from common import (
    counting,
    evaluation,
    noised_evaluation,
    noised_statistics,
    statistics,
    statistics_result,
)
from common.errors import InternalError
from common.evaluation import Metrics
from common.evaluation_document import document, finite, published
from common.ids import HeaderDigest, Sha256, site_name
from common.layouts import (
    RoundLayout,
    constant_count,
    first_model,
    has_constants,
    is_exact,
    model_schema,
    reached,
    round_layout,
)
from common.model_file import model_header
from common.regression import fit, sums
from common.secagg.dp import DpMode
from common.secagg.header import Header, RoundKind, sum_bound
from common.secagg.ring import word_bytes
from common.study import NARROW_BITS, Study
from common.vectors import ParameterSchema, model_digest, widened
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


def use_sum(
    study: Study,
    command: OpenSum,
    spool: Spool,
    objects: ObjectStore,
    stopping: Callable[[], bool] = lambda: False,
) -> SumUsed:
    """Open the sum of a certified set and make of it what the round was for.

    Raises:
        Refusal: SUM_RANGE, a word lies outside its bound; nothing was kept.
        StateError: DISK.
        RoundError: RUN_CANCELLED, `stopping` said so.
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
        stopping=stopping,
    )
    match header.kind:
        case RoundKind.TRAIN if is_exact(study):
            return _regress(study, command, opening, layout, objects)
        case RoundKind.TRAIN:
            return _train(study, command, opening, layout, objects)
        case RoundKind.STATISTICS:
            sink = Collect(header.d)
            digest = open_sum(opening, sink)
            words = sink.words[: layout.schema.parameters]
            if study.kind == "statistics":
                return SumUsed(hd, digest, _publish(study, words, header.bound, objects), ())
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
            pooled, whole = _pooled(study, header, words, len(command.survivors))
            return SumUsed(hd, digest, None, _figures(study, pooled), whole)
        case RoundKind.VOTE:
            raise InternalError("no study has vote rounds")
        case _:
            assert_never(header.kind)


def _train(
    study: Study,
    command: OpenSum,
    opening: Opening,
    layout: RoundLayout,
    objects: ObjectStore,
) -> SumUsed:
    header, schema = command.header, layout.schema
    if command.model is None:
        raise InternalError("a training round has no model to add to")
    tail = open_tail(opening, schema.parameters) if schema.weighted else ()
    server_step = _server_step(study, command, tail)
    before = command.model
    rules = tensor_rules(
        study, schema, survivors=len(command.survivors), hospitals=command.hospitals
    )
    with ExitStack() as stack:
        previous = stack.enter_context(objects.open(before.kept_sha256 or before.object_sha256))
        writer = stack.enter_context(objects.writer())
        narrow = None if schema.is_flat_float32 else stack.enter_context(objects.writer())
        moments = _moments(before, objects, stack) if moment_count(rules) > 0 else None
        update = ModelUpdate(schema, server_step, previous, writer, narrow, rules, moments)
        digest = open_sum(opening, update)
        made = update.finish()
    rms = made.rms
    if layout.ring_bits == NARROW_BITS:
        rms = reached(layout, header.ranges, tail, opening.bound)
    model = ModelRef(
        made.object_sha256,
        made.model_sha256,
        rms,
        made.kept_sha256,
        moments_sha256=made.moments_sha256,
    )
    return SumUsed(HeaderDigest(header.digest()), digest, model, ())


def _moments(before: ModelRef, objects: ObjectStore, stack: ExitStack) -> Moments:
    """Return where a server optimiser's moments come from and go to; `stack` closes both."""
    address = before.moments_sha256
    return Moments(
        None if address is None else stack.enter_context(objects.open(address)),
        stack.enter_context(objects.writer()),
    )


def _regress(
    study: Study, command: OpenSum, opening: Opening, layout: RoundLayout, objects: ObjectStore
) -> SumUsed:
    """Take Newton's step: the next coefficients, beside the constants that stay."""
    header, before = command.header, command.model
    if before is None:
        raise InternalError("a training round has no model to add to")
    sink = Collect(header.d)
    digest = open_sum(opening, sink)
    pooled = sums.opened(study, sink.words[: layout.schema.parameters], header.bound)
    over = hashlib.sha256("\n".join(sorted(command.survivors)).encode()).hexdigest()
    after = fit.advance(study, read_fit(study, before, objects), pooled, over)
    schema = model_schema(study)
    with objects.open(before.object_sha256) as previous:
        flat = schema.flat(previous.read(len(model_header(schema)), schema.byte_size))
    constants = flat[: constant_count(study)]
    made = _store(schema, np.concatenate([constants, after.sent]), objects)
    kept = objects.put(fit.to_json(after))
    model = replace(made, kept_sha256=kept, finished=after.converged)
    return SumUsed(HeaderDigest(header.digest()), digest, model, ())


def read_fit(study: Study, model: ModelRef, objects: ObjectStore) -> fit.Fit:
    """Return the fit behind a model of an exact regression; before its first sum, the beginning.

    Raises:
        RoundError: NOT_FOUND. StateError: STATE_DAMAGED.
    """
    if model.kept_sha256 is None:
        return fit.begin(study)
    with objects.open(model.kept_sha256) as reader:
        return fit.from_json(reader.read(0, reader.size))


def _server_step(study: Study, command: OpenSum, tail: tuple[int, ...]) -> ServerStep:
    """Return what is added for opened words; `tail`: the opened weight and metric words."""
    header = command.header
    match header.dp.mode:
        case DpMode.NONE:
            check_weight_sum(tail[0], header.s_min, header.bound)
            return weighted_mean(header.ranges, tail[0])
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
) -> tuple[Metrics | None, str]:
    """Return the pooled figures that are published, and `evaluation.json` or nothing."""
    if header.dp.mode is not DpMode.NONE:
        # Its noise bounds what it says, whatever it counts.
        return noised_evaluation.pooled(words, header.dp, survivors), ""
    everybody = evaluation.pooled(study, words, header.bound)
    groups = evaluation.pooled_cells(study, words, header.bound)
    shown = published(everybody, float(study.evaluate.threshold))
    return shown, document(study, everybody, groups)


def _figures(study: Study, found: Metrics | None) -> tuple[tuple[str, float], ...]:
    return tuple(finite(study, found).items())


def _publish(study: Study, words: NDArray[np.int64], bound: int, objects: ObjectStore) -> ModelRef:
    """Store what a statistics study publishes; the sums themselves are kept nowhere."""
    found = statistics_result.published(study, counting.opened(study, words, bound))
    digest = objects.put(found.to_json())
    return ModelRef(digest, digest)


def make_first_model(study: Study, objects: ObjectStore) -> ModelRef:
    """Store the first model of a study that needs no statistics round."""
    constants = statistics.without_statistics(study) if has_constants(study) else None
    return _store(model_schema(study), first_model(study, constants), objects)


def _store(schema: ParameterSchema, model: NDArray[np.float32], objects: ObjectStore) -> ModelRef:
    wide = model.astype("<f4", copy=False).data.cast("B")
    if schema.is_flat_float32:
        return ModelRef(_put(schema, wide, objects), model_digest(schema, wide))
    data = schema.pack(model)
    kept = _put(widened(schema), wide, objects)
    return ModelRef(_put(schema, data, objects), model_digest(schema, data), kept_sha256=kept)


def _put(schema: ParameterSchema, data: bytes | memoryview, objects: ObjectStore) -> Sha256:
    with objects.writer() as writer:
        writer.write(model_header(schema))
        writer.write(data)
        return writer.commit()
