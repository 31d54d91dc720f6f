"""Protobuf <-> domain objects: the one place where a peer's bytes become trusted types.

Bytes from a peer are hostile until a `decode_*` function here has returned: every
`bytes` field has exactly the length its proto comment states, every id is a
well-formed certificate URI, every list and text is bounded, every number is in the
range of its type. What comes out is a frozen domain object; nothing after this module
looks at protobuf again. Whether the *values* are right is the state machines' affair.

Raises (all `decode_*`): Refusal BAD_MESSAGE, naming the field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final, TypeVar, assert_never

from common.errors import CATALOGUE, Refusal
from common.ids import (
    NAME_PATTERN,
    ConfigHash,
    Epoch,
    HeaderDigest,
    NodeId,
    RoundNo,
    RunId,
    SessionId,
    Sha256,
)
from common.messages import (
    CHUNK_BYTES,
    BeginEpoch,
    DownloadChunk,
    Heartbeat,
    Hello,
    Objection,
    ReleaseNotice,
    ReleaseReceipt,
    RunEnded,
    StudyDecision,
    StudyOffer,
    UploadAck,
    UploadChunk,
    UploadStart,
    Welcome,
)
from common.secagg.header import DpMode, DpTerms, Header, Rounding, RoundKind
from common.secagg.messages import (
    Certificate,
    Commit,
    Confirm,
    Digests,
    Kem,
    KemForward,
    KemFrom,
    KemItem,
    KeyAdvert,
    Propose,
    Ready,
    RecoverItem,
    RecoverRequest,
    RecoverShares,
    Refused,
    Release,
    Resume,
    ResumeState,
    Roster,
    RoundResult,
    RoundStart,
    RoundStatus,
    SealedFrom,
    SealedShares,
    UploadEnd,
)
from common.secret import Secret
from common.views import RunPhase
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

MAX_MEMBERS: Final = 4096
MAX_STUDY_BYTES: Final = 256 << 10
MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_CERT_BYTES: Final = 8 << 10
MAX_CHAIN: Final = 4
MAX_SIGNATURE: Final = 72
MAX_TEXT: Final = 1000
MAX_RANGES: Final = 100_000
_MAX_UINT: Final = (1 << 63) - 1

_FINAL: Final = frozenset(phase.value for phase in RunPhase if phase.final)
_NODE_ID = re.compile(rf"spiffe://{NAME_PATTERN}/hospital/{NAME_PATTERN}")
_T = TypeVar("_T")
_P = TypeVar("_P")
_E = TypeVar("_E", bound=StrEnum)


# --- checks -------------------------------------------------------------------------


def _bad(field: str, why: str) -> Refusal:
    return Refusal("BAD_MESSAGE", f"{field} {why}")


def _bytes(value: bytes, field: str, *lengths: int) -> bytes:
    if len(value) not in lengths:
        wanted = " or ".join(str(length) for length in lengths)
        raise _bad(field, f"is {len(value)} bytes long, not {wanted}")
    return value


def _at_most(value: bytes, field: str, limit: int) -> bytes:
    if not 0 < len(value) <= limit:
        raise _bad(field, f"is {len(value)} bytes long, not 1 to {limit}")
    return value


def _text(value: str, field: str, limit: int = MAX_TEXT) -> str:
    if len(value) > limit:
        raise _bad(field, f"is longer than {limit} characters")
    if not value.isprintable():
        raise _bad(field, "holds control characters")
    return value


def _name(value: str, field: str) -> str:
    if not re.fullmatch(NAME_PATTERN, value):
        raise _bad(field, "is not a name of a-z, 0-9 and inner hyphens")
    return value


def _node(value: str, field: str) -> NodeId:
    if len(value) > MAX_TEXT or not _NODE_ID.fullmatch(value):
        raise _bad(field, "is not a hospital's certificate URI")
    return NodeId(value)


def _uint(value: int, field: str, limit: int = _MAX_UINT) -> int:
    if not 0 <= value <= limit:
        raise _bad(field, f"is outside 0 to {limit}")
    return value


def _float(value: float, field: str) -> float:
    if not math.isfinite(value):
        raise _bad(field, "is not finite")
    return value


def _many(
    items: Iterable[_P], field: str, convert: Callable[[_P], _T], limit: int = MAX_MEMBERS
) -> tuple[_T, ...]:
    listed = list(items)
    if len(listed) > limit:
        raise _bad(field, f"has {len(listed)} entries, more than {limit}")
    return tuple(convert(item) for item in listed)


def _digest(value: bytes, field: str) -> Sha256:
    return Sha256(_bytes(value, field, 32))


def _hd(value: bytes, field: str = "hd") -> HeaderDigest:
    return HeaderDigest(_bytes(value, field, 32))


def _code(value: str, field: str) -> str:
    if value not in CATALOGUE:
        raise _bad(field, "is not a name of the error catalogue")
    return value


def parsed(message: _P | None) -> _P:
    """Return a message that gRPC received; it hands over None where bytes did not parse."""
    if message is None:
        raise _bad("message", "cannot be parsed")
    return message


def _final(value: str, field: str) -> str:
    if value not in _FINAL:
        raise _bad(field, f"is not one of {', '.join(sorted(_FINAL))}")
    return value


def checked_chain(certs: Iterable[bytes], field: str) -> tuple[bytes, ...]:
    """Return certificates, each within `MAX_CERT_BYTES`, at least one, at most `MAX_CHAIN`."""
    chain = _many(certs, field, lambda der: _at_most(der, field, MAX_CERT_BYTES), MAX_CHAIN)
    if not chain:
        raise _bad(field, "is empty")
    return chain


# --- session set-up -----------------------------------------------------------------


def _encode_advert(m: KeyAdvert) -> sa.KeyAdvert:
    return sa.KeyAdvert(
        id=m.id, federation=m.federation, task=m.task, epoch=m.epoch, x25519_pub=m.x25519_pub,
        mlkem_pub=m.mlkem_pub, ed25519_pub=m.ed25519_pub, config_hash=m.config_hash,
        not_before=m.not_before, not_after=m.not_after, cert_chain=m.cert_chain, sig=m.sig,
    )  # fmt: skip


def _decode_advert(m: sa.KeyAdvert) -> KeyAdvert:
    return KeyAdvert(
        id=_node(m.id, "advert.id"),
        federation=_name(m.federation, "advert.federation"),
        task=_name(m.task, "advert.task"),
        epoch=Epoch(_uint(m.epoch, "advert.epoch")),
        x25519_pub=_bytes(m.x25519_pub, "advert.x25519_pub", 32),
        mlkem_pub=_bytes(m.mlkem_pub, "advert.mlkem_pub", 0, 1184),
        ed25519_pub=_bytes(m.ed25519_pub, "advert.ed25519_pub", 32),
        config_hash=ConfigHash(_bytes(m.config_hash, "advert.config_hash", 32)),
        not_before=_uint(m.not_before, "advert.not_before"),
        not_after=_uint(m.not_after, "advert.not_after"),
        cert_chain=checked_chain(m.cert_chain, "advert.cert_chain"),
        sig=_at_most(m.sig, "advert.sig", MAX_SIGNATURE),
    )


def _decode_kem(m: sa.Kem) -> Kem:
    return Kem(
        sender=_node(m.sender, "kem.sender"),
        items=_many(
            m.items,
            "kem.items",
            lambda i: KemItem(
                _node(i.to, "kem.to"),
                _bytes(i.ct, "kem.ct", 1088),
                _bytes(i.sig, "kem.sig", 64),
            ),
        ),
    )


def _decode_kem_forward(m: sa.KemForward) -> KemForward:
    return KemForward(
        session_id=SessionId(_bytes(m.session_id, "kem.session_id", 32)),
        items=_many(
            m.items,
            "kem.items",
            lambda i: KemFrom(
                _node(i.sender, "kem.sender"),
                _bytes(i.ct, "kem.ct", 1088),
                _bytes(i.sig, "kem.sig", 64),
            ),
        ),
    )


# --- rounds ---------------------------------------------------------------------------


def _encode_header(h: Header) -> sa.Header:
    return sa.Header(
        version=h.version, session_id=h.session_id, r=h.r, kind=h.kind.value, group=h.group,
        model_sha256=h.model_sha256, layout_sha256=h.layout_sha256, config_hash=h.config_hash,
        members=[sa.HeaderMember(id=node, nonce=nonce) for node, nonce in h.members],
        d=h.d, w=h.w, c=h.c, q=h.q, s_min=h.s_min, t_h=h.t_h, kappa=h.kappa, ranges=h.ranges,
        w_max=h.w_max, rounding=h.rounding.value, dp_mode=h.dp.mode.value, z=h.dp.z,
        clip=h.dp.clip, delta_int=h.dp.delta_int, sigma_loc=h.dp.sigma_loc,
        noise_cap=h.dp.noise_cap, p=h.dp.p, m_max=h.dp.m_max, deadline_ms=h.deadline_ms,
    )  # fmt: skip


def _member(kind: type[_E], value: str, field: str) -> _E:
    try:
        return kind(value)
    except ValueError:
        raise _bad(field, f"is not one of {', '.join(kind)}") from None


def _decode_dp(h: sa.Header) -> DpTerms:
    return DpTerms(
        mode=_member(DpMode, h.dp_mode, "header.dp_mode"),
        z=_float(h.z, "header.z"),
        clip=_float(h.clip, "header.clip"),
        delta_int=_uint(h.delta_int, "header.delta_int"),
        sigma_loc=_float(h.sigma_loc, "header.sigma_loc"),
        noise_cap=_uint(h.noise_cap, "header.noise_cap"),
        p=_float(h.p, "header.p"),
        m_max=_uint(h.m_max, "header.m_max"),
    )


def _decode_header(h: sa.Header) -> Header:
    return Header(
        version=_uint(h.version, "header.version"),
        session_id=SessionId(_bytes(h.session_id, "header.session_id", 32)),
        r=RoundNo(_uint(h.r, "header.r")),
        kind=_member(RoundKind, h.kind, "header.kind"),
        group=_uint(h.group, "header.group"),
        model_sha256=_digest(h.model_sha256, "header.model_sha256"),
        layout_sha256=_digest(h.layout_sha256, "header.layout_sha256"),
        config_hash=ConfigHash(_bytes(h.config_hash, "header.config_hash", 32)),
        members=_many(
            h.members,
            "header.members",
            lambda m: (_node(m.id, "header.id"), _bytes(m.nonce, "header.nonce", 32)),
        ),
        d=_uint(h.d, "header.d", 1 << 32),
        w=_uint(h.w, "header.w", 64),
        c=_uint(h.c, "header.c", MAX_MEMBERS),
        q=_uint(h.q, "header.q", MAX_MEMBERS),
        s_min=_uint(h.s_min, "header.s_min", MAX_MEMBERS),
        t_h=_uint(h.t_h, "header.t_h", MAX_MEMBERS),
        kappa=_uint(h.kappa, "header.kappa", MAX_MEMBERS),
        ranges=_many(h.ranges, "header.ranges", lambda x: _float(x, "header.ranges"), MAX_RANGES),
        w_max=_uint(h.w_max, "header.w_max"),
        rounding=_member(Rounding, h.rounding, "header.rounding"),
        dp=_decode_dp(h),
        deadline_ms=_uint(h.deadline_ms, "header.deadline_ms"),
    )


def _encode_end(m: UploadEnd) -> sa.UploadEnd:
    return sa.UploadEnd(
        hd=m.hd,
        ydig=m.ydig,
        self_commit=m.self_commit,
        tags=[sa.EdgeTag(id=node, tag=tag) for node, tag in m.tags],
        sealed=[sa.SealedShares(helper=s.helper, nonce=s.nonce, ct=s.ct) for s in m.sealed],
        sig=m.sig,
    )


def _decode_end(m: sa.UploadEnd) -> UploadEnd:
    most = 33 * MAX_MEMBERS + 16
    return UploadEnd(
        hd=_hd(m.hd),
        ydig=_digest(m.ydig, "end.ydig"),
        self_commit=_digest(m.self_commit, "end.self_commit"),
        tags=_many(
            m.tags,
            "end.tags",
            lambda t: (_node(t.id, "end.tags"), _bytes(t.tag, "end.tags", 16)),
        ),
        sealed=_many(
            m.sealed,
            "end.sealed",
            lambda s: SealedShares(
                _node(s.helper, "end.sealed"),
                _bytes(s.nonce, "end.sealed.nonce", 12),
                _at_most(s.ct, "end.sealed.ct", most),
            ),
        ),
        sig=_bytes(m.sig, "end.sig", 64),
    )


def _encode_digests(digests: Digests) -> list[sa.SurvivorDigest]:
    return [sa.SurvivorDigest(id=node, ydig=ydig) for node, ydig in digests]


def _decode_digests(items: Iterable[sa.SurvivorDigest]) -> Digests:
    return _many(
        items, "survivors", lambda s: (_node(s.id, "survivors"), _digest(s.ydig, "survivors.ydig"))
    )


def _encode_certificate(m: Certificate) -> sa.Certificate:
    return sa.Certificate(
        hd=m.hd,
        survivors=_encode_digests(m.digests),
        sigs=[sa.MemberSignature(id=node, sig=sig) for node, sig in m.sigs],
    )


def _decode_certificate(m: sa.Certificate) -> Certificate:
    return Certificate(
        hd=_hd(m.hd),
        digests=_decode_digests(m.survivors),
        sigs=_many(
            m.sigs,
            "certificate.sigs",
            lambda s: (_node(s.id, "certificate.sigs"), _bytes(s.sig, "certificate.sigs", 64)),
        ),
    )


def _encode_release(m: Release) -> sa.Release:
    edges = [sa.ReleasedEdge(id=node, seed=seed.reveal()) for node, seed in m.edges]
    return sa.Release(hd=m.hd, b=m.b.reveal(), edges=edges)


def _decode_release(m: sa.Release) -> Release:
    return Release(
        hd=_hd(m.hd),
        b=Secret(_bytes(m.b, "release.b", 32)),
        edges=_many(
            m.edges,
            "release.edges",
            lambda e: (_node(e.id, "release.edges"), Secret(_bytes(e.seed, "release.edges", 32))),
        ),
    )


def _encode_shares(m: RecoverShares) -> sa.RecoverShares:
    items = [
        sa.RecoveredShares(
            sender=item.sender,
            b_share=item.b_share.reveal(),
            edges=[sa.EdgeShare(id=node, share=share.reveal()) for node, share in item.edges],
        )
        for item in m.items
    ]
    return sa.RecoverShares(hd=m.hd, items=items)


def _decode_recovered(m: sa.RecoveredShares) -> RecoverItem:
    return RecoverItem(
        sender=_node(m.sender, "shares.sender"),
        b_share=Secret(_bytes(m.b_share, "shares.b_share", 33)),
        edges=_many(
            m.edges,
            "shares.edges",
            lambda e: (_node(e.id, "shares.edges"), Secret(_bytes(e.share, "shares.edges", 33))),
        ),
    )


def _decode_request(m: sa.RecoverRequest) -> RecoverRequest:
    most = 33 * MAX_MEMBERS + 16
    return RecoverRequest(
        certificate=_decode_certificate(m.certificate),
        sealed=_many(
            m.sealed,
            "request.sealed",
            lambda s: SealedFrom(
                _node(s.sender, "request.sender"),
                _bytes(s.nonce, "request.nonce", 12),
                _at_most(s.ct, "request.ct", most),
            ),
        ),
    )


def _decode_result(m: sa.RoundResult) -> RoundResult:
    try:
        status = RoundStatus(m.status)
    except ValueError:
        raise _bad("result.status", "is not opened or aborted") from None
    return RoundResult(
        hd=_hd(m.hd),
        status=status,
        digests=_decode_digests(m.survivors),
        sum_sha256=_bytes(m.sum_sha256, "result.sum_sha256", 0, 32),
        model_sha256=_bytes(m.model_sha256, "result.model_sha256", 0, 32),
        next_r=RoundNo(_uint(m.next_r, "result.next_r")),
        reason=_text(m.reason, "result.reason", 64),
    )


def _decode_refused(m: sa.Refused) -> Refused:
    return Refused(
        _bytes(m.hd, "refused.hd", 0, 32),
        _code(m.code, "refused.code"),
        _text(m.detail, "refused.detail"),
    )


# --- offers and releases ----------------------------------------------------------------


def _decode_hello(m: pb.Hello) -> Hello:
    return Hello(
        _text(m.software, "hello.software", 64),
        m.protocol_version,
        _many(m.tasks, "hello.tasks", lambda task: _name(task, "hello.tasks")),
    )


def _decode_decision(m: pb.StudyDecision) -> StudyDecision:
    return StudyDecision(
        run_id=RunId(_name(m.run_id, "decision.run_id")),
        config_hash=ConfigHash(_bytes(m.config_hash, "decision.config_hash", 32)),
        accepted=m.accepted,
        objections=_many(
            m.objections,
            "decision.objections",
            lambda o: Objection(
                _code(o.code, "objections.code"), _text(o.detail, "objections.detail")
            ),
            64,
        ),
    )


def _decode_offer(m: pb.StudyOffer) -> StudyOffer:
    return StudyOffer(
        RunId(_name(m.run_id, "offer.run_id")),
        _at_most(m.study, "offer.study", MAX_STUDY_BYTES),
        ConfigHash(_bytes(m.config_hash, "offer.config_hash", 32)),
        _at_most(m.signature, "offer.signature", MAX_SIGNATURE),
        checked_chain(m.cert_chain, "offer.cert_chain"),
    )


def _decode_epoch(m: pb.BeginEpoch) -> BeginEpoch:
    return BeginEpoch(
        RunId(_name(m.run_id, "epoch.run_id")),
        _name(m.task, "epoch.task"),
        Epoch(_uint(m.epoch, "epoch.epoch")),
        _uint(m.not_before, "epoch.not_before"),
        _uint(m.not_after, "epoch.not_after"),
    )


def _decode_notice(m: pb.ReleaseNotice) -> ReleaseNotice:
    return ReleaseNotice(
        RunId(_name(m.run_id, "release.run_id")),
        _at_most(m.manifest, "release.manifest", MAX_MANIFEST_BYTES),
        _at_most(m.signature, "release.signature", MAX_SIGNATURE),
        checked_chain(m.cert_chain, "release.cert_chain"),
    )


def _decode_receipt(m: pb.ReleaseReceipt) -> ReleaseReceipt:
    return ReleaseReceipt(
        RunId(_name(m.run_id, "receipt.run_id")),
        _digest(m.manifest_sha256, "receipt.manifest_sha256"),
    )


def _decode_ended(m: pb.RunEnded) -> RunEnded:
    return RunEnded(
        RunId(_name(m.run_id, "ended.run_id")),
        _final(m.state, "ended.state"),
        _text(m.reason, "ended.reason"),
    )


# --- the control stream -------------------------------------------------------------------


def encode_node(task: str, step: NodeStep) -> pb.NodeMessage:  # noqa: PLR0911 - one line a step
    """Encode one step of a node; `task` names the study, empty where none is concerned."""
    match step:
        case Hello():
            hello = pb.Hello(
                software=step.software, protocol_version=step.protocol_version, tasks=step.tasks
            )
            return pb.NodeMessage(task=task, hello=hello)
        case Heartbeat():
            return pb.NodeMessage(task=task, heartbeat=pb.Heartbeat(counter=step.counter))
        case StudyDecision():
            decision = pb.StudyDecision(
                run_id=step.run_id,
                config_hash=step.config_hash,
                accepted=step.accepted,
                objections=[pb.Objection(code=o.code, detail=o.detail) for o in step.objections],
            )
            return pb.NodeMessage(task=task, study_decision=decision)
        case KeyAdvert():
            return pb.NodeMessage(task=task, key_advert=_encode_advert(step))
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
            return pb.NodeMessage(task=task, release=_encode_release(step))
        case RecoverShares():
            return pb.NodeMessage(task=task, recover_shares=_encode_shares(step))
        case Resume():
            return pb.NodeMessage(task=task, resume=sa.Resume(hd=step.hd))
        case Refused():
            return pb.NodeMessage(task=task, refused=_encode_refused(step))
        case ReleaseReceipt():
            receipt = pb.ReleaseReceipt(run_id=step.run_id, manifest_sha256=step.manifest_sha256)
            return pb.NodeMessage(task=task, release_receipt=receipt)
        case _:
            assert_never(step)


def _encode_refused(m: Refused) -> sa.Refused:
    return sa.Refused(hd=m.hd, code=m.code, detail=m.detail[:MAX_TEXT])


_NODE_STEPS: Final[dict[str, Callable[[pb.NodeMessage], NodeStep]]] = {
    "hello": lambda m: _decode_hello(m.hello),
    "heartbeat": lambda m: Heartbeat(m.heartbeat.counter),
    "study_decision": lambda m: _decode_decision(m.study_decision),
    "key_advert": lambda m: _decode_advert(m.key_advert),
    "kem": lambda m: _decode_kem(m.kem),
    "confirm": lambda m: Confirm(
        SessionId(_bytes(m.confirm.session_id, "confirm.session_id", 32)),
        _bytes(m.confirm.sig, "confirm.sig", 64),
    ),
    "ready": lambda m: Ready(
        SessionId(_bytes(m.ready.session_id, "ready.session_id", 32)),
        RoundNo(_uint(m.ready.r, "ready.r")),
        _bytes(m.ready.nonce, "ready.nonce", 32),
    ),
    "commit": lambda m: Commit(
        _hd(m.commit.hd),
        _digest(m.commit.set_hash, "commit.set_hash"),
        _bytes(m.commit.sig, "commit.sig", 64),
    ),
    "release": lambda m: _decode_release(m.release),
    "recover_shares": lambda m: RecoverShares(
        _hd(m.recover_shares.hd), _many(m.recover_shares.items, "shares.items", _decode_recovered)
    ),
    "resume": lambda m: Resume(_hd(m.resume.hd)),
    "refused": lambda m: _decode_refused(m.refused),
    "release_receipt": lambda m: _decode_receipt(m.release_receipt),
}


def decode_node(message: pb.NodeMessage) -> tuple[str, NodeStep]:
    """Return (task, step) of a node's message."""
    step = message.WhichOneof("step")
    if step is None:
        raise _bad("message", "has no step this version knows")
    task = _name(message.task, "task") if message.task else ""
    return task, _NODE_STEPS[step](message)


