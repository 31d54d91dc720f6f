"""Every command of the README runs as it stands there, with real files and processes.

The commands of the four doors are run in order in an empty folder that holds what a clone
holds. Only what a person does by hand is done here: the lines of the policy that differ from
hospital to hospital are edited, RUN is replaced by the name that `submit` printed, and port
8443 by one that is free. The hospital's door is gone through once for each of the four.
`make` targets are not run again from inside `make test`: they are targets, and CI runs them.
Commands of Docker are run by tests/containers.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from researcher.local import free_address

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
SITES = ("cleveland", "hungarian", "switzerland", "va")
STAND_IN = "0" * 64
TOP = ("coordinator", "researcher", "common", "hospital_node", "deploy", "studies", "docs", "tests")


def blocks(text: str) -> list[str]:
    """Return every fenced block of shell commands."""
    return re.findall(r"^```(?:console|sh|shell|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Return every command of a page, in order, comments and empty lines left out."""
    lines = [line for block in blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def inline(text: str) -> list[str]:
    """Return the make commands that stand in running text."""
    return re.findall(r"`(make [^`]+)`", text)


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_make_commands_are_targets() -> None:
    used = [line.split()[1] for line in [*commands(README), *inline(README)] if "make " in line]
    assert {"demo", "test"} <= set(used) <= make_targets()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    for line in ("make test", "make lint", "make test-containers"):
        assert line in commands(README)
        assert line in ci


def test_both_readmes_have_the_same_commands_and_links() -> None:
    assert blocks(CHINESE) == blocks(README)
    targets = [set(re.findall(r"\]\(([^)]+)\)", text)) for text in (README, CHINESE)]
    assert targets[0] - {"README.zh-CN.md"} == targets[1] - {"README.md"}
    assert [line[:3] for line in README.splitlines() if line.startswith("#")] == [
        line[:3] for line in CHINESE.splitlines() if line.startswith("#")
    ]


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_figures_shown_are_those_of_the_study(tmp_path: Path) -> None:
    """The demo's study gives the README's table; `sim` runs it without the processes."""
    tables, study = tmp_path / "tables", ROOT / "studies" / "heart-disease.yaml"
    fedcare = [sys.executable, "-m", "common.cli"]
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True, cwd=ROOT)
    run([*fedcare, "data", "heart", "--out", str(tables)])
    sites = [part for site in SITES for part in ("--site", str(tables / f"{site}.yaml"))]
    out = run([*fedcare, "sim", str(study), *sites]).stdout
    shown = figures(README[README.index("AUROC on test patients") :])
    found = figures(re.split(r"(?im)^auroc", out)[1])
    assert len(shown) == len(SITES) + 1
    for name, values in shown.items():
        assert found[name] == pytest.approx(values, abs=0.005), name


def figures(text: str) -> dict[str, list[float]]:
    """Return the rows of numbers that follow, by the words before them, up to an empty line."""
    lines = text.partition("\n\n")[0].partition("```")[0].splitlines()
    rows = (re.fullmatch(r"([a-z ]+?)((?:\s+[\d.]+){4})", line) for line in lines)
    return {row[1].strip(): [float(x) for x in row[2].split()] for row in rows if row}


# --- the four doors ---------------------------------------------------------------------------


