"""Numbers that jump ahead cannot shut a hospital out for good (fault F65)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.errors import Refusal
from common.ids import Epoch
from common.secagg import node as nd
from common.wire import decode_coordinator
from fedcare.v1 import aggregation_pb2 as pb
from tests.run_world import RunWorld
from tests.simulation.secagg_harness import NOW, SimNode


def _node() -> SimNode:
    return RunWorld().nodes[RunWorld().at(0)]


@pytest.mark.parametrize("epoch", [2**63 - 1, NOW + 30 * 24 * 3600])
def test_an_epoch_far_ahead_is_refused_and_the_next_one_is_not(epoch: int) -> None:
    node = _node()
    terms = node.setting.terms
    far = nd.BeginEpoch(
        replace(terms, epoch=Epoch(epoch)), node.setting.expect, NOW - 60, NOW + 86_400
    )
    with pytest.raises(Refusal) as found:
        nd.handle(node.state, far, node.ctx)
    assert found.value.name == "EPOCH_OLD"
    assert node.begin_epoch(replace(terms, epoch=Epoch(NOW)))


def test_a_run_ends_in_a_final_state_or_not_at_all() -> None:
    for state in ("", "running", "finished\n"):
        message = pb.CoordinatorMessage(
            task="t", run_ended=pb.RunEnded(run_id="r", state=state, reason="")
        )
        with pytest.raises(Refusal) as found:
            decode_coordinator(message)
        assert found.value.name == "BAD_MESSAGE"
