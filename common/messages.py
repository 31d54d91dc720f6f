"""What travels beside the secure aggregation protocol: offers, decisions, releases.

`common.secagg.messages` holds the protocol's own steps. Both are domain objects:
`common.wire` is the one place that makes them from a peer's bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from common.ids import ConfigHash, Epoch, HeaderDigest, RunId, Sha256

PROTOCOL_VERSION: Final = 1
CHUNK_BYTES: Final = 1 << 20
"""Bulk data travels in pieces of 1 MiB; only the last one of a stream is shorter."""


MAX_SEEN: Final = 256
"""Runs of which one Hello tells how far they have come: open ones, then the latest."""


@dataclass(frozen=True, slots=True)
class Seen:
    """How far a run has come, as one side has it on its disk.

    `epoch` is the largest of the task (0: none), `r` the last round begun in it (0: none);
    `released`: its release is held. `next_r`: the epoch's next round; all before it are over, by
    the coordinator's word (0: it has said none).
    """

    run_id: RunId
    task: str
    epoch: int
    r: int
    released: bool
    next_r: int = 0


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a node's stream; `tasks` are those with a confirmed session.

    `seen`: how far its runs have come, by the node. A coordinator that knows of less was put
    back from an old copy.
    """

    software: str
    protocol_version: int
    tasks: tuple[str, ...]
    seen: tuple[Seen, ...] = ()


@dataclass(frozen=True, slots=True)
class Welcome:
    """The coordinator's answer to `Hello`.

    `noised`: how many opened sums with differential privacy this hospital is in, by data
    set, as the coordinator remembers: a witness for the hospital's own ledger. `seen`: how far
    the hospital itself had come, by its confirmations and uploads: a witness for its keys.
    `unix`: the coordinator's time of day, in seconds; 0 from one that does not say.
    """

    federation: str
    heartbeat_ms: int
    noised: tuple[tuple[str, int], ...] = ()
    seen: tuple[Seen, ...] = ()
    unix: int = 0


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Shows that the process, not only its kernel, is alive."""

    counter: int


@dataclass(frozen=True, slots=True)
class StudyOffer:
    """A study somebody submitted; `study` is its canonical JSON, not yet trusted.

    `signature` is its owner's over the hash, by the certificate in `cert_chain`: the
    coordinator cannot make a study in somebody's name.
    """

    run_id: RunId
    study: bytes
    config_hash: ConfigHash
    signature: bytes = b""
    cert_chain: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Objection:
    """One reason for a refusal: a catalogue name and one line for people."""

    code: str
    detail: str

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"  # `fedcare explain CODE` says more


class Verdict(StrEnum):
    """A hospital's word on an offer. WAITING: its policy allows it, its people have to answer."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class StudyDecision:
    """What a hospital says to an offer, and says anew when its people change their minds.

    `waiting_for`: the people of its policy who have yet to answer; only where it waits.
    """

    run_id: RunId
    config_hash: ConfigHash
    verdict: Verdict
    objections: tuple[Objection, ...] = ()
    waiting_for: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether the hospital takes part."""
        return self.verdict is Verdict.ACCEPTED


@dataclass(frozen=True, slots=True)
class BeginEpoch:
    """Asks an accepting node for fresh keys; times are Unix seconds."""

    run_id: RunId
    task: str
    epoch: Epoch
    not_before: int
    not_after: int


@dataclass(frozen=True, slots=True)
class ReleaseNotice:
    """A signed model release, to be fetched, verified and kept."""

    run_id: RunId
    manifest: bytes
    signature: bytes
    cert_chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ReleaseReceipt:
    """The node verified a release and keeps it durably."""

    run_id: RunId
    manifest_sha256: Sha256


@dataclass(frozen=True, slots=True)
class RunEnded:
    """A run is over; `state` is finished, failed or cancelled."""

    run_id: RunId
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class UploadStart:
    """Opens an upload stream at chunk `first_chunk`."""

    task: str
    hd: HeaderDigest
    first_chunk: int


@dataclass(frozen=True, slots=True)
class UploadChunk:
    """Chunk `index` of a masked vector: 1 MiB of little-endian words, the last one shorter."""

    index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class UploadAck:
    """The upload is durable at the coordinator."""

    hd: HeaderDigest
    ydig: Sha256


@dataclass(frozen=True, slots=True)
class DownloadChunk:
    """A piece of a stored object; `total` is the whole object's size in bytes."""

    offset: int
    total: int
    data: bytes
