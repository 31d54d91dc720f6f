"""Fills deploy/wheelhouse with exactly the wheels of the locks, and nothing else.

    python -m deploy.bundle.wheels [--torch-index URL]

What is there and right is kept, so a second run asks no index. What no lock names is
removed. pip's own configuration says where packages come from; torch may have an index of
its own. At the end each wheel is of a pinned version and hash, fits the images' Python, and
there is no source distribution.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from deploy.bundle.failure import Failure
from deploy.bundle.locks import LOCKS, ROOT, TORCH, Pin, base_image, pins, python_of

HOUSE: Final = ROOT / "deploy" / "wheelhouse"
KEPT: Final = frozenset({"README.md", ".gitignore"})
CPU_INDEX: Final = "https://download.pytorch.org/whl/cpu"
GLIBC: Final = 36
"""The base image's glibc is 2.36 (Debian 12): wheels for a newer one do not run there."""

_GLIBC = re.compile(r"manylinux_2_(\d+)_")


def metadata(wheel: Path) -> Message:
    """Return a wheel's METADATA.

    Raises:
        Failure: it is no wheel.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (
                name
                for name in archive.namelist()
                if name.count("/") == 1 and name.endswith(".dist-info/METADATA")
            )
            return HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    except (OSError, ValueError, zipfile.BadZipFile):
        raise Failure(f"{wheel} is not a wheel: remove it and run again") from None


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wrong_with(path: Path, wanted: dict[str, Pin]) -> str | None:
    """Return why a file does not belong into the wheel house, or None."""
    if path.suffix != ".whl":
        return "not a wheel"
    try:
        name, version, _, tags = parse_wheel_filename(path.name)
    except InvalidWheelFilename:
        return "not a wheel's name"
    pin = wanted.get(name)
    if pin is None:
        return "in no lock"
    if _public(version) != Version(pin.version):
        return f"not the pinned version {pin.version}"
    if not tags & frozenset(sys_tags()):
        return "for another platform"
    platforms = [int(found) for found in _GLIBC.findall(path.name)]
    if platforms and min(platforms) > GLIBC:
        return f"for a glibc newer than the base image's 2.{GLIBC}"
    if pin.hashes and sha256_of(path) not in pin.hashes:
        return "of another hash than the lock's"
    return None


def _public(version: Version) -> Version:
    """Return a version without its local part: torch's builds are 2.13.0+cpu, 2.13.0+cu130."""
    return Version(version.public)


def collect(house: Path, wanted: dict[str, Pin], torch_index: str) -> bool:
    """Make `house` hold one wheel for each pin; return whether an index was asked.

    Raises:
        Failure: a wheel cannot be had, or torch's build is not the one that runs alone.
    """
    house.mkdir(parents=True, exist_ok=True)
    missing = _tidy(house, wanted)
    if not missing:
        return False
    for lock in LOCKS:
        if missing & _tidy_names(lock, wanted):
            _download(house, ["--require-hashes", "-r", str(lock)])
    if "torch" in missing:
        index = ["--index-url", torch_index] if torch_index else []
        _download(house, [*index, "-r", str(TORCH)])
    still = _tidy(house, wanted)
    if still:
        raise Failure(f"no wheel for {', '.join(sorted(still))} came from the index")
    return True


def _tidy_names(lock: Path, wanted: dict[str, Pin]) -> set[str]:
    return set(pins((lock,))) & set(wanted) - {"torch"}


def _tidy(house: Path, wanted: dict[str, Pin]) -> set[str]:
    """Remove what does not belong there; return the names that are missing."""
    there: dict[str, Path] = {}
    for path in sorted(house.iterdir()):
        if path.name in KEPT:
            continue
        wrong = wrong_with(path, wanted)
        if wrong is None and (other := there.get(canonicalize_name(path.name.split("-")[0]))):
            wrong = f"beside {other.name}"
        if wrong:
            sys.stdout.write(f"removing {path.name}: {wrong}\n")
            path.unlink()
            continue
        there[canonicalize_name(path.name.split("-")[0])] = path
    return set(wanted) - set(there)


def _download(house: Path, arguments: Sequence[str]) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
    only = ["download", "--no-deps", "--only-binary", ":all:", "--dest", str(house)]
    done = subprocess.run([*pip, *only, *arguments], check=False)  # noqa: S603 - our own words
    if done.returncode:
        raise Failure(f"pip could not download {arguments[-1]}; its message stands above")


def check_torch(house: Path) -> None:
    """Refuse a torch that needs packages which no lock names: the build for CUDA.

    Raises:
        Failure: the line says which index has the CPU build.
    """
    (wheel,) = house.glob("torch-*.whl")
    names = {canonicalize_name(Requirement(line).name) for line in needs(metadata(wheel))}
    outside = sorted(names - set(pins()))
    if outside:
        wheel.unlink()
        raise Failure(
            f"{wheel.name} is the CUDA build: it needs {outside[0]} and more, which no lock names."
            f" The CPU build: make wheelhouse TORCH_INDEX={CPU_INDEX}"
        )


def needs(about: Message, extras: Sequence[str] = ("",)) -> list[str]:
    """Return the requirements of a wheel that apply on this platform with any of `extras`."""
    lines = [str(line) for line in about.get_all("Requires-Dist", [])]
    return [
        line
        for line in lines
        if (marker := Requirement(line).marker) is None
        or any(marker.evaluate({"extra": extra}) for extra in extras)
    ]


def check_platform() -> None:
    """Refuse to collect with another Python than the images run.

    Raises:
        Failure: it names the Python to use.
    """
    major, minor = python_of(base_image())
    if sys.platform != "linux" or sys.version_info[:2] != (major, minor):
        raise Failure(
            f"the images run Linux and Python {major}.{minor}, and this is {sys.platform} and"
            f" Python {sys.version_info[0]}.{sys.version_info[1]}; collect the wheels there"
            f" (make clean wheelhouse PYTHON=python{major}.{minor})"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill and check the wheel house; return the exit code."""
    parser = argparse.ArgumentParser(prog="make wheelhouse")
    parser.add_argument("--torch-index", default="", help="the index torch comes from")
    options = parser.parse_args(arguments)
    try:
        check_platform()
        wanted = pins()
        asked = collect(HOUSE, wanted, options.torch_index)
        check_torch(HOUSE)
    except Failure as failure:
        sys.stderr.write(f"wheel house: {failure}\n")
        return 1
    size = sum(path.stat().st_size for path in HOUSE.glob("*.whl")) / 1e6
    state = "collected" if asked else "complete already"
    sys.stdout.write(f"deploy/wheelhouse: {len(wanted)} wheels, {size:.0f} MB, {state}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
