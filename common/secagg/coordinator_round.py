"""The coordinator's work in a round, event by event (sections 4.1 to 4.7 and 5).

`Step` collects one event's facts and commands; every function here takes one. The
decisions that cannot be taken back (S, the certificate, the end) are each one fact,
recorded before any node hears of them.
"""

from __future__ import annotations

from typing import Final, TypeVar

from common.errors import InternalError, Refusal
from common.ids import NodeId, RoundNo
from common.secagg.coordinator_session import ArmTimer, SendTo
from common.secagg.coordinator_state import (
    AckUpload,
    Certified,
    Close,
    CommitAccepted,
    CommitsConflict,
    DoubleCommit,
    Evidence,
    Open,
    OpenRound,
    Record,
    RecoveredSecrets,
    RecoveryBegun,
    ReleaseAccepted,
    Report,
    RoundAborted,
    RoundClosed,
    RoundCommand,
    RoundFact,
    RoundOpened,
    RoundPhase,
    RoundState,
    RoundTerms,
    SeedsComplete,
    SetProposed,
    SharesAccepted,
    SumOpened,
    UploadAccepted,
    UploadReceived,
    apply,
    disputed,
)
from common.secagg.cover import smallest_cover
from common.secagg.header import NONCE_BYTES, Header, default_rounding, quant_bound
from common.secagg.helpers import helper_count
from common.secagg.keys import (
    EdgeSeed,
    EdgeTag,
    SelfCommit,
    SelfSeed,
    verify_session_signature,
)
from common.secagg.masking import OpeningPlan, edge_sign
from common.secagg.messages import (
    Certificate,
    Commit,
    FromCoordinator,
    Propose,
    Ready,
    RecoverRequest,
    RecoverShares,
    Release,
    RoundResult,
    RoundStart,
    RoundStatus,
    UploadEnd,
)
from common.secagg.params import SecAggParams
from common.secagg.recovery import (
    check_item,
    check_release,
    dropped,
    put_together,
    sealed_for,
)
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

LEAST_WAIT_S: Final = 2.0
WAIT_SHARE: Final = 0.1
"""Commits, releases and shares are each awaited for this share of the round's deadline."""

T = TypeVar("T")
_ENDED: Final = (RoundPhase.CLOSED, RoundPhase.ABORTED)


class Step:
    """One event's work: the state as it grows, and the commands so far."""

    def __init__(self, state: RoundState) -> None:
        self.state = state
        self.commands: list[RoundCommand] = []

    def record(self, fact: RoundFact) -> None:
        """Apply a fact and have it stored."""
        self.state = apply(self.state, fact)
        self.commands.append(Record(fact))

    def send(self, to: NodeId, message: FromCoordinator) -> None:
        """Have a message sent."""
        self.commands.append(SendTo(to, message))

    def arm(self, name: str) -> None:
        """Arm the timer of the phase just entered."""
        self.commands.append(ArmTimer(name, wait_s(self.header, name)))

    def report(self, nodes: tuple[NodeId, ...], code: str, detail: str) -> None:
        """Have a fault logged."""
        self.commands.append(Report(nodes, code, detail))

    @property
    def header(self) -> Header:
        """The round's header; it exists from RUNNING on."""
        if self.state.header is None:
            raise InternalError("the round has no header yet")
        return self.state.header


def wait_s(header: Header, name: str) -> float:
    """Return how long a timer runs, in seconds; one deadline governs all of them."""
    deadline_s = header.deadline_ms / 1000
    return deadline_s if name == "round" else max(LEAST_WAIT_S, WAIT_SHARE * deadline_s)


def find(table: tuple[tuple[NodeId, T], ...], node: NodeId) -> T | None:
    """Return a node's entry in a list of (node, value), None if there is none."""
    return next((value for known, value in table if known == node), None)


def ends(state: RoundState) -> dict[NodeId, UploadEnd]:
    """Return every stored end record."""
    return {upload.sender: upload.end for upload in state.uploads}


# --- COLLECTING (4.1, 4.2) -------------------------------------------------------------------


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
    )


# --- RUNNING: uploads (4.3) ---------------------------------------------------------------------


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


# --- PROPOSED: the one set (4.3, 4.4) -----------------------------------------------------------


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
    if step.state.phase is RoundPhase.PROPOSED and len(step.state.commits) >= step.header.q:
        _certify(step)


def _compare(step: Step, sender: NodeId, known: Commit, message: Commit) -> None:
    """A second, different commit is evidence; the first pair of them is kept."""
    if known == message or any(one.node == sender for one in step.state.evidence):
        return
    evidence = DoubleCommit(sender, known, message)
    step.record(CommitsConflict(evidence))
    step.commands.append(Evidence(evidence))
    step.report((sender,), "COMMIT_SIG", "two different commits in one round")


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


# --- CERTIFIED, RECOVERING (4.5, 4.6) ----------------------------------------------------------------


def release(step: Step, sender: NodeId, message: Release) -> None:
    """Store a release that fits what its sender committed to.

    Raises:
        Refusal: OUT_OF_TURN; RELEASE_BAD: the sender counts as silent.
    """
    state = step.state
    if state.certificate is None or message.hd != state.hd or sender not in state.survivors:
        raise Refusal("OUT_OF_TURN", f"{sender} releases outside a certified set")
    if find(state.releases, sender) is not None or state.phase not in (
        RoundPhase.CERTIFIED,
        RoundPhase.RECOVERING,
    ):
        return
    outside = dropped(step.header, state.survivors)
    check_release(message, sender, ends(state)[sender], outside)
    step.record(ReleaseAccepted(sender, message))
    _maybe_open(step)
    maybe_recover(step)


