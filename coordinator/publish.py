"""From a finished run to its signed release."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from common.identity import Identity, sign_manifest
from common.ids import NodeId, hospital_id, site_name
from common.layouts import has_constants, model_schema, split_model
from common.manifest import (
    EVALUATION_FILE,
    MODEL_FILE,
    PREPROCESSING_FILE,
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
from common.study import canonical_json
from common.version import VERSION
from coordinator.objects import ObjectStore
from coordinator.run_state import ModelRef, RoundRecord, RunState
from coordinator.store import StoredRelease

STATEMENT: Final = (
    "Every update was masked: the coordinator saw sums over the hospitals of each round, never"
    " one hospital's update, row count or metric. No differential privacy was applied: the sums"
    " themselves, and whoever may choose the models of several rounds, are not bounded."
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
    files = [FileEntry(name=MODEL_FILE, sha256=model.object_sha256.hex(), size=size)]
    study = canonical_json(state.study)
    files.append(_store(objects, STUDY_FILE, study))
    if state.evaluation:
        files.append(_store(objects, EVALUATION_FILE, state.evaluation.encode()))
    if has_constants(state.study):
        files.append(_store(objects, PREPROCESSING_FILE, _preprocessing(state, model, objects)))
    return tuple(files)


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
        layout_sha256=model_schema(study).layout_sha256.hex(),
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
        statement=PRIVATE_STATEMENT.format(unit=unit) if terms.on else STATEMENT,
    )


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
