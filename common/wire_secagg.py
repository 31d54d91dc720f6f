"""Protobuf <-> the protocol's own messages (docs/protocol.md, section 4.8); see `common.wire`.

Raises (all `decode_*`): Refusal BAD_MESSAGE, naming the field.
"""

from __future__ import annotations

from collections.abc import Iterable

from common.ids import (
    ConfigHash,
    Epoch,
    RoundNo,
    SessionId,
)
from common.secagg.dp import DpMode, DpTerms
from common.secagg.header import Header, Rounding, RoundKind
from common.secagg.messages import (
    Certificate,
    Digests,
    Kem,
    KemForward,
    KemFrom,
    KemItem,
    KeyAdvert,
    RecoverItem,
    RecoverRequest,
    RecoverShares,
    Refused,
    Release,
    RoundResult,
    RoundStatus,
    SealedFrom,
    SealedShares,
    UploadEnd,
)
from common.secret import Secret
from common.wire_checks import (
    MAX_MEMBERS,
    MAX_RANGES,
    MAX_SIGNATURE,
    MAX_TEXT,
    at_most,
    bad,
    checked_chain,
    checked_name,
    digest32,
    error_code,
    exact,
    finite,
    header_digest,
    hospital,
    many,
    member,
    printable,
    whole,
)
from fedcare.v1 import secagg_pb2 as sa


def encode_advert(m: KeyAdvert) -> sa.KeyAdvert:
    """Encode a key advert."""
    return sa.KeyAdvert(
        id=m.id, federation=m.federation, task=m.task, epoch=m.epoch, x25519_pub=m.x25519_pub,
        mlkem_pub=m.mlkem_pub, ed25519_pub=m.ed25519_pub, config_hash=m.config_hash,
        not_before=m.not_before, not_after=m.not_after, cert_chain=m.cert_chain, sig=m.sig,
    )  # fmt: skip


def decode_advert(m: sa.KeyAdvert) -> KeyAdvert:
    """Return a key advert."""
    return KeyAdvert(
        id=hospital(m.id, "advert.id"),
        federation=checked_name(m.federation, "advert.federation"),
        task=checked_name(m.task, "advert.task"),
        epoch=Epoch(whole(m.epoch, "advert.epoch")),
        x25519_pub=exact(m.x25519_pub, "advert.x25519_pub", 32),
        mlkem_pub=exact(m.mlkem_pub, "advert.mlkem_pub", 0, 1184),
        ed25519_pub=exact(m.ed25519_pub, "advert.ed25519_pub", 32),
        config_hash=ConfigHash(exact(m.config_hash, "advert.config_hash", 32)),
        not_before=whole(m.not_before, "advert.not_before"),
        not_after=whole(m.not_after, "advert.not_after"),
        cert_chain=checked_chain(m.cert_chain, "advert.cert_chain"),
        sig=at_most(m.sig, "advert.sig", MAX_SIGNATURE),
    )


def decode_kem(m: sa.Kem) -> Kem:
    """Return a node's encapsulations."""
    return Kem(
        sender=hospital(m.sender, "kem.sender"),
        items=many(
            m.items,
            "kem.items",
            lambda i: KemItem(
                hospital(i.to, "kem.to"),
                exact(i.ct, "kem.ct", 1088),
                exact(i.sig, "kem.sig", 64),
            ),
        ),
    )


def decode_kem_forward(m: sa.KemForward) -> KemForward:
    """Return the encapsulations made to one node."""
    return KemForward(
        session_id=SessionId(exact(m.session_id, "kem.session_id", 32)),
        items=many(
            m.items,
            "kem.items",
            lambda i: KemFrom(
                hospital(i.sender, "kem.sender"),
                exact(i.ct, "kem.ct", 1088),
                exact(i.sig, "kem.sig", 64),
            ),
        ),
    )


