"""`fedcare node approvals`: what a person may sign, what is refused and why, and the page."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from common.approval import Word, parse, verify
from common.approval_keys import key_bytes
from common.cli import main
from common.clock import SystemClock
from common.entropy import OsEntropy
from common.errors import PolicyRefusal
from common.ids import RunId, hospital_id
from common.secret import Secret
from common.study import Study, canonical_json, config_hash, parse_study
from hospital_node.approval import key as key_module
from hospital_node.approval.records import FOLDER
from hospital_node.private.books import Books
from hospital_node.private.limits import Limits
from hospital_node.store import DecisionRecord, NodeStore
from tests.approvers import DAY, ITO, WEBER, Office, key_file, public, section
from tests.policy_texts import POLICY
from tests.private_study import header_of
from tests.study_texts import HEART, altered

DP = """\
schema: fedcare.study/v1
id: private-study
purpose: research
dataset: heart
owner: {name: Somebody, organisation: uni-x}
features: [{name: age, type: float, unit: a, centre: 55, scale: 9}]
target: {type: binary, name: num}
normalise: fixed
model: {kind: logistic}
patient_key: pid
federation: {rounds: 5, min_sites: 3}
privacy:
  secure_aggregation: {colluders: 1}
  dp:
    {mode: patient-distributed, epsilon: 2.0, delta: 1.0e-6, clip: 1.0, batch: 9, max_patients: 9}
"""


class Clinic:
    """A node's folder, with a policy that names people and some studies that were offered."""

    def __init__(self, root: Path, *people: str, quorum: int = 1) -> None:
        self.root = root
        self.state = root / "state"
        rule = section(*people, quorum=quorum) if people else "approval: {}"
        policy = altered(POLICY, "  colluders: 1\n", f"  colluders: 1\n  {rule}\n")
        (root / "policy.yaml").write_text(policy)
        (root / "node.yaml").write_text("schema: fedcare.node/v1\nsite: null\n")
        self.state.mkdir(mode=0o700)
        (self.state / "decisions").mkdir(mode=0o700)
        self.now = int(SystemClock().unix())
        self.count = 0

    def offer(self, text: str, *, accepted: bool = True) -> Study:
        """Have a study offered, and the policy's word on it written down."""
        study = parse_study(text)
        self.count += 1
        record = DecisionRecord(
            run_id=RunId(f"{study.id}-{self.count}"),
            config_hash=config_hash(study),
            study=canonical_json(study),
            accepted=accepted,
            objections=(),
            decided_at=self.now + self.count,
        )
        store = NodeStore.__new__(NodeStore)
        store.root = self.state
        store.save_decision(record)
        return study

    def office(self, study: Study) -> Office:
        return Office(self.state, "cleveland", "heart-network", config_hash(study))

    def call(self, *words: str) -> int:
        return main(["node", "approvals", *words, "--config", str(self.root / "node.yaml")])

    def say(self, word: str, study: str, name: str = WEBER, *more: str) -> int:
        reason = () if word == "grant" else ("--reason", "no vote of the board")
        key = str(key_file(self.root, name))
        return self.call(word, study, "--as", name, "--key", key, *reason, *more)

    def records(self) -> list[Path]:
        folder = self.state / FOLDER
        return sorted(folder.iterdir()) if folder.exists() else []


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path, WEBER, ITO)


