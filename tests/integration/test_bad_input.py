"""Every command, given what it cannot use: one clear line, the right exit code, nothing written.

Each case alters one thing of a folder in which every command works, runs one command twice,
for people and with `--json`, and demands of both the same error; the folder must afterwards
hold what it held before. Commands run in this process; only the coordinator that the last
part dials is a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.certificates import Role
from common.cli import main
from common.errors import CATALOGUE, FedError
from common.pki import create_ca, describe, issue
from researcher.client import Client
from tests.release_factory import Authority, release

DAY = 86_400
FEDERATION = "heart-network"
SITES = ("cleveland", "hungarian", "va")

STUDY = """\
schema: fedcare.study/v1
id: small-study
purpose: research
dataset: heart
owner: {name: Somebody, organisation: uni-x}
features:
  - {name: age, type: float, unit: a, impute: mean}
  - {name: sex, type: category, levels: ["0", "1"]}
target: {type: binary, name: sick}
model: {kind: logistic}
train: {local_steps: 2}
federation: {rounds: 1, min_sites: 3, round_deadline: 30s}
"""
TABLE = "age,sex,sick\n" + "".join(f"{40 + n},{n % 2},{n % 3 % 2}\n" for n in range(12))
NODE = "schema: fedcare.node/v1\n"
POLICY = """\
schema: fedcare.policy/v1
site: cleveland
federation:
  id: heart-network
  ca_sha256: "PIN"
  members: [cleveland, hungarian, va]
coordinator: {address: "127.0.0.1:1"}
allow:
  purposes: [research]
  owners: [uni-x]
  datasets: [heart]
  model_kinds: [logistic]
"""
COORDINATOR = """\
schema: fedcare.coordinator/v1
federation: heart-network
listen: "127.0.0.1:0"
http: null
members: [cleveland, hungarian, va]
"""


def site_file(name: str) -> str:
    return (
        f"schema: fedcare.site/v1\nid: {name}\n"
        f"data: [{{name: heart, kind: csv, path: {name}.csv}}]\n"
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which everything is right."""
    root = tmp_path_factory.mktemp("original")
    now = time.time()
    facts = create_ca(root / "pki", FEDERATION, now_unix=now)
    create_ca(root / "other-pki", FEDERATION, now_unix=now)
    create_ca(root / "old-pki", FEDERATION, now_unix=now - 300 * DAY)

    def certificate(out: str, role: Role, name: str, at: float = now, pki: str = "pki") -> None:
        hosts = ("localhost",) if role is Role.COORDINATOR else ()
        issue(root / pki, role, name, now_unix=at, hosts=hosts, out=root / out)

    certificate("node", Role.HOSPITAL, "cleveland")
    certificate("coordinator", Role.COORDINATOR, "main")
    certificate("researcher", Role.RESEARCHER, "uni-x")
    certificate("operator", Role.OPERATOR, "ops")
    certificate("other/node", Role.HOSPITAL, "cleveland", pki="other-pki")
    certificate("other/researcher", Role.RESEARCHER, "uni-x", pki="other-pki")
    certificate("other-va", Role.HOSPITAL, "va")
    for role, name in ((Role.HOSPITAL, "cleveland"), (Role.RESEARCHER, "uni-x")):
        certificate(f"expired/{role.value}", role, name, now - 200 * DAY, "old-pki")
        certificate(f"early/{role.value}", role, name, now + 2 * DAY)
    issue(root / "old-pki", Role.COORDINATOR, "main", now_unix=now - 200 * DAY,
          hosts=("localhost",), out=root / "expired" / "coordinator")  # fmt: skip
    (root / "study.yaml").write_text(STUDY)
    for name in SITES:
        (root / f"{name}.csv").write_text(TABLE)
        (root / f"{name}.yaml").write_text(site_file(name))
    (root / "node" / "node.yaml").write_text(NODE)
    (root / "node" / "policy.yaml").write_text(POLICY.replace("PIN", facts.sha256))
    (root / "node" / "site.yaml").write_text(site_file("cleveland"))
    (root / "node" / "cleveland.csv").write_text(TABLE)
    (root / "coordinator" / "coordinator.yaml").write_text(COORDINATOR)
    authority = Authority(root / "releases")
    signer = authority.issue(Role.COORDINATOR, "main")
    release().write(root / "model", signer)
    release().write(root / "model-of-a-hospital", authority.issue(Role.HOSPITAL, "va"))
    shutil.copy(authority.ca, root / "model-ca.crt")
    (root / "rubbish").write_bytes(b"\xff\x00rubbish")
    (root / "full").mkdir()
    (root / "full" / "something").write_text("here")
    return root


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil, as the working directory; a call that fails is not tried again."""
    here = tmp_path / "here"
    shutil.copytree(original, here)
    monkeypatch.chdir(here)

    async def at_once(_self: Client, error: FedError, _failures: int) -> None:
        raise error

    monkeypatch.setattr(Client, "_wait_or_raise", at_once)
    monkeypatch.setenv("LOG_FORMAT", "json")
    return here


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    """What a service changes of its process, put back: here it is the test's own."""
    mask, limits = os.umask(0), resource.getrlimit(resource.RLIMIT_CORE)
    os.umask(mask)
    yield
    os.umask(mask)
    resource.setrlimit(resource.RLIMIT_CORE, limits)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file's digest; a state directory may come to be, empty but for its own files."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if "/state" not in f"/{name}" and not path.is_dir():
            found[name] = hashlib.sha256(path.read_bytes()).digest()
    return found


