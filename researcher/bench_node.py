"""The hospitals of `fedcare bench`: real nodes in real processes, whose work is wrapped.

A wrapped node connects, decides, agrees on keys, receives every model and every header as
`fedcare node serve` does; only what becomes of `make` differs, as the wrapper says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from common.config import Loaded
from common.ids import ConfigHash
from common.logs import EventLog
from common.messages import Objection
from common.policy import Policy
from common.secagg.header import Header, RoundKind
from common.secagg.keys import CoefficientSeed
from common.site import Site
from common.vectors import ParameterSchema
from hospital_node.checkpoints import Checkpoints
from hospital_node.contribution import WordSource
from hospital_node.launcher import Launcher
from hospital_node.learning import HospitalDesk
from hospital_node.personal_state import OwnTensors
from hospital_node.work import Desk, PrivacyBooks, Terms, Work


class WrappedWork:
    """Everything as the real work; a subclass has a `make` of its own. See `Work`."""

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
        own: OwnTensors,
    ) -> WordSource:
        """See `Work`."""
        return self._work.make(header, model, seed, abandoned, own)

    def report(self, model: Path, own: OwnTensors) -> Mapping[str, object]:
        """See `Work`."""
        return self._work.report(model, own)

    def personalise(self, model: Path, own: OwnTensors, folder: Path) -> str:
        """See `Work`."""
        return self._work.personalise(model, own, folder)


Wrap: TypeAlias = Callable[[Work], Work]


class WrappingDesk:
    """The real desk, whose accepted studies are wrapped; see `Desk`."""

    def __init__(self, desk: Desk, wrap: Wrap) -> None:
        self._desk = desk
        self._wrap = wrap

    def judge(self, study: bytes, config_hash: ConfigHash) -> tuple[Objection, ...]:
        """See `Desk`."""
        return self._desk.judge(study, config_hash)

    def open(self, study: bytes) -> Work:
        """See `Desk`."""
        return self._wrap(self._desk.open(study))


def serve_wrapped(arguments: Sequence[str], wrapper: Callable[[Path], Wrap]) -> int:
    """Serve the node whose file is the last argument, as `fedcare node serve` does.

    `wrapper` returns what wraps the work, given the folder of the node's file.
    """
    from common.cli import report, understand
    from hospital_node.app import serve
    from hospital_node.config import NodeConfig

    path = Path(arguments[-1])
    wrap = wrapper(path.absolute().parent)

    def desk(
        policy: Loaded[Policy],
        site: Site | None,
        log: EventLog,
        books: PrivacyBooks,
        launcher: Launcher | None,
        checkpoints: Checkpoints | None,
    ) -> WrappingDesk:
        own = HospitalDesk(policy, site, log, books, launcher, checkpoints)
        return WrappingDesk(own, wrap)

    try:
        serve(NodeConfig.read(path), desk)
    except Exception as error:  # noqa: BLE001 - the outermost place of this program
        return report(understand(error), as_json=False)
    return 0
