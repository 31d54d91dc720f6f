"""What a task needs of learning, as protocols: the driver never sees a table or torch.

`Desk` is the hospital's front desk: it judges offers and opens accepted studies.
`Work` is one accepted study at this hospital, with its data loaded once per run.
`hospital_node.learning` implements both; tests and `sim` may bring their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.ids import ConfigHash
from common.messages import Objection
from common.secagg.header import Header, RoundKind
from common.secagg.keys import CoefficientSeed, Suite
from common.secagg.node_state import SessionExpectation
from common.study import Study
from common.vectors import ParameterSchema
from hospital_node.contribution import WordSource
from hospital_node.personal_state import OwnTensors


@dataclass(frozen=True, slots=True)
class Terms:
    """What an accepted study fixes for its sessions."""

    task: str
    suite: Suite
    expect: SessionExpectation
    two_party: bool
    """Whether it may run between two hospitals, which then see each other's update."""


class Work(Protocol):
    """One accepted study at this hospital. Blocking methods run in a worker thread."""

    @property
    def terms(self) -> Terms:
        """What the study fixes."""
        ...

    def model_schema(self) -> ParameterSchema:
        """The tensors of the study's global model, for receiving it."""
        ...

    def is_quick(self, kind: RoundKind) -> bool:
        """Whether `make` takes about a millisecond, less than a change of thread is worth."""
        ...

    def make(
        self,
        header: Header,
        model: Path | None,
        seed: CoefficientSeed,
        abandoned: Callable[[], bool],
        own: OwnTensors,
    ) -> WordSource:
        """Train (or count) on the hospital's rows; return the finished `v_i`. Blocking.

        `model` is the received and checked file, None where the round has none; `seed`
        is `a_i`, for stochastic rounding; `own` what the run keeps at this hospital: new
        values are staged there for the round.

        Raises:
            DataError, Refusal (INPUT_NAN), StateError: this node leaves the round.
            RoundError: RUN_CANCELLED, `abandoned` said so.
        """
        ...

    def report(self, model: Path, own: OwnTensors) -> Mapping[str, object]:
        """Return the released model's metrics on the hospital's own test rows. Blocking."""
        ...

    def personalise(self, model: Path, own: OwnTensors, folder: Path) -> str:
        """Make the hospital's own model of the released one and keep it in `folder`. Blocking.

        Return how it was made; empty, and nothing is kept, where the study wants none.
        """
        ...


class PrivacyBooks(Protocol):
    """What a study with differential privacy needs kept at the hospital. Blocking."""

    def admit(self, study: Study, *, accepted: bool) -> None:
        """Open the data set's ledger; refuse a study that the hospital's budget cannot hold.

        `accepted`: the study was accepted before, so its ledger must be there.

        Raises:
            Refusal: BUDGET; ACCOUNTANT, a second accountant disagrees with the charged epsilon.
            StateError: LEDGER_DAMAGED, LEDGER_LOST, LEDGER_ROLLED_BACK, LEDGER_ANCHOR; DISK.
        """
        ...

    def charge(self, study: Study, header: Header) -> None:
        """Write the round's charge durably, once for a header, before anything of it leaves.

        Raises:
            Refusal: BUDGET, the charge would pass the hospital's limit or the study's own.
            StateError: LEDGER_DAMAGED, LEDGER_LOST, LEDGER_ROLLED_BACK, LEDGER_ANCHOR; DISK.
        """
        ...

    def listed(self, study: Study, part: str, patients: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of `patients` that may take part: at most `max_patients`, sorted.

        `patients` are the numbers of the patients of one `part` of the table (`train` or
        `test`). Drawn once per study and part without looking at the data, and kept.

        Raises:
            StateError: DISK, STATE_DAMAGED.
        """
        ...


class Desk(Protocol):
    """Says what this hospital runs."""

    def judge(self, study: bytes, config_hash: ConfigHash) -> tuple[Objection, ...]:
        """Return the objections to an offer; none means it is accepted. Blocking.

        `study` comes from the coordinator and may be anything; `config_hash` is its
        SHA-256, computed here. Loads the data, so that what cannot run is not accepted.

        Raises:
            StateError: DISK; what is asked has to be asked again.
        """
        ...

    def open(self, study: bytes) -> Work:
        """Return the work of a study that was accepted, its data loaded. Blocking.

        Raises:
            FedError: the study, the policy or the data no longer fit.
        """
        ...
