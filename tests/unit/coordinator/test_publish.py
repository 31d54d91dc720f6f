"""A release says what led to it, and none of it can be changed without being noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.certificates import Role, verify_manifest
from common.errors import FedError, StateError
from common.identity import Identity, load_identity
from common.ids import Sha256
from common.layouts import first_model, model_schema
from common.manifest import Manifest, RoundEntry, chained
from common.messages import Objection
from common.model_file import model_header
from common.pki import create_ca, issue
from common.preprocessing import Preprocessing
from common.study import Study, canonical_json, parse_study
from common.vectors import model_digest
from coordinator.driver import chain_of, notice_of
from coordinator.objects import ObjectStore
from coordinator.publish import make_release
from coordinator.run_state import ModelRef, OpenSum, RunState
from coordinator.store import StoredRelease
from tests.run_world import VECTOR, RunWorld
from tests.study_texts import HEART

NOW = 1_800_000_000


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    pki = tmp_path_factory.mktemp("pki")
    create_ca(pki / "ca", "sim", now_unix=NOW)
    issue(
        pki / "ca",
        Role.COORDINATOR,
        "main",
        now_unix=NOW,
        hosts=("localhost",),
        out=pki / "main",
    )
    return load_identity(pki / "main", now_unix=NOW)


@pytest.fixture(scope="module")
def finished() -> RunState:
    world = RunWorld()
    world.begin()
    return world.state


def stored_model(study: Study, objects: ObjectStore) -> ModelRef:
    """Store the study's first model as a released one would lie there."""
    schema = model_schema(study)
    columns = schema.tensors[0].size
    constants = None
    if schema.tensors[0].name.startswith("preprocess."):
        constants = Preprocessing(
            columns=tuple(f"c{place}" for place in range(columns)),
            centre=tuple(0.5 * place for place in range(columns)),
            scale=(2.0,) * columns,
            impute=(1.25,) * len(study.features),
        )
    data = first_model(study, constants).astype("<f4").tobytes()
    address = objects.put(model_header(schema) + data)
    return ModelRef(address, model_digest(schema, data))


class Made:
    """A release and everything that is needed to judge it."""

    def __init__(self, root: Path, state: RunState, identity: Identity) -> None:
        self.objects = ObjectStore(root)
        self.model = stored_model(state.study, self.objects)
        self.identity = identity
        self.state = replace(state, model=self.model)
        self.release = make_release(self.state, self.model, self.objects, identity, NOW)
        self.manifest = Manifest.from_json(self.release.manifest)


@pytest.fixture
def made(tmp_path: Path, finished: RunState, coordinator: Identity) -> Made:
    return Made(tmp_path, finished, coordinator)


def test_the_manifest_tells_the_run_as_it_was(made: Made) -> None:
    manifest, state = made.manifest, made.state
    assert (manifest.federation, manifest.run) == ("sim", state.run_id)
    assert manifest.study.config_hash == hashlib.sha256(canonical_json(state.study)).hexdigest()
    assert manifest.sites == ("h0000", "h0001", "h0002", "h0003")
    assert [(entry.position, entry.kind) for entry in manifest.rounds] == [
        (1, "train"),
        (2, "train"),
    ]
    for entry, record in zip(manifest.rounds, state.history, strict=True):
        assert (entry.header, entry.sum_sha256) == (record.hd.hex(), record.sum_sha256.hex())
    assert manifest.model_sha256 == made.model.model_sha256.hex()
    assert manifest.layout_sha256 == model_schema(state.study).layout_sha256.hex()
    assert manifest.privacy.secure_aggregation
    assert (manifest.privacy.colluders, manifest.privacy.min_sites) == (1, 3)
    assert manifest.signed_at == NOW


def test_the_card_says_who_took_part_in_which_rounds_and_who_withdrew(
    tmp_path: Path, coordinator: Identity
) -> None:
    world = RunWorld(VECTOR.replace("rounds: 2", "rounds: 3"))
    world.hold = {OpenSum}
    world.begin()
    why = (Objection("APPROVAL_WITHDRAWN", "withdrawn by dr-weber: a reason of its own"),)
    held, world.held = world.held, []
    for command in held:
        world._work(command)
    world.decide(3, why)  # in round 2, which its vector had reached
    world.release_held()
    made = Made(tmp_path, world.state, coordinator)
    entries = {entry.site: entry for entry in made.manifest.participation}
    assert [entries[site].rounds for site in made.manifest.sites] == [3, 3, 3, 2]
    left = entries["h0003"]
    assert (left.first, left.last) == (1, 2)
    assert left.withdrawn is not None
    assert left.withdrawn.after_round == 1
    assert all(entry.withdrawn is None for site, entry in entries.items() if site != "h0003")
    assert b"dr-weber" not in made.release.manifest  # why, and who, the hospital knows


def test_a_manifest_of_a_version_before_is_still_read(made: Made) -> None:
    def forget(tree: dict[str, Any]) -> None:
        del tree["participation"]

    assert Manifest.from_json(_changed(made.release, forget)).participation == ()


def test_every_file_lies_under_its_digest(made: Made) -> None:
    for entry in made.manifest.files:
        with made.objects.open(Sha256(bytes.fromhex(entry.sha256))) as reader:
            assert reader.size == entry.size
            assert hashlib.sha256(reader.read(0, entry.size)).hexdigest() == entry.sha256
    names = {entry.name for entry in made.manifest.files}
    assert names == {"model.safetensors", "study.json"}  # a `vector` has no preprocessing
    with pytest.raises(StateError) as refused:
        made.manifest.file("preprocessing.json")
    assert refused.value.name == "MODEL_INVALID"


