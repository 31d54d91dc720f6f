"""Verifies a bundle, and only then unpacks it.

The order, which is also the order of trust:

1. the first two files are the list and its signature; nothing else is looked at;
2. the signature, by the key that the caller pinned;
3. every other file: named by the list, of its size, of its digest, none twice;
4. no file of the list is missing;
5. the bill of materials names exactly the wheels and images, by digest.

Until 2 has passed at most MAX_LIST bytes are held; later never more than a chunk and the
bill of materials. `extract` reads the archive a second time and checks each digest again
while it writes, so that a file exchanged in between is found; its folder appears whole or
not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.bundle import (
    LICENCES_FILE,
    LIST_FILE,
    MAX_LIST,
    SBOM_FILE,
    SIGNATURE_FILE,
    SIGNATURE_SIZE,
    Contents,
    FileEntry,
    check_signature,
    parse_contents,
    parse_strict,
)
from common.errors import ConfigError, StateError
from common.install import sync_folder
from common.text import show
from common.ustar import CHUNK, MAX_NAME, members

SBOM_PATH_PROPERTY: Final = "fedcare:file"
"""The property of a component that says which file of the bundle it is."""

_NAME_RUN = re.compile(r"[-_.]+")


@dataclass(frozen=True, slots=True)
class Found:
    """A file as it was come upon; its bytes are read from `stream`, at most once."""

    path: str
    size: int
    stream: BinaryIO


@dataclass(frozen=True, slots=True)
class Facts:
    """What `show` tells. `licences`: how many wheels have which licence."""

    contents: Contents
    licences: Mapping[str, int]


# --- the two forms a bundle comes in ---------------------------------------------------------


@contextlib.contextmanager
def opened(bundle: Path) -> Iterator[_Archive | _Folder]:
    """Open a bundle, packed or unpacked.

    Raises:
        ConfigError: FILE_MISSING, it is neither a file nor a folder.
    """
    if bundle.is_dir():
        yield _Folder(bundle)
        return
    try:
        # O_NONBLOCK: a pipe of that name must not hold us up; it has no effect on files.
        descriptor = os.open(bundle, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError("FILE_MISSING", f"{bundle}: {error.strerror}") from None
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, opened with flags
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigError("FILE_MISSING", f"{bundle} is neither a file nor a folder")
        yield _Archive(bundle.name, file)


@dataclass(frozen=True, slots=True)
class _Archive:
    """A packed bundle: the list and the signature are its first members."""

    label: str
    file: BinaryIO

    def files(self) -> Iterator[Found]:
        top = ""
        for member in members(self.file, self.label):
            first, _, rest = member.name.partition("/")
            if not top:
                top = first
            if first != top or not rest:
                raise StateError(
                    "BUNDLE_FORM", f"{self.label}: {show(member.name)} lies outside {show(top)}"
                )
            self.file.seek(member.offset)
            yield Found(rest, member.size, self.file)


@dataclass(frozen=True, slots=True)
class _Folder:
    """An unpacked bundle; links and all that is no plain file are refused, wherever they lie."""

    root: Path

    @property
    def label(self) -> str:
        return str(self.root)

    def files(self) -> Iterator[Found]:
        first = [self.root / LIST_FILE, self.root / SIGNATURE_FILE]
        for path in first:
            yield from self._open(path)
        for path in _walk(self.root, self.root):
            if path not in first:
                yield from self._open(path)

    def _open(self, path: Path) -> Iterator[Found]:
        name = path.relative_to(self.root).as_posix()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            where = f"{self.label}: {show(name)}"
            raise StateError("BUNDLE_DAMAGED", f"{where}: {error.strerror}") from None
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, opened with flags
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StateError("BUNDLE_FORM", f"{self.label}: {show(name)} is no plain file")
            yield Found(name, status.st_size, file)


def _walk(folder: Path, root: Path) -> Iterator[Path]:
    if len(str(folder.relative_to(root))) > MAX_NAME:
        raise StateError("BUNDLE_FORM", f"{root}: folders lie deeper than in any bundle")
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        path = folder / entry.name
        if entry.is_symlink():
            raise StateError("BUNDLE_FORM", f"{show(str(path))} is a symbolic link")
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(path, root)
        else:
            yield path


# --- verifying ---------------------------------------------------------------------------


def verify(bundle: Path, key: Ed25519PublicKey, extract_to: Path | None = None) -> Contents:
    """Check a bundle against a pinned release key; then unpack it if asked to.

    Raises:
        FedError: FILE_MISSING; BUNDLE_FORM, BUNDLE_SIGNATURE, BUNDLE_DAMAGED, BUNDLE_SBOM
            for the first thing that is wrong; OUTPUT_EXISTS or BAD_ARGUMENT for
            `extract_to`; DISK. Where it raises, nothing was unpacked.
    """
    with opened(bundle) as source:
        if extract_to is not None:
            _check_target(source, extract_to)
        contents, raw, signature = _verified(source, key)
        if extract_to is not None:
            _extract(source, contents, {LIST_FILE: raw, SIGNATURE_FILE: signature}, extract_to)
        return contents


def _verified(source: _Archive | _Folder, key: Ed25519PublicKey) -> tuple[Contents, bytes, bytes]:
    files = source.files()
    raw = _whole(next(files, None), LIST_FILE, source.label, MAX_LIST)
    signature = _whole(next(files, None), SIGNATURE_FILE, source.label, SIGNATURE_SIZE)
    check_signature(key, raw, signature)
    contents = parse_contents(raw)
    missing = {entry.path: entry for entry in contents.files}
    sbom = b""
    for found in files:
        entry = missing.pop(found.path, None)
        if entry is None:
            raise _damaged(source, found.path, "is not on the signed list")
        if entry.size != found.size:
            sizes = f"has {found.size} bytes, the signed list says {entry.size}"
            raise _damaged(source, found.path, sizes)
        kept = _hashed(found, entry, source, keep=entry.path == SBOM_FILE)
        sbom = kept or sbom
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise _damaged(source, min(missing), f"is missing{more}")
    check_sbom(sbom, contents)
    return contents, raw, signature


def _damaged(source: _Archive | _Folder, path: str, what: str) -> StateError:
    return StateError("BUNDLE_DAMAGED", f"{source.label}: {show(path, 250)} {what}")


def _whole(found: Found | None, name: str, label: str, limit: int) -> bytes:
    """Return a small file's bytes, which has to be the one of that name."""
    if found is None or found.path != name:
        got = show(found.path) if found else "nothing"
        raise StateError(
            "BUNDLE_FORM",
            f"{label}: {name} was expected, {got} is there",
            fix="This is no bundle of FedCare, or its first part was changed.",
        )
    if found.size > limit:
        raise StateError("BUNDLE_FORM", f"{label}: {name} has {found.size} bytes, over {limit}")
    data = found.stream.read(found.size)
    if len(data) != found.size:
        raise StateError("BUNDLE_DAMAGED", f"{label}: {name} is cut short")
    return data