def encode_header(h: Header) -> sa.Header:
    """Encode a round header."""
    return sa.Header(
        version=h.version, session_id=h.session_id, r=h.r, kind=h.kind.value, group=h.group,
        model_sha256=h.model_sha256, layout_sha256=h.layout_sha256, config_hash=h.config_hash,
        members=[sa.HeaderMember(id=node, nonce=nonce) for node, nonce in h.members],
        d=h.d, w=h.w, c=h.c, q=h.q, s_min=h.s_min, t_h=h.t_h, kappa=h.kappa, ranges=h.ranges,
        w_max=h.w_max, rounding=h.rounding.value, dp_mode=h.dp.mode.value, z=h.dp.z,
        clip=h.dp.clip, delta_int=h.dp.delta_int, sigma_loc=h.dp.sigma_loc,
        noise_cap=h.dp.noise_cap, p=h.dp.p, m_max=h.dp.m_max, steps=h.dp.steps,
        deadline_ms=h.deadline_ms,
    )  # fmt: skip


def _decode_dp(h: sa.Header) -> DpTerms:
    return DpTerms(
        mode=member(DpMode, h.dp_mode, "header.dp_mode"),
        z=finite(h.z, "header.z"),
        clip=finite(h.clip, "header.clip"),
        delta_int=whole(h.delta_int, "header.delta_int"),
        sigma_loc=finite(h.sigma_loc, "header.sigma_loc"),
        noise_cap=whole(h.noise_cap, "header.noise_cap"),
        p=finite(h.p, "header.p"),
        m_max=whole(h.m_max, "header.m_max"),
        steps=whole(h.steps, "header.steps"),
    )


def decode_header(h: sa.Header) -> Header:
    """Return a round header; whether its values are right is the machine's affair."""
    return Header(
        version=whole(h.version, "header.version"),
        session_id=SessionId(exact(h.session_id, "header.session_id", 32)),
        r=RoundNo(whole(h.r, "header.r")),
        kind=member(RoundKind, h.kind, "header.kind"),
        group=whole(h.group, "header.group"),
        model_sha256=digest32(h.model_sha256, "header.model_sha256"),
        layout_sha256=digest32(h.layout_sha256, "header.layout_sha256"),
        config_hash=ConfigHash(exact(h.config_hash, "header.config_hash", 32)),
        members=many(
            h.members,
            "header.members",
            lambda m: (hospital(m.id, "header.id"), exact(m.nonce, "header.nonce", 32)),
        ),
        d=whole(h.d, "header.d", 1 << 32),
        w=whole(h.w, "header.w", 64),
        c=whole(h.c, "header.c", MAX_MEMBERS),
        q=whole(h.q, "header.q", MAX_MEMBERS),
        s_min=whole(h.s_min, "header.s_min", MAX_MEMBERS),
        t_h=whole(h.t_h, "header.t_h", MAX_MEMBERS),
        kappa=whole(h.kappa, "header.kappa", MAX_MEMBERS),
        ranges=many(h.ranges, "header.ranges", lambda x: finite(x, "header.ranges"), MAX_RANGES),
        w_max=whole(h.w_max, "header.w_max"),
        rounding=member(Rounding, h.rounding, "header.rounding"),
        dp=_decode_dp(h),
        deadline_ms=whole(h.deadline_ms, "header.deadline_ms"),
    )


def encode_end(m: UploadEnd) -> sa.UploadEnd:
    """Encode an end-of-upload record."""
    return sa.UploadEnd(
        hd=m.hd,
        ydig=m.ydig,
        self_commit=m.self_commit,
        tags=[sa.EdgeTag(id=node, tag=tag) for node, tag in m.tags],
        sealed=[sa.SealedShares(helper=s.helper, nonce=s.nonce, ct=s.ct) for s in m.sealed],
        sig=m.sig,
    )


def decode_end(m: sa.UploadEnd) -> UploadEnd:
    """Return an end-of-upload record."""
    most = 33 * MAX_MEMBERS + 16
    return UploadEnd(
        hd=header_digest(m.hd),
        ydig=digest32(m.ydig, "end.ydig"),
        self_commit=digest32(m.self_commit, "end.self_commit"),
        tags=many(
            m.tags,
            "end.tags",
            lambda t: (hospital(t.id, "end.tags"), exact(t.tag, "end.tags", 16)),
        ),
        sealed=many(
            m.sealed,
            "end.sealed",
            lambda s: SealedShares(
                hospital(s.helper, "end.sealed"),
                exact(s.nonce, "end.sealed.nonce", 12),
                at_most(s.ct, "end.sealed.ct", most),
            ),
        ),
        sig=exact(m.sig, "end.sig", 64),
    )


