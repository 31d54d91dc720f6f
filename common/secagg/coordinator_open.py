"""From the certificate to the open sum: releases, recovery, opening (sections 4.5 to 4.7)."""

from __future__ import annotations

from common.errors import InternalError, Refusal
from common.ids import NodeId
from common.secagg.coordinator_facts import (
    Open,
    RecoveryBegun,
    ReleaseAccepted,
    SeedsComplete,
    SharesAccepted,
)
from common.secagg.coordinator_state import RecoveredSecrets, RoundPhase, RoundState
from common.secagg.coordinator_step import Step, abort, ends, find
from common.secagg.header import Header
from common.secagg.keys import EdgeSeed, SelfSeed
from common.secagg.masking import OpeningPlan, edge_sign
from common.secagg.messages import RecoverItem, RecoverRequest, RecoverShares, Release
from common.secagg.recovery import (
    check_item,
    check_release,
    dropped,
    put_together,
    sealed_for,
)


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
    check_release(message, sender, ends(state), outside)
    step.record(ReleaseAccepted(sender, message))
    maybe_open(step)
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
    maybe_open(step)


def give_up(step: Step) -> None:
    """End a round whose missing seeds nobody could supply; their owners sit out (4.6)."""
    state = step.state
    quiet = silent(state)
    stuck = [node for node in quiet if len(_items(state, node)) >= step.header.t_h]
    abort(step, "SHARE_BAD" if stuck else "NOT_ENOUGH", quiet)


def _items(state: RoundState, node: NodeId) -> dict[NodeId, RecoverItem]:
    """Return what helpers sent of a silent member's shares."""
    return {
        helper: item
        for helper, answer in state.shares
        for item in answer.items
        if item.sender == node
    }


def maybe_open(step: Step) -> None:
    """Open as soon as every seed is released or put together."""
    state = step.state
    if state.phase not in (RoundPhase.CERTIFIED, RoundPhase.RECOVERING):
        return
    recovered: list[RecoveredSecrets] = []
    for node in silent(state):
        items = _items(state, node)
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
