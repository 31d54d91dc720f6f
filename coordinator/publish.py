"""From a finished run to its signed release."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from common.identity import Identity, sign_manifest
from common.ids import NodeId, hospital_id, site_name
from common.layouts import has_constants, is_exact, model_schema, result_schema, split_model
from common.manifest import (
    COEFFICIENTS_FILE,
    EVALUATION_FILE,
    MODEL_FILE,
    PREPROCESSING_FILE,
    STATISTICS_FILE,
    STUDY_FILE,
    FileEntry,
    Manifest,
    ParticipationEntry,
    PrivacyEntry,
    RoundEntry,
    StudyEntry,
    WithdrawnEntry,
    chained,
)
from common.model_file import model_header
from common.preprocessing import Preprocessing
from common.regression.table import RegressionTable, table_of
from common.study import Study, canonical_json
from common.version import VERSION
from coordinator.objects import ObjectStore
from coordinator.run_state import ModelRef, RoundRecord, RunState
from coordinator.store import StoredRelease
from coordinator.use_sum import read_fit

STATEMENT: Final = (
    "Every update was masked: the coordinator saw sums over the hospitals of each round, never"
    " one hospital's update, row count or metric. No differential privacy was applied: the sums"
    " themselves, and whoever may choose the models of several rounds, are not bounded."
)
COUNTED_STATEMENT: Final = (
    "Every hospital's counts were masked: the coordinator saw the sum over the hospitals, never"
    " one hospital's. Counts of 1 to {few} patients, and what such counts would follow from, were"
    " left out before anything was stored. No noise was added: two studies over rosters or rows"
    " that differ a little may be subtracted from one another."
)
PRIVATE_STATEMENT: Final = (
    "Every update was masked and noised before it left its hospital: this model and every sum"
    " behind it, figures included, differ by at most the stated epsilon and delta from what they"
    " would be without any one {unit}, whatever the coordinator did."
)


def make_release(
    state: RunState, model: ModelRef, objects: ObjectStore, identity: Identity, now_unix: int
) -> StoredRelease:
    """Store what belongs to the release and sign its manifest.

    Raises:
        RoundError: NOT_FOUND, the model's file is gone.
        StateError: DISK.
    """
    manifest = _manifest(state, model, _files(state, model, objects), now_unix).to_json()
    pem = identity.certificate_pem
    return StoredRelease(manifest, sign_manifest(identity, manifest), pem)


def _files(state: RunState, model: ModelRef, objects: ObjectStore) -> tuple[FileEntry, ...]:
    with objects.open(model.object_sha256) as reader:
        size = reader.size
    counted = state.study.kind == "statistics"
    name = STATISTICS_FILE if counted else MODEL_FILE
    result = {"name": name, "sha256": model.object_sha256.hex(), "size": size}
    files = [FileEntry.model_validate(result)]
    study = canonical_json(state.study)
    files.append(_store(objects, STUDY_FILE, study))
    if state.evaluation:
        files.append(_store(objects, EVALUATION_FILE, state.evaluation.encode()))
    if has_constants(state.study) and not counted:
        files.append(_store(objects, PREPROCESSING_FILE, _preprocessing(state, model, objects)))
    table = _coefficients(state, model, objects)
    if table is not None:
        files.append(_store(objects, COEFFICIENTS_FILE, table.to_json()))
    return tuple(files)


def _coefficients(state: RunState, model: ModelRef, objects: ObjectStore) -> RegressionTable | None:
    if not is_exact(state.study):
        return None
    constants = Preprocessing.from_json(_preprocessing(state, model, objects))
    return table_of(state.study, constants, read_fit(state.study, model, objects))


def _store(objects: ObjectStore, name: str, data: bytes) -> FileEntry:
    digest = objects.put(data)
    return FileEntry.model_validate({"name": name, "sha256": digest.hex(), "size": len(data)})


def _preprocessing(state: RunState, model: ModelRef, objects: ObjectStore) -> bytes:
    schema = model_schema(state.study)
    skip = len(model_header(schema))
    with objects.open(model.object_sha256) as reader:
        flat = schema.flat(reader.read(skip, schema.byte_size))
    return split_model(state.study, flat)[0].to_json().encode()


def _manifest(
    state: RunState, model: ModelRef, files: tuple[FileEntry, ...], now_unix: int
) -> Manifest:
    study = state.study
    opened = [record for record in state.history if record.opened]
    sites = _names({node for record in opened for node in record.survivors})
    return Manifest(
        federation=state.federation,
        run=state.run_id,
        study=StudyEntry(
            id=study.id,
            title=study.title,
            owner=study.owner.organisation,
            config_hash=state.config_hash.hex(),
        ),
        signed_at=now_unix,
        sites=sites,
        participation=tuple(_participation(state, opened, site) for site in sites),
        rounds=_entries(opened),
        files=files,
        model_sha256=model.model_sha256.hex(),
        layout_sha256=result_schema(study).layout_sha256.hex(),
        metrics=dict(state.pooled),
        privacy=_privacy(state),
        software=VERSION,
    )


def _participation(state: RunState, opened: list[RoundRecord], site: str) -> ParticipationEntry:
    node = hospital_id(state.federation, site)
    rounds = [record.position for record in opened if node in record.survivors]
    left = next((entry for entry in state.withdrawn if entry.node == node), None)
    return ParticipationEntry(
        site=site,
        first=rounds[0],
        last=rounds[-1],
        rounds=len(rounds),
        withdrawn=None
        if left is None
        else WithdrawnEntry(after_round=left.after_round, at=int(left.unix)),
    )


def _privacy(state: RunState) -> PrivacyEntry:
    study = state.study
    terms = study.privacy.dp
    unit = "hospital" if terms.mode == "hospital" else "patient of one hospital"
    return PrivacyEntry(
        secure_aggregation=True,
        suite=study.privacy.secure_aggregation.suite,
        colluders=study.colluders(len(state.roster)),
        min_sites=study.federation.min_sites,
        dp=terms.mode,
        epsilon=terms.epsilon,
        delta=terms.delta,
        statement=PRIVATE_STATEMENT.format(unit=unit) if terms.on else _plain_statement(study),
    )


def _plain_statement(study: Study) -> str:
    if study.statistics is None:
        return STATEMENT
    return COUNTED_STATEMENT.format(few=study.statistics.min_cell - 1)


def _entries(records: list[RoundRecord]) -> tuple[RoundEntry, ...]:
    bare = [
        RoundEntry(
            position=record.position,
            kind=record.kind,
            r=record.r,
            header=record.hd.hex(),
            survivors=_names(record.survivors),
            dropped=_names(record.dropped),
            sum_sha256=record.sum_sha256.hex(),
            model_sha256=record.model_sha256.hex(),
            chain="0" * 64,
        )
        for record in records
    ]
    links = chained(bare)
    return tuple(
        entry.model_copy(update={"chain": link}) for entry, link in zip(bare, links, strict=True)
    )


def _names(nodes: Iterable[NodeId]) -> tuple[str, ...]:
    return tuple(sorted(site_name(node) for node in nodes))
