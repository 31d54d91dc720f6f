"""Both sides derive the same vectors from a study; constants come first and stay as they are."""

from __future__ import annotations

import numpy as np
import pytest

from common import layouts, models
from common.errors import InternalError, StateError
from common.model_file import is_constant, model_header
from common.preprocessing import Preprocessing
from common.secagg.header import RoundKind
from common.study import Study, parse_study
from tests import learning
from tests.run_world import VECTOR
from tests.study_texts import HEART, STATISTICS, altered

STUDY = parse_study(HEART)
PATTERN = parse_study(VECTOR)


def fixed(text: str = HEART) -> Study:
    return parse_study(
        altered(text, "normalise: federated", "normalise: none").replace(", impute: mean", "")
    )


def constants(study: Study = STUDY) -> Preprocessing:
    columns = layouts.model_schema(study).tensors[0].size
    names = tuple(f"c{place}" for place in range(columns))
    scale = tuple(1.0 + place for place in range(columns))
    return Preprocessing(names, tuple(float(p) for p in range(columns)), scale, (0.5, None, 200.0))


@pytest.mark.parametrize(
    ("study", "expected"),
    [
        (STUDY, ["statistics", *["train"] * 15, "evaluate"]),
        (fixed(), [*["train"] * 15, "evaluate"]),
        (PATTERN, ["train", "train"]),
        (parse_study(STATISTICS), ["statistics"]),
    ],
)
def test_the_rounds_follow_from_the_study(study: Study, expected: list[str]) -> None:
    assert [kind.value for kind in layouts.round_kinds(study)] == expected


def test_the_model_is_the_constants_and_then_the_weights() -> None:
    schema = layouts.model_schema(STUDY)
    kinds = [is_constant(tensor.name) for tensor in schema.tensors]
    assert kinds == sorted(kinds, reverse=True)
    assert kinds.count(True) == 3
    assert layouts.constant_count(STUDY) + models.layout(STUDY).parameters == schema.parameters
    assert layouts.round_layout(STUDY, RoundKind.TRAIN).schema == schema
    assert layouts.constant_count(PATTERN) == 0


def test_what_is_put_into_a_model_comes_out_of_it() -> None:
    made = layouts.first_model(STUDY, constants())
    found, weights = layouts.split_model(STUDY, made)
    assert found.centre == constants().centre
    assert found.scale == constants().scale
    assert found.impute == (0.5, None, 200.0)
    assert np.array_equal(weights, models.initial(STUDY))
    assert made.size == layouts.model_schema(STUDY).parameters


def test_an_update_of_the_weights_leaves_the_constants_alone() -> None:
    delta = np.arange(models.layout(STUDY).parameters, dtype=np.float32)
    whole = layouts.with_constants(STUDY, delta)
    size = layouts.constant_count(STUDY)
    assert not whole[:size].any()
    assert np.array_equal(whole[size:], delta)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_received_model_with_a_scale_that_cannot_be_is_refused(bad: float) -> None:
    made = layouts.first_model(STUDY, constants())
    made[layouts.model_schema(STUDY).tensors[0].size] = bad
    with pytest.raises(StateError) as refused:
        layouts.split_model(STUDY, made)
    assert refused.value.name == "MODEL_INVALID"


def local() -> Study:
    return learning.study(
        "\n  - {name: age, type: float}",
        train="{local_steps: 3}",
        federation="{weights: {a: 50, b: 40, c: 30}, rounds: 4}",
        more="normalise: none\nprivacy: {dp: {mode: patient-local, epsilon: 1, delta: 1.0e-5, "
        "sampling: 0.5, clip: 2, max_patients: 60}}",
    )


def test_local_noise_is_coded_by_ranges_without_a_weight_word() -> None:
    layout = layouts.round_layout(local(), RoundKind.TRAIN)
    assert layout.schema.words == layout.schema.parameters
    assert (layout.ring_bits, layout.rounding) == (32, None)
    assert layout.ranges.count("free") == 2  # weight and bias
    assert layout.ranges.count(layouts.FIRST_RANGE) == 3  # the constants
    assert layout.dp is not None
    assert (layout.dp.p, layout.dp.clip, layout.dp.m_max, layout.dp.steps) == (0.5, 2.0, 60, 3)
    assert set(layouts.round_kinds(local())) == {RoundKind.TRAIN}


def test_a_round_has_one_rule_for_each_tensor_and_metric() -> None:
    for study in (STUDY, PATTERN, fixed(), local()):
        for kind in set(layouts.round_kinds(study)):
            layout = layouts.round_layout(study, kind)
            assert len(layout.ranges) == layout.schema.range_count
            assert layout.ring_bits in (32, 64)


def test_ranges_follow_the_last_aggregate_and_never_fall_below_the_first() -> None:
    layout = layouts.round_layout(STUDY, RoundKind.TRAIN)
    first = layouts.header_ranges(layout, 1000, ())
    assert set(first[: len(layout.schema.tensors)]) == {layouts.FIRST_RANGE}
    rms = tuple(0.01 if place % 2 else 2.0 for place in range(len(layout.schema.tensors)))
    later = layouts.header_ranges(layout, 1000, rms)
    for place, tensor in enumerate(layout.schema.tensors):
        if is_constant(tensor.name):
            assert later[place] == layouts.FIRST_RANGE
        else:
            wanted = layouts.RANGE_FACTOR * rms[place]
            assert later[place] == max(layouts.FIRST_RANGE, wanted)
    assert later[-1] == first[-1]


def test_hospitals_expect_what_the_coordinator_sends() -> None:
    for study in (STUDY, PATTERN):
        expected = layouts.session_expectation(study, 4)
        assert expected.colluders == 1
        assert expected.max_deadline_ms == round(study.federation.round_deadline * 1000)
        kinds = [terms.kind for terms in expected.rounds]
        assert kinds == list(dict.fromkeys(layouts.round_kinds(study)))
        for terms in expected.rounds:
            layout = layouts.round_layout(study, terms.kind)
            assert terms.layout_sha256 == layout.schema.layout_sha256
            assert (terms.d, terms.w) == (layout.schema.words, layout.ring_bits)
            assert terms.s_min == study.federation.min_sites


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{kind: logistic}", "{kind: mlp, hidden: [8]}"),
        ("name: age,  type", "name: aged,  type"),
        ('levels: ["0", "1"]', 'levels: ["0", "1", "2"]'),
    ],
)
def test_another_study_has_another_layout(old: str, new: str) -> None:
    other = parse_study(altered(HEART, old, new))
    one, two = layouts.model_schema(STUDY), layouts.model_schema(other)
    same_shape = one.layout_sha256 == two.layout_sha256
    assert same_shape == ("aged" in new)  # names of columns are the study's hash's affair
    if not same_shape:
        assert model_header(one) != model_header(two)


def test_no_study_has_votes() -> None:
    with pytest.raises(InternalError):
        layouts.round_layout(STUDY, RoundKind.VOTE)
