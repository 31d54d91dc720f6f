# ruff: noqa: INP001, T201 - a script, and its table is its output
"""Every patient's gradient against the plain one: `python benchmarks/gradients.py [ROUNDS]`.

One process, one thread, the three alternating; medians. The network has two hidden layers
of 64, a batch has 256 patients of one row each.

    plain        forward and backward of the batch's mean loss
    per patient  `hospital_node.private.gradients`, a vector for every patient
    integers     that, and every vector clipped, rounded to integers and added up

The last is what a round costs a hospital. Computing clipped sums without the single vectors
("ghost clipping": norms in closed form, then one weighted backward pass) would be cheaper and
cannot be used: rounding and the check of the integer norm need each patient's own vector.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from common import models
from common.entropy import OsEntropy
from common.privacy.clipping import integer_sum, secret_uniforms
from common.study import Study, parse_study
from hospital_node.models import build
from hospital_node.private.gradients import patient_gradients
from hospital_node.train import loss, make_deterministic

PATIENTS = 256
WARM_UP = 20
DELTA_INT = 4096


def study(columns: int) -> Study:
    """Return a study of a network over that many numbers."""
    features = ", ".join(f"{{name: x{k}, type: float}}" for k in range(columns))
    return parse_study(
        f"""
        schema: fedcare.study/v1
        id: bench-gradients
        purpose: benchmark
        dataset: none
        owner: {{name: bench, organisation: bench}}
        features: [{features}]
        target: {{type: binary, name: y}}
        normalise: none
        model: {{kind: mlp, hidden: [64, 64]}}
        """
    )


def measure(columns: int, rounds: int) -> None:
    """Print one line of medians."""
    asked = study(columns)
    rng = np.random.default_rng(0)
    module = build(asked, models.initial(asked))
    features = rng.normal(size=(PATIENTS, columns)).astype(np.float32)
    target = (rng.random(PATIENTS) < 0.5).astype(np.float32)  # noqa: PLR2004 - a coin
    groups = np.arange(PATIENTS)
    uniforms = secret_uniforms(OsEntropy())

    def plain() -> None:
        module.zero_grad()
        outputs = module(torch.from_numpy(features))
        loss(asked, outputs, torch.from_numpy(target)).backward()  # type: ignore[no-untyped-call]

    def per_patient() -> None:
        for _ in patient_gradients(asked, module, features, target, groups):
            pass

    def integers() -> None:
        for block in patient_gradients(asked, module, features, target, groups):
            integer_sum(block, 0.01, DELTA_INT, uniforms)

    ways: dict[str, Callable[[], None]] = {
        "plain": plain,
        "per patient": per_patient,
        "integers": integers,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(WARM_UP + rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    found = {name: statistics.median(spent[WARM_UP:]) for name, spent in times.items()}
    shown = (f"{n} {1e3 * s:.2f} ms ({s / found['plain']:.2f} x)" for n, s in found.items())
    print(f"{columns} columns, {models.layout(asked).parameters} weights: {', '.join(shown)}")


def main(rounds: int) -> None:
    """Print the table."""
    make_deterministic()
    for columns in (21, 100):
        measure(columns, rounds)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 200)
