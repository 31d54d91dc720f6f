"""The lookup of a draw, whatever shortcut finds it, and noise too large for a table."""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np
import pytest

from common.errors import InternalError, Refusal
from common.privacy.noise import NoiseStream, NoiseTable
from common.secagg.dp import MOST_SIGMA, DpMode, DpTerms, check_terms
from common.secagg.keys import CoefficientSeed
from common.secagg.prg import Keystream

SEED = CoefficientSeed(bytes(range(32)))


@pytest.mark.parametrize("sigma", [4.0, 4.7, 63.9, 64.0, 500.0, 3000.3])
def test_every_place_where_the_lookup_could_slip_gives_the_tables_own_answer(sigma: float) -> None:
    """At, before and after each entry and each bucket's edge, by bisection in Python's integers."""
    table = NoiseTable(sigma)
    entries = [int(entry) for entry in table._top.tolist()]
    edges = [bucket << table._shift for bucket in range(len(table._guide))]
    near = {place + step for place in (*entries[:-1], *edges) for step in (-1, 0, 1)}
    tops = np.array(sorted(top for top in near if 0 <= top < 2**63), np.uint64)
    found, tied = table.magnitudes(tops)
    assert found.tolist() == [bisect_right(entries, int(top)) for top in tops.tolist()]
    ties = np.isin(tops, table._top)
    assert tops[tied].tolist() == tops[ties].tolist()
    assert ties.sum() == len(set(entries[:-1]))


@pytest.mark.parametrize("sigma", [4.0, 3000.3])
def test_a_streams_noise_is_sign_and_magnitude_of_its_words(sigma: float) -> None:
    out = np.zeros(70_000, np.int64)
    NoiseStream(NoiseTable.of(sigma), SEED).add_to(out, 0)
    words = np.empty(out.size, np.dtype("<u8"))
    Keystream.of_noise(SEED).words_into(words, 0)
    entries = [int(entry) for entry in NoiseTable.of(sigma)._top.tolist()]
    for place in range(0, out.size, 7):
        word = int(words[place])
        size = bisect_right(entries, word >> 1)
        assert out[place] == (-size if word & 1 else size)


def noised(sigma: float) -> DpTerms:
    z = sigma * math.sqrt(2) / 4096
    return DpTerms(DpMode.HOSPITAL, z, 1.0, 4096, sigma, math.ceil(13 * sigma))


def test_noise_that_no_table_holds_is_refused_with_the_numbers() -> None:
    check_terms(noised(MOST_SIGMA), n=4, h=2, d=10, w=64)
    with pytest.raises(Refusal, match=r"sigma_loc is 600000, above 524288") as caught:
        check_terms(noised(600_000.0), n=4, h=2, d=10, w=64)
    assert caught.value.name == "DP_WEAK"
    for sigma in (MOST_SIGMA * 1.001, math.inf, math.nan, 3.9):
        with pytest.raises(InternalError):
            NoiseTable(sigma)
