"""`fedcare pki`: the envelope, the exit codes, and nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.cli import main

DAY = 86400


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, Any]:
    """Run `fedcare pki ... --json`; return the exit code and the one envelope."""
    code = main(["pki", *map(str, args), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def pki(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    code, _ = run(capsys, "init", tmp_path / "pki", "--federation", "heart")
    assert code == 0
    return tmp_path / "pki"


def test_init_issue_and_show_work_together(pki: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, issued = run(capsys, "issue", pki, "coordinator", "main", "--host", "localhost")
    assert code == 0
    assert issued["data"]["certificate"]["spiffe"] == "spiffe://heart/coordinator/main"
    code, shown = run(capsys, "show", issued["data"]["folder"])
    assert code == 0
    assert shown["data"]["usable"] is True
    assert shown["data"]["certificates"][0] == issued["data"]["certificate"]


@pytest.mark.parametrize(
    ("args", "code", "exit_code"),
    [
        (["issue", "{pki}", "hospital", "../x"], "FC-1005", 4),
        (["issue", "{pki}", "hospital", "a", "--host", "b"], "FC-1005", 4),
        (["issue", "{pki}", "coordinator", "a"], "FC-1005", 4),
        (["issue", "{pki}", "hospital", "a", "--days", "0"], "FC-1005", 4),
        (["issue", "{pki}/none", "hospital", "a"], "FC-1001", 4),
        (["issue", "{pki}", "admin", "a"], "FC-1010", 4),
        (["init", "{pki}", "--federation", "heart"], "FC-1007", 4),
        (["show", "{pki}/none"], "FC-1001", 4),
        (["show", "{pki}/ca.key"], "FC-2005", 2),
    ],
)
def test_bad_input_has_one_error_its_exit_code_and_leaves_no_trace(
    args: list[str], code: str, exit_code: int, pki: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(pki.parent.rglob("*"))
    ended, answer = run(capsys, *(arg.format(pki=pki) for arg in args))
    assert (ended, answer["ok"], answer["error"]["code"]) == (exit_code, False, code)
    assert answer["error"]["fix"]
    assert sorted(pki.parent.rglob("*")) == before


def test_show_says_why_an_identity_is_not_usable(
    pki: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "issue", pki, "hospital", "cleveland")
    key = pki / "hospital-cleveland/tls.key"
    key.chmod(0o644)
    code, answer = run(capsys, "show", key.parent)
    assert (code, answer["error"]["code"]) == (4, "FC-2008")


def test_no_private_key_is_ever_printed(pki: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pki", "issue", str(pki), "hospital", "cleveland"])
    main(["pki", "show", str(pki / "hospital-cleveland")])
    printed = "".join(capsys.readouterr())
    for key in pki.rglob("*.key"):
        assert key.read_text().splitlines()[1] not in printed
