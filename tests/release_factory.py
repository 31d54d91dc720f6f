"""A released model of a small study, as a coordinator signs it, made without a federation."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.identity import load_identity, sign_manifest
from common.ids import RunId, Sha256
from common.layouts import first_model, model_schema
from common.manifest import FileEntry, Manifest, PrivacyEntry, RoundEntry, StudyEntry, chained
from common.messages import CHUNK_BYTES, DownloadChunk, ReleaseNotice
from common.model_file import model_header
from common.pki import Role, create_ca, issue
from common.preprocessing import Preprocessing
from common.study import Study, canonical_json, config_hash, parse_study
from common.vectors import ModelHasher

SITES = ("cleveland", "hungarian", "va")

STUDY = """
schema: fedcare.study/v1
id: small-study
title: A small study
purpose: research
dataset: heart
owner: {name: Somebody, organisation: uni-x}
features:
  - {name: age, type: float}
  - {name: sex, type: category, levels: ["0", "1"]}
target: {type: binary, name: num}
model: {kind: logistic}
federation: {rounds: 1, min_sites: 3}
"""


def study() -> Study:
    return parse_study(STUDY)


@dataclass
class Authority:
    """A CA with a coordinator and a researcher, in a folder."""

    folder: Path
    federation: str = "heart"
    ca: Path = field(init=False)

    def __post_init__(self) -> None:
        create_ca(self.folder / "pki", self.federation, now_unix=time.time())
        self.ca = self.folder / "pki" / "ca.crt"

    def issue(self, role: Role, name: str) -> Path:
        out = self.folder / f"{role}-{name}"
        if not out.exists():
            hosts = ("127.0.0.1",) if role is Role.COORDINATOR else ()
            pki = self.folder / "pki"
            issue(pki, role, name, now_unix=time.time(), hosts=hosts, out=out)
        return out


def model_bytes(of: Study) -> tuple[bytes, str]:
    """Return a model file and its protocol digest."""
    schema = model_schema(of)
    constants = Preprocessing(("age", "sex=1"), (50.0, 0.5), (10.0, 0.5), (None, None))
    flat = first_model(of, constants)
    flat[-1] = np.float32(0.25)
    data = flat.astype("<f4").tobytes()
    hasher = ModelHasher(schema)
    hasher.update(data)
    return model_header(schema) + data, hasher.finish().hex()


def entry(name: str, data: bytes) -> FileEntry:
    digest = hashlib.sha256(data).hexdigest()
    return FileEntry.model_validate({"name": name, "sha256": digest, "size": len(data)})


def rounds(model_sha256: str, sites: tuple[str, ...] = SITES) -> tuple[RoundEntry, ...]:
    bare = [
        RoundEntry(
            position=place,
            kind=kind,
            r=place,
            header=f"{place:064x}",
            survivors=sites,
            dropped=(),
            sum_sha256=f"{place:063x}a",
            model_sha256=made,
            chain="0" * 64,
        )
        for place, (kind, made) in enumerate(
            (("statistics", ""), ("train", model_sha256), ("evaluate", "")), start=1
        )
    ]
    links = list(chained(bare))
    return tuple(e.model_copy(update={"chain": c}) for e, c in zip(bare, links, strict=True))


@dataclass
class Release:
    """The files of a release and the manifest that names them; change them, then `sign`."""

    files: dict[str, bytes]
    manifest: Manifest

    def signed(self, signer: Path) -> ReleaseNotice:
        """Return the release signed with the certificate in a folder, whatever its role."""
        identity = load_identity(signer, now_unix=time.time())
        raw = self.manifest.to_json()
        if identity.role is Role.COORDINATOR:
            signature = sign_manifest(identity, raw)
        else:
            signature = identity.sign(b"fedcare/manifest/v1\x00" + raw)
        return ReleaseNotice(RunId(self.manifest.run), raw, signature, identity.chain)

    def write(self, folder: Path, signer: Path) -> None:
        notice = self.signed(signer)
        folder.mkdir(parents=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        (folder / "manifest.json").write_bytes(notice.manifest)
        (folder / "manifest.sig").write_bytes(notice.signature)
        (folder / "chain.pem").write_bytes((signer / "tls.crt").read_bytes())


def release(federation: str = "heart") -> Release:
    of = study()
    data, digest = model_bytes(of)
    constants = Preprocessing(("age", "sex=1"), (50.0, 0.5), (10.0, 0.5), (None, None))
    files = {
        "model.safetensors": data,
        "study.json": canonical_json(of),
        "preprocessing.json": constants.to_json().encode(),
    }
    manifest = Manifest(
        schema="fedcare.model/v1",  # type: ignore[call-arg] # the field's alias
        federation=federation,
        run="small-study-1",
        study=StudyEntry(
            id=of.id, title=of.title, owner="uni-x", config_hash=config_hash(of).hex()
        ),
        signed_at=int(time.time()),
        sites=SITES,
        rounds=rounds(digest),
        files=tuple(entry(name, content) for name, content in files.items()),
        model_sha256=digest,
        layout_sha256=model_schema(of).layout_sha256.hex(),
        metrics={"auroc": 0.9},
        privacy=PrivacyEntry(
            secure_aggregation=True, suite="hybrid", colluders=1, min_sites=3, dp="none",
            statement="Sums only.",
        ),
        software="test",
    )  # fmt: skip
    return Release(files, manifest)


@dataclass
class MemorySource:
    """A `researcher.release.Source`; `breaks` are byte counts after which a stream fails."""

    notice: ReleaseNotice
    files: dict[str, bytes]
    piece: int = CHUNK_BYTES
    offsets: list[int] = field(default_factory=list)

    async def release(self, _run_id: str) -> ReleaseNotice:
        return self.notice

    async def download(self, sha256: Sha256, offset: int = 0) -> AsyncIterator[DownloadChunk]:
        self.offsets.append(offset)
        data = next(d for d in self.files.values() if hashlib.sha256(d).digest() == sha256)
        while offset < len(data):
            part = data[offset : offset + self.piece]
            yield DownloadChunk(offset, len(data), part)
            offset += len(part)
