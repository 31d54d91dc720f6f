"""deploy/site: what its pages tell a person to type works, and what they foretell happens.

Commands that need root, an engine or systemd are not run; their files, options and names are
held against what there is. Everything else runs as it stands, in an empty folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer.core
import typer.main

from common import bundle as form
from common.clock import SystemClock
from common.confinement import Facts, say
from common.errors import CATALOGUE
from common.events import Event
from common.logs import make_log
from common.pki import Role, create_ca, issue
from common.ustar import END, header, padding
from hospital_node.app import load_setup
from hospital_node.config import NodeConfig
from tests.e2e.test_readme import commands
from tests.unit.test_site_files import ANSWERS, ROOT, SITE, VERSION

PAGES = {path.name: path.read_text("utf-8") for path in SITE.glob("*.md")}
INSTALL = PAGES["install.md"]
FEDCARE = Path(sys.executable).parent / "fedcare"
NOT_HERE = ("sudo", "systemctl", "timedatectl")
"""What begins a command that this test leaves out: root, systemd."""


def section(title: str) -> list[str]:
    """Return the commands below a heading of install.md."""
    after = INSTALL[INSTALL.index(f"## {title}") :]
    end = after.find("\n## ", 4)
    return commands(after[:end] if end > 0 else after)


def shell(lines: list[str], folder: Path, **variables: str) -> str:
    """Run lines as one person in one shell would; each must succeed."""
    env = {"PATH": f"{FEDCARE.parent}:{os.environ['PATH']}", "HOME": str(folder), **variables}
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", "\n".join(lines)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """Return a folder as the operator hands it over; the CA lies beside it."""
    now = SystemClock().unix()
    create_ca(tmp_path / "pki", "heart-network", now_unix=now)
    out = tmp_path / "certificates"
    issue(tmp_path / "pki", Role.HOSPITAL, "cleveland", now_unix=now, out=out)
    return out


# --- install.md, step by step -------------------------------------------------------------------


@pytest.fixture
def handed_over(tmp_path: Path) -> tuple[Path, str]:
    """A folder with a small bundle and the release key; and the key's fingerprint."""
    folder = tmp_path / "letter"
    folder.mkdir()
    _, digest = form.make_key(folder / "release.pem")
    key = form.load_signing_key(folder / "release.pem")
    files = {
        "sbom.cdx.json": b'{"metadata": {"component": {"name": "fedcare"}}, "components": []}',
        "licences/INDEX.tsv": b"",
        "source/README.md": b"what a bundle holds\n",
    }
    sums = "".join(f"{hashlib.sha256(files[n]).hexdigest()}  {n}\n" for n in sorted(files))
    files["SHA256SUMS"] = sums.encode()
    contents = form.Contents(
        version=VERSION,
        commit="0" * 40,
        dirty=False,
        created="2026-01-31T00:00:00Z",
        platform="cp311-linux_x86_64",
        base_image="python:3.11-slim-bookworm",
        signer=digest,
        files=tuple(
            form.FileEntry(name, hashlib.sha256(data).hexdigest(), len(data), executable=False)
            for name, data in sorted(files.items())
        ),
    )
    raw = contents.to_json()
    order = {"bundle.json": raw, "bundle.sig": form.sign(key, raw), **dict(sorted(files.items()))}
    with (folder / f"fedcare-bundle-{VERSION}.tar").open("wb") as archive:
        for name, data in order.items():
            archive.write(header(f"{contents.name}/{name}", len(data), executable=False))
            archive.write(data + bytes(padding(len(data))))
        archive.write(END)
    return folder, digest


GENUINE = (
    *("Verified Successfully", "the list is genuine"),
    *("every file is genuine", "there is no other file"),
)
"""What the four checks of step 2 print, each only if it passed."""


def by_hand() -> list[str]:
    lines = section("2. Verify the bundle")
    start = next(n for n, line in enumerate(lines) if line.startswith("tar "))
    return lines[start : lines.index("cd ..") + 1]


def test_step_2_with_fedcare(handed_over: tuple[Path, str]) -> None:
    folder, digest = handed_over
    line, *_ = section("2. Verify the bundle")
    assert f"verified: signed by {digest}" in shell([line], folder)
    assert (folder / f"fedcare-bundle-{VERSION}" / "source" / "README.md").is_file()