def encode_coordinator(  # noqa: PLR0911, PLR0912, C901 - one line a step
    task: str, step: CoordinatorStep
) -> pb.CoordinatorMessage:
    """Encode one step of the coordinator; `task` names the study, empty where none is concerned."""
    match step:
        case Welcome():
            welcome = pb.Welcome(federation=step.federation, heartbeat_ms=step.heartbeat_ms)
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
            adverts = [_encode_advert(a) for a in step.adverts]
            roster = sa.Roster(adverts=adverts, next_r=step.next_r)
            return pb.CoordinatorMessage(task=task, roster=roster)
        case KemForward():
            kems = [sa.ForwardedKem(sender=i.sender, ct=i.ct, sig=i.sig) for i in step.items]
            forward = sa.KemForward(session_id=step.session_id, items=kems)
            return pb.CoordinatorMessage(task=task, kem_forward=forward)
        case RoundStart():
            start = sa.RoundStart(
                header=_encode_header(step.header), model_stream_id=step.model_stream_id
            )
            return pb.CoordinatorMessage(task=task, round_start=start)
        case Propose():
            propose = sa.Propose(hd=step.hd, survivors=_encode_digests(step.digests))
            return pb.CoordinatorMessage(task=task, propose=propose)
        case Certificate():
            return pb.CoordinatorMessage(task=task, certificate=_encode_certificate(step))
        case RecoverRequest():
            sealed = [sa.SealedFrom(sender=s.sender, nonce=s.nonce, ct=s.ct) for s in step.sealed]
            request = sa.RecoverRequest(
                certificate=_encode_certificate(step.certificate), sealed=sealed
            )
            return pb.CoordinatorMessage(task=task, recover_request=request)
        case RoundResult():
            result = sa.RoundResult(
                hd=step.hd,
                status=step.status.value,
                survivors=_encode_digests(step.digests),
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
            return pb.CoordinatorMessage(task=task, refused=_encode_refused(step))
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
    "welcome": lambda m: Welcome(
        _name(m.welcome.federation, "welcome.federation"), m.welcome.heartbeat_ms
    ),
    "heartbeat": lambda m: Heartbeat(m.heartbeat.counter),
    "study_offer": lambda m: _decode_offer(m.study_offer),
    "begin_epoch": lambda m: _decode_epoch(m.begin_epoch),
    "roster": lambda m: Roster(
        _many(m.roster.adverts, "roster.adverts", _decode_advert),
        RoundNo(_uint(m.roster.next_r, "roster.next_r")),
    ),
    "kem_forward": lambda m: _decode_kem_forward(m.kem_forward),
    "round_start": lambda m: RoundStart(
        _decode_header(m.round_start.header),
        _bytes(m.round_start.model_stream_id, "start.model_stream_id", 0, 32),
    ),
    "propose": lambda m: Propose(_hd(m.propose.hd), _decode_digests(m.propose.survivors)),
    "certificate": lambda m: _decode_certificate(m.certificate),
    "recover_request": lambda m: _decode_request(m.recover_request),
    "round_result": lambda m: _decode_result(m.round_result),
    "resume_state": lambda m: ResumeState(
        _hd(m.resume_state.hd),
        _uint(m.resume_state.next_chunk, "resume.next_chunk"),
        m.resume_state.done,
    ),
    "refused": lambda m: _decode_refused(m.refused),
    "release_notice": lambda m: _decode_notice(m.release_notice),
    "run_ended": lambda m: _decode_ended(m.run_ended),
}


