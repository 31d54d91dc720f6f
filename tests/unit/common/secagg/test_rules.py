"""A hospital's floors: what each refuses by itself, and how a refusal cites its line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.errors import Refusal
from common.secagg.dp import DpMode
from common.secagg.header import Header, RoundKind
from common.secagg.keys import Suite
from common.secagg.rules import NodeRules, check_floors, check_hours
from common.study import parse_study
from tests.security.refusals import OPEN, PRIVATE, header_of

LOOSE = NodeRules(colluders=0, min_cohort=2)
OPEN_HEADER = header_of(parse_study(OPEN))
NOISED = header_of(parse_study(PRIVATE))
PAIR = header_of(parse_study(OPEN), members=2, c=0, s_min=2)


def refusal(header: Header, rules: NodeRules, suite: Suite = Suite.HYBRID) -> Refusal:
    with pytest.raises(Refusal) as caught:
        check_floors(header, rules, suite)
    return caught.value


@pytest.mark.parametrize("header", [OPEN_HEADER, NOISED])
def test_loose_rules_let_everything_pass(header: Header) -> None:
    check_floors(header, LOOSE, Suite.CLASSICAL)


def test_two_hospitals_need_the_local_switch_even_if_the_cohort_allows_them() -> None:
    found = refusal(PAIR, LOOSE)
    assert found.name == "COHORT_SMALL"
    assert found.detail.endswith("(require.allow_two_party)")
    check_floors(PAIR, replace(LOOSE, allow_two_party=True), Suite.HYBRID)


@pytest.mark.parametrize(
    ("header", "rules", "name", "numbers"),
    [
        (OPEN_HEADER, replace(LOOSE, min_cohort=5), "COHORT_SMALL", "n=4 is below 5"),
        (OPEN_HEADER, replace(LOOSE, colluders=2), "QUORUM_RULE", "c=1 is below 2"),
        (OPEN_HEADER, replace(LOOSE, s_min=4), "SMIN_RULE", "s_min=3 is below 4"),
        (OPEN_HEADER, replace(LOOSE, ring_bits=frozenset({64})), "HEADER_FORM", "w=32"),
        (OPEN_HEADER, replace(LOOSE, suites=frozenset({Suite.CLASSICAL})), "HEADER_FORM", "hybrid"),
        (
            OPEN_HEADER,
            replace(LOOSE, dp_modes=frozenset({DpMode.HOSPITAL})),
            "DP_WEAK",
            "dp mode none",
        ),
        (NOISED, replace(LOOSE, min_z=1e6), "DP_WEAK", "is below 1e+06"),
        (NOISED, replace(LOOSE, max_clip=0.5), "DP_WEAK", "C=1 is above 0.5"),
        (OPEN_HEADER, replace(LOOSE, max_upload_bytes=31), "POLICY_LIMITS", "32 bytes"),
        (OPEN_HEADER, replace(LOOSE, max_deadline_ms=59_999), "POLICY_LIMITS", "60000 ms"),
    ],
)
def test_each_floor_refuses_with_both_numbers(
    header: Header, rules: NodeRules, name: str, numbers: str
) -> None:
    found = refusal(header, rules)
    assert found.name == name
    assert numbers in found.detail


def test_the_largest_clip_is_one_of_gradients() -> None:
    """C of a figure is the length of the longest vector: it follows from the features."""
    rules = replace(LOOSE, max_clip=0.5)
    for kind in (RoundKind.STATISTICS, RoundKind.EVALUATE):
        check_floors(replace(NOISED, kind=kind), rules, Suite.HYBRID)


def test_a_refusal_cites_the_line_where_it_knows_it() -> None:
    rules = replace(LOOSE, colluders=2, where={"require.colluders": "policy.yaml:12"})
    assert (
        refusal(OPEN_HEADER, rules).detail == "c=1 is below 2 (policy.yaml:12: require.colluders)"
    )


def test_without_hours_rounds_may_begin_at_any_time() -> None:
    check_hours(LOOSE, 0)