Edit = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """`command` goes wrong with error `name` after `edit`; `says` stand in its line."""

    command: str
    name: str
    says: tuple[str, ...] = ()
    edit: Edit | None = None

    def __str__(self) -> str:
        what = "-".join(self.says) or (self.command.split()[-1])
        return re.sub(r"[^\w.-]+", "_", f"{' '.join(self.command.split()[:2])} {self.name} {what}")


def put(path: str, text: str | bytes) -> Edit:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / path).write_bytes(data)


def swap(path: str, old: str, new: str) -> Edit:
    """Replace `old` in a file, where it stands."""

    def edit(folder: Path) -> None:
        text = (folder / path).read_text()
        assert old in text
        (folder / path).write_text(text.replace(old, new, 1))

    return edit


def remove(path: str) -> Edit:
    return lambda folder: (folder / path).unlink()


def mode(path: str, bits: int) -> Edit:
    return lambda folder: (folder / path).chmod(bits)


def copy(source: str, target: str) -> Edit:
    """Copy an identity's three files over another's."""

    def edit(folder: Path) -> None:
        for name in ("tls.crt", "tls.key", "ca.crt"):
            shutil.copy(folder / source / name, folder / target / name)

    return edit


def pinned(source: str) -> Edit:
    """Copy an identity over the node's, and pin its CA in the policy."""

    def edit(folder: Path) -> None:
        copy(source, "node")(folder)
        pin = describe(folder / "node" / "ca.crt")[0].sha256
        policy = folder / "node" / "policy.yaml"
        policy.write_text(re.sub(r'ca_sha256: "\w+"', f'ca_sha256: "{pin}"', policy.read_text()))

    return edit


def cut(path: str, count: int) -> Edit:
    return lambda folder: (folder / path).write_bytes((folder / path).read_bytes()[:-count])


def flip(path: str) -> Edit:
    def edit(folder: Path) -> None:
        data = bytearray((folder / path).read_bytes())
        data[-2] ^= 1
        (folder / path).write_bytes(data)

    return edit


LINT = "study lint study.yaml"
SIM = "sim study.yaml --site cleveland.yaml --site hungarian.yaml --site va.yaml"
NODE_SERVE = "node serve --config node/node.yaml"
NODE_STATUS = "node status --config node/node.yaml"
SERVE = "coordinator serve --config coordinator/coordinator.yaml"
STATUS = "coordinator status --config coordinator/coordinator.yaml"
TO = "--coordinator 127.0.0.1:1 --tls researcher"
VERIFY = "model verify model --ca model-ca.crt"

