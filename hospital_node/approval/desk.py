"""What `fedcare node approvals` does: beside the serving node, without its lock or a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from common.approval import Statement, Word, sign
from common.approval_keys import key_text
from common.errors import ConfigError, PolicyRefusal
from common.ids import ConfigHash
from common.policy import load_policy
from common.reason import MOST_REASON
from common.text import check_text, listed
from hospital_node.approval.cases import Case, cases, find
from hospital_node.approval.records import ApprovalFolder, Records, add
from hospital_node.approval.standing import LEAD_S, Standing, ever_approved, standing
from hospital_node.config import NodeConfig

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_LATER: Final = 1
"""Seconds by which a person's next statement is later than the last one, at the least."""


@dataclass(frozen=True, slots=True)
class Former:
    """The version of a study that was approved last, and when (Unix seconds)."""

    case: Case
    at: int


class ApprovalDesk:
    """One hospital's approvals, as its files say; `now` is in Unix seconds.

    Raises:
        FedError: a file that `config` names is missing or wrong.
    """

    def __init__(self, config: NodeConfig, now: int) -> None:
        policy = load_policy(config.path(config.policy))
        state_dir = config.path(config.state_dir)
        self._config = config
        self.policy = policy
        self.state_dir = state_dir
        self.now = now
        rules = policy.value
        self.approval = rules.require.approval
        self._folder = ApprovalFolder(state_dir, rules.site, rules.federation.id, self.approval)

    @classmethod
    def open(cls, config: Path, now: int) -> ApprovalDesk:
        """Return the desk of the node whose file is `config`.

        Raises:
            FedError: a file is missing or wrong.
        """
        return cls(NodeConfig.read(config), now)

    def cases(self) -> tuple[Case, ...]:
        """Return the studies that this node was offered."""
        return cases(self.state_dir)

    def find(self, name: str) -> Case:
        """Return one of them; see `cases.find`."""
        return find(self.cases(), name)

    def records(self) -> Records:
        """Return what the folder holds.

        Raises:
            PolicyRefusal: APPROVAL_RECORD.
        """
        return self._folder.read()

    def standing(self, digest: ConfigHash) -> Standing:
        """Return how a study stands with the people."""
        return standing(self.approval, self.records(), digest, self.now)

    def former(self, case: Case) -> Former | None:
        """Return the version of the same study that was approved last, other than this one."""
        records = self.records()
        dated = [
            Former(other, ever_approved(self.approval, records, other.config_hash))
            for other in self.cases()
            if other.study.id == case.study.id and other.config_hash != case.config_hash
        ]
        approved = [former for former in dated if former.at]
        return max(approved, key=lambda former: former.at) if approved else None

    def spent(self, case: Case) -> Mapping[str, Any] | None:
        """Return what the data set's budget holds and would hold; None without privacy terms.

        Raises:
            FedError: the ledger cannot be trusted.
        """
        if not case.study.privacy.dp.on:
            return None
        from hospital_node.approval.forecast import forecast  # they bring numpy
        from hospital_node.budget import read_budget

        budget = read_budget(self._config)
        versions = (one for one in self.cases() if one.study.id == case.study.id)
        return forecast(
            case.study,
            budget.limits,
            budget.account(case.study.dataset),
            alone=all(one.refused or one.config_hash == case.config_hash for one in versions)
            and not case.refused,
        )

    def say(
        self, case: Case, word: Word, name: str, key: Ed25519PrivateKey, reason: str
    ) -> Standing:
        """Sign a statement, keep it, and return how the study stands now.

        Raises:
            PolicyRefusal: APPROVAL_PERSON, APPROVAL_KEY, APPROVAL_RECORD.
            ConfigError: BAD_ARGUMENT, the reason is missing or too long; nothing to withdraw.
            StateError: STATE_ACCESS, DISK.
        """
        self.check_person(name, key)
        self._check_reason(word, reason)
        time = self._time(case, word, name)
        rules = self.policy.value
        statement = Statement(
            site=rules.site,
            federation=rules.federation.id,
            config_hash=case.config_hash,
            name=name,
            word=word,
            reason=reason,
            time=time,
            expires=time + int(self.approval.expires) if word is Word.GRANT else 0,
        )
        add(self.state_dir, statement, sign(statement, key))
        return self.standing(case.config_hash)

    def check_person(self, name: str, key: Ed25519PrivateKey) -> None:
        """Refuse somebody whom the policy does not name, or names with another key.

        Raises:
            PolicyRefusal: APPROVAL_PERSON, APPROVAL_KEY.
        """
        where = self.policy.source.where("require", "approval", "approvers")
        stated = self.approval.key_of(name)
        if stated is None:
            people = self.approval.approvers
            named = listed(one.name for one in people) if people else "nobody"
            raise PolicyRefusal("APPROVAL_PERSON", f"{where} names {named}, not {name}")
        own = key_text(key.public_key().public_bytes_raw())
        if own != stated:
            detail = f"{where} gives {name} the key {stated}; the file holds {own}"
            raise PolicyRefusal("APPROVAL_KEY", detail)

    def _check_reason(self, word: Word, reason: str) -> None:
        if word is not Word.GRANT and not reason.strip():
            raise ConfigError("BAD_ARGUMENT", f"--reason: a {word.value} needs one")
        try:
            plain = check_text(reason) == reason and len(reason) <= MOST_REASON
        except ValueError:
            plain = False
        if not plain:
            limit = f"one line of at most {MOST_REASON} printable characters"
            raise ConfigError("BAD_ARGUMENT", f"--reason must be {limit}")

    def _time(self, case: Case, word: Word, name: str) -> int:
        """Return the statement's time: now, and after whatever the person said before."""
        records = self.records()
        own = [one for one in records.of(case.config_hash) if one.name == name]
        last = max((one.time for one in own), default=0)
        if word is Word.WITHDRAW and not (own and own[-1].word is Word.GRANT):
            raise ConfigError(
                "BAD_ARGUMENT",
                f"{name} has no grant of {case.study.id} to withdraw",
                fix="`fedcare node approvals deny` says no to a study.",
            )
        if word is not Word.GRANT:
            return max(self.now, last + _LATER)
        for one in records.rejected:
            if (one.config_hash, one.name) == (case.config_hash, name):
                last = max(last, one.time)
        if last > self.now + LEAD_S:
            raise PolicyRefusal(
                "APPROVAL_RECORD",
                f"a record in the name of {name} is dated after this machine's time; no grant can "
                "follow it yet",
                fix="Correct the clock; or remove the file, if `list` shows that it is no record.",
            )
        return max(self.now, last + _LATER)


def voices_data(found: Standing) -> list[dict[str, Any]]:
    """Return what each person said, for an envelope."""
    return [
        {
            "name": voice.name,
            "said": voice.said.value,
            "reason": voice.reason,
            "at": voice.at or None,
            "until": voice.until or None,
        }
        for voice in found.voices
    ]


def standing_data(found: Standing) -> dict[str, Any]:
    """Return how a study stands, for an envelope."""
    return {
        "state": found.stand.value,
        "quorum": found.quorum,
        "until": found.until or None,
        "waiting_for": list(found.waiting_for),
        "objection": None if found.objection is None else str(found.objection),
        "people": voices_data(found),
    }
