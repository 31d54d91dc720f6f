"""A sum that a corrupt input made is voided or harmless; it never stops a run for good."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common import evaluation, statistics
from common.errors import StateError
from common.study import parse_study
from coordinator import driver as module
from coordinator.run_state import OpenSum, SumUsed
from tests.security.desk import Desk

STUDY = parse_study("""\
schema: fedcare.study/v1
id: mixed
purpose: research
dataset: d
owner: {name: A, organisation: uni-x}
features:
  - {name: age, type: float, unit: a, range: [18, 110], impute: median}
  - {name: stage, type: int, range: [0, 4], impute: median}
  - {name: free, type: float, impute: mean}
  - {name: sex, type: category, levels: ["0", "1"], impute: most-frequent}
target: {type: binary, name: y, positive: "> 0"}
model: {kind: logistic}
""")
LEVELS = 1000
SIZE = statistics.layout(STUDY).parameters
CELLS = evaluation.layout(STUDY).parameters
WORDS = st.sampled_from([0, 1, -1, LEVELS, -LEVELS, 4 * LEVELS, -4 * LEVELS]) | st.integers(
    -4 * LEVELS, 4 * LEVELS
)


@given(hnp.arrays(np.int64, SIZE, elements=WORDS, fill=WORDS))
def test_any_sum_in_range_gives_finite_constants(opened: np.ndarray) -> None:
    found = statistics.pooled(STUDY, opened, LEVELS)
    numbers = [*found.centre, *found.scale, *(x for x in found.impute if x is not None)]
    assert np.isfinite(numbers).all()
    assert all(scale > 0 for scale in found.scale)


@pytest.mark.parametrize("sign", [0, -1])
def test_a_histogram_without_a_positive_bin_gives_finite_constants(sign: int) -> None:
    opened = np.full(SIZE, sign * LEVELS, np.int64)
    for block in statistics._blocks(STUDY):
        opened[block.start] = LEVELS  # rows there are, says the count
    found = statistics.pooled(STUDY, opened, LEVELS)
    assert found.impute[0] == 64.0


@given(WORDS, st.dictionaries(st.integers(0, CELLS - 1), WORDS, max_size=200))
def test_any_sum_in_range_gives_metrics_or_none(fill: int, words: dict[int, int]) -> None:
    opened = np.full(CELLS, fill, np.int64)
    opened[list(words)] = list(words.values())
    evaluation.pooled(STUDY, opened, LEVELS).as_dict(STUDY)


@pytest.mark.parametrize(
    "failure", [ZeroDivisionError(), StateError("DISK", "full"), OverflowError(), KeyError("x")]
)
async def test_a_sum_that_cannot_be_used_voids_its_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fails(*_: object) -> SumUsed:
        raise failure

    monkeypatch.setattr(module, "use_sum", fails)
    desk = Desk(tmp_path)
    desk.world.hold.add(OpenSum)
    for place in range(4):
        desk.world.say_upload(place)
    command = desk.world.held[0]
    assert isinstance(command, OpenSum)
    desk.driver.state = desk.world.state
    await desk.driver._open_sum(command)
    async with asyncio.timeout(10):
        while not desk.driver.state.history:  # noqa: ASYNC110 - another task's state
            await asyncio.sleep(0.001)
    record = desk.driver.state.history[-1]
    assert (record.opened, record.reason) == (False, "SUM_RANGE")
    await desk.close()
