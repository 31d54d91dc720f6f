"""A small bench with real processes: every opened sum is the integer sum."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.models.vector import perturbation
from researcher.bench import BenchPlan, run_bench
from researcher.progress import LineDisplay


@pytest.fixture(autouse=True)
def short_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("dropouts", [0, 1])
def test_every_sum_is_exact_with_and_without_a_dropout(dropouts: int, tmp_path: Path) -> None:
    plan = BenchPlan(sites=4, params=1500, rounds=3, dropouts=dropouts)
    data = run_bench(plan, LineDisplay())
    assert data["exact"] is True
    assert data["dropped"] == [plan.dropping()] * 3
    assert len(data["round_seconds"]) == 3
    assert data["voided_rounds"] == 0
    assert data["coordinator_peak_rss_mb"] > 10
    assert data["site_peak_rss_mb"] > 10
    assert data["startup_seconds"] > 0
    assert data["cpu_seconds_per_round"] > 0
    if data["wire_bytes_per_round"] is not None:
        assert data["wire_bytes_per_round"] > (4 - dropouts / 2) * 2 * 4 * 1500
    assert list(tmp_path.glob("fedcare*")) == []


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "dropouts"), [("patient-distributed", 1), ("patient-local", 0)])
def test_every_noised_sum_is_the_sum_of_what_the_nodes_put_in(mode: str, dropouts: int) -> None:
    plan = BenchPlan(sites=4, params=1500, rounds=2, dropouts=dropouts, dp=mode)
    data = run_bench(plan, LineDisplay())
    assert data["exact"] is True
    assert data["dp_mode"] == mode
    assert data["dropped"] == [plan.dropping()] * 2
    assert data["voided_rounds"] == 0


@pytest.mark.slow
def test_a_sum_that_is_off_by_one_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: a pattern that differs in one place from the nodes' is noticed."""

    def other(site: str, r: int, start: int, stop: int) -> NDArray[np.float32]:
        found = perturbation(site, r, start, stop)
        found[-1] += np.float32(2.0**-20)
        return found

    monkeypatch.setattr("researcher.bench.perturbation", other)
    data = run_bench(BenchPlan(sites=3, params=100, rounds=1), LineDisplay())
    assert data["exact"] is False
