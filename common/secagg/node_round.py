"""A node in an open round: upload, commit, release, recover (sections 4.3 to 4.6).

What makes a sum safe is decided here, twice: before the commit is signed and again
before anything is released. Both pass through `_bind`, the only place that sets the
one survivor set of the round. Outside S a node releases nothing, ever; inside, `b_i`
and the `e_ij` of those outside S, never anything else.
"""

from __future__ import annotations

from dataclasses import replace

from common.errors import Refusal
from common.ids import HeaderDigest, NodeId, RoundNo, Sha256
from common.secagg.header import Header
from common.secagg.helpers import draw_helpers
from common.secagg.keys import (
    SessionKey,
    edge_tag,
    self_commit,
    verify_session_signature,
)
from common.secagg.messages import (
    Certificate,
    Commit,
    Digests,
    Propose,
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
from common.secagg.node_state import (
    InputFailed,
    InputFinal,
    LiveSession,
    NodeCommand,
    NodeContext,
    NodeState,
    OpenRound,
    Outcome,
    Persist,
    Phase,
    PrepareInput,
    Report,
    RoundClosed,
    Send,
    StartUpload,
    Upload,
    UploadAcked,
)
from common.secagg.sealed import NONCE_BYTES, Sealed, open_sealed, seal
from common.secagg.shamir import SELF_NAME, share_secrets, split_bundle
from common.secagg.transcript import (
    commit_statement,
    set_hash,
    tags_hash,
    upload_statement,
)
from common.secret import Secret


def open_round(state: NodeState, hd: HeaderDigest) -> tuple[LiveSession, OpenRound]:
    """Return the live session and its open round.

    Raises:
        Refusal: CLOSED, no round of this header is open.
    """
    session = state.session
    if session is None or session.open is None or session.open.hd != hd:
        raise Refusal("CLOSED", "no round of this header is open; its keys are erased")
    return session, session.open


def _with_round(state: NodeState, session: LiveSession, opened: OpenRound) -> NodeState:
    return replace(state, session=replace(session, open=opened))


# --- upload (4.3) ---------------------------------------------------------------------


def input_final(state: NodeState, event: InputFinal, own: NodeId, ctx: NodeContext) -> Outcome:
    """Fix the one upload of this header; everything that rebuilds it becomes durable.

    Raises:
        Refusal: CLOSED; DIGEST, another input was final before.
    """
    session, opened = open_round(state, event.hd)
    if opened.upload is not None:
        if opened.upload.ydig != event.ydig:
            raise Refusal("DIGEST", "another input was final for this header")
        return state, [StartUpload(upload_end(session.key, opened, own))]
    helpers = draw_helpers(own, opened.header.ids, ctx.entropy)
    nonces = tuple(ctx.entropy.take(NONCE_BYTES) for _ in helpers)
    upload = Upload(event.ydig, helpers, nonces)
    opened = replace(opened, phase=Phase.UPLOADING, upload=upload)
    end = upload_end(session.key, opened, own)
    return _with_round(state, session, opened), [Persist(), StartUpload(end)]


def upload_end(key: SessionKey, opened: OpenRound, own: NodeId) -> UploadEnd:
    """Return the end record; the same bytes however often it is asked for.

    Raises:
        Refusal: CLOSED, the input is not final.
    """
    upload = opened.upload
    if upload is None:
        raise Refusal("CLOSED", "no input is final for this header")
    tags = {pair.peer: edge_tag(pair.edge) for pair in opened.pairs}
    commit = self_commit(opened.hd, own, opened.b)
    statement = upload_statement(opened.hd, own, upload.ydig, commit, tags_hash(tags))
    return UploadEnd(
        hd=opened.hd,
        ydig=upload.ydig,
        self_commit=Sha256(commit),
        tags=tuple(tags.items()),
        sealed=_sealed_shares(opened, upload, own),
        sig=key.sign(statement),
    )


def _sealed_shares(opened: OpenRound, upload: Upload, own: NodeId) -> tuple[SealedShares, ...]:
    secrets: list[tuple[str, Secret]] = [(SELF_NAME, opened.b)]
    secrets += [(pair.peer, pair.edge) for pair in opened.pairs]
    points = [opened.header.point_of(helper) for helper in upload.helpers]
    bundles = share_secrets(secrets, opened.a, opened.header.t_h, points)
    keys = {pair.peer: pair.seal_to for pair in opened.pairs}
    sealed = []
    for helper, bundle, nonce in zip(upload.helpers, bundles, upload.seal_nonces, strict=True):
        one = seal(keys[helper], opened.hd, own, helper, bundle, _Drawn(nonce))
        sealed.append(SealedShares(helper, one.nonce, one.ct))
    return tuple(sealed)


class _Drawn:
    """Entropy that was drawn and stored before, so that a restart repeats the bytes."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    def take(self, count: int) -> bytes:
        """Return the stored bytes, all of them."""
        if count != len(self._value):
            raise Refusal("CLOSED", "the stored nonce is of another length")
        return self._value


def upload_acked(state: NodeState, event: UploadAcked) -> Outcome:
    """Note that the coordinator holds the upload. Losing this note costs a resume.

    Raises:
        Refusal: CLOSED.
    """
    session, opened = open_round(state, event.hd)
    if opened.phase is not Phase.UPLOADING:
        return state, []
    return _with_round(state, session, replace(opened, phase=Phase.UPLOADED)), []


# --- propose and commit (4.4) ---------------------------------------------------------


def propose(state: NodeState, event: Propose, own: NodeId) -> Outcome:
    """Sign the survivor set, once; the same set again repeats the signature.

    Raises:
        Refusal: CLOSED, NOT_IN_SET, DIGEST, SET_SMALL, SET_CONFLICT or RERUN.
    """
    session, opened = open_round(state, event.hd)
    bound = _bind(state, opened, event.digests, own)
    phase = Phase.RELEASED if opened.phase is Phase.RELEASED else Phase.COMMITTED
    new = _with_round(state, session, replace(opened, phase=phase, accepted=event.digests))
    return replace(new, rerun=bound.rerun), [Persist(), Send(commit(session.key, event))]


def commit(key: SessionKey, proposed: Propose) -> Commit:
    """Return the signature over `st`; Ed25519 gives the same bytes every time."""
    digests = dict(proposed.digests)
    sig = key.sign(commit_statement(proposed.hd, digests))
    return Commit(proposed.hd, Sha256(set_hash(digests)), sig)


def _bind(state: NodeState, opened: OpenRound, digests: Digests, own: NodeId) -> NodeState:
    """Return the state with rule 10.4's memory, if this set may be signed or accepted.

    1 list sorted, inside U  2 own id and digest  3 size  4 one set  5 rule 10.4
    """
    header = opened.header
    survivors = [node for node, _ in digests]
    if own not in survivors:
        raise Refusal("NOT_IN_SET", f"the survivor set of round {header.r} leaves this node out")
    if survivors != [node for node in header.ids if node in set(survivors)]:
        raise Refusal("DIGEST", "the survivors are not a sorted list of members of the round")
    if opened.upload is None or dict(digests)[own] != opened.upload.ydig:
        raise Refusal("DIGEST", "the list does not carry this node's own upload")
    if len(survivors) < header.s_min:
        raise Refusal("SET_SMALL", f"{len(survivors)} survivors; the header asks {header.s_min}")
    if opened.accepted is not None and opened.accepted != digests:
        raise Refusal("SET_CONFLICT", f"another set was signed or accepted in round {header.r}")
    state.rerun.check_set(header, survivors)
    return replace(state, rerun=state.rerun.remember(header, survivors))


# --- certificate and release (4.5) ----------------------------------------------------


def certificate(state: NodeState, event: Certificate, own: NodeId) -> Outcome:
    """Verify a quorum on one set, be bound by it, release what opens its sum.

    Raises:
        Refusal: CLOSED, RELEASE_OUTSIDE, DIGEST, SET_SMALL, SET_CONFLICT, RERUN,
            CERT_QUORUM or CERT_SIG.
    """
    session, opened = open_round(state, event.hd)
    new, released = _accept(state, session, opened, event, own)
    return new, [Persist(), Send(release(released))]


def _accept(
    state: NodeState, session: LiveSession, opened: OpenRound, cert: Certificate, own: NodeId
) -> tuple[NodeState, OpenRound]:
    if own not in dict(cert.digests):
        raise Refusal("RELEASE_OUTSIDE", "the certified set leaves this node out")
    bound = _bind(state, opened, cert.digests, own)
    _check_quorum(session, opened.header, cert, own)
    released = replace(opened, phase=Phase.RELEASED, accepted=cert.digests)
    return _with_round(bound, session, released), released


def _check_quorum(session: LiveSession, header: Header, cert: Certificate, own: NodeId) -> None:
    digests = dict(cert.digests)
    signers = [node for node, _ in cert.sigs]
    if len(set(signers)) != len(signers) or not digests.keys() >= set(signers):
        raise Refusal("CERT_QUORUM", "the signers are not distinct members of the set")
    if len(signers) < header.q:
        raise Refusal("CERT_QUORUM", f"{len(signers)} signatures of the {header.q} needed")
    keys = {peer.id: peer.key for peer in session.peers}
    keys[own] = session.key.public()
    data = commit_statement(cert.hd, digests)
    for node, sig in cert.sigs:
        verify_session_signature(keys[node], sig, data, refusal="CERT_SIG", who=node)


def release(opened: OpenRound) -> Release:
    """Return `b_i` and `e_ij` for j outside the accepted set; the round is RELEASED.

    Raises:
        Refusal: CLOSED, no certificate was accepted.
    """
    if opened.phase is not Phase.RELEASED or opened.accepted is None:
        raise Refusal("CLOSED", "no certificate was accepted in this round")
    survivors = dict(opened.accepted)
    outside = [pair for pair in opened.pairs if pair.peer not in survivors]
    edges = tuple((pair.peer, Secret(pair.edge.reveal())) for pair in outside)
    return Release(opened.hd, Secret(opened.b.reveal()), edges)


# --- recover (4.6) --------------------------------------------------------------------


def recover(state: NodeState, event: RecoverRequest, own: NodeId) -> Outcome:
    """Open silent members' shares and return those that open the certified sum.

    One member's bad bundle does not keep back the others' shares: it is reported, and
    left out of the answer.

    Raises:
        Refusal: as `certificate`; RECOVER_OUTSIDE; SHARE_OPEN, not one bundle opens.
    """
    session, opened = open_round(state, event.certificate.hd)
    new, released = _accept(state, session, opened, event.certificate, own)
    survivors = frozenset(dict(event.certificate.digests))
    senders = [sealed.sender for sealed in event.sealed]
    if len(set(senders)) != len(senders) or not survivors - {own} >= set(senders):
        raise Refusal("RECOVER_OUTSIDE", "shares of a node outside the set were asked for")
    items: list[RecoverItem] = []
    reports: list[NodeCommand] = []
    for sealed in event.sealed:
        try:
            items.append(_open_bundle(released, survivors, sealed, own))
        except Refusal as refusal:
            reports.append(Report(refusal.name, refusal.detail))
    if not items:
        raise Refusal("SHARE_OPEN", "none of the sealed shares opens")
    answer: list[NodeCommand] = [Send(RecoverShares(opened.hd, tuple(items)))]
    if opened.phase is not Phase.RELEASED:
        answer.insert(0, Send(release(released)))
    return new, [Persist(), *reports, *answer]


def _open_bundle(
    opened: OpenRound, survivors: frozenset[NodeId], sealed: SealedFrom, own: NodeId
) -> RecoverItem:
    keys = {pair.peer: pair.open_from for pair in opened.pairs}
    closed = Sealed(sealed.nonce, sealed.ct)
    bundle = open_sealed(keys[sealed.sender], opened.hd, sealed.sender, own, closed)
    others = [node for node in opened.header.ids if node != sealed.sender]
    b_share, *edge_shares = split_bundle(bundle, 1 + len(others))
    edges = tuple(
        (node, Secret(share))
        for node, share in zip(others, edge_shares, strict=True)
        if node not in survivors
    )
    return RecoverItem(sealed.sender, Secret(b_share), edges)


# --- the end (section 5) --------------------------------------------------------------


def closed(state: NodeState, session: LiveSession, next_r: RoundNo | None = None) -> NodeState:
    """Return the state without the open round: all its secrets are gone."""
    opened = session.open
    return replace(
        state,
        session=replace(
            session,
            open=None,
            last_hd=session.last_hd if opened is None else opened.hd,
            next_r=session.next_r if next_r is None else next_r,
        ),
    )


def round_result(state: NodeState, event: RoundResult) -> Outcome:
    """Close the round; a result of a round missed only tells the next number.

    Raises:
        Refusal: CLOSED, no session.
    """
    session = state.session
    if session is None:
        raise Refusal("CLOSED", "no session is confirmed for this task")
    if session.open is None or session.open.hd != event.hd:
        return replace(state, session=replace(session, next_r=event.next_r)), []
    done = RoundClosed(event.hd, event.status.value)
    new, opened = closed(state, session, event.next_r), session.open
    if event.status is RoundStatus.OPENED and opened.accepted is not None:
        new = replace(new, rerun=new.rerun.with_opened(opened.header))
    return new, [Persist(), done]


def local_timeout(state: NodeState, hd: HeaderDigest) -> Outcome:
    """Close a round that lasted too long.

    Raises:
        Refusal: CLOSED.
    """
    session, _ = open_round(state, hd)
    return closed(state, session), [Persist(), RoundClosed(hd, "timeout")]


def input_failed(state: NodeState, event: InputFailed) -> Outcome:
    """Leave a round for which no input can be made, and say so.

    Raises:
        Refusal: CLOSED.
    """
    session, _ = open_round(state, event.hd)
    refused = Refused(event.hd, event.code, event.detail)
    return closed(state, session), [Persist(), RoundClosed(event.hd, "left"), Send(refused)]


def header_again(state: NodeState, own: NodeId) -> Outcome:
    """Answer the open round's own header; an input that is being made is not begun twice."""
    session = state.session
    if session is None or session.open is None or session.open.phase is Phase.STARTED:
        return state, []
    return state, repeat_round(session, session.open, own)


def repeat_round(session: LiveSession, opened: OpenRound, own: NodeId) -> list[NodeCommand]:
    """Return what the round said or asked for last, byte for byte."""
    match opened.phase:
        case Phase.STARTED:
            return [PrepareInput(opened.hd, opened.header)]
        case Phase.UPLOADING | Phase.UPLOADED:
            return [StartUpload(upload_end(session.key, opened, own))]
        case Phase.COMMITTED:
            return [Send(commit(session.key, Propose(opened.hd, opened.accepted or ())))]
        case Phase.RELEASED:
            return [Send(release(opened))]