STUDIES = [
    Case("study lint nope.yaml", "FILE_MISSING", ("nope.yaml",)),
    Case("study lint full", "FILE_MISSING", ("full", "directory")),
    Case("study lint rubbish", "FILE_SYNTAX", ("rubbish:1", "UTF-8")),
    Case("study lint va.yaml", "SCHEMA_VERSION", ("va.yaml:1", "fedcare.study/v1")),
    Case(LINT, "FILE_SYNTAX", ("study.yaml", "empty"), put("study.yaml", "")),
    Case(LINT, "FILE_SYNTAX", ("study.yaml:3",), put("study.yaml", "a: 1\nb: [\n")),
    Case(LINT, "SCHEMA_VERSION", ("study.yaml:1", "v9"), swap("study.yaml", "/v1", "/v9")),
    Case(LINT, "UNKNOWN_KEY", ("study.yaml:3", "'purpose'"), swap("study.yaml", "purp", "porp")),
    Case(LINT, "DUPLICATE_KEY", ("study.yaml:3",), swap("study.yaml", "pur", "id: x-y-z\npur")),
    Case(LINT, "BAD_VALUE", ("train.lr", "number"), swap("study.yaml", "2}", "2, lr: fast}")),
    Case(LINT, "BAD_VALUE", ("round_deadline", "unit"), swap("study.yaml", "30s", "30")),
    Case(LINT, "BAD_VALUE", ("round_deadline", "parsecs"), swap("study.yaml", "30s", "3 parsecs")),
    Case(LINT, "BAD_VALUE", ("features[0].unit",), swap("study.yaml", "unit: a", "unit: 7")),
    Case(LINT, "NOT_SUPPORTED", ("resnet",), swap("study.yaml", "logistic", "resnet")),
    Case("study submit nope.yaml " + TO, "FILE_MISSING", ("nope.yaml",)),
    Case("study submit study.yaml " + TO, "UNKNOWN_KEY", ("model.knd", "'kind'"),
         swap("study.yaml", "kind:", "knd:")),
    Case("study submit study.yaml " + TO, "BAD_VALUE", ("uni-y", "uni-x"),
         swap("study.yaml", "uni-x", "uni-y")),
    Case("study submit study.yaml " + TO, "UNREACHABLE", ("127.0.0.1:1", "refused")),
    Case("study submit study.yaml --seed -1 " + TO, "BAD_ARGUMENT", ("--seed",)),
    Case(f"study submit study.yaml --seed {2**63} " + TO, "BAD_ARGUMENT", ("--seed",)),
    Case("study submit study.yaml --coordinator 127.0.0.1:1 --tls operator", "ROLE_DENIED"),
]  # fmt: skip

TABLES = [
    Case(SIM, "FILE_MISSING", ("va.yaml",), remove("va.yaml")),
    Case(SIM, "FILE_MISSING", ("va.yaml:3", "va.csv"), remove("va.csv")),
    Case(SIM, "UNKNOWN_KEY", ("va.yaml:3", "'path'"), swap("va.yaml", "path", "pth")),
    Case(SIM, "SCHEMA_VERSION", ("va.yaml:1",), swap("va.yaml", "/v1", "/v2")),
    Case(SIM, "DUPLICATE_KEY", ("'cleveland'",), swap("va.yaml", "id: va", "id: cleveland")),
    Case(SIM, "DATA_EMPTY", ("va", "'heart'"), swap("va.yaml", "name: heart", "name: lung")),
    Case(SIM, "DATA_EMPTY", ("va.csv",), put("va.csv", "")),
    Case(SIM, "DATA_EMPTY", ("va.csv",), put("va.csv", "age,sex,sick\n")),
    Case(SIM, "DATA_COLUMN", ("va.csv", "'sex'"), swap("va.csv", "sex", "gender")),
    Case(SIM, "DATA_COLUMN", ("va.csv", "'age'", "twice"), swap("va.csv", "sex", "age")),
    Case(SIM, "DATA_VALUE", ("va.csv", "'age'", "row 2"), swap("va.csv", "41,", "old,")),
    Case(SIM, "DATA_VALUE", ("va.csv", "'sex'", "row 2"), swap("va.csv", "41,1", "41,2")),
    Case(SIM, "DATA_LABEL", ("va.csv", "'sick'", "row 1"), swap("va.csv", "40,0,0", "40,0,yes")),
    Case(SIM, "FILE_SYNTAX", ("va.csv", "row 1", "4 cells"), swap("va.csv", "40,", "40,5,")),
    Case(SIM, "FILE_SYNTAX", ("va.csv", "UTF-8"), put("va.csv", b"age,sex,sick\n\xff,0,0\n")),
    Case("sim study.yaml --site va.yaml", "BAD_VALUE", ("3 sites", "1 given")),
    Case("sim study.yaml", "BAD_ARGUMENT", ("--site",)),
    Case("sim nope.yaml --site va.yaml", "FILE_MISSING", ("nope.yaml",)),
    Case(SIM + " --seed x", "BAD_ARGUMENT", ("--seed",)),
    Case("data heart", "BAD_ARGUMENT", ("--out",)),
    Case("data heart --out rubbish", "OUTPUT_EXISTS", ("rubbish",)),
    Case("data heart --out rubbish/deeper", "FILE_MISSING", ("rubbish",)),
    Case("data heart --out new --uci nope", "FILE_MISSING", ("nope/processed.cleveland.data",)),
    Case("data heart --out full", "OUTPUT_EXISTS", ("va.csv",), put("full/va.csv", "mine")),
    Case("data heart --out full", "OUTPUT_EXISTS", ("va.yaml",), put("full/va.yaml", "mine")),
    Case("data heart --out new --uci full", "FILE_SYNTAX", ("cleveland.data:1",),
         put("full/processed.cleveland.data", "1,2,3\n")),
    Case("data two-hospitals --out new --rows 1", "BAD_ARGUMENT", ("--rows",)),
    Case("data two-hospitals --out rubbish", "OUTPUT_EXISTS", ("rubbish",)),
    Case("demo", "BAD_ARGUMENT", ("--out",)),
    Case("demo --out full", "OUTPUT_EXISTS", ("full",)),
    Case("demo --out rubbish", "OUTPUT_EXISTS", ("rubbish",)),
    Case("demo --out new --rounds 0", "BAD_ARGUMENT", ("--rounds",)),
    Case("demo --out new --rounds 100001", "BAD_ARGUMENT", ("--rounds",)),
    Case("bench round --sites 1 --params 5 --rounds 1", "BAD_ARGUMENT", ("--sites", "2")),
    Case("bench round --sites 3 --params 0 --rounds 1", "BAD_ARGUMENT", ("--params",)),
    Case("bench round --sites 3 --params 5 --rounds x", "BAD_ARGUMENT", ("--rounds",)),
    Case("bench round --sites 3 --params 5 --rounds 1 --dropouts 2", "BAD_ARGUMENT",
         ("--dropouts",)),
    Case("bench round --sites 3 --params 5 --rounds 1 --dp some", "BAD_ARGUMENT", ("--dp",)),
]  # fmt: skip

