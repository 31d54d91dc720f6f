"""The checker finds each disagreement that it is there to find, and says who is concerned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from common.ids import HeaderDigest, NodeId, RoundNo, hospital_id
from common.views import RunPhase
from coordinator.run_state import RoundRecord, RunState
from tests.faults import checker
from tests.faults.checker import StoredState, Words
from tests.faults.log_tail import LogTail
from tests.faults.running import SMALL, study_of
from tests.federation import NAME, SITES

RUN = "indicator-1-0a1b2c3d"


def node(site: str) -> NodeId:
    return hospital_id(NAME, site)


def digest(counts: Mapping[str, int], n: int = 4) -> bytes:
    return checker._digest(SMALL, n, tuple(sorted(counts.items())))


def ended(r: int, counts: Mapping[str, int], out: tuple[str, ...] = ()) -> RoundRecord:
    return RoundRecord(
        position=r, kind="train", r=RoundNo(r), hd=HeaderDigest(bytes([r]) * 32), opened=True,
        survivors=tuple(map(node, counts)), dropped=tuple(map(node, out)),
        sum_sha256=digest(counts), model_sha256=b"", seconds=0.1, reason="",
    )  # fmt: skip


def stored(*history: RoundRecord) -> StoredState:
    study = study_of("indicator-1", SMALL, private=False)
    state = RunState(
        run_id=RUN, study=study, config_hash=b"", federation=NAME,  # type: ignore[arg-type]
        roster=tuple(map(node, SITES)), signature=b"", cert_chain=(), history=history,
        phase=RunPhase.FINISHED,
    )  # fmt: skip
    return StoredState(state, tuple((1, int(record.r)) for record in history))


ALL = dict.fromkeys(SITES, 1)
GOOD = stored(*(ended(r, ALL) for r in (1, 2, 3)))


def said(*events: str, r: int = 1) -> Words:
    words = Words()
    words.take({"event": "session.ready", "epoch": 1, "run": RUN})
    for event in events:
        words.take({"event": event, "round": r, "run": RUN})
    return words


def everybody(r: int = 1) -> dict[str, Words]:
    return {
        site: said("round.training", "upload.started", "upload.finished", r=r) for site in SITES
    }


def test_a_run_whose_witnesses_agree_has_no_problem() -> None:
    one = stored(ended(1, ALL))
    assert list(checker._of_history(GOOD)) == []
    assert list(checker._of_sums(GOOD)) == []
    assert list(checker._of_receipts(one, everybody())) == []
    assert list(checker._of_drawings(everybody())) == []


def with_sum(counts: Mapping[str, int]) -> StoredState:
    record = replace(ended(1, ALL), sum_sha256=digest(counts))
    return stored(record)


def test_a_hospital_that_was_counted_twice_is_named() -> None:
    (found,) = checker._of_sums(with_sum({**ALL, "va": 2}))
    assert "'va': 2" in found


def test_a_hospital_that_is_missing_from_the_sum_is_named() -> None:
    (found,) = checker._of_sums(with_sum({site: 1 for site in SITES if site != "va"}))
    assert "it holds" in found
    assert "'va'" not in found.partition("it holds")[2]


def test_a_mask_that_did_not_cancel_is_seen() -> None:
    (found,) = checker._of_sums(stored(replace(ended(1, ALL), sum_sha256=b"x" * 32)))
    assert "a mask did not cancel" in found


def test_a_receipt_without_a_place_in_the_sum_is_seen() -> None:
    others = {site: 1 for site in SITES if site != "va"}
    found = list(checker._of_receipts(stored(ended(1, others, ("va",))), everybody()))
    assert found == ["va holds a receipt for round (1, 1), and is not in its sum"]


def test_who_is_summed_and_never_trained_is_a_ghost() -> None:
    words = {**everybody(), "va": said()}
    found = list(checker._of_receipts(stored(ended(1, ALL)), words))
    assert found == ["va is in the sum of round (1, 1), and never trained in it"]


def test_a_round_that_only_a_hospital_knows_is_seen() -> None:
    words = {**everybody(), "va": said("round.training", r=1)}
    words["va"].take({"event": "round.training", "round": 2})
    found = list(checker._of_receipts(stored(ended(1, ALL)), words))
    assert found == ["va saw round (1, 2), which the store does not know"]


def test_training_after_the_vector_was_sealed_is_a_second_drawing() -> None:
    before = {"va": said("round.training", "round.training", "upload.started")}
    after = {"va": said("round.training", "upload.resumed", "round.training")}
    assert list(checker._of_drawings(before)) == []
    assert list(checker._of_drawings(after)) != []


@pytest.mark.parametrize("rounds", [(1, 2), (1, 2, 2), (1, 1, 2, 3)])
def test_a_round_that_is_missing_or_twice_is_seen(rounds: tuple[int, ...]) -> None:
    assert list(checker._of_history(stored(*(ended(r, ALL) for r in rounds)))) != []


def test_a_line_that_a_kill_cut_off_is_no_line(tmp_path: Path) -> None:
    line = json.dumps({"event": "round.training", "round": 1})
    (tmp_path / "va.1.log").write_text(f"{line}\n{line[:9]}")
    (tmp_path / "va.2.log").write_text(f"{line}\n")
    tail = LogTail(tmp_path, ("va",))
    assert [name for name, _ in tail.new()] == ["va", "va"]
    assert list(tail.new()) == []
