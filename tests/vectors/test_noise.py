"""The shipped sampler, and local steps, against the reference (sections 9.2 and 9.6)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.entropy import CountingEntropy
from common.features import Encoded
from common.privacy.noise import NoiseStream, NoiseTable
from common.secagg.keys import CoefficientSeed
from hospital_node.private import local_steps
from tests.learning import study
from tests.vectors.stored import header_of, load, unhex

LOCAL = load("local_steps.json")


@pytest.mark.parametrize("sigma", [4, 8])
def test_the_table_and_its_draws_are_the_references(sigma: int) -> None:
    stored = load("noise.json")[f"sigma_{sigma}"]
    table = NoiseTable(float(sigma))
    assert [table.resolve(*divmod(int(e) - 1, 1 << 64)) for e in stored["table"]] == list(
        range(len(stored["table"]))
    )
    out = np.zeros(64, np.int64)
    NoiseStream(table, CoefficientSeed(unhex(stored["a"]))).add_to(out, 0)
    assert out.tolist() == stored["draws"]


def test_the_noise_of_a_step_is_that_of_its_own_words() -> None:
    stored = LOCAL["noise"]
    stream = NoiseStream(NoiseTable.of(float(stored["sigma"])), CoefficientSeed(unhex(stored["a"])))
    for step, expected in enumerate(stored["steps"]):
        out = np.zeros(stored["d"] - stored["first"], np.int64)
        stream.add_to(out, step * stored["d"] + stored["first"])
        assert out.tolist() == expected


def test_local_steps_lead_where_the_reference_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are given, so that all but clipping and sampling is compared to the last bit."""
    stored, noise = LOCAL["training"], LOCAL["noise"]
    header = header_of(LOCAL["header"])
    terms = replace(header.dp, sigma_loc=float(noise["sigma"]), noise_cap=13 * noise["sigma"])
    seen: list[list[float]] = []

    def given(*arguments: Any) -> NDArray[np.int64]:  # noqa: ANN401 - those of patient_sum
        seen.append(arguments[3].tolist())
        return np.array(stored["sums"][len(seen) - 1], np.int64)

    monkeypatch.setattr(local_steps, "patient_sum", given)
    local = study(
        "\n  - {name: age, type: float}",
        train=f"{{lr: {stored['lr']}, local_steps: 3, weight_decay: {stored['decay']}}}",
        federation="{weights: equal, rounds: 3}",
        more="normalise: none\nprivacy: {dp: {mode: patient-local, epsilon: 8, delta: 1.0e-5, "
        f"batch: {stored['batch']:.0f}}}}}",
    )
    nobody = np.zeros(0, np.int64)
    training = local_steps.LocalTraining(
        local,
        "a",
        Encoded(np.zeros((0, 2), np.float32), np.zeros(0, np.float32)),
        nobody,
        nobody,
        CountingEntropy(b"t"),
    )
    start = np.array(stored["start"], np.float32)
    made = training.update(start, replace(header, dp=terms), CoefficientSeed(unhex(noise["a"])))
    path = np.array(stored["path"], np.float64)
    assert seen == path[:-1].astype(np.float32).tolist()
    assert made.tolist() == (path[-1] - path[0]).astype(np.float32).tolist()