CERTIFICATES = [
    Case("pki init full --federation x", "OUTPUT_EXISTS", ("full",)),
    Case("pki init rubbish --federation x", "OUTPUT_EXISTS", ("rubbish",)),
    Case("pki init new --federation X_Y", "BAD_VALUE", ("'X_Y'",)),
    Case("pki init new --federation x --days 0", "BAD_VALUE", ("0 days",)),
    Case("pki issue nope hospital va", "FILE_MISSING", ("nope/ca.crt",)),
    Case("pki issue pki doctor va", "BAD_ARGUMENT", ("doctor", "hospital")),
    Case("pki issue pki hospital VA", "BAD_VALUE", ("'VA'",)),
    Case("pki issue pki hospital va --days 9999", "BAD_VALUE", ("9999 days",)),
    Case("pki issue pki hospital va --host x", "BAD_VALUE", ("host",)),
    Case("pki issue pki coordinator two", "BAD_VALUE", ("DNS names",)),
    Case("pki issue pki hospital va --out full", "OUTPUT_EXISTS", ("full",)),
    Case("pki issue pki hospital va", "KEY_PERMISSIONS", ("ca.key", "0644"),
         mode("pki/ca.key", 0o644)),
    Case("pki issue pki hospital va", "CERT_INVALID", ("ca.key",), put("pki/ca.key", "rubbish")),
    Case("pki issue pki hospital va", "FILE_MISSING", ("ca.key",), remove("pki/ca.key")),
    Case("pki show nope", "FILE_MISSING", ("nope",)),
    Case("pki show rubbish", "CERT_INVALID", ("rubbish",)),
    Case("pki show full", "FILE_MISSING", ("tls.crt",)),
    Case("pki show node", "KEY_PERMISSIONS", ("tls.key",), mode("node/tls.key", 0o640)),
    Case("pki show expired/hospital", "CERT_INVALID", ("expired",)),
    Case("pki show early/hospital", "CLOCK_OFF"),
    Case("explain FC-0000", "BAD_VALUE", ("FC-0000",)),
    Case("explain RERUNN", "BAD_VALUE", ("'RERUN'",)),
]  # fmt: skip