def test_preprocessing_is_the_models_own_constants(
    tmp_path: Path, finished: RunState, coordinator: Identity
) -> None:
    made = Made(tmp_path, replace(finished, study=parse_study(HEART)), coordinator)
    entry = made.manifest.file("preprocessing.json")
    text = made.objects.path(Sha256(bytes.fromhex(entry.sha256))).read_bytes()
    assert Preprocessing.from_json(text).scale[0] == 2.0
    assert Preprocessing.from_json(text).impute[0] == 1.25


def test_a_voided_round_is_no_part_of_the_release(
    tmp_path: Path, finished: RunState, coordinator: Identity
) -> None:
    first, second = finished.history
    voided = replace(first, opened=False, survivors=(), dropped=(), reason="NOT_ENOUGH")
    state = replace(finished, history=(first, voided, second))
    manifest = Made(tmp_path, state, coordinator).manifest
    assert [entry.position for entry in manifest.rounds] == [1, 2]


def test_the_signature_is_the_coordinators_and_over_every_byte(made: Made) -> None:
    notice = notice_of(made.state, made.release)
    chain = chain_of(made.release.chain)
    assert notice.cert_chain == chain == made.identity.chain

    def verify(data: bytes, signature: bytes) -> object:
        ca = made.identity.ca_der
        return verify_manifest(data, signature, chain, ca_der=ca, federation="sim", signed_at=NOW)

    verify(notice.manifest, notice.signature)
    for place in range(0, len(notice.manifest), 97):
        altered = bytearray(notice.manifest)
        altered[place] ^= 1
        with pytest.raises(StateError) as refused:
            verify(bytes(altered), notice.signature)
        assert refused.value.name == "MANIFEST_SIGNATURE"
    other = make_release(made.state, made.model, made.objects, made.identity, NOW + 1)
    with pytest.raises(StateError):
        verify(notice.manifest, other.signature)


def test_a_model_that_is_gone_is_no_release(made: Made) -> None:
    made.objects.remove(made.model.object_sha256)
    with pytest.raises(FedError) as refused:
        make_release(made.state, made.model, made.objects, made.identity, NOW)
    assert refused.value.name == "NOT_FOUND"


# --- the chain of rounds ----------------------------------------------------------------------


def _changed(release: StoredRelease, change: Callable[[dict[str, Any]], None]) -> bytes:
    tree = json.loads(release.manifest)
    change(tree)
    return json.dumps(tree).encode()


CHANGES: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "a round left out at the start": lambda rounds: rounds.pop(0),
    "two rounds swapped": lambda rounds: rounds.reverse(),
    "a round twice": lambda rounds: rounds.append(dict(rounds[-1])),
    "a survivor left out": lambda rounds: rounds[0].update(survivors=rounds[0]["survivors"][1:]),
    "a survivor said to have dropped out": lambda rounds: rounds[0].update(
        survivors=rounds[0]["survivors"][1:], dropped=rounds[0]["survivors"][:1]
    ),
    "another sum": lambda rounds: rounds[0].update(sum_sha256="0" * 64),
    "another model": lambda rounds: rounds[1].update(model_sha256="0" * 64),
    "another header": lambda rounds: rounds[1].update(header="0" * 64),
    "another number": lambda rounds: rounds[1].update(r=7),
    "another position": lambda rounds: rounds[1].update(position=7),
    "another kind": lambda rounds: rounds[1].update(kind="evaluate"),
    "another link": lambda rounds: rounds[0].update(chain="0" * 64),
}


@pytest.mark.parametrize("name", CHANGES)
def test_rounds_that_were_altered_break_the_chain(made: Made, name: str) -> None:
    altered = _changed(made.release, lambda tree: CHANGES[name](tree["rounds"]))  # type: ignore[arg-type]
    with pytest.raises(StateError, match="chain of rounds") as refused:
        Manifest.from_json(altered)
    assert refused.value.name == "MODEL_INVALID"


def test_names_cannot_be_moved_between_survivors_and_dropped_unnoticed() -> None:
    entry = RoundEntry(
        position=1,
        kind="train",
        r=1,
        header="1" * 64,
        survivors=("a", "b"),
        dropped=("c",),
        sum_sha256="2" * 64,
        model_sha256="3" * 64,
        chain="0" * 64,
    )
    moved = entry.model_copy(update={"survivors": ("a",), "dropped": ("b", "c")})
    assert list(chained([entry])) != list(chained([moved]))


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.update(schema="fedcare.model/v9"),
        lambda tree: tree.update(more=1),
        lambda tree: tree.pop("privacy"),
        lambda tree: tree.update(model_sha256="xyz"),
        lambda tree: tree["files"][0].update(name="../evil"),
        lambda tree: tree["files"][0].update(size=-1),
        lambda tree: tree["metrics"].update(auroc="much"),
    ],
)
def test_what_is_no_manifest_is_refused(
    made: Made, change: Callable[[dict[str, Any]], None]
) -> None:
    with pytest.raises(StateError) as refused:
        Manifest.from_json(_changed(made.release, change))
    assert refused.value.name == "MODEL_INVALID"


def test_the_same_manifest_has_the_same_bytes(made: Made) -> None:
    assert made.manifest.to_json() == made.release.manifest
