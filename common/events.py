"""Every event a log line may name, with what it tells an operator.

Closed: `common.logs` takes an `Event` and nothing else, so a name that is not here
cannot be logged, and the runbook is made from this table. Names are `subject.what`.
A line's fields never hold patient values, tensor values, one hospital's counts or losses,
secrets, file paths of data or tracebacks from another machine (`FORBIDDEN_FIELDS`).
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Self


class Event(Enum):
    """An event id; `value` is its name in the log, `meaning` one line for the runbook."""

    meaning: str

    def __new__(cls, name: str, meaning: str) -> Self:
        """Keep the meaning beside the name."""
        member = object.__new__(cls)
        member._value_ = name
        member.meaning = meaning
        return member

    # --- processes
    SERVICE_STARTED = (
        "service.started",
        "A coordinator or node is up; says its version and address.",
    )
    SERVICE_STOPPING = "service.stopping", "The process was asked to stop and finishes open writes."
    SERVICE_STOPPED = "service.stopped", "The process ended in order."
    SERVICE_FAILED = (
        "service.failed",
        "The process could not start or go on; says the error's code, what happened and the fix.",
    )
    PROCESS_CONFINEMENT = (
        "process.confinement",
        "How far the operating system confines this process, and which settings are weak.",
    )
    CONFIG_LOADED = "config.loaded", "A configuration, policy or manifest was read and is in force."
    STATE_RECOVERED = (
        "state.recovered",
        "Durable state was read after a restart; says what goes on.",
    )
    STATE_FAILED = "state.failed", "State on disk could not be read or written."
    INTERNAL_ERROR = "internal.error", "Something that should not be possible; please report it."
    LIBRARY_MESSAGE = "library.message", "A library's own warning, in its words, cut to one line."

    # --- connections
    LINK_CONNECTED = "link.connected", "A node and the coordinator have a live stream."
    LINK_LOST = "link.lost", "The stream ended; the node dials again after a jittered wait."
    LINK_REFUSED = "link.refused", "TLS, certificate or role was refused; says which rule."
    LINK_RETRYING = "link.retrying", "The node dials again now; says how often it has tried."
    CALL_REFUSED = "call.refused", "A peer's call was refused before it had any effect."
    CALL_FAILED = "call.failed", "A call ended with an error of the catalogue."

    # --- studies and runs
    STUDY_SUBMITTED = "study.submitted", "A researcher submitted a study."
    STUDY_OFFERED = "study.offered", "The study is put before the hospitals' policies."
    STUDY_ACCEPTED = "study.accepted", "A hospital's policy allows the study."
    STUDY_REFUSED = "study.refused", "A hospital's policy refuses the study; says the policy line."
    RUN_STARTED = "run.started", "Enough hospitals accepted; rounds begin."
    RUN_PAUSED = "run.paused", "The run waits for hospitals to return or for a person."
    RUN_FINISHED = "run.finished", "The last round closed and the model is published."
    RUN_FAILED = "run.failed", "The run ended without a model; says why."
    RUN_CANCELLED = "run.cancelled", "A person cancelled the run."

    # --- epochs of secure aggregation
    SESSION_OPENED = "session.opened", "Key adverts are collected for a new epoch."
    SESSION_READY = "session.ready", "All members confirmed their pair keys; rounds may open."
    SESSION_FAILED = "session.failed", "The epoch could not be set up; says who was missing."
    SESSION_CLOSED = "session.closed", "The epoch ended and its keys are erased."

    # --- rounds
    ROUND_OPENED = "round.opened", "A header was fixed and sent; says cohort, quorum and deadline."
    ROUND_WAITING = "round.waiting", "Says for whom, since when, until when, and what happens then."
    ROUND_TRAINING = "round.training", "This hospital trains on the header's model."
    ROUND_PROPOSED = "round.proposed", "Uploads are in; the survivor set is put to the hospitals."
    ROUND_COMMITTED = "round.committed", "This hospital signed the survivor set."
    ROUND_CERTIFIED = "round.certified", "A quorum signed; the certificate goes to the hospitals."
    ROUND_RELEASED = "round.released", "This hospital released the secrets of the certified set."
    ROUND_RECOVERING = "round.recovering", "A silent survivor's secret is recovered from helpers."
    ROUND_SUMMED = "round.summed", "The sum was opened and lies within its bound."
    ROUND_CLOSED = "round.closed", "The round is over and its keys are erased."
    ROUND_VOIDED = "round.voided", "The round ended below its quorum; the model is unchanged."
    MEMBER_GONE = "member.gone", "A hospital is out of this round; others release its masks."
    PROTOCOL_REFUSED = (
        "protocol.refused",
        "A step was refused by a rule of the protocol; says which.",
    )
    EVIDENCE_STORED = "evidence.stored", "Two commits of one hospital for one round: kept as proof."

    # --- bulk data and models
    UPLOAD_STARTED = "upload.started", "A masked vector is on its way."
    UPLOAD_RESUMED = "upload.resumed", "An upload goes on at the offset where it broke off."
    UPLOAD_FINISHED = "upload.finished", "A masked vector arrived whole and its digest fits."
    DOWNLOAD_FINISHED = "download.finished", "A model arrived whole and its digest fits."
    MODEL_PUBLISHED = "model.published", "A signed release is ready for hospitals and researchers."
    MODEL_ACCEPTED = "model.accepted", "This node verified and kept a release."
    MODEL_REFUSED = "model.refused", "A model did not verify; says which check."


EVENTS: Final = {event.value: event for event in Event}
"""The catalogue by name."""

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
