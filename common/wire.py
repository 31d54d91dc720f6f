"""Protobuf <-> domain objects: the one place where a peer's bytes become trusted types.

Here: the control stream and bulk data. `common.wire_secagg` has the protocol's own
messages, `common.wire_operations` what people ask, `common.wire_checks` every check.

Bytes from a peer are hostile until a `decode_*` function here has returned: every
`bytes` field has exactly the length its proto comment states, every id is a
well-formed certificate URI, every list and text is bounded, every number is in the
range of its type. What comes out is a frozen domain object; nothing after this module
looks at protobuf again. Whether the *values* are right is the state machines' affair.

Raises (all `decode_*`): Refusal BAD_MESSAGE, naming the field.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, assert_never

from common.ids import (
    ConfigHash,
    Epoch,
    RoundNo,
    RunId,
    SessionId,
    Sha256,
)
from common.messages import (
    CHUNK_BYTES,
    MAX_SEEN,
    BeginEpoch,
    DownloadChunk,
    Heartbeat,
    Hello,
    Objection,
    ReleaseNotice,
    ReleaseReceipt,
    RunEnded,
    Seen,
    StudyDecision,
    StudyOffer,
    UploadAck,
    UploadChunk,
    UploadStart,
    Verdict,
    Welcome,
)
from common.secagg.messages import (
    Certificate,
    Commit,
    Confirm,
    Kem,
    KemForward,
    KeyAdvert,
    Propose,
    Ready,
    RecoverRequest,
    RecoverShares,
    Refused,
    Release,
    Resume,
    ResumeState,
    Roster,
    RoundResult,
    RoundStart,
    UploadEnd,
)
from common.views import RunPhase
from common.wire_checks import (
    MAX_MANIFEST_BYTES,
    MAX_SIGNATURE,
    MAX_STUDY_BYTES,
    MAX_TEXT,
    at_most,
    bad,
    checked_chain,
    checked_name,
    digest32,
    error_code,
    exact,
    header_digest,
    many,
    member,
    people,
    printable,
    whole,
)
from common.wire_secagg import (
    decode_advert,
    decode_certificate,
    decode_digests,
    decode_end,
    decode_header,
    decode_kem,
    decode_kem_forward,
    decode_recovered,
    decode_refused,
    decode_release,
    decode_request,
    decode_result,
    encode_advert,
    encode_certificate,
    encode_digests,
    encode_end,
    encode_header,
    encode_refused,
    encode_release,
    encode_shares,
)
from fedcare.v1 import aggregation_pb2 as pb
from fedcare.v1 import secagg_pb2 as sa

NodeStep = (
    Hello | Heartbeat | StudyDecision | KeyAdvert | Kem | Confirm | Ready | Commit | Release
    | RecoverShares | Resume | Refused | ReleaseReceipt
)  # fmt: skip
"""What a node sends on its control stream."""

CoordinatorStep = (
    Welcome | Heartbeat | StudyOffer | BeginEpoch | Roster | KemForward | RoundStart | Propose
    | Certificate | RecoverRequest | RoundResult | ResumeState | Refused | ReleaseNotice | RunEnded
)  # fmt: skip
"""What the coordinator sends on a node's control stream."""

UploadPart = UploadStart | UploadChunk | UploadEnd

_FINAL: Final = frozenset(phase.value for phase in RunPhase if phase.final)


def _final(value: str, field: str) -> str:
    if value not in _FINAL:
        raise bad(field, f"is not one of {', '.join(sorted(_FINAL))}")
    return value


# --- offers and releases ----------------------------------------------------------------


def _decode_hello(m: pb.Hello) -> Hello:
    return Hello(
        printable(m.software, "hello.software", 64),
        m.protocol_version,
        many(m.tasks, "hello.tasks", lambda task: checked_name(task, "hello.tasks")),
        many(m.seen, "hello.seen", lambda entry: _decode_seen(entry, "hello.seen"), MAX_SEEN),
    )


def _decode_seen(m: pb.Seen, field: str) -> Seen:
    return Seen(
        RunId(checked_name(m.run_id, field)),
        checked_name(m.task, field),
        whole(m.epoch, field),
        whole(m.round, field),
        m.released,
        whole(m.next_round, field),
    )