@dataclass
class Reader:
    """Somebody who follows the README in a folder of their own."""

    folder: Path
    address: str
    run_name: str = "RUN"
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def env(self) -> dict[str, str]:
        here = str(Path(sys.executable).parent)
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        return {**kept, "PATH": f"{here}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def spoken(self, line: str) -> str:
        """Return the line with the free port, and the run's name in place of RUN."""
        line = re.sub(r"\bRUN\b", self.run_name, line)
        return line.replace("localhost:8443", self.address)

    def run(self, line: str) -> str:
        """Run one line to its end; it must succeed. `cd` holds for the lines that follow."""
        if line.startswith("cd "):
            self.folder = self.folder / line.removeprefix("cd ")
            assert self.folder.is_dir()
            return ""
        done = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", self.spoken(line)],
            cwd=self.folder,
            env=self.env(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def start(self, line: str) -> None:
        """Start a line that serves until it is stopped."""
        log = (self.folder / f"process-{len(self.children)}.log").open("wb")
        with log:
            child = subprocess.Popen(
                shlex.split(self.spoken(line)),
                cwd=self.folder,
                env=self.env(),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.children.append(child)

    def logs(self) -> str:
        """Return the last lines of every process, for a failed test."""
        paths = sorted(self.folder.glob("process-*.log"))
        return "".join(f"\n--- {p.name}\n{p.read_text('utf-8')[-3000:]}" for p in paths)

    def stop(self) -> list[int]:
        """Ask every process to end and return their exit codes."""
        for child in self.children:
            child.send_signal(signal.SIGTERM)
        return [child.wait(timeout=30) for child in self.children]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A folder that holds what a clone holds at its top: a command that writes there is seen."""
    for name in TOP:
        if name in ("deploy", "studies"):
            (tmp_path / name).symlink_to(ROOT / name)
        else:
            (tmp_path / name).mkdir()
            (tmp_path / name / "taken").touch()
    one = Reader(tmp_path, free_address().replace("127.0.0.1", "localhost"))
    yield one
    for child in one.children:
        if child.poll() is None:
            child.kill()
            child.wait()


def door(title: str) -> list[str]:
    """Return the commands of one of the doors."""
    start = README.index(f"### {title}\n")
    end = re.compile(r"^##", re.MULTILINE).search(README, start + 4)
    return commands(README[start : end.start() if end else None])


def edit_coordinator(reader: Reader) -> None:
    """Listen on the free port, and on no other."""
    path = reader.folder / "coordinator" / "coordinator.yaml"
    text = path.read_text(encoding="utf-8")
    assert '"0.0.0.0:8443"' in text
    port = reader.address.rpartition(":")[2]
    text = text.replace("0.0.0.0:8443", f"127.0.0.1:{port}")
    path.write_text(f"{text}http: null\n", encoding="utf-8")


def edit_hospital(reader: Reader, site: str, shown: str) -> None:
    """Do what the README tells a hospital to do by hand."""
    folder = reader.folder / site
    fingerprint = re.findall(r"sha256:\s+(?:sha256:)?([0-9a-f:]{64,})", shown)[-1]
    text = (folder / "policy.yaml").read_text(encoding="utf-8")
    for old, new in {
        "site: cleveland": f"site: {site}",
        STAND_IN: fingerprint,
        "coordinator.example.org:8443": reader.address,
    }.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "policy.yaml").write_text(text, encoding="utf-8")


def wait_for(path: Path, reader: Reader) -> None:
    """Wait until a process has written a file; it dies, or pytest's own limit ends this."""
    while not path.exists():
        assert all(child.poll() is None for child in reader.children), reader.logs()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_four_doors_lead_to_a_verified_model(reader: Reader) -> None:
    ran = list(run_doors(reader))
    untried = [line for line in commands(README) if line not in ran]
    assert {line.split()[0] for line in untried} == {"make", "docker"}
    assert reader.stop() == [0] * len(reader.children), reader.logs()


def run_doors(reader: Reader) -> Iterator[str]:
    """Go through the doors in order; yield each command that was run."""
    preparation = commands(README[README.index("## Four doors") : README.index("### Operator")])
    for line in preparation:
        reader.run(line)
        yield line
    for line in door("Operator"):
        if " serve " in line:
            edit_coordinator(reader)
            reader.start(line)
            wait_for(reader.folder / "coordinator" / "state" / "address", reader)
        else:
            reader.run(line)
        yield line
    yield from run_hospitals(reader)
    for line in door("Researcher"):
        out = reader.run(line)
        if " submit " in line:
            found = re.search(r"^run (\S+):", out, re.MULTILINE)
            assert found, out
            reader.run_name = found.group(1)
        if " verify " in line:
            assert "genuine" in out
        yield line
    card = json.loads((reader.folder / "model" / "manifest.json").read_text("utf-8"))
    assert set(card["sites"]) == set(SITES)
    for line in door("Privacy officer"):
        assert reader.run(line)
        yield line


def run_hospitals(reader: Reader) -> Iterator[str]:
    """Run the hospital's door for each of the four."""
    for site in SITES:
        for written in door("Hospital"):
            line = written.replace("cleveland", site)
            if "cleveland" not in written and site != SITES[0]:
                continue  # what the door's visitor does once
            if " serve " in line:
                reader.start(line)
                wait_for(reader.folder / site / "state" / "status.json", reader)
            else:
                out = reader.run(line)
                if "pki show" in line:
                    edit_hospital(reader, site, out)
            yield written
