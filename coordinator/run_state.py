"""What a run's machine knows, hears and asks for.

A run takes one study from offer to released model. Around the two protocol machines of
`common.secagg` (an epoch's set-up, a round) it decides who takes part, which round
comes next and when the run is over. Durable changes are facts, wrapped here so that one
ordered list of facts per run tells everything; `coordinator.run` is the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from common.events import Event
from common.ids import ConfigHash, Epoch, HeaderDigest, NodeId, RoundNo, RunId, Sha256
from common.messages import Objection
from common.secagg import codec
from common.secagg.coordinator_facts import RoundFact
from common.secagg.coordinator_session import FIRST_ROUND, SessionFact, SessionState
from common.secagg.coordinator_state import DoubleCommit, RoundState
from common.secagg.cover import EdgeRecord
from common.secagg.header import Header
from common.secagg.masking import OpeningPlan
from common.secagg.messages import Ready, UploadEnd
from common.study import Study
from common.views import RunPhase
from common.wire import CoordinatorStep, NodeStep

FACT_SCHEMA: Final = "fedcare.run-fact/1"
NO_DISPUTES: Final = EdgeRecord()


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model on disk: its file's address, its protocol digest, and how far it just moved.

    `rms` holds, per tensor, what the next round's ranges follow from
    (`common.layouts.header_ranges`). `kept_sha256` is the address of what only the coordinator
    has behind it: the float32 values of a model that travels in half precision, or a
    regression's fit. `moments_sha256` is that of what a server optimiser remembers with it
    (`coordinator.aggregate`). `finished`: no further training round would change it.
    """

    object_sha256: Sha256
    model_sha256: Sha256
    rms: tuple[float, ...] = ()
    kept_sha256: Sha256 | None = field(default=None, metadata=codec.added())
    finished: bool = field(default=False, metadata=codec.added())
    moments_sha256: Sha256 | None = field(default=None, metadata=codec.added())

    @property
    def addresses(self) -> tuple[Sha256, ...]:
        """Every file of it."""
        others = (self.kept_sha256, self.moments_sha256)
        return (self.object_sha256, *(other for other in others if other is not None))


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """How one round ended; the released manifest carries these as a chain.

    `position` counts the run's rounds from 1 (a voided round keeps its position, the
    next try has the same), `r` the session's.
    """

    position: int
    kind: str
    r: RoundNo
    hd: bytes
    opened: bool
    survivors: tuple[NodeId, ...]
    dropped: tuple[NodeId, ...]
    sum_sha256: bytes
    model_sha256: bytes
    seconds: float
    reason: str
    ended_unix: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What a hospital said to the study."""

    accepted: bool
    objections: tuple[Objection, ...]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Whose approval a hospital waits for, by their names in its policy, and why."""

    people: tuple[str, ...]
    objections: tuple[Objection, ...]


# --- facts ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decided:
    """A hospital accepted or refused."""

    node: NodeId
    decision: Decision


@dataclass(frozen=True, slots=True)
class TakenBack:
    """A hospital that had decided waits for its people again: its approval ran out, say."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Withdrew:
    """A hospital that had accepted refuses from now on; it goes on the model's card.

    `after_round`: the last round that had closed by then, 0 for none; `unix`: when.
    """

    node: NodeId
    after_round: int
    unix: float


@dataclass(frozen=True, slots=True)
class SessionStep:
    """A fact of an epoch's set-up; `SessionOpened` begins a new epoch."""

    fact: SessionFact


@dataclass(frozen=True, slots=True)
class RoundStep:
    """A fact of the round with number `r` of the live session."""

    r: RoundNo
    fact: RoundFact


@dataclass(frozen=True, slots=True)
class ModelMade:
    """The first model of a study without a statistics round."""

    model: ModelRef


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """A round was opened, and the run goes on behind it, or was voided.

    `model` is the model that the next round begins with; `pooled` are the metrics an
    evaluate round gave.
    """

    record: RoundRecord
    model: ModelRef | None
    pooled: tuple[tuple[str, float], ...]
    evaluation: str = ""
    """`evaluation.json` of the release (`common.evaluation_document`), empty for none."""
    signed: tuple[NodeId, ...] = field(default=(), metadata=codec.added())
    """The set that was proposed in a voided round without noise: some may have signed it."""
    signers: tuple[NodeId, ...] = field(default=(), metadata=codec.added())
    """Those of them whose signature has come."""


@dataclass(frozen=True, slots=True)
class Witnessed:
    """Two commits of one hospital in one round, both signed: kept for good (section 12)."""

    evidence: DoubleCommit


@dataclass(frozen=True, slots=True)
class Released:
    """The signed release is in the store."""

    manifest_sha256: Sha256


