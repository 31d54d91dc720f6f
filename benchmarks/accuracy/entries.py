"""The entries of the results page, in its order. A new one is a module and a line here."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Final

from benchmarks.accuracy import feature_shift, heart, large, mixed_units, narrow, newton, tcga, wide
from benchmarks.accuracy.frame import Entry

ENTRIES: Final[Mapping[str, Callable[[argparse.Namespace], Entry]]] = {
    "heart": heart.measure,
    "tcga": tcga.measure,
    "wide": wide.measure,
    "mixed-units": mixed_units.measure,
    "newton": newton.measure,
    "feature-shift": feature_shift.measure,
    "narrow": narrow.measure,
    "large": large.measure,
}
"""What measures each entry; it reads `data` (a folder, if it needs one) and `seeds`."""
