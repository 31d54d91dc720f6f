"""The accuracy benchmarks: figures over seeds are the simulation's, and the page shows them."""

from __future__ import annotations

import statistics
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, roc_auc_score

from benchmarks.accuracy import frame, heart, page
from benchmarks.accuracy.entries import ENTRIES
from common.site import load_sites
from common.study import load_study
from hospital_node.data.invent.files import generate
from hospital_node.data.invent.knobs import Knobs


def entry(values: tuple[float, ...] = (0.80, 0.84)) -> frame.Entry:
    figures = {frame.AUROC: values, frame.BRIER: (0.15, 0.13)}
    musts = (
        frame.Must("federated", frame.AUROC, 0.82),
        frame.Must("federated", frame.BRIER, 0.139, at_most=True),
    )
    result = frame.Result("federated", figures)
    return frame.Entry("small", "A small one", "python -m x", "Text.", (result,), musts, 1.0)


def test_figures_over_seeds_are_those_of_the_simulations_test_rows(tmp_path: Path) -> None:
    written = generate(tmp_path / "data", Knobs(sites=3, rows=60), 2)
    study, sites = load_study(written.study), load_sites(written.manifests)
    federated, alone, together = frame.over_seeds(study, sites, range(2))
    assert [one.way for one in (federated, alone, together)] == [
        "federated", "each hospital alone", "all rows in one place",
    ]  # fmt: skip
    first = frame.run(study.model_copy(update={"seed": 0}), sites)
    scored = first.scores.values()
    target = np.concatenate([one.target for one in scored])
    found = np.concatenate([one.predictions for one in scored])
    each = [(one.target, one.predictions) for one in scored]
    assert federated.figures[frame.AUROC][0] == pytest.approx(roc_auc_score(target, found))
    assert federated.figures[frame.BRIER][0] == pytest.approx(brier_score_loss(target, found))
    assert federated.figures[frame.WORST][0] == pytest.approx(
        min(roc_auc_score(*pair) for pair in each)
    )
    assert federated.figures[frame.ACCURACY][0] == pytest.approx(
        statistics.fmean(accuracy_score(y, p > 0.5) for y, p in each)
    )


def test_the_standard_error_is_the_deviation_over_the_root_of_the_runs() -> None:
    result = entry((0.80, 0.82, 0.87)).results[0]
    values = np.array([0.80, 0.82, 0.87])
    assert result.mean(frame.AUROC) == pytest.approx(values.mean())
    assert result.error(frame.AUROC) == pytest.approx(values.std(ddof=1) / np.sqrt(3))
    assert entry((0.8,)).results[0].error(frame.AUROC) == 0.0


def test_an_entry_comes_back_from_its_file(tmp_path: Path) -> None:
    entry().save(tmp_path)
    assert frame.Entry.load("small", tmp_path) == entry()


def test_the_page_says_what_is_reached_and_what_is_not() -> None:
    text = page.section(entry())
    assert "| federated | 0.8200 ± 0.0200 | 0.1400 ± 0.0100 |" in text
    assert "pooled AUROC at least 0.82 | 0.8200 | reached |" in text
    assert "pooled Brier score at most 0.139 | 0.1400 | **not reached** |" in text


def test_the_picture_has_a_dot_for_each_way_where_its_value_lies() -> None:
    tree = ET.fromstring(page.picture([entry()]))  # noqa: S314 - our own text
    dots = tree.findall("{http://www.w3.org/2000/svg}circle")
    assert [float(dot.attrib["cx"]) for dot in dots] == [page._x(0.82)]


def test_the_committed_page_has_every_entry() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert text.count("\n## ") == len(ENTRIES)
    assert all(f"python -m benchmarks.accuracy {name}" in text for name in ENTRIES)
    drawn = {"heart", "wide", "mixed-units"}  # the others compare something else than AUROC
    assert all(f">{name}: " in page.PICTURE.read_text(encoding="utf-8") for name in drawn)


def test_the_heart_study_is_the_first_by_the_stated_rule() -> None:
    found = [([0.8, 0.9, 0.13, 0.7], ("good",)), ([0.7, 0.8, 0.14, 0.6], ("bad",)),
             ([0.81, 0.7, 0.12, 0.71], ("best",))]  # fmt: skip
    assert [row[2] for row in heart.ranked(found)] == [("best",), ("good",), ("bad",)]
    study = load_study(heart.STUDY)
    assert study.federation.rounds == 15
    assert heart.with_terms(study, (0.03, 16, 10), "size_class") == study
    assert heart.with_columns(study, "marked") == study
    none = heart.with_columns(study, "none")
    assert {one.name for one in study.features} - {one.name for one in none.features} == {
        "slope", "ca", "thal",
    }  # fmt: skip


def test_equal_ranks_go_to_the_better_worst_site() -> None:
    found = [([0.8, 0.9, 0.13, 0.6], ("worse",)), ([0.7, 0.8, 0.12, 0.7], ("better",))]
    assert [row[2] for row in heart.ranked(found)] == [("better",), ("worse",)]