@dataclass(frozen=True, slots=True)
class Received:
    """A hospital verified the release and keeps it."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class HistoryLost:
    """A person ordered to go on although hospitals had seen more of this run: a new epoch begins.

    `unix`: when; `reason`: in the person's words.
    """

    reason: str
    unix: float


@dataclass(frozen=True, slots=True)
class AgreedLifted:
    """A person ordered not to wait for the set that was signed any longer (section 10.4)."""

    nodes: tuple[NodeId, ...]
    reason: str
    unix: float


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing more will happen. `unix`: when, in seconds since 1970."""

    phase: RunPhase
    reason: str
    unix: float = 0.0


RunFact: TypeAlias = (
    Decided
    | TakenBack
    | Withdrew
    | SessionStep
    | RoundStep
    | ModelMade
    | RoundEnded
    | Witnessed
    | Released
    | Received
    | HistoryLost
    | AgreedLifted
    | Ended
)


def encode_fact(fact: RunFact) -> bytes:
    """Return a fact as JSON for the store."""
    return codec.encode(FACT_SCHEMA, RunFact, fact)


def decode_fact(data: bytes) -> RunFact:
    """Return the fact that `encode_fact` wrote.

    Raises:
        StateError: STATE_DAMAGED.
    """
    fact: RunFact = codec.decode(FACT_SCHEMA, RunFact, data)
    return fact


# --- state ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """A timer that runs: from when until when, in monotonic seconds."""

    since: float
    until: float


@dataclass(frozen=True, slots=True)
class RunState:
    """One run. What stands after `connected` is not stored: nodes and timers say it again."""

    run_id: RunId
    study: Study
    config_hash: ConfigHash
    federation: str
    roster: tuple[NodeId, ...]
    """Every member of the federation, sorted; `c` is counted over these."""
    signature: bytes = b""
    """The owner's, over `config_hash`."""
    cert_chain: tuple[bytes, ...] = ()
    """The owner's certificates, DER, leaf first."""
    phase: RunPhase = RunPhase.ENROLLING
    decisions: tuple[tuple[NodeId, Decision], ...] = ()
    decided: tuple[NodeId, ...] = ()
    """Who said so, once for each change of mind."""
    withdrawn: tuple[Withdrew, ...] = ()
    """The latest withdrawal of each hospital that ever withdrew, also if it came back."""
    session: SessionState | None = None
    next_r: RoundNo = FIRST_ROUND
    edges: EdgeRecord = NO_DISPUTES
    """The epoch's bad edges after the last round."""
    round: RoundState | None = None
    last_round: RoundState | None = None
    """The epoch's last ended round, for hospitals that missed how it ended."""
    position: int = 0
    """Rounds done; the next one is number `position + 1`."""
    model: ModelRef | None = None
    history: tuple[RoundRecord, ...] = ()
    agreed: tuple[NodeId, ...] = ()
    """The set that hospitals may have signed for this position's model in a round that was
    voided; they sign only it again (protocol, section 10.4). Empty: there is none."""
    signers: tuple[NodeId, ...] = ()
    """Hospitals of that set, or of `lifted`, whose signature has come; others may have signed."""
    lifted: tuple[NodeId, ...] = ()
    """That set, once a person has ordered not to wait for it, until a round is opened."""
    pooled: tuple[tuple[str, float], ...] = ()
    evaluation: str = ""
    released: Sha256 | None = None
    receipts: frozenset[NodeId] = frozenset()
    evidence: tuple[DoubleCommit, ...] = ()
    reason: str = ""
    ended_unix: float | None = None

    waiting: tuple[tuple[NodeId, Waiting], ...] = field(default=(), compare=False)
    """Hospitals whose people have yet to answer; each says so again when it connects."""
    connected: frozenset[NodeId] = field(default=frozenset(), compare=False)
    timers: Mapping[str, Span] = field(default_factory=dict, compare=False)
    """The timers that run, by name."""
    paused: bool = field(default=False, compare=False)
    """Too few hospitals were there for an epoch; it is tried again."""
    stage: tuple[object, ...] = field(default=(), compare=False)
    stage_since: float = field(default=0.0, compare=False)
    """What the run waits in (`coordinator.waits`), and since when in monotonic seconds."""
    sitting_out: frozenset[NodeId] = field(default=frozenset(), compare=False)
    """Left out of the next epoch or cohort until they come back."""
    without_keys: frozenset[NodeId] = field(default=frozenset(), compare=False)
    """Connected members that hold no key of the live session."""
    early: tuple[tuple[NodeId, Ready], ...] = field(default=(), compare=False)
    """Hospitals that were ready before the next round began to collect."""
    round_began: float = field(default=0.0, compare=False)
    """Monotonic seconds at which the open round's header was sent."""
    epoch_asked: bool = field(default=False, compare=False)
    model_asked: bool = field(default=False, compare=False)
    """The first model is being made."""
    rejoin_pause: float = field(default=0.0, compare=False)
    """Seconds after the last epoch that was for joiners; 0 since a round was opened."""
    rejoin_at: float = field(default=0.0, compare=False)
    """Monotonic seconds before which there is no further one."""
    trouble: tuple[tuple[NodeId, str], ...] = field(default=(), compare=False)
    """The last refusal each hospital reported, for people."""

    @property
    def accepted(self) -> frozenset[NodeId]:
        """Hospitals that accepted the study."""
        return frozenset(node for node, said in self.decisions if said.accepted)

    @property
    def refused(self) -> frozenset[NodeId]:
        """Hospitals that refused it."""
        return frozenset(node for node, said in self.decisions if not said.accepted)

    @property
    def undecided(self) -> frozenset[NodeId]:
        """Hospitals that have not said yes or no; some of them wait for their people."""
        return frozenset(self.roster) - self.accepted - self.refused