def _encode_seen(seen: Seen) -> pb.Seen:
    return pb.Seen(
        run_id=seen.run_id,
        task=seen.task,
        epoch=seen.epoch,
        round=seen.r,
        released=seen.released,
        next_round=seen.next_r,
    )


def _decode_welcome(m: pb.Welcome) -> Welcome:
    return Welcome(
        checked_name(m.federation, "welcome.federation"),
        m.heartbeat_ms,
        many(
            m.noised,
            "welcome.noised",
            lambda entry: (
                printable(entry.dataset, "noised.dataset", MAX_TEXT),
                whole(entry.sums, "noised.sums"),
            ),
        ),
        many(m.seen, "welcome.seen", lambda entry: _decode_seen(entry, "welcome.seen"), MAX_SEEN),
        whole(m.unix, "welcome.unix"),
    )


def _decode_decision(m: pb.StudyDecision) -> StudyDecision:
    verdict = member(Verdict, m.verdict, "decision.verdict")
    if (verdict is Verdict.WAITING) != bool(m.waiting_for):
        raise bad("decision.waiting_for", "does not fit the verdict")
    if verdict is Verdict.ACCEPTED and m.objections:
        raise bad("decision.objections", "do not fit the verdict")
    return StudyDecision(
        run_id=RunId(checked_name(m.run_id, "decision.run_id")),
        config_hash=ConfigHash(exact(m.config_hash, "decision.config_hash", 32)),
        verdict=verdict,
        objections=many(
            m.objections,
            "decision.objections",
            lambda o: Objection(
                error_code(o.code, "objections.code"), printable(o.detail, "objections.detail")
            ),
            64,
        ),
        waiting_for=people(m.waiting_for, "decision.waiting_for"),
    )


def _decode_offer(m: pb.StudyOffer) -> StudyOffer:
    return StudyOffer(
        RunId(checked_name(m.run_id, "offer.run_id")),
        at_most(m.study, "offer.study", MAX_STUDY_BYTES),
        ConfigHash(exact(m.config_hash, "offer.config_hash", 32)),
        at_most(m.signature, "offer.signature", MAX_SIGNATURE),
        checked_chain(m.cert_chain, "offer.cert_chain"),
    )


def _decode_epoch(m: pb.BeginEpoch) -> BeginEpoch:
    return BeginEpoch(
        RunId(checked_name(m.run_id, "epoch.run_id")),
        checked_name(m.task, "epoch.task"),
        Epoch(whole(m.epoch, "epoch.epoch")),
        whole(m.not_before, "epoch.not_before"),
        whole(m.not_after, "epoch.not_after"),
    )


def _decode_notice(m: pb.ReleaseNotice) -> ReleaseNotice:
    return ReleaseNotice(
        RunId(checked_name(m.run_id, "release.run_id")),
        at_most(m.manifest, "release.manifest", MAX_MANIFEST_BYTES),
        at_most(m.signature, "release.signature", MAX_SIGNATURE),
        checked_chain(m.cert_chain, "release.cert_chain"),
    )


def _decode_receipt(m: pb.ReleaseReceipt) -> ReleaseReceipt:
    return ReleaseReceipt(
        RunId(checked_name(m.run_id, "receipt.run_id")),
        digest32(m.manifest_sha256, "receipt.manifest_sha256"),
    )


def _decode_ended(m: pb.RunEnded) -> RunEnded:
    return RunEnded(
        RunId(checked_name(m.run_id, "ended.run_id")),
        _final(m.state, "ended.state"),
        printable(m.reason, "ended.reason"),
    )


# --- the control stream -------------------------------------------------------------------


