"""A researcher ends its own runs, nobody else's; an operator ends any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.certificates import Role
from common.errors import FedError
from common.ids import NodeId
from common.transport import interceptors
from common.transport.identity import PeerIdentity
from common.views import RunPhase
from coordinator.servicer import OperationsServicer
from fedcare.v1 import operations_pb2 as ops
from tests.run_world import RUN
from tests.security.desk import Desk


def _be(role: Role, name: str) -> None:
    peer = PeerIdentity("sim", role, name, NodeId(f"spiffe://sim/{role}/{name}"), 2**40)
    interceptors._caller.set(peer)


async def _cancel(desk: Desk) -> Any:  # noqa: ANN401 - a message
    request = ops.CancelRunRequest(run_id=RUN, reason="because")
    return await OperationsServicer(desk.service).CancelRun(request, None)  # type: ignore[arg-type]


async def test_another_researchers_run_is_not_ones_own_to_end(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    _be(Role.RESEARCHER, "uni-y")
    with pytest.raises(FedError) as found:
        await _cancel(desk)
    assert found.value.name == "ROLE_DENIED"
    assert not desk.driver.state.phase.final
    await desk.close()


@pytest.mark.parametrize("who", [(Role.RESEARCHER, "uni-x"), (Role.OPERATOR, "ops")])
async def test_the_owner_and_an_operator_end_it(tmp_path: Path, who: tuple[Role, str]) -> None:
    desk = Desk(tmp_path)
    desk.shop.store.end_run = lambda *_: None  # type: ignore[method-assign]
    _be(*who)
    answer = await _cancel(desk)
    assert answer.run.state == RunPhase.CANCELLED.value
    await desk.close()
