"""What people see of studies and runs: plain facts, the same for screen and script.

Nothing here is confidential among the consortium: states, names, durations, digests
and pooled figures; never one hospital's count, loss or metric.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from common.ids import ConfigHash, RunId, SiteName, StudyId

APPROVAL: Final = "approval"
"""What hospitals owe while their people have yet to answer (`WaitView.what`)."""


class RunPhase(StrEnum):
    """Where a run stands; the last three are final."""

    ENROLLING = "enrolling"
    SETTING_UP = "setting-up"
    RUNNING = "running"
    RELEASING = "releasing"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen."""
        return self in (RunPhase.FINISHED, RunPhase.FAILED, RunPhase.CANCELLED)


@dataclass(frozen=True, slots=True)
class StudyView:
    """A study somebody submitted."""

    study_id: StudyId
    config_hash: ConfigHash
    title: str
    owner: str
    run_ids: tuple[RunId, ...]


@dataclass(frozen=True, slots=True)
class SiteView:
    """One hospital: what it does and what it waits for, in words for people."""

    site: SiteName
    connected: bool
    state: str
    waiting_for: str
    objection: str
    since_s: float | None = None
    """Seconds since its stream came or went; None: it was never there, or nobody asked."""
    people: tuple[str, ...] = ()
    """The hospital's approvers whose word is missing; none unless it waits for people."""


@dataclass(frozen=True, slots=True)
class RoundView:
    """One round of a run; `number` counts from 1 within the run, `seconds` is its duration."""

    number: int
    kind: str
    state: str
    survivors: tuple[SiteName, ...]
    dropped: tuple[SiteName, ...]
    seconds: float
    reason: str
    header_digest: bytes
    sum_sha256: bytes


@dataclass(frozen=True, slots=True)
class WaitView:
    """What a run waits for: of whom, since and until when in seconds from now, and what then."""

    sites: tuple[SiteName, ...]
    what: str
    since_s: float
    left_s: float | None
    """None: only the hospitals themselves end the wait."""
    then: str

    @property
    def for_people(self) -> bool:
        """Whether nothing but people's approval can end it."""
        return self.what == APPROVAL and self.left_s is None


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as its owner and the operators see it."""

    run_id: RunId
    study_id: StudyId
    state: RunPhase
    round: int
    rounds: int
    sites: tuple[SiteView, ...]
    history: tuple[RoundView, ...]
    pooled: tuple[tuple[str, float], ...]
    model_sha256: str
    reason: str
    seconds: float
    seconds_to_first_round: float
    kind: str = ""
    """Of the open or next round."""
    open_s: float | None = None
    """How long the open round has been open."""
    paused: bool = False
    wait: WaitView | None = None


@dataclass(frozen=True, slots=True)
class StatusView:
    """The coordinator on one screen."""

    federation: str
    software: str
    sites: tuple[SiteView, ...]
    runs: tuple[RunView, ...]
    uptime_s: float
