"""Every event a log line may name: what it tells, who writes it, at which level, with which fields.

Closed: `common.logs` takes an `Event` and nothing else, so a name that is not here
cannot be logged, and `docs/events.md` is made from this table. Names are `subject.what`.
Fields are closed too: `common.event_fields` says what each means, an event's `fields` which of
them it may have, and tests hold the code to it. A field with nothing to say is left out.
A line's fields never hold patient values, tensor values, one hospital's counts or losses,
secrets, file paths of data or tracebacks from another machine (`FORBIDDEN_FIELDS`).
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal, Self

By = Literal["coordinator", "node", "both"]
"""Who writes an event."""

_ERROR: Final = "code name detail"
"""What an error of the catalogue shows of itself."""

_CONFINED: Final = (
    "capabilities core_dumps debugger mode no_new_privileges read_only_root seccomp user weak"
)


class Event(Enum):
    """An event id; `value` is its name in the log."""

    meaning: str
    """One line for the runbook."""
    by: By
    level: str
    fields: tuple[str, ...]

    def __new__(cls, name: str, by: By, level: str, fields: str, meaning: str) -> Self:
        """Keep the rest beside the name; `fields` are names with blanks between."""
        member = object.__new__(cls)
        member._value_ = name
        member.meaning = meaning
        member.by = by
        member.level = level
        member.fields = tuple(fields.split())
        return member

    # --- processes
    SERVICE_STARTED = (
        "service.started",
        "both",
        "info",
        "site address http software version",
        "A coordinator or node is up; says its version and address.",
    )
    SERVICE_FAILED = (
        "service.failed",
        "both",
        "error",
        f"site {_ERROR} fix",
        "It cannot start, or cannot go on: says why and what to do. The process ends.",
    )
    SERVICE_STOPPING = (
        "service.stopping",
        "both",
        "info",
        "site detail",
        "The process was asked to stop and finishes open writes; says what it does not wait for.",
    )
    SERVICE_DRAINING = (
        "service.draining",
        "both",
        "info",
        "site",
        "The process was asked to drain: no further round; it stops when the open ones are over.",
    )
    SERVICE_STOPPED = (
        "service.stopped",
        "both",
        "info",
        "site",
        "The process ended in order.",
    )
    PROCESS_CONFINEMENT = (
        "process.confinement",
        "both",
        "info",
        f"site {_CONFINED}",
        "How the process is confined: user, capabilities, file system, core dumps.",
    )
    STATE_RECOVERED = (
        "state.recovered",
        "both",
        "info",
        "study run round site phase",
        "Durable state was read after a restart; says what goes on.",
    )
    STATE_FAILED = (
        "state.failed",
        "both",
        "warning",
        f"study run round site {_ERROR}",
        "State on disk could not be read or written.",
    )
    STATE_ROOM = (
        "state.room",
        "coordinator",
        "info",
        "seconds",
        "The disk has room again; all that waited for it is written.",
    )
    HISTORY_BACK = (
        "history.back",
        "coordinator",
        "warning",
        f"study run site {_ERROR}",
        "A hospital has seen more than the store knows of: no round begins until a person decides.",
    )
    LOSS_ACCEPTED = (
        "loss.accepted",
        "both",
        "warning",
        "study run site reason people meaning",
        "A person ordered to go on with older state, or to forget a set that was agreed on.",
    )
    INTERNAL_ERROR = (
        "internal.error",
        "both",
        "warning or error",
        f"study run round site {_ERROR} incident kind method peer",
        "Something that should not be possible; please report it.",
    )
    LIBRARY_MESSAGE = (
        "library.message",
        "both",
        "warning or error",
        "site library text",
        "A library's own warning, in its words, cut to one line.",
    )
    CLOCK_SET = (
        "clock.set",
        "both",
        "warning",
        "site by_s then",
        "The clock of the day was set by so many seconds, back if below 0; lines stay in order.",
    )
    CLOCK_OFF = (
        "clock.off",
        "node",
        "warning",
        "site by_s detail",
        "The clock of the day differs from the coordinator's; ahead if above 0.",
    )
    LOG_SUPPRESSED = (
        "log.suppressed",
        "both",
        "warning",
        "site lines of peer since",
        "Lines that a peer provoked too often were left out; says how many of which.",
    )

    # --- connections
    LINK_CONNECTED = (
        "link.connected",
        "both",
        "info",
        "study run round site away_s then version what",
        "A node and the coordinator have a live stream; says how long it was away.",
    )
    LINK_LOST = (
        "link.lost",
        "both",
        "info or warning",
        f"study run round site {_ERROR} reason then until what",
        "The stream ended; the node dials again. In an open round: what the round does now.",
    )
    LINK_REPLACED = (
        "link.replaced",
        "coordinator",
        "info or warning",
        "site at heard_s then was",
        "A hospital opened a stream before its former one was missed; the newer one stands.",
    )
    LINK_RETRYING = (
        "link.retrying",
        "node",
        "warning",
        f"site attempts {_ERROR}",
        "The node dials again now; says how often it has tried.",
    )
    CALL_REFUSED = (
        "call.refused",
        "both",
        "warning",
        f"study run round site {_ERROR} method peer",
        "A peer's call was refused before it had any effect.",
    )
    CALL_FAILED = (
        "call.failed",
        "node",
        "warning",
        f"site {_ERROR}",
        "A call ended with an error of the catalogue.",
    )

    # --- studies and runs
    STUDY_SUBMITTED = (
        "study.submitted",
        "coordinator",
        "info",
        "study run",
        "A researcher submitted a study; it is put before the hospitals' policies.",
    )
    STUDY_ACCEPTED = (
        "study.accepted",
        "both",
        "info or warning",
        "study run site config_hash meaning",
        "A hospital's policy, and at the coordinator its people, allow the study; or a warning.",
    )
    STUDY_REFUSED = (
        "study.refused",
        "both",
        "warning",
        f"study run round site {_ERROR} reasons",
        "A hospital's policy refuses the study; says the policy line.",
    )
    STUDY_WAITING = (
        "study.waiting",
        "both",
        "info",
        f"study run site {_ERROR} people",
        "A hospital's policy allows the study, and people that it names have yet to approve it.",
    )
    STUDY_APPROVED = (
        "study.approved",
        "node",
        "info",
        "study run site config_hash people until",
        "The people that the policy names have approved the study; says who, and for how long.",
    )
    STUDY_DENIED = (
        "study.denied",
        "both",
        "warning",
        f"study run site {_ERROR}",
        "Somebody that the hospital's policy names has denied the study; says the reason.",
    )
    STUDY_WITHDRAWN = (
        "study.withdrawn",
        "both",
        "warning",
        f"study run round site {_ERROR}",
        "A hospital takes back its consent: it takes part in no further round of the study.",
    )
    APPROVAL_REFUSED = (
        "approval.refused",
        "node",
        "warning",
        f"site {_ERROR}",
        "A record in the folder of approvals does not count; says which and why.",
    )
    RUN_STARTED = (
        "run.started",
        "coordinator",
        "info",
        "study run sites",
        "Enough hospitals accepted; rounds begin.",
    )
    RUN_PAUSED = (
        "run.paused",
        "coordinator",
        "warning",
        "study run need people present seconds since then until waiting_for",
        "Too few hospitals are connected: says whom the run waits for and how many it needs.",
    )
    RUN_FINISHED = (
        "run.finished",
        "both",
        "info",
        "study run round site reason",
        "The last round closed and the model is published.",
    )
    RUN_FAILED = (
        "run.failed",
        "both",
        "info or warning",
        "study run round site reason",
        "The run ended without a model; says why.",
    )
    RUN_CANCELLED = (
        "run.cancelled",
        "both",
        "info or warning",
        "study run round site reason",
        "A person cancelled the run.",
    )

    # --- epochs of secure aggregation
    SESSION_OPENED = (
        "session.opened",
        "coordinator",
        "info",
        "study run epoch sites",
        "Key adverts are collected for a new epoch.",
    )
    SESSION_READY = (
        "session.ready",
        "both",
        "info or warning",
        "study run round site epoch meaning others sites two_party",
        "All members confirmed their pair keys; rounds may open.",
    )
    SESSION_FAILED = (
        "session.failed",
        "coordinator",
        "warning",
        "study run missing reason",
        "The epoch could not be set up; says who was missing. A new one follows.",
    )

    # --- rounds
    ROUND_OPENED = (
        "round.opened",
        "coordinator",
        "info",
        "study run round cohort deadline_s kind needs of quorum",
        "A header was fixed and sent; says cohort, quorum and deadline.",
    )
    ROUND_WAITING = (
        "round.waiting",
        "coordinator",
        "info",
        "study run round people seconds since then until waiting_for what",
        "Says for whom, since when, until when, and what happens then.",
    )
    ROUND_TRAINING = (
        "round.training",
        "node",
        "info",
        "study run round site kind members",
        "This hospital trains on the header's model.",
    )
    TRAINING_RESUMED = (
        "training.resumed",
        "node",
        "info",
        "study run round site",
        "This hospital's training of the round goes on from its last checkpoint.",
    )
    CHECKPOINT_IGNORED = (
        "checkpoint.ignored",
        "node",
        "warning",
        f"study run round site {_ERROR}",
        "A checkpoint of training cannot be used or written; the round is trained without it.",
    )
    ROUND_PROPOSED = (
        "round.proposed",
        "coordinator",
        "info",
        "study run round dropped seconds survivors",
        "Uploads are in; the survivor set is put to the hospitals.",
    )
    ROUND_CERTIFIED = (
        "round.certified",
        "coordinator",
        "info",
        "study run round seconds signed",
        "A quorum signed; the certificate goes to the hospitals.",
    )
    ROUND_RECOVERING = (
        "round.recovering",
        "coordinator",
        "warning",
        "study run round seconds waiting_for",
        "A silent survivor's secret is recovered from helpers.",
    )
    ROUND_SUMMED = (
        "round.summed",
        "coordinator",
        "info",
        "study run round seconds",
        "The sum was opened and lies within its bound.",
    )
    ROUND_CLOSED = (
        "round.closed",
        "both",
        "info",
        "study run round site dropped kind seconds status survivors",
        "The round is over and its keys are erased.",
    )
    ROUND_VOIDED = (
        "round.voided",
        "coordinator",
        "warning",
        "study run round kind reason seconds",
        "The round ended below its quorum; the model is unchanged and the round is tried again.",
    )
    MEMBER_GONE = (
        "member.gone",
        "both",
        "warning",
        f"study run round site sites {_ERROR} then",
        "A hospital is out of this round; the others go on if they are enough.",
    )
    PROTOCOL_REFUSED = (
        "protocol.refused",
        "both",
        "warning",
        f"study run round site sites {_ERROR} kind",
        "A step was refused by a rule of the protocol; says which.",
    )
    EVIDENCE_STORED = (
        "evidence.stored",
        "coordinator",
        "warning",
        "study run site",
        "Two commits of one hospital for one round: kept as proof.",
    )

    # --- bulk data and models
    UPLOAD_STARTED = (
        "upload.started",
        "node",
        "info",
        "study run round site kind trained_s",
        "A masked vector is on its way.",
    )
    UPLOAD_RESUMED = (
        "upload.resumed",
        "node",
        "info",
        "study run round site chunk",
        "An upload goes on where it broke off: with this chunk of 1 MiB.",
    )
    UPLOAD_FINISHED = (
        "upload.finished",
        "both",
        "info",
        "study run round site bytes seconds",
        "A masked vector arrived whole and its digest fits.",
    )
    DOWNLOAD_FINISHED = (
        "download.finished",
        "node",
        "info",
        "study run round site bytes",
        "A model arrived whole and its digest fits.",
    )
    MODEL_PUBLISHED = (
        "model.published",
        "coordinator",
        "info",
        "study run manifest",
        "A signed release is ready for hospitals and researchers.",
    )
    MODEL_ACCEPTED = (
        "model.accepted",
        "node",
        "info or warning",
        f"run site model_sha256 {_ERROR}",
        "This node verified and kept a release. With a code: its own report could not be made.",
    )
    MODEL_PERSONAL = (
        "model.personal",
        "node",
        "info or warning",
        f"run site kind {_ERROR}",
        "This node made its own model of a release: says which kind. With a code: it could not.",
    )
    MODEL_REFUSED = (
        "model.refused",
        "node",
        "warning",
        f"study run round site {_ERROR}",
        "A model did not verify; says which check.",
    )


EVENTS: Final = {event.value: event for event in Event}
"""The catalogue by name."""

LIMITED: Final = frozenset(
    {
        Event.APPROVAL_REFUSED,
        Event.CALL_FAILED,
        Event.CALL_REFUSED,
        Event.INTERNAL_ERROR,
        Event.LIBRARY_MESSAGE,
        Event.LINK_CONNECTED,
        Event.LINK_LOST,
        Event.LINK_REPLACED,
        Event.LINK_RETRYING,
        Event.MODEL_REFUSED,
        Event.PROTOCOL_REFUSED,
        Event.STATE_FAILED,
        Event.STUDY_DENIED,
        Event.STUDY_REFUSED,
        Event.STUDY_WAITING,
        Event.STUDY_WITHDRAWN,
    }
)
"""What a peer, or a fault that repeats itself, can provoke as often as it likes.

The log writes a few of these lines a minute for each peer and counts the rest
(`common.log_limit`). Lines of rounds and runs are never left out.
"""

FIRST_FIELDS: Final = ("study", "run", "round", "site")
"""Fields that stand first, in this order; all others follow by alphabet."""

FORBIDDEN_FIELDS: Final = frozenset(
    {
        "accuracy", "auroc", "brier", "count", "counts", "gradient", "key", "label", "labels",
        "log_loss", "loss", "losses", "mask", "metric", "metrics", "n_samples", "password",
        "path", "patient", "private_key", "row", "rows", "samples", "secret", "seed", "share",
        "tensor", "token", "traceback", "update", "value", "values", "vector", "weight",
    }
)  # fmt: skip
"""Field names that would name what a log must never hold."""
