"""Invariant 13: the sampler's table is exact, its draws follow it, and their sums are enough.

The oracle sums every term of the discrete Gaussian by itself, each from its own
exponential; the sampler multiplies its way from term to term and has the total from
Poisson summation. Nothing here draws at random: seeds are fixed, so a test that passes
passes always.
"""

from __future__ import annotations

import itertools
import math
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from common.encoding import Label, expand
from common.errors import InternalError
from common.ids import HeaderDigest, NodeId
from common.privacy.noise import BLOCK_DRAWS, NoiseStream, NoiseTable
from common.secagg.dp import DpMode, DpPlan
from common.secagg.keys import CoefficientSeed
from hospital_node.private.source import NoisedSource
from tests.reference.plain import X, keystream
from tests.simulation.secagg_harness import Setting, Simulation

WHOLE = 1 << 127
TOP, TIE = 63, 64
SIGMAS = [4.0, 4.1, 5.5, math.pi * 2, 16.25, 123.456, 300.0]
SEED = CoefficientSeed(b"\x06" * 32)


@cache
def masses(sigma: float) -> tuple[list[Decimal], Decimal]:
    """exp(-k^2 / (2 sigma^2)) for k = 0.., and the sum over all integers, to 150 digits."""
    with localcontext(Context(prec=150)):
        double = 2 * Decimal(sigma) ** 2
        found = [(-(Decimal(k) ** 2) / double).exp() for k in range(math.ceil(24 * sigma))]
        return found, found[0] + 2 * sum(found[1:])


@cache
def oracle(sigma: float) -> list[int]:
    """floor(2^127 P(|K| <= t)), t = 0..T, the last entry 2^127 (section 9.2)."""
    weights, total = masses(sigma)
    with localcontext(Context(prec=150)):
        running, entries = Decimal(0), []
        for t, weight in enumerate(weights[: math.ceil(13 * sigma) + 1]):
            running += weight if t == 0 else 2 * weight
            entries.append(int(running / total * WHOLE))
    return [*entries[:-1], WHOLE]


def entries(table: NoiseTable) -> list[int]:
    """The table's entries, put together from their two words."""
    pairs = zip(table._top.tolist(), table._low.tolist(), strict=True)
    return [(top << TIE) | low for top, low in pairs]


def draws(sigma: float, seed: CoefficientSeed, count: int, start: int = 0) -> NDArray[np.int64]:
    out = np.zeros(count, np.int64)
    NoiseStream(NoiseTable.of(sigma), seed).add_to(out, start)
    return out


# --- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", SIGMAS)
def test_every_entry_of_the_table_is_exact(sigma: float) -> None:
    assert entries(NoiseTable(sigma)) == oracle(sigma)


@pytest.mark.parametrize("sigma", [0.0, 3.999, math.nan, math.inf, -4.0])
def test_no_table_where_a_sum_would_not_be_a_gaussian(sigma: float) -> None:
    with pytest.raises(InternalError):
        NoiseTable(sigma)


@pytest.mark.parametrize("sigma", [4.0, 5.5, 123.456])
def test_a_draw_is_within_2_to_the_minus_100_of_the_discrete_gaussian(sigma: float) -> None:
    weights, total = masses(sigma)
    table = entries(NoiseTable(sigma))
    with localcontext(Context(prec=150)):
        distance = Decimal(0)
        for t, (low, high) in enumerate(itertools.pairwise([0, *table])):
            exact = weights[t] * (1 if t == 0 else 2) / total
            distance += abs(Decimal(high - low) / WHOLE - exact)
        distance += 2 * sum(weights[len(table) :]) / total
        assert distance / 2 < Decimal(2) ** -100


# --- draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [4.0, 5.5])
def test_chi_square_of_ten_million_draws(sigma: float) -> None:
    count = 10_000_000
    found = draws(sigma, SEED, count)
    expected = signed_probabilities(sigma) * count
    cap = (len(expected) - 1) // 2
    observed = np.bincount(found + cap, minlength=len(expected)).astype(np.float64)
    assert observed.sum() == count
    # Values too rare for the test's approximation are judged together.
    rare = expected < 20
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    chi2 = float(((observed - expected) ** 2 / expected).sum())
    p_value = float(stats.chi2.sf(chi2, len(expected) - 1))
    assert 1e-4 < p_value < 1 - 1e-4, p_value


def signed_probabilities(sigma: float) -> NDArray[np.float64]:
    """P(K = k) for k = -T..T."""
    weights, total = masses(sigma)
    half = [float(weight / total) for weight in weights[: math.ceil(13 * sigma) + 1]]
    return np.array([*half[:0:-1], *half])


