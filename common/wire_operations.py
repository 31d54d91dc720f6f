"""Protobuf <-> what people ask of the coordinator; the counterpart of `common.wire`.

Raises (all `decode_*`): Refusal BAD_MESSAGE, naming the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from common.ids import NAME_PATTERN, ConfigHash, RunId, SiteName, StudyId
from common.messages import ReleaseNotice
from common.views import (
    RoundView,
    RunPhase,
    RunView,
    SiteView,
    StatusView,
    StudyView,
    WaitView,
)
from common.wire_checks import (
    MAX_MANIFEST_BYTES,
    MAX_SIGNATURE,
    MAX_STUDY_BYTES,
    at_most,
    bad,
    checked_chain,
    checked_name,
    exact,
    finite,
    many,
    people,
    printable,
)
from fedcare.v1 import operations_pb2 as pb

_NAME: Final = re.compile(NAME_PATTERN)
_MAX_REQUEST: Final = 64
_MAX_REASON: Final = 1000
MAX_VIEW_TEXT: Final = 16 << 10
"""A view's longest text: why an enrolment failed, in the words of every hospital."""

_MAX_ENTRIES: Final = 200_000
_HEX: Final = re.compile("[0-9a-f]{64}")


def _names(items: Iterable[str], field: str) -> tuple[SiteName, ...]:
    return many(items, field, lambda site: SiteName(checked_name(site, field)))


@dataclass(frozen=True, slots=True)
class Submission:
    """A study in canonical form, the caller's id for the request, and the owner's signature."""

    study: bytes
    request: str
    signature: bytes
    cert_chain: tuple[bytes, ...]


def decode_submission(request: pb.SubmitStudyRequest) -> Submission:
    """Return what a researcher submits."""
    study = at_most(request.study, "study", MAX_STUDY_BYTES)
    if not _NAME.fullmatch(request.client_id) or len(request.client_id) > _MAX_REQUEST:
        raise bad("client_id", "is not a name of a-z, 0-9 and inner hyphens")
    signature = at_most(request.signature, "signature", MAX_SIGNATURE)
    chain = checked_chain(request.cert_chain, "cert_chain")
    return Submission(study, request.client_id, signature, chain)


@dataclass(frozen=True, slots=True)
class Submitted:
    """What a submission began."""

    study_id: StudyId
    run_id: RunId
    config_hash: ConfigHash


def encode_submitted(submitted: Submitted) -> pb.SubmitStudyResponse:
    """Encode the answer to a submission."""
    return pb.SubmitStudyResponse(
        study_id=submitted.study_id, run_id=submitted.run_id, config_hash=submitted.config_hash
    )


def decode_submitted(answer: pb.SubmitStudyResponse) -> Submitted:
    """Return what a submission began."""
    return Submitted(
        StudyId(checked_name(answer.study_id, "study_id")),
        RunId(checked_name(answer.run_id, "run_id")),
        ConfigHash(exact(answer.config_hash, "config_hash", 32)),
    )


def decode_cancel(request: pb.CancelRunRequest) -> tuple[RunId, str]:
    """Return (run, reason)."""
    if len(request.reason) > _MAX_REASON or not request.reason.isprintable():
        raise bad("reason", f"is longer than {_MAX_REASON} characters or not printable")
    return RunId(checked_name(request.run_id, "run_id")), request.reason


def encode_content(view: StudyView, content: bytes) -> pb.GetStudyResponse:
    """Encode a study with its canonical form."""
    return pb.GetStudyResponse(study=encode_study(view), content=content)


def decode_content(answer: pb.GetStudyResponse) -> tuple[StudyView, bytes]:
    """Return a study and its canonical form."""
    return decode_study(answer.study), at_most(answer.content, "content", MAX_STUDY_BYTES)


def encode_release(notice: ReleaseNotice) -> pb.GetReleaseResponse:
    """Encode a run's signed release."""
    return pb.GetReleaseResponse(
        manifest=notice.manifest, signature=notice.signature, cert_chain=notice.cert_chain
    )


def decode_release(run_id: RunId, answer: pb.GetReleaseResponse) -> ReleaseNotice:
    """Return the release of the run that was asked for; nothing of it is verified yet."""
    return ReleaseNotice(
        run_id,
        at_most(answer.manifest, "manifest", MAX_MANIFEST_BYTES),
        at_most(answer.signature, "signature", MAX_SIGNATURE),
        checked_chain(answer.cert_chain, "cert_chain"),
    )


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
        StudyId(checked_name(view.study_id, "study.study_id")),
        ConfigHash(exact(view.config_hash, "study.config_hash", 32)),
        printable(view.title, "study.title", MAX_VIEW_TEXT),
        printable(view.owner, "study.owner", MAX_VIEW_TEXT),
        many(
            view.run_ids,
            "study.run_ids",
            lambda x: RunId(checked_name(x, "study.run_ids")),
            _MAX_ENTRIES,
        ),
    )


