"""What the coordinator can attest of a hospital's privacy spend, should the hospital forget.

A hospital's ledger is its own. If its whole state directory is lost or restored from an
old copy, nothing in it shows that; the coordinator's record of opened sums does. It is
told at each connection and can only make a hospital stop (`hospital_node.private.books`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from common.ids import NodeId
from coordinator.progress import Progress


def noised_sums(runs: Iterable[Progress], node: NodeId) -> tuple[tuple[str, int], ...]:
    """Return (data set, opened sums with differential privacy that `node` is in), sorted."""
    found: Counter[str] = Counter()
    for run in runs:
        found[run.dataset] += dict(run.noised).get(node, 0)
    return tuple(sorted((dataset, count) for dataset, count in found.items() if count))