NODES = [
    Case("node serve --config nope.yaml", "FILE_MISSING", ("nope.yaml",)),
    Case("node status --config nope.yaml", "FILE_MISSING", ("nope.yaml",)),
    Case(NODE_STATUS, "FILE_MISSING", ("no node has run",)),
    Case(NODE_STATUS, "UNKNOWN_KEY", ("node.yaml:2", "'state_dir'"),
         put("node/node.yaml", NODE + "statedir: x\n")),
    Case(NODE_SERVE, "UNKNOWN_KEY", ("node.yaml:2",), put("node/node.yaml", NODE + "folder: x\n")),
    Case(NODE_SERVE, "SCHEMA_VERSION", ("node.yaml:1",), put("node/node.yaml", "schema: x/v1\n")),
    Case(NODE_SERVE, "FILE_MISSING", ("policy.yaml",), remove("node/policy.yaml")),
    Case(NODE_SERVE, "UNKNOWN_KEY", ("policy.yaml", "'allow'"),
         swap("node/policy.yaml", "allow", "alow")),
    Case(NODE_SERVE, "SCHEMA_VERSION", ("policy.yaml:1",), swap("node/policy.yaml", "/v1", "/v2")),
    Case(NODE_SERVE, "BAD_VALUE", ("policy.yaml:", "require.dp.modes", "'patient-local'"),
         swap("node/policy.yaml", "allow:", "require: {dp: {modes: [patient-locl]}}\nallow:")),
    Case(NODE_SERVE, "BAD_VALUE", ("require.approval.approvers[0].key", "approvals key FILE"),
         swap("node/policy.yaml", "allow:",
              "require: {approval: {approvers: [{name: a, key: b}]}}\nallow:")),
    Case("node approvals list --config nope.yaml", "FILE_MISSING", ("nope.yaml",)),
    Case("node approvals show x --config node/node.yaml", "APPROVAL_STUDY", ("there is none yet",)),
    Case(NODE_SERVE, "UNKNOWN_KEY", ("policy.yaml:8", "require.dp.epsilon_totl", "'epsilon_total'"),
         swap("node/policy.yaml", "allow:", "require: {dp: {epsilon_totl: 1}}\nallow:")),
    Case(NODE_SERVE, "BAD_VALUE", ("policy.yaml:8", "hours.zone", "Europe/Berlin"),
         swap("node/policy.yaml", "allow:", "hours: {zone: Berlin}\nallow:")),
    Case(NODE_SERVE, "DATA_COLUMN", ("site.yaml", "'ward'"),
         swap("node/site.yaml", "cleveland.csv", "cleveland.csv, patient: ward")),
    Case("node policy check study.yaml --policy node/policy.yaml", "UNKNOWN_KEY",
         ("policy.yaml:8", "'rounds'"),
         swap("node/policy.yaml", "allow:", "limits: {round: 3}\nallow:")),
    Case("node policy check gone.yaml --policy node/policy.yaml", "FILE_MISSING", ("gone.yaml",)),
    Case(NODE_SERVE, "BAD_VALUE", ("members", "cleveland"),
         swap("node/policy.yaml", "members: [cleveland, ", "members: [")),
    Case(NODE_SERVE, "BAD_VALUE", ("coordinator.address", "host:port"),
         swap("node/policy.yaml", "127.0.0.1:1", "here")),
    Case(NODE_SERVE, "CERT_INVALID", ("pinned", "policy.yaml:5"), copy("other/node", "node")),
    Case(NODE_SERVE, "IDENTITY", ("not a hospital's",), copy("operator", "node")),
    Case(NODE_SERVE, "IDENTITY", ("hospital/va", "policy.yaml:2"), copy("other-va", "node")),
    Case(NODE_SERVE, "IDENTITY", ("lung",),
         swap("node/policy.yaml", "id: heart-network", "id: lung")),
    Case(NODE_SERVE, "CERT_INVALID", ("expired",), pinned("expired/hospital")),
    Case(NODE_SERVE, "CLOCK_OFF", (), copy("early/hospital", "node")),
    Case(NODE_SERVE, "KEY_PERMISSIONS", ("tls.key", "0644"), mode("node/tls.key", 0o644)),
    Case(NODE_SERVE, "FILE_MISSING", ("tls.key",), remove("node/tls.key")),
    Case(NODE_SERVE, "CERT_INVALID", ("tls.crt",), put("node/tls.crt", "rubbish")),
    Case(NODE_SERVE, "CERT_INVALID", ("tls.key",),
         lambda folder: shutil.copy(folder / "operator/tls.key", folder / "node/tls.key")),
    Case(NODE_SERVE, "FILE_MISSING", ("cleveland.csv",), remove("node/cleveland.csv")),
    Case(NODE_SERVE, "BAD_VALUE", ("'va'", "policy.yaml:2"),
         swap("node/site.yaml", "id: cleveland", "id: va")),
    Case(NODE_SERVE, "BAD_VALUE", ("state", "folder"), put("node/state", "a file")),
    Case(NODE_SERVE, "FILE_MISSING", ("nope",),
         put("node/node.yaml", NODE + "sealing_key: nope\n")),
]  # fmt: skip

