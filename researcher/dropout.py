"""A hospital that drops out of every round, for `bench --dropouts`.

It hands out nothing false. Only its training fails, each time, as it does at a hospital
whose table has just become unreadable. The node then leaves the round by itself, after it
was counted in the header and its masks are in the others' updates: what the protocol calls
a dropout, whose edges the survivors must open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from common.errors import DataError
from common.secagg.header import Header
from common.secagg.keys import CoefficientSeed
from hospital_node.contribution import WordSource
from hospital_node.personal_state import OwnTensors
from researcher.bench_node import WrappedWork, serve_wrapped


class FailingWork(WrappedWork):
    """Everything as the real work, but for `make`; see `hospital_node.work.Work`."""

    def make(
        self,
        header: Header,
        model: Path | None,
        seed: CoefficientSeed,
        abandoned: Callable[[], bool],
        own: OwnTensors,
    ) -> WordSource:
        """Fail, as training does when the data cannot be read."""
        del header, model, seed, abandoned, own
        raise DataError("DATA_EMPTY", "bench: this hospital drops out of every round")


def main(arguments: Sequence[str]) -> int:
    """Serve the node whose file is the last argument, as `fedcare node serve` does."""
    return serve_wrapped(arguments, lambda _folder: FailingWork)
