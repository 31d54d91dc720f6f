"""A voided round with noise costs a step, never the run: what is paid for is not exceeded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.ids import NodeId, RoundNo, RunId
from common.layouts import round_kinds
from common.secagg.header import RoundKind
from common.study import Study, config_hash, parse_study
from coordinator.run_facts import apply
from coordinator.run_rounds import _hopeless, _why_hopeless
from coordinator.run_state import RoundEnded, RoundRecord, RunState
from tests.study_texts import HEART, altered

ROOT = Path(__file__).resolve().parents[3]
PRIVATE = (ROOT / "studies" / "heart-disease-private.yaml").read_text("utf-8")
NODES = tuple(NodeId(f"spiffe://heart/hospital/{name}") for name in "abcd")


def private(spare: int) -> Study:
    text = altered(PRIVATE, "rounds: 15", "rounds: 3")
    return parse_study(
        altered(text, "spare_rounds: 0", f"spare_rounds: {spare}\n    evaluation_epsilon: 0.2")
    )


def after(study: Study, opened: str) -> RunState:
    """Return the state of a run whose rounds opened (o) or were voided (v), in this order."""
    state = RunState(RunId("run-1"), study, config_hash(study), "heart", NODES)
    for r, word in enumerate(opened, 1):
        kind = round_kinds(study)[state.position]
        record = RoundRecord(
            state.position + 1, kind.value, RoundNo(r), bytes([r]) * 32, word == "o",
            NODES if word == "o" else (), (), b"", b"", 0.1, "",
        )  # fmt: skip
        state = apply(state, RoundEnded(record, None, ()))
    return state


def next_kind(study: Study, opened: str) -> RoundKind | None:
    position = after(study, opened).position
    kinds = round_kinds(study)
    return kinds[position] if position < len(kinds) else None


@pytest.mark.parametrize(
    ("spare", "opened", "wanted"),
    [
        (0, "oov", RoundKind.EVALUATE),
        (0, "ovv", RoundKind.EVALUATE),
        (0, "vo", RoundKind.TRAIN),
        (2, "vvoo", RoundKind.TRAIN),
        (2, "vvooo", RoundKind.EVALUATE),
        (2, "vvvoo", RoundKind.EVALUATE),
        (2, "ooo", RoundKind.EVALUATE),
        (0, "vvv", RoundKind.TRAIN),
        (0, "ooov", None),
        (0, "oooo", None),
    ],
)
def test_training_ends_with_the_steps_that_came_about_once_all_paid_ones_were_tried(
    spare: int, opened: str, wanted: RoundKind | None
) -> None:
    assert next_kind(private(spare), opened) is wanted


@pytest.mark.parametrize(
    ("opened", "refuses", "ends"),
    [("vv", True, True), ("v", True, False), ("vvo", True, False), ("vv", False, False)],
)
def test_rounds_that_a_hospital_keeps_refusing_do_not_use_up_the_others_budgets(
    opened: str, refuses: bool, ends: bool
) -> None:
    trouble = ((NODES[0], "BUDGET: spent"),) if refuses else ()
    state = replace(after(private(2), opened), trouble=trouble)
    assert _hopeless(state) is ends
    if ends:
        assert _why_hopeless(state) == "ROUND_VOID: 2 rounds in a row failed; a: BUDGET: spent"


def test_without_noise_a_voided_round_is_tried_again() -> None:
    study = parse_study(altered(altered(HEART, "rounds: 15", "rounds: 3"), ", impute: mean", "", 2)
                        .replace("normalise: federated", "normalise: none"))  # fmt: skip
    assert next_kind(study, "vvvvvvvoo") is RoundKind.TRAIN
    assert next_kind(study, "ooovvv") is RoundKind.EVALUATE