COORDINATORS = [
    Case("coordinator serve --config nope.yaml", "FILE_MISSING", ("nope.yaml",)),
    Case("coordinator status --config nope.yaml", "FILE_MISSING", ("nope.yaml",)),
    Case("coordinator status --tls operator", "BAD_ARGUMENT", ("--coordinator",)),
    Case("coordinator status --tls nope --coordinator 127.0.0.1:1", "FILE_MISSING", ("nope",)),
    Case("coordinator status --tls operator --coordinator 127.0.0.1:1", "UNREACHABLE"),
    Case(STATUS, "UNREACHABLE", ("running",)),
    Case(SERVE, "UNKNOWN_KEY", ("yaml:3", "'listen'"),
         swap("coordinator/coordinator.yaml", "listen", "lisen")),
    Case(SERVE, "SCHEMA_VERSION", ("yaml:1",), swap("coordinator/coordinator.yaml", "/v1", "/v2")),
    Case(SERVE, "DUPLICATE_KEY", ("yaml:5", "'va'"),
         swap("coordinator/coordinator.yaml", "hungarian", "va")),
    Case(SERVE, "BAD_VALUE", ("members[1]",), swap("coordinator/coordinator.yaml", "hung", "H_")),
    Case(SERVE, "BAD_VALUE", ("yaml:3", "listen", "host:port"),
         swap("coordinator/coordinator.yaml", "127.0.0.1:0", "here")),
    Case(SERVE, "BAD_VALUE", ("192.0.2.7",),
         swap("coordinator/coordinator.yaml", "127.0.0.1:0", "192.0.2.7:8443")),
    Case(SERVE, "BAD_VALUE", ("timing.setup",),
         swap("coordinator/coordinator.yaml", "listen", "timing: {setup: 0s}\nlisten")),
    Case(SERVE, "BAD_VALUE", ("store", "sqlite"),
         swap("coordinator/coordinator.yaml", "listen", "store: mysql://u:hush@x/y\nlisten")),
    Case(SERVE, "BAD_VALUE", ("store", "sqlite"),
         swap("coordinator/coordinator.yaml", "listen", "store: rubbish\nlisten")),
    Case(SERVE, "IDENTITY", ("hospital/cleveland",), copy("node", "coordinator")),
    Case(SERVE, "IDENTITY", ("lung",),
         swap("coordinator/coordinator.yaml", "heart-network", "lung")),
    Case(SERVE, "CERT_INVALID", ("expired",), copy("expired/coordinator", "coordinator")),
    Case(SERVE, "KEY_PERMISSIONS", ("tls.key",), mode("coordinator/tls.key", 0o604)),
    Case(SERVE, "FILE_MISSING", ("ca.crt",), remove("coordinator/ca.crt")),
    Case(SERVE, "BAD_VALUE", ("state", "folder"), put("coordinator/state", "a file")),
]  # fmt: skip

MODELS = [
    Case("model show nope", "FILE_MISSING", ("nope",)),
    Case("model show model", "MODEL_INVALID", ("manifest.json", "v9"),
         swap("model/manifest.json", "model/v1", "model/v9")),
    Case("model show model", "MODEL_INVALID", ("manifest.json",), cut("model/manifest.json", 9)),
    Case("model verify nope --ca model-ca.crt", "FILE_MISSING", ("nope",)),
    Case("model verify model", "BAD_ARGUMENT", ("--ca",)),
    Case("model verify model --ca nope.crt", "FILE_MISSING", ("nope.crt",)),
    Case("model verify model --ca rubbish", "CERT_INVALID", ("rubbish",)),
    Case("model verify model --ca pki/ca.crt", "MANIFEST_SIGNATURE", ("pinned CA",)),
    Case("model verify model-of-a-hospital --ca model-ca.crt", "MANIFEST_SIGNATURE",
         ("not a coordinator",)),
    Case(VERIFY, "MODEL_INVALID", ("model.safetensors", "bytes"),
         cut("model/model.safetensors", 1)),
    Case(VERIFY, "MODEL_INVALID", ("model.safetensors", "altered"),
         flip("model/model.safetensors")),
    Case(VERIFY, "FILE_MISSING", ("model.safetensors",), remove("model/model.safetensors")),
    Case(VERIFY, "MODEL_INVALID", ("preprocessing.json",), flip("model/preprocessing.json")),
    Case(VERIFY, "MODEL_INVALID", ("study.json",), cut("model/study.json", 5)),
    Case(VERIFY, "MANIFEST_SIGNATURE", (), flip("model/manifest.sig")),
    Case(VERIFY, "MANIFEST_SIGNATURE", (),
         swap("model/manifest.json", '"colluders": 1', '"colluders": 2')),
    Case(VERIFY, "MANIFEST_SIGNATURE", ("chain.pem",), put("model/chain.pem", "rubbish")),
    Case("model pull RUN --out full " + TO, "OUTPUT_EXISTS", ("full",)),
    Case("model pull RUN --out rubbish " + TO, "OUTPUT_EXISTS", ("rubbish",)),
    Case("model pull RUN --out new " + TO, "UNREACHABLE"),
]  # fmt: skip

