"""Who takes part: each patient alone with probability p, and a list that data cannot steer."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from common.entropy import CountingEntropy
from hospital_node.private.sampling import draw_list, poisson


class Fast:
    """Bytes of a fixed seed, and many of them quickly: for statistics."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def take(self, count: int) -> bytes:
        return self._rng.bytes(count)


class Words:
    """Entropy whose 64-bit words are given."""

    def __init__(self, *words: int) -> None:
        self._words = words

    def take(self, count: int) -> bytes:
        made = np.array(self._words, "<u8").tobytes()
        assert len(made) == count
        return made


@pytest.mark.parametrize("p", [0.001, 0.03, 0.5, 0.97])
def test_everybody_is_drawn_with_probability_p(p: float) -> None:
    """400,000 draws: the count within what chance gives once in a million."""
    count = 400_000
    drawn = len(poisson(count, p, Fast(1)))
    low, high = stats.binom.ppf([5e-7, 1 - 5e-7], count, p)
    assert low <= drawn <= high


def test_draws_are_independent_of_each_other_and_of_the_round_before() -> None:
    """Over 4,000 rounds of 6 patients every set comes as often as p to its size says."""
    entropy = Fast(2)
    sets = Counter(tuple(poisson(6, 0.5, entropy).tolist()) for _ in range(6_400))
    assert stats.chisquare([sets[key] for key in sets]).pvalue > 1e-6
    assert len(sets) == 64


def test_the_probability_is_p_to_64_bits_rounded_down() -> None:
    edge = int(0.3 * 2.0**64)
    assert poisson(3, 0.3, Words(edge - 1, edge, edge + 1)).tolist() == [0]
    assert poisson(2, 2.0**-64, Words(0, 1)).tolist() == [0]


def test_with_p_one_everybody_takes_part_and_nothing_is_drawn() -> None:
    assert poisson(4, 1.0, Words(1, 2, 3)).tolist() == [0, 1, 2, 3]
    assert poisson(0, 0.5, Words()).tolist() == []


def test_draws_follow_the_entropy_that_is_given_and_nothing_else() -> None:
    def drawn(seed: bytes) -> list[int]:
        np.random.seed(1)  # noqa: NPY002 - what must have no say
        return [int(place) for place in poisson(1000, 0.5, CountingEntropy(seed))]

    assert drawn(b"a") == drawn(b"a") != drawn(b"b")


@pytest.mark.parametrize("most", [4, 5, 100])
def test_a_list_that_has_room_holds_everybody(most: int) -> None:
    assert draw_list(4, most, Words(1, 2, 3)).tolist() == [0, 1, 2, 3]


def test_a_list_is_a_uniform_subset_of_its_size() -> None:
    """The 20 subsets of 3 of 6, 8,000 times: each as likely."""
    entropy = Fast(3)
    sets = Counter(tuple(draw_list(6, 3, entropy).tolist()) for _ in range(8_000))
    assert len(sets) == math.comb(6, 3)
    assert all(len(set(key)) == 3 and sorted(key) == list(key) for key in sets)
    assert stats.chisquare(list(sets.values())).pvalue > 1e-6


def test_equal_first_words_do_not_favour_the_first_patients() -> None:
    """128 bits decide: a tie of the first 64 goes to the smaller of the others."""

    class Tied:
        calls = 0

        def take(self, count: int) -> bytes:
            self.calls += 1
            words = [7] * 4 if self.calls == 1 else [4, 3, 1, 2]
            assert count == 8 * len(words)
            return np.array(words, "<u8").tobytes()

    assert draw_list(4, 2, Tied()).tolist() == [2, 3]