def test_step_2_by_hand_says_what_stands_behind_each_command(
    handed_over: tuple[Path, str],
) -> None:
    folder, digest = handed_over
    out = shell(by_hand(), folder)
    assert digest in out
    assert all(expected in out for expected in GENUINE), out


@pytest.mark.parametrize(
    ("place", "missing"),
    [
        (b"what a bundle holds", GENUINE[2]),
        (b'"dirty": false', GENUINE[0]),
        (b"  source/README", GENUINE[1]),
    ],
)
def test_step_2_by_hand_does_not_say_so_of_a_changed_byte(
    handed_over: tuple[Path, str], place: bytes, missing: str
) -> None:
    """In a file, in the signed list, and in the list of digests."""
    folder, _ = handed_over
    tar = folder / f"fedcare-bundle-{VERSION}.tar"
    data = tar.read_bytes()
    assert data.count(place) == 1
    tar.write_bytes(data.replace(place, place[:-1] + b"x"))
    out = shell(["set +e", *by_hand()], folder)
    assert missing not in out


def test_step_2_by_hand_finds_a_file_that_nobody_signed(handed_over: tuple[Path, str]) -> None:
    folder, _ = handed_over
    tar = folder / f"fedcare-bundle-{VERSION}.tar"
    more = header(f"fedcare-bundle-{VERSION}/source/setup.cfg", 1, executable=False) + bytes(512)
    tar.write_bytes(tar.read_bytes().removesuffix(END) + more + END)
    out = shell(["set +e", *by_hand()], folder)
    assert GENUINE[2] in out
    assert GENUINE[3] not in out


def test_step_2_by_hand_replaces_nothing_beside_the_bundle(handed_over: tuple[Path, str]) -> None:
    """An archive that nobody has verified yet may hold a release.pub and a ca.crt of its own."""
    folder, _ = handed_over
    pinned = (folder / "release.pub").read_bytes()
    tar = folder / f"fedcare-bundle-{VERSION}.tar"
    more = header("release.pub", 1, executable=False) + bytes(512)
    more += header("certificates/ca.crt", 1, executable=False) + bytes(512)
    tar.write_bytes(tar.read_bytes().removesuffix(END) + more + END)
    shell(["set +e", *by_hand()], folder)
    assert (folder / "release.pub").read_bytes() == pinned
    assert not (folder / "certificates").exists()


def test_steps_3_to_5_lead_to_files_that_the_node_accepts(certificates: Path) -> None:
    folder = certificates.parent
    (folder / "table.csv").write_text("age,sex,num\n60,1,0\n", "utf-8")
    (certificates / "tls.key").chmod(0o644)  # as it comes from a stick
    files, fill = section("3. Put the files in place"), section("4. Fill in policy.yaml")
    source = {"SOURCE": str(ROOT)}
    shown = shell([*files, *fill], folder, **source)
    blanks = [blank for blanks in ANSWERS.values() for blank in blanks]
    assert len(re.findall(r"^etc/\w+\.yaml:\d+:.*FILL-IN", shown, re.MULTILINE)) == len(blanks)
    assert "URI:spiffe://heart-network/hospital/cleveland" in shown
    pinned = re.findall(r"^sha256 Fingerprint=([0-9A-F:]{95})$", shown, re.MULTILINE)
    fill_in(folder / "etc", pinned[0])
    assert "FILL-IN" not in shell(fill, folder)
    runnable = [line for line in section("5a. Start, with") if not line.startswith(NOT_HERE)]
    assert len(runnable) == 3
    shell(runnable, folder, **source)

    node = folder / "etc" / "node.yaml"
    setup = load_setup(NodeConfig.read(node), SystemClock())
    assert setup.policy.value.site == "cleveland"
    shell(["fedcare pki show etc/tls | grep 'usable: yes'"], folder)
    tool = shutil.which("docker-compose")
    if tool:
        shell([f"{tool} config"], folder)


