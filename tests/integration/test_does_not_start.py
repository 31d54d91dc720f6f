"""A service that cannot start: a process of its own, one line of its log, its exit code.

Each case spoils one thing of a folder from which coordinator and node start, runs the real
`fedcare ... serve` in a process of its own, and demands that it ends with exactly one line on
stderr, which names the file or setting and the fix, and that nothing was written where nothing
should be. What needs mounts or another user is skipped by name where this machine does not
allow it.

A process is a fork of `tests.zygote`, which has the imports behind it. Fresh ones, as an
operator starts them, are those with a `wrap` (mounts, another user), those of `fresh` and
`running`, and so a failing start and a serving one of either service.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.certificates import Role
from common.errors import CATALOGUE
from common.pki import create_ca, issue
from tests.zygote import Child, Zygote

DAY = 86_400
NOBODY = 65534
PATIENT = "patient-4711-cholesterol-233"
STUDY = """\
schema: fedcare.study/v1
id: small-study
purpose: research
dataset: heart
owner: {name: Somebody, organisation: uni-x}
features: [{name: age, type: float, unit: a, impute: mean}]
target: {type: binary, name: num}
model: {kind: logistic}
federation: {rounds: 1, min_sites: 3, round_deadline: 30s}
"""
COORDINATOR = """\
schema: fedcare.coordinator/v1
federation: heart-network
listen: "127.0.0.1:0"
http: null
members: [cleveland, hungarian, va]
"""
NODE = "schema: fedcare.node/v1\n"
POLICY = """\
schema: fedcare.policy/v1
site: cleveland
federation:
  id: heart-network
  ca_sha256: "PIN"
  members: [cleveland, hungarian, va]
coordinator: {address: "127.0.0.1:1"}
allow: {purposes: [research], owners: [uni-x], datasets: [heart], model_kinds: [logistic]}
"""
SITE = """\
schema: fedcare.site/v1
id: cleveland
data:
  - name: heart
    kind: csv
    path: cleveland.csv
    columns:
      num: diagnosis
"""
TABLE = f"age,diagnosis,note\n63,1,{PATIENT}\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which everything is right, and what is wrong beside it."""
    root, now = tmp_path_factory.mktemp("original"), time.time()
    pin = create_ca(root / "pki", "heart-network", now_unix=now).sha256
    create_ca(root / "other-pki", "lung-network", now_unix=now)
    old = create_ca(root / "old-pki", "heart-network", now_unix=now - 300 * DAY)

    def certificate(out: str, role: Role, name: str, at: float = now, pki: str = "pki") -> None:
        hosts = ("localhost",) if role is Role.COORDINATOR else ()
        issue(root / pki, role, name, now_unix=at, hosts=hosts, out=root / out)

    for role, name, home in (
        (Role.COORDINATOR, "main", "coordinator"),
        (Role.HOSPITAL, "cleveland", "node"),
    ):
        certificate(home, role, name)
        certificate(f"second/{home}", role, name)
        certificate(f"other/{home}", role, name, pki="other-pki")
        certificate(f"expired/{home}", role, name, now - 200 * DAY, "old-pki")
        certificate(f"early/{home}", role, name, now + 2 * DAY)
    certificate("researcher", Role.RESEARCHER, "uni-x")
    (root / "coordinator" / "coordinator.yaml").write_text(COORDINATOR)
    (root / "node" / "node.yaml").write_text(NODE)
    (root / "node" / "policy.yaml").write_text(POLICY.replace("PIN", pin))
    (root / "node" / "site.yaml").write_text(SITE)
    (root / "node" / "cleveland.csv").write_text(TABLE)
    (root / "old-pin").write_text(old.sha256)
    (root / "study.yaml").write_text(STUDY)
    return root


@pytest.fixture
def folder(original: Path) -> Iterator[Path]:
    """A copy to spoil, where another user may reach it."""
    here = Path(tempfile.mkdtemp(prefix="fedcare-start-"))
    here.chmod(0o755)
    shutil.copytree(original, here, dirs_exist_ok=True)
    yield here
    shutil.rmtree(here)