# --- events ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """The run was submitted, or its coordinator restarted: do what comes next."""


@dataclass(frozen=True, slots=True)
class NodeConnected:
    """A hospital's stream is up; `has_keys`: it holds a confirmed session of the task.

    `named`: its Hello names the run, among the latest that it accepted.
    """

    node: NodeId
    has_keys: bool
    named: bool = False


@dataclass(frozen=True, slots=True)
class NodeLost:
    """A hospital's stream ended. The round's deadline, not this, decides what follows."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class FromNode:
    """A step an authenticated hospital sent."""

    node: NodeId
    step: NodeStep


@dataclass(frozen=True, slots=True)
class UploadComplete:
    """A whole upload is durable in the spool; `ydig` and `size_bytes` as measured."""

    node: NodeId
    end: UploadEnd
    ydig: Sha256
    size_bytes: int


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer of this machine ran out."""

    name: str


@dataclass(frozen=True, slots=True)
class EpochReserved:
    """The store gave an epoch number that was never used."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class FirstModelMade:
    """The first model is durable."""

    model: ModelRef


@dataclass(frozen=True, slots=True)
class SumUsed:
    """The sum was opened, was in range, and what follows from it is durable."""

    hd: HeaderDigest
    sum_sha256: Sha256
    model: ModelRef | None
    pooled: tuple[tuple[str, float], ...]
    evaluation: str = ""


@dataclass(frozen=True, slots=True)
class SumRefused:
    """The opened sum was out of range; nothing of it was used."""

    hd: HeaderDigest


@dataclass(frozen=True, slots=True)
class ReleaseMade:
    """The release is signed and in the store."""

    manifest_sha256: Sha256


@dataclass(frozen=True, slots=True)
class Cancel:
    """A person ends the run; `reason` says who and why."""

    reason: str


RunEvent: TypeAlias = (
    Begin
    | NodeConnected
    | NodeLost
    | FromNode
    | UploadComplete
    | TimerFired
    | EpochReserved
    | FirstModelMade
    | SumUsed
    | SumRefused
    | ReleaseMade
    | Cancel
)


@dataclass(frozen=True, slots=True)
class At:
    """A moment in monotonic seconds; the driver knows what the clock on the wall says then."""

    moment: float


Shown: TypeAlias = str | int | float | tuple[str, ...] | At | None
"""What a log line may show."""

# --- commands -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """Make the fact durable before any command after this one."""

    fact: RunFact


@dataclass(frozen=True, slots=True)
class Send:
    """Send a step to a hospital; dropped if it is away."""

    to: NodeId
    step: CoordinatorStep


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Say `TimerFired(name)` after so many seconds; a running one of that name restarts."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class AckUpload:
    """Answer an upload: it is durable and counted."""

    to: NodeId
    hd: HeaderDigest


@dataclass(frozen=True, slots=True)
class ReserveEpoch:
    """Reserve an epoch number durably; answer with `EpochReserved`."""


@dataclass(frozen=True, slots=True)
class MakeFirstModel:
    """Make the first model; answer with `FirstModelMade`."""


@dataclass(frozen=True, slots=True)
class OpenSum:
    """Open the sum and use it; answer with `SumUsed` or `SumRefused`.

    `hospitals`: how many take part in the run, in this round or not.
    """

    header: Header
    survivors: tuple[NodeId, ...]
    plan: OpeningPlan
    model: ModelRef | None
    hospitals: int


@dataclass(frozen=True, slots=True)
class DropSpool:
    """The round is over: its uploads can go."""

    hd: HeaderDigest


@dataclass(frozen=True, slots=True)
class MakeRelease:
    """Sign and store the release; answer with `ReleaseMade`."""


@dataclass(frozen=True, slots=True)
class SendRelease:
    """Send the stored release to a hospital."""

    to: NodeId


@dataclass(frozen=True, slots=True)
class Tell:
    """Something an operator wants to read: an event of the catalogue with its fields."""

    event: Event
    fields: tuple[tuple[str, Shown], ...] = ()
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over."""

    phase: RunPhase


RunCommand: TypeAlias = (
    Record
    | Send
    | StartTimer
    | AckUpload
    | ReserveEpoch
    | MakeFirstModel
    | OpenSum
    | DropSpool
    | MakeRelease
    | SendRelease
    | Tell
    | Finish
)
