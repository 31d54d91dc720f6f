"""A node's side of an epoch's set-up (section 3.3).

    BeginEpoch   fresh keys, signed advert                       -> Advertised
    Roster       every check of 3.3; encapsulate to larger ids   -> Encapsulated
    KemForward   pair keys; erase X25519, ML-KEM and prk; confirm -> LiveSession

In the classical suite the roster leads straight to the live session. The smallest id
awaits no ciphertext, but the empty KemForward: it says that its own Kem has arrived.
Confirming closes the round of an earlier session: one session per task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from common.errors import Refusal
from common.ids import NodeId, RoundNo, SessionId
from common.secagg.keys import (
    AgreementKeys,
    KemSecret,
    SessionKey,
    Suite,
    chain0,
    encapsulate,
    pair_prk,
)
from common.secagg.messages import Confirm, Kem, KemForward, KemItem, KeyAdvert, Roster
from common.secagg.node_state import (
    Advertised,
    BeginEpoch,
    Encapsulated,
    LiveSession,
    NodeCommand,
    NodeContext,
    NodeState,
    Outcome,
    Peer,
    Persist,
    RoundClosed,
    Send,
    SentCiphertext,
    Setup,
)
from common.secagg.params import EPOCH_SECONDS
from common.secagg.session import (
    body_of,
    check_advert,
    check_ciphertext,
    check_distinct,
    larger_ids,
    session_of,
    smaller_ids,
)
from common.secagg.transcript import confirm_statement, kem_statement

_TWO_PARTY = 2


def begin_epoch(state: NodeState, event: BeginEpoch, ctx: NodeContext) -> Outcome:
    """Make and sign fresh keys; the same epoch again repeats the same advert.

    Raises:
        Refusal: EPOCH_OLD.
    """
    setup = state.setup
    if isinstance(setup, Advertised) and setup.terms == event.terms:
        return state, [Persist(), Send(setup.advert)]
    if event.terms.epoch <= state.last_epoch:
        raise Refusal("EPOCH_OLD", f"epoch {event.terms.epoch} is not above {state.last_epoch}")
    if event.terms.epoch > max(state.last_epoch, ctx.now_unix) + EPOCH_SECONDS:
        # A node never goes back: a huge number would shut out every later coordinator.
        raise Refusal("EPOCH_OLD", f"epoch {event.terms.epoch} lies too far ahead")
    agreement = AgreementKeys.generate(event.terms.suite, ctx.entropy)
    key = SessionKey.generate(ctx.entropy)
    advert = _signed_advert(event, agreement, key, ctx)
    begun = Advertised(event.terms, event.expect, agreement, key, advert)
    new = replace(state, last_epoch=event.terms.epoch, setup=begun)
    return new, [Persist(), Send(advert)]


def _signed_advert(
    event: BeginEpoch, agreement: AgreementKeys, key: SessionKey, ctx: NodeContext
) -> KeyAdvert:
    unsigned = KeyAdvert(
        id=ctx.signer.node_id,
        federation=event.terms.federation,
        task=event.terms.task,
        epoch=event.terms.epoch,
        x25519_pub=agreement.x25519_public(),
        mlkem_pub=agreement.mlkem_public(),
        ed25519_pub=key.public(),
        config_hash=event.terms.config_hash,
        not_before=event.not_before,
        not_after=event.not_after,
        cert_chain=ctx.signer.chain,
        sig=b"",
    )
    return replace(unsigned, sig=ctx.signer.sign(body_of(unsigned)))


# --- roster ---------------------------------------------------------------------------


def roster(state: NodeState, event: Roster, ctx: NodeContext) -> Outcome:
    """Accept a roster once; the same one again repeats what was answered.

    Raises:
        Refusal: EPOCH_OLD, no epoch is open or another roster was accepted for it;
            OWN_ADVERT, ADVERT_DUP, COHORT_SMALL, and those of `check_advert`.
    """
    match state.setup:
        case Advertised() as begun if _is_for(begun, event):
            return _first_roster(state, begun, event, ctx)
        case Encapsulated() as known if _is_for(known.begun, event):
            if session_of(event.adverts, known.begun.terms) != known.session_id:
                raise Refusal("EPOCH_OLD", "another roster was accepted for this epoch")
            return state, [Persist(), Send(known.kem)]
        case _:
            return _roster_again(state, event)


def _is_for(begun: Advertised, event: Roster) -> bool:
    return any(advert.epoch == begun.terms.epoch for advert in event.adverts)


def _roster_again(state: NodeState, event: Roster) -> Outcome:
    """A roster of the live session: confirm again and take the round number."""
    session = state.session
    if session is None or session_of(event.adverts, session.terms) != session.session_id:
        raise Refusal("EPOCH_OLD", "the roster is of no epoch that is being set up")
    new = replace(state, session=replace(session, next_r=event.next_r))
    return new, [Send(_confirm(session))]


def _first_roster(state: NodeState, begun: Advertised, event: Roster, ctx: NodeContext) -> Outcome:
    """Steps: 1 own advert  2 distinct  3 cohort  4 every advert  5 encapsulate."""
    if begun.advert not in event.adverts:
        raise Refusal("OWN_ADVERT", "the roster does not hold this node's advert as it was sent")
    check_distinct(event.adverts)
    _check_cohort(len(event.adverts), ctx)
    for advert in event.adverts:
        check_advert(advert, begun.terms, ctx.trust, ctx.now_unix)
    # Chains served the checks above; the state need not carry n of them.
    members = tuple(
        replace(advert, cert_chain=())
        for advert in sorted(event.adverts, key=lambda advert: advert.id.encode())
    )
    session = session_of(members, begun.terms)
    sent = _encapsulate_all(begun, members)
    known = Encapsulated(
        begun=begun,
        session_id=session,
        members=members,
        next_r=event.next_r,
        not_after=min(advert.not_after for advert in members),
        sent=sent,
        kem=_signed_kem(begun, session, sent),
    )
    if begun.terms.suite is Suite.CLASSICAL:
        return _go_live(state, known, {})
    return replace(state, setup=known), [Persist(), Send(known.kem)]


def _check_cohort(size: int, ctx: NodeContext) -> None:
    if size < ctx.rules.min_cohort:
        raise Refusal("COHORT_SMALL", f"{size} members; policy asks for {ctx.rules.min_cohort}")
    if size <= _TWO_PARTY and not (size == _TWO_PARTY and ctx.rules.allow_two_party):
        raise Refusal("COHORT_SMALL", "two members need `allow_two_party: true` at this hospital")


def _encapsulate_all(begun: Advertised, members: Sequence[KeyAdvert]) -> tuple[SentCiphertext, ...]:
    if begun.terms.suite is Suite.CLASSICAL:
        return ()
    keys = {advert.id: advert.mlkem_pub for advert in members}
    sent = []
    for to in larger_ids(begun.advert.id, tuple(keys)):
        ct, secret = encapsulate(keys[to])
        sent.append(SentCiphertext(to, ct, secret))
    return tuple(sent)


def _signed_kem(begun: Advertised, session: SessionId, sent: Sequence[SentCiphertext]) -> Kem:
    own = begun.advert.id
    return Kem(
        own,
        tuple(
            KemItem(one.to, one.ct, begun.key.sign(kem_statement(session, own, one.to, one.ct)))
            for one in sent
        ),
    )


# --- ciphertexts and pair keys --------------------------------------------------------


def kem_forward(state: NodeState, event: KemForward) -> Outcome:
    """Check every ciphertext, make the pair keys, erase what made them, confirm.

    Raises:
        Refusal: KEM (missing, surplus, badly signed), ZERO_DH, EPOCH_OLD.
    """
    known = state.setup
    if not isinstance(known, Encapsulated) or known.session_id != event.session_id:
        session = state.session
        if session is not None and session.session_id == event.session_id:
            return state, [Send(_confirm(session))]
        raise Refusal("EPOCH_OLD", "the ciphertexts are of no epoch that is being set up")
    own = known.begun.advert.id
    keys = {advert.id: advert.ed25519_pub for advert in known.members}
    received = {item.sender: item.ct for item in event.items}
    due = smaller_ids(own, tuple(keys))
    if len(received) != len(event.items) or received.keys() != set(due):
        raise Refusal("KEM", "not one ciphertext from each smaller id")
    for item in event.items:
        check_ciphertext(known.session_id, item.sender, keys[item.sender], own, item.ct, item.sig)
    return _go_live(state, known, received)


def _go_live(state: NodeState, known: Encapsulated, received: Mapping[NodeId, bytes]) -> Outcome:
    """Replace the set-up by a live session; agreement keys and prk end here."""
    session = LiveSession(
        session_id=known.session_id,
        terms=known.begun.terms,
        expect=known.begun.expect,
        key=known.begun.key,
        peers=tuple(
            _peer(known, advert, received)
            for advert in known.members
            if advert.id != known.begun.advert.id
        ),
        chain_r=RoundNo(1),
        next_r=known.next_r,
        not_after=known.not_after,
    )
    closing: list[NodeCommand] = []
    if state.session is not None and state.session.open is not None:
        closing.append(RoundClosed(state.session.open.hd, "superseded"))
    new = replace(state, setup=None, session=session)
    return new, [Persist(), *closing, Send(_confirm(session))]


def _peer(known: Encapsulated, advert: KeyAdvert, received: Mapping[NodeId, bytes]) -> Peer:
    agreement = known.begun.agreement
    own = known.begun.advert.id
    kem: KemSecret | None = None
    ct = b""
    if agreement.suite is Suite.HYBRID:
        if advert.id in received:
            ct = received[advert.id]
            kem = agreement.decapsulate(ct)
        else:
            ct, kem = next((one.ct, one.secret) for one in known.sent if one.to == advert.id)
    prk = pair_prk(known.session_id, agreement.exchange(advert.x25519_pub), kem, ct)
    return Peer(advert.id, advert.ed25519_pub, chain0(prk, own, advert.id))


def _confirm(session: LiveSession) -> Confirm:
    return Confirm(session.session_id, session.key.sign(confirm_statement(session.session_id)))


def repeat_setup(setup: Setup | None) -> list[NodeCommand]:
    """Return the last message of a set-up that is under way, to be sent again."""
    match setup:
        case Advertised():
            return [Send(setup.advert)]
        case Encapsulated():
            return [Send(setup.kem)]
        case None:
            return []


def repeat_confirm(session: LiveSession) -> NodeCommand:
    """Return the confirmation, to be sent again after a reconnect."""
    return Send(_confirm(session))
