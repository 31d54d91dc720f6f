"""A hospital node's state machine: the whole of its side of the protocol, without I/O.

    handle(state, event, ctx) -> (new state, commands)        or raises Refusal

The driver passes what came in, does the commands in order, and keeps the new state.
`Persist` means: the new state is on disk, synced, before anything after it happens.
When `Refusal` is raised nothing has changed; the driver logs it and reports its name.

An open round, per (session, r) (section 5):

    state      event                          next state   commands
    --         MakeReady                      --           Send(Ready)
    --         HeaderReceived                 STARTED      Persist, PrepareInput
    STARTED    InputFinal                     UPLOADING    Persist, StartUpload
    UPLOADING  UploadAcked                    UPLOADED
    UPLOADING, UPLOADED, COMMITTED
               Propose                        COMMITTED    Persist, Send(Commit)
    UPLOADING, UPLOADED, COMMITTED, RELEASED
               Certificate                    RELEASED     Persist, Send(Release)
               RecoverRequest                 RELEASED     Persist, Send(RecoverShares)
    any        HeaderReceived with larger r   STARTED      Persist, RoundClosed, PrepareInput
    any        RoundResult, LocalTimeout,
               InputFailed                    --           Persist, RoundClosed
    any        the same message again         same         the same answer, byte for byte
    any        its own header again           same         the last message (none while training)
    any        Restarted                      same         the last message, or PrepareInput

The machine never sees a vector, only the digest `ydig` of the masked one; the masks
are `mask_plan(state)`, applied by `common.secagg.masking`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from common.errors import Refusal
from common.ids import Epoch, NodeId
from common.secagg import node_header, node_round, node_session
from common.secagg.masking import MaskPlan, edge_sign
from common.secagg.messages import (
    Certificate,
    KemForward,
    Propose,
    RecoverRequest,
    Roster,
    RoundResult,
)
from common.secagg.node_state import (
    BackupRestored,
    BeginEpoch,
    HeaderExpectation,
    HeaderReceived,
    InputFailed,
    InputFinal,
    LocalTimeout,
    MakeReady,
    NodeCommand,
    NodeContext,
    NodeEvent,
    NodeState,
    Outcome,
    Persist,
    Phase,
    PrepareInput,
    Report,
    Restarted,
    RoundClosed,
    Send,
    SessionExpectation,
    StartUpload,
    UploadAcked,
    decode_state,
    encode_state,
)
from common.secagg.rules import NodeRules

__all__ = [
    "BackupRestored",
    "BeginEpoch",
    "HeaderExpectation",
    "HeaderReceived",
    "InputFailed",
    "InputFinal",
    "LocalTimeout",
    "MakeReady",
    "NodeCommand",
    "NodeContext",
    "NodeEvent",
    "NodeRules",
    "NodeState",
    "Persist",
    "Phase",
    "PrepareInput",
    "Report",
    "Restarted",
    "RoundClosed",
    "Send",
    "SessionExpectation",
    "StartUpload",
    "UploadAcked",
    "decode_state",
    "encode_state",
    "handle",
    "mask_plan",
]


def handle(state: NodeState, event: NodeEvent, ctx: NodeContext) -> Outcome:
    """Return the new state and what the driver has to do, in order.

    Raises:
        Refusal: the event is refused by section 12's name; `state` still holds.
    """
    own = ctx.signer.node_id
    match event:
        case BeginEpoch():
            return node_session.begin_epoch(state, event, ctx)
        case Roster():
            return node_session.roster(state, event, ctx)
        case KemForward():
            return node_session.kem_forward(state, event)
        case MakeReady():
            return node_header.make_ready(state, ctx)
        case HeaderReceived():
            opened = node_header.header_received(state, event, own, ctx)
            return opened or node_round.header_again(state, own)
        case Propose():
            return node_round.propose(state, event, own)
        case Certificate():
            return node_round.certificate(state, event, own)
        case RecoverRequest():
            return node_round.recover(state, event, own)
        case RoundResult():
            return node_round.round_result(state, event)
        case _:
            return _handle_local(state, event, ctx)


def _handle_local(
    state: NodeState,
    event: InputFinal | InputFailed | UploadAcked | LocalTimeout | Restarted | BackupRestored,
    ctx: NodeContext,
) -> Outcome:
    match event:
        case InputFinal():
            return node_round.input_final(state, event, ctx.signer.node_id, ctx)
        case InputFailed():
            return node_round.input_failed(state, event)
        case UploadAcked():
            return node_round.upload_acked(state, event)
        case LocalTimeout():
            return node_round.local_timeout(state, event.hd)
        case Restarted():
            return state, _repeat(state, ctx)
        case BackupRestored():
            return restored(state, event)
        case _:
            assert_never(event)


def _repeat(state: NodeState, ctx: NodeContext) -> list[NodeCommand]:
    """Say again what was said last: of the set-up, of the session, of the round."""
    commands = node_session.repeat_setup(state.setup)
    if state.session is not None:
        commands.append(node_session.repeat_confirm(state.session))
        if state.session.open is not None:
            own = ctx.signer.node_id
            commands += node_round.repeat_round(state.session, state.session.open, own)
    return commands


def restored(state: NodeState, event: BackupRestored) -> Outcome:
    """Drop what a restored backup must not go on with: its chains stand where they once stood.

    What else it holds stays: the sets it agreed to until the copy was made.
    """
    commands: list[NodeCommand] = [Persist()]
    if state.session is not None and state.session.open is not None:
        commands.append(RoundClosed(state.session.open.hd, "restored"))
    last = Epoch(max(state.last_epoch, event.last_epoch))
    return replace(state, setup=None, session=None, last_epoch=last), commands


def mask_plan(state: NodeState, own: NodeId) -> MaskPlan:
    """Return the masks of the open round's upload, for `common.secagg.masking`.

    They depend on the header only: they can be made while training runs.

    Raises:
        Refusal: CLOSED, no round is open.
    """
    if state.session is None or state.session.open is None:
        raise Refusal("CLOSED", "no round is open; there is nothing to mask")
    opened = state.session.open
    edges = tuple((pair.edge, edge_sign(own, pair.peer)) for pair in opened.pairs)
    return MaskPlan(opened.b, edges, opened.header.w)
