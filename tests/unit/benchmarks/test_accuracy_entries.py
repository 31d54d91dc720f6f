"""The entries that are not a study over seeds: what each compares is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from benchmarks.accuracy import feature_shift, frame, large, narrow, newton, page
from common.models import layout
from common.site import load_sites
from common.study import Study, load_study
from hospital_node.data.invent.files import Written, generate
from hospital_node.data.invent.knobs import Knobs
from researcher.comparison import Assessment, Comparison, Figures
from researcher.personal import PersonalFigures
from researcher.studies import changed

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return generate(tmp_path_factory.mktemp("made") / "data", Knobs(sites=3, rows=80), 3)


def generated(hospitals: Written) -> Study:
    short = {"federation": {"rounds": 2, "min_sites": 3}, "personal": {"enabled": False}}
    return changed(load_study(hospitals.study), short)


def test_a_distance_is_that_of_the_released_table_and_a_wrong_one_shows(
    hospitals: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, sites = newton.exact(generated(hospitals), "cox"), load_sites(hospitals.manifests)
    right = newton.pooled(study, sites)
    assert len(right) == 2  # statsmodels and lifelines
    off = {**right[0], "p_value": right[0]["p_value"] + 1e-3}
    monkeypatch.setattr(newton, "pooled", lambda *_given: [right[1], off])
    found = newton.distances(study, sites)
    assert found["p-values"] == found[newton.WORST] == pytest.approx(1e-3, rel=1e-3)
    assert max(found["coefficients"], found["standard errors"]) < 1e-6
    assert 4 <= found[newton.ROUNDS] <= 8


def assessment(*losses: float) -> Assessment:
    sites: dict[str, Figures] = {
        f"h{place}": {"log_loss": loss, "auroc": 0.8} for place, loss in enumerate(losses)
    }
    return Assessment({}, sites)


def test_gains_are_by_hospital_against_its_own_model() -> None:
    one = assessment(0.40, 0.50, 0.31)
    found = feature_shift.against_alone(
        Comparison(
            federated=assessment(0.5, 0.5, 0.5), local_only=assessment(0.42, 0.55, 0.30),
            at_home={}, elsewhere={}, centralised=one, scores={},
            personal=PersonalFigures({}, {}, one),
        )
    )  # fmt: skip
    mine = found[feature_shift.PERSONAL]
    assert mine[feature_shift.GAIN] == pytest.approx(0.02)
    assert mine[feature_shift.LEAST] == pytest.approx(-0.01)
    assert mine[feature_shift.WORSE] == 1
    assert found["each hospital alone"][feature_shift.WORSE] == 0
    assert mine[feature_shift.LOSS] == pytest.approx(np.mean([0.40, 0.50, 0.31]))


def test_what_narrow_loses_is_by_seed_and_its_bytes_are_half(hospitals: Written) -> None:
    study, sites = generated(hospitals), load_sites(hospitals.manifests)
    small = narrow.narrow(study)
    assert (small.federation.upload_bits, small.federation.download) == (16, "float16")
    assert small.federation.rounds == study.federation.rounds
    (found,) = narrow.cost("made", study, sites, range(1), [frame.AUROC])
    wide, thin = found.figures[narrow.WIDE], found.figures[narrow.NARROW]
    assert found.figures[narrow.LOST] == pytest.approx(np.subtract(wide, thin))
    assert len(wide) == 1
    up, down = narrow.carried("large", large.of_size(study))
    assert up.mean(narrow.WIDE) == pytest.approx(4 * layout(large.of_size(study)).words, rel=0.01)
    assert up.mean(narrow.SHARE) == pytest.approx(0.5, abs=0.001)
    assert down.mean(narrow.SHARE) == pytest.approx(0.5, abs=0.003)


@pytest.mark.timeout(600)
def test_a_large_run_is_a_process_of_its_own_that_reports_memory_and_rounds(
    hospitals: Written,
) -> None:
    study = large.of_size(generated(hospitals))
    assert 100_000 <= layout(study).parameters < 105_000
    found = large.simulated(study, hospitals.manifests)
    assert found.way == "3 hospitals"
    assert 100 < found.mean(large.MEMORY) < 2000
    assert 0 < found.mean(large.ROUND) * large.ROUNDS < found.mean(large.WHOLE)
    tree = ET.fromstring(large.picture([found, found]))  # noqa: S314 - our own text
    assert tree.tag == f"{SVG}svg"


def test_a_large_run_that_fails_says_why(hospitals: Written) -> None:
    with pytest.raises(RuntimeError, match="at least 3 sites"):
        large.simulated(large.of_size(generated(hospitals)), hospitals.manifests[:2])


def test_the_page_shows_counts_tiny_numbers_absent_figures_and_an_own_picture(
    tmp_path: Path,
) -> None:
    results = (
        frame.Result("a", {"rounds": (7.0,), "away": (3e-9,)}),
        frame.Result("b", {"away": (0.0, 0.5), "bytes": (201_690.0,)}),
    )
    entry = frame.Entry("x", "X", "cmd", "Text.", results, (), 1.0, "<svg/>")
    text = page.section(entry)
    assert "| | rounds | away | bytes |" in text
    assert "| a | 7 | 3.0e-09 |  |" in text
    assert "| b |  | 0.2500 ± 0.2500 | 201,690 |" in text
    assert "![X](img/accuracy-x.svg)" in text
    stored = json.loads(entry.save(tmp_path).read_text("utf-8"))
    assert stored["picture"] == "<svg/>"
    assert frame.Entry.load("x", tmp_path) == entry
