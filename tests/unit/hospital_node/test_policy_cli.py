"""`fedcare node policy`: what a policy says of a study, for people and for scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.cli import main
from common.policy import parse_policy
from tests.policy_texts import POLICY, SHORTEST_POLICY
from tests.study_texts import HEART, altered
from tests.unit.hospital_node.test_consent import RULES


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a policy and a study within it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "study.yaml").write_text(HEART)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = main(["node", "policy", *args])
    return code, capsys.readouterr().out


def test_check_accepts_with_exit_code_0(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "check", "study.yaml", "--policy", str(here / "policy.yaml"))
    assert (code, out) == (0, "accept: cleveland's policy allows study heart-disease\n")


def test_check_refuses_with_exit_code_1_and_every_rule_against(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = altered(HEART, "purpose: research", "purpose: marketing")
    (here / "study.yaml").write_text(altered(text, "rounds: 15", "rounds: 20000"))
    code, out = run(capsys, "check", "study.yaml", "--policy", "policy.yaml")
    assert code == 1
    assert out.splitlines() == [
        "refuse: 2 rules are against study heart-disease",
        (
            "  FC-5001 POLICY_PURPOSE: policy.yaml:9: allow.purposes is [research]: does not allow "
            "purpose 'marketing'"
        ),
        (
            "  FC-5014 POLICY_LIMITS: policy.yaml: limits.rounds is at most 10000 (default): does "
            "not allow rounds 20000"
        ),
    ]
    code, out = run(capsys, "check", "study.yaml", "--policy", "policy.yaml", "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["data"]["accepted"]) == (1, True, False)
    assert len(found["data"]["rules"]) == RULES
    assert [rule["fc"] for rule in found["data"]["rules"] if not rule["ok"]] == [
        "FC-5001",
        "FC-5014",
    ]


def test_explain_shows_every_rule_within_100_columns(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = run(capsys, "explain", "study.yaml", "--policy", str(here / "policy.yaml"))
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    assert sum(line.startswith(("accept ", "REFUSE ")) for line in out.splitlines()) == RULES
    assert out.splitlines()[2].split() == [
        "accept", "allow.purposes", "purpose", "'research'", "[research]", "policy.yaml:9",
    ]  # fmt: skip
    assert out.splitlines()[-1] == "accepted"


def test_the_nodes_own_file_names_the_policy(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "etc").mkdir()
    (here / "policy.yaml").rename(here / "etc" / "rules.yaml")
    (here / "etc" / "node.yaml").write_text("schema: fedcare.node/v1\npolicy: rules.yaml\n")
    code, out = run(capsys, "check", "study.yaml", "--config", "etc/node.yaml")
    assert code == 0, out


@pytest.mark.parametrize("text", [POLICY, SHORTEST_POLICY])
def test_show_marks_exactly_what_the_file_leaves_to_its_default(
    here: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (here / "policy.yaml").write_text(text)
    code, out = run(capsys, "show", "--policy", "policy.yaml")
    assert code == 0
    assert parse_policy(out).value == parse_policy(text).value
    lines = {line.split(":")[0].strip(): line for line in out.splitlines()}
    assert lines["purposes"].endswith("[research]")
    assert lines["parameters"].endswith("# default")
    assert lines["min_cohort"].endswith("# default") is (text is SHORTEST_POLICY)
    assert lines["release"].endswith(
        "# default" if text is SHORTEST_POLICY else "# default: pad_to_deadline"
    )
    _, out = run(capsys, "show", "--policy", "policy.yaml", "--json")
    defaults = json.loads(out)["data"]["defaults"]
    assert "limits.rounds" in defaults
    assert ("require.min_cohort" in defaults) is (text is SHORTEST_POLICY)


def test_a_policy_with_an_unknown_key_is_refused_with_the_nearest_name_and_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "policy.yaml").write_text(altered(POLICY, "colluders: 1", "coluders: 1"))
    code = main(["node", "policy", "show", "--policy", "policy.yaml"])
    said = capsys.readouterr().err
    assert code == 4
    assert "policy.yaml:18: unknown key 'require.coluders'; did you mean 'colluders'?" in said
