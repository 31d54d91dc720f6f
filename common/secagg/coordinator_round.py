"""From the nonces to the certificate: header, uploads, the one set (sections 4.1 to 4.5)."""

from __future__ import annotations

from common.errors import InternalError, Refusal
from common.ids import NodeId
from common.secagg.coordinator_facts import (
    AckUpload,
    Certified,
    CommitAccepted,
    CommitsConflict,
    Evidence,
    RoundOpened,
    SetProposed,
    UploadAccepted,
    disputed,
)
from common.secagg.coordinator_open import maybe_recover
from common.secagg.coordinator_state import (
    DoubleCommit,
    OpenRound,
    RoundPhase,
    RoundState,
    RoundTerms,
    UploadReceived,
)
from common.secagg.coordinator_step import Step, abort, ends, find
from common.secagg.cover import smallest_cover
from common.secagg.dp import NO_DP
from common.secagg.header import NONCE_BYTES, Header, default_rounding, quant_bound
from common.secagg.helpers import helper_count
from common.secagg.keys import EdgeTag, SelfCommit, verify_session_signature
from common.secagg.messages import Certificate, Commit, Propose, Ready, RoundStart
from common.secagg.params import SecAggParams
from common.secagg.ring import word_bytes
from common.secagg.sealed import OVERHEAD_BYTES
from common.secagg.shamir import SHARE_BYTES
from common.secagg.transcript import (
    commit_statement,
    set_hash,
    sort_ids,
    tags_hash,
    upload_statement,
)

# --- COLLECTING (4.1, 4.2) ------------------------------------------------------------


def ready(state: RoundState, sender: NodeId, message: Ready) -> tuple[tuple[NodeId, bytes], ...]:
    """Return the nonces with the sender's last one.

    Raises:
        Refusal: OUT_OF_TURN.
    """
    if find(state.session.keys, sender) is None:
        raise Refusal("OUT_OF_TURN", f"{sender} has not confirmed this session")
    named = (message.session_id, message.r)
    if named != (state.session.session_id, state.r) or len(message.nonce) != NONCE_BYTES:
        raise Refusal("OUT_OF_TURN", f"{sender} is ready for another round than {state.r}")
    if state.phase is not RoundPhase.COLLECTING:
        raise Refusal("OUT_OF_TURN", f"round {state.r} has begun without {sender}")
    others = [entry for entry in state.ready if entry[0] != sender]
    return (*others, (sender, message.nonce))


def open_round(step: Step, event: OpenRound) -> None:
    """Fix the header and send it to U.

    Raises:
        Refusal: COHORT_SMALL and the like: no safe round has this shape.
        InternalError: a member that is not ready, or a round opened twice.
    """
    state = step.state
    if state.phase is not RoundPhase.COLLECTING:
        raise InternalError("a round is opened once")
    header = _header(state, event.terms, event.members)
    header.check_form()
    step.record(RoundOpened(state.session, state.edges, header))
    step.arm("round")
    for node in header.ids:
        step.send(node, RoundStart(header))


def _header(state: RoundState, terms: RoundTerms, chosen: tuple[NodeId, ...]) -> Header:
    nonces = dict(state.ready)
    if not nonces.keys() >= set(chosen):
        raise InternalError("only ready nodes can take part in a round")
    n = len(set(chosen))
    params = SecAggParams.derive(n, terms.c, s_min=terms.s_min, ring_bits=terms.w)
    level = float(quant_bound(n, terms.w))
    return Header(
        session_id=state.session.session_id,
        r=state.r,
        kind=terms.kind,
        model_sha256=terms.model_sha256,
        layout_sha256=terms.layout_sha256,
        config_hash=state.session.config_hash,
        members=tuple((node, nonces[node]) for node in sort_ids(set(chosen))),
        d=terms.d,
        w=terms.w,
        c=terms.c,
        q=params.q,
        s_min=params.s_min,
        t_h=params.t_h,
        kappa=params.kappa,
        ranges=tuple(level if scale == "count" else float(scale) for scale in terms.ranges),
        w_max=terms.w_max,
        rounding=terms.rounding or default_rounding(n, terms.w),
        deadline_ms=terms.deadline_ms,
        dp=NO_DP if terms.dp is None else terms.dp.terms(params.s_min - terms.c),
    )


# --- RUNNING: uploads (4.3) -----------------------------------------------------------


def upload(step: Step, event: UploadReceived) -> None:
    """Accept a complete upload once; the same one again is acknowledged again.

    Raises:
        Refusal: OUT_OF_TURN, UPLOAD_LATE, UPLOAD_SIZE, UPLOAD_DIGEST or UPLOAD_SIG.
    """
    state = step.state
    known = ends(state).get(event.sender)
    if known is not None and known == event.end:
        step.commands.append(AckUpload(event.sender, state.hd))
        return
    if state.header is None or event.end.hd != state.hd:
        raise Refusal("OUT_OF_TURN", f"{event.sender} uploads for another header")
    if event.sender not in state.header.ids:
        raise Refusal("OUT_OF_TURN", f"{event.sender} is not a member of round {state.r}")
    if known is not None:
        raise Refusal("UPLOAD_DIGEST", f"{event.sender} sent a second, different upload")
    if state.phase is not RoundPhase.RUNNING:
        raise Refusal("UPLOAD_LATE", f"the set of round {state.r} was fixed without it")
    _check_upload(state, state.header, event)
    bad = disputed(state, event.sender, event.end)
    step.record(UploadAccepted(event.sender, event.end))
    step.commands.append(AckUpload(event.sender, state.hd))
    for pair in bad:
        step.report(pair, "TAG_MISMATCH", f"the two ends of {pair[0]} - {pair[1]} disagree")
    maybe_propose(step)


