"""The hospital's books: ledgers by data set, and which patients a study may draw.

`charge` stands before everything of a round that leaves the hospital. It refuses what
would pass the hospital's limits or the study's own promise, and says the arithmetic.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.entropy import Entropy
from common.errors import Refusal, StateError
from common.privacy.accountant import (
    Rdp,
    check_reserve,
    inverse_noise,
    step_rdp,
    times,
)
from common.secagg.dp import DpTerms
from common.secagg.header import Header
from common.study import Study
from common.study_privacy import FIGURES, steps, study_cost
from hospital_node.ledger import Charge, Ledger
from hospital_node.ledger_anchor import Anchor, Tagger
from hospital_node.private import second_accountant
from hospital_node.private.limits import Limits, bounds
from hospital_node.private.sampling import draw_list
from hospital_node.store import DecisionRecord, NodeStore


def agreed_datasets(records: Iterable[DecisionRecord]) -> frozenset[str]:
    """Return the data sets of studies with privacy terms that were ever accepted.

    Each of them has had a ledger since, whatever the ledger's folder holds now.
    """
    found = set()
    for record in records:
        if record.accepted and record.study:
            study = json.loads(record.study)
            if study["privacy"]["dp"]["mode"] != "none":
                found.add(str(study["dataset"]))
    return frozenset(found)


class Books:
    """See `hospital_node.work.PrivacyBooks`; `now_unix` is the wall clock, for the record.

    Offers are judged in one thread and rounds made in another: one lock for both.
    """

    def __init__(
        self,
        store: NodeStore,
        node: str,
        limits: Limits,
        entropy: Entropy,
        now_unix: Callable[[], int],
        anchor: Path | None = None,
    ) -> None:
        self._store = store
        self._node = node
        self._limits = limits
        self._entropy = entropy
        self._now_unix = now_unix
        self._anchor = anchor
        self._ledgers: dict[str, Ledger] = {}
        self._sums: dict[str, int] = {}
        self._turn = threading.Lock()

    def witnessed(self, sums: Mapping[str, int]) -> None:
        """Hear how many noised sums with this hospital somebody else knows of, by data set.

        Each was charged before it was uploaded. So a ledger with fewer charges was lost or
        rolled back together with everything beside it, and counts as spent. Who lies here
        can stop this hospital's studies, and spend nothing.
        """
        with self._turn:
            for dataset, count in sums.items():
                self._sums[dataset] = max(count, self._sums.get(dataset, 0))

    def admit(self, study: Study, *, accepted: bool) -> None:
        """See `PrivacyBooks`. What an accepted study was promised is not judged again."""
        if not accepted:
            second_accountant.check(study)
        with self._turn:
            ledger = self._ledger(study.dataset, accepted=accepted)
            if not accepted:
                self._check(study, ledger, study_cost(study))

    def charge(self, study: Study, header: Header) -> None:
        """See `PrivacyBooks`."""
        with self._turn:
            ledger = self._ledger(study.dataset, accepted=True)
            hd = header.digest().hex()
            cost = round_cost(header)
            if not ledger.knows(hd):
                self._check(study, ledger, cost)
                check_reserve(
                    min(self._limits.epsilon_total, study.privacy.dp.epsilon or 0.0),
                    study.privacy.dp.delta or 0.0,
                    rounds=steps(study) + len(FIGURES),
                    n=header.n,
                    d=header.d,
                )
            ledger.append(_entry(study, header, hd, cost, self._now_unix()))

    def listed(self, study: Study, part: str, patients: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `PrivacyBooks`. A patient who came to the table later is not on the list."""
        name, most = f"{study.id}.{part}-patients", study.privacy.dp.max_patients or 0
        numbered = np.unique(patients)
        kept = self._store.load_sealed(name)
        if kept is None:
            drawn = numbered[draw_list(numbered.size, most, self._entropy)]
            self._store.save_sealed(name, json.dumps(drawn.tolist()).encode())
            return drawn
        try:
            numbers = np.array(json.loads(kept), np.int64)
        except (ValueError, TypeError, OverflowError) as failure:
            raise StateError("STATE_DAMAGED", f"the patient list of {study.id}") from failure
        if numbers.size > most:  # leaving some out would let one patient push out another
            raise Refusal("DP_WEAK", "max_patients is less than when this study's list was drawn")
        return np.intersect1d(numbers, numbered)

    def _ledger(self, dataset: str, *, accepted: bool) -> Ledger:
        if dataset not in self._ledgers:
            accepted = accepted or dataset in agreed_datasets(self._store.decisions())
            begun = None if accepted else self._now_unix()
            self._ledgers[dataset] = Ledger.open(
                self._store.ledgers,
                self._node,
                dataset,
                self._store,
                begun,
                anchor_of(self._anchor, self._node, dataset, self._store),
            )
        ledger = self._ledgers[dataset]
        check_witness(dataset, len(ledger.charges), self._sums.get(dataset, 0))
        return ledger

    def _check(self, study: Study, ledger: Ledger, cost: Rdp) -> None:
        for bound in bounds(study, self._limits, ledger.entries, cost):
            if not bound.holds:
                raise Refusal("BUDGET", str(bound))


def check_witness(dataset: str, charges: int, sums: int) -> None:
    """Refuse a ledger with fewer charges than the coordinator has opened sums of this hospital.

    Raises:
        StateError: LEDGER_ROLLED_BACK.
    """
    if charges < sums:
        raise StateError(
            "LEDGER_ROLLED_BACK",
            f"the ledger of data set {dataset} has {charges} charges; the coordinator opened "
            f"{sums} noised sums with this hospital in them",
        )


def anchor_of(folder: Path | None, node: str, dataset: str, tagger: Tagger) -> Anchor | None:
    """Return a data set's anchor in the folder that the node's file names, if it names one."""
    return None if folder is None else Anchor(folder, node, dataset, tagger)


def round_cost(header: Header) -> Rdp:
    """Return what a round charges, from the noise and the steps that its header really orders."""
    terms, h = header.dp, header.sharers
    z = terms.sigma_loc * h**0.5 / terms.delta_int
    e = inverse_noise(min(z, terms.z), d=header.d, h=h, sigma_loc=terms.sigma_loc)
    return times(step_rdp(e, sampling(terms)), terms.noised_steps)


def sampling(terms: DpTerms) -> float:
    """Return p for the accountant: a hospital is never sampled."""
    return terms.p if terms.p > 0 else 1.0


def _entry(study: Study, header: Header, hd: str, cost: Rdp, now: int) -> Charge:
    terms = header.dp
    return Charge(
        time=now,
        task=study.id,
        session=header.session_id.hex(),
        r=header.r,
        hd=hd,
        kind=header.kind.value,
        mode=terms.mode.value,
        z=terms.z,
        p=terms.p,
        delta_int=terms.delta_int,
        sigma_loc=terms.sigma_loc,
        h=header.sharers,
        rdp=cost,
        steps=terms.noised_steps,
    )
