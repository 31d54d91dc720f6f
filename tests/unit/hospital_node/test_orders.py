"""Orders at a hospital: given once, by anybody's account, whatever a coordinator tells."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.clock import ManualClock
from common.entropy import OsEntropy
from common.errors import ConfigError, Refusal, RoundError
from common.ids import Epoch, RunId
from common.messages import Seen
from common.secagg.node_state import NodeState, decode_state, encode_state
from common.secagg.params import EPOCH_SECONDS
from common.secagg.rerun import RerunMemory
from hospital_node.orders import accept_loss, keep_older, orders, unlock
from hospital_node.store import NodeStore, SessionRecord

FIRST, SECOND = bytes([1]) * 96, bytes([2]) * 96
LAST = RerunMemory(SECOND).last_code


@pytest.fixture
def store(tmp_path: Path) -> Iterator[NodeStore]:
    with NodeStore.open(tmp_path / "state", OsEntropy()) as opened:
        agree(opened)
        yield opened


def agree(store: NodeStore, opened: int = 1) -> None:
    state = NodeState(rerun=RerunMemory(FIRST + SECOND, opened))
    store.save_session("heart", SessionRecord(RunId("r-1"), encode_state(state)))


def remembered(store: NodeStore) -> int:
    record = store.load_session("heart")
    assert record is not None
    return decode_state(record.state).rerun.models


def test_an_unlock_that_is_given_twice_forgets_one_set_only(store: NodeStore) -> None:
    clock = ManualClock()
    unlock(store, "heart", LAST, "va has left", clock)
    clock.advance(60.0)
    with pytest.raises(RoundError, match="forgotten it already"):
        unlock(store, "heart", LAST, "once more", clock)
    assert remembered(store) == 1
    (order,) = orders(store.root)
    assert (order.code, order.left) == (LAST, 1)


def test_only_the_set_that_is_named_is_forgotten(store: NodeStore) -> None:
    """A hospital that did not sign the set in question agreed last to one that was opened."""
    with pytest.raises(RoundError, match="did not sign"):
        unlock(store, "heart", RerunMemory(FIRST).last_code, "x", ManualClock())
    for unfit in ("", "heart", LAST.upper() + "g", LAST + "0"):
        with pytest.raises(ConfigError, match="--set"):
            unlock(store, "heart", unfit, "x", ManualClock())
    assert remembered(store) == 2
    assert not orders(store.root)


def test_a_set_whose_sum_was_opened_is_never_forgotten(store: NodeStore) -> None:
    agree(store, opened=2)
    with pytest.raises(Refusal, match="was opened") as refused:
        unlock(store, "heart", LAST, "x", ManualClock())
    assert refused.value.name == "RERUN"
    assert remembered(store) == 2


def test_an_unlock_that_was_cut_off_before_it_took_effect_can_be_given_again(
    store: NodeStore,
) -> None:
    clock = ManualClock()
    unlock(store, "heart", LAST, "va has left", clock)
    agree(store)  # as if the process had been killed between the order and its effect
    clock.advance(60.0)
    unlock(store, "heart", LAST, "va has left", clock)
    assert remembered(store) == 1


def test_an_account_without_a_name_can_give_an_order(
    store: NodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert unlock(store, "heart", LAST, "va has left", ManualClock()).user == f"uid {os.getuid()}"


def test_a_coordinator_that_names_a_huge_epoch_shuts_nobody_out_of_later_ones(
    tmp_path: Path,
) -> None:
    clock, run = ManualClock(), RunId("heart-1")
    now = int(clock.unix())
    with NodeStore.open(tmp_path, OsEntropy()) as store:
        old = encode_state(NodeState(last_epoch=Epoch(now - 5)))
        for task, epoch in ("heart", (1 << 63) - 1), ("lung", now):
            store.save_session(task, SessionRecord(run, old))
            keep_older(tmp_path, [Seen(run, task, epoch, 1, released=False)])
            accept_loss(store, "a disk is gone", clock)
        found = [store.load_session(task) for task in ("heart", "lung")]
    last = [decode_state(one.state).last_epoch for one in found if one is not None]
    assert last == [now + EPOCH_SECONDS, now]
