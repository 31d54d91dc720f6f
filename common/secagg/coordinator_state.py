"""What the coordinator's round machine knows and hears.

Every durable change is a fact (`common.secagg.coordinator_facts`). Who is ready and
who is away is not stored: the nodes say so again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal, TypeAlias

from common.errors import InternalError
from common.ids import ConfigHash, HeaderDigest, NodeId, RoundNo, SessionId, Sha256
from common.secagg.cover import EdgeRecord
from common.secagg.dp import DpPlan
from common.secagg.header import Header, Rounding, RoundKind
from common.secagg.keys import EdgeSeed, SelfSeed
from common.secagg.messages import (
    Certificate,
    Commit,
    Digests,
    RecoverShares,
    Release,
    UploadEnd,
)
from common.secagg.setup_state import (
    Deadline,
    From,
    MemberBack,
    Restarted,
    SessionState,
)

_NO_HEADER: Final = HeaderDigest(b"")


@dataclass(frozen=True, slots=True)
class SessionView:
    """What a round needs of its session: the confirmed members and their keys."""

    session_id: SessionId
    config_hash: ConfigHash
    keys: tuple[tuple[NodeId, bytes], ...]

    @classmethod
    def of(cls, state: SessionState) -> SessionView:
        """Return the view of a ready session.

        Raises:
            InternalError: the session has no roster yet.
        """
        if state.session_id is None:
            raise InternalError("a round needs a session whose roster is fixed")
        keys = tuple((node, state.keys[node]) for node in state.confirmed)
        return cls(state.session_id, state.terms.config_hash, keys)


class RoundPhase(StrEnum):
    """The states of section 5."""

    COLLECTING = "collecting"
    RUNNING = "running"
    PROPOSED = "proposed"
    CERTIFIED = "certified"
    RECOVERING = "recovering"
    OPENED = "opened"
    CLOSED = "closed"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """A complete, signed upload; its words lie in the driver's spool."""

    sender: NodeId
    end: UploadEnd


@dataclass(frozen=True, slots=True)
class DoubleCommit:
    """Two different commits of one node in one round."""

    node: NodeId
    first: Commit
    second: Commit


@dataclass(frozen=True, slots=True)
class RecoveredSecrets:
    """A silent survivor's self seed and pair seeds towards U minus S."""

    node: NodeId
    b: SelfSeed
    edges: tuple[tuple[NodeId, EdgeSeed], ...]


@dataclass(frozen=True, slots=True)
class RoundState:
    """One round. `header` and `hd` exist from RUNNING on."""

    session: SessionView
    r: RoundNo
    edges: EdgeRecord
    """The epoch's bad edges, this round's included; the next round begins with it."""
    phase: RoundPhase = RoundPhase.COLLECTING
    header: Header | None = None
    hd: HeaderDigest = _NO_HEADER
    uploads: tuple[StoredUpload, ...] = ()
    digests: Digests = ()
    """S, from PROPOSED on."""
    commits: tuple[tuple[NodeId, Commit], ...] = ()
    evidence: tuple[DoubleCommit, ...] = ()
    certificate: Certificate | None = None
    releases: tuple[tuple[NodeId, Release], ...] = ()
    shares: tuple[tuple[NodeId, RecoverShares], ...] = ()
    recovered: tuple[RecoveredSecrets, ...] = ()
    sum_sha256: bytes = b""
    model_sha256: bytes = b""
    reason: str = ""
    ready: tuple[tuple[NodeId, bytes], ...] = field(default=(), compare=False)
    """Last nonce of each ready node; not stored."""
    gone: frozenset[NodeId] = field(default=frozenset(), compare=False)
    """Away for longer than the grace period; may come back. Not stored."""
    left: frozenset[NodeId] = field(default=frozenset(), compare=False)
    """Refused this round for good. Not stored."""

    @property
    def survivors(self) -> tuple[NodeId, ...]:
        """S, sorted."""
        return tuple(node for node, _ in self.digests)


# --- events ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RoundTerms:
    """The header without what the machine fills in: n, q, t_h, kappa and the nonces."""

    kind: RoundKind
    model_sha256: Sha256
    layout_sha256: Sha256
    d: int
    c: int
    ranges: tuple[float | Literal["count"], ...]
    """`count` stands for R = B."""
    w_max: int
    deadline_ms: int
    s_min: int = 0
    """At least; never below the rule of section 1."""
    w: int = 32
    rounding: Rounding | None = None
    """None: the rule of section 7.2."""
    dp: DpPlan | None = None
    """None: no differential privacy."""


@dataclass(frozen=True, slots=True)
class OpenRound:
    """Start the round with these ready nodes as U."""

    terms: RoundTerms
    members: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class UploadReceived:
    """A whole upload is in the spool and durable; what the driver measured of it."""

    sender: NodeId
    end: UploadEnd
    ydig: Sha256
    size_bytes: int


@dataclass(frozen=True, slots=True)
class MemberGone:
    """A node's stream was lost for longer than the grace period."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class NonceLost:
    """A member has lost the nonce that the header carries, and another header is to be made."""


@dataclass(frozen=True, slots=True)
class SumOpened:
    """The sum is in range and the next model (if any) durable; `model_sha256` may be empty."""

    sum_sha256: Sha256
    model_sha256: bytes


@dataclass(frozen=True, slots=True)
class SumOutOfRange:
    """A word of the opened sum lies outside its bound."""


RoundEvent: TypeAlias = (
    From
    | OpenRound
    | UploadReceived
    | MemberGone
    | MemberBack
    | NonceLost
    | Deadline
    | SumOpened
    | SumOutOfRange
    | Restarted
)
