"""A hospital that drops out of every round, for `bench --dropouts`.

It is the real node in a real process: it connects, decides, agrees on keys, receives every
model and every round's header, and hands out nothing false. Only its training fails, each
time, as it does at a hospital whose table has just become unreadable. The node then leaves
the round by itself, after it was counted in the header and its masks are in the others'
updates: what the protocol calls a dropout, whose edges the survivors must open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common.config import Loaded
from common.errors import DataError
from common.ids import ConfigHash
from common.logs import EventLog
from common.messages import Objection
from common.policy import Policy
from common.secagg.header import Header, RoundKind
from common.secagg.keys import CoefficientSeed
from common.site import Site
from common.vectors import ParameterSchema
from hospital_node.contribution import WordSource
from hospital_node.learning import HospitalDesk
from hospital_node.work import Desk, PrivacyBooks, Terms, Work


class FailingWork:
    """Everything as the real work, but for `make`; see `hospital_node.work.Work`."""

    def __init__(self, work: Work) -> None:
        self._work = work

    @property
    def terms(self) -> Terms:
        """See `Work`."""
        return self._work.terms

    def model_schema(self) -> ParameterSchema:
        """See `Work`."""
        return self._work.model_schema()

    def is_quick(self, kind: RoundKind) -> bool:
        """See `Work`."""
        return self._work.is_quick(kind)

    def make(
        self,
        header: Header,
        model: Path | None,
        seed: CoefficientSeed,
        abandoned: Callable[[], bool],
    ) -> WordSource:
        """Fail, as training does when the data cannot be read."""
        del header, model, seed, abandoned
        raise DataError("DATA_EMPTY", "bench: this hospital drops out of every round")

    def report(self, model: Path) -> Mapping[str, object]:
        """See `Work`."""
        return self._work.report(model)


class FailingDesk:
    """The real desk, whose accepted studies fail in training; see `Desk`."""

    def __init__(
        self, policy: Loaded[Policy], site: Site | None, log: EventLog, books: PrivacyBooks
    ) -> None:
        self._desk: Desk = HospitalDesk(policy, site, log, books)

    def judge(self, study: bytes, config_hash: ConfigHash) -> tuple[Objection, ...]:
        """See `Desk`."""
        return self._desk.judge(study, config_hash)

    def open(self, study: bytes) -> Work:
        """See `Desk`."""
        return FailingWork(self._desk.open(study))


def main(arguments: Sequence[str]) -> int:
    """Serve the node whose file is the last argument, as `fedcare node serve` does."""
    from common.cli import report, understand
    from hospital_node.app import serve
    from hospital_node.config import NodeConfig

    try:
        serve(NodeConfig.read(Path(arguments[-1])), FailingDesk)
    except Exception as error:  # noqa: BLE001 - the outermost place of this program
        return report(understand(error), as_json=False)
    return 0
