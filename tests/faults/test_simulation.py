"""The whole federation under random faults: nothing lost, nothing counted twice, one model.

Every change runs a few hundred seeds; `make faults` runs many more. A plan that ever
found a defect is kept in `kept/` and runs for ever.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.campaign import run_plan, run_seeds, scratch
from tests.faults.plan import Plan, draw

EACH = 40
KEPT = sorted((Path(__file__).parent / "kept").glob("*.json"))


@pytest.mark.parametrize("first", range(0, 200, EACH))
def test_random_faults_lose_nothing_and_count_nothing_twice(first: int) -> None:
    found = run_seeds(range(first, first + EACH), workers=1)
    assert [one for one in found if one.problem is not None] == []


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.stem)
def test_a_plan_that_once_found_a_defect_finds_none(file: Path) -> None:
    with scratch() as root:
        assert run_plan(root, Plan.of_json(json.loads(file.read_text())["plan"])).problem is None


def test_equal_seeds_give_equal_histories() -> None:
    with scratch() as root:
        one, two = (run_plan(root, draw(5)) for _ in range(2))
    assert (one.virtual_s, one.deaths, one.voided) == (two.virtual_s, two.deaths, two.voided)
    assert one.deaths > 0