def fill_in(etc: Path, pinned: str) -> None:
    """Do what step 4 says; the table is not in /data here."""
    for name, answers in ANSWERS.items():
        text = (etc / name).read_text("utf-8")
        for blank, answer in answers.items():
            text = text.replace(blank, answer)
        text = text.replace("0" * 64, pinned).replace("path: heart.csv", "path: ../data/heart.csv")
        (etc / name).write_text(text, "utf-8")


def test_every_other_command_begins_with_what_this_machine_may_lack() -> None:
    ran = [*section("2. Verify the bundle"), *section("3. Put"), *section("4. Fill")]
    rest = [line for line in commands(INSTALL) if line not in ran]
    assert {line.split()[0] for line in rest} == {"sudo", "systemctl", "cp", "chmod"}


def test_every_file_that_a_command_takes_from_the_source_is_there() -> None:
    for name in re.findall(r'"?\$SOURCE"?/([\w./-]+)', "\n".join(commands(INSTALL))):
        made = name == "deploy/wheelhouse" or name.startswith("../dist/")
        assert made or (ROOT / name).is_file(), name
    assert f"dist/fedcare-{VERSION}-py3-none-any.whl" in INSTALL
    assert f"fedcare/node:{VERSION}" in INSTALL


# --- names that the pages use -------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted(PAGES))
def test_versions_events_and_codes_exist(page: str) -> None:
    text = PAGES[page]
    assert set(re.findall(r"fedcare[a-z/-]*[-:](\d+\.\d+\.\d+)", text)) <= {VERSION}
    events = {event.value for event in Event}
    groups = {name.split(".")[0] for name in events}
    for name in re.findall(r"\b([a-z]+\.[a-z]+)\b(?=`|[ ])", text):
        if name.split(".")[0] in groups and name != "model.safetensors":
            assert name in events, name
    codes = {kind.code for kind in CATALOGUE.values()}
    assert set(re.findall(r"FC-\d{4}", text)) <= codes


def test_the_lines_foretold_in_install_md_are_written_by_a_node() -> None:
    events = (ROOT / "docs" / "events.md").read_text("utf-8")
    by = dict(re.findall(r"^\| `([a-z]+\.[a-z]+)` \| .*? \| (\w+) \|", events, re.MULTILINE))
    said = re.findall(r"`([a-z]+\.[a-z]+)`", INSTALL[INSTALL.index("## 6. What the log") :])
    told = [name for name in said if name in by]
    assert len(told) > 8
    assert {by[name] for name in told} <= {"node", "both"}


def test_a_node_that_nothing_is_weak_of_says_it_as_the_pages_do() -> None:
    stream = io.StringIO()
    facts = Facts(10001, 0, True, True, True, False, (), ())  # noqa: FBT003 - as they come
    say(make_log(stream, form="console"), "require", facts)
    (said,) = re.findall(r"weak=\S+", stream.getvalue())
    for page in ("install.md", "checklist.md"):
        assert f"`{said}`" in PAGES[page]


def options_of(group: str, command: str = "") -> set[str]:
    """Return what a command takes; KeyError if there is no such command."""
    entry = {point.name: point for point in entry_points(group="fedcare.commands")}[group]
    found = typer.main.get_command(entry.load())
    if command and isinstance(found, typer.core.TyperGroup):
        found = found.commands[command]
    return {option for parameter in found.params for option in parameter.opts}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_fedcare_commands_and_options_exist(page: str) -> None:
    asked: dict[str, set[str]] = {}
    for line in [*commands(PAGES[page]), *re.findall(r"`(fedcare [^`]+)`", PAGES[page])]:
        words = shlex.split(line.split(" && ")[0].replace("sudo -u fedcare ", ""), comments=True)
        starts = [n for n, word in enumerate(words) if word.rpartition("/")[2] == "fedcare"]
        if "run" in words and "--rm" in words:
            starts = [words.index("node")]  # the image's entry point is `fedcare`
        for start in starts[:1]:
            called = words[start + 1 :]
            name = " ".join(word for word in called[:2] if word.isalpha())
            if name:  # else `fedcare` is a user's or a folder's name
                asked.setdefault(name, set()).update(w for w in called if w.startswith("--"))
    for name, options in asked.items():
        assert options <= options_of(*name.split()), name
    assert asked or page != "install.md"