def decode_coordinator(message: pb.CoordinatorMessage) -> tuple[str, CoordinatorStep]:
    """Return (task, step) of a coordinator's message."""
    step = message.WhichOneof("step")
    if step is None:
        raise _bad("message", "has no step this version knows")
    task = _name(message.task, "task") if message.task else ""
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
            return pb.UploadMessage(end=_encode_end(part))
        case _:
            assert_never(part)


def decode_upload(message: pb.UploadMessage) -> UploadPart:
    """Return one part of an upload stream."""
    match message.WhichOneof("part"):
        case "start":
            start = message.start
            return UploadStart(
                _name(start.task, "upload.task"),
                _hd(start.hd, "upload.hd"),
                _uint(start.first_chunk, "upload.first_chunk"),
            )
        case "chunk":
            chunk = message.chunk
            return UploadChunk(
                _uint(chunk.index, "upload.index"),
                _at_most(chunk.data, "upload.data", CHUNK_BYTES),
            )
        case "end":
            return _decode_end(message.end)
        case _:
            raise _bad("upload", "has no part this version knows")


def encode_ack(ack: UploadAck) -> pb.UploadAck:
    """Encode the coordinator's answer to a complete upload."""
    return pb.UploadAck(hd=ack.hd, ydig=ack.ydig)


def decode_ack(ack: pb.UploadAck) -> UploadAck:
    """Return the coordinator's answer to a complete upload."""
    return UploadAck(_hd(ack.hd, "ack.hd"), _digest(ack.ydig, "ack.ydig"))


def encode_download(sha256: Sha256, offset: int) -> pb.DownloadRequest:
    """Encode a request for an object from `offset` on."""
    return pb.DownloadRequest(sha256=sha256, offset=offset)


def decode_download(request: pb.DownloadRequest) -> tuple[Sha256, int]:
    """Return (content address, first byte wanted)."""
    return _digest(request.sha256, "download.sha256"), _uint(request.offset, "download.offset")


def encode_piece(piece: DownloadChunk) -> pb.DownloadChunk:
    """Encode one piece of an object."""
    return pb.DownloadChunk(offset=piece.offset, total=piece.total, data=piece.data)


def decode_piece(piece: pb.DownloadChunk) -> DownloadChunk:
    """Return one piece of an object."""
    if len(piece.data) > CHUNK_BYTES:
        raise _bad("download.data", f"is longer than {CHUNK_BYTES} bytes")
    return DownloadChunk(
        _uint(piece.offset, "download.offset"), _uint(piece.total, "download.total"), piece.data
    )