def envelope(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


# --- signing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["id", "run", "hash"])
def test_a_grant_is_one_signed_file_that_only_the_owner_can_read(clinic: Clinic, by: str) -> None:
    study = clinic.offer(HEART)
    digest = config_hash(study)
    names = {"id": study.id, "run": f"{study.id}-1", "hash": f"sha256:{digest.hex()}"}
    assert clinic.say("grant", names[by]) == 0
    (path,) = clinic.records()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    signed = parse(path.read_bytes())
    verify(signed, key_bytes(public(WEBER)))
    said = signed.statement
    assert (said.word, said.name, said.config_hash) == (Word.GRANT, WEBER, digest)
    assert said.expires == said.time + 90 * DAY
    assert abs(said.time - clinic.now) < 60


def test_a_later_statement_is_a_file_of_its_own(clinic: Clinic) -> None:
    study = clinic.offer(HEART)
    for word in ("grant", "withdraw", "grant", "deny"):
        assert clinic.say(word, study.id) == 0
    times = [parse(path.read_bytes()).statement.time for path in clinic.records()]
    assert len(set(times)) == 4  # within one second they still have an order
    assert times == sorted(times)


def refused(
    capsys: pytest.CaptureFixture[str], code: int, name: str, *words: str, exit_code: int = 4
) -> None:
    assert code == exit_code
    said = capsys.readouterr().err
    assert f" {name}: " in said
    for word in words:
        assert word in said, said


def test_somebody_whom_the_policy_does_not_name_is_refused(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    study = clinic.offer(HEART)
    code = clinic.say("grant", study.id, "dr-rossi")
    refused(
        capsys, code, "APPROVAL_PERSON", "policy.yaml:19 names dr-weber or dr-ito, not dr-rossi"
    )
    assert clinic.records() == []


def test_another_key_than_the_policys_is_refused(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    study = clinic.offer(HEART)
    wrong = key_file(clinic.root, ITO)
    code = clinic.call("grant", study.id, "--as", WEBER, "--key", str(wrong))
    refused(capsys, code, "APPROVAL_KEY", public(WEBER), public(ITO))
    assert clinic.records() == []


def test_where_nobody_is_asked_nobody_can_approve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clinic = Clinic(tmp_path)
    study = clinic.offer(HEART)
    refused(capsys, clinic.say("grant", study.id), "APPROVAL_PERSON", "names nobody")


def test_a_study_that_was_not_offered_is_refused_and_what_was_is_listed(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    study = clinic.offer(HEART)
    code = clinic.say("grant", "sha256:" + "0" * 64)
    refused(capsys, code, "APPROVAL_STUDY", config_hash(study).hex(), f"({study.id}-1)")


def test_a_name_of_two_versions_is_refused_and_both_are_listed(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    first = clinic.offer(HEART)
    second = clinic.offer(altered(HEART, "rounds: 15", "rounds: 16"))
    code = clinic.say("grant", first.id)
    refused(
        capsys, code, "APPROVAL_STUDY", "2 versions", config_hash(first).hex(),
        config_hash(second).hex(),
    )  # fmt: skip
    assert clinic.say("grant", f"{second.id}-2") == 0


@pytest.mark.parametrize("word", ["deny", "withdraw"])
@pytest.mark.parametrize("reason", ["", "  ", "two\nlines", "x" * 501])
def test_a_no_needs_a_reason_of_one_line(
    clinic: Clinic, capsys: pytest.CaptureFixture[str], word: str, reason: str
) -> None:
    study = clinic.offer(HEART)
    key = str(key_file(clinic.root, WEBER))
    words = (study.id, "--as", WEBER, "--key", key, "--reason", reason)
    refused(capsys, clinic.call(word, *words), "BAD_ARGUMENT", "--reason")
    assert clinic.records() == []


def test_what_was_not_granted_cannot_be_withdrawn(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    study = clinic.offer(HEART)
    refused(capsys, clinic.say("withdraw", study.id), "BAD_ARGUMENT", "no grant", "deny")


def test_a_grant_behind_a_record_from_the_future_is_refused_and_a_denial_is_not(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    study = clinic.offer(HEART)
    clinic.office(study).say(WEBER, Word.GRANT, clinic.now + 10 * DAY)
    refused(capsys, clinic.say("grant", study.id), "APPROVAL_RECORD", "dated after")
    assert clinic.say("deny", study.id) == 0
    assert "denied; needed" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder away")
def test_another_user_than_the_nodes_is_refused(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    study = clinic.offer(HEART)
    os.chown(clinic.state, 12345, 12345)
    refused(capsys, clinic.say("grant", study.id), "STATE_ACCESS", "uid 12345")
    assert clinic.records() == []


# --- keys --------------------------------------------------------------------------------------


def test_a_key_is_made_once_and_prints_the_line_of_the_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weber.pem"
    assert main(["node", "approvals", "key", str(path), "--no-passphrase"]) == 0
    line = re.search(r'- \{name: NAME, key: "(ed25519:[0-9a-f]{64})"\}', capsys.readouterr().out)
    assert line is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = key_module.load_key(path, None)
    assert line[1] == f"ed25519:{key.public_key().public_bytes_raw().hex()}"
    before = path.read_bytes()
    code = main(["node", "approvals", "key", str(path), "--no-passphrase"])
    refused(capsys, code, "OUTPUT_EXISTS", "already there")
    assert path.read_bytes() == before


def secret_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "passphrase"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_passphrase_locks_the_key(tmp_path: Path) -> None:
    path = tmp_path / "weber.pem"
    phrase = secret_file(tmp_path, "correct horse\n")
    made = ["node", "approvals", "key", str(path), "--passphrase-file", str(phrase)]
    assert main(made) == 0
    assert b"ENCRYPTED" in path.read_bytes()
    key_module.load_key(path, phrase)
    secret_file(tmp_path, "wrong horse\n")
    with pytest.raises(PolicyRefusal, match="does not open it") as caught:
        key_module.load_key(path, phrase)
    assert caught.value.name == "APPROVAL_KEY"


def test_a_passphrase_is_asked_for_twice_on_a_terminal_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weber.pem"
    refused(capsys, main(["node", "approvals", "key", str(path)]), "BAD_ARGUMENT", "no terminal")
    answers = iter(["correct horse", "correct horse", "one of them", "another"])
    monkeypatch.setattr(key_module, "_ask", lambda _: Secret(next(answers).encode()))
    assert key_module.new_passphrase(None, none=False) == Secret(b"correct horse")
    with pytest.raises(Exception, match="passphrases differ"):
        key_module.new_passphrase(None, none=False)
    assert not path.exists()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("--passphrase-file", "passphrase", "--no-passphrase"), "BAD_ARGUMENT"),
        (("--passphrase-file", "nowhere"), "FILE_MISSING"),
    ],
)
def test_a_key_is_not_made_from_contradictory_words(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    secret_file(tmp_path, "correct horse")
    refused(capsys, main(["node", "approvals", "key", "k.pem", *words]), name)
    assert not (tmp_path / "k.pem").exists()


@pytest.mark.parametrize(
    ("text", "mode", "name"),
    [("short", 0o600, "BAD_ARGUMENT"), ("correct horse", 0o644, "KEY_PERMISSIONS")],
)
def test_a_weak_or_open_passphrase_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, mode: int, name: str
) -> None:
    phrase = secret_file(tmp_path, text, mode)
    out = str(tmp_path / "k.pem")
    code = main(["node", "approvals", "key", out, "--passphrase-file", str(phrase)])
    refused(capsys, code, name)


def test_a_key_that_others_can_read_or_of_another_kind_is_refused(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    study = clinic.offer(HEART)
    key = key_file(clinic.root, WEBER)
    words = ("grant", study.id, "--as", WEBER, "--key", str(key))
    key.chmod(0o640)
    refused(capsys, clinic.call(*words), "KEY_PERMISSIONS", "chmod 600")
    key.chmod(0o600)
    key.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    refused(capsys, clinic.call(*words), "APPROVAL_KEY", "no private key in PEM form")
    assert clinic.records() == []


# --- looking ------------------------------------------------------------------------------------


def test_the_list_says_how_each_study_stands_and_names_what_does_not_count(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    study = clinic.offer(HEART)
    clinic.offer(altered(HEART, "id: heart-disease", "id: other-study"), accepted=False)
    clinic.say("deny", study.id)
    (clinic.state / FOLDER / "note.txt").write_text("granted, honestly")
    capsys.readouterr()
    assert clinic.call("list") == 0
    said = capsys.readouterr().out
    assert "denied: denied by dr-weber on" in said
    assert "no vote of the board" in said
    assert "refused by the policy" in said
    assert "does not count: FC-5109 APPROVAL_RECORD: approvals/note.txt: has no name" in said
    assert clinic.call("list", "--json") == 0
    data = envelope(capsys)["data"]
    assert [row["approval"]["state"] for row in data["studies"]] == ["denied", "waiting"]
    assert [row["file"] for row in data["rejected"]] == ["note.txt"]


def test_a_list_of_nothing_says_so(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    assert clinic.call("list") == 0
    assert capsys.readouterr().out == "no study was offered yet\n"


def page(clinic: Clinic, study: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert clinic.call("show", study) == 0
    return capsys.readouterr().out


def test_the_page_says_what_a_privacy_officer_asks(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    study = clinic.offer(HEART)
    said = page(clinic, study.id, capsys)
    for words in (
        study.title,
        study.owner.organisation,
        "purpose    research",
        "data set heart",
        "age: float in a; missing values: the mean over all hospitals",
        "no patient key: every row counts as a patient of its own",
        "statistics, 1 round, as a masked sum without noise",
        f"training, {study.federation.rounds} rounds, as a masked sum without noise",
        "evaluation, 1 round, as a masked sum without noise",
        "rounded down to a power of two",
        "the coordinator alone reads only sums over at least 3 hospitals",
        "with the help of 1 of the 4 hospitals, sums over at least 2 of the others",
        "There is no noise.",
        "A malicious coordinator",
        "differ slightly from round to round and subtract the sums",
        "nothing is charged",
        "accepts  purpose 'research'",
        "no earlier version of this study was approved here",
        "waiting; needed: 1 of 2",
        "dr-weber: has not answered",
    ):
        assert words in said, words


def test_the_page_of_a_private_study_says_what_it_costs(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    study = clinic.offer(DP)
    said = page(clinic, study.id, capsys)
    assert "rows of one patient are grouped by pid" in said
    assert "training, 5 rounds, as a masked sum with noise" in said
    assert "Differential privacy (patient-distributed)" in said
    assert "Epsilon 2 for the whole study, delta 1e-06" in said
    assert "cut to the length 1" in said
    assert "There is no noise." not in said
    assert "epsilon spent on this data set so far: 0" in said
    assert clinic.call("show", study.id, "--json") == 0
    budget = envelope(capsys)["data"]["budget"]
    assert budget["spent"] == 0
    assert budget["study"] == pytest.approx(2.0, rel=1e-3)
    assert 0 < budget["after"] <= budget["limit_total"] == 10.0


def test_figures_that_a_private_study_pays_for_leave_with_noise_and_say_so(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    text = altered(DP, "centre: 55, scale: 9", "range: [18, 110], impute: mean")
    text = altered(text, "normalise: fixed", "normalise: federated")
    paid = "statistics_epsilon: 0.5, evaluation_epsilon: 0.5, max_patients"
    said = page(clinic, clinic.offer(altered(text, "max_patients", paid)).id, capsys)
    assert "statistics, 1 round, as a masked sum with noise: sums over the patients" in said
    assert "evaluation, 1 round, as a masked sum with noise: a histogram" in said
    assert "without noise" not in said
    assert said.count("noise of its own") == 2


def test_the_page_says_who_makes_the_noise_and_what_it_does_not_hide(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = page(clinic, clinic.offer(DP).id, capsys)
    assert "The hospitals make it together, sized for 2 honest ones" in shared
    assert "More than 1 hospitals that tell the coordinator a part of the noise weaken" in shared
    assert "the noise hides one patient, not the hospital" in shared
    assert "row by row" not in shared
    text = altered(DP, "patient-distributed", "patient-local").replace("private-study", "local")
    text = altered(
        altered(text, "patient_key: pid\n", ""), "model: {", "train: {local_steps: 3}\nmodel: {"
    )
    local = page(clinic, clinic.offer(text).id, capsys)
    assert "where every step is a sum of the patients' gradients" in local
    assert "in every one of its 3 steps a round" in local
    assert "a part of the noise" not in local
    assert "A patient with several rows is hidden row by row only." in local


def test_another_version_of_a_study_costs_on_top_of_what_the_first_has_spent(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    first, store = parse_study(DP), NodeStore.open(clinic.state, OsEntropy())
    books = Books(
        store,
        hospital_id("heart-network", "cleveland"),
        Limits(3.0, 10.0, 1e-5),
        OsEntropy(),
        lambda: clinic.now,
    )
    books.admit(first, accepted=False)
    clinic.offer(DP)
    for r in range(1, 6):
        books.charge(first, header_of(first, r))
    store.close()
    again = page(clinic, f"{first.id}-1", capsys)
    assert "OVER THE LIMIT" not in again  # its own charges count once
    clinic.offer(altered(DP, "epsilon: 2.0", "epsilon: 1.9"))
    said = page(clinic, f"{first.id}-2", capsys)
    assert f"OVER THE LIMIT: study {first.id}: epsilon " in said
    assert clinic.call("show", f"{first.id}-2", "--json") == 0
    budget = envelope(capsys)["data"]["budget"]
    assert budget["after"] > budget["study"] > 1.8


def test_the_page_names_each_key_that_has_changed_since_the_last_approved_version(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    first = clinic.offer(HEART)
    office = clinic.office(first)
    office.say(WEBER, Word.GRANT, clinic.now - 5 * DAY, days=1)  # it has expired since
    never = altered(HEART, "rounds: 15", "rounds: 99")
    clinic.offer(never)
    text = altered(HEART, "rounds: 15", "rounds: 20")
    text = altered(text, "name: age,  type: float, unit: a", "name: age, type: float, unit: months")
    clinic.offer(text)
    said = page(clinic, f"{first.id}-3", capsys)
    assert f"sha256:{config_hash(first).hex()}, approved " in said
    assert "federation.rounds: was 15, is 20" in said
    assert "features.age.unit: was 'a', is 'months'" in said
    assert clinic.call("show", f"{first.id}-3", "--json") == 0
    changes = envelope(capsys)["data"]["difference"]["changes"]
    assert {entry["key"] for entry in changes} == {"federation.rounds", "features.age.unit"}