FAR = [
    case
    for call in ("run watch RUN", "run show RUN", "run list", "study list", "study show x",
                 "run cancel RUN --reason enough", "model pull RUN --out new")
    for case in (
        Case(f"{call} {TO}", "UNREACHABLE", ("127.0.0.1:1", "refused")),
        Case(f"{call} --coordinator here --tls researcher", "BAD_VALUE", ("'here'", "host:port")),
        Case(f"{call} --coordinator 127.0.0.1:1 --tls nope", "FILE_MISSING", ("nope/tls.crt",)),
        Case(f"{call} --coordinator 127.0.0.1:1 --tls node", "ROLE_DENIED", ("hospital",)),
        Case(f"{call} --coordinator 127.0.0.1:1 --tls expired/researcher", "CERT_INVALID",
             ("expired",)),
        Case(f"{call} --coordinator 127.0.0.1:1 --tls early/researcher", "CLOCK_OFF"),
        Case(f"{call} --tls researcher", "BAD_ARGUMENT", ("--coordinator",)),
    )
] + [
    Case("run cancel RUN " + TO, "BAD_ARGUMENT", ("--reason",)),
    Case("run watch " + TO, "BAD_ARGUMENT", ("RUN",)),
    Case(f"study list {TO} --proxy nonsense", "BAD_VALUE", ("proxy",)),
    Case(f"study list {TO} --proxy http://127.0.0.1:9", "UNREACHABLE", ("proxy 127.0.0.1:9",)),
    Case("study list --coordinator no-such-host.invalid:1 --tls researcher", "UNREACHABLE",
         ("resolved",)),
    Case("study lnit", "BAD_ARGUMENT", ("lnit", "lint")),
    Case("stduy lint", "BAD_ARGUMENT", ("'study'",)),
    Case("study lint a b", "BAD_ARGUMENT", ("extra",)),
    Case("study lint --jsno a", "BAD_ARGUMENT", ("--jsno",)),
]  # fmt: skip

ALL = [*STUDIES, *TABLES, *CERTIFICATES, *NODES, *COORDINATORS, *MODELS, *FAR]


