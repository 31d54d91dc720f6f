"""The hospital's own floors, held against every header before anything else is believed.

A study was judged by the same policy when it was offered, so an honest coordinator never
meets these refusals. They are here because the header is what really happens: whoever
writes it chooses every number of the round, and none may fall below what the hospital's
file says, whatever a study, a session or a coordinator claims (sections 1 and 10.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from common.errors import Refusal
from common.secagg.dp import DpMode
from common.secagg.header import Header, RoundKind
from common.secagg.keys import Suite
from common.secagg.params import DEFAULT_MIN_COHORT
from common.secagg.ring import word_bytes

_TWO_PARTY: Final = 2


class WorkingHours(Protocol):
    """When rounds may begin; `common.hours.Hours` is one."""

    def closed(self, unix: float) -> str | None:
        """Return None while rounds may begin, else what to say about it."""
        ...


@dataclass(frozen=True, slots=True)
class NodeRules:
    """The hospital's own floors (section 10.1); the coordinator can lower none.

    `where` says for a key of the policy in which file and line it stands, for refusals.
    """

    colluders: int
    min_cohort: int = DEFAULT_MIN_COHORT
    s_min: int = 0
    allow_two_party: bool = False
    ring_bits: frozenset[int] = frozenset((32, 64))
    suites: frozenset[Suite] = frozenset(Suite)
    dp_modes: frozenset[DpMode] = frozenset(DpMode)
    min_z: float = 0.0
    max_clip: float = math.inf
    max_upload_bytes: int = 1 << 40
    max_deadline_ms: int = 7 * 86_400_000
    hours: WorkingHours | None = None
    where: Mapping[str, str] = field(default_factory=dict, repr=False)

    def cite(self, key: str) -> str:
        """Return where a rule stands, for the end of a message."""
        place = self.where.get(key)
        return f"({key})" if place is None else f"({place}: {key})"

    def refuse(self, code: str, found: str, key: str) -> Refusal:
        """Return the refusal of a header that breaks the rule `key`."""
        return Refusal(code, f"{found} {self.cite(key)}")


def check_hours(rules: NodeRules, now_unix: int) -> None:
    """Refuse to begin a round outside the hospital's hours.

    Raises:
        Refusal: POLICY_HOURS, saying when the next window opens.
    """
    closed = None if rules.hours is None else rules.hours.closed(now_unix)
    if closed is not None:
        raise rules.refuse("POLICY_HOURS", closed, "hours")


def check_floors(header: Header, rules: NodeRules, suite: Suite) -> None:
    """Refuse a header below any floor of the hospital; `suite` is the session's.

    Raises:
        Refusal: COHORT_SMALL, QUORUM_RULE, SMIN_RULE, HEADER_FORM (ring, suite), DP_WEAK or
            POLICY_LIMITS, with both numbers and the policy's line.
    """
    _check_crowd(header, rules)
    if header.w not in rules.ring_bits:
        raise rules.refuse("HEADER_FORM", f"w={header.w} is not allowed", "allow.ring_bits")
    if suite not in rules.suites:
        raise rules.refuse("HEADER_FORM", f"suite {suite} is not allowed", "allow.suites")
    _check_privacy(header, rules)
    size = header.d * word_bytes(header.w)
    if size > rules.max_upload_bytes:
        raise rules.refuse(
            "POLICY_LIMITS",
            f"an upload of {size} bytes is above {rules.max_upload_bytes}",
            "limits.upload_bytes",
        )
    if header.deadline_ms > rules.max_deadline_ms:
        raise rules.refuse(
            "POLICY_LIMITS",
            f"a deadline of {header.deadline_ms} ms is above {rules.max_deadline_ms} ms",
            "limits.round_deadline",
        )


def _check_crowd(header: Header, rules: NodeRules) -> None:
    if header.n < rules.min_cohort:
        found = f"n={header.n} is below {rules.min_cohort}"
        raise rules.refuse("COHORT_SMALL", found, "require.min_cohort")
    if header.n == _TWO_PARTY and not rules.allow_two_party:
        found = "n=2: each of two can compute the other's update"
        raise rules.refuse("COHORT_SMALL", found, "require.allow_two_party")
    if header.c < rules.colluders:
        found = f"c={header.c} is below {rules.colluders}"
        raise rules.refuse("QUORUM_RULE", found, "require.colluders")
    if header.s_min < rules.s_min:
        found = f"s_min={header.s_min} is below {rules.s_min}"
        raise rules.refuse("SMIN_RULE", found, "require.min_sites")


def _check_privacy(header: Header, rules: NodeRules) -> None:
    terms = header.dp
    if terms.mode not in rules.dp_modes:
        raise rules.refuse("DP_WEAK", f"dp mode {terms.mode} is not allowed", "require.dp.modes")
    if terms.mode is DpMode.NONE:
        return
    if terms.z < rules.min_z:
        found = f"z={terms.z:g} is below {rules.min_z:g}"
        raise rules.refuse("DP_WEAK", found, "require.dp.min_noise_multiplier")
    # A figure's C is no one's choice: it is the longest vector there is (9.5).
    if terms.clip > rules.max_clip and header.kind is RoundKind.TRAIN:
        found = f"C={terms.clip:g} is above {rules.max_clip:g}"
        raise rules.refuse("DP_WEAK", found, "require.dp.max_clip")
