"""How a run's state follows from its facts; the only way in which one changes durably."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import assert_never

from common.ids import NodeId, RoundNo
from common.layouts import round_kinds
from common.secagg import coordinator as rounds
from common.secagg import coordinator_session as sessions
from common.secagg.coordinator_session import SessionOpened, SetupPhase
from common.secagg.coordinator_state import RoundState
from common.secagg.dp import DpMode
from common.secagg.header import RoundKind
from common.study import Study
from common.views import RunPhase
from coordinator.run_state import (
    NO_DISPUTES,
    AgreedLifted,
    Decided,
    Ended,
    HistoryLost,
    ModelMade,
    ModelRef,
    Received,
    Released,
    RoundEnded,
    RoundRecord,
    RoundStep,
    RunFact,
    RunState,
    SessionStep,
    TakenBack,
    Withdrew,
    Witnessed,
)


def apply(state: RunState, fact: RunFact) -> RunState:
    """Return the state after a fact."""
    match fact:
        case Decided() | TakenBack() | Withdrew():
            return _apply_word(state, fact)
        case SessionStep():
            return _apply_session(state, fact)
        case RoundStep():
            same = state.round if state.round is not None and state.round.r == fact.r else None
            return replace(state, round=rounds.apply(same, fact.fact))
        case ModelMade():
            return replace(state, model=fact.model)
        case RoundEnded():
            return _apply_ended_round(state, fact)
        case Witnessed():
            return replace(state, evidence=(*state.evidence, fact.evidence))
        case Released():
            return replace(state, released=fact.manifest_sha256)
        case Received():
            return replace(state, receipts=state.receipts | {fact.node})
        case HistoryLost() | AgreedLifted():
            return _apply_order(state, fact)
        case Ended():
            return replace(state, phase=fact.phase, reason=fact.reason, ended_unix=fact.unix)
        case _:
            assert_never(fact)


def _apply_word(state: RunState, fact: Decided | TakenBack | Withdrew) -> RunState:
    """What a hospital said to the study; the later word stands."""
    if isinstance(fact, Withdrew):
        earlier = (entry for entry in state.withdrawn if entry.node != fact.node)
        return replace(state, withdrawn=(*earlier, fact))
    decisions = tuple(entry for entry in state.decisions if entry[0] != fact.node)
    if isinstance(fact, Decided):
        decisions = (*decisions, (fact.node, fact.decision))
    return replace(state, decisions=decisions, decided=(*state.decided, fact.node))


def _apply_session(state: RunState, fact: SessionStep) -> RunState:
    if isinstance(fact.fact, SessionOpened):
        return replace(
            state,
            phase=RunPhase.SETTING_UP,
            session=sessions.apply(None, fact.fact),
            next_r=sessions.FIRST_ROUND,
            edges=NO_DISPUTES,
            round=None,
            last_round=None,
        )
    session = sessions.apply(state.session, fact.fact)
    # Later facts of an epoch, a late hospital's keys, say nothing of where the run stands.
    begins = state.phase is RunPhase.SETTING_UP and session.phase is SetupPhase.READY
    return replace(state, session=session, phase=RunPhase.RUNNING if begins else state.phase)


def _apply_ended_round(state: RunState, fact: RoundEnded) -> RunState:
    record = fact.record
    history = (*state.history, record)
    return replace(
        _apply_signed(state, fact),
        history=history,
        position=_position_after(state.study, fact, history),
        model=fact.model if fact.model is not None else state.model,
        pooled=fact.pooled or state.pooled,
        evaluation=fact.evaluation or state.evaluation,
        next_r=RoundNo(record.r + 1),
        edges=state.round.edges if state.round is not None else state.edges,
        round=None,
        last_round=state.round,
    )


def _apply_signed(state: RunState, fact: RoundEnded) -> RunState:
    """The set that the next round has to have, if any, and who is known to have signed it."""
    if fact.record.opened:
        return replace(state, agreed=(), signers=(), lifted=())
    agreed = state.agreed or fact.signed or signed(state.round)
    if not agreed:
        return state
    before = state.signers if state.agreed else ()
    signers = tuple(sorted({*before, *fact.signers}))
    return replace(state, agreed=agreed, signers=signers, lifted=())


def _apply_order(state: RunState, fact: HistoryLost | AgreedLifted) -> RunState:
    """A person's order: another set may follow; or back to before the first epoch.

    Decisions, rounds and the model stay.
    """
    if isinstance(fact, AgreedLifted):
        return replace(state, agreed=(), lifted=fact.nodes)
    return replace(
        state,
        phase=RunPhase.ENROLLING,
        session=None,
        next_r=sessions.FIRST_ROUND,
        edges=NO_DISPUTES,
        round=None,
        last_round=None,
    )


def signed(ended: RoundState | None) -> tuple[NodeId, ...]:
    """Return the set that was proposed in a round without noise: some may have signed it.

    What ends a round states it, because the round's own facts are blanked while the set still
    counts; an earlier version left it to them.
    """
    if ended is None or ended.header is None or ended.header.dp.mode is not DpMode.NONE:
        return ()
    return ended.survivors


def _position_after(study: Study, fact: RoundEnded, history: tuple[RoundRecord, ...]) -> int:
    """Return how many of the run's rounds are done; a model that is finished ends training."""
    if fact.model is not None and fact.model.finished:
        kinds = round_kinds(study)
        return len(kinds) - kinds[::-1].index(RoundKind.TRAIN)
    record = fact.record
    return _next_position(study, record.position - (not record.opened), history)


def _next_position(study: Study, done: int, history: tuple[RoundRecord, ...]) -> int:
    """Return where a run goes on after a round: behind the rounds that are done, as a rule.

    A noised round may have been charged although it was voided, and hospitals refuse what the
    study's epsilon does not pay for. So training ends once it was tried as often as is paid
    for, with the steps that came about, and an evaluation is tried once.
    """
    terms, kinds = study.privacy.dp, round_kinds(study)
    kind = kinds[done] if done < len(kinds) else None
    if not terms.on:
        return done
    if kind is RoundKind.EVALUATE and history[-1].kind == kind.value:
        return done + 1
    tried = [record for record in history if record.kind == RoundKind.TRAIN.value]
    paid = study.federation.rounds + (terms.spare_rounds or 0)
    if kind is not RoundKind.TRAIN or len(tried) < paid or not any(r.opened for r in tried):
        return done
    return len(kinds) - kinds[::-1].index(RoundKind.TRAIN)


def replay(state: RunState, facts: Iterable[RunFact]) -> RunState:
    """Return the state after all facts of a run, given its first state."""
    for fact in facts:
        state = apply(state, fact)
    return state


def models_of(facts: Iterable[RunFact]) -> list[ModelRef]:
    """Return every model a run made, in order."""
    made = (fact.model for fact in facts if isinstance(fact, ModelMade | RoundEnded))
    return [model for model in made if model is not None]
