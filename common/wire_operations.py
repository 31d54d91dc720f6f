"""Protobuf <-> what people ask of the coordinator; the counterpart of `common.wire`.

Raises (all `decode_*`): Refusal BAD_MESSAGE, naming the field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from common.errors import Refusal
from common.ids import NAME_PATTERN, ConfigHash, RunId, SiteName, StudyId
from common.views import RoundView, RunPhase, RunView, SiteView, StatusView, StudyView
from common.wire import MAX_SIGNATURE, MAX_STUDY_BYTES, checked_chain
from fedcare.v1 import operations_pb2 as pb

_NAME: Final = re.compile(NAME_PATTERN)
_MAX_REQUEST: Final = 64
_MAX_REASON: Final = 1000


def _bad(field: str, why: str) -> Refusal:
    return Refusal("BAD_MESSAGE", f"{field} {why}")


def checked_name(value: str, field: str) -> str:
    """Return a study's or run's id that a caller sent, if it can be one."""
    if not _NAME.fullmatch(value):
        raise _bad(field, "is not a name of a-z, 0-9 and inner hyphens")
    return value


@dataclass(frozen=True, slots=True)
class Submission:
    """A study in canonical form, the caller's id for the request, and the owner's signature."""

    study: bytes
    request: str
    signature: bytes
    cert_chain: tuple[bytes, ...]


def decode_submission(request: pb.SubmitStudyRequest) -> Submission:
    """Return what a researcher submits."""
    if not 0 < len(request.study) <= MAX_STUDY_BYTES:
        raise _bad("study", f"is {len(request.study)} bytes long, not 1 to {MAX_STUDY_BYTES}")
    if not _NAME.fullmatch(request.client_id) or len(request.client_id) > _MAX_REQUEST:
        raise _bad("client_id", "is not a name of a-z, 0-9 and inner hyphens")
    if not 0 < len(request.signature) <= MAX_SIGNATURE:
        raise _bad("signature", f"is {len(request.signature)} bytes long, not 1 to {MAX_SIGNATURE}")
    chain = checked_chain(request.cert_chain, "cert_chain")
    return Submission(request.study, request.client_id, request.signature, chain)


def decode_cancel(request: pb.CancelRunRequest) -> tuple[RunId, str]:
    """Return (run, reason)."""
    if len(request.reason) > _MAX_REASON or not request.reason.isprintable():
        raise _bad("reason", f"is longer than {_MAX_REASON} characters or not printable")
    return RunId(checked_name(request.run_id, "run_id")), request.reason


def encode_study(view: StudyView) -> pb.StudyView:
    """Encode a study's view."""
    return pb.StudyView(
        study_id=view.study_id,
        config_hash=view.config_hash,
        title=view.title,
        owner=view.owner,
        run_ids=view.run_ids,
    )


def decode_study(view: pb.StudyView) -> StudyView:
    """Return a study's view."""
    return StudyView(
        StudyId(view.study_id),
        ConfigHash(view.config_hash),
        view.title,
        view.owner,
        tuple(RunId(run) for run in view.run_ids),
    )


def _encode_site(view: SiteView) -> pb.SiteView:
    return pb.SiteView(
        site=view.site,
        connected=view.connected,
        state=view.state,
        waiting_for=view.waiting_for,
        objection=view.objection,
    )


def _decode_site(view: pb.SiteView) -> SiteView:
    return SiteView(
        SiteName(view.site), view.connected, view.state, view.waiting_for, view.objection
    )


def _encode_round(view: RoundView) -> pb.RoundView:
    return pb.RoundView(
        number=view.number,
        kind=view.kind,
        state=view.state,
        survivors=view.survivors,
        dropped=view.dropped,
        seconds=view.seconds,
        reason=view.reason,
        header_digest=view.header_digest,
        sum_sha256=view.sum_sha256,
    )


def _decode_round(view: pb.RoundView) -> RoundView:
    return RoundView(
        number=view.number,
        kind=view.kind,
        state=view.state,
        survivors=tuple(SiteName(site) for site in view.survivors),
        dropped=tuple(SiteName(site) for site in view.dropped),
        seconds=view.seconds,
        reason=view.reason,
        header_digest=view.header_digest,
        sum_sha256=view.sum_sha256,
    )


def encode_run(view: RunView) -> pb.RunView:
    """Encode a run's view."""
    return pb.RunView(
        run_id=view.run_id,
        study_id=view.study_id,
        state=view.state.value,
        round=view.round,
        rounds=view.rounds,
        sites=[_encode_site(site) for site in view.sites],
        history=[_encode_round(entry) for entry in view.history],
        pooled=[pb.Metric(name=name, value=value) for name, value in view.pooled],
        model_sha256=view.model_sha256,
        reason=view.reason,
        seconds=view.seconds,
        seconds_to_first_round=view.seconds_to_first_round,
    )


def decode_run(view: pb.RunView) -> RunView:
    """Return a run's view."""
    try:
        phase = RunPhase(view.state)
    except ValueError:
        raise _bad("run.state", "is not one this version knows") from None
    return RunView(
        run_id=RunId(view.run_id),
        study_id=StudyId(view.study_id),
        state=phase,
        round=view.round,
        rounds=view.rounds,
        sites=tuple(_decode_site(site) for site in view.sites),
        history=tuple(_decode_round(entry) for entry in view.history),
        pooled=tuple((metric.name, metric.value) for metric in view.pooled),
        model_sha256=view.model_sha256,
        reason=view.reason,
        seconds=view.seconds,
        seconds_to_first_round=view.seconds_to_first_round,
    )


def encode_status(view: StatusView) -> pb.GetStatusResponse:
    """Encode the coordinator's status."""
    return pb.GetStatusResponse(
        federation=view.federation,
        software=view.software,
        sites=[_encode_site(site) for site in view.sites],
        runs=[encode_run(run) for run in view.runs],
        uptime_s=view.uptime_s,
    )


def decode_status(view: pb.GetStatusResponse) -> StatusView:
    """Return the coordinator's status."""
    return StatusView(
        federation=view.federation,
        software=view.software,
        sites=tuple(_decode_site(site) for site in view.sites),
        runs=tuple(decode_run(run) for run in view.runs),
        uptime_s=view.uptime_s,
    )