def _hashed(
    found: Found,
    entry: FileEntry,
    source: _Archive | _Folder,
    *,
    keep: bool = False,
    into: BinaryIO | None = None,
) -> bytes:
    """Read a file and check it; return its bytes if `keep`, write them `into` a file if given."""
    if keep and entry.size > MAX_LIST:
        raise StateError("BUNDLE_FORM", f"{source.label}: {show(entry.path)} is too large")
    digest, left, kept = hashlib.sha256(), entry.size, bytearray()
    while left:
        data = found.stream.read(min(left, CHUNK))
        if not data:
            raise _damaged(source, found.path, "is cut short")
        left -= len(data)
        digest.update(data)
        if keep:
            kept += data
        if into is not None:
            into.write(data)
    if digest.hexdigest() != entry.sha256:
        raise _damaged(source, found.path, "was changed: its SHA-256 is not that of the list")
    return bytes(kept)


# --- the bill of materials ---------------------------------------------------------------


def check_sbom(raw: bytes, contents: Contents) -> None:
    """Check that the bill of materials names exactly the wheels and images, by digest.

    Raises:
        StateError: BUNDLE_SBOM naming the first file that differs, or BUNDLE_FORM.
    """
    named: dict[str, str] = {}
    for component in _components(parse_strict(raw, SBOM_FILE)):
        path = _file_of(component)
        if path is None:
            continue  # the base image: named, not brought along
        if path in named:
            raise StateError("BUNDLE_SBOM", f"{SBOM_FILE} names {show(path)} twice")
        if path.endswith(".whl"):
            _check_name(component, path)
        named[path] = _sha256_of(component)
    there = {entry.path: entry.sha256 for entry in (*contents.wheels, *contents.images)}
    for path in sorted(named.keys() | there.keys()):
        if path not in there:
            raise StateError("BUNDLE_SBOM", f"{SBOM_FILE} names {show(path)}, which is not there")
        if path not in named:
            raise StateError("BUNDLE_SBOM", f"{SBOM_FILE} does not name {show(path)}")
        if named[path] != there[path]:
            raise StateError("BUNDLE_SBOM", f"{SBOM_FILE} has another SHA-256 for {show(path)}")


