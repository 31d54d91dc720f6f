"""Helper thresholds by exact arithmetic; helpers drawn from local randomness only."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import comb

import pytest

from common.entropy import CountingEntropy
from common.errors import Refusal
from common.ids import NodeId
from common.secagg.helpers import _below, draw_helpers, helper_count, helper_threshold

MEMBERS = [NodeId(f"h{k:03}") for k in range(100)]


@pytest.mark.parametrize(
    ("n", "c", "t_h"),
    [
        (100, 25, 26),
        (128, 32, 33),
        (256, 64, 41),
        (1000, 100, 31),
        (1000, 250, 46),
        (1000, 333, 52),
    ],
)
def test_the_table_of_section_6_3(n: int, c: int, t_h: int) -> None:
    assert helper_threshold(n, c) == t_h
    assert helper_count(n) == 64


@pytest.mark.parametrize(("n", "c"), [(65, 16), (100, 25), (256, 64), (1000, 250)])
def test_the_threshold_is_the_smallest_safe_one(n: int, c: int) -> None:
    def risk(t: int) -> Fraction:
        draws = sum(comb(c, k) * comb(n - 1 - c, 64 - k) for k in range(t, min(c, 64) + 1))
        return Fraction(n * draws, comb(n - 1, 64))

    t_h = helper_threshold(n, c)
    assert risk(t_h) <= Fraction(1, 2**40) < risk(t_h - 1)


@pytest.mark.parametrize("n", [2, 3, 10, 64])
def test_up_to_64_members_all_help_and_one_share_more_than_colluders_is_needed(n: int) -> None:
    assert helper_count(n) == n - 1
    assert [helper_threshold(n, c) for c in range(n - 1)] == list(range(1, n))
    with pytest.raises(Refusal, match="HELPER_RULE"):
        helper_threshold(n, n - 1)


def test_colluders_that_could_be_all_helpers_have_no_threshold() -> None:
    with pytest.raises(Refusal, match="HELPER_RULE"):
        helper_threshold(200, 190)


def test_small_rounds_draw_nothing() -> None:
    members = MEMBERS[:64]
    entropy = CountingEntropy(b"")
    helpers = draw_helpers(members[3], members[::-1], entropy)
    assert helpers == tuple(node for node in members if node != members[3])
    assert entropy._calls == 0


def test_large_rounds_draw_64_others_without_repeats_from_own_randomness() -> None:
    own = MEMBERS[50]
    one, other = (draw_helpers(own, MEMBERS, CountingEntropy(seed)) for seed in (b"1", b"2"))
    for helpers in (one, other):
        assert len(set(helpers)) == 64
        assert own not in helpers
        assert set(helpers) < set(MEMBERS)
        assert list(helpers) == sorted(helpers)
    assert one != other


def test_every_other_member_is_drawn_equally_often() -> None:
    entropy = CountingEntropy(b"many")
    runs = 300
    seen = Counter(node for _ in range(runs) for node in draw_helpers(MEMBERS[0], MEMBERS, entropy))
    expected = runs * 64 / 99
    assert len(seen) == 99
    assert all(abs(count - expected) < 6 * expected**0.5 for count in seen.values())


class _Scripted:
    """Entropy that hands out given integers."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def take(self, count: int) -> bytes:
        return self.numbers.pop(0).to_bytes(count, "big") if self.numbers else bytes(count)


def test_the_biased_top_of_the_range_is_drawn_again() -> None:
    assert _below(99, _Scripted(2**64 - 1, 98)) == 98  # 2^64 is no multiple of 99
    assert _below(64, _Scripted(2**64 - 1)) == 63  # but one of 64