def silent(state: RoundState) -> tuple[NodeId, ...]:
    """Return the members of S that have not released, sorted."""
    released = {node for node, _ in state.releases}
    return tuple(node for node in state.survivors if node not in released)


def maybe_recover(step: Step, *, final: bool = False) -> None:
    """Ask helpers once every silent member is away, or at the deadline (`final`)."""
    state = step.state
    quiet = silent(state)
    if state.phase is not RoundPhase.CERTIFIED or not quiet:
        return
    if not final and any(node not in state.gone | state.left for node in quiet):
        return
    step.record(RecoveryBegun())
    step.arm("recover")
    for helper in state.survivors:
        if helper not in quiet:
            ask(step, helper)


def ask(step: Step, helper: NodeId) -> None:
    """Ask one helper for its shares of all silent members it serves."""
    state = step.state
    if state.certificate is None:
        return
    owed = {node: end for node, end in ends(state).items() if node in silent(state)}
    sealed = sealed_for(helper, owed)
    if sealed:
        step.send(helper, RecoverRequest(state.certificate, sealed))


def shares(step: Step, sender: NodeId, message: RecoverShares) -> None:
    """Store a helper's shares and try whether they are enough.

    Raises:
        Refusal: OUT_OF_TURN, nobody asked; SHARE_BAD, malformed.
    """
    state = step.state
    if state.certificate is None or message.hd != state.hd or sender not in state.survivors:
        raise Refusal("OUT_OF_TURN", f"{sender} sent shares that nobody asked for")
    if state.phase is not RoundPhase.RECOVERING or find(state.shares, sender) is not None:
        return
    outside = dropped(step.header, state.survivors)
    names = [item.sender for item in message.items]
    if len(set(names)) != len(names) or not set(state.survivors) - {sender} >= set(names):
        raise Refusal("SHARE_BAD", f"{sender} sent shares of nodes outside the certified set")
    for item in message.items:
        check_item(item, sender, outside)
    step.record(SharesAccepted(sender, message))
    _maybe_open(step)


def _maybe_open(step: Step) -> None:
    """Open as soon as every seed is released or put together."""
    state = step.state
    recovered: list[RecoveredSecrets] = []
    for node in silent(state):
        items = {
            helper: item
            for helper, answer in state.shares
            for item in answer.items
            if item.sender == node
        }
        found = put_together(step.header, state.hd, node, ends(state)[node], items)
        if found is None:
            return
        if found.b is None:
            return
        if found.liars:
            step.report(found.liars, "SHARE_BAD", f"wrong shares of {node} were sent")
        recovered.append(RecoveredSecrets(node, found.b, found.edges))
    step.record(SeedsComplete(tuple(recovered)))
    step.commands.append(opening(step.state, step.header))


# --- OPENED, CLOSED, ABORTED (4.7) -----------------------------------------------------------------------


def opening(state: RoundState, header: Header) -> Open:
    """Return what opens the sum: from releases, and from what was put together."""
    from_helpers = {one.node: one for one in state.recovered}
    self_seeds = []
    edges = []
    for node in state.survivors:
        if node in from_helpers:
            self_seeds.append(from_helpers[node].b)
            seeds = from_helpers[node].edges
        else:
            released = find(state.releases, node)
            if released is None:
                raise InternalError("a survivor's seeds are missing at the opening")
            self_seeds.append(SelfSeed(released.b.reveal()))
            seeds = tuple((other, EdgeSeed(seed.reveal())) for other, seed in released.edges)
        edges += [(seed, edge_sign(node, other)) for other, seed in seeds]
    plan = OpeningPlan(tuple(self_seeds), tuple(edges), header.w)
    return Open(header, state.survivors, plan)


def result(state: RoundState) -> RoundResult:
    """Return what all members are told once the round has ended."""
    opened = state.phase is RoundPhase.CLOSED
    return RoundResult(
        hd=state.hd,
        status=RoundStatus.OPENED if opened else RoundStatus.ABORTED,
        digests=state.digests if state.certificate is not None else (),
        sum_sha256=state.sum_sha256,
        model_sha256=state.model_sha256,
        next_r=RoundNo(state.r + 1),
        reason=state.reason,
    )


def sum_opened(step: Step, event: SumOpened) -> None:
    """Close the round; the driver has used the sum.

    Raises:
        InternalError: no sum is open.
    """
    if step.state.phase is RoundPhase.CLOSED:
        return
    if step.state.phase is not RoundPhase.OPENED:
        raise InternalError("no sum is open in this round")
    step.record(RoundClosed(event.sum_sha256, event.model_sha256))
    _finish(step, RoundStatus.OPENED, ())


def abort(step: Step, reason: str, sit_out: tuple[NodeId, ...] = ()) -> None:
    """End the round without a sum and say why; nothing more of it is ever opened."""
    if step.state.phase in _ENDED:
        return
    step.record(RoundAborted(reason))
    _finish(step, RoundStatus.ABORTED, sit_out)


def _finish(step: Step, status: RoundStatus, sit_out: tuple[NodeId, ...]) -> None:
    message = result(step.state)
    for node, _ in step.state.session.keys:
        step.send(node, message)
    step.commands.append(Close(status, step.state.reason, sit_out))


def quorum_possible(state: RoundState, header: Header) -> bool:
    """Return whether q members of S have committed or still may."""
    committed = {node for node, _ in state.commits}
    return sum(n in committed or n not in state.left for n in state.survivors) >= header.q
