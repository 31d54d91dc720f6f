"""The licence of each wheel, and its texts taken out of it.

A wheel states its licence in METADATA, in one of three ways that came one after the other;
texts lie in its `.dist-info` and, for code it carries along, beside that code. INDEX.tsv
names every wheel, also one that brings no text.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Final

from packaging.utils import canonicalize_name

from deploy.bundle.wheels import metadata

UNKNOWN: Final = "not stated"
HEADER: Final = "name\tversion\tlicence\ttexts"
LONGEST_NAME: Final = 100
"""A longer `License` field is the licence's text, not its name."""

SPDX: Final = {
    "MIT License": "MIT",
    "ISC License (ISCL)": "ISC",
    "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""Classifiers that mean one licence; `BSD License` means any of several and stays as it is."""

_TEXT = re.compile(r"(licen[cs]e|copying|notice|authors|copyright)", re.IGNORECASE)
_ODD = re.compile(r"[^A-Za-z0-9._+@~-]")
_CODE = (".py", ".pyc", ".pyi", ".h", ".so")


@dataclass(frozen=True, slots=True)
class Licence:
    """What is known of one wheel's licence; `texts` by the name they get in the bundle."""

    name: str
    version: str
    licence: str
    texts: dict[str, bytes]

    @property
    def folder(self) -> str:
        """Where the texts lie in the bundle."""
        return f"licences/{self.name}-{self.version}"


def licence_of(wheel: Path) -> Licence:
    """Return a wheel's licence and its texts.

    Raises:
        Failure: it is no wheel.
    """
    about = metadata(wheel)
    name, version = canonicalize_name(str(about["Name"])), str(about["Version"])
    return Licence(name, version, stated(about), texts_of(wheel))


def stated(about: Message) -> str:
    """Return the licence that METADATA states: an SPDX expression where it can be had."""
    expression = about["License-Expression"]
    if expression:
        return _line(expression)
    classifiers = [
        str(line).rsplit(" :: ", 1)[-1]
        for line in about.get_all("Classifier", [])
        if str(line).startswith("License :: ")
    ]
    known = [SPDX[line] for line in classifiers if line in SPDX]
    if known and len(known) == len(classifiers):
        return " OR ".join(sorted(known))
    field = str(about["License"] or "").strip()
    if field and "\n" not in field and len(field) <= LONGEST_NAME:
        return _line(field)
    return _line(" OR ".join(classifiers)) or UNKNOWN


def _line(text: str) -> str:
    return " ".join(str(text).split())


def texts_of(wheel: Path) -> dict[str, bytes]:
    """Return the licence texts in a wheel by the names they get; no two are the same."""
    found: dict[str, bytes] = {}
    with zipfile.ZipFile(wheel) as archive:
        for entry in sorted(archive.namelist()):
            if entry.endswith(("/", *_CODE)) or not _is_text(entry):
                continue
            name = _safe(entry)
            while name in found:
                name += "_"
            found[name] = archive.read(entry)
    return found


def _is_text(entry: str) -> bool:
    first, _, rest = entry.partition("/")
    in_licences = first.endswith(".dist-info") and rest.startswith("licenses/")
    return in_licences or bool(_TEXT.match(entry.rsplit("/", 1)[-1]))


def _safe(entry: str) -> str:
    """Return the path below the wheel's licence folder, in the characters of a bundle's names."""
    first, _, rest = entry.partition("/")
    if first.endswith(".dist-info"):
        entry = rest.removeprefix("licenses/")
    parts = (_ODD.sub("_", part) for part in entry.split("/"))
    return "/".join(part if part not in {"", ".", ".."} else "_" for part in parts)


def index(licences: Iterable[Licence]) -> bytes:
    """Return licences/INDEX.tsv: one wheel a line; `texts` is how many lie in its folder."""
    rows = sorted((item.name, item.version, item.licence, len(item.texts)) for item in licences)
    lines = [HEADER, *("\t".join(map(str, row)) for row in rows)]
    return ("\n".join(lines) + "\n").encode()
