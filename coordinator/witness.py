"""What the coordinator can attest of a hospital's privacy spend, should the hospital forget.

A hospital's ledger is its own. If its whole state directory is lost or restored from an
old copy, nothing in it shows that; the coordinator's record of opened sums does. It is
told at each connection and can only make a hospital stop (`hospital_node.private.books`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from common.ids import NodeId
from coordinator.run_state import RunState


def noised_sums(runs: Iterable[RunState], node: NodeId) -> tuple[tuple[str, int], ...]:
    """Return (data set, opened sums with differential privacy that `node` is in), sorted."""
    found: Counter[str] = Counter()
    for run in runs:
        if run.study.privacy.dp.on:
            opened = (record for record in run.history if record.opened)
            found[run.study.dataset] += sum(node in record.survivors for record in opened)
    return tuple(sorted((dataset, count) for dataset, count in found.items() if count))