def encode_digests(digests: Digests) -> list[sa.SurvivorDigest]:
    """Encode a survivor set with its digests."""
    return [sa.SurvivorDigest(id=node, ydig=ydig) for node, ydig in digests]


def decode_digests(items: Iterable[sa.SurvivorDigest]) -> Digests:
    """Return a survivor set with its digests."""
    return many(
        items,
        "survivors",
        lambda s: (hospital(s.id, "survivors"), digest32(s.ydig, "survivors.ydig")),
    )


def encode_certificate(m: Certificate) -> sa.Certificate:
    """Encode a quorum certificate."""
    return sa.Certificate(
        hd=m.hd,
        survivors=encode_digests(m.digests),
        sigs=[sa.MemberSignature(id=node, sig=sig) for node, sig in m.sigs],
    )


def decode_certificate(m: sa.Certificate) -> Certificate:
    """Return a quorum certificate."""
    return Certificate(
        hd=header_digest(m.hd),
        digests=decode_digests(m.survivors),
        sigs=many(
            m.sigs,
            "certificate.sigs",
            lambda s: (hospital(s.id, "certificate.sigs"), exact(s.sig, "certificate.sigs", 64)),
        ),
    )


def encode_release(m: Release) -> sa.Release:
    """Encode released seeds."""
    edges = [sa.ReleasedEdge(id=node, seed=seed.reveal()) for node, seed in m.edges]
    return sa.Release(hd=m.hd, b=m.b.reveal(), edges=edges)


def decode_release(m: sa.Release) -> Release:
    """Return released seeds."""
    return Release(
        hd=header_digest(m.hd),
        b=Secret(exact(m.b, "release.b", 32)),
        edges=many(
            m.edges,
            "release.edges",
            lambda e: (hospital(e.id, "release.edges"), Secret(exact(e.seed, "release.edges", 32))),
        ),
    )


def encode_shares(m: RecoverShares) -> sa.RecoverShares:
    """Encode recovered shares."""
    items = [
        sa.RecoveredShares(
            sender=item.sender,
            b_share=item.b_share.reveal(),
            edges=[sa.EdgeShare(id=node, share=share.reveal()) for node, share in item.edges],
        )
        for item in m.items
    ]
    return sa.RecoverShares(hd=m.hd, items=items)


def decode_recovered(m: sa.RecoveredShares) -> RecoverItem:
    """Return one silent member's shares."""
    return RecoverItem(
        sender=hospital(m.sender, "shares.sender"),
        b_share=Secret(exact(m.b_share, "shares.b_share", 33)),
        edges=many(
            m.edges,
            "shares.edges",
            lambda e: (hospital(e.id, "shares.edges"), Secret(exact(e.share, "shares.edges", 33))),
        ),
    )


def decode_request(m: sa.RecoverRequest) -> RecoverRequest:
    """Return a request for shares."""
    most = 33 * MAX_MEMBERS + 16
    return RecoverRequest(
        certificate=decode_certificate(m.certificate),
        sealed=many(
            m.sealed,
            "request.sealed",
            lambda s: SealedFrom(
                hospital(s.sender, "request.sender"),
                exact(s.nonce, "request.nonce", 12),
                at_most(s.ct, "request.ct", most),
            ),
        ),
    )


def decode_result(m: sa.RoundResult) -> RoundResult:
    """Return how a round ended."""
    try:
        status = RoundStatus(m.status)
    except ValueError:
        raise bad("result.status", "is not opened or aborted") from None
    return RoundResult(
        hd=header_digest(m.hd),
        status=status,
        digests=decode_digests(m.survivors),
        sum_sha256=exact(m.sum_sha256, "result.sum_sha256", 0, 32),
        model_sha256=exact(m.model_sha256, "result.model_sha256", 0, 32),
        next_r=RoundNo(whole(m.next_r, "result.next_r")),
        reason=printable(m.reason, "result.reason", 64),
    )


def encode_refused(m: Refused) -> sa.Refused:
    """Encode a refusal."""
    return sa.Refused(hd=m.hd, code=m.code, detail=m.detail[:MAX_TEXT])


def decode_refused(m: sa.Refused) -> Refused:
    """Return a refusal."""
    return Refused(
        exact(m.hd, "refused.hd", 0, 32),
        error_code(m.code, "refused.code"),
        printable(m.detail, "refused.detail"),
    )
