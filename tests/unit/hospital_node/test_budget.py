"""`fedcare node budget`: reads beside a serving node, changes nothing, hides no damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.cli import main
from common.entropy import OsEntropy
from common.ids import hospital_id
from common.privacy.accountant import add, epsilon
from common.study import Study
from common.study_privacy import charged, study_cost
from hospital_node.ledger import Ledger
from hospital_node.private.books import Books
from hospital_node.private.limits import Limits
from hospital_node.store import NodeStore
from tests.policy_texts import POLICY
from tests.private_study import header_of, private_study, private_text

Capture = pytest.CaptureFixture[str]
NODE = hospital_id("heart-network", "cleveland")
BEGUN = 1_800_000_000
DP = "  dp: {epsilon_total: 4.0, epsilon_per_study: 2.0}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "policy.yaml").write_text(POLICY.replace("release:", DP + "release:"))
    (tmp_path / "node.yaml").write_text("schema: fedcare.node/v1\nsite: null\n")
    return tmp_path / "node.yaml"


def serving(config: Path) -> NodeStore:
    """The store of a node that holds its directory until it is closed."""
    return NodeStore.open(config.parent / "state", OsEntropy())


def charge(store: NodeStore, study: Study, rounds: int, anchor: Path | None = None) -> None:
    limits = Limits(2.0, 4.0, 1e-5)
    books = Books(store, NODE, limits, OsEntropy(), lambda: BEGUN, anchor)
    books.admit(study, accepted=False)
    for r in range(1, rounds + 1):
        books.charge(study, header_of(study, r))


def asked(capsys: Capture, *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["node", "budget", *words, "--json"])
    out = json.loads(capsys.readouterr().out)
    assert out["ok"], out
    return code, out["data"]


def frozen(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_show_says_what_is_spent_by_whom_and_what_is_left_while_the_node_serves(
    config: Path, capsys: Capture
) -> None:
    first, second = private_study("study-a"), private_study("study-b", epsilon=0.5)
    with serving(config) as store:
        charge(store, first, 4)
        charge(store, second, 1)
        before = frozen(config.parent)
        code, data = asked(capsys, "show", "--config", str(config))
        assert main(["node", "budget", "show", "--config", str(config)]) == 0
        text = capsys.readouterr().out
        assert frozen(config.parent) == before
        ledger = Ledger.open(store.ledgers, NODE, "heart", store, None)
    assert code == 0
    (account,) = data["datasets"]
    spent = epsilon(ledger.spent(), 1e-5).epsilon
    assert account["epsilon_spent"] == spent
    assert account["epsilon_left"] == 4.0 - spent
    assert [(row["study"], row["charges"]) for row in account["studies"]] == [
        ("study-a", 4),
        ("study-b", 1),
    ]
    assert account["studies"][0]["epsilon_spent"] == pytest.approx(charged(first))
    assert f"{spent:.4f} of 4 spent, {4 - spent:.4f} left" in text
    assert "heart  [######" in text
    assert "policy.yaml:20" in text


def test_show_before_any_node_ran_says_that_nothing_is_spent(config: Path, capsys: Capture) -> None:
    code, data = asked(capsys, "show", "--config", str(config))
    assert code == 0
    assert [(a["dataset"], a["epsilon_spent"], a["charges"]) for a in data["datasets"]] == [
        ("heart", 0.0, 0)
    ]
    assert not (config.parent / "state").exists()


def test_a_state_that_was_restored_from_an_old_copy_is_shown_as_the_node_sees_it(
    config: Path, capsys: Capture
) -> None:
    with serving(config) as store:  # nothing beside the ledger knows of a fifth charge
        charge(store, private_study(), 4)
        store.write_status({"noised_sums": {"heart": 4}})
        assert asked(capsys, "show", "--config", str(config))[0] == 0
        store.write_status({"noised_sums": {"heart": 5}})
        code, data = asked(capsys, "show", "--config", str(config))
    (account,) = data["datasets"]
    assert code == 1
    assert account["epsilon_left"] == 0
    assert account["error"]["code"] == "FC-7008"
    assert "has 4 charges; the coordinator opened 5 noised sums" in account["error"]["message"]


def test_history_lists_the_charges_with_the_epsilon_after_each(
    config: Path, capsys: Capture
) -> None:
    study = private_study(rounds=3)
    with serving(config) as store:
        charge(store, study, 3)
        code, data = asked(capsys, "history", "--config", str(config), "--dataset", "heart")
        main(["node", "budget", "history", "--config", str(config)])
        text = capsys.readouterr().out
    assert code == 0
    rows = data["datasets"][0]["charges"]
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert [row["time"] for row in rows] == [BEGUN] * 3
    after = [row["epsilon_after"] for row in rows]
    assert after == sorted(after)
    assert after[-1] == pytest.approx(charged(study))
    assert "2027-01-15 08:00:00  study-a" in text
    _, none = asked(capsys, "history", "--config", str(config), "--study", "study-z")
    assert none["datasets"][0]["charges"] == []


def test_forecast_does_the_arithmetic_of_the_ledger(config: Path, capsys: Capture) -> None:
    file = config.parent / "study.yaml"
    file.write_text(private_text("study-b", epsilon=1.5))
    study = private_study("study-b", epsilon=1.5)
    with serving(config) as store:
        charge(store, private_study("study-a"), 4)
        code, data = asked(capsys, "forecast", str(file), "--config", str(config))
        spent = Ledger.open(store.ledgers, NODE, "heart", store, None).spent()
    assert (code, data["fits"]) == (0, True)
    assert data["epsilon_charged"] == pytest.approx(1.5, rel=1e-3)
    assert data["epsilon_charged_again"] == pytest.approx(data["epsilon_charged"], rel=0.01)
    assert 0.5 < data["epsilon_estimate"] < data["epsilon_charged"]
    whole = data["limits"][1]
    assert whole["after"] == epsilon(add(spent, study_cost(study)), 1e-5).epsilon
    assert (whole["rule"], whole["where"]) == ("require.dp.epsilon_total", "policy.yaml:20")
    count, total = 0, spent
    while epsilon(total := add(total, study_cost(study)), 1e-5).epsilon <= 4.0:
        count += 1
    assert data["more_such_studies"] == count > 1


def test_a_study_that_would_be_refused_is_exit_code_1_with_the_limit_it_breaks(
    config: Path, capsys: Capture
) -> None:
    file = config.parent / "study.yaml"
    file.write_text(private_text(epsilon=2.5))
    assert main(["node", "budget", "forecast", str(file), "--config", str(config)]) == 1
    text = capsys.readouterr().out
    assert "BREAKS     study study-a: epsilon 0.0000 is spent, this costs 2." in text
    assert "policy.yaml:20: require.dp.epsilon_per_study" in text
    assert "does not fit" in text
    assert "never charged" in text


def test_a_study_without_noise_charges_nothing_and_promises_nothing(
    config: Path, capsys: Capture
) -> None:
    file = config.parent / "study.yaml"
    text = private_text().splitlines()
    file.write_text("\n".join(line for line in text if "mode:" not in line) + "\n")
    code, data = asked(capsys, "forecast", str(file), "--config", str(config))
    assert (code, data["mode"], data["epsilon_charged"], data["fits"]) == (0, "none", 0.0, True)


@pytest.mark.parametrize(
    ("command", "harm", "code"),
    [
        (("show",), "edit", "FC-7006"),
        (("history",), "edit", "FC-7006"),
        (("show",), "remove", "FC-7007"),
        (("show",), "cut", "FC-7008"),
        (("show",), "unmount", "FC-7009"),
    ],
)
def test_a_damaged_ledger_is_shown_as_spent_with_its_code_and_exit_code_1(
    config: Path, capsys: Capture, command: tuple[str, ...], harm: str, code: str
) -> None:
    anchor = config.parent / "anchor"
    anchor.mkdir()
    config.write_text(config.read_text() + "ledger_anchor: anchor\n")
    with serving(config) as store:
        charge(store, private_study(), 2, anchor)
    file = config.parent / "state" / "ledger" / "heart.jsonl"
    match harm:
        case "edit":
            file.write_bytes(file.read_bytes().replace(b'"r":2', b'"r":3'))
        case "remove":
            file.unlink()
        case "cut":
            file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
        case _:
            anchor.rename(config.parent / "elsewhere")
    before = frozen(config.parent)
    exit_code, data = asked(capsys, *command, "--config", str(config))
    assert exit_code == 1
    assert data["datasets"][0]["error"]["code"] == code
    if command == ("show",):
        assert data["datasets"][0]["epsilon_left"] == 0.0
    assert main(["node", "budget", *command, "--config", str(config)]) == 1
    out = capsys.readouterr().out
    assert f"error {code}" in out
    assert "fix: " in out
    assert frozen(config.parent) == before
    file_ = config.parent / "study.yaml"
    file_.write_text(private_text("study-b"))
    exit_code, data = asked(capsys, "forecast", str(file_), "--config", str(config))
    assert (exit_code, data["fits"], data["error"]["code"]) == (1, False, code)


def test_a_state_that_is_gone_altogether_is_lost_where_an_anchor_knows_better(
    config: Path, capsys: Capture
) -> None:
    anchor = config.parent / "anchor"
    anchor.mkdir()
    (anchor / "heart.anchor").write_bytes(b"anything")
    config.write_text(config.read_text() + "ledger_anchor: anchor\n")
    code, data = asked(capsys, "show", "--config", str(config))
    assert (code, data["datasets"][0]["error"]["code"]) == (1, "FC-7007")


def test_a_data_set_that_is_not_there_is_a_bad_argument(config: Path, capsys: Capture) -> None:
    assert main(["node", "budget", "show", "--config", str(config), "--dataset", "hart"]) == 4
    assert "FC-1010 BAD_ARGUMENT: no data set 'hart'; there are heart" in capsys.readouterr().err


def test_a_policy_that_is_not_there_is_one_line(config: Path, capsys: Capture) -> None:
    (config.parent / "policy.yaml").unlink()
    assert main(["node", "budget", "show", "--config", str(config)]) == 4
    assert "FC-1001" in capsys.readouterr().err