def check(case: Case, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Run a command in both forms and hold what it says against the case."""
    kind = CATALOGUE[case.name]
    capsys.readouterr()
    code = main(command.split())
    out, err = capsys.readouterr()
    message, fix = service_words(err, case) if " serve" in command else words(err, case)
    for word in case.says:
        assert word in message, err
    assert "Traceback" not in out + err
    assert code == kind.exit_code

    assert main([*command.split(), "--json"]) == code
    out, err = capsys.readouterr()
    envelope = json.loads(out)  # one, and nothing else
    assert out.count("\n") == 1
    assert (envelope["schema"], envelope["ok"]) == ("fedcare.cli/v1", False)
    assert envelope["error"]["code"] == kind.code
    # The second call comes a moment later, and some messages say what the clock shows.
    same = envelope["error"]["message"].removeprefix(f"{case.name}: ")
    assert re.sub(r"\d+", "0", message) == re.sub(r"\d+", "0", same)
    assert fix == envelope["error"]["fix"]
    assert "Traceback" not in err


def words(err: str, case: Case) -> tuple[str, str]:
    """What a command says: one line with the error, one with the fix."""
    lines = err.splitlines()
    said = re.fullmatch(rf"error {CATALOGUE[case.name].code} {case.name}: (\S.*)", lines[-2])
    fix = re.fullmatch(r"fix: (\S.*)", lines[-1])
    assert said, err
    assert fix, err
    assert sum(line.startswith("error") for line in lines) == 1
    return said[1], fix[1]


def service_words(err: str, case: Case) -> tuple[str, str]:
    """What a service says: one line of its log, in JSON here."""
    assert err.count("\n") == 1, err
    line = json.loads(err)
    assert (line["event"], line["level"]) == ("service.failed", "error")
    assert (line["code"], line["name"]) == (CATALOGUE[case.name].code, case.name)
    assert line["fix"]
    return line["detail"], line["fix"]


@pytest.mark.parametrize("case", ALL, ids=str)
def test_what_cannot_be_used_is_one_clear_line_and_changes_nothing(
    case: Case, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if case.edit is not None:
        case.edit(folder)
    before = snapshot(folder)
    check(case, capsys, case.command)
    assert snapshot(folder) == before


def test_a_password_in_a_database_url_is_not_repeated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "coordinator/coordinator.yaml"
    swap(path, "listen", "store: mysql://u:hush@x/y\nlisten")(folder)
    assert main(SERVE.split()) == 4
    assert "hush" not in "".join(capsys.readouterr())


def test_a_traceback_is_shown_with_debug_only(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert folder.is_dir()
    assert main(["--debug", "study", "lint", "nope.yaml"]) == 4
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-2].startswith("error FC-1001 FILE_MISSING: nope.yaml")


@pytest.mark.parametrize("text", ["{}", "[]", "rubbish", '{"site": "x"}', ""])
def test_a_damaged_status_file_is_said_and_how_it_is_mended(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (folder / "node" / "state").mkdir()
    (folder / "node" / "state" / "status.json").write_text(text)
    check(Case(NODE_STATUS, "STATE_DAMAGED", ("status.json",)), capsys, NODE_STATUS)


@pytest.mark.parametrize("content", [b"rubbish", b"\xff\xfe", b""])
def test_a_damaged_address_file_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (folder / "coordinator" / "state").mkdir()
    (folder / "coordinator" / "state" / "address").write_bytes(content)
    check(Case(STATUS, "STATE_DAMAGED", ("address",)), capsys, STATUS)


def test_a_port_in_use_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        swap("coordinator/coordinator.yaml", "127.0.0.1:0", address)(folder)
        check(Case(SERVE, "PORT_IN_USE", (address,)), capsys, SERVE)
        assert not (folder / "coordinator" / "state" / "address").exists()


def test_a_database_that_is_none_is_not_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = folder / "coordinator" / "state"
    state.mkdir()
    (state / "coordinator.db").write_bytes(b"rubbish" * 1000)
    check(Case(SERVE, "STATE_DAMAGED", ("coordinator.db",)), capsys, SERVE)
    assert (state / "coordinator.db").read_bytes() == b"rubbish" * 1000


# --- a coordinator that is there ----------------------------------------------------------------


@pytest.fixture(scope="module")
def port(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A serving coordinator, whose certificate carries the name localhost and no other."""
    home = tmp_path_factory.mktemp("serving") / "coordinator"
    shutil.copytree(original / "coordinator", home)
    serve = [sys.executable, "-m", "common.cli", "coordinator", "serve"]
    child = subprocess.Popen(
        [*serve, "--config", str(home / "coordinator.yaml")], stderr=subprocess.DEVNULL
    )
    try:
        mark, patience = home / "state" / "address", time.monotonic() + 30
        while not mark.exists():
            assert child.poll() is None
            assert time.monotonic() < patience
            time.sleep(0.05)
        yield int(mark.read_text().rpartition(":")[2])
    finally:
        child.terminate()
        assert child.wait(20) == 0


THERE = [
    Case("study list --coordinator 127.0.0.1:PORT --tls researcher", "TLS_REFUSED",
         ("name dialled",)),
    Case("study list --coordinator localhost:PORT --tls other/researcher", "TLS_REFUSED",
         ("pinned CA",)),
    Case("coordinator status --coordinator localhost:PORT --tls node", "ROLE_DENIED"),
    Case("run show nothing --coordinator localhost:PORT --tls researcher", "NOT_FOUND",
         ("nothing",)),
    Case("run watch nothing --coordinator localhost:PORT --tls operator", "NOT_FOUND",
         ("nothing",)),
    Case("run cancel nothing --reason x --coordinator localhost:PORT --tls researcher",
         "NOT_FOUND", ("nothing",)),
    Case("study show nothing --coordinator localhost:PORT --tls researcher", "NOT_FOUND",
         ("nothing",)),
    Case("model pull nothing --out new --coordinator localhost:PORT --tls researcher", "NOT_FOUND",
         ("nothing",)),
    Case("run show ../../x --coordinator localhost:PORT --tls researcher", "BAD_MESSAGE"),
]  # fmt: skip


@pytest.mark.parametrize("case", THERE, ids=str)
def test_a_coordinator_that_is_there_refuses_in_one_clear_line(
    case: Case, folder: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(folder)
    check(case, capsys, case.command.replace("PORT", str(port)))
    assert snapshot(folder) == before


def test_the_right_files_are_right(
    folder: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each case above alters one thing of what works here."""
    right = [
        LINT, SIM, VERIFY, "model show model", "pki show node", "pki show coordinator",
        f"study list --coordinator localhost:{port} --tls researcher",
        f"coordinator status --coordinator localhost:{port} --tls operator",
    ]  # fmt: skip
    for command in right:
        assert main(command.split()) == 0, f"{command}: {capsys.readouterr()}"


def test_a_port_that_speaks_no_tls_is_no_coordinator(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            while True:
                try:
                    there, _ = other.accept()
                except OSError:
                    return
                with there:
                    there.recv(10)
                    there.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        command = f"study list --coordinator 127.0.0.1:{other.getsockname()[1]} --tls researcher"
        check(Case(command, "TLS_REFUSED", ("TLS",)), capsys, command)
        other.shutdown(socket.SHUT_RDWR)
    assert folder.exists()
