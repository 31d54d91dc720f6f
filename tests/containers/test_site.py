"""deploy/site's own compose file on a real engine: one hospital joins the running federation."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.containers.conftest import Federation
from tests.containers.project import ROOT, compose_command, docker, run, until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(240, func_only=True)]

SITE = ROOT / "deploy" / "site"
FILES = ("policy.yaml", "heart.csv", "tls.crt", "tls.key", "ca.crt")


@pytest.fixture
def folder(tmp_path: Path, federation: Federation) -> Path:
    """What install.md leaves at a hospital: va's files, in the places of deploy/site."""
    for name in ("docker-compose.yml", ".env.example"):
        shutil.copy(SITE / name, tmp_path)
    etc, data = tmp_path / "etc", tmp_path / "data"
    (etc / "tls").mkdir(parents=True)
    data.mkdir()
    shutil.copy(SITE / "node.yaml", etc)
    container = federation.project.container("va")
    docker("cp", f"{container}:/etc/fedcare/policy.yaml", str(etc))
    docker("cp", f"{container}:/etc/fedcare/heart.csv", str(data))
    docker("cp", f"{container}:/etc/fedcare-tls/.", str(etc / "tls"))
    (etc / "site.yaml").write_text(
        "schema: fedcare.site/v1\nid: va\n"
        "data:\n  - {name: heart, kind: csv, path: /data/heart.csv}\n"
    )
    for path in (etc, data, *etc.rglob("*"), *data.rglob("*")):
        os.chown(path, 10001, 10001)
        path.chmod(0o700 if path.is_dir() else 0o600)
    # A name of its own for what the shipped file names for good: this may be a hospital's machine.
    bridge, state = f"fct{os.getpid()}", f"{federation.project.name}-site-state"
    (tmp_path / "test.yml").write_text(
        f"networks: {{out: {{driver_opts: {{com.docker.network.bridge.name: {bridge}}}}}}}\n"
        f"volumes: {{state: {{name: {state}}}}}\n"
    )
    return tmp_path


def test_the_site_compose_file_starts_a_node_that_joins(
    folder: Path, federation: Federation
) -> None:
    if os.geteuid() != 0:
        pytest.skip("the files have to belong to the container's user: needs root")
    project = f"{federation.project.name}-site"
    files = ["-f", str(folder / "docker-compose.yml"), "-f", str(folder / "test.yml")]
    compose = [*compose_command(), "-p", project, "--project-directory", str(folder), *files]
    seen = len(federation.project.logs("coordinator"))
    docker("stop", "-t", "15", federation.project.container("va"))
    try:
        run([*compose, "up", "-d"], timeout=120)
        (node,) = docker(
            "ps", "-q", "--filter", f"label=com.docker.compose.project={project}"
        ).split()
        docker("network", "connect", f"{federation.project.name}_to-va", node)
        until(lambda: healthy(node), "the node is linked", 60, pause=1)
        federation.project.event(r" link\.connected .*site=va", after=seen, timeout=30)
        said = run(["docker", "logs", node])
        assert " weak=none" in said.stdout + said.stderr
        run([*compose, "stop"], timeout=60)
        assert docker("inspect", node, "--format", "{{.State.ExitCode}}") == "0"
    finally:
        run([*compose, "down", "--volumes", "-t", "5"], check=False)
        docker("start", federation.project.container("va"))


def healthy(node: str) -> bool:
    check = ["fedcare", "node", "health", "--link", "--config", "/etc/fedcare/node.yaml"]
    return run(["docker", "exec", node, *check], check=False).returncode == 0
