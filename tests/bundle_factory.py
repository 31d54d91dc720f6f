"""Small bundles for tests: a few files under one signature, and ways to write them wrongly."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.bundle import (
    LICENCES_FILE,
    LIST_FILE,
    SBOM_FILE,
    SIGNATURE_FILE,
    Contents,
    FileEntry,
    fingerprint,
    sign,
)
from common.ustar import END, header, padding
from deploy.bundle.licences import index, licence_of
from deploy.bundle.sbom import Image, Wheel, bill

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
BASE_IMAGE = "python:3.11-slim-bookworm"
CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

PRODUCT = "dist/fedcare-0.1.0-py3-none-any.whl"
ALPHA = "source/deploy/wheelhouse/alpha_one-1.0-py3-none-any.whl"
BETA = "source/deploy/wheelhouse/beta-2.0+cpu-py3-none-any.whl"
IMAGE = "images/node-0.1.0.tar"
SCRIPT = "source/.ci/run"
TOP = "fedcare-bundle-0.1.0"

Member = tuple[bytes, bytes]
"""A header and the bytes that follow it."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel_bytes(
    name: str, version: str, *lines: str, files: Mapping[str, bytes] | None = None
) -> bytes:
    """A wheel with METADATA of `lines` and `files`, which lie in its .dist-info."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    about = "\n".join(["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines])
    written = {f"{info}/METADATA": (about + "\n\n").encode()}
    written |= {f"{info}/{path}": data for path, data in (files or {}).items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in written.items():
            archive.writestr(zipfile.ZipInfo(path), data)
    return buffer.getvalue()


WHEELS = {
    PRODUCT: wheel_bytes(
        "fedcare",
        "0.1.0",
        "License-Expression: Apache-2.0",
        "Requires-Dist: alpha-one>=1",
        'Requires-Dist: beta; extra == "train"',
        'Requires-Dist: pytest; extra == "dev"',
    ),
    ALPHA: wheel_bytes(
        "alpha-one",
        "1.0",
        "License-Expression: MIT",
        "Requires-Dist: beta",
        files={"licenses/LICENSE": b"MIT text\n"},
    ),
    BETA: wheel_bytes("beta", "2.0+cpu", "Classifier: License :: OSI Approved :: BSD License"),
}


def known(folder: Path, path: str, data: bytes) -> Wheel:
    """What the maker knows of a wheel."""
    local = folder / path.rsplit("/", 1)[-1]
    local.write_bytes(data)
    return Wheel(local, path, sha256(data), licence_of(local))


def sbom_of(folder: Path, wheels: Mapping[str, bytes], images: Mapping[str, bytes]) -> bytes:
    product, *others = (known(folder, path, data) for path, data in wheels.items())
    saved = [
        Image("fedcare/node:0.1.0", path, sha256(data), "sha256:0") for path, data in images.items()
    ]
    return bill(product, others, saved, BASE_IMAGE, CREATED)


def good_files(folder: Path) -> dict[str, bytes]:
    """The files of a good bundle but the list and the signature; `folder` is for scratch."""
    images = {IMAGE: b"an image" * 200}
    licences = [known(folder, path, data).licence for path, data in WHEELS.items()]
    return {
        **WHEELS,
        **images,
        SCRIPT: b"#!/bin/sh\n",
        "source/README.md": b"read me\n" * 300,
        LICENCES_FILE: index(licences),
        SBOM_FILE: sbom_of(folder, WHEELS, images),
    }


def contents_of(files: Mapping[str, bytes]) -> Contents:
    entries = [
        FileEntry(path, sha256(data), len(data), path == SCRIPT)
        for path, data in sorted(files.items())
    ]
    return Contents(
        version="0.1.0",
        commit="a" * 40,
        dirty=False,
        created="2026-01-02T03:04:05Z",
        platform="cp311-linux_x86_64",
        base_image=BASE_IMAGE,
        signer=fingerprint(KEY.public_key()),
        files=tuple(entries),
    )


def member(path: str, data: bytes) -> Member:
    return header(f"{TOP}/{path}", len(data), executable=path == SCRIPT), data


def members_of(files: Mapping[str, bytes], contents: Contents | None = None) -> list[Member]:
    """The archive's members: the list and its signature, then the files in order."""
    raw = (contents or contents_of(files)).to_json()
    return signed(raw) + [member(path, data) for path, data in sorted(files.items())]


def signed(raw: bytes, signature: bytes | None = None) -> list[Member]:
    return [
        member(LIST_FILE, raw),
        member(SIGNATURE_FILE, sign(KEY, raw) if signature is None else signature),
    ]


def archive_of(members: Sequence[Member], end: bytes = END) -> bytes:
    return b"".join(head + data + bytes(padding(len(data))) for head, data in members) + end


def folder_of(folder: Path, files: Mapping[str, bytes]) -> Path:
    """An unpacked bundle."""
    for head, data in members_of(files):
        name = head[:100].split(b"\0")[0].decode()
        path = folder / name.removeprefix(f"{TOP}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def changed_list(contents: Contents, **changes: object) -> bytes:
    """The bytes of a list with some top-level keys changed; None removes one."""
    body = {**json.loads(contents.to_json()), **changes}
    return json.dumps({key: value for key, value in body.items() if value is not None}).encode()


def renamed(contents: Contents, index: int, path: str) -> Contents:
    """A list in which one file has another path, at the same place."""
    files = list(contents.files)
    files[index] = replace(files[index], path=path)
    return replace(contents, files=tuple(files))