# --- running a service --------------------------------------------------------------------------


PROGRAM = (sys.executable, "-P", "-m", "common.cli")
ZYGOTE = Zygote()


@pytest.fixture(scope="module", autouse=True)
def _zygote() -> Iterator[None]:
    yield
    ZYGOTE.close()


def arguments(service: str) -> list[str]:
    return [service, "serve", "--config", f"{service}/{service}.yaml"]


def environment(**more: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST")}
    return {**kept, "LOG_FORMAT": "json", **more}


@dataclass(frozen=True)
class Ended:
    code: int
    err: str
    out: str

    @property
    def line(self) -> dict[str, object]:
        """The one line that it wrote."""
        assert self.err.count("\n") == 1, self.err
        found: dict[str, object] = json.loads(self.err)
        return found


def fresh(
    service: str,
    folder: Path,
    wrap: Sequence[str] = (),
    env: dict[str, str] | None = None,
    more: Sequence[str] = (),
) -> Ended:
    """Start a service that has to end by itself, as an operator does."""
    done = subprocess.run(
        [*wrap, *PROGRAM, *arguments(service), *more],
        cwd=folder,
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(done.returncode, done.stderr, done.stdout)


def start(service: str, folder: Path, env: dict[str, str] | None = None) -> Ended:
    """Start a service that has to end by itself, as a fork of the zygote."""
    with forked(service, folder, env or environment()) as (child, out, err):
        code = child.wait(60)
        return Ended(code, err.read_text(), out.read_text())


@contextlib.contextmanager
def forked(service: str, folder: Path, env: dict[str, str]) -> Iterator[tuple[Child, Path, Path]]:
    """A process of the zygote, and the files that its output goes to, beside the folder."""
    with tempfile.TemporaryDirectory(prefix="fedcare-output-") as beside:
        out, err = Path(beside, "out"), Path(beside, "err")
        err.touch()
        child = ZYGOTE.start(arguments(service), folder, env, out, err)
        try:
            yield child, out, err
        finally:
            child.kill()


def expect(ended: Ended, name: str, says: Sequence[str], fix: str = "") -> None:
    """Hold what a failed start left against what it should be."""
    kind, line = CATALOGUE[name], ended.line
    assert (line["event"], line["level"]) == ("service.failed", "error")
    assert (line["code"], line["name"]) == (kind.code, name)
    for word in says:
        assert word in str(line["detail"]), line
    assert fix in str(line["fix"]), line
    assert line["fix"]
    assert ended.code == kind.exit_code
    assert ended.out == ""
    assert PATIENT not in ended.err


@contextlib.contextmanager
def running(
    service: str,
    folder: Path,
    wrap: Sequence[str] = (),
    env: dict[str, str] | None = None,
    event: str = "service.started",
) -> Iterator[subprocess.Popen[str]]:
    """A service that has said `event`; its log is in `folder / "log"`."""
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(
            [*wrap, *PROGRAM, *arguments(service)],
            cwd=folder,
            env=env or environment(),
            stderr=log,
            text=True,
        )
    try:
        await_start(child, folder / "log", event)
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
        child.wait(30)


def await_start(
    child: subprocess.Popen[str] | Child, log: Path, event: str = "service.started"
) -> None:
    patience = time.monotonic() + 60
    while f'"{event}"' not in log.read_text():
        assert child.poll() is None, log.read_text()
        assert time.monotonic() < patience
        time.sleep(0.05)


def started(service: str, folder: Path) -> None:
    """Start a service once and let it end in order."""
    with forked(service, folder, environment()) as (child, out, err):
        await_start(child, err)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0, err.read_text()
        assert out.read_text() == ""
        assert all(line.startswith("{") for line in err.read_text().splitlines())


def logged(folder: Path) -> list[dict[str, Any]]:
    """The lines of a service that ran; every one is of its log."""
    text = (folder / "log").read_text()
    assert all(line.startswith("{") for line in text.splitlines()), text
    return [json.loads(line) for line in text.splitlines()]


def snapshot(folder: Path) -> dict[str, str]:
    """Every file's digest, but for the log of a service that ran."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "log"
    }


# --- what is wrong, file by file ----------------------------------------------------------------

Edit = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """After `edit`, `service` does not start: error `name`, `says` in its detail, `fix` too."""

    service: str
    name: str
    says: tuple[str, ...]
    edit: Edit
    fix: str = ""

    def __str__(self) -> str:
        return re.sub(r"[^\w.-]+", "_", "-".join((self.service, self.name, *self.says)))


def take(source: str, *names: str) -> Edit:
    def edit(folder: Path) -> None:
        for name in names:
            shutil.copy(folder / source / name, folder / source.rpartition("/")[2] / name)

    return edit


def swap(path: str, old: str, new: str) -> Edit:
    def edit(folder: Path) -> None:
        text = (folder / path).read_text()
        assert old in text
        (folder / path).write_text(text.replace(old, new, 1))

    return edit


def put(path: str, data: str | bytes) -> Edit:
    content = data if isinstance(data, bytes) else data.encode()
    return lambda folder: (folder / path).write_bytes(content)


def remove(path: str) -> Edit:
    return lambda folder: (folder / path).unlink()


def mode(path: str, bits: int) -> Edit:
    return lambda folder: (folder / path).chmod(bits)


def a_folder(path: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / path).unlink()
        (folder / path).mkdir()

    return edit


def expired_node(folder: Path) -> None:
    take("expired/node", "tls.crt", "tls.key", "ca.crt")(folder)
    policy = folder / "node" / "policy.yaml"
    pin = (folder / "old-pin").read_text()
    policy.write_text(re.sub(r'ca_sha256: "\w+"', f'ca_sha256: "{pin}"', policy.read_text()))


ALL3 = ("tls.crt", "tls.key", "ca.crt")
KEYS = [
    case
    for home in ("coordinator", "node")
    for case in (
        Case(home, "FILE_MISSING", (f"{home}/tls.key",),
             remove(f"{home}/tls.key")),
        Case(home, "KEY_PERMISSIONS", (f"{home}/tls.key", "0644"),
             mode(f"{home}/tls.key", 0o644), "chmod 600"),
        Case(home, "KEY_PERMISSIONS", (f"{home}/tls.key", "0640"),
             mode(f"{home}/tls.key", 0o640), "chmod 600"),
        Case(home, "CERT_INVALID", (f"{home}/tls.key", "not the key"),
             take(f"second/{home}", "tls.key")),
        Case(home, "CERT_INVALID", (f"{home}/tls.crt", f"{home}/ca.crt"),
             take(f"other/{home}", "ca.crt"), "fedcare pki show"),
        Case(home, "CLOCK_OFF", (f"{home}/tls.crt",), take(f"early/{home}", *ALL3)),
        Case(home, "FILE_MISSING", (f"{home}/tls.key", "directory"), a_folder(f"{home}/tls.key")),
        Case(home, "FILE_MISSING", (f"{home}/ca.crt", "directory"), a_folder(f"{home}/ca.crt")),
        Case(home, "BAD_VALUE", ("state", "a file stands"), put(f"{home}/state", "a file")),
        Case(home, "UNKNOWN_KEY", (f"{home}.yaml", "'state_dir'"),
             swap(f"{home}/{home}.yaml", "/v1\n", "/v1\nstatedir: x\n")),
        Case(home, "FILE_MISSING", (f"{home}.yaml", "directory"),
             a_folder(f"{home}/{home}.yaml")),
    )
]  # fmt: skip
OTHERS = [
    Case("coordinator", "CERT_INVALID", ("expired",), take("expired/coordinator", *ALL3)),
    Case("coordinator", "IDENTITY", ("lung-network", "heart-network"),
         take("other/coordinator", *ALL3)),
    Case("node", "CERT_INVALID", ("expired",), expired_node),
    Case("node", "IDENTITY", ("lung-network", "policy.yaml:2"), take("other/node", *ALL3)),
    Case("node", "IDENTITY", ("hospital/cleveland", "policy.yaml:2"),
         swap("node/policy.yaml", "site: cleveland", "site: va")),
    Case("node", "BAD_VALUE", ("policy.yaml", "members", "cleveland"),
         swap("node/policy.yaml", "[cleveland, ", "[")),
    Case("node", "FILE_MISSING", ("policy.yaml", "directory"), a_folder("node/policy.yaml")),
    Case("node", "FILE_MISSING", ("site.yaml:6", "'cleveland.csv'"),
         remove("node/cleveland.csv")),
    Case("node", "FILE_MISSING", ("site.yaml:6", "'cleveland.csv'", "folder"),
         a_folder("node/cleveland.csv")),
    Case("node", "DATA_COLUMN",
         ("site.yaml:8", "cleveland.csv", "'diagnosis' (for 'num')", "'diagnoses'"),
         swap("node/cleveland.csv", "diagnosis", "diagnoses"), "manifest"),
    Case("node", "DATA_COLUMN", ("site.yaml:8", "not a row of headings"),
         swap("node/cleveland.csv", "age,diagnosis,note\n", "")),
    Case("node", "DATA_COLUMN", ("site.yaml:8", "';'"),
         put("node/cleveland.csv", TABLE.replace(",", ";"))),
    Case("node", "FILE_SYNTAX", ("site.yaml:6", "cleveland.csv", "UTF-8"),
         put("node/cleveland.csv", TABLE.encode() * 10_000 + "64,0,Zürich\n".encode("latin-1"))),
    Case("node", "DATA_EMPTY", ("site.yaml:6", "cleveland.csv"), put("node/cleveland.csv", "")),
]  # fmt: skip


@pytest.mark.parametrize("case", [*KEYS, *OTHERS], ids=str)
def test_what_cannot_be_used_is_one_line_before_anything_is_made(case: Case, folder: Path) -> None:
    case.edit(folder)
    before = snapshot(folder)
    expect(start(case.service, folder), case.name, case.says, case.fix)
    assert snapshot(folder) == before
    assert not (folder / case.service / "state").is_dir()


def test_the_console_form_is_one_line_too(folder: Path) -> None:
    (folder / "node" / "tls.key").chmod(0o644)
    ended = fresh("node", folder, env=environment(LOG_FORMAT="console"))
    assert ended.err.count("\n") == 1
    assert re.fullmatch(
        r'\S+Z ERROR +service\.failed code=FC-2008 detail="node/tls\.key has mode 0644; [^"]+"'
        r' fix="chmod 600 node/tls\.key" name=KEY_PERMISSIONS\n',
        ended.err,
    )


def test_a_misspelt_option_is_one_line_too(folder: Path) -> None:
    expect(fresh("node", folder, more=["--verbos"]), "BAD_ARGUMENT", ("--verbos",))


def test_a_port_that_is_taken_is_named_and_no_run_is_touched(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        swap("coordinator/coordinator.yaml", "127.0.0.1:0", address)(folder)
        expect(fresh("coordinator", folder), "PORT_IN_USE", (address,))
        assert not (folder / "coordinator" / "state" / "address").exists()


# --- whose state it is --------------------------------------------------------------------------

MARKER = '{"schema": "fedcare.state-owner/v1", "role": "ROLE", "federation": "FED", "id": "ID"}\n'


def marker(role: str, federation: str, name: str) -> str:
    return MARKER.replace("ROLE", role).replace("FED", federation).replace("ID", name)


FOREIGN = [
    ("coordinator", marker("coordinator", "lung-network", "main"), "lung-network"),
    ("coordinator", marker("hospital", "heart-network", "cleveland"), "hospital cleveland"),
    ("node", marker("hospital", "lung-network", "cleveland"), "lung-network"),
    ("node", marker("hospital", "heart-network", "va"), "hospital va"),
    ("node", marker("coordinator", "heart-network", "main"), "coordinator main"),
]


@pytest.mark.parametrize(("service", "text", "whose"), FOREIGN)
def test_the_state_of_another_is_neither_opened_nor_changed(
    folder: Path, service: str, text: str, whose: str
) -> None:
    state = folder / service / "state"
    state.mkdir(mode=0o700)
    (state / "owner.json").write_text(text)
    before = snapshot(folder)
    expect(start(service, folder), "STATE_FOREIGN", (f"{service}/state", whose), "state directory")
    assert snapshot(folder) == before
    assert sorted(path.name for path in state.iterdir()) == ["owner.json"]


@pytest.mark.parametrize("service", ["coordinator", "node"])
def test_state_is_this_services_from_the_first_start_on(folder: Path, service: str) -> None:
    other = "node" if service == "coordinator" else "coordinator"
    started(service, folder)
    written = json.loads((folder / service / "state" / "owner.json").read_text())
    assert written["federation"] == "heart-network"
    started(service, folder)
    shutil.move(folder / service / "state", folder / other / "state")
    before = snapshot(folder)
    expect(start(other, folder), "STATE_FOREIGN", (f"{other}/state",))
    assert snapshot(folder) == before


@pytest.mark.parametrize("service", ["coordinator", "node"])
def test_a_folder_of_something_else_is_no_state(folder: Path, service: str) -> None:
    state = folder / service / "state"
    state.mkdir(mode=0o700)
    (state / "letters").write_text("dear doctor")
    expect(start(service, folder), "STATE_FOREIGN", (f"{service}/state", "'letters'"), "empty")
    assert [path.name for path in state.iterdir()] == ["letters"]


@pytest.mark.parametrize("service", ["coordinator", "node"])
@pytest.mark.parametrize("text", ["", "{}", "[]", marker("hospital", "../../x", "va"), "\xff" * 5])
def test_a_marker_that_is_none_is_damage(folder: Path, service: str, text: str) -> None:
    state = folder / service / "state"
    state.mkdir(mode=0o700)
    (state / "owner.json").write_text(text)
    expect(start(service, folder), "STATE_DAMAGED", ("owner.json",))


def test_state_of_the_version_before_is_taken_over_if_it_is_this_services(folder: Path) -> None:
    for service in ("coordinator", "node"):
        started(service, folder)
        (folder / service / "state" / "owner.json").unlink()
        started(service, folder)
        assert (folder / service / "state" / "owner.json").exists()


def test_what_a_service_writes_is_its_users_alone(folder: Path) -> None:
    for service in ("coordinator", "node"):
        started(service, folder)
        state = folder / service / "state"
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        for path in state.rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


# --- folders that cannot be used ----------------------------------------------------------------


def is_root() -> bool:
    return os.geteuid() == 0


needs_root = pytest.mark.skipif(not is_root(), reason="needs root, to be another user")


def as_nobody() -> list[str]:
    """What starts a program as an ordinary user, without any capability."""
    tool = shutil.which("setpriv")
    if not is_root() or tool is None:
        pytest.skip("needs root and setpriv (package util-linux), to run as an ordinary user")
    wrap = [tool, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
            "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]  # fmt: skip
    tried = subprocess.run(
        [*wrap, sys.executable, "-P", "-c", "import common.cli, grpc, json, sqlalchemy"],
        capture_output=True, check=False, cwd="/",
    )  # fmt: skip
    if tried.returncode != 0:
        pytest.skip("an ordinary user cannot run this Python: needs one that others may read")
    return wrap


def give(folder: Path, user: int) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user)


@needs_root
@pytest.mark.parametrize("service", ["coordinator", "node"])
def test_a_state_folder_of_another_user_is_not_used(folder: Path, service: str) -> None:
    state = folder / service / "state"
    state.mkdir(mode=0o700)
    os.chown(state, NOBODY, NOBODY)
    says = (f"{service}/state", f"uid {NOBODY}", "uid 0")
    expect(start(service, folder), "STATE_ACCESS", says, "chown")
    assert list(state.iterdir()) == []


@pytest.mark.parametrize("service", ["coordinator", "node"])
def test_a_state_folder_that_cannot_be_written_or_made_is_named(folder: Path, service: str) -> None:
    wrap = as_nobody()
    give(folder, NOBODY)
    state = folder / service / "state"
    state.mkdir(mode=0o500)
    os.chown(state, NOBODY, NOBODY)
    ended = fresh(service, folder, wrap)
    expect(ended, "STATE_ACCESS", (f"{service}/state", "0500"), "chmod 700")
    state.rmdir()
    os.chown(folder / service, 0, 0)
    (folder / service).chmod(0o755)
    ended = fresh(service, folder, wrap)
    expect(ended, "STATE_ACCESS", (f"{service}/state", "Permission denied"), "install -d")


def test_files_that_this_user_may_not_read_are_named(folder: Path) -> None:
    wrap = as_nobody()
    give(folder, NOBODY)
    table = folder / "node" / "cleveland.csv"
    os.chown(table, 0, 0)
    table.chmod(0o600)
    says = ("site.yaml:6", "cleveland.csv", f"uid {NOBODY}", "Permission denied")
    expect(fresh("node", folder, wrap), "FILE_MISSING", says)
    os.chown(folder / "node" / "tls.key", 0, 0)
    key = ("node/tls.key", f"uid {NOBODY}", "Permission denied")
    expect(fresh("node", folder, wrap), "FILE_MISSING", key)


MOUNT = 'mount -t tmpfs -o mode=0700,size={size} tmpfs {state} && {then} exec "$@"'


def mounted(state: Path, size: str, then: str = "") -> list[str]:
    """What starts a program with a small file system of its own as its state folder."""
    state.mkdir(exist_ok=True)
    tool = shutil.which("unshare")
    wrap = [tool or "", "-m", "sh", "-c", MOUNT.format(size=size, state=state, then=then), "sh"]
    if not is_root() or tool is None:
        pytest.skip("needs root and unshare (package util-linux), to mount a small file system")
    if subprocess.run([*wrap, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine allows no mounts: needs CAP_SYS_ADMIN")
    return wrap


@pytest.mark.parametrize("service", ["coordinator", "node"])
def test_a_read_only_file_system_is_named(folder: Path, service: str) -> None:
    state = folder / service / "state"
    wrap = mounted(state, "1m", f"mount -o remount,ro {state};")
    says = (f"{service}/state", "read-only")
    expect(fresh(service, folder, wrap), "STATE_ACCESS", says, "`:ro`")


def full_but_for(room: int, state: Path) -> list[str]:
    """What starts a program with so much room in its state folder."""
    fill = f"head -c $((262144-{room})) /dev/zero >{state}/lost+found 2>/dev/null;"
    return mounted(state, "256k", fill)


@pytest.mark.parametrize("room", [0, 4096])
def test_a_disk_that_is_full_at_a_node_s_start_is_named(folder: Path, room: int) -> None:
    """Whatever is the first thing it cannot write; no room, and room for a little."""
    wrap = full_but_for(room, folder / "node" / "state")
    expect(
        fresh("node", folder, wrap), "DISK", ("node/state", "free in", "256.0 KiB"), "Free space"
    )


@pytest.mark.parametrize("room", [0, 4096, 40960])
def test_a_coordinator_that_is_started_on_a_full_disk_says_so_once_and_waits(
    folder: Path, room: int
) -> None:
    """Until SIGTERM here; `tests.faults.test_real_disks` makes room. Its first start of all."""
    wrap = full_but_for(room, folder / "coordinator" / "state")
    with running("coordinator", folder, wrap, event="state.failed") as child:
        child.terminate()
        assert child.wait(60) == 0
    failed, *rest = logged(folder)
    assert (failed["event"], failed["name"]) == ("state.failed", "DISK")
    for words in ("coordinator/state", "free in", "256.0 KiB"):
        assert words in failed["detail"]
    assert [line["event"] for line in rest] == ["service.stopping", "service.stopped"]


def test_a_coordinator_whose_disk_fills_up_says_so_and_goes_on_when_there_is_room(
    folder: Path,
) -> None:
    """What writes is refused by name; what reads is answered; nothing has to be started again."""
    state = folder / "coordinator" / "state"
    wrap = mounted(state, "4m")
    with running("coordinator", folder, wrap) as child:
        inside = Path(f"/proc/{child.pid}/root{state}")
        port = (inside / "address").read_text().strip().rpartition(":")[2]
        to = ["--coordinator", f"localhost:{port}", "--tls", "researcher"]

        def fedcare(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*PROGRAM, *words, *to], cwd=folder, env=environment(), capture_output=True,
                text=True, timeout=60, check=False,
            )  # fmt: skip

        done = fedcare("study", "submit", "study.yaml", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        run = json.loads(done.stdout)["data"]["run_id"]
        filler = inside / "lost+found"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1024))
        cancel = ("run", "cancel", run, "--reason", "the disk is full")
        refused = fedcare(*cancel)
        assert refused.returncode == CATALOGUE["DISK"].exit_code, refused.stdout + refused.stderr
        assert "FC-7003" in refused.stdout + refused.stderr
        assert fedcare("run", "show", run, "--json").returncode == 0
        filler.unlink()
        patience = time.monotonic() + 60
        while fedcare(*cancel).returncode != 0:  # until the coordinator has looked again
            assert time.monotonic() < patience
            time.sleep(0.5)
        assert child.poll() is None
    lines = logged(folder)
    (failed,) = [line for line in lines if line["event"] == "state.failed"]
    assert failed["name"] == "DISK"
    assert "free in coordinator/state" in failed["detail"]
    assert [line["event"] for line in lines].count("state.room") == 1
    assert not [line for line in lines if line["event"] in ("service.failed", "library.message")]


# --- confinement --------------------------------------------------------------------------------

REQUIRE = "confinement: require\n"
CURES = ("cap_drop", "no-new-privileges", "read_only", "CapabilityBoundingSet", "ProtectSystem")


def require(folder: Path, service: str) -> None:
    config = folder / service / f"{service}.yaml"
    config.write_text(config.read_text() + REQUIRE)


@pytest.mark.parametrize("service", ["coordinator", "node"])
def test_a_process_that_is_not_confined_says_so_and_starts(folder: Path, service: str) -> None:
    with running(service, folder) as child:
        limits = Path(f"/proc/{child.pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 ", limits, re.MULTILINE)
    (found,) = [line for line in logged(folder) if line["event"] == "process.confinement"]
    assert (found["level"], found["mode"]) == ("info", "report")
    assert found["user"] == os.geteuid()
    assert found["core_dumps"] is False
    assert ("user" in found["weak"]) == is_root()


@needs_root
@pytest.mark.parametrize("service", ["coordinator", "node"])
def test_confinement_that_is_required_and_weak_is_named_with_its_cures(
    folder: Path, service: str
) -> None:
    require(folder, service)
    key = (folder / service / "tls.key").read_text()
    ended = start(service, folder, env=environment(MY_TLS_KEY=key))
    says = ("root", "capabilities", "/ is writable", "'MY_TLS_KEY'")
    expect(ended, "CONFINEMENT", says)
    for cure in CURES:
        assert cure in str(ended.line["fix"])
    assert "..." not in str(ended.line["fix"]) + str(ended.line["detail"])
    assert key.splitlines()[1] not in ended.err
    assert not (folder / service / "state").exists()


SECCOMP = """\
import ctypes, os, struct, sys
allow = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
program = struct.pack("HxxxxxxP", 1, ctypes.addressof(allow))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("service", ["coordinator", "node"])
def test_a_process_that_is_confined_as_required_starts(folder: Path, service: str) -> None:
    require(folder, service)
    give(folder, NOBODY) if is_root() else None
    state = folder / service / "state"
    then = f"chown {NOBODY} {state} && mount -o remount,bind,ro / &&"
    wrap = [*mounted(state, "8m", then), sys.executable, "-P", "-c", SECCOMP, *as_nobody()]
    if subprocess.run([*wrap, "/bin/true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no read-only root or no seccomp filter here: needs CAP_SYS_ADMIN and seccomp")
    with running(service, folder, wrap) as child:
        assert not os.access(f"/proc/{child.pid}/mem", os.R_OK) or is_root()
    (found,) = [line for line in logged(folder) if line["event"] == "process.confinement"]
    assert (found["mode"], found["weak"], found["debugger"]) == ("require", ["none"], False)
