"""The hospital's own word and work: policy, data and training behind `work`'s protocols.

`HospitalDesk` judges an offer by the policy file and by whether the data loads; an
accepted study becomes a `StudyWork`, which holds the prepared table for the whole run
and turns each round's header into a finished `v_i`. Training code comes with this
package, never from the wire (protocol, 10.6).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from common import counting, layouts
from common.config import Loaded
from common.entropy import OsEntropy
from common.errors import FedError, InternalError, PolicyRefusal, Refusal, RoundError
from common.evaluation_document import withheld
from common.events import Event
from common.features import Encoded, Table
from common.ids import ConfigHash
from common.layouts import RoundLayout
from common.logs import EventLog
from common.messages import Objection
from common.model_file import is_control
from common.models import vector, with_own
from common.policy import Policy
from common.preprocessing import Preprocessing
from common.privacy.noise import NoiseTable
from common.quantise import Coding, Quantiser, VectorEncoder
from common.secagg.dp import DpMode
from common.secagg.header import Header, RoundKind
from common.secagg.keys import CoefficientSeed, Suite
from common.secagg.ring import Words
from common.site import Site
from common.study import Scaffold, Study, VectorModel, study_from_canonical
from common.subgroups import members
from common.vectors import ParameterSchema
from common.weights import public_batch, public_weight
from hospital_node.checkpoints import Checkpoints, Keeper, kept
from hospital_node.consent import ConsentRefused, decide
from hospital_node.contribution import WordSource
from hospital_node.disclosure import public_detail, shown_figures
from hospital_node.findings import cite
from hospital_node.launcher import Launcher
from hospital_node.personal_state import FEDBN, OwnTensors
from hospital_node.private.source import NoisedSource, pattern_sum, pattern_update
from hospital_node.receive import read_model
from hospital_node.row_rules import MIN_CELL, check_cells, check_delta, check_ring
from hospital_node.work import PrivacyBooks, Terms, Work

if TYPE_CHECKING:
    from hospital_node.data.load import SiteData
    from hospital_node.pipeline import ContributionSource

QUICK_WORDS: Final = 1 << 16
"""A pattern of up to this many values is made in well under a millisecond."""

_TWO: Final = 2
_NO_CONTROL: Final = np.zeros(0, np.float32)
_TILE: Final = 1 << 18


class HospitalDesk:
    """See `hospital_node.work.Desk`."""

    def __init__(
        self,
        policy: Loaded[Policy],
        site: Site | None,
        log: EventLog,
        books: PrivacyBooks,
        launcher: Launcher | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._launcher = launcher
        self._checkpoints = checkpoints
        self._policy = policy
        self._site = site
        self._log = log
        self._books = books
        self._opened: dict[ConfigHash, StudyWork] = {}

    def judge(self, study: bytes, config_hash: ConfigHash) -> tuple[Objection, ...]:
        """See `Desk`; every objection of the policy is named with its file and line.

        Raises:
            StateError: DISK.
        """
        try:
            parsed = study_from_canonical(study)
            decide(parsed, config_hash, self._policy.value, self._policy.source)
        except ConsentRefused as refusal:
            return tuple(Objection(found.code, str(found)[:1000]) for found in refusal.objections)
        except FedError as failure:
            self._log.failure(Event.STUDY_REFUSED, failure)
            return (Objection(failure.name, failure.detail[:1000]),)
        try:
            self._opened = {config_hash: self._work(parsed, accepted=False)}
        except FedError as failure:
            if failure.name == "DISK":
                raise  # that there is no room just now is no word on the study
            self._log.failure(Event.STUDY_REFUSED, failure)
            return (Objection(failure.name, public_detail(failure)[:1000]),)
        return ()

    def open(self, study: bytes) -> Work:
        """See `Desk`; what `judge` loaded last is not loaded twice."""
        digest = ConfigHash(hashlib.sha256(study).digest())
        ready = self._opened.pop(digest, None)
        if ready is not None:
            return ready
        parsed = study_from_canonical(study)
        decide(parsed, digest, self._policy.value, self._policy.source)
        return self._work(parsed, accepted=True)

    def _work(self, study: Study, *, accepted: bool) -> StudyWork:
        if self._launcher is not None:
            self._launcher.check(study)
        policy, data = self._policy.value, self._data(study)
        if study.privacy.dp.mode == "patient-local":
            public_batch(study, policy.site)  # refuses a study without a number for this site
        members, min_cell = len(policy.federation.members), policy.release.min_cell
        if data is not None:
            check_cells(study, data, min_cell, cite(self._policy.source, MIN_CELL))
        if study.privacy.dp.on:
            check_ring(study, members)
            check_delta(study, data, members, self._log)
            self._books.admit(study, accepted=accepted)
            for terms in layouts.noise_terms(study, members, members):
                NoiseTable.of(terms.sigma_loc)  # a full cohort's: no round waits for it then
        return StudyWork(
            study, policy.site, members, data, self._books, min_cell, self._launcher, self._keeper
        )

    def _keeper(self, study: Study, header: Header) -> Keeper | None:
        """Return what keeps checkpoints of a round's training, if anything does."""
        if self._checkpoints is None:
            return None
        how = "1" if self._launcher is None else self._launcher.how
        log = self._log.bind(study=study.id, round=header.r)
        return self._checkpoints.of(header.digest(), log, how)

    def _data(self, study: Study) -> SiteData | None:
        if not layouts.has_constants(study) and study.kind == "training":
            return None
        if self._site is None:
            raise PolicyRefusal("POLICY_DATASET", "this node has no site manifest to offer from")
        from hospital_node.data.load import load_table  # polars: only where there is data

        return load_table(study, self._site.table(study.dataset))


