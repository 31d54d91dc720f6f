"""What people's statements come to: a quorum of valid grants and no valid no, else nothing runs."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from common.approval import Word, sign
from common.clock import ManualClock
from common.errors import PolicyRefusal
from common.ids import ConfigHash
from common.logs import make_log
from common.policy import Approval, parse_policy
from hospital_node.approval import records as folder_module
from hospital_node.approval.gate import ApprovalGate, OpenGate, gate_of
from hospital_node.approval.records import ApprovalFolder
from hospital_node.approval.standing import Said, Stand, Standing, ever_approved
from tests.approvers import DAY, ITO, ROSSI, WEBER, Office, key_of, section
from tests.policy_texts import POLICY

DIGEST = ConfigHash(bytes([1]) * 32)
OTHER = ConfigHash(bytes([2]) * 32)


def approval(*names: str, quorum: int = 1, expires: str = "90d") -> Approval:
    text = POLICY.replace(
        "  colluders: 1\n", f"  {section(*names, quorum=quorum, expires=expires)}\n"
    )
    return parse_policy(text).value.require.approval


class Hospital:
    """A folder of statements, read by the gate of a policy."""

    def __init__(self, root: Path, rules: Approval) -> None:
        self.rules = rules
        self.clock = ManualClock()
        self.office = Office(root, "cleveland", "heart-network", DIGEST)
        self.folder = ApprovalFolder(root, "cleveland", "heart-network", rules)
        self.words = io.StringIO()
        log = make_log(self.words, form="json", clock=self.clock)
        self.gate = gate_of(self.folder, rules, self.clock, log)

    @property
    def now(self) -> float:
        return self.clock.unix()

    def say(self, name: str, word: Word, *, days: float = 90) -> Path:
        self.clock.advance(1)
        return self.office.say(name, word, self.now, days=days)

    def stands(self) -> Standing:
        return self.gate.standing(DIGEST)

    def logged(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.words.getvalue().splitlines()]


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path, approval(WEBER))


def test_without_approvers_nobody_is_asked_and_no_file_is_read(tmp_path: Path) -> None:
    found = Hospital(tmp_path, Approval())
    assert isinstance(found.gate, OpenGate)
    assert found.stands().stand is Stand.FREE
    assert found.stands().open


def test_a_study_waits_until_it_is_granted(hospital: Hospital) -> None:
    before = hospital.stands()
    assert (before.stand, before.open) == (Stand.WAITING, False)
    assert before.waiting_for == (WEBER,)
    assert before.objection is not None
    assert before.objection.code == "APPROVAL_MISSING"
    assert "it waits for dr-weber" in before.objection.detail
    hospital.say(WEBER, Word.GRANT)
    after = hospital.stands()
    assert (after.stand, after.open, after.waiting_for) == (Stand.APPROVED, True, ())
    assert after.until == int(hospital.now) + 90 * DAY


def test_a_grant_of_another_study_counts_for_nothing(hospital: Hospital) -> None:
    hospital.say(WEBER, Word.GRANT)
    assert hospital.gate.standing(OTHER).stand is Stand.WAITING


def test_two_of_three_are_needed(tmp_path: Path) -> None:
    found = Hospital(tmp_path, approval(WEBER, ITO, ROSSI, quorum=2))
    found.say(ITO, Word.GRANT)
    one = found.stands()
    assert one.stand is Stand.WAITING
    assert one.waiting_for == (WEBER, ROSSI)
    found.say(ITO, Word.GRANT)  # the same person twice is one person
    assert found.stands().stand is Stand.WAITING
    found.say(ROSSI, Word.GRANT)
    assert found.stands().stand is Stand.APPROVED


@pytest.mark.parametrize(
    ("word", "stand", "code"),
    [
        (Word.DENY, Stand.DENIED, "APPROVAL_DENIED"),
        (Word.WITHDRAW, Stand.WITHDRAWN, "APPROVAL_WITHDRAWN"),
    ],
)
def test_one_no_stops_what_a_quorum_has_granted(
    tmp_path: Path, word: Word, stand: Stand, code: str
) -> None:
    found = Hospital(tmp_path, approval(WEBER, ITO))
    found.say(WEBER, Word.GRANT)
    found.say(ITO, Word.GRANT)
    found.say(ITO, word)
    after = found.stands()
    assert (after.stand, after.open, after.undecided) == (stand, False, False)
    assert after.objection is not None
    assert after.objection.code == code
    found.say(ITO, Word.GRANT)  # a later statement of the same person stands
    assert found.stands().stand is Stand.APPROVED


def test_the_reason_of_a_denial_is_told_and_that_of_a_withdrawal_is_not(tmp_path: Path) -> None:
    found = Hospital(tmp_path, approval(WEBER, ITO))
    found.say(WEBER, Word.DENY)
    denied = found.stands().objection
    assert denied is not None
    assert "the data were not cleared" in denied.detail
    found.say(WEBER, Word.GRANT)
    found.say(WEBER, Word.WITHDRAW)
    withdrawn = found.stands().objection
    assert withdrawn is not None
    assert withdrawn.detail.startswith("withdrawn by dr-weber on 20")
    assert "cleared" not in withdrawn.detail


def test_an_approval_ends_at_its_second(hospital: Hospital) -> None:
    hospital.say(WEBER, Word.GRANT, days=2)
    hospital.clock.advance(2 * DAY - 1)
    assert hospital.stands().open
    hospital.clock.advance(1)
    after = hospital.stands()
    assert (after.stand, after.undecided, after.waiting_for) == (Stand.EXPIRED, True, (WEBER,))
    assert after.objection is not None
    assert after.objection.code == "APPROVAL_EXPIRED"


def test_a_grant_lasts_no_longer_than_the_policy_lets_it_now(tmp_path: Path) -> None:
    found = Hospital(tmp_path, approval(WEBER, expires="10d"))
    found.say(WEBER, Word.GRANT, days=5000)
    assert found.stands().until == int(found.now) + 10 * DAY


def test_the_approval_of_a_quorum_ends_with_the_first_that_it_cannot_do_without(
    tmp_path: Path,
) -> None:
    found = Hospital(tmp_path, approval(WEBER, ITO, ROSSI, quorum=2))
    for name, days in ((WEBER, 10), (ITO, 20), (ROSSI, 30)):
        found.say(name, Word.GRANT, days=days)
    assert found.stands().until == int(found.now) - 1 + 20 * DAY


def test_a_grant_from_the_future_is_none_and_a_denial_from_it_is_one(hospital: Hospital) -> None:
    hospital.office.say(WEBER, Word.GRANT, hospital.now + 301)
    assert hospital.stands().voices[0].said is Said.UNCLEAR
    assert not hospital.stands().open
    hospital.office.say(WEBER, Word.DENY, hospital.now + 10**8)
    assert hospital.stands().stand is Stand.DENIED


# --- hostile files --------------------------------------------------------------------------------


def test_a_forged_grant_is_none_and_is_named_once_in_the_log(hospital: Hospital) -> None:
    made = hospital.office.statement(WEBER, Word.GRANT, hospital.now)
    path = hospital.office.keep(made, sign(made, key_of("an intruder")))
    for _ in range(3):
        assert hospital.stands().stand is Stand.WAITING
    (line,) = hospital.logged()
    assert line["event"] == "approval.refused"
    assert line["name"] == "APPROVAL_KEY"
    assert path.name in str(line["detail"])


def test_a_grant_by_somebody_whom_the_policy_does_not_name_is_none(hospital: Hospital) -> None:
    hospital.say(ITO, Word.GRANT)
    assert hospital.stands().stand is Stand.WAITING
    assert hospital.logged()[0]["name"] == "APPROVAL_PERSON"


def _reject(hospital: Hospital, raw: bytes, name: str | None = None) -> PolicyRefusal:
    made = hospital.office.statement(WEBER, Word.GRANT, hospital.now)
    hospital.office.keep(made, raw, name)
    (rejected,) = hospital.folder.read().rejected
    assert not hospital.stands().open
    return rejected.refusal


def test_records_of_another_hospital_study_or_name_are_none(hospital: Hospital) -> None:
    office, now = hospital.office, hospital.now
    elsewhere = office.statement(WEBER, Word.GRANT, now, site="hungarian")
    refusal = _reject(hospital, sign(elsewhere, key_of(WEBER)))
    assert refusal.name == "APPROVAL_RECORD"
    assert "is of 'hungarian'" in refusal.detail


def test_a_grant_of_another_hash_under_this_ones_name_is_none(hospital: Hospital) -> None:
    other = hospital.office.statement(WEBER, Word.GRANT, hospital.now, digest=OTHER)
    refusal = _reject(hospital, sign(other, key_of(WEBER)))
    assert "belongs under another name" in refusal.detail


@pytest.mark.parametrize("raw", [b"", b"{}", b"x" * 100_000], ids=["empty", "object", "long"])
def test_a_file_of_any_bytes_is_no_grant(hospital: Hospital, raw: bytes) -> None:
    assert _reject(hospital, raw).name == "APPROVAL_RECORD"


def test_a_file_of_another_name_is_named_and_counts_for_nothing(hospital: Hospital) -> None:
    made = hospital.office.statement(WEBER, Word.GRANT, hospital.now)
    refusal = _reject(hospital, sign(made, key_of(WEBER)), "note.txt")
    assert "has no name of a record" in refusal.detail


def test_no_link_and_no_pipe_is_followed(hospital: Hospital, tmp_path: Path) -> None:
    made = hospital.office.statement(WEBER, Word.GRANT, hospital.now)
    (tmp_path / "elsewhere").write_bytes(sign(made, key_of(WEBER)))
    hospital.office.folder.mkdir()
    place = hospital.office.folder / folder_module.file_name(made)
    place.symlink_to(tmp_path / "elsewhere")
    assert "cannot be read" in hospital.folder.read().rejected[0].refusal.detail
    place.unlink()
    os.mkfifo(place)
    assert "is no file" in hospital.folder.read().rejected[0].refusal.detail
    assert not hospital.stands().open


def test_a_record_that_was_damaged_suspends_the_earlier_grant(hospital: Hospital) -> None:
    """It may have been a withdrawal."""
    hospital.say(WEBER, Word.GRANT)
    path = hospital.say(WEBER, Word.WITHDRAW)
    path.write_bytes(path.read_bytes()[:-20])
    found = hospital.stands()
    assert found.voices[0].said is Said.UNCLEAR
    assert found.stand is Stand.WAITING
    hospital.say(WEBER, Word.GRANT)
    assert hospital.stands().open


def test_a_file_that_changes_is_judged_anew(hospital: Hospital) -> None:
    path = hospital.say(WEBER, Word.GRANT)
    assert hospital.stands().open
    path.write_bytes(b"gone")
    assert not hospital.stands().open


def test_a_folder_that_cannot_be_read_or_holds_too_much_lets_nothing_run(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.say(WEBER, Word.GRANT)
    monkeypatch.setattr(folder_module, "MOST_RECORDS", 0)
    blocked = hospital.stands()
    assert (blocked.stand, blocked.waiting_for) == (Stand.WAITING, (WEBER,))
    assert hospital.gate.approved_last((DIGEST,)) is None
    monkeypatch.undo()
    assert hospital.stands().open


def test_what_is_being_written_is_not_looked_at(hospital: Hospital) -> None:
    made = hospital.office.statement(WEBER, Word.GRANT, hospital.now)
    hospital.office.keep(made, b"half", folder_module.file_name(made) + ".part")
    assert hospital.folder.read().rejected == ()


def test_a_version_counts_as_once_approved_whatever_was_said_since(tmp_path: Path) -> None:
    found = Hospital(tmp_path, approval(WEBER, ITO, quorum=2))
    found.say(WEBER, Word.GRANT)
    assert found.gate.approved_last((DIGEST, OTHER)) is None
    found.say(ITO, Word.GRANT)
    at = int(found.now)
    found.say(ITO, Word.WITHDRAW)
    assert found.gate.approved_last((OTHER, DIGEST)) == DIGEST
    assert ever_approved(found.rules, found.folder.read(), DIGEST) == at


def test_the_gate_of_named_people_is_shut(tmp_path: Path) -> None:
    assert isinstance(Hospital(tmp_path, approval(WEBER)).gate, ApprovalGate)
