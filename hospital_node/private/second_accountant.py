"""A second opinion on a study's epsilon, by an accountant that others wrote: dp-accounting.

`check` recomputes what the ledger will charge from the study's own terms (z, p, steps, delta),
over the very orders of `common.privacy.accountant`, and refuses the study where the two differ
by more than 1 %. dp-accounting converts by the same theorem (Canonne, Kamath and Steinke 2020,
proposition 12, which is Balle et al. 2020, theorem 21); it also calls an epsilon 0 where delta
exceeds the total variation distance, which no useful study comes near: that counts as a
difference, like any other. The delta is the one that the conversion uses, `DELTA_SHARE` of it.

`estimate` is the privacy loss distribution's figure for continuous Gaussian noise, at the whole
delta: shown to people, never charged (docs/protocol.md, section 9.4).

dp-accounting brings scipy and takes a second to import, so it is imported when it is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from common.errors import ConfigError, Refusal
from common.privacy.accountant import DELTA_SHARE, ORDERS
from common.study import Study
from common.study_privacy import charged, steps

TOLERANCE: Final = 0.01
"""The most by which the two figures may differ, of the smaller one."""


@dataclass(frozen=True, slots=True)
class Spending:
    """What an epsilon follows from: `steps` equal steps of noise `z` and sampling `p`."""

    z: float
    p: float
    steps: int
    delta: float

    @classmethod
    def of(cls, study: Study) -> Spending:
        """Return the spending of a study with differential privacy."""
        terms = study.privacy.dp
        return cls(
            terms.noise_multiplier or 0.0, terms.sampling or 1.0, steps(study), terms.delta or 0.0
        )


def charged_again(spending: Spending) -> float:
    """Return the charged epsilon as dp-accounting computes it.

    Raises:
        ConfigError: NOT_INSTALLED.
    """
    library = _library()
    accountant = library.rdp.RdpAccountant(
        orders=list(ORDERS),
        neighboring_relation=library.NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
    accountant.compose(_event(library, spending), spending.steps)
    return float(accountant.get_epsilon(spending.delta * DELTA_SHARE))


def estimate(spending: Spending) -> float:
    """Return the epsilon of the privacy loss distribution: an estimate, never charged.

    Raises:
        ConfigError: NOT_INSTALLED.
    """
    library = _library()
    accountant = library.pld.PLDAccountant(
        neighboring_relation=library.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    accountant.compose(_event(library, spending), spending.steps)
    return float(accountant.get_epsilon(spending.delta))


def check(study: Study) -> float:
    """Return the second figure of a study; refuse one whose two figures disagree.

    Raises:
        Refusal: ACCOUNTANT, with both.
        ConfigError: NOT_INSTALLED: without a second figure no study with noise runs.
    """
    first, second = charged(study), charged_again(Spending.of(study))
    if not abs(first - second) <= TOLERANCE * min(first, second):  # a NaN is no agreement
        raise Refusal(
            "ACCOUNTANT",
            f"study {study.id}: the ledger's accountant charges epsilon {first:.6g}, "
            f"dp-accounting {second:.6g}",
        )
    return second


def _event(library: Any, spending: Spending) -> Any:  # noqa: ANN401 - shipped without types
    event = library.GaussianDpEvent(spending.z)
    return event if spending.p == 1 else library.PoissonSampledDpEvent(spending.p, event)


def _library() -> Any:  # noqa: ANN401 - shipped without types
    try:
        import dp_accounting
    except ModuleNotFoundError as missing:
        raise ConfigError(
            "NOT_INSTALLED",
            f"the second accountant needs '{missing.name}', which is not installed",
            fix="Install the extra: pip install 'fedcare[node]'.",
        ) from None
    return dp_accounting
