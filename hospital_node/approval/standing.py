"""What the statements come to for one study at one moment; pure.

Of each person of the policy the latest statement counts. One valid denial or withdrawal
stops the study, whoever else has granted it; without one it takes a quorum of grants that
have not expired. What is unclear is never a grant.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from common.approval import Statement, Word
from common.ids import ConfigHash
from common.messages import Objection
from common.policy import Approval
from hospital_node.approval.records import Records, Rejected

LEAD_S: Final = 300
"""How far a grant's time may lie ahead of the clock that reads it."""


class Said(StrEnum):
    """What one person's word is now."""

    NOTHING = "nothing"
    GRANTED = "granted"
    EXPIRED = "expired"
    DENIED = "denied"
    WITHDRAWN = "withdrawn"
    UNCLEAR = "unclear"
    """The latest record is damaged or of a time that has not come."""


class Stand(StrEnum):
    """What all of it comes to."""

    FREE = "not-needed"
    """The policy names nobody."""
    APPROVED = "approved"
    WAITING = "waiting"
    EXPIRED = "expired"
    DENIED = "denied"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Voice:
    """One person of the policy; times in Unix seconds, 0 where there is none."""

    name: str
    said: Said = Said.NOTHING
    reason: str = ""
    at: int = 0
    until: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How a study stands with the people; `until` is when an approval ends (0: no end)."""

    stand: Stand
    quorum: int = 0
    voices: tuple[Voice, ...] = ()
    until: int = 0
    objection: Objection | None = None
    """What speaks against running it, as the coordinator is told; None if nothing does."""

    @property
    def open(self) -> bool:
        """Whether the study may run."""
        return self.objection is None

    @property
    def undecided(self) -> bool:
        """Whether people can still say yes without anybody taking back a no."""
        return self.stand in (Stand.WAITING, Stand.EXPIRED)

    @property
    def granted_by(self) -> tuple[str, ...]:
        """Return who has granted it."""
        return tuple(voice.name for voice in self.voices if voice.said is Said.GRANTED)

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Return whose word is still missing; nobody's unless the study waits."""
        if not self.undecided:
            return ()
        return tuple(voice.name for voice in self.voices if voice.said is not Said.GRANTED)


FREE: Final = Standing(Stand.FREE)


def standing(approval: Approval, records: Records, digest: ConfigHash, now: int) -> Standing:
    """Return how the study of that hash stands at `now`, in Unix seconds."""
    if not approval.approvers:
        return FREE
    said = records.of(digest)
    damaged = tuple(one for one in records.rejected if one.config_hash == digest)
    voices = tuple(_voice(one.name, approval, said, damaged, now) for one in approval.approvers)
    found = Standing(Stand.APPROVED, approval.quorum, voices)
    for said_no, stand, code in (
        (Said.DENIED, Stand.DENIED, "APPROVAL_DENIED"),
        (Said.WITHDRAWN, Stand.WITHDRAWN, "APPROVAL_WITHDRAWN"),
    ):
        against = [voice for voice in voices if voice.said is said_no]
        if against:
            return _standing(found, stand, code, _against(against))
    ends = sorted((voice.until for voice in voices if voice.said is Said.GRANTED), reverse=True)
    if len(ends) >= approval.quorum:
        return Standing(Stand.APPROVED, approval.quorum, voices, ends[approval.quorum - 1])
    return _short(found)


def blocked(approval: Approval, refusal: Objection) -> Standing:
    """Return how every study stands while the folder cannot be read."""
    voices = tuple(Voice(one.name, Said.UNCLEAR) for one in approval.approvers)
    return Standing(Stand.WAITING, approval.quorum, voices, 0, refusal)


def ever_approved(approval: Approval, records: Records, digest: ConfigHash) -> int:
    """Return when a quorum had last granted the study of that hash, 0 if never.

    Whatever was said or expired since: this is for comparing a new version with it.
    """
    latest: dict[str, int] = {}
    for one in records.of(digest):
        if one.word is Word.GRANT and approval.key_of(one.name) is not None:
            latest[one.name] = one.time
    times = sorted(latest.values())
    enough = approval.approvers and len(times) >= approval.quorum
    return times[-1] if enough else 0


def _voice(
    name: str,
    approval: Approval,
    said: tuple[Statement, ...],
    damaged: tuple[Rejected, ...],
    now: int,
) -> Voice:
    own = [one for one in said if one.name == name]
    if not own:
        return Voice(name)
    last = own[-1]  # no two are of one second: they would be one file
    if last.word is not Word.GRANT:
        no = Said.DENIED if last.word is Word.DENY else Said.WITHDRAWN
        return Voice(name, no, last.reason, last.time)
    if any(one.name == name and one.time >= last.time for one in damaged):
        return Voice(name, Said.UNCLEAR, "a later record of this person's is damaged", last.time)
    if last.time > now + LEAD_S:
        return Voice(name, Said.UNCLEAR, "the grant is dated after this machine's time", last.time)
    until = min(last.expires, last.time + int(approval.expires))
    state = Said.GRANTED if now < until else Said.EXPIRED
    return Voice(name, state, last.reason, last.time, until)


def _short(found: Standing) -> Standing:
    """Too few have granted: perhaps enough had."""
    granted = len(found.granted_by)
    expired = [voice for voice in found.voices if voice.said is Said.EXPIRED]
    if expired and granted + len(expired) >= found.quorum:
        ends = ", ".join(f"{voice.name}'s on {stamp(voice.until)}" for voice in expired)
        detail = f"the approval has expired: {ends}; {found.quorum} valid grants are needed"
        return _standing(found, Stand.EXPIRED, "APPROVAL_EXPIRED", detail)
    others = ", ".join(voice.name for voice in found.voices if voice.said is not Said.GRANTED)
    detail = f"{granted} of {found.quorum} needed have approved it; it waits for {others}"
    return _standing(found, Stand.WAITING, "APPROVAL_MISSING", detail)


def _standing(found: Standing, stand: Stand, code: str, detail: str) -> Standing:
    return Standing(stand, found.quorum, found.voices, 0, Objection(code, detail[:1000]))


def _against(voices: list[Voice]) -> str:
    """Say who is against it. The reason of a withdrawal stays at the hospital."""
    words = []
    for voice in voices:
        if voice.said is Said.DENIED:
            words.append(f"denied by {voice.name} on {stamp(voice.at)}: {voice.reason}")
        else:
            words.append(f"withdrawn by {voice.name} on {stamp(voice.at)}")
    return "; ".join(words)


def stamp(unix: int) -> str:
    """Return a moment for people, to the minute."""
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%d %H:%M} UTC"
