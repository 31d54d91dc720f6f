"""The hospital's books: ledgers by data set, and which patients a study may draw.

`charge` stands before everything of a round that leaves the hospital. It refuses what
would pass the hospital's limits or the study's own promise, and says the arithmetic.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.entropy import Entropy
from common.errors import Refusal, StateError
from common.privacy.accountant import (
    Rdp,
    add,
    check_reserve,
    epsilon,
    inverse_noise,
    step_rdp,
)
from common.secagg.dp import DpTerms
from common.secagg.header import Header
from common.study import Study
from common.study_privacy import steps, study_cost
from hospital_node.ledger import Charge, Ledger
from hospital_node.private.sampling import draw_list
from hospital_node.store import NodeStore

BUDGET_KEYS: Final = ("require.dp.epsilon_per_study", "require.dp.epsilon_total")
"""The policy's keys that a charge is held against, in the order of the check."""

_TOLERANCE: Final = 1e-9
"""Of a limit, relative: what adding a study's rounds one by one may round."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the hospital's policy allows: per study, and per data set for ever, at `delta`.

    `where` says for a key of the policy in which file and line it stands.
    """

    epsilon_per_study: float
    epsilon_total: float
    delta: float
    where: Mapping[str, str] = field(default_factory=dict)

    def cite(self, key: str) -> str:
        """Return where a rule stands, for the end of a message."""
        place = self.where.get(key)
        return f"({key})" if place is None else f"({place}: {key})"


class Books:
    """See `hospital_node.work.PrivacyBooks`; `now_unix` is the wall clock, for the record."""

    def __init__(
        self,
        store: NodeStore,
        node: str,
        limits: Limits,
        entropy: Entropy,
        now_unix: Callable[[], int],
    ) -> None:
        self._store = store
        self._node = node
        self._limits = limits
        self._entropy = entropy
        self._now_unix = now_unix
        self._ledgers: dict[str, Ledger] = {}

    def admit(self, study: Study, *, accepted: bool) -> None:
        """See `PrivacyBooks`. What an accepted study was promised is not judged again."""
        ledger = self._ledger(study.dataset, accepted=accepted)
        if not accepted:
            self._check(study, ledger, study_cost(study), "the whole study")

    def charge(self, study: Study, header: Header) -> None:
        """See `PrivacyBooks`."""
        ledger = self._ledger(study.dataset, accepted=True)
        hd = header.digest().hex()
        if ledger.charged(hd):
            return
        cost = round_cost(header)
        self._check(study, ledger, cost, f"round {header.r}")
        check_reserve(
            min(self._limits.epsilon_total, study.privacy.dp.epsilon or 0.0),
            study.privacy.dp.delta or 0.0,
            rounds=steps(study),
            n=header.n,
            d=header.d,
        )
        ledger.append(_entry(study, header, hd, cost, self._now_unix()))

    def listed(self, study: Study, patients: int) -> NDArray[np.int64]:
        """See `PrivacyBooks`. A patient who came to the table later is not on the list."""
        name = f"{study.id}.patients"
        kept = self._store.load_sealed(name)
        if kept is None:
            drawn = draw_list(patients, study.privacy.dp.max_patients or 0, self._entropy)
            self._store.save_sealed(name, json.dumps(drawn.tolist()).encode())
            return drawn
        try:
            numbers = np.array(json.loads(kept), np.int64)
        except (ValueError, TypeError, OverflowError) as failure:
            raise StateError("STATE_DAMAGED", f"the patient list of {study.id}") from failure
        return numbers[numbers < patients]

    def _ledger(self, dataset: str, *, accepted: bool) -> Ledger:
        if dataset not in self._ledgers:
            begun = None if accepted else self._now_unix()
            self._ledgers[dataset] = Ledger.open(
                self._store.ledgers, self._node, dataset, self._store, begun
            )
        return self._ledgers[dataset]

    def _check(self, study: Study, ledger: Ledger, cost: Rdp, what: str) -> None:
        terms, limits = study.privacy.dp, self._limits
        own = min(limits.epsilon_per_study, terms.epsilon or 0.0)
        bounds = (
            (ledger.spent(study.id), terms.delta or 0.0, own, f"study {study.id}"),
            (ledger.spent(), limits.delta, limits.epsilon_total, f"data set {study.dataset}"),
        )
        for (spent, delta, limit, whose), key in zip(bounds, BUDGET_KEYS, strict=True):
            before, after = epsilon(spent, delta).epsilon, epsilon(add(spent, cost), delta).epsilon
            if after > limit * (1 + _TOLERANCE):
                raise Refusal(
                    "BUDGET",
                    f"{whose}: epsilon {before:.4f} is spent; with {what} it would be {after:.4f}, "
                    f"above the limit {limit:g} (delta {delta:g}) {limits.cite(key)}",
                )


def round_cost(header: Header) -> Rdp:
    """Return what a round charges, from the noise that its header really orders."""
    terms = header.dp
    z = terms.sigma_loc * header.honest**0.5 / terms.delta_int
    e = inverse_noise(min(z, terms.z), d=header.d, h=header.honest, sigma_loc=terms.sigma_loc)
    return step_rdp(e, sampling(terms))


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
        mode=terms.mode.value,
        z=terms.z,
        p=terms.p,
        delta_int=terms.delta_int,
        sigma_loc=terms.sigma_loc,
        h=header.honest,
        rdp=cost,
    )
