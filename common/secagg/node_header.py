"""A node judges a round's header and derives the round's keys (sections 4.1, 4.2, 10).

Whoever writes the header chooses every number of the round, so every number is held
against the session, the accepted study and the hospital's own floors. Only then the
chains move: to round r, the seeds of `hd` are derived, one step further, and the key
of round r is gone. All of it is one durable write.
"""

from __future__ import annotations

from dataclasses import replace

from common.errors import Refusal
from common.ids import HeaderDigest, NodeId, RoundNo
from common.secagg.dp import NO_DP, DpTerms
from common.secagg.header import (
    NONCE_BYTES,
    Header,
    default_rounding,
)
from common.secagg.keys import (
    CoefficientSeed,
    SelfSeed,
    edge_seed,
    ratchet,
    ratchet_to,
    share_key,
)
from common.secagg.messages import Ready
from common.secagg.node_state import (
    HeaderExpectation,
    HeaderReceived,
    LiveSession,
    NodeCommand,
    NodeContext,
    NodeState,
    OpenRound,
    Outcome,
    PairSecrets,
    Persist,
    Phase,
    PrepareInput,
    RangeRule,
    RoundClosed,
    Send,
    SessionExpectation,
)
from common.secagg.params import EPOCH_ROUNDS
from common.secagg.rules import NodeRules, check_floors, check_hours


def make_ready(state: NodeState, ctx: NodeContext) -> Outcome:
    """Draw a fresh nonce for the next round; it replaces an earlier one.

    The nonce is not stored: after a restart the node simply says Ready again.

    Raises:
        Refusal: CLOSED, no session; EPOCH_OLD, its time is over; ROUND_OLD, its rounds
            are used up; POLICY_HOURS, the hospital starts no round now.
    """
    session = _live(state, ctx)
    check_hours(ctx.rules, ctx.now_unix)
    r = RoundNo(max(session.next_r, session.chain_r))
    if r > EPOCH_ROUNDS:
        raise Refusal("ROUND_OLD", f"the epoch's {EPOCH_ROUNDS} rounds are used up")
    nonce = ctx.entropy.take(NONCE_BYTES)
    new = replace(state, session=replace(session, nonce_r=r, nonce=nonce))
    return new, [Send(Ready(session.session_id, r, nonce))]


def _live(state: NodeState, ctx: NodeContext) -> LiveSession:
    session = state.session
    if session is None:
        raise Refusal("CLOSED", "no session is confirmed for this task")
    if ctx.now_unix > session.not_after:
        raise Refusal("EPOCH_OLD", "the session's keys are past their validity")
    return session


def header_received(
    state: NodeState, event: HeaderReceived, own: NodeId, ctx: NodeContext
) -> Outcome | None:
    """Check a header and open its round; None: it is the open round's own header.

    1 form  2 same round again  3 session, study  4 members, nonce  5 round number
    6 the hospital's hours and floors, numbers of section 1
    7 model, layout, ranges, study  8 rule 10.4

    Raises:
        Refusal: the name of the first rule that is broken.
    """
    header = event.header
    _check_form(header, ctx.rules)
    hd = header.digest()
    if state.session is not None and state.session.open is not None and state.session.open.hd == hd:
        return None
    session = _live(state, ctx)
    if hd == session.last_hd:
        raise Refusal("CLOSED", f"round {header.r} is closed and its keys are erased")
    _check_session(header, session)
    _check_members(header, session, own)
    _check_round_number(header, session)
    _check_nonce(header, session, own)
    check_hours(ctx.rules, ctx.now_unix)
    check_floors(header, ctx.rules, session.terms.suite)
    _check_numbers(header, session.expect, ctx.rules)
    _check_study(header, session.expect, ctx.rules)
    if event.received_model_sha256 != header.model_sha256:
        raise Refusal("MODEL_HASH", f"the model of round {header.r} came with other bytes")
    state.rerun.check_terms(header)
    return _open(state, session, header, hd, own, ctx)


def _check_form(header: Header, rules: NodeRules) -> None:
    """Refuse a header that no session could accept; weak privacy terms cite the policy."""
    try:
        header.check_form()
    except Refusal as refusal:
        if refusal.name != "DP_WEAK":
            raise
        raise rules.refuse("DP_WEAK", refusal.detail, "require.dp") from None


def _check_session(header: Header, session: LiveSession) -> None:
    if header.session_id != session.session_id:
        raise Refusal("EPOCH_OLD", "the header is of a session that is not live here")
    if header.config_hash != session.terms.config_hash:
        raise Refusal("CONFIG_HASH", "the header names another study than the session")
    if header.group != 0:
        raise Refusal("HEADER_FORM", f"group {header.group} in a study without groups")


def _check_members(header: Header, session: LiveSession, own: NodeId) -> None:
    known = {peer.id for peer in session.peers} | {own}
    if not known.issuperset(header.ids):
        raise Refusal("HEADER_FORM", "the header names a node that is not in the roster")
    if own not in header.ids:
        raise Refusal("HEADER_FORM", "the header does not name this node")


