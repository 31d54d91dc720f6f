"""The source tree of a commit, and our own wheel built from it, the same bytes each time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from deploy.bundle.failure import Failure

EXECUTABLE: Final = "100755"
PLAIN: Final = "100644"
BUILD: Final = "from setuptools import build_meta; build_meta.build_wheel('../dist')"


@dataclass(frozen=True, slots=True)
class Tree:
    """A checkout: its commit, when that was made, and its files (name to executable)."""

    root: Path
    commit: str
    created: datetime
    dirty: bool
    files: dict[str, bool]

    @property
    def version(self) -> str:
        """The version that pyproject.toml states."""
        settings = tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))
        return str(settings["project"]["version"])


def read_tree(root: Path, *, dirty_allowed: bool) -> Tree:
    """Return the tracked files of a checkout.

    Raises:
        Failure: it is no checkout; it differs from its commit and that is not allowed; it
            holds something that is neither a plain file nor an executable one.
    """
    commit = _git(root, "rev-parse", "HEAD").strip()
    seconds = int(_git(root, "show", "-s", "--format=%ct", "HEAD"))
    changed = _git(root, "status", "--porcelain", "--untracked-files=no").splitlines()
    if changed and not dirty_allowed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise Failure(
            f"{changed[0][3:]} differs from commit {commit[:12]}{more};"
            " commit first, or DIRTY=1 for a bundle that says so"
        )
    files = {}
    for line in _git(root, "ls-files", "--stage", "-z").split("\0")[:-1]:
        facts, _, name = line.partition("\t")
        mode = facts.split()[0]
        if mode not in {EXECUTABLE, PLAIN}:
            raise Failure(f"{name} is a link or a submodule, which no bundle holds")
        if (root / name).is_file():  # in a tree with changes one may be gone
            files[name] = mode == EXECUTABLE
    created = datetime.fromtimestamp(seconds, UTC)
    return Tree(root, commit, created, bool(changed), files)


def _git(root: Path, *arguments: str) -> str:
    git = shutil.which("git")
    if git is None:
        raise Failure("git is not installed, and a bundle is made from a commit")
    done = subprocess.run(  # noqa: S603 - our own words
        [git, "-C", str(root), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failure(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


def build_wheel(tree: Tree, work: Path) -> Path:
    """Build our own wheel from a copy of the tree, dated by the commit.

    Raises:
        Failure: the build failed.
    """
    copy, dist = work / "source", work / "dist"
    dist.mkdir()
    for name, executable in tree.files.items():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tree.root / name, target)
        target.chmod(0o755 if executable else 0o644)
    epoch = str(int(tree.created.timestamp()))
    done = subprocess.run(  # noqa: S603 - our own interpreter and words
        [sys.executable, "-c", BUILD],
        cwd=copy,
        env={**os.environ, "SOURCE_DATE_EPOCH": epoch, "PYTHONHASHSEED": "0"},
        umask=0o022,
        capture_output=True,
        text=True,
        check=False,
    )
    built = list(dist.glob("fedcare-*.whl"))
    if done.returncode or len(built) != 1:
        raise Failure(f"our own wheel was not built:\n{done.stdout}{done.stderr}")
    return built[0]