def _components(body: object) -> Iterator[Mapping[str, object]]:
    metadata = _get(body, "metadata")
    yield _mapping(_get(metadata, "component"))
    for item in _list(_get(body, "components")):
        yield _mapping(item)


def _file_of(component: Mapping[str, object]) -> str | None:
    for item in _list(component.get("properties", [])):
        if _get(item, "name") == SBOM_PATH_PROPERTY:
            return str(_get(item, "value"))
    return None


def _sha256_of(component: Mapping[str, object]) -> str:
    for item in _list(component.get("hashes", [])):
        if _get(item, "alg") == "SHA-256":
            return str(_get(item, "content"))
    return ""


def _check_name(component: Mapping[str, object], path: str) -> None:
    """Check a wheel's component against the name and version that its file's name states."""
    name, _, rest = path.rsplit("/", 1)[-1].partition("-")
    version = rest.partition("-")[0]
    stated = f"pkg:pypi/{_NAME_RUN.sub('-', name).lower()}@{version}"
    purl = urllib.parse.unquote(str(component.get("purl")))
    if purl != stated or component.get("version") != version:
        raise StateError("BUNDLE_SBOM", f"{SBOM_FILE} calls {show(path, 250)} {show(purl)}")


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise StateError("BUNDLE_FORM", f"{SBOM_FILE}: not a CycloneDX document")
    return cast("dict[str, object]", value)


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise StateError("BUNDLE_FORM", f"{SBOM_FILE}: not a CycloneDX document")
    return cast("list[object]", value)


def _get(value: object, key: str) -> object:
    return _mapping(value).get(key)


# --- unpacking ---------------------------------------------------------------------------


def _check_target(source: _Archive | _Folder, target: Path) -> None:
    if isinstance(source, _Folder):
        raise ConfigError("BAD_ARGUMENT", f"--extract: {source.label} is unpacked already")
    if target.is_symlink() or target.exists():
        raise ConfigError(
            "OUTPUT_EXISTS", f"{target} is already there", fix="Name a folder that does not exist."
        )


def _extract(
    source: _Archive | _Folder, contents: Contents, head: Mapping[str, bytes], target: Path
) -> None:
    """Unpack a bundle that was verified; each digest is checked again on the way."""
    entries = {entry.path: entry for entry in contents.files}
    target = target.absolute()
    staged = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.mkdir(mode=0o755)
        for found in source.files():
            if found.path in head:
                with _new_file(staged / found.path, executable=False) as file:
                    file.write(head[found.path])
                continue
            entry = entries.pop(found.path, None)
            if entry is None or entry.size != found.size:
                raise _damaged(source, found.path, "changed while it was being unpacked")
            with _new_file(staged / entry.path, executable=entry.executable) as file:
                _hashed(found, entry, source, into=file)
        if entries:
            raise _damaged(source, min(entries), "vanished while it was being unpacked")
        staged.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise StateError("DISK", f"{target}: {error.strerror}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextlib.contextmanager
def _new_file(path: Path, *, executable: bool) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fchmod(file.fileno(), 0o755 if executable else 0o644)
        os.fsync(file.fileno())


# --- showing -----------------------------------------------------------------------------


def facts(bundle: Path, key: Ed25519PublicKey | None) -> Facts:
    """Return what a bundle says of itself; believed only if `key` is given, and not verified whole.

    The list's signature is checked with `key`; the licences' index is checked against the
    list. Other files are not read.

    Raises:
        FedError: as `verify`, for what is read.
    """
    with opened(bundle) as source:
        files = source.files()
        raw = _whole(next(files, None), LIST_FILE, source.label, MAX_LIST)
        signature = _whole(next(files, None), SIGNATURE_FILE, source.label, SIGNATURE_SIZE)
        if key is not None:
            check_signature(key, raw, signature)
        contents = parse_contents(raw)
        index = {entry.path: entry for entry in contents.files}.get(LICENCES_FILE)
        for found in files:
            if index is not None and found.path == LICENCES_FILE and found.size == index.size:
                text = _hashed(found, index, source, keep=True).decode("utf-8", "replace")
                return Facts(contents, _licences(text))
        raise _damaged(source, LICENCES_FILE, "is missing")


def _licences(index: str) -> Mapping[str, int]:
    rows = [line.split("\t") for line in index.splitlines()[1:]]
    return Counter(row[2] for row in rows if len(row) > 2)  # noqa: PLR2004 - the third column