def test_chi_square_notices_a_table_of_another_sigma() -> None:
    found = draws(5.51, SEED, 10_000_000)
    expected = signed_probabilities(5.5) * len(found)
    keep = expected >= 20
    observed = np.bincount(found + len(expected) // 2, minlength=len(expected))[: len(expected)]
    chi2 = float(((observed - expected)[keep] ** 2 / expected[keep]).sum())
    assert float(stats.chi2.sf(chi2, int(keep.sum()) - 1)) < 1e-4


def test_plus_and_minus_are_equally_frequent_at_every_size() -> None:
    found = draws(7.25, SEED, 4_000_000)
    sizes = np.bincount(np.abs(found))
    minus = np.bincount(-found[found < 0], minlength=len(sizes))
    often = np.flatnonzero(sizes[1:] >= 50) + 1
    scores = (2 * minus[often] - sizes[often]) / np.sqrt(sizes[often])
    assert np.abs(scores).max() < 4.5
    assert abs(int(found.sum())) < 5 * 7.25 * math.sqrt(len(found))


@pytest.mark.parametrize("words", [1, 2, 3, 17, BLOCK_DRAWS, BLOCK_DRAWS + 1, 100_003])
def test_the_same_seed_gives_the_same_noise_at_any_chunking(words: int) -> None:
    total = 3 * BLOCK_DRAWS + 5 if words > 17 else 301
    whole = draws(4.0, SEED, total)
    pieces = [draws(4.0, SEED, min(words, total - at), at) for at in range(0, total, words)]
    assert np.array_equal(np.concatenate(pieces), whole)


# --- ties, and the end of the table --------------------------------------------------------------


class Words:
    """Stands for a keystream: gives these words, wherever it is asked."""

    def __init__(self, words: list[int]) -> None:
        self._words = np.array(words, np.uint64)

    def words_into(self, out: NDArray[np.uint64], place: int) -> None:
        out[:] = self._words[place : place + out.size]


def crafted(sigma: float, us: list[int], sign: int) -> list[int]:
    """What the stream makes of these 127-bit numbers."""
    stream: Any = NoiseStream(NoiseTable.of(sigma), SEED)
    pad = [0] * (len(us) % 2)
    stream._tops = Words([(u >> TIE) << 1 | sign for u in us] + pad)
    stream._ties = Words([u & (2**TIE - 1) for u in us] + pad)
    out = np.zeros(len(us), np.int64)
    stream.add_to(out, 0)
    return [int(value) for value in out]


def least(table: list[int], u: int) -> int:
    return next(t for t, entry in enumerate(table) if u < entry)


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("sigma", [4.0, 6.3, 41.7])
def test_ties_are_resolved_by_the_other_64_bits(sigma: float, sign: int) -> None:
    table = oracle(sigma)
    us = [u for entry in table[:-1] for u in (entry - 1, entry, entry + 1) if u < WHOLE]
    us += [entry >> TIE << TIE for entry in table[:-1]]
    us += [entry >> TIE << TIE | (2**TIE - 1) for entry in table[:-1]]
    expected = [least(table, u) for u in us]
    # Far out many entries share their top 63 bits: the hardest ties are among these.
    assert len({entry >> TIE for entry in table}) < len(table) - 1
    assert crafted(sigma, us, sign) == [-t if sign else t for t in expected]


@pytest.mark.parametrize("sigma", [4.0, 5.5, 123.456])
def test_no_draw_exceeds_t(sigma: float) -> None:
    last = math.ceil(13 * sigma)
    assert NoiseTable.of(sigma).cap == last
    assert crafted(sigma, [WHOLE - 1, 0], 0) == [last, 0]
    assert crafted(sigma, [WHOLE - 1, 0], 1) == [-last, 0]


# --- keys ----------------------------------------------------------------------------------------


def test_no_two_hospitals_or_headers_share_a_keystream_of_noise() -> None:
    sim = Simulation(Setting(n=4, colluders=1))
    sim.open_session()
    sim.run()
    used: dict[bytes, set[tuple[HeaderDigest, NodeId, Label]]] = {}
    labels = (Label.NOISE, Label.NOISE_TIE, Label.ROUND)

    def note() -> None:
        for one in sim.nodes.values():
            session = one.state.session
            if session is not None and session.open is not None:
                for label in labels:
                    key = expand(session.open.a.reveal(), label)
                    used.setdefault(key, set()).add((session.open.hd, one.id, label))

    for _ in range(3):
        sim.open_round()
        while sim.flying:
            note()
            sim.deliver(sim.flying.pop(0))
    assert len({hd for places in used.values() for hd, _, _ in places}) == 3
    assert len(used) == 3 * 4 * len(labels)
    assert all(len(places) == 1 for places in used.values())


@pytest.mark.parametrize("place", [0, 1, 1_000_000, 2**32 + 1])
def test_tie_words_come_from_the_keystream_of_their_own_label(place: int) -> None:
    stream = NoiseStream(NoiseTable.of(4.0), SEED)
    expected = int.from_bytes(keystream(X(b"\x06" * 32, "noise-tie"), 8 * place, 8), "little")
    assert stream._tie_word(place) == expected


# --- sums over hospitals -------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [4.0, 4.1, 123.456])
def test_the_variance_of_a_draw_is_sigma_squared(sigma: float) -> None:
    steps = enumerate(itertools.pairwise([0, *entries(NoiseTable(sigma))]))
    variance = sum(Fraction(t * t * (high - low), WHOLE) for t, (low, high) in steps)
    assert abs(variance / Fraction(sigma) ** 2 - 1) < Fraction(1, 2**90)


def test_every_admissible_set_without_its_colluders_has_at_least_the_noise_of_the_study() -> None:
    n, s_min, c, words = 5, 4, 1, 40_000
    plan = DpPlan(DpMode.PATIENT_DISTRIBUTED, 0.4, 1.0, 4_096, 1.0, 10)
    terms = plan.terms(s_min - c)
    noises = []
    for place in range(n):
        source = NoisedSource(
            np.zeros(words, np.int64), terms, CoefficientSeed(bytes((place,)) * 32)
        )
        out = np.empty(words, np.uint64)
        source.fill(out, 0)
        noises.append(out.view(np.int64).astype(np.float64))
    wanted = (plan.z * plan.delta_int) ** 2
    for size in range(s_min, n + 1):
        for members in itertools.combinations(range(n), size):
            for corrupt in itertools.combinations(members, c):
                honest = [noises[k] for k in members if k not in corrupt]
                assert len(honest) * terms.sigma_loc**2 >= wanted * (1 - 1e-12)
                found = float(np.var(np.sum(honest, axis=0)))
                spread = math.sqrt(2 / words) * len(honest) * terms.sigma_loc**2
                assert found >= wanted - 5 * spread
                assert abs(found - len(honest) * terms.sigma_loc**2) < 5 * spread
