"""A container that is set up wrongly stops with one line: the file or setting, and the fix.

Every case changes one thing in copies of a working hospital's or coordinator's volumes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest

from tests.containers.conftest import Federation
from tests.containers.project import FIGURES, docker, run, until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(240, func_only=True)]

CONFINED = (
    "--user=10001:10001", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges",
    "--tmpfs=/tmp:size=64m,mode=1777,noexec,nosuid,nodev", "--ulimit=core=0",
)  # fmt: skip
MOUNTS = {"etc": "/etc/fedcare", "tls": "/etc/fedcare-tls", "state": "/var/lib/fedcare"}
_numbers = count()


@dataclass
class Copy:
    """Copies of one server's volumes, free to be spoilt."""

    image: str
    prefix: str
    flags: list[str] = field(default_factory=lambda: ["--network=none"])
    state: str = ""

    def shell(self, script: str) -> None:
        """Run a shell script as root over the copies, at /etc/fedcare and so on."""
        docker(
            "run", "--rm", "-u", "0", "--network=none", *self.volumes(), "--entrypoint", "sh",
            self.image, "-euc", script,
        )  # fmt: skip

    def volumes(self) -> list[str]:
        """Return the options that mount the copies."""
        return [f"-v={self.prefix}-{name}:{place}" for name, place in MOUNTS.items()]

    def start(self, *extra: str) -> str:
        """Start the server as it is shipped; return the container's name."""
        name = f"{self.prefix}-{next(_numbers)}"
        volumes = [v for v in self.volumes() if not (self.state and v.endswith(MOUNTS["state"]))]
        confined = [
            flag for flag in CONFINED if not any(flag.startswith(e.split("=")[0]) for e in extra)
        ]
        docker(
            "run", "-d", "--name", name, *confined, *self.flags, *volumes,
            *([self.state] if self.state else []), *extra, self.image,
        )  # fmt: skip
        return name


def copies(federation: Federation, service: str, image: str) -> Iterator[Copy]:
    sources = {
        m["Destination"]: m["Name"]
        for m in federation.project.inspect(service)["Mounts"]
        if m["Type"] == "volume"
    }
    copy = Copy(image, f"{federation.project.name}-bad-{service}-{next(_numbers)}")
    try:
        for name in ("etc", "tls"):
            docker(
                "run", "--rm", "-u", "0", "--network=none", f"-v={sources[MOUNTS[name]]}:/from:ro",
                f"-v={copy.prefix}-{name}:{MOUNTS[name]}", "--entrypoint", "cp", image, "-a",
                "/from/.", MOUNTS[name],
            )  # fmt: skip
        yield copy
    finally:
        for line in docker("ps", "-aq", "--filter", f"name={copy.prefix}").split():
            docker("rm", "-f", line, check=False)
        for name in MOUNTS:
            docker("volume", "rm", "-f", f"{copy.prefix}-{name}", check=False)


@pytest.fixture
def node(federation: Federation) -> Iterator[Copy]:
    """A hospital's volumes, with an empty state."""
    yield from copies(federation, "cleveland", "fedcare/node:0.1.0")


@pytest.fixture
def coordinator(federation: Federation) -> Iterator[Copy]:
    """The coordinator's volumes, with an empty state."""
    yield from copies(federation, "coordinator", "fedcare/coordinator:0.1.0")


def stops(name: str) -> str:
    """Wait for the container's end and return the one line it said."""
    until(
        lambda: docker("inspect", name, "--format", "{{.State.Running}}") == "false",
        f"{name} stops",
        60,
    )
    done = run(["docker", "logs", name])
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line]
    told = [line for line in lines if " process.confinement " not in line]
    assert len(told) == 1, "\n".join(lines)
    assert " service.failed " in told[0]
    assert ' fix="' in told[0]
    assert docker("inspect", name, "--format", "{{.State.ExitCode}}") not in ("0", "5", "137")
    return told[0]


MAPS = """cat > /etc/fedcare/site.yaml <<'END'
schema: fedcare.site/v1
id: cleveland
data:
  - {name: heart, kind: csv, path: heart.csv, columns: {num: diagnosis}}
END"""

