"""The server's step in mode patient-local: no weight is sent, the study's public ones count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from common.errors import Refusal
from common.ids import hospital_id
from common.layouts import header_ranges, round_layout
from common.quantise import Coding, VectorEncoder
from common.secagg.header import Header, RoundKind
from common.secagg.masking import OpeningPlan
from common.secagg.ring import signed_view, word_dtype
from common.study import Study
from common.weights import public_weight
from coordinator.aggregate import ServerStep
from coordinator.run_state import OpenSum
from coordinator.use_sum import _server_step
from tests.learning import study
from tests.vectors.stored import header_of, load

SITES = ("a", "b", "c")
WEIGHTS = {"a": 200.0, "b": 50.0, "c": 25.0}
PLAN = OpeningPlan((), (), 32)
KIND = RoundKind.TRAIN


def local_study(weights: str) -> Study:
    return study(
        "\n  - {name: age, type: float}",
        train="{local_steps: 2}",
        federation=f"{{weights: {weights}, rounds: 3}}",
        more="normalise: none\nprivacy: {dp: {mode: patient-local, epsilon: 1, delta: 1.0e-5"
        + (", batch: 30}}" if weights == "equal" else "}}"),
    )


def header(terms: Study) -> Header:
    """Return a header of three hospitals with the study's layout."""
    layout = round_layout(terms, KIND)
    good = header_of(load("local_steps.json")["header"])
    members = tuple((hospital_id("fed", site), bytes(32)) for site in SITES)
    ranges = header_ranges(layout, good.bound, ())
    return replace(good, members=members, d=layout.schema.words, ranges=ranges)


@pytest.mark.parametrize("survivors", [SITES, ("a", "c"), ("b", "c")])
@pytest.mark.parametrize("weights", ["{a: 200, b: 50, c: 25}", "equal"])
def test_the_step_is_the_mean_by_the_survivors_public_weights(
    survivors: tuple[str, ...], weights: str
) -> None:
    terms = local_study(weights)
    layout, good = round_layout(terms, KIND), header(terms)
    rng = np.random.default_rng(1)
    deltas = {site: rng.uniform(-0.9, 0.9, good.d) for site in survivors}
    total = np.zeros(good.d, np.int64)
    for site, delta in deltas.items():
        words = np.zeros(good.d, word_dtype(good.w))
        VectorEncoder(
            layout.schema,
            delta,
            ranges=good.ranges,
            coding=Coding.of_header(good),
            u=public_weight(terms, site),
        ).fill(words, 0)
        total += signed_view(words)
    step = step_of(terms, good, survivors)
    by = {site: 1.0 if weights == "equal" else WEIGHTS[site] for site in survivors}
    expected = np.zeros(good.d)
    for site, delta in deltas.items():
        expected += by[site] * delta / sum(by.values())
    for tensor, segment in enumerate(layout.schema.segments()):
        part = slice(segment.start, segment.stop)
        found = step(tensor, total[part])
        assert np.abs(found - expected[part]).max(initial=0) < 1e-6


def step_of(terms: Study, good: Header, survivors: tuple[str, ...]) -> ServerStep:
    ids = tuple(hospital_id("fed", site) for site in survivors)
    command = OpenSum(good, ids, PLAN, None, len(ids))
    return _server_step(terms, command, ())


def test_survivors_that_weigh_next_to_nothing_void_the_round() -> None:
    terms = local_study("{a: 1000000, b: 5, c: 5}")
    with pytest.raises(Refusal, match="SUM_RANGE"):
        step_of(terms, header(terms), ("b", "c"))
