"""Whole rounds with real nodes, over connections and processes that break."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.secagg.keys import Suite
from tests.node_world import SITES, World, node_id


@pytest.mark.parametrize("suite", list(Suite))
async def test_three_nodes_complete_rounds_whose_opened_sum_is_the_exact_integer_sum(
    tmp_path: Path, suite: Suite
) -> None:
    world = World(tmp_path, suite=suite)
    world.start_all()
    await world.finish()
    assert len(world.coordinator.sums) == 3
    for r, total in enumerate(world.coordinator.sums, start=1):
        assert np.array_equal(total, world.expected_sum(r))
