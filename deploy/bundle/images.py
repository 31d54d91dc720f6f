"""Takes container images out of the engine, for hospitals that do not build their own."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from deploy.bundle.failure import Failure
from deploy.bundle.sbom import Image
from deploy.bundle.wheels import sha256_of

_ODD = re.compile(r"[^A-Za-z0-9._-]+")


def save(name: str, work: Path) -> tuple[Image, Path]:
    """Save one image; return what is known of it and where it was written.

    Raises:
        Failure: there is no engine, or no such image in it.
    """
    if ":" not in name.rsplit("/", 1)[-1]:
        raise Failure(f"IMAGES: {name} has no tag; write {name}:TAG")
    image_id = _docker("image", "inspect", "--format", "{{.Id}}", name).strip()
    file = _ODD.sub("-", name) + ".tar"
    local = work / file
    _docker("save", "--output", str(local), name)
    local.chmod(0o644)
    return Image(name, f"images/{file}", sha256_of(local), image_id), local


def _docker(*arguments: str) -> str:
    docker = shutil.which("docker")
    if docker is None:
        raise Failure("IMAGES was given, and docker is not installed")
    done = subprocess.run(  # noqa: S603 - our own words and an image's name
        [docker, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failure(f"docker {arguments[0]}: {done.stderr.strip()}")
    return done.stdout
