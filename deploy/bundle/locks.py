"""Reads the locks: which package in which version by which hashes the images install here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.bundle.failure import Failure

ROOT: Final = Path(__file__).resolve().parents[2]
LOCKS: Final = tuple(
    ROOT / "deploy" / f"{name}.lock" for name in ("build", "coordinator", "node", "simulation")
)
TORCH: Final = ROOT / "requirements-torch.txt"
DOCKERFILE: Final = ROOT / "deploy" / "node.Dockerfile"

_ENTRY = re.compile(r"^(?=[A-Za-z0-9])", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_BASE = re.compile(r"^ARG BASE_IMAGE=(\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Pin:
    """A package of a lock; `hashes` is empty for torch alone (requirements-torch.txt says why)."""

    name: str
    version: str
    hashes: frozenset[str]


def pins(locks: tuple[Path, ...] = LOCKS, torch: Path = TORCH) -> dict[str, Pin]:
    """Return what has to be in the wheel house on this platform, by canonical name.

    Raises:
        Failure: a lock has an entry without a hash, or two locks disagree.
    """
    found: dict[str, Pin] = {}
    for lock in locks:
        for pin in _of_lock(lock):
            if found.setdefault(pin.name, pin) != pin:
                raise Failure(f"{lock.name} and another lock disagree on {pin.name}: `make lock`")
    for line in torch.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (exact,) = requirement.specifier
            found[requirement.name] = Pin(requirement.name, exact.version, frozenset())
    return found


def _of_lock(lock: Path) -> list[Pin]:
    lines = lock.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    result = []
    for entry in _ENTRY.split(text)[1:]:
        requirement = Requirement(entry.splitlines()[0].rstrip("\\ "))
        hashes = frozenset(_HASH.findall(entry))
        if not hashes:
            raise Failure(f"{lock.name}: {requirement.name} has no hash: `make lock`")
        if requirement.marker is None or requirement.marker.evaluate():
            (exact,) = requirement.specifier
            result.append(Pin(canonicalize_name(requirement.name), exact.version, hashes))
    return result


def base_image(dockerfile: Path = DOCKERFILE) -> str:
    """Return the image that both Dockerfiles begin from unless told otherwise.

    Raises:
        Failure: the Dockerfile does not state one.
    """
    found = _BASE.search(dockerfile.read_text(encoding="utf-8"))
    if found is None:
        raise Failure(f"{dockerfile.name} has no line 'ARG BASE_IMAGE=...'")
    return found.group(1)


def python_of(image: str) -> tuple[int, int]:
    """Return the Python version of a base image, from its tag.

    Raises:
        Failure: the tag does not say.
    """
    found = re.search(r":(\d+)\.(\d+)", image)
    if found is None:
        raise Failure(f"the base image {image} does not say its Python version")
    return int(found.group(1)), int(found.group(2))
