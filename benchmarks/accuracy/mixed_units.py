"""What mixed units cost: half the hospitals record in mg/dL and g/L, harmonised, against none.

    python -m benchmarks.accuracy mixed-units [--seeds 5]

The same generated patients twice, by study and site files alone: once all in the study's units,
once with the other half's in their own and a manifest that says so (`units:`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.accuracy import frame
from common.site import load_sites
from common.study import load_study
from hospital_node.data.invent.files import generate
from hospital_node.data.invent.knobs import Knobs, scenario

DATA_SEED: Final = 1
LOSS: Final = "pooled AUROC lost"


def measure(given: argparse.Namespace) -> frame.Entry:
    """Run the generated study over the seeds with clean and with mixed units."""
    began = time.monotonic()
    mixed = scenario("mixed-units")
    clean = _federated("clean units", replace(mixed, units=0.0), given.seeds)
    found = _federated("mixed units, harmonised", mixed, given.seeds)
    pairs = zip(clean.figures[frame.AUROC], found.figures[frame.AUROC], strict=True)
    lost = tuple(before - after for before, after in pairs)
    return frame.Entry(
        "mixed-units",
        "Mixed units between hospitals",
        "python -m benchmarks.accuracy mixed-units",
        "Generated (`fedcare data generate --scenario mixed-units --seed 1`): four hospitals, "
        "two of which record creatinine, glucose, haemoglobin and crp in other units; against the "
        f"same patients in the study's units. {given.seeds} seeds; losses are by seed.",
        (
            replace(clean, figures={**clean.figures, LOSS: (0.0,) * given.seeds}),
            replace(found, figures={**found.figures, LOSS: lost}),
        ),
        (frame.Must(found.way, LOSS, 0.002, at_most=True),),
        time.monotonic() - began,
    )


def _federated(way: str, knobs: Knobs, seeds: int) -> frame.Result:
    with tempfile.TemporaryDirectory() as name:
        written = generate(Path(name) / "data", knobs, DATA_SEED)
        study, sites = load_study(written.study), load_sites(written.manifests)
        return replace(frame.over_seeds(study, sites, range(seeds))[0], way=way)