def encode_node(task: str, step: NodeStep) -> pb.NodeMessage:  # noqa: PLR0911 - one line a step
    """Encode one step of a node; `task` names the study, empty where none is concerned."""
    match step:
        case Hello():
            hello = pb.Hello(
                software=step.software,
                protocol_version=step.protocol_version,
                tasks=step.tasks,
                seen=[_encode_seen(one) for one in step.seen],
            )
            return pb.NodeMessage(task=task, hello=hello)
        case Heartbeat():
            return pb.NodeMessage(task=task, heartbeat=pb.Heartbeat(counter=step.counter))
        case StudyDecision():
            decision = pb.StudyDecision(
                run_id=step.run_id,
                config_hash=step.config_hash,
                verdict=step.verdict.value,
                objections=[pb.Objection(code=o.code, detail=o.detail) for o in step.objections],
                waiting_for=step.waiting_for,
            )
            return pb.NodeMessage(task=task, study_decision=decision)
        case KeyAdvert():
            return pb.NodeMessage(task=task, key_advert=encode_advert(step))
        case Kem():
            items = [sa.KemItem(to=i.to, ct=i.ct, sig=i.sig) for i in step.items]
            return pb.NodeMessage(task=task, kem=sa.Kem(sender=step.sender, items=items))
        case Confirm():
            confirm = sa.Confirm(session_id=step.session_id, sig=step.sig)
            return pb.NodeMessage(task=task, confirm=confirm)
        case Ready():
            ready = sa.Ready(session_id=step.session_id, r=step.r, nonce=step.nonce)
            return pb.NodeMessage(task=task, ready=ready)
        case Commit():
            commit = sa.Commit(hd=step.hd, set_hash=step.set_hash, sig=step.sig)
            return pb.NodeMessage(task=task, commit=commit)
        case Release():
            return pb.NodeMessage(task=task, release=encode_release(step))
        case RecoverShares():
            return pb.NodeMessage(task=task, recover_shares=encode_shares(step))
        case Resume():
            return pb.NodeMessage(task=task, resume=sa.Resume(hd=step.hd))
        case Refused():
            return pb.NodeMessage(task=task, refused=encode_refused(step))
        case ReleaseReceipt():
            receipt = pb.ReleaseReceipt(run_id=step.run_id, manifest_sha256=step.manifest_sha256)
            return pb.NodeMessage(task=task, release_receipt=receipt)
        case _:
            assert_never(step)


_NODE_STEPS: Final[dict[str, Callable[[pb.NodeMessage], NodeStep]]] = {
    "hello": lambda m: _decode_hello(m.hello),
    "heartbeat": lambda m: Heartbeat(m.heartbeat.counter),
    "study_decision": lambda m: _decode_decision(m.study_decision),
    "key_advert": lambda m: decode_advert(m.key_advert),
    "kem": lambda m: decode_kem(m.kem),
    "confirm": lambda m: Confirm(
        SessionId(exact(m.confirm.session_id, "confirm.session_id", 32)),
        exact(m.confirm.sig, "confirm.sig", 64),
    ),
    "ready": lambda m: Ready(
        SessionId(exact(m.ready.session_id, "ready.session_id", 32)),
        RoundNo(whole(m.ready.r, "ready.r")),
        exact(m.ready.nonce, "ready.nonce", 32),
    ),
    "commit": lambda m: Commit(
        header_digest(m.commit.hd),
        digest32(m.commit.set_hash, "commit.set_hash"),
        exact(m.commit.sig, "commit.sig", 64),
    ),
    "release": lambda m: decode_release(m.release),
    "recover_shares": lambda m: RecoverShares(
        header_digest(m.recover_shares.hd),
        many(m.recover_shares.items, "shares.items", decode_recovered),
    ),
    "resume": lambda m: Resume(header_digest(m.resume.hd)),
    "refused": lambda m: decode_refused(m.refused),
    "release_receipt": lambda m: _decode_receipt(m.release_receipt),
}


def decode_node(message: pb.NodeMessage) -> tuple[str, NodeStep]:
    """Return (task, step) of a node's message."""
    step = message.WhichOneof("step")
    if step is None:
        raise bad("message", "has no step this version knows")
    task = checked_name(message.task, "task") if message.task else ""
    return task, _NODE_STEPS[step](message)


