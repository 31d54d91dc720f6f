"""`fedcare study lint`: the completed study, its hash, and one clear line for a wrong one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.cli import main
from common.study import config_hash, parse_study
from tests.study_texts import HEART, altered

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "heart.yaml"
    path.write_text(HEART)
    return path


def test_lint_prints_a_study_that_lints_to_the_same_hash(file: Path, capsys: Capture) -> None:
    assert main(["study", "lint", str(file)]) == 0
    text = capsys.readouterr().out
    digest = config_hash(parse_study(HEART)).hex()
    assert f"hash: sha256:{digest}" in text
    completed = text[: text.index("hash: ")]
    assert "local_epochs: null" in completed
    assert config_hash(parse_study(completed)).hex() == digest


def test_lint_json_holds_the_completed_study(file: Path, capsys: Capture) -> None:
    assert main(["study", "lint", str(file), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["hash"] == "sha256:" + config_hash(parse_study(HEART)).hex()
    assert data["study"]["privacy"]["secure_aggregation"]["suite"] == "hybrid"
    assert data["warnings"] == []


def test_lint_warns(file: Path, capsys: Capture) -> None:
    file.write_text(altered(HEART, "weights: size_class", "weights: samples"))
    assert main(["study", "lint", str(file)]) == 0
    assert "warning: federation.weights is samples" in capsys.readouterr().out


def test_an_unknown_key_is_one_line_with_file_line_and_guess(file: Path, capsys: Capture) -> None:
    file.write_text(altered(HEART, "optimiser:", "optimizer:"))
    assert main(["study", "lint", str(file)]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == (
        f"error FC-1004 UNKNOWN_KEY: {file}:17: unknown key 'train.optimizer'; "
        "did you mean 'optimiser'?"
    )
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize("name", ["none.yaml", "."])
def test_a_file_that_is_not_there_is_one_line(tmp_path: Path, name: str, capsys: Capture) -> None:
    assert main(["study", "lint", str(tmp_path / name), "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "FC-1001"