def _check_upload(state: RoundState, header: Header, event: UploadReceived) -> None:
    """1 size  2 digest  3 tags and helpers complete  4 signature."""
    sender, end = event.sender, event.end
    expected = header.d * word_bytes(header.w)
    if event.size_bytes != expected:
        raise Refusal("UPLOAD_SIZE", f"{sender} sent {event.size_bytes} bytes, not {expected}")
    if end.ydig != event.ydig:
        raise Refusal("UPLOAD_DIGEST", f"the bytes of {sender} do not match its digest")
    others = [node for node in header.ids if node != sender]
    if [node for node, _ in end.tags] != others:
        raise Refusal("UPLOAD_SIG", f"{sender} did not send one tag for each edge, in order")
    helpers = [one.helper for one in end.sealed]
    size = header.n * SHARE_BYTES + OVERHEAD_BYTES
    proper = (
        len(helpers) == helper_count(header.n)
        and list(sort_ids(set(helpers) & set(others))) == helpers
        and all(len(one.ct) == size for one in end.sealed)
    )
    if not proper:
        raise Refusal("UPLOAD_SIG", f"{sender} did not seal its shares to {header.kappa} helpers")
    tags = {node: EdgeTag(tag) for node, tag in end.tags}
    commit = SelfCommit(end.self_commit)
    data = upload_statement(state.hd, sender, end.ydig, commit, tags_hash(tags))
    key = find(state.session.keys, sender) or b""
    verify_session_signature(key, end.sig, data, refusal="UPLOAD_SIG", who=sender)


# --- PROPOSED: the one set (4.3, 4.4) -------------------------------------------------


def maybe_propose(step: Step, *, final: bool = False) -> None:
    """Propose S once nobody is awaited, or at the deadline (`final`) if enough came."""
    state, header = step.state, step.header
    uploaded = ends(state)
    if len(header.ids) - len(state.left - uploaded.keys()) < header.s_min:
        abort(step, "NOT_ENOUGH")
        return
    awaited = [n for n in header.ids if n not in uploaded and n not in state.left]
    if not final and any(node not in state.gone for node in awaited):
        return
    out = smallest_cover(uploaded.keys(), state.edges, header.c)
    digests = tuple(
        (node, uploaded[node].ydig) for node in header.ids if node in uploaded and node not in out
    )
    if len(digests) >= header.s_min:
        if out:
            step.report(sort_ids(out), "TAG_MISMATCH", "left out of the survivor set")
        step.record(SetProposed(digests))
        step.arm("commit")
        for node, _ in digests:
            step.send(node, Propose(state.hd, digests))
    elif final or not awaited:
        abort(step, "TAG_MISMATCH" if len(uploaded) >= header.s_min else "NOT_ENOUGH")


def commit(step: Step, sender: NodeId, message: Commit) -> None:
    """Store a verified commit; with the q-th, send the certificate.

    Raises:
        Refusal: OUT_OF_TURN or COMMIT_SIG.
    """
    state = step.state
    if state.phase is RoundPhase.ABORTED or message.hd != state.hd:
        raise Refusal("OUT_OF_TURN", f"{sender} commits to a header that is not open")
    if sender not in state.survivors:
        raise Refusal("OUT_OF_TURN", f"{sender} is not in the proposed set")
    known = find(state.commits, sender)
    if known is not None:
        _compare(step, sender, known, message)
        return
    digests = dict(state.digests)
    if bytes(message.set_hash) != set_hash(digests):
        raise Refusal("COMMIT_SIG", f"{sender} committed to another set than the proposed one")
    data = commit_statement(state.hd, digests)
    key = find(state.session.keys, sender) or b""
    verify_session_signature(key, message.sig, data, refusal="COMMIT_SIG", who=sender)
    step.record(CommitAccepted(sender, message))
    maybe_certify(step)


def _compare(step: Step, sender: NodeId, known: Commit, message: Commit) -> None:
    """A second, different commit is evidence; the first pair of them is kept."""
    if known == message or any(one.node == sender for one in step.state.evidence):
        return
    evidence = DoubleCommit(sender, known, message)
    step.record(CommitsConflict(evidence))
    step.commands.append(Evidence(evidence))
    step.report((sender,), "COMMIT_SIG", "two different commits in one round")


def maybe_certify(step: Step) -> None:
    """Issue the certificate with the q-th commit; end a round that cannot have q."""
    state = step.state
    if state.phase is not RoundPhase.PROPOSED:
        return
    if len(state.commits) >= step.header.q:
        _certify(step)
    elif not quorum_possible(state, step.header):
        abort(step, "NOT_ENOUGH")


def _certify(step: Step) -> None:
    state = step.state
    signed = dict(state.commits)
    sigs = tuple((node, signed[node].sig) for node in state.survivors if node in signed)
    certificate = Certificate(state.hd, state.digests, sigs)
    step.record(Certified(certificate))
    step.arm("release")
    for node in state.survivors:
        step.send(node, certificate)
    maybe_recover(step)


def quorum_possible(state: RoundState, header: Header) -> bool:
    """Return whether q members of S have committed or still may."""
    committed = {node for node, _ in state.commits}
    return sum(n in committed or n not in state.left for n in state.survivors) >= header.q
