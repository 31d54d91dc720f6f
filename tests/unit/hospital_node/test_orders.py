"""What a person orders at a node does not depend on a coordinator's lies."""

from __future__ import annotations

from pathlib import Path

from common.clock import ManualClock
from common.entropy import OsEntropy
from common.ids import Epoch, RunId
from common.messages import Seen
from common.secagg.node_state import NodeState, decode_state, encode_state
from common.secagg.params import EPOCH_SECONDS
from hospital_node import orders
from hospital_node.store import NodeStore, SessionRecord


def test_a_coordinator_that_names_a_huge_epoch_shuts_nobody_out_of_later_ones(
    tmp_path: Path,
) -> None:
    clock, run = ManualClock(), RunId("heart-1")
    now = int(clock.unix())
    with NodeStore.open(tmp_path, OsEntropy()) as store:
        old = encode_state(NodeState(last_epoch=Epoch(now - 5)))
        for task, epoch in ("heart", (1 << 63) - 1), ("lung", now):
            store.save_session(task, SessionRecord(run, old))
            orders.keep_older(tmp_path, [Seen(run, task, epoch, 1, released=False)])
            orders.accept_loss(store, "a disk is gone", clock)
        found = [store.load_session(task) for task in ("heart", "lung")]
    last = [decode_state(one.state).last_epoch for one in found if one is not None]
    assert last == [now + EPOCH_SECONDS, now]
