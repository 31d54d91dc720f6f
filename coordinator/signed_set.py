"""The set that a run waits for because some of it have signed: its code, and who must lift it.

Protocol, section 10.4. The code names the model and the set; a hospital forgets its last set
on that code only, so the order does nothing at one that did not sign.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.ids import NodeId
from common.secagg.rerun import set_code
from common.vectors import EMPTY_MODEL
from coordinator.run_state import RunState
from coordinator.run_step import current_layout, names


@dataclass(frozen=True, slots=True)
class SignedSet:
    """A set that was proposed in a round that was voided, on the model the run stands at."""

    study: str
    code: str
    sites: tuple[str, ...]
    signed: tuple[str, ...]
    """Whose signature has come."""
    unknown: tuple[str, ...]
    """Who may have signed: it never came."""
    lifted: bool
    """Whether the coordinator waits for it no longer."""


def signed_set(state: RunState) -> SignedSet | None:
    """Return the set that a run waits for, or waited for until it ended or a person lifted it."""
    nodes = state.agreed or state.lifted
    if not nodes:
        return None
    return SignedSet(
        study=state.study.id,
        code=_code(state, nodes),
        sites=names(nodes),
        signed=names(state.signers),
        unknown=names(set(nodes) - set(state.signers)),
        lifted=not state.agreed,
    )


def _code(state: RunState, nodes: tuple[NodeId, ...]) -> str:
    layout = current_layout(state)
    model = EMPTY_MODEL if state.model is None else state.model.model_sha256
    return set_code(layout.kind, layout.schema.layout_sha256, model, nodes)


def what_to_do(run: str, found: SignedSet) -> str:
    """Return what an operator does about a set that an open run waits for, or waited for."""
    if found.lifted:
        return who_unlocks(found)
    sites = ", ".join(found.sites)
    return (
        f"Bring {sites} back: the next round needs exactly these, because some may have signed"
        f" their set. If one of them is gone for good: `fedcare coordinator unlock {run} --reason"
        f" ...`, coordinator stopped. {who_unlocks(found)}"
    )


def who_unlocks(found: SignedSet) -> str:
    """Return at which hospitals the order has to be given, and how it is given."""
    signed = ", ".join(found.signed or found.unknown)
    text = (
        f"Who signed signs no other set on that model until told: at {signed} say `fedcare node"
        f" unlock {found.study} --set {found.code} --reason ...`, node stopped."
    )
    if not found.unknown or not found.signed:
        return text
    others = ", ".join(found.unknown)
    return f"{text} Of {others} no signature came: say it there too; who did not sign is told so."
