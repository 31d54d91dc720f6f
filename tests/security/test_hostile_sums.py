"""A sum that a corrupt input made is voided or harmless; it never stops a run for good."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common import counting, evaluation, statistics, statistics_result
from common.errors import Refusal, StateError
from common.study import parse_study
from coordinator import driver as module
from coordinator.run_state import OpenSum, SumUsed
from tests import statistics_study
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


COUNTED = statistics_study.study()
SHAPES = counting.count_shapes(COUNTED)
PLACES = {
    name: sum(int(np.prod(shape)) for shape in list(SHAPES.values())[:at])
    for at, name in enumerate(SHAPES)
}


def counted_words() -> np.ndarray:
    """Return what honest hospitals' sum of a statistics study opens to."""
    value = counting.contribution(
        COUNTED, statistics_study.table(statistics_study.patients(400, 1))
    )
    words = value.copy()
    words[-counting.layout(COUNTED).tensors[2].size :] *= LEVELS
    return np.rint(words).astype(np.int64)


HONEST = counted_words()


def test_an_honest_sum_of_counts_is_taken() -> None:
    found = statistics_result.published(COUNTED, counting.opened(COUNTED, HONEST, LEVELS))
    assert found.columns[0].n == 400


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("lie", [-5000, -1, 3])
def test_counts_that_do_not_fit_together_are_refused(name: str, lie: int) -> None:
    words = HONEST.copy()
    words[PLACES[name]] += lie
    with pytest.raises(Refusal) as refused:
        counting.opened(COUNTED, words, LEVELS)
    assert refused.value.name == "SUM_RANGE"


def test_counts_below_zero_are_refused_even_where_their_totals_fit() -> None:
    words = HONEST.copy()
    at = PLACES["feature.sex"]
    words[at] += 5000
    words[at + 1] -= 5000
    with pytest.raises(Refusal):
        counting.opened(COUNTED, words, LEVELS)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, HONEST.size - 1), st.integers(-50, 50)), max_size=6))
def test_any_lie_about_counts_is_refused_or_gives_a_whole_file(
    lies: list[tuple[int, int]],
) -> None:
    words = HONEST.copy()
    for place, change in lies:
        words[place] += change
    try:
        sums = counting.opened(COUNTED, words, LEVELS)
    except Refusal:
        return
    text = statistics_result.published(COUNTED, sums).to_json()
    assert b"NaN" not in text
    assert b"Infinity" not in text


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
