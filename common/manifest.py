"""A released model's manifest: what it is, how it came about, and what signs it.

`manifest.json` lies beside `model.safetensors`, `preprocessing.json`, `study.json`, where
pooled figures came about without noise `evaluation.json`, and after an exact regression
`coefficients.json`, and names each by SHA-256; the
coordinator signs its bytes. The rounds that led to the model form a chain: each entry's
`chain` is the SHA-256 of the previous one and of the entry, so that a round cannot be left
out or altered without changing all later ones.

A study of kind `statistics` has no model: its release holds `statistics.json` instead, and
`model_sha256` is the SHA-256 of that file.

`fedcare model verify` needs these files and the pinned CA, nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from common.config import Section, validate
from common.documents import parse_json
from common.encoding import enc
from common.errors import FedError, StateError

SCHEMA: Final = "fedcare.model/v1"
MANIFEST_FILE: Final = "manifest.json"
SIGNATURE_FILE: Final = "manifest.sig"
CHAIN_FILE: Final = "chain.pem"
MODEL_FILE: Final = "model.safetensors"
STATISTICS_FILE: Final = "statistics.json"
PREPROCESSING_FILE: Final = "preprocessing.json"
STUDY_FILE: Final = "study.json"
EVALUATION_FILE: Final = "evaluation.json"
COEFFICIENTS_FILE: Final = "coefficients.json"

_GENESIS: Final = "0" * 64

Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 digest in lower-case hexadecimal."""


class FileEntry(Section):
    """A file of the release: its digest and its size in bytes."""

    name: Literal[
        "model.safetensors",
        "preprocessing.json",
        "study.json",
        "evaluation.json",
        "coefficients.json",
        "statistics.json",
    ]
    sha256: Hex
    size: Annotated[int, Field(ge=0)]


class RoundEntry(Section):
    """One opened round. `header`: digest of its header; `model_sha256` empty where it made none."""

    position: int
    kind: str
    r: int
    header: Hex
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]
    sum_sha256: Hex
    model_sha256: str
    chain: Hex


class WithdrawnEntry(Section):
    """A hospital's people took its consent back. `at`: Unix seconds; `after_round`: 0 for none.

    Why, only the hospital knows.
    """

    after_round: Annotated[int, Field(ge=0)]
    at: Annotated[int, Field(ge=0)]


class ParticipationEntry(Section):
    """In how many of the rounds a hospital's vector was summed, in which first and last.

    `withdrawn` is its latest withdrawal; a `last` beyond it means that it came back.
    """

    site: str
    first: Annotated[int, Field(ge=1)]
    last: Annotated[int, Field(ge=1)]
    rounds: Annotated[int, Field(ge=1)]
    withdrawn: WithdrawnEntry | None = None


class StudyEntry(Section):
    """Which study, by the hash that every hospital accepted."""

    id: str
    title: str
    owner: str
    config_hash: Hex


class PrivacyEntry(Section):
    """How contributions were protected, with the honest limit in words.

    `epsilon` and `delta`: what the study's differential privacy promises for all its rounds
    and figures together, enforced by each hospital's own ledger; null without (`dp` none).
    """

    secure_aggregation: bool
    suite: str
    colluders: int
    min_sites: int
    dp: str
    epsilon: float | None = None
    delta: float | None = None
    statement: str


class Manifest(Section):
    """See the module. `signed_at` is in Unix seconds; `sites` contributed at least once.

    `participation` has an entry for each of `sites`, or none: then it was signed by a version
    that did not write it down.
    """

    schema_: Annotated[Literal["fedcare.model/v1"], Field(alias="schema")] = SCHEMA
    federation: str
    run: str
    study: StudyEntry
    signed_at: int
    sites: tuple[str, ...]
    participation: tuple[ParticipationEntry, ...] = ()
    rounds: tuple[RoundEntry, ...]
    files: tuple[FileEntry, ...]
    model_sha256: Hex
    layout_sha256: Hex
    metrics: dict[str, float]
    privacy: PrivacyEntry
    software: str

    def to_json(self) -> bytes:
        """Return the released bytes: sorted keys, one line end."""
        body = self.model_dump(mode="json", by_alias=True)
        return (json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True) + "\n").encode()

    @staticmethod
    def from_json(raw: bytes) -> Manifest:
        """Read a manifest; its signature is checked elsewhere, before this is believed.

        Raises:
            StateError: MODEL_INVALID, it is not a manifest, or its chain of rounds is broken.
        """
        try:
            manifest = validate(parse_json(raw, MANIFEST_FILE), Manifest, SCHEMA)
        except FedError as error:
            fix = error.fix if error.name == "SCHEMA_VERSION" else None
            raise StateError("MODEL_INVALID", error.detail, fix=fix) from None
        if [entry.chain for entry in manifest.rounds] != list(chained(manifest.rounds)):
            raise StateError("MODEL_INVALID", f"{MANIFEST_FILE}: its chain of rounds is broken")
        return manifest

    def file(self, name: str) -> FileEntry:
        """Return the entry of a file.

        Raises:
            StateError: MODEL_INVALID, the manifest has no such file.
        """
        for entry in self.files:
            if entry.name == name:
                return entry
        raise StateError("MODEL_INVALID", f"{MANIFEST_FILE} names no {name}")


def chained(entries: Iterable[RoundEntry]) -> Iterable[str]:
    """Yield what each entry's `chain` has to be."""
    previous = _GENESIS
    for entry in entries:
        items = (entry.position, entry.kind, entry.r, entry.header)
        sites: tuple[str | int, ...] = (
            len(entry.survivors),
            *entry.survivors,
            len(entry.dropped),
            *entry.dropped,
        )
        body = enc(previous, *items, *sites, entry.sum_sha256, entry.model_sha256)
        previous = hashlib.sha256(body).hexdigest()
        yield previous
