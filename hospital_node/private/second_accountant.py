"""A second opinion on a study's epsilon, by an accountant that others wrote: dp-accounting.

`check` recomputes what the ledger will charge from the study's own terms (noise, sampling,
steps, figures, delta), over the very orders of `common.privacy.accountant`, and refuses the
study where the two differ by more than 1 %. dp-accounting converts by the same theorem
(Canonne, Kamath and Steinke 2020, proposition 12, which is Balle et al. 2020, theorem 21); it
also calls an epsilon 0 where delta exceeds the total variation distance, which no useful study
comes near: that counts as a difference, like any other. The delta is the one that the
conversion uses, `DELTA_SHARE` of it.

`estimate` is the privacy loss distribution's figure for continuous Gaussian noise, at the whole
delta: shown to people, never charged (docs/protocol.md, section 9.4).

dp-accounting brings scipy and takes a second to import, so it is imported when it is asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from common.errors import ConfigError, Refusal
from common.privacy.accountant import DELTA_SHARE, ORDERS
from common.study import Study
from common.study_privacy import FIGURES, charged, steps

TOLERANCE: Final = 0.01
"""The most by which the two figures may differ, of the smaller one."""


@dataclass(frozen=True, slots=True)
class Spending:
    """`steps` equal releases with noise multiplier `z`, each unit taking part with chance `p`."""

    z: float
    p: float = 1.0
    steps: int = 1


def spending(study: Study) -> tuple[Spending, ...]:
    """Return what a study with differential privacy releases: its steps, then its figures."""
    terms = study.privacy.dp
    training = Spending(terms.noise_multiplier or 0.0, terms.sampling or 1.0, steps(study))
    noises = (getattr(terms, f"{figure}_noise") for figure in FIGURES)
    return (training, *(Spending(float(noise)) for noise in noises if noise is not None))


def charged_again(spent: Iterable[Spending], delta: float) -> float:
    """Return the charged epsilon as dp-accounting computes it.

    Raises:
        ConfigError: NOT_INSTALLED.
    """
    library = _library()
    accountant = library.rdp.RdpAccountant(
        orders=list(ORDERS),
        neighboring_relation=library.NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
    _compose(library, accountant, spent)
    return float(accountant.get_epsilon(delta * DELTA_SHARE))


@lru_cache(maxsize=64)
def estimate(spent: tuple[Spending, ...], delta: float) -> float:
    """Return the epsilon of the privacy loss distribution: an estimate, never charged.

    Raises:
        ConfigError: NOT_INSTALLED.
    """
    library = _library()
    accountant = library.pld.PLDAccountant(
        neighboring_relation=library.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    _compose(library, accountant, spent)
    return float(accountant.get_epsilon(delta))


def check(study: Study) -> float:
    """Return the second figure of a study; refuse one whose two figures disagree.

    Raises:
        Refusal: ACCOUNTANT, with both.
        ConfigError: NOT_INSTALLED: without a second figure no study with noise runs.
    """
    delta = study.privacy.dp.delta or 0.0
    first, second = charged(study), charged_again(spending(study), delta)
    if not abs(first - second) <= TOLERANCE * min(first, second):  # a NaN is no agreement
        raise Refusal(
            "ACCOUNTANT",
            f"study {study.id}: the ledger's accountant charges epsilon {first:.6g}, "
            f"dp-accounting {second:.6g}",
        )
    return second


def _compose(library: Any, accountant: Any, spent: Iterable[Spending]) -> None:  # noqa: ANN401
    """Add up releases; the library is shipped without types."""
    for part in spent:
        event = library.GaussianDpEvent(part.z)
        if part.p < 1:
            event = library.PoissonSampledDpEvent(part.p, event)
        accountant.compose(event, part.steps)


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
