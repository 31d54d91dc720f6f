"""Whom the coordinator leaves out, against a search over all subsets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from common.ids import NodeId
from common.secagg.cover import EXACT_LIMIT, EdgeRecord, edge, smallest_cover


def ids(*places: int) -> list[NodeId]:
    return [NodeId(f"n{place:03}") for place in places]


def record(*pairs: tuple[int, int]) -> EdgeRecord:
    return EdgeRecord().noted([edge(*ids(i, j)) for i, j in pairs])


def by_brute_force(nodes: list[NodeId], bad: EdgeRecord, colluders: int) -> frozenset[NodeId]:
    """Return the rule of section 4.3 by trying every subset, smallest first."""
    disputes = dict(bad.disputes)
    order = sorted(nodes, key=lambda one: (disputes.get(one, 0), one))
    degree = {one: sum(one in pair for pair in bad.bad) for one in nodes}
    forced = {one for one in nodes if degree[one] > colluders}
    rest = [one for one in nodes if one not in forced]
    inside = [p for p in bad.bad if set(p) <= set(nodes) and not set(p) & forced]
    for size in range(len(rest) + 1):
        covers = [
            set(chosen)
            for chosen in itertools.combinations(rest, size)
            if all(set(pair) & set(chosen) for pair in inside)
        ]
        if covers:
            best = max(covers, key=lambda c: sorted((order.index(one) for one in c), reverse=True))
            return frozenset(forced | best)
    raise AssertionError("all of them are a cover")


def test_no_dispute_leaves_nobody_out() -> None:
    assert smallest_cover(ids(0, 1, 2), EdgeRecord(), 1) == frozenset()


def test_a_pair_is_sorted_by_the_bytes_of_its_ids() -> None:
    a, b = ids(0, 1)
    assert edge(a, b) == edge(b, a) == (a, b)


def test_a_tie_goes_against_the_later_id() -> None:
    assert smallest_cover(ids(0, 1, 2), record((0, 1)), 1) == frozenset(ids(1))


def test_a_tie_goes_against_more_disputes_before_the_later_id() -> None:
    bad = record((0, 1)).noted([edge(*ids(0, 1))])
    assert dict(bad.disputes) == dict.fromkeys(ids(0, 1), 2)
    gone = EdgeRecord(frozenset({edge(*ids(0, 1))}), ((ids(0)[0], 5), (ids(1)[0], 1)))
    assert smallest_cover(ids(0, 1, 2), gone, 1) == frozenset(ids(0))


def test_a_node_with_more_than_c_bad_edges_goes_even_if_its_victims_are_absent() -> None:
    bad = record((0, 5), (0, 6))
    assert smallest_cover(ids(0, 1, 2), bad, 1) == frozenset(ids(0))
    assert smallest_cover(ids(0, 1, 2), bad, 2) == frozenset()


def test_at_most_c_liars_cost_at_most_c_nodes() -> None:
    liars = (0, 1)
    bad = record(*((liar, victim) for liar in liars for victim in range(2, 10)))
    assert smallest_cover(ids(*range(10)), bad, 2) == frozenset(ids(*liars))


def test_a_repeated_dispute_counts_again_but_stays_one_edge() -> None:
    bad = record((0, 1)).noted([edge(*ids(0, 1)), edge(*ids(1, 2))])
    assert len(bad.bad) == 2
    assert dict(bad.disputes) == dict(zip(ids(0, 1, 2), (2, 3, 1), strict=True))


@pytest.mark.parametrize("seed", range(300))
def test_the_search_agrees_with_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9))
    nodes = ids(*range(n))
    bad = EdgeRecord()
    for _ in range(int(rng.integers(0, 4))):
        pairs = [rng.choice(n, 2, replace=False) for _ in range(int(rng.integers(0, 5)))]
        bad = bad.noted([edge(nodes[i], nodes[j]) for i, j in pairs])
    present = [one for one in nodes if rng.random() < 0.8]
    colluders = int(rng.integers(0, n))
    found = smallest_cover(present, bad, colluders)
    assert found == by_brute_force(present, bad, colluders)


def test_beyond_the_exact_limit_the_cover_is_still_a_cover() -> None:
    rng = np.random.default_rng(7)
    nodes = ids(*range(200))
    pairs = [edge(*(nodes[k] for k in rng.choice(200, 2, replace=False))) for _ in range(600)]
    cover = smallest_cover(nodes, EdgeRecord().noted(pairs), 50)
    assert len(cover) > EXACT_LIMIT
    assert all(set(pair) & cover for pair in pairs)


def test_separate_edges_at_the_limit_do_not_explode() -> None:
    pairs = [(2 * k, 2 * k + 1) for k in range(EXACT_LIMIT)]
    cover = smallest_cover(ids(*range(2 * EXACT_LIMIT)), record(*pairs), 5)
    assert cover == frozenset(ids(*(2 * k + 1 for k in range(EXACT_LIMIT))))
