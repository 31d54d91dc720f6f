"""How much a fault test does: on every change, each night, before a release.

    for seed in range(trials(change=20, nightly=1_000, release=2_000)): ...

The environment says which (`FEDCARE_FAULT_BUDGET`); this is the one place that reads it.
"""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Final

VARIABLE: Final = "FEDCARE_FAULT_BUDGET"


class Budget(StrEnum):
    """Every change: all faults in at most 10 minutes on two cores. The others take longer."""

    CHANGE = "change"
    NIGHTLY = "nightly"
    RELEASE = "release"


def budget() -> Budget:
    """Return the budget that the environment asks for; that of every change if it is silent.

    Raises:
        ValueError: it asks for one that is not there.
    """
    return Budget(os.environ.get(VARIABLE) or Budget.CHANGE)


def trials(*, change: int, nightly: int, release: int) -> int:
    """Return the number that belongs to the budget in use."""
    return {Budget.CHANGE: change, Budget.NIGHTLY: nightly, Budget.RELEASE: release}[budget()]
