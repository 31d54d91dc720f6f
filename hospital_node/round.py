"""What follows from one event, decided without any I/O: the glue around the machine.

`common.secagg.node` is the protocol. Three rules of this hospital's driver stand around
it here, so that they can be tested as plain functions:

* a step that leaves the node idle in a live session is followed at once by the next
  `Ready` (the protocol's "rides on the previous round's answer"), and both share one
  durable write;
* outside the hospital's hours no `Ready` is said; the refusal says when the next window
  opens, and the task tries again then;
* after a lost connection the *same* `Ready` is said again as long as this process
  remembers its nonce: the coordinator may already have put it in a header, which a
  fresh nonce would make void.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from common.errors import Refusal
from common.ids import HeaderDigest
from common.secagg.messages import KemForward, Ready, Roster, RoundResult
from common.secagg.node_state import (
    LiveSession,
    MakeReady,
    NodeCommand,
    NodeContext,
    NodeEvent,
    NodeState,
    OpenRound,
    Outcome,
    Persist,
    Report,
    Restarted,
    Send,
)
from common.secagg.rules import check_hours

Handle: TypeAlias = Callable[[NodeState, NodeEvent, NodeContext], Outcome]
"""The signature of `common.secagg.node.handle`."""


def advance(
    handle: Handle, state: NodeState, event: NodeEvent, ctx: NodeContext, *, willing: bool
) -> Outcome:
    """Return the state after `event`, and what to do, with at most one `Persist`, first.

    `willing`: the run goes on and this node takes further rounds. Persisting the final
    state before any of the commands is never weaker than what the machine asks for.

    Raises:
        Refusal: from the machine, for `event` itself; the state is unchanged.
    """
    new, commands = handle(state, event, ctx)
    if willing:
        try:
            new, more = _say_ready(handle, new, event, ctx)
        except Refusal as refusal:  # a session past its validity, or outside the hours
            more = [Report(refusal.name, refusal.detail)]
        commands = [*commands, *more]
    rest = [command for command in commands if not isinstance(command, Persist)]
    first: list[NodeCommand] = [Persist()] if len(rest) < len(commands) else []
    return new, [*first, *rest]


def _say_ready(
    handle: Handle, state: NodeState, event: NodeEvent, ctx: NodeContext
) -> tuple[NodeState, list[NodeCommand]]:
    session = idle_session(state)
    if session is None or not isinstance(event, Roster | KemForward | RoundResult | Restarted):
        return state, []
    check_hours(ctx.rules, ctx.now_unix)
    if session.nonce and session.nonce_r == max(session.next_r, session.chain_r):
        again = Ready(session.session_id, session.nonce_r, session.nonce)
        return state, [Send(again)]
    if isinstance(event, Restarted) and session.next_r < session.chain_r:
        return state, []  # this node left a round that is still open: its result comes first
    return handle(state, MakeReady(), ctx)


def idle_session(state: NodeState) -> LiveSession | None:
    """Return the live session if no round is open in it and no epoch is being set up."""
    session = state.session
    if session is None or session.open is not None or state.setup is not None:
        return None
    return session


def opened(state: NodeState) -> OpenRound | None:
    """Return the open round, if any."""
    return None if state.session is None else state.session.open


def open_digest(state: NodeState) -> HeaderDigest | None:
    """Return the header digest of the open round, if any."""
    found = opened(state)
    return None if found is None else found.hd


def without_session(state: NodeState) -> NodeState:
    """Return the state after a run's end: every key is gone.

    What the node must never forget stays: the last epoch, and the sets it agreed to.
    """
    return replace(state, setup=None, session=None)