def _encode_site(view: SiteView) -> pb.SiteView:
    return pb.SiteView(
        site=view.site,
        connected=view.connected,
        state=view.state,
        waiting_for=view.waiting_for,
        objection=view.objection[:MAX_VIEW_TEXT],
        since_s=view.since_s,
        people=view.people,
    )


def _decode_site(view: pb.SiteView) -> SiteView:
    return SiteView(
        SiteName(checked_name(view.site, "site.site")),
        view.connected,
        printable(view.state, "site.state", MAX_VIEW_TEXT),
        printable(view.waiting_for, "site.waiting_for", MAX_VIEW_TEXT),
        printable(view.objection, "site.objection", MAX_VIEW_TEXT),
        finite(view.since_s, "site.since_s") if view.HasField("since_s") else None,
        people(view.people, "site.people"),
    )


def _encode_wait(view: WaitView | None) -> pb.WaitView | None:
    if view is None:
        return None
    return pb.WaitView(
        sites=view.sites,
        what=view.what,
        since_s=view.since_s,
        left_s=view.left_s,
        then=view.then,
    )


def _decode_wait(view: pb.WaitView) -> WaitView:
    if not view.sites:
        raise bad("wait.sites", "is empty")
    return WaitView(
        _names(view.sites, "wait.sites"),
        printable(view.what, "wait.what", MAX_VIEW_TEXT),
        finite(view.since_s, "wait.since_s"),
        finite(view.left_s, "wait.left_s") if view.HasField("left_s") else None,
        printable(view.then, "wait.then", MAX_VIEW_TEXT),
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
        kind=printable(view.kind, "round.kind", MAX_VIEW_TEXT),
        state=printable(view.state, "round.state", MAX_VIEW_TEXT),
        survivors=_names(view.survivors, "round.survivors"),
        dropped=_names(view.dropped, "round.dropped"),
        seconds=finite(view.seconds, "round.seconds"),
        reason=printable(view.reason, "round.reason", MAX_VIEW_TEXT),
        header_digest=exact(view.header_digest, "round.header_digest", 32),
        sum_sha256=exact(view.sum_sha256, "round.sum_sha256", 0, 32),
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
        reason=view.reason[:MAX_VIEW_TEXT],
        seconds=view.seconds,
        seconds_to_first_round=view.seconds_to_first_round,
        kind=view.kind,
        open_s=view.open_s,
        paused=view.paused,
        wait=_encode_wait(view.wait),
    )


def decode_run(view: pb.RunView) -> RunView:
    """Return a run's view."""
    try:
        phase = RunPhase(view.state)
    except ValueError:
        raise bad("run.state", "is not one this version knows") from None
    if view.model_sha256 and not _HEX.fullmatch(view.model_sha256):
        raise bad("run.model_sha256", "is not 64 hexadecimal digits")
    return RunView(
        run_id=RunId(checked_name(view.run_id, "run.run_id")),
        study_id=StudyId(checked_name(view.study_id, "run.study_id")),
        state=phase,
        round=view.round,
        rounds=view.rounds,
        sites=many(view.sites, "run.sites", _decode_site),
        history=many(view.history, "run.history", _decode_round, _MAX_ENTRIES),
        pooled=many(
            view.pooled,
            "run.pooled",
            lambda m: (
                printable(m.name, "metric.name"),
                finite(m.value, "metric.value"),
            ),
        ),
        model_sha256=view.model_sha256,
        reason=printable(view.reason, "run.reason", MAX_VIEW_TEXT),
        seconds=finite(view.seconds, "run.seconds"),
        seconds_to_first_round=finite(view.seconds_to_first_round, "run.seconds_to_first_round"),
        kind=printable(view.kind, "run.kind", MAX_VIEW_TEXT),
        open_s=finite(view.open_s, "run.open_s") if view.HasField("open_s") else None,
        paused=view.paused,
        wait=_decode_wait(view.wait) if view.HasField("wait") else None,
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
        federation=checked_name(view.federation, "status.federation"),
        software=printable(view.software, "status.software", MAX_VIEW_TEXT),
        sites=many(view.sites, "status.sites", _decode_site),
        runs=many(view.runs, "status.runs", decode_run, _MAX_ENTRIES),
        uptime_s=finite(view.uptime_s, "status.uptime_s"),
    )