def encode_coordinator(  # noqa: PLR0911, PLR0912, C901 - one line a step
    task: str, step: CoordinatorStep
) -> pb.CoordinatorMessage:
    """Encode one step of the coordinator; `task` names the study, empty where none is concerned."""
    match step:
        case Welcome():
            noised = [pb.NoisedSums(dataset=name, sums=count) for name, count in step.noised]
            welcome = pb.Welcome(
                federation=step.federation,
                heartbeat_ms=step.heartbeat_ms,
                noised=noised,
                seen=[_encode_seen(one) for one in step.seen],
                unix=step.unix,
            )
            return pb.CoordinatorMessage(task=task, welcome=welcome)
        case Heartbeat():
            return pb.CoordinatorMessage(task=task, heartbeat=pb.Heartbeat(counter=step.counter))
        case StudyOffer():
            offer = pb.StudyOffer(
                run_id=step.run_id,
                study=step.study,
                config_hash=step.config_hash,
                signature=step.signature,
                cert_chain=step.cert_chain,
            )
            return pb.CoordinatorMessage(task=task, study_offer=offer)
        case BeginEpoch():
            epoch = pb.BeginEpoch(
                run_id=step.run_id,
                task=step.task,
                epoch=step.epoch,
                not_before=step.not_before,
                not_after=step.not_after,
            )
            return pb.CoordinatorMessage(task=task, begin_epoch=epoch)
        case Roster():
            adverts = [encode_advert(a) for a in step.adverts]
            roster = sa.Roster(adverts=adverts, next_r=step.next_r)
            return pb.CoordinatorMessage(task=task, roster=roster)
        case KemForward():
            kems = [sa.ForwardedKem(sender=i.sender, ct=i.ct, sig=i.sig) for i in step.items]
            forward = sa.KemForward(session_id=step.session_id, items=kems)
            return pb.CoordinatorMessage(task=task, kem_forward=forward)
        case RoundStart():
            start = sa.RoundStart(
                header=encode_header(step.header), model_stream_id=step.model_stream_id
            )
            return pb.CoordinatorMessage(task=task, round_start=start)
        case Propose():
            propose = sa.Propose(hd=step.hd, survivors=encode_digests(step.digests))
            return pb.CoordinatorMessage(task=task, propose=propose)
        case Certificate():
            return pb.CoordinatorMessage(task=task, certificate=encode_certificate(step))
        case RecoverRequest():
            sealed = [sa.SealedFrom(sender=s.sender, nonce=s.nonce, ct=s.ct) for s in step.sealed]
            request = sa.RecoverRequest(
                certificate=encode_certificate(step.certificate), sealed=sealed
            )
            return pb.CoordinatorMessage(task=task, recover_request=request)
        case RoundResult():
            result = sa.RoundResult(
                hd=step.hd,
                status=step.status.value,
                survivors=encode_digests(step.digests),
                sum_sha256=step.sum_sha256,
                model_sha256=step.model_sha256,
                next_r=step.next_r,
                reason=step.reason,
            )
            return pb.CoordinatorMessage(task=task, round_result=result)
        case ResumeState():
            state = sa.ResumeState(hd=step.hd, next_chunk=step.next_chunk, done=step.done)
            return pb.CoordinatorMessage(task=task, resume_state=state)
        case Refused():
            return pb.CoordinatorMessage(task=task, refused=encode_refused(step))
        case ReleaseNotice():
            notice = pb.ReleaseNotice(
                run_id=step.run_id,
                manifest=step.manifest,
                signature=step.signature,
                cert_chain=step.cert_chain,
            )
            return pb.CoordinatorMessage(task=task, release_notice=notice)
        case RunEnded():
            ended = pb.RunEnded(run_id=step.run_id, state=step.state, reason=step.reason[:MAX_TEXT])
            return pb.CoordinatorMessage(task=task, run_ended=ended)
        case _:
            assert_never(step)


