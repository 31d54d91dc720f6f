"""Whom to leave out when two ends of an edge disagree (section 4.3).

Honest nodes always agree on their common edge, so every bad edge has a liar at one
end at least, and the liars together touch every bad edge. The coordinator leaves out
a smallest set that does: with at most c liars at most c nodes go. An honest node's
bad edges all lead to liars, so one with more than c of them is a liar itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from common.ids import NodeId

Edge: TypeAlias = tuple[NodeId, NodeId]
"""An unordered pair, smaller id first."""

EXACT_LIMIT: Final = 16
"""Covers up to this size are searched exactly; beyond it, greedily."""


def edge(i: NodeId, j: NodeId) -> Edge:
    """Return the pair in the order of its ids' bytes."""
    return (i, j) if i.encode() < j.encode() else (j, i)


@dataclass(frozen=True, slots=True)
class EdgeRecord:
    """An epoch's bad edges, with how often each end was in a dispute."""

    bad: frozenset[Edge] = frozenset()
    disputes: tuple[tuple[NodeId, int], ...] = ()
    """Sorted by id; a node that never was in a dispute is not listed."""

    def noted(self, edges: Collection[Edge]) -> EdgeRecord:
        """Return the record with one more dispute on each of `edges`."""
        counts = Counter(dict(self.disputes))
        for pair in edges:
            counts.update(pair)
        return EdgeRecord(self.bad | frozenset(edges), tuple(sorted(counts.items())))


def smallest_cover(
    nodes: Collection[NodeId], record: EdgeRecord, colluders: int
) -> frozenset[NodeId]:
    """Return the nodes to leave out of `nodes` so that no bad edge stays inside.

    Of equally small sets the one goes whose members had more disputes in the epoch,
    then the one with the later ids.
    """
    degree = Counter(node for pair in record.bad for node in pair)
    forced = frozenset(node for node in nodes if degree[node] > colluders)
    open_edges = sorted(
        pair for pair in record.bad if all(end in nodes and end not in forced for end in pair)
    )
    rank = _rank(nodes, record)
    for size in range(EXACT_LIMIT + 1):
        covers = set(_covers(open_edges, size, rank))
        if covers:
            return forced | max(covers, key=lambda cover: _preference(cover, rank))
    return forced | _greedy(open_edges, rank)


def _preference(cover: Collection[NodeId], rank: dict[NodeId, int]) -> list[int]:
    """Return the members' places, last first: the larger list is the cover to take."""
    return sorted((rank[node] for node in cover), reverse=True)


def _rank(nodes: Collection[NodeId], record: EdgeRecord) -> dict[NodeId, int]:
    """Return each node's place in the order (disputes, id): the last one goes first."""
    disputes = dict(record.disputes)
    order = sorted(nodes, key=lambda node: (disputes.get(node, 0), node.encode()))
    return {node: place for place, node in enumerate(order)}


def _covers(edges: list[Edge], size: int, rank: dict[NodeId, int]) -> Iterator[frozenset[NodeId]]:
    """Yield every cover of at most `size` nodes that could be preferred.

    Either the node with most edges is in the cover, or all its neighbours are. Where
    only separate edges are left, the preferred end of each is as good as any.
    """
    if size < 0:
        return
    if not edges:
        yield frozenset()
        return
    degree = Counter(node for pair in edges for node in pair)
    worst = max(degree, key=lambda node: (degree[node], rank[node]))
    if len(edges) > size * degree[worst]:
        return
    if degree[worst] == 1:
        yield frozenset(max(pair, key=rank.__getitem__) for pair in edges)
        return
    beside = frozenset(node for pair in edges if worst in pair for node in pair if node != worst)
    for taken in (frozenset((worst,)), beside):
        rest = [pair for pair in edges if not taken.intersection(pair)]
        for cover in _covers(rest, size - len(taken), rank):
            yield cover | taken


def _greedy(edges: list[Edge], rank: dict[NodeId, int]) -> frozenset[NodeId]:
    """Return a cover made by taking, again and again, the node with most open edges."""
    cover: set[NodeId] = set()
    while edges:
        degree = Counter(node for pair in edges for node in pair)
        worst = max(degree, key=lambda node: (degree[node], rank[node]))
        cover.add(worst)
        edges = [pair for pair in edges if worst not in pair]
    return frozenset(cover)
