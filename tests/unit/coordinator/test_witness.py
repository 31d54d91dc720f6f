"""The coordinator attests how many noised sums a hospital is in, whatever its ledger says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.entropy import CountingEntropy
from common.errors import Refusal, StateError
from common.ids import NodeId, RoundNo
from common.study import Study, config_hash, load_study, parse_study
from common.wire import decode_coordinator
from coordinator.progress import progress_of
from coordinator.run_state import RoundRecord, RunState
from coordinator.witness import noised_sums
from fedcare.v1 import aggregation_pb2 as pb
from hospital_node.private.books import Books
from hospital_node.private.limits import Limits
from hospital_node.store import NodeStore
from tests.study_texts import HEART

ROOT = Path(__file__).resolve().parents[3]
PRIVATE = load_study(ROOT / "studies" / "heart-disease-private.yaml")
A, B = (NodeId(f"spiffe://heart/hospital/{name}") for name in ("a", "b"))


def run(study: Study, *rounds: tuple[bool, tuple[NodeId, ...]]) -> RunState:
    records = tuple(
        RoundRecord(k, "train", RoundNo(k), bytes(32), opened, who, (), b"", b"", 0.1, "")
        for k, (opened, who) in enumerate(rounds, 1)
    )
    state = RunState(f"run-{study.id}", study, config_hash(study), "heart", (A, B))  # type: ignore[arg-type]
    return replace(state, history=records)


def test_opened_noised_sums_count_for_those_who_are_in_them_over_all_runs() -> None:
    runs = [
        progress_of(run(PRIVATE, (True, (A, B)), (False, (A,)), (True, (B,)))),
        progress_of(run(PRIVATE, (True, (A, B)))),
        progress_of(run(parse_study(HEART), (True, (A, B)))),
    ]
    assert noised_sums(runs, A) == (("heart", 2),)
    assert noised_sums(runs, B) == (("heart", 3),)
    assert noised_sums(runs[2:], A) == ()


def books(folder: Path) -> Books:
    store = NodeStore.open(folder, CountingEntropy(b"s"))
    return Books(store, A, Limits(3.0, 10.0, 1e-5), CountingEntropy(b"b"), lambda: 1)


def test_a_whole_state_directory_that_was_lost_counts_as_spent(tmp_path: Path) -> None:
    fresh = books(tmp_path)
    fresh.witnessed({"lungs": 40})
    fresh.admit(PRIVATE, accepted=False)
    fresh.witnessed({"heart": 1})
    with pytest.raises(StateError, match="LEDGER_ROLLED_BACK") as lost:
        fresh.admit(PRIVATE, accepted=False)
    assert "0 charges; the coordinator opened 1 noised sums" in lost.value.detail
    fresh.witnessed({"heart": 0})  # a witness that forgets takes nothing back
    with pytest.raises(StateError, match="LEDGER_ROLLED_BACK"):
        fresh.admit(PRIVATE, accepted=True)


@pytest.mark.parametrize(
    "entry", [pb.NoisedSums(dataset="a\n", sums=1), pb.NoisedSums(sums=1 << 63)]
)
def test_a_witness_out_of_its_form_is_refused(entry: pb.NoisedSums) -> None:
    message = pb.CoordinatorMessage(welcome=pb.Welcome(federation="heart", noised=[entry]))
    with pytest.raises(Refusal, match="BAD_MESSAGE"):
        decode_coordinator(message)