_COORDINATOR_STEPS: Final[dict[str, Callable[[pb.CoordinatorMessage], CoordinatorStep]]] = {
    "welcome": lambda m: _decode_welcome(m.welcome),
    "heartbeat": lambda m: Heartbeat(m.heartbeat.counter),
    "study_offer": lambda m: _decode_offer(m.study_offer),
    "begin_epoch": lambda m: _decode_epoch(m.begin_epoch),
    "roster": lambda m: Roster(
        many(m.roster.adverts, "roster.adverts", decode_advert),
        RoundNo(whole(m.roster.next_r, "roster.next_r")),
    ),
    "kem_forward": lambda m: decode_kem_forward(m.kem_forward),
    "round_start": lambda m: RoundStart(
        decode_header(m.round_start.header),
        exact(m.round_start.model_stream_id, "start.model_stream_id", 0, 32),
    ),
    "propose": lambda m: Propose(header_digest(m.propose.hd), decode_digests(m.propose.survivors)),
    "certificate": lambda m: decode_certificate(m.certificate),
    "recover_request": lambda m: decode_request(m.recover_request),
    "round_result": lambda m: decode_result(m.round_result),
    "resume_state": lambda m: ResumeState(
        header_digest(m.resume_state.hd),
        whole(m.resume_state.next_chunk, "resume.next_chunk"),
        m.resume_state.done,
    ),
    "refused": lambda m: decode_refused(m.refused),
    "release_notice": lambda m: _decode_notice(m.release_notice),
    "run_ended": lambda m: _decode_ended(m.run_ended),
}


def decode_coordinator(message: pb.CoordinatorMessage) -> tuple[str, CoordinatorStep]:
    """Return (task, step) of a coordinator's message."""
    step = message.WhichOneof("step")
    if step is None:
        raise bad("message", "has no step this version knows")
    task = checked_name(message.task, "task") if message.task else ""
    return task, _COORDINATOR_STEPS[step](message)


# --- bulk ---------------------------------------------------------------------------------


def encode_upload(part: UploadPart) -> pb.UploadMessage:
    """Encode one part of an upload stream."""
    match part:
        case UploadStart():
            start = pb.UploadStart(task=part.task, hd=part.hd, first_chunk=part.first_chunk)
            return pb.UploadMessage(start=start)
        case UploadChunk():
            return pb.UploadMessage(chunk=pb.UploadChunk(index=part.index, data=part.data))
        case UploadEnd():
            return pb.UploadMessage(end=encode_end(part))
        case _:
            assert_never(part)


def decode_upload(message: pb.UploadMessage) -> UploadPart:
    """Return one part of an upload stream."""
    match message.WhichOneof("part"):
        case "start":
            start = message.start
            return UploadStart(
                checked_name(start.task, "upload.task"),
                header_digest(start.hd, "upload.hd"),
                whole(start.first_chunk, "upload.first_chunk"),
            )
        case "chunk":
            chunk = message.chunk
            return UploadChunk(
                whole(chunk.index, "upload.index"),
                at_most(chunk.data, "upload.data", CHUNK_BYTES),
            )
        case "end":
            return decode_end(message.end)
        case _:
            raise bad("upload", "has no part this version knows")


def encode_ack(ack: UploadAck) -> pb.UploadAck:
    """Encode the coordinator's answer to a complete upload."""
    return pb.UploadAck(hd=ack.hd, ydig=ack.ydig)


def decode_ack(ack: pb.UploadAck) -> UploadAck:
    """Return the coordinator's answer to a complete upload."""
    return UploadAck(header_digest(ack.hd, "ack.hd"), digest32(ack.ydig, "ack.ydig"))


def encode_download(sha256: Sha256, offset: int) -> pb.DownloadRequest:
    """Encode a request for an object from `offset` on."""
    return pb.DownloadRequest(sha256=sha256, offset=offset)


def decode_download(request: pb.DownloadRequest) -> tuple[Sha256, int]:
    """Return (content address, first byte wanted)."""
    return digest32(request.sha256, "download.sha256"), whole(request.offset, "download.offset")


def encode_piece(piece: DownloadChunk) -> pb.DownloadChunk:
    """Encode one piece of an object."""
    return pb.DownloadChunk(offset=piece.offset, total=piece.total, data=piece.data)


def decode_piece(piece: pb.DownloadChunk) -> DownloadChunk:
    """Return one piece of an object."""
    if len(piece.data) > CHUNK_BYTES:
        raise bad("download.data", f"is longer than {CHUNK_BYTES} bytes")
    return DownloadChunk(
        whole(piece.offset, "download.offset"), whole(piece.total, "download.total"), piece.data
    )