# what is done, with which script -> the code and what the line names
NODE_CASES = {
    "missing key": ("rm /etc/fedcare-tls/tls.key", "FC-1001", "/etc/fedcare-tls/tls.key"),
    "world-readable key": ("chmod 644 /etc/fedcare-tls/tls.key", "FC-2010", "tls.key"),
    "no data file": ("rm /etc/fedcare/heart.csv", "FC-1001", "heart.csv"),
    "wrong column": (MAPS, "FC-1101", "diagnosis"),
    "misspelt key": ("echo 'polycy: p.yaml' >> /etc/fedcare/node.yaml", "FC-1004", "polycy"),
}  # fmt: skip


@pytest.mark.parametrize("case", NODE_CASES)
def test_a_hospital_stops_with_one_line(node: Copy, case: str) -> None:
    script, code, named = NODE_CASES[case]
    node.shell(script)
    line = stops(node.start())
    assert f"code={code}" in line
    assert named in line


def test_another_federations_ca_is_refused(node: Copy) -> None:
    node.shell(
        "fedcare pki init /tmp/other --federation other-network >/dev/null;"
        " cp /tmp/other/ca.crt /etc/fedcare-tls/ca.crt"
    )
    line = stops(node.start())
    assert "code=FC-2005" in line
    assert "ca" in line


def test_the_state_of_another_hospital_is_refused(node: Copy, federation: Federation) -> None:
    mounts = federation.project.inspect("va")["Mounts"]
    (state,) = [m["Name"] for m in mounts if m["Destination"] == MOUNTS["state"]]
    node.state = f"-v={state}:{MOUNTS['state']}"
    line = stops(node.start())
    assert "code=FC-7004" in line
    assert MOUNTS["state"] in line


def test_a_hospitals_state_under_a_coordinator_is_refused(
    coordinator: Copy, federation: Federation
) -> None:
    mounts = federation.project.inspect("va")["Mounts"]
    (state,) = [m["Name"] for m in mounts if m["Destination"] == MOUNTS["state"]]
    coordinator.state = f"-v={state}:{MOUNTS['state']}"
    line = stops(coordinator.start())
    assert "code=FC-7004" in line


FULL = f"--tmpfs={MOUNTS['state']}:size=4k,mode=0700,uid=10001,gid=10001"


def test_a_full_disk_is_named(node: Copy) -> None:
    node.state = FULL
    line = stops(node.start())
    assert "code=FC-7003" in line
    assert MOUNTS["state"] in line


def test_a_coordinator_on_a_full_disk_names_it_waits_and_stops_in_order(coordinator: Copy) -> None:
    coordinator.state = FULL
    name = coordinator.start()

    def waits() -> list[str]:
        lines = run(["docker", "logs", name]).stderr.splitlines()
        return [line for line in lines if " state.failed " in line]

    (line,) = until(waits, f"{name} says why it waits", 60)
    assert "code=FC-7003" in line
    assert MOUNTS["state"] in line
    docker("stop", "-t", "30", name)
    assert docker("inspect", name, "--format", "{{.State.ExitCode}}") == "0"


def test_a_port_that_is_taken_is_named(coordinator: Copy, federation: Federation) -> None:
    coordinator.flags = [f"--network=container:{federation.project.container('coordinator')}"]
    line = stops(coordinator.start())
    assert "code=FC-2002" in line
    assert "8443" in line or "8080" in line


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--user=0:0", "--cap-add=DAC_OVERRIDE"], "root"),
        (["--cap-add=NET_ADMIN"], "cap"),
        (["--read-only=false"], "read_only"),
    ],
    ids=["root", "a capability", "a writable root"],
)
def test_a_container_that_is_not_confined_does_not_serve(
    node: Copy, flags: list[str], named: str
) -> None:
    line = stops(node.start(*flags))
    assert "code=FC-2010" in line
    assert named in line.lower()


def test_a_container_with_a_wrong_file_stops_and_is_not_restarted_for_ever(node: Copy) -> None:
    node.shell("rm /etc/fedcare-tls/tls.key")
    name = node.start("--restart=on-failure:5")
    state = "{{.State.Status}} {{.RestartCount}}"
    until(
        lambda: docker("inspect", name, "--format", state).startswith("exited 5"), "it gives up", 90
    )
    done = run(["docker", "logs", "-t", name])
    lines = [line for line in done.stderr.splitlines() if "service.failed" in line]
    assert len(lines) == 6
    assert all(re.search(r"code=FC-1001", line) for line in lines)
    FIGURES.append("a container with a missing key: five restarts with growing pauses, then exited")