class StudyWork:
    """See `hospital_node.work.Work`; one study with this hospital's rows."""

    def __init__(
        self,
        study: Study,
        site: str,
        members: int,
        data: SiteData | None,
        books: PrivacyBooks,
        min_cell: int,
        launcher: Launcher | None = None,
        keeper: Callable[[Study, Header], Keeper | None] = lambda _study, _header: None,
    ) -> None:
        self._launcher = launcher
        self._keeper = keeper
        self._study = study
        self._site = site
        self._members = members
        self._data = data
        self._books = books
        self._min_cell = min_cell
        self._layouts: dict[RoundKind, RoundLayout] = {}
        self._encoded: dict[str, tuple[Preprocessing, Encoded]] = {}

    @cached_property
    def terms(self) -> Terms:
        """See `Work`."""
        study = self._study
        return Terms(
            task=study.id,
            suite=Suite(study.privacy.secure_aggregation.suite),
            expect=layouts.session_expectation(study, self._members),
            two_party=study.federation.min_sites == _TWO,
        )

    @cached_property
    def _model_schema(self) -> ParameterSchema:
        return layouts.model_schema(self._study)

    def model_schema(self) -> ParameterSchema:
        """See `Work`."""
        return self._model_schema

    def is_quick(self, kind: RoundKind) -> bool:
        """See `Work`."""
        model = self._study.model
        return (
            kind is RoundKind.TRAIN
            and isinstance(model, VectorModel)
            and model.size <= QUICK_WORDS
            and not self._study.privacy.dp.on  # the ledger waits for the disk
        )

    def make(
        self,
        header: Header,
        model: Path | None,
        seed: CoefficientSeed,
        abandoned: Callable[[], bool],
        own: OwnTensors,
    ) -> WordSource:
        """See `Work`."""
        if abandoned():
            raise RoundError("RUN_CANCELLED", "the round ended before training began")
        if header.dp.mode != self._study.privacy.dp.mode:  # the machine saw to it, whoever asks
            raise Refusal("DP_WEAK", f"dp mode {header.dp.mode} is not the study's")
        if header.dp.mode is not DpMode.NONE:
            return self._noised(header, model, seed, abandoned)
        coding = Coding.of_header(header, seed)
        layout = self._layout(header.kind)
        model_of = self._study.model
        if isinstance(model_of, VectorModel) and header.kind is RoundKind.TRAIN:
            tile = vector.whole(
                self._site, header.r, min(layout.schema.parameters, _TILE), model_of.pattern
            )
            return PatternSource(tile, header, coding, layout.schema)
        from hospital_node import pipeline  # torch: only where something is trained

        study, site = self._study, self._site
        match header.kind:
            case RoundKind.STATISTICS if study.kind == "statistics":
                counted = counting.contribution(study, self._rows().train)
                source = pipeline.ContributionSource(counted)
            case RoundKind.STATISTICS:
                source = pipeline.make_statistics(study, site, self._rows().train, header.bound)
            case RoundKind.TRAIN if layouts.is_exact(study):
                source = self._regression(model, header.bound)
            case RoundKind.TRAIN:
                source = self._train(header, model, abandoned, own)
            case RoundKind.EVALUATE:
                weights, rows = self._split(model, "test")
                mine = with_own(study, weights, own.get(FEDBN))
                inside = members(study, self._rows().test.values)
                train = self._baseline_rows(model)
                source = pipeline.make_evaluation(
                    study, rows, mine, inside, levels=header.bound, train=train
                )
            case _:
                raise Refusal("LAYOUT", f"this version has no {header.kind.value} rounds")
        return source.encoder(layout.schema, header.ranges, coding)

    def _train(
        self, header: Header, model: Path | None, abandoned: Callable[[], bool], own: OwnTensors
    ) -> ContributionSource:
        """Train by the study's strategy; stage what stays here before anything leaves."""
        from hospital_node import pipeline
        from hospital_node.exchange import TrainingTask
        from hospital_node.strategies import Received

        study = self._study
        weights, rows = self._split(model, "train")
        control = _NO_CONTROL
        if isinstance(study.federation.strategy, Scaffold):
            control = layouts.control_of(study, self._flat(model))
        tensors = self._model_schema.tensors
        limits = [
            limit
            for tensor, limit in zip(tensors, header.ranges, strict=False)
            if is_control(tensor.name)
        ]
        received = Received(weights, control, limits)
        training = TrainingTask.train
        if self._launcher is not None:
            training = partial(self._launcher.train, abandoned=abandoned)
        with kept(self._keeper(study, header)):
            source = pipeline.make_contribution(
                study, self._site, rows, received, header.r, own.all(), training
            )
        if abandoned():
            raise RoundError("RUN_CANCELLED", "the round ended during training")
        own.stage(header.digest(), source.own)
        whole = layouts.with_constants(study, np.asarray(source.values, np.float32))
        return replace(source, values=whole)

    def _regression(self, model: Path | None, levels: int) -> ContributionSource:
        """Return this hospital's sums at the received coefficients, all in float64."""
        from hospital_node import pipeline

        preprocessing, weights = self._received(model)
        table = self._rows().train
        columns = preprocessing.columns_of(self._study, table)
        theta = weights.astype(np.float64)
        return pipeline.make_regression(self._study, columns, table.target, theta, levels)

    def _noised(
        self,
        header: Header,
        model: Path | None,
        seed: CoefficientSeed,
        abandoned: Callable[[], bool],
    ) -> WordSource:
        """Charge the ledger, then add up what leaves and its noise."""
        self._books.charge(self._study, header)
        if header.dp.mode is DpMode.PATIENT_LOCAL:
            return self._local(header, model, seed, abandoned)
        total = self._total(header, model)
        if header.kind is RoundKind.TRAIN and layouts.has_constants(self._study):
            constants = np.zeros(layouts.constant_count(self._study), np.int64)
            total = np.concatenate([constants, total])
        return NoisedSource(total, header.dp, seed)

    def _total(self, header: Header, model: Path | None) -> NDArray[np.int64]:
        """Return what the round adds up at this hospital, clipped and in integers."""
        study, terms, entropy = self._study, header.dp, OsEntropy()
        if isinstance(study.model, VectorModel):
            return pattern_sum(study.model, self._site, header.r, terms, entropy)
        from hospital_node.private import contribution as noised  # torch

        part = "test" if header.kind is RoundKind.EVALUATE else "train"
        if header.kind is RoundKind.STATISTICS:
            train = self._rows().train
            listed = self._books.listed(study, part, train.patient)
            return noised.statistics_sum(study, train, listed, terms, entropy)
        weights, rows = self._split(model, part)
        if terms.mode is DpMode.HOSPITAL:
            return noised.hospital_step(study, self._site, rows, weights, terms, entropy)
        table: Table = getattr(self._rows(), part)
        listed = self._books.listed(study, part, table.patient)
        make = noised.evaluation_sum if header.kind is RoundKind.EVALUATE else noised.patient_sum
        return make(study, rows, table.patient, weights, listed, terms, entropy)

    def _local(
        self,
        header: Header,
        model: Path | None,
        seed: CoefficientSeed,
        abandoned: Callable[[], bool],
    ) -> WordSource:
        """Take the round's noised steps; code their outcome as 7.2 does, by public weights."""
        study, site = self._study, self._site
        if isinstance(study.model, VectorModel):
            step = study.train.lr / public_batch(study, site)
            delta = pattern_update(study.model, site, header, seed, OsEntropy(), step)
        else:
            from hospital_node.private.local_steps import LocalTraining  # torch

            weights, rows = self._split(model, "train")
            patients = self._rows().train.patient
            listed = self._books.listed(study, "train", patients)
            training = LocalTraining(study, site, rows, patients, listed, OsEntropy())
            delta = training.update(weights, header, seed, abandoned)
        whole = layouts.with_constants(study, delta)
        schema = self._layout(header.kind).schema
        coding, u = Coding.of_header(header, seed), public_weight(study, site)
        return VectorEncoder(schema, whole, ranges=header.ranges, coding=coding, u=u)

    def report(self, model: Path, own: OwnTensors) -> Mapping[str, object]:
        """See `Work`; nothing to report for a pattern without data."""
        if self._data is None:
            return {}
        from hospital_node.evaluate import site_metrics

        weights, rows = self._split(model, "test")
        mine = with_own(self._study, weights, own.get(FEDBN))
        found = site_metrics(self._study, mine, rows, self._baseline_rows(model))
        shown = withheld(found, self._min_cell).as_dict(self._study)
        return shown_figures(shown, self._min_cell)

    def personalise(self, model: Path, own: OwnTensors, folder: Path) -> str:
        """See `Work`; nothing is made for a pattern without data."""
        if self._data is None or not self._study.personal.enabled:
            return ""
        from hospital_node.personal.make import make, read_released

        flat = read_released(model, self._model_schema)
        return make(self._study, self._site, self._data, flat, folder, own.all())

    def _layout(self, kind: RoundKind) -> RoundLayout:
        if kind not in self._layouts:
            self._layouts[kind] = layouts.round_layout(self._study, kind)
        return self._layouts[kind]

    def _rows(self) -> SiteData:
        if self._data is None:
            raise InternalError("a study without data reached its rows")
        return self._data

    def _received(self, model: Path | None) -> tuple[Preprocessing, np.ndarray]:
        return layouts.split_model(self._study, self._flat(model))

    def _split(self, model: Path | None, part: str) -> tuple[np.ndarray, Encoded]:
        """Return the model's weights, and rows encoded with its constants (kept for the run)."""
        preprocessing, weights = self._received(model)
        known = self._encoded.get(part)
        if known is None or known[0] != preprocessing:
            table: Table = getattr(self._rows(), part)
            known = (preprocessing, preprocessing.encode(self._study, table))
            self._encoded[part] = known
        return weights, known[1]

    def _baseline_rows(self, model: Path | None) -> Encoded | None:
        """Return the training rows where predictions need their baseline hazard."""
        survival = self._study.target.type == "survival"
        return self._split(model, "train")[1] if survival else None

    def _flat(self, model: Path | None) -> NDArray[np.float32]:
        if model is None:
            raise InternalError("a round with a model came without one")
        schema = self._model_schema
        return schema.flat(read_model(model, schema))


class PatternSource:
    """`v_i` of a `vector` study: the site's pattern of the round, quantised as it is asked for.

    The weight word says 1. One tile of the pattern is all the memory it takes.
    """

    def __init__(
        self, tile: NDArray[np.float32], header: Header, coding: Coding, schema: ParameterSchema
    ) -> None:
        self.words = schema.words
        self._size = schema.parameters
        self._range = header.ranges[0]
        self._quantiser = Quantiser(coding)
        self._bound = coding.bound
        self._tile = tile

    def fill(self, out: Words, word_offset: int) -> None:
        """See `WordSource`; `out` has at most a tile's words and starts at a whole tile."""
        size = min(out.size, self._size - word_offset)
        self._quantiser.quantise(
            self._tile[:size], self._range, out[:size], word_offset=word_offset
        )
        out[size:] = self._bound
