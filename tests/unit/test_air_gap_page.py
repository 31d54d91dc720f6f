"""What docs/air-gap.md tells a hospital to type before fedcare is installed tells good from bad."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.bundle import SUMS_FILE
from tests import bundle_factory as make
from tests.bundle_factory import ALPHA, KEY, OTHER_KEY

PAGE = (Path(__file__).parents[2] / "docs" / "air-gap.md").read_text(encoding="utf-8")
MARK = "```sh\n# before fedcare is installed"
GOOD = "BUNDLE IS GOOD"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    found = make.good_files(tmp_path_factory.mktemp("wheels"))
    sums = "".join(f"{make.sha256(data)}  {path}\n" for path, data in sorted(found.items()))
    return {**found, SUMS_FILE: sums.encode()}


def typed(folder: Path, archive: bytes, key: Path) -> str:
    """Run the page's lines as somebody who pastes them; return what they print."""
    if not shutil.which("openssl") or not shutil.which("sha256sum"):
        pytest.skip("openssl and sha256sum are not installed: apt-get install openssl coreutils")
    script = PAGE.split(MARK)[1].split("```")[0].partition("\n")[2]
    (folder / "b.tar").write_bytes(archive)
    (folder / "empty").mkdir()
    shell = shutil.which("sh") or "sh"
    done = subprocess.run(
        [shell, "-uc", script],
        cwd=folder / "empty",
        env={"PATH": "/usr/bin:/bin", "KEY": str(key), "BUNDLE": str(folder / "b.tar")},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def pinned(folder: Path, *, other: bool = False) -> Path:
    key = (OTHER_KEY if other else KEY).public_key()
    path = folder / "release.pub"
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def test_a_good_bundle_is_good(files: dict[str, bytes], tmp_path: Path) -> None:
    archive = make.archive_of(make.members_of(files))
    assert GOOD in typed(tmp_path, archive, pinned(tmp_path))


def test_another_key_is_not(files: dict[str, bytes], tmp_path: Path) -> None:
    archive = make.archive_of(make.members_of(files))
    assert GOOD not in typed(tmp_path, archive, pinned(tmp_path, other=True))


def changed_sums(files: dict[str, bytes]) -> dict[str, bytes]:
    """An attacker's: a wheel is changed, and SHA256SUMS with it."""
    evil = files[ALPHA] + b"x"
    old, new = make.sha256(files[ALPHA]).encode(), make.sha256(evil).encode()
    return {**files, ALPHA: evil, SUMS_FILE: files[SUMS_FILE].replace(old, new)}


@pytest.mark.parametrize(
    "tamper",
    [
        lambda files: {**files, ALPHA: files[ALPHA][:-1] + b"x"},
        lambda files: {**files, "source/evil.py": b"x"},
        lambda files: {path: data for path, data in files.items() if path != ALPHA},
        changed_sums,
    ],
    ids=["changed", "added", "removed", "changed with its sum"],
)
def test_a_tampered_one_is_not(
    tamper: Callable[[dict[str, bytes]], dict[str, bytes]], files: dict[str, bytes], tmp_path: Path
) -> None:
    archive = make.archive_of(make.members_of(tamper(files), make.contents_of(files)))
    assert GOOD not in typed(tmp_path, archive, pinned(tmp_path))
