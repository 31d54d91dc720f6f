"""Twelve generated hospitals as a new user finds them: wide, mostly empty, rare events.

    python -m benchmarks.accuracy wide [--seeds 5]

48 variables, 80 % of the cells empty, 7 % events, from 298 to 1,208 patients a hospital. Only
study and site files that `fedcare data generate --scenario wide` writes; no code.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.accuracy import frame
from common.site import load_sites
from common.study import load_study
from hospital_node.data.invent.files import generate
from hospital_node.data.invent.knobs import scenario

DATA_SEED: Final = 1


def measure(given: argparse.Namespace) -> frame.Entry:
    """Run the generated study over the seeds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        written = generate(Path(name) / "wide", scenario("wide"), DATA_SEED)
        study = load_study(written.study)
        results = frame.over_seeds(study, load_sites(written.manifests), range(given.seeds))
    return frame.Entry(
        "wide",
        "A wide and mostly empty table at twelve hospitals",
        "python -m benchmarks.accuracy wide",
        "Generated (`fedcare data generate --scenario wide --seed 1`): 48 variables, 80 % of the "
        "cells empty, 7 % events, twelve hospitals of very different size; the study as "
        f"written beside them, {study.federation.rounds} rounds, {given.seeds} seeds.",
        results,
        (),
        time.monotonic() - began,
    )