def _check_round_number(header: Header, session: LiveSession) -> None:
    if session.open is not None and header.r == session.open.header.r:
        raise Refusal("ROUND_OPEN", f"round {header.r} is open with another header")
    if header.r < session.chain_r:
        raise Refusal("ROUND_OLD", f"round {header.r} was used; {session.chain_r} is next")
    if header.r > EPOCH_ROUNDS:
        raise Refusal("ROUND_OLD", f"round {header.r} exceeds the epoch's {EPOCH_ROUNDS}")


def _check_nonce(header: Header, session: LiveSession, own: NodeId) -> None:
    sent = session.nonce_r == header.r and len(session.nonce) == NONCE_BYTES
    if not sent or header.nonce_of(own) != session.nonce:
        raise Refusal("HEADER_NONCE", f"round {header.r} does not carry this node's last nonce")


def _check_numbers(header: Header, expect: SessionExpectation, rules: NodeRules) -> None:
    if header.c < expect.colluders:
        found = f"c={header.c} is below the study's {expect.colluders}"
        raise rules.refuse("QUORUM_RULE", found, "require.colluders")
    if not 1 <= header.deadline_ms <= expect.max_deadline_ms:
        raise Refusal("HEADER_FORM", f"a deadline of {header.deadline_ms} ms is not the study's")


def _check_study(header: Header, expect: SessionExpectation, rules: NodeRules) -> None:
    """Hold every item that the study fixes against the header."""
    known = _find(header, expect, rules)
    if header.d != known.d or len(header.ranges) != len(known.ranges):
        raise Refusal("LAYOUT", f"d={header.d}, L={len(header.ranges)} are not the layout's")
    if header.s_min < known.s_min:
        found = f"s_min={header.s_min} is below the study's {known.s_min}"
        raise rules.refuse("SMIN_RULE", found, "require.min_sites")
    rounding = known.rounding or default_rounding(header.n, header.w)
    if (header.w, header.rounding) != (known.w, rounding):
        raise rules.refuse("HEADER_FORM", "w or rounding is not the study's", "allow.ring_bits")
    if header.w_max != known.w_max:
        raise rules.refuse("HEADER_FORM", "W_max is not the study's", "allow.weights")
    for place, (scale, rule) in enumerate(zip(header.ranges, known.ranges, strict=True)):
        if not _range_fits(scale, rule, header.bound):
            raise Refusal("HEADER_FORM", f"range {place + 1} is not the study's")
    _check_terms(header, NO_DP if known.dp is None else known.dp.terms(header.honest), rules)


def _check_terms(header: Header, wanted: DpTerms, rules: NodeRules) -> None:
    """Refuse any privacy term that is not what the accepted study makes of this round."""
    for name in DpTerms.__slots__:
        asked, accepted = getattr(header.dp, name), getattr(wanted, name)
        if asked != accepted:
            found = f"{name} is {asked}, in the study that was accepted {accepted}"
            raise rules.refuse("DP_WEAK", found, "require.dp")


def _find(header: Header, expect: SessionExpectation, rules: NodeRules) -> HeaderExpectation:
    for known in expect.rounds:
        if (known.kind, known.layout_sha256) == (header.kind, header.layout_sha256):
            return known
    found = f"the study has no {header.kind.value} round of that layout"
    raise rules.refuse("LAYOUT", found, "allow.layouts")


def _range_fits(scale: float, rule: RangeRule, bound: int) -> bool:
    match rule:
        case "free":
            return True
        case "count":
            return scale == float(bound)
        case _:
            return scale == rule


def _open(
    state: NodeState,
    session: LiveSession,
    header: Header,
    hd: HeaderDigest,
    own: NodeId,
    ctx: NodeContext,
) -> Outcome:
    """Ratchet all chains to r, derive, step once more; close what was open."""
    members = set(header.ids)
    peers = []
    pairs = []
    for peer in session.peers:
        chain = ratchet_to(peer.chain, session.chain_r, header.r)
        if peer.id in members:
            pairs.append(
                PairSecrets(
                    peer=peer.id,
                    edge=edge_seed(chain, hd),
                    seal_to=share_key(chain, hd, own, peer.id),
                    open_from=share_key(chain, hd, peer.id, own),
                )
            )
        peers.append(replace(peer, chain=ratchet(chain)))
    opened = OpenRound(
        hd=hd,
        header=header,
        phase=Phase.STARTED,
        b=SelfSeed.fresh(ctx.entropy),
        a=CoefficientSeed.fresh(ctx.entropy),
        pairs=tuple(pairs),
    )
    closing: list[NodeCommand] = []
    last = session.last_hd
    if session.open is not None:
        closing.append(RoundClosed(session.open.hd, "superseded"))
        last = session.open.hd
    live = replace(
        session,
        peers=tuple(peers),
        chain_r=RoundNo(header.r + 1),
        open=opened,
        last_hd=last,
        nonce_r=RoundNo(0),
        nonce=b"",
    )
    return replace(state, session=live), [Persist(), *closing, PrepareInput(hd, header)]
